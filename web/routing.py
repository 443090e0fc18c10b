"""The dispatcher: checks host and sender, finds route and caller, meters the request, and calls the handler."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from urllib.parse import unquote_to_bytes

from access.credentials import Caller
from chat import DOC_ID, RUN_ID, THREAD_ID
from chat.refusals import Refusal, ThreadBusy
from runs.sse import EVENT_STREAM, EventId
from settings import Scope
from web import boundary, cors
from web.admission import Load
from web.asgi import Request, Response
from web.problems import is_over_soon, send_pause, shown_code
from web.service import Call, Service
from web.upgrades import check_no_websocket

Handler = Callable[[Call], Awaitable[None]]
Who = Scope | Literal["anyone", "any caller"]
"""Who may call: anyone, any authenticated caller, or a caller who has this scope."""

NOBODY = Caller("", frozenset())  # the caller on routes that are open to anyone; it owns nothing
FORMS = {"thread_id": THREAD_ID, "run_id": RUN_ID, "doc_id": DOC_ID}


@dataclass(frozen=True, slots=True)
class Route:
    """`weight`: its share of REQUESTS_PER_MINUTE, and `heavier` with one of these parameters; docs/limits.md has the
    reasons. `query`: the names of its parameters. `stream`: an EventSource may call it, with a stream token. `starts`:
    a GET that starts a run. `reader`: its answer follows a run, so it takes a place of STREAMS_PER_OWNER.
    `load`: see web/admission.py. `own_runs`: a caller with `chat` alone may call it, too, for the runs that it began.
    The handler sees to that.
    """

    handler: Handler
    who: Who
    weight: int
    query: Sequence[str] = ()
    heavier: Mapping[str, int] = field(default_factory=dict)
    stream: bool = False
    starts: bool = False
    load: Load = "short"
    reader: bool = False
    own_runs: bool = False

    def weight_of(self, request: Request) -> int:
        """Also of a query that can't be read."""
        if not self.heavier:
            return self.weight
        sent = {unquote_to_bytes(pair.partition(b"=")[0]) for pair in request.raw_query.split(b"&")}
        return max([self.weight, *(weight for name, weight in self.heavier.items() if name.encode() in sent)])


Methods = Mapping[str, Route]


@dataclass(frozen=True, slots=True)
class Found:
    """A path of the table, as written there, with its methods and the ids that the request has in it."""

    path: str
    methods: Methods
    ids: Mapping[str, str]

    @property
    def allowed(self) -> list[str]:
        allowed = [*self.methods, "OPTIONS"]
        # A HEAD of a stream has no length to report, and must not start a chat.
        if "GET" in self.methods and not self.methods["GET"].stream:
            allowed.append("HEAD")
        return allowed


class Router:
    """A table of routes, by path and method. An id in a path is written as `{run_id}`."""

    def __init__(self, routes: Mapping[str, Methods]) -> None:
        self._routes = [(_pattern(path), path, methods) for path, methods in routes.items()]

    def find(self, path: str) -> Found | None:
        for pattern, written, methods in self._routes:
            if (match := pattern.fullmatch(path)) is not None:
                return Found(written, methods, match.groupdict())
        return None

    async def answer(self, service: Service, request: Request, response: Response) -> None:
        """Call the handler. Raises Refusal, and as the handler does."""
        origins, is_open = service.settings.cors_allow_origins, service.access.is_open
        if is_open:
            boundary.check_host(request, service.settings.allowed_hosts)
        check_no_websocket(request)
        if request.method not in boundary.SAFE_METHODS:
            boundary.check_sender(request, origins)
        found = self.find(request.path)
        if found is None:
            raise Refusal("not_found", "There is nothing at this path.")
        route = found.methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None or (request.method == "HEAD" and route.stream):
            allowed = ", ".join(found.allowed)
            if request.method != "OPTIONS":
                raise Refusal("method_not_allowed", f"This path answers {allowed}.", [("allow", allowed)])
            more = cors.preflight(origins, request, found.allowed)
            await response.whole(204, None, b"", [("allow", allowed), *more])
            return
        if route.starts:
            boundary.check_start_by_get(request, origins, is_open=is_open)
        elif route.who != "anyone":
            boundary.check_read(request, origins)
        try:
            await _serve(service, request, response, found, route)
        except Refusal as refused:
            if response.started or not _comes_back(request, route) or not is_over_soon(refused):
                raise
            service.telemetry.refused(shown_code(refused))
            await send_pause(response, refused)


async def _serve(service: Service, request: Request, response: Response, found: Found, route: Route) -> None:
    if route.who == "anyone":
        await route.handler(Call(service, request, response, found.ids, NOBODY))
        return
    await service.admission.check(route.load, request.body_bytes(service.settings.max_body_bytes))
    caller = await _caller(service, request, route)
    # The request is counted before anything else is decided about it.
    limits, streams = service.per_owner.limits, service.per_owner.streams
    response.at_start = partial(limits.headers, caller.owner)
    limits.count_request(caller.owner, route.weight_of(request))
    _check_scope(caller, route)
    with streams.taken(caller.owner) if route.reader else nullcontext():
        try:
            await route.handler(Call(service, request, response, found.ids, caller))
        except ThreadBusy as busy:
            raise busy.told_to(caller.reads_runs_of) from None


def _check_scope(caller: Caller, route: Route) -> None:
    """Raises Forbidden."""
    if route.own_runs and caller.has("chat"):
        return
    if route.who != "any caller" and route.who != "anyone":  # noqa: PLR1714  # mypy narrows the type by these
        caller.need(route.who)


def _comes_back(request: Request, route: Route) -> bool:
    """Whether an EventSource reconnects. A status other than 200 would end it for good."""
    headers = request.headers
    return route.stream and "last-event-id" in headers and EVENT_STREAM in boundary.accepted(headers)


def _pattern(path: str) -> re.Pattern[str]:
    literal, *rest = (re.escape(part) for part in re.split(r"\{|\}", path))
    ids = (f"(?P<{name}>{FORMS[name].pattern}){behind}" for name, behind in zip(rest[::2], rest[1::2], strict=True))
    return re.compile(literal + "".join(ids))


async def _caller(service: Service, request: Request, route: Route) -> Caller:
    """Raises as Access.caller does."""
    access_token = request.query().get("access_token") if route.stream else None
    seen = EventId.parse(request.headers.get("last-event-id", ""))
    place = (None, None) if seen is None else (seen.run_id, seen.after)
    return await service.access.caller(request.headers.get("authorization"), access_token, *place)
