"""The hand-written ASGI callable `app`: the lifespan, where the parts are put together, and the routes.

`uvicorn asgi_app:app` serves it; `python asgi_app.py` does so at HOST and PORT, and says where to go.
"""

import asyncio
import atexit
import base64
import binascii
import hashlib
import logging
import os
import random
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

import uvicorn

from access import Access, Caller, Forbidden, Scope, Unauthorized, open_access
from agent import Agent, ChatModel
from asgi import Disconnected, Headers, Problem, Receive, Request, Response, Send
from asgi import Scope as AsgiScope
from chat import ChatRequest, InvalidRequest, MessageTooLong, StopCause, StreamMode
from checkpointer import Checkpointer
from embedded import EmbeddedPostgresError, embedded_postgres
from identity import ProviderUnavailable
from journal import JournalError
from model import OpenAIModel
from offline import OfflineModel
from runs import Draining, KeyReused, Run, Runs, ThreadBusy, TooManyRuns, UnknownCheckpoint
from settings import Settings, SettingsError, is_loopback
from sse import EventId
from store import Store, StoreUnavailable, UnsavedTurns, open_store, where
from writer import QueueFull

log = logging.getLogger("draftstream")

REALM = 'Bearer realm="draftstream"'
CONNECT_TIMEOUT_S = 10.0  # how long a start waits for the database
EXIT_UNSAVED = 4  # the exit code when turns were lost; 3 is uvicorn's, for a start that failed
FLUSH_TIMEOUT_S = 4.0  # how long a shutdown waits for the queue, after the runs have ended
PAGE = Path(__file__).with_name("debug.html")
THREADS_A_PAGE = 20


# ---------------------------------------------------------------------------------------------------------------
# The parts, put together


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers work with; it reaches them through the ASGI lifespan state."""

    settings: Settings
    store: Store
    runs: Runs
    agent: Agent
    access: Access
    page: bytes
    page_policy: str


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Lifetimes nested in the order in which the parts need each other; leaving it is the shutdown."""
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            dsn = await stack.enter_async_context(embedded_postgres(settings.data_dir))
            database = f"embedded PostgreSQL in {settings.data_dir / 'postgres'}"
        else:
            dsn, database = settings.database_url, f"PostgreSQL at {where(settings.database_url)}"
        store = await stack.enter_async_context(
            open_store(
                dsn,
                queue_size=settings.write_queue_size,
                queue_bytes=settings.write_queue_bytes,
                connect_timeout_s=CONNECT_TIMEOUT_S,
                drain_timeout_s=FLUSH_TIMEOUT_S,
                journal_dir=settings.journal_dir,
            )
        )
        access = await stack.enter_async_context(
            open_access(settings, store.fetch, only_loopback=listens_on_loopback_only())
        )
        model = await stack.enter_async_context(open_model(settings))
        checkpointer = Checkpointer(store)
        agent = Agent(
            model,
            checkpointer,
            newest_checkpoint=checkpointer.newest,
            first_token_timeout_s=settings.model_first_token_timeout_s,
            idle_timeout_s=settings.model_idle_timeout_s,
        )
        runs = await stack.enter_async_context(
            Runs(
                agent=agent,
                model=model.name,
                head=store.head,
                start_run=store.start_run,
                end_run=store.end_run,
                renew_leases=store.renew_leases,
                journal=store.journal if store.journals else None,
                save_progress=store.save_progress,
                stored_run=store.run,
                max_runs=settings.max_runs,
                run_timeout_s=settings.run_timeout_s,
                save_timeout_s=settings.save_timeout_s,
                drain_timeout_s=settings.drain_timeout_s,
            )
        )
        stack.enter_context(draining_on_sigterm(runs))
        page = PAGE.read_bytes()
        log.info("model: %s", "offline (set OPENAI_API_KEY for a real one)" if settings.offline else model.name)
        log.info("database: %s", database)
        yield Service(settings, store, runs, agent, access, page, page_policy(page.decode()))


@asynccontextmanager
async def open_model(settings: Settings) -> AsyncIterator[ChatModel]:
    if settings.offline:
        yield OfflineModel()
        return
    model = OpenAIModel(
        settings.openai_model,
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
    )
    try:
        yield model
    finally:
        await model.aclose()


def listens_on_loopback_only() -> bool:
    """Whether it is certain that nobody but this machine can connect.

    A server binds after the lifespan's start and tells it nothing; uvicorn's can be asked, as it handles the signals.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server) or server.config.fd is not None:
        return False
    return server.config.uds is not None or is_loopback(server.config.host)


class draining_on_sigterm:  # noqa: N801  # reads as the context manager it is
    """Ends the runs at SIGTERM or SIGINT already.

    uvicorn leaves the lifespan only after every open response has ended, and tells the responses nothing: without this
    a stream would hold up the shutdown until its run ends by itself.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, object] = {}
        self._drain: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not in the main thread: then whoever runs us handles the signals
                self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._start_drain)
        before = self._before[signal.Signals(number)]
        server = getattr(before, "__self__", None)
        if isinstance(server, uvicorn.Server):
            # Its own handler would raise the signal again after the shutdown, and the exit code would not be 0.
            server.force_exit = server.should_exit and number == signal.SIGINT
            server.should_exit = True
        elif callable(before):
            before(number, frame)

    def _start_drain(self) -> None:
        if self._drain is None:  # Runs awaits the same end when its block is left
            self._drain = asyncio.create_task(self._runs.drain(), name="drain")


def page_policy(page: str) -> str:
    """The page's Content-Security-Policy: its own script and its own style, by their hashes, and nothing else."""

    def sources(tag: str) -> str:
        digests = (
            hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# ---------------------------------------------------------------------------------------------------------------
# Chats


async def get_chat(service: Service, request: Request, response: Response, caller: Caller) -> None:
    if "prefetch" in request.headers.get("sec-purpose", request.headers.get("purpose", "")):
        raise Problem(403, "prefetch", "A chat is not started for a prefetch.")
    if (last_event_id := request.headers.get("last-event-id")) is not None:
        await resume(service, request, response, caller, last_event_id)
        return
    query = request.query()
    query.pop("access_token", None)
    await request.body(service.settings.max_body_bytes)  # says nothing; but a request that breaks off starts no run
    await start_chat(service, request, response, caller, query, idempotency_key=query.pop("idempotency_key", None))


async def post_chat(service: Service, request: Request, response: Response, caller: Caller) -> None:
    body = await request.json(service.settings.max_body_bytes)
    await start_chat(service, request, response, caller, body, idempotency_key=request.headers.get("idempotency-key"))


async def start_chat(
    service: Service,
    request: Request,
    response: Response,
    caller: Caller,
    fields: object,
    *,
    idempotency_key: str | None,
) -> None:
    if request.foreign_origin is not None and not origin_allowed(service, request):
        raise Problem(403, "bad_origin", "Pages of this origin may not use the service; see CORS_ALLOW_ORIGINS.")
    chat = ChatRequest.from_fields(
        fields, max_message_chars=service.settings.max_message_chars, idempotency_key=idempotency_key
    )
    run = await service.runs.start(caller.owner, chat)
    cancel = chat.on_disconnect == "cancel"
    await stream(service, request, response, caller, run, after=None, mode=chat.stream, cancel_on_disconnect=cancel)


async def resume(service: Service, request: Request, response: Response, caller: Caller, last_event_id: str) -> None:
    """An EventSource that comes back: go on with its run, or stop it with 204. It never runs the message twice."""
    event_id = EventId.parse(last_event_id)
    run = None
    if event_id is not None and event_id.after is not None:
        run = await service.runs.find(caller.owner, event_id.run_id)
    if event_id is None or event_id.after is None or run is None:
        await response.whole(204, None, b"")
        return
    await stream(service, request, response, caller, run, after=event_id.after, mode=stream_mode(request))


def stream_mode(request: Request) -> StreamMode:
    match request.query().get("stream", "pieces"):
        case "pieces":
            return "pieces"
        case "items":
            return "items"
    raise invalid("stream", 'must be "pieces" or "items"')


async def get_run_events(service: Service, request: Request, response: Response, caller: Caller, run_id: str) -> None:
    run = await service.runs.find(caller.owner, run_id)
    if run is None:
        raise not_found("run")
    after = request.query().get("after")
    if (header := request.headers.get("last-event-id")) is not None:
        event_id = EventId.parse(header)
        if event_id is None or event_id.run_id != run_id:
            raise Problem(422, "invalid_request", "The Last-Event-ID is not one of this run.")
        if event_id.after is None:
            await response.whole(204, None, b"")
            return
        after = str(event_id.after)
    if after is not None and not re.fullmatch(r"[0-9]{1,15}", after):
        raise invalid("after", "must be a position: a whole number")
    place = None if after is None else int(after)
    await stream(service, request, response, caller, run, after=place, mode=stream_mode(request))


async def cancel_run(service: Service, _: Request, response: Response, caller: Caller, run_id: str) -> None:
    run = service.runs.get(caller.owner, run_id)
    if run is None:
        raise not_found("run")
    run.stop(StopCause.USER)
    await response.json(202, {"run_id": run_id})


async def stream(
    service: Service,
    request: Request,
    response: Response,
    caller: Caller,
    run: Run,
    *,
    after: int | None,
    mode: StreamMode,
    cancel_on_disconnect: bool = False,
) -> None:
    """Send the run's frames until its end, or until the client leaves. The run goes on without a reader."""

    def on_leaving(disconnected: asyncio.Task[None]) -> None:
        cursor.close()
        if cancel_on_disconnect and not disconnected.cancelled():
            run.stop(StopCause.USER)

    headers = [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
        ("location", f"/api/runs/{run.run_id}/events"),
        ("referrer-policy", "no-referrer"),
    ]
    if request.http_version == "1.1":
        headers.append(("connection", "keep-alive"))
    await service.access.bind(caller, run.run_id)
    cursor = run.follow(after, mode=mode, heartbeat_s=service.settings.heartbeat_s, on_stuck=response.abort)
    leaving = asyncio.create_task(request.disconnected(), name=f"reader of {run.run_id}")
    leaving.add_done_callback(on_leaving)
    try:
        await response.start(200, headers)
        async for frames in cursor:
            await response.write(frames)
        await response.end()
    finally:
        cursor.close()
        leaving.cancel()
        await asyncio.wait({leaving})


# ---------------------------------------------------------------------------------------------------------------
# Threads


async def get_threads(service: Service, request: Request, response: Response, caller: Caller) -> None:
    query = request.query()
    for name in query:
        if name not in ("limit", "cursor"):
            raise invalid(name, "is not a known parameter")
    limit = query.get("limit", str(THREADS_A_PAGE))
    if not re.fullmatch(r"[1-9][0-9]?|100", limit):
        raise invalid("limit", "must be a whole number from 1 to 100")
    before = read_cursor(query["cursor"]) if "cursor" in query else None
    threads, place = await service.store.threads(caller.owner, int(limit), before)
    await response.json(200, {"threads": threads, "next_cursor": place and write_cursor(*place)})


def write_cursor(created_at: datetime, thread_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {thread_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        time, _, thread_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        created_at = datetime.fromisoformat(time)
        if created_at.tzinfo is None or "\0" in thread_id:
            raise ValueError(time)
        return created_at.astimezone(UTC), thread_id
    except (binascii.Error, ValueError, OverflowError):  # the last of a time that UTC's calendar does not have
        raise invalid("cursor", "must be the next_cursor of a page before") from None


async def get_thread(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    history = await service.store.history(caller.owner, thread_id)
    if history is None:
        raise not_found("thread")
    await response.json(200, history)


# ---------------------------------------------------------------------------------------------------------------
# Who calls


async def post_stream_token(service: Service, _: Request, response: Response, caller: Caller) -> None:
    token, life_s = await service.access.new_stream_token(caller)
    await response.json(201, {"access_token": token, "expires_in": int(life_s)})


async def authenticate(service: Service, request: Request, takes_token: bool) -> Caller:  # noqa: FBT001
    """The caller. Raises Unauthorized, and Problem for one that says twice who it is."""
    authorization = request.headers.get("authorization")
    access_token = request.query().get("access_token") if takes_token else None
    if authorization is not None and access_token is not None:
        detail = "The request has both an Authorization header and an access_token."
        raise Problem(400, "invalid_request", detail, [("www-authenticate", f'{REALM}, error="invalid_request"')])
    seen = EventId.parse(request.headers.get("last-event-id", ""))
    return await service.access.caller(authorization, access_token, seen.run_id if seen is not None else None)


# ---------------------------------------------------------------------------------------------------------------
# The page, and the service's own state


async def get_root(_: Service, __: Request, response: Response) -> None:
    await response.whole(302, "text/plain", b"/debug\n", [("location", "/debug")])


async def get_page(service: Service, _: Request, response: Response) -> None:
    headers = [
        ("content-security-policy", service.page_policy),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ]
    await response.whole(200, "text/html; charset=utf-8", service.page, headers)


async def get_health(_: Service, __: Request, response: Response) -> None:
    await response.json(200, {"status": "ok"})


async def get_readiness(service: Service, _: Request, response: Response) -> None:
    """Whether it can take chats; if not, why."""
    reasons = []
    if service.runs.draining:
        reasons.append("shutting_down")
    if service.runs.full:
        reasons.append("too_many_runs")
    if service.store.full:
        reasons.append("write_queue_full")
    try:
        await service.store.ping()
    except StoreUnavailable:
        reasons.append("store_unavailable")
    status = "not ready" if reasons else "ready"
    headers = [retry_after()] if reasons else []
    await response.json(503 if reasons else 200, {"status": status, "reasons": reasons}, headers)


# ---------------------------------------------------------------------------------------------------------------
# Routes, and errors to responses

Handler = Callable[..., Awaitable[None]]
Who = Scope | Literal["anyone", "any caller"]
"""Who may call: anyone; a caller of whatever scopes; a caller who has this scope. Anyone's handler gets no caller."""

ROUTES: Sequence[tuple[re.Pattern[str], Mapping[str, tuple[Handler, Who]]]] = [
    (re.compile(r"/chat"), {"GET": (get_chat, "chat")}),
    (re.compile(r"/api/chat"), {"POST": (post_chat, "chat")}),
    (re.compile(r"/api/runs/(?P<run_id>[0-9a-f-]{36})/events"), {"GET": (get_run_events, "read")}),
    (re.compile(r"/api/runs/(?P<run_id>[0-9a-f-]{36})/cancel"), {"POST": (cancel_run, "chat")}),
    (re.compile(r"/api/threads"), {"GET": (get_threads, "read")}),
    (re.compile(r"/api/threads/(?P<thread_id>[A-Za-z0-9._:@-]{1,128})"), {"GET": (get_thread, "read")}),
    (re.compile(r"/api/stream-tokens"), {"POST": (post_stream_token, "any caller")}),
    (re.compile(r"/"), {"GET": (get_root, "anyone")}),
    (re.compile(r"/debug"), {"GET": (get_page, "anyone")}),
    (re.compile(r"/healthz"), {"GET": (get_health, "anyone")}),
    (re.compile(r"/readyz"), {"GET": (get_readiness, "anyone")}),
]
STREAMS = (get_chat, get_run_events)  # an EventSource asks for them: they take a stream token.
NO_HEAD = STREAMS  # a stream has no length to tell, and a chat is started by nothing but a GET


async def dispatch(service: Service, request: Request, response: Response) -> None:
    """Find the route and call its handler. Raises Problem, and what handlers raise."""
    found = next(
        ((match, handlers) for pattern, handlers in ROUTES if (match := pattern.fullmatch(request.path))), None
    )
    if found is None:
        raise Problem(404, "not_found", "There is nothing at this path.")
    match, handlers = found
    allowed = [*handlers, "OPTIONS"]
    if "GET" in handlers and handlers["GET"][0] not in NO_HEAD:
        allowed.append("HEAD")
    if request.method == "OPTIONS":
        await response.whole(204, None, b"", [("allow", ", ".join(allowed)), *preflight(service, request, allowed)])
        return
    if request.method not in allowed:
        detail = f"This path answers {', '.join(allowed)}."
        raise Problem(405, "method_not_allowed", detail, [("allow", ", ".join(allowed))])
    handler, who = handlers["GET" if request.method == "HEAD" else request.method]
    arguments: dict[str, object] = {**match.groupdict()}
    if who != "anyone":
        arguments["caller"] = caller = await authenticate(service, request, takes_token=handler in STREAMS)
        if who != "any caller":
            caller.need(who)
    await handler(service, request, response, **arguments)


def problem_of(error: Exception) -> Problem:
    """The one place where a refusal of any room becomes an answer."""
    match error:
        case Problem():
            return error
        case Unauthorized():
            header = f'{REALM}, error="invalid_token"' if error.sent else REALM
            detail = "This needs an API key or a token that is good: Authorization: Bearer …"
            return Problem(401, "unauthorized", detail, [("www-authenticate", header)])
        case Forbidden():
            header = f'{REALM}, error="insufficient_scope", scope="{error.scope}"'
            detail = f"This needs the scope {error.scope}."
            return Problem(403, "insufficient_scope", detail, [("www-authenticate", header)], scope=error.scope)
        case ProviderUnavailable():
            detail = "The identity provider can't be reached at the moment."
            return Problem(503, "provider_unavailable", detail, [retry_after()])
        case InvalidRequest():
            return Problem(422, "invalid_request", "The request has fields that can't be used.", errors=error.errors)
        case MessageTooLong():
            return Problem(413, "message_too_long", str(error), limit=error.limit)
        case UnknownCheckpoint():
            return invalid("checkpoint_id", "is not a checkpoint of this thread")
        case ThreadBusy():
            detail = "The thread has a run in progress; follow it, cancel it, or wait for its end."
            return Problem(409, "thread_busy", detail, [retry_after()], run_id=error.run_id)
        case KeyReused():
            return invalid("idempotency_key", "came before with another request")
        case TooManyRuns() | QueueFull():
            return Problem(503, "overloaded", "The service has no room for another chat just now.", [retry_after()])
        case Draining():
            headers = [retry_after(), ("connection", "close")]
            return Problem(503, "shutting_down", "The service is shutting down; please try again.", headers)
        case StoreUnavailable():
            return Problem(503, error.code, error.content, [retry_after()])
        case _:
            log.error("an error of ours", exc_info=error)
            return Problem(500, "internal", "Something went wrong on our side; it has been logged.")


def invalid(field: str, detail: str) -> Problem:
    return problem_of(InvalidRequest([{"pointer": f"/{field}", "detail": detail}]))


def not_found(what: str) -> Problem:
    return Problem(404, "not_found", f"There is no such {what}.")


def retry_after() -> tuple[str, str]:
    """Spread over a few seconds, so that those refused together do not come back together."""
    return "retry-after", str(random.randint(1, 5))  # noqa: S311  # no secret


def origin_allowed(service: Service, request: Request) -> bool:
    allowed = service.settings.cors_allow_origins
    return "*" in allowed or request.headers.get("origin") in allowed


def cors(service: Service, request: Request) -> Headers:
    if not service.settings.cors_allow_origins:
        return []
    headers = [("vary", "Origin")]
    if "origin" in request.headers and origin_allowed(service, request):
        headers.append(("access-control-allow-origin", request.headers["origin"]))
        headers.append(("access-control-expose-headers", "Location, Retry-After, WWW-Authenticate"))
    return headers


def preflight(service: Service, request: Request, allowed: Sequence[str]) -> Headers:
    if "access-control-request-method" not in request.headers or not origin_allowed(service, request):
        return []
    return [
        ("access-control-allow-methods", ", ".join(allowed)),
        ("access-control-allow-headers", "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"),
        ("access-control-max-age", "600"),
    ]


# ---------------------------------------------------------------------------------------------------------------
# The ASGI callable


async def app(scope: AsgiScope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "http":
        await serve(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})


async def serve(scope: AsgiScope, receive: Receive, send: Send) -> None:
    service: Service = scope["state"]["service"]
    response = Response(send, head=scope["method"] == "HEAD")
    try:
        request = Request.from_scope(scope, receive)
        response = Response(send, cors(service, request), head=request.method == "HEAD")
        await dispatch(service, request, response)
    except Disconnected:
        pass
    except Exception as error:  # noqa: BLE001  # the last resort: whatever it is, the client gets an answer
        problem = problem_of(error)
        if not response.started:
            await response.problem(problem)


async def lifespan(scope: AsgiScope, receive: Receive, send: Send) -> None:
    await receive()
    stack = AsyncExitStack()
    try:
        settings = Settings.from_env(os.environ)
        set_up_logging(settings.log_level)
        scope["state"]["service"] = await stack.enter_async_context(open_service(settings))
    except (SettingsError, StoreUnavailable, JournalError, EmbeddedPostgresError) as error:
        await send({"type": "lifespan.startup.failed", "message": f"Draftstream can't start: {error}"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    try:
        await stack.aclose()
    except UnsavedTurns as loss:
        atexit.register(os._exit, EXIT_UNSAVED)  # as uvicorn would end with 0 all the same
        await send({"type": "lifespan.shutdown.failed", "message": str(loss)})
        return
    await send({"type": "lifespan.shutdown.complete"})


def set_up_logging(level: str) -> None:
    log.setLevel(level)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    logging.getLogger("uvicorn.access").addFilter(without_query)


def without_query(record: logging.LogRecord) -> bool:
    """uvicorn's access log prints the query, and with it the message of a GET /chat."""
    if isinstance(record.args, tuple) and len(record.args) == 5:  # client, method, path, version, status
        client, method, path, *rest = record.args
        record.args = (client, method, str(path).partition("?")[0], *rest)
    return True


class Server(uvicorn.Server):
    """uvicorn, saying where to go once it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        base = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::', '::1') else host}:{port}"  # noqa: S104  # compared, not bound
        log.info("page: %s/debug", base)
        service: Service = self.lifespan.state["service"]
        key = "" if service.access.is_open else '-H "Authorization: Bearer $KEY" '
        log.info("try: curl -N %s'%s/chat?message=Draft+an+NDA&thread_id=first'", key, base)


def main() -> None:
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        sys.exit(f"Draftstream can't start: {error}")
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws="none",
            access_log=False,
            timeout_graceful_shutdown=int(settings.drain_timeout_s) + 5,
            log_level=settings.log_level.lower(),
        )
    )
    server.run()
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main()
