"""The hand-written ASGI callable `app`: the routes, who may call them, and the lifespan.

`uvicorn asgi_app:app` serves it; `python asgi_app.py` does so at HOST and PORT, and says where to go.
"""

import argparse
import atexit
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

import uvicorn

from access.callers import Caller, Scope
from chat import DOC_ID, RUN_ID, THREAD_ID, Refusal
from runs.sse import EventId
from settings import VERSION, Settings, SettingsError
from storage.embedded import EmbeddedPostgresError
from store import JournalError, SchemaError, StoreUnavailable, UnsavedTurns
from telemetry import logs, tracing
from telemetry.supervision import GaveUp
from web import fields
from web.asgi import Disconnected, Headers, Receive, Request, Response, Send
from web.asgi import Scope as AsgiScope
from web.branches import get_checkpoints, post_fork
from web.chats import cancel_run, get_chat, get_run_events, post_chat, post_stream_token
from web.downloads import get_diff, get_export
from web.problems import refusal_of, send_problem, shown_code
from web.server import (
    CannotListen,
    Server,
    check_address,
    keep_collections_short,
    server_of_signals,
    why_not_listening,
)
from web.service import Service, open_service
from web.status import get_health, get_metrics, get_openapi, get_page, get_readiness, get_root
from web.threads import delete_old_threads, delete_thread, get_thread, get_threads, patch_thread

log = logging.getLogger("draftstream")

# To pages of other origins.
EXPOSED = "Location, Content-Disposition, Retry-After, WWW-Authenticate, RateLimit, RateLimit-Policy"
READERS_S = 5  # after the last run has ended: for who reads slowly
EXIT_FAILED = 1  # an error of ours ended the process, or came in the shutdown
EXIT_START = 3  # uvicorn's own, for a start that failed
EXIT_UNSAVED = 4  # turns were lost

CANNOT_START = (SettingsError, StoreUnavailable, SchemaError, JournalError, EmbeddedPostgresError, CannotListen)
"""The faults of a start whose text is for a person, and says the way out."""


# ---------------------------------------------------------------------------------------------------------------
# Routes

Handler = Callable[..., Awaitable[None]]
Who = Scope | Literal["anyone", "any caller"]
"""Who may call: anyone; a caller of whatever scopes; a caller who has this scope. Anyone's handler gets no caller."""


@dataclass(frozen=True, slots=True)
class Route:
    """`query`: the parameters that it takes. `stream`: an EventSource asks for it, and may bring a stream token."""

    handler: Handler
    who: Who
    query: Sequence[str] = ()
    stream: bool = False


ROUTES: Mapping[str, Mapping[str, Route]] = {
    "/chat": {"GET": Route(get_chat, "chat", fields.CHAT_QUERY, stream=True)},
    "/api/chat": {"POST": Route(post_chat, "chat")},
    "/api/runs/{run_id}/events": {"GET": Route(get_run_events, "read", fields.EVENTS_QUERY, stream=True)},
    "/api/runs/{run_id}/cancel": {"POST": Route(cancel_run, "chat")},
    "/api/threads": {
        "GET": Route(get_threads, "read", fields.THREADS_QUERY),
        "DELETE": Route(delete_old_threads, "admin", fields.OLD_THREADS_QUERY),
    },
    "/api/threads/{thread_id}": {
        "GET": Route(get_thread, "read"),
        "PATCH": Route(patch_thread, "chat"),
        "DELETE": Route(delete_thread, "admin"),
    },
    "/api/threads/{thread_id}/checkpoints": {"GET": Route(get_checkpoints, "read")},
    "/api/threads/{thread_id}/fork": {"POST": Route(post_fork, "chat")},
    "/api/threads/{thread_id}/export": {"GET": Route(get_export, "read", fields.EXPORT_QUERY)},
    "/api/threads/{thread_id}/documents/{doc_id}/diff": {"GET": Route(get_diff, "read", fields.DIFF_QUERY)},
    "/api/stream-tokens": {"POST": Route(post_stream_token, "any caller")},
    "/": {"GET": Route(get_root, "anyone")},
    "/debug": {"GET": Route(get_page, "anyone")},
    "/openapi.json": {"GET": Route(get_openapi, "anyone")},
    "/healthz": {"GET": Route(get_health, "anyone")},
    "/readyz": {"GET": Route(get_readiness, "anyone")},
    "/metrics": {"GET": Route(get_metrics, "anyone")},
}
FORMS = {"thread_id": THREAD_ID, "run_id": RUN_ID, "doc_id": DOC_ID}


def pattern_of(path: str) -> re.Pattern[str]:
    """`/api/runs/{run_id}/events` as a regular expression, with the form of each id."""
    literal, *rest = (re.escape(part) for part in re.split(r"\{|\}", path))
    ids = (f"(?P<{name}>{FORMS[name].pattern}){behind}" for name, behind in zip(rest[::2], rest[1::2], strict=True))
    return re.compile(literal + "".join(ids))


PATTERNS = [(pattern_of(path), methods) for path, methods in ROUTES.items()]


async def dispatch(service: Service, request: Request, response: Response) -> None:
    """Find the route and call its handler. Raises Refusal, and what handlers raise."""
    found = next(((match, routes) for pattern, routes in PATTERNS if (match := pattern.fullmatch(request.path))), None)
    if found is None:
        raise Refusal("not_found", "There is nothing at this path.")
    match, routes = found
    allowed = [*routes, "OPTIONS"]
    if "GET" in routes and not routes["GET"].stream:  # a stream has no length to tell, and only a GET starts a chat
        allowed.append("HEAD")
    if request.method == "OPTIONS":
        await response.whole(204, None, b"", [("allow", ", ".join(allowed)), *preflight(service, request, allowed)])
        return
    if request.method not in allowed:
        detail = f"This path answers {', '.join(allowed)}."
        raise Refusal("method_not_allowed", detail, [("allow", ", ".join(allowed))])
    route = routes["GET" if request.method == "HEAD" else request.method]
    arguments: dict[str, object] = {**match.groupdict()}
    if route.who != "anyone":
        arguments["caller"] = caller = await authenticate(service, request, takes_token=route.stream)
        if route.who != "any caller":
            caller.need(route.who)
    await route.handler(service, request, response, **arguments)


async def authenticate(service: Service, request: Request, takes_token: bool) -> Caller:  # noqa: FBT001
    """The caller. Raises as Access.caller does."""
    access_token = request.query().get("access_token") if takes_token else None
    seen = EventId.parse(request.headers.get("last-event-id", ""))
    seen_run = seen.run_id if seen is not None else None
    return await service.access.caller(request.headers.get("authorization"), access_token, seen_run)


def cors(service: Service, request: Request) -> Headers:
    if not service.settings.cors_allow_origins:
        return []
    headers = [("vary", "Origin")]
    if "origin" in request.headers and service.allows(request):
        headers.append(("access-control-allow-origin", request.headers["origin"]))
        headers.append(("access-control-expose-headers", EXPOSED))
    return headers


def preflight(service: Service, request: Request, allowed: Sequence[str]) -> Headers:
    if "access-control-request-method" not in request.headers or not service.allows(request):
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
        tracing.arrive(request.headers.get("traceparent"))
        response = Response(send, cors(service, request), head=request.method == "HEAD")
        await dispatch(service, request, response)
    except Disconnected:
        pass
    except Exception as error:  # noqa: BLE001  # the last resort: whatever it is, the client gets an answer
        refusal = refusal_of(error)
        service.telemetry.refused(shown_code(refusal))
        if not response.started:
            await send_problem(response, refusal)


async def lifespan(scope: AsgiScope, receive: Receive, send: Send) -> None:
    """Every start and every shutdown is answered: uvicorn takes a silent one for an app without a lifespan."""
    await receive()
    server: uvicorn.Server | None = scope["state"].get("server") or server_of_signals()
    stack = AsyncExitStack()
    try:
        settings = Settings.from_env(os.environ)
        if "server" not in scope["state"]:  # else `main` has done so
            begin_log(settings)
        scope["state"]["service"] = await stack.enter_async_context(open_service(settings, server))
    except Exception as error:  # noqa: BLE001  # of an app without a lifespan uvicorn would go on to serve requests
        await send({"type": "lifespan.startup.failed", "message": cannot_start(error)})
        return
    keep_collections_short()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    failure = await end(stack, server)
    if failure is None:
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await send({"type": "lifespan.shutdown.failed", "message": failure})


async def end(stack: AsyncExitStack, server: uvicorn.Server | None) -> str | None:
    """Leave the parts; gives the reason if that was a failure, and sees to the exit code."""
    try:
        await stack.aclose()
    except UnsavedTurns as loss:
        exit_with(EXIT_UNSAVED)
        if loss.__context__ is not None:
            log.error("the shutdown failed, too", exc_info=loss.__context__)
        return str(loss)
    except GaveUp as failure:
        exit_with(EXIT_FAILED)
        return str(failure)
    except Exception:
        log.exception("the shutdown failed")
        exit_with(EXIT_FAILED)
        return "The shutdown failed; the traceback is in the log."
    if server is not None and not server.started:  # it could not bind its address, and ends with EXIT_START itself
        return cannot_start(why_not_listening(server.config.host, server.config.port))
    return None


def exit_with(code: int) -> None:
    """uvicorn ends with 0 after whatever happens in a shutdown."""
    atexit.register(os._exit, code)


def cannot_start(error: Exception) -> str:
    """One line for a person who starts the service."""
    if isinstance(error, CANNOT_START):
        return f"Draftstream can't start: {error}"
    log.error("the start failed", exc_info=error)
    return f"Draftstream can't start: an error of ours ({type(error).__name__}); the traceback is in the log."


def begin_log(settings: Settings) -> None:
    secrets = [settings.openai_api_key or "", settings.database_url or ""]
    logs.set_up(settings.log_level, settings.log_format, content=settings.log_content, secrets=secrets)
    log.info("Draftstream %s", VERSION)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve at HOST and PORT. Settings are environment variables.")
    parser.add_argument("--version", action="version", version=f"Draftstream {VERSION}")
    parser.parse_args()
    try:
        settings = Settings.from_env(os.environ)
        begin_log(settings)  # before uvicorn's first lines
        check_address(settings.host, settings.port)
    except (SettingsError, CannotListen) as error:
        print(cannot_start(error), file=sys.stderr)  # noqa: T201  # the log may not be set up yet
        sys.exit(EXIT_START)
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws="none",
            access_log=False,
            timeout_graceful_shutdown=READERS_S,
            log_config=None,
            log_level=settings.log_level.lower(),
        )
    )
    server.run()
    if not server.started:
        sys.exit(EXIT_START)


if __name__ == "__main__":
    main()
