"""The hand-written ASGI callable `app`: the parts put together, and the lifespan.

`uvicorn asgi_app:app` serves it; `python asgi_app.py` does so at HOST and PORT, and says where to go.
"""

import argparse
import atexit
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import uvicorn

from access.callers import Access, open_access
from access.credentials import ANONYMOUS
from access.per_owner import PerOwner, limiting
from agent import Agent
from drafting.context.tokens import context_of
from drafting.deltas import HeaderError, ProxyError
from drafting.models import offline_model, openai_models
from drafting.port import ChatModel
from drafting.provider.endpoint import Endpoint
from runs.registry import Runs
from settings import VERSION, Settings, SettingsError
from storage.embedded import EmbeddedPostgresError, data_folder, embedded_postgres
from store import (
    JournalError,
    SchemaError,
    Store,
    StoreUnavailable,
    UnsavedTurns,
    UnusableAddress,
    open_store,
    passwords_of,
    where,
)
from telemetry import logs, tracing
from telemetry.metrics import Telemetry
from telemetry.resources import Descriptors, Memory, bound_address_space
from telemetry.supervision import GaveUp, Supervisor
from telemetry.tracers import TracerError, tracers
from threads.checkpointer import Checkpointer
from threads.retention import Retention
from threads.search import keep_searchable
from web import cors
from web.admission import Admission
from web.asgi import ConnectionScope, Disconnected, Receive, Request, Response, Send
from web.file_workers import FileWorkers
from web.listener import bounded
from web.page import read_page
from web.prefix import trusted_proxies
from web.problems import refusal_of, send_problem, shown_code
from web.readiness import Readiness
from web.routes import ROUTER
from web.server import (
    CannotListen,
    Server,
    check_address,
    draining_on_signals,
    keep_collections_short,
    listens_on_loopback_only,
    server_of_signals,
    why_not_listening,
)
from web.service import Service
from web.upgrades import ignoring_upgrades

log = logging.getLogger("draftstream")

OPENAPI = Path(__file__).with_name("web") / "openapi.json"
CONNECT_TIMEOUT_S = 10.0  # how long a start waits for the database
FLUSH_TIMEOUT_S = 2.5  # how long a shutdown waits for the queue, after the runs have ended: one attempt, and a little
EXIT_FAILED = 1  # an error of ours ended the process, or came in the shutdown
EXIT_START = 3  # uvicorn's own, for a start that failed
EXIT_UNSAVED = 4  # turns were lost

CANNOT_START = (
    *(SettingsError, TracerError, HeaderError, ProxyError, CannotListen),
    *(UnusableAddress, StoreUnavailable, SchemaError, JournalError, EmbeddedPostgresError),
)
"""The faults of a start whose text is for a person, and says the way out."""


# ---------------------------------------------------------------------------------------------------------------
# The parts


@asynccontextmanager
async def open_service(settings: Settings, server: uvicorn.Server | None) -> AsyncIterator[Service]:
    """Lifetimes nested in the order in which the parts need each other; leaving it is the shutdown.

    `server` runs us, if it is uvicorn; of another one nothing can be known.
    """
    telemetry = Telemetry(VERSION)
    bound_address_space()
    admission = Admission(Descriptors(), Memory())
    async with AsyncExitStack() as stack:
        opened = stack.enter_async_context
        await opened(tracers(to_langsmith=settings.trace_to_langsmith))
        tracing.name_exporters()
        supervisor = stack.enter_context(Supervisor(give_up=partial(signal.raise_signal, signal.SIGTERM)))
        store = await opened(open_database(settings, telemetry, supervisor))
        stack.callback(supervisor.close)
        per_owner = await opened(limiting(settings, store, supervisor.keep))
        access = await opened(access_of(settings, store, supervisor, server))
        models = await opened(models_of(settings, telemetry, admission))
        checkpointer = Checkpointer(store)
        agent = agent_of(settings, models, checkpointer)
        runs = await opened(runs_of(settings, agent, store, per_owner, admission, telemetry, supervisor))
        needing_model = (lambda: 0) if settings.offline else lambda: runs.in_progress
        admission.watch(runs=needing_model, close_idle=bounded(server, admission))
        admission.warn_of_few(settings.max_runs, descriptors_a_run=1 if settings.offline else 2)
        files = FileWorkers(
            per_owner=settings.exports_per_owner, timeout_s=settings.export_timeout_s, everyone=ANONYMOUS.owner
        )
        stack.push_async_callback(files.aclose)
        stack.enter_context(draining_on_signals(runs, files.close, server))
        readiness = Readiness(store, runs, admission, supervisor)
        stack.callback(readiness.end)
        await opened(supervisor.running("readiness", readiness.run))
        telemetry.watch(
            ready=lambda: readiness.is_ready,
            runs=lambda: runs.in_progress,
            streams=lambda: runs.readers,
            queued_units=lambda: store.waiting,
            oldest_unit_s=lambda: store.oldest_unit_s,
        )
        retention = Retention(store, runs, checkpointer.forget)
        await opened(tending_threads(settings, store, retention, supervisor))
        parts = (settings, store, runs, access, per_owner, admission, telemetry, readiness, retention, files)
        yield Service(*parts, read_page(), OPENAPI.read_bytes(), trusted_proxies(server))


@asynccontextmanager
async def tending_threads(
    settings: Settings, store: Store, retention: Retention, supervisor: Supervisor
) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        opened = stack.enter_async_context
        await opened(supervisor.running("search_words", partial(keep_searchable, store)))
        if settings.thread_ttl_days is not None:
            expire = partial(retention.expire, timedelta(days=settings.thread_ttl_days))
            await opened(supervisor.running("thread_expiry", expire))
        yield


@asynccontextmanager
async def open_database(settings: Settings, telemetry: Telemetry, supervisor: Supervisor) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            dsn = await stack.enter_async_context(embedded_postgres(settings.data_dir, supervisor.keep))
            log.info("database: embedded PostgreSQL in %s", data_folder(settings.data_dir))
        else:
            dsn = settings.database_url
            log.info("database: PostgreSQL at %s", where(dsn))
        yield await stack.enter_async_context(
            open_store(
                dsn,
                queue_size=settings.write_queue_size,
                queue_bytes=settings.write_queue_bytes,
                connect_timeout_s=CONNECT_TIMEOUT_S,
                drain_timeout_s=FLUSH_TIMEOUT_S,
                migrate_at_start=settings.migrate_at_start,
                journal_dir=settings.journal_dir,
                on_commit=telemetry.committed,
                supervise=supervisor.keep_vital,
            )
        )


def access_of(
    settings: Settings, store: Store, supervisor: Supervisor, server: uvicorn.Server | None
) -> AbstractAsyncContextManager[Access]:
    if settings.jwt_jwks_url is not None:
        log.info("keys of the identity provider: at %s, without a proxy", logs.origin_of(settings.jwt_jwks_url))
    only_loopback = listens_on_loopback_only(server)
    return open_access(settings, store.fetch, supervisor.keep, only_loopback=only_loopback)


def agent_of(settings: Settings, models: Sequence[ChatModel], checkpointer: Checkpointer) -> Agent:
    context_tokens = None  # the offline model takes any history
    if not settings.offline:
        # The fallback of a model gets the same request.
        fallback = () if settings.model_fallback is None else (settings.model_fallback,)
        context_tokens = {
            name: settings.model_context_tokens or min(map(context_of, (name, *fallback)))
            for name in settings.model_names
        }
        for tokens in sorted(set(context_tokens.values())):
            names = ",".join(name for name, its_tokens in context_tokens.items() if its_tokens == tokens)
            log.info("%s is sent what fits into %d tokens (MODEL_CONTEXT_TOKENS)", names, tokens)
    return Agent(
        models[0],
        checkpointer,
        remember=checkpointer.remember,
        first_token_timeout_s=settings.model_first_token_timeout_s,
        idle_timeout_s=settings.model_idle_timeout_s,
        context_tokens=context_tokens,
        others={model.name: model for model in models},
    )


def runs_of(  # noqa: PLR0917  # the parts that it joins
    settings: Settings,
    agent: Agent,
    store: Store,
    per_owner: PerOwner,
    admission: Admission,
    telemetry: Telemetry,
    supervisor: Supervisor,
) -> Runs:
    return Runs(
        agent=tracing.traced(agent, settings.model_names[0], "draftstream" if settings.offline else tracing.PROVIDER),
        models=settings.model_names,
        store=store,
        limits=per_owner.limits,
        check_stored_bytes=per_owner.stored_bytes.check,
        telemetry=telemetry,
        max_runs=settings.max_runs,
        log_bytes=settings.run_log_bytes or admission.log_bytes,
        check_resources=admission.check_run,
        run_timeout_s=settings.run_timeout_s,
        save_timeout_s=settings.save_timeout_s,
        drain_timeout_s=settings.drain_timeout_s,
        supervise=supervisor.keep,
    )


def models_of(
    settings: Settings, telemetry: Telemetry, admission: Admission
) -> AbstractAsyncContextManager[Sequence[ChatModel]]:
    """The default one first."""
    if settings.offline:
        return offline_model()
    endpoint = Endpoint(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key,
        headers=dict(settings.model_headers),
        query=dict(settings.model_query),
        stream_options=settings.model_stream_options,
        max_output_tokens=settings.model_max_output_tokens,
        temperature=settings.model_temperature,
        reasoning_effort=settings.model_reasoning_effort,
    )
    fallback = None
    if settings.model_fallback is not None:
        elsewhere = settings.model_fallback_base_url, settings.model_fallback_api_key
        fallback = settings.model_fallback, endpoint.elsewhere(*elsewhere)
    return openai_models(
        settings.model_names,
        endpoint,
        fallback,
        on_reply=telemetry.model_replied,
        connection=admission.model_connection,
    )


# ---------------------------------------------------------------------------------------------------------------
# The ASGI callable


async def app(scope: ConnectionScope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "http":
        await serve(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})


async def serve(scope: ConnectionScope, receive: Receive, send: Send) -> None:
    service: Service = scope["state"]["service"]
    stuck_s = 2 * service.settings.heartbeat_s
    response = Response(send, head=scope["method"] == "HEAD", stuck_s=stuck_s)
    try:
        request = Request.from_scope(scope, receive, service.trusted_proxies)
        tracing.arrive(request.headers.get("traceparent"))
        headers = cors.headers(service.settings.cors_allow_origins, request)
        response = Response(send, headers, head=request.method == "HEAD", stuck_s=stuck_s)
        await ROUTER.answer(service, request, response)
    except Disconnected:
        pass
    except Exception as error:  # noqa: BLE001  # the last resort: whatever it is, the client gets an answer
        refusal = refusal_of(error)
        service.telemetry.refused(shown_code(refusal))
        if not response.started:
            with suppress(Disconnected):
                await send_problem(response, refusal)


async def lifespan(scope: ConnectionScope, receive: Receive, send: Send) -> None:
    """Every start and every shutdown is answered: uvicorn takes a silent one for an app without a lifespan."""
    await receive()
    server: uvicorn.Server | None = scope["state"].get("server") or server_of_signals()
    stack = AsyncExitStack()
    try:
        settings = Settings.from_env(os.environ)
        if "server" not in scope["state"]:  # else `main` has done so
            begin(settings)
        scope["state"]["service"] = await stack.enter_async_context(open_service(settings, server))
    except Exception as error:  # noqa: BLE001  # of an app without a lifespan uvicorn would go on to serve requests
        await send({"type": "lifespan.startup.failed", "message": cannot_start(error)})
        return
    ignoring_upgrades(server)
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


def begin(settings: Settings) -> None:
    """What the process needs before it does anything."""
    os.umask(0o077)  # files of packages and of the embedded PostgreSQL, too
    secrets = [*settings.secrets, os.environ.get("PGPASSWORD", ""), os.environ.get("LANGSMITH_API_KEY", "")]
    secrets += passwords_of(settings.database_url or "")
    logs.set_up(settings.log_level, settings.log_format, content=settings.log_content, secrets=secrets)
    log.info("Draftstream %s", VERSION)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve at HOST and PORT. Settings are environment variables.")
    parser.add_argument("--version", action="version", version=f"Draftstream {VERSION}")
    parser.parse_args()
    try:
        settings = Settings.from_env(os.environ)
        begin(settings)  # before uvicorn's first lines
        check_address(settings.host, settings.port)
    except (SettingsError, CannotListen) as error:
        print(cannot_start(error), file=sys.stderr)  # noqa: T201  # the log may not be set up yet
        sys.exit(EXIT_START)
    server = Server(app, settings)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again, after the shutdown
        server.run()
    if not server.started:
        sys.exit(EXIT_START)


if __name__ == "__main__":
    main()
