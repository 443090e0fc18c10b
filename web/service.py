"""The parts of the service, put together: what the handlers work with, and the order in which it lives and ends."""

import base64
import hashlib
import logging
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import uvicorn

from access.callers import ANONYMOUS, Access, open_access
from access.limits import Limits
from access.shared_limits import exchanging
from agent import Agent, ChatModel
from drafting.offline import OfflineModel
from runs.registry import Runs
from settings import VERSION, Settings
from storage.embedded import embedded_postgres
from store import Store, open_store, where
from telemetry import tracing
from telemetry.metrics import Telemetry
from telemetry.supervision import Supervisor
from threads.checkpointer import Checkpointer
from threads.retention import Retention
from threads.search import keep_searchable
from web.asgi import Request
from web.readiness import Readiness
from web.server import draining_on_signals, listens_on_loopback_only

log = logging.getLogger("draftstream")

CONNECT_TIMEOUT_S = 10.0  # how long a start waits for the database
FLUSH_TIMEOUT_S = 2.5  # how long a shutdown waits for the queue, after the runs have ended: one attempt, and a little
RUNS_PER_OWNER = 100  # at once, where nothing else is set: a tenth of MAX_RUNS, so that one key can't fill a process
PAGE = Path(__file__).parent / "page/index.html"
OPENAPI = Path(__file__).with_name("openapi.json")


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers work with; it reaches them through the ASGI lifespan state."""

    settings: Settings
    store: Store
    runs: Runs
    agent: Agent
    access: Access
    limits: Limits
    telemetry: Telemetry
    readiness: Readiness
    retention: Retention
    page: bytes
    page_policy: str
    openapi: bytes

    def allows(self, request: Request) -> bool:
        """Whether the page that sent this may use the service: it is our own, or named in CORS_ALLOW_ORIGINS."""
        allowed = self.settings.cors_allow_origins
        return request.foreign_origin is None or "*" in allowed or request.headers.get("origin") in allowed


@asynccontextmanager
async def open_service(settings: Settings, server: uvicorn.Server | None) -> AsyncIterator[Service]:
    """Lifetimes nested in the order in which the parts need each other; leaving it is the shutdown.

    `server` runs us, if it is uvicorn; of another one nothing can be known.
    """
    telemetry = Telemetry(VERSION)
    async with AsyncExitStack() as stack:
        supervisor = stack.enter_context(Supervisor(give_up=partial(signal.raise_signal, signal.SIGTERM)))
        if settings.database_url is None:
            dsn = await stack.enter_async_context(embedded_postgres(settings.data_dir, supervisor.keep))
            log.info("database: embedded PostgreSQL in %s", settings.data_dir / "postgres")
        else:
            dsn = settings.database_url
            log.info("database: PostgreSQL at %s", where(dsn))
        store = await stack.enter_async_context(
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
        stack.callback(supervisor.close)
        limits = Limits(
            requests_a_minute=settings.requests_per_minute,
            runs_at_once=RUNS_PER_OWNER if settings.runs_per_owner is None else settings.runs_per_owner,
            tokens_a_day=settings.tokens_per_day,
            everyone=ANONYMOUS.owner if settings.runs_per_owner is None else None,
        )
        await stack.enter_async_context(exchanging(limits, store, supervisor.keep))
        access = await stack.enter_async_context(
            open_access(settings, store.fetch, supervisor.keep, only_loopback=listens_on_loopback_only(server))
        )
        model = await stack.enter_async_context(open_model(settings, telemetry))
        checkpointer = Checkpointer(store)
        agent = Agent(
            model,
            checkpointer,
            remember=checkpointer.remember,
            first_token_timeout_s=settings.model_first_token_timeout_s,
            idle_timeout_s=settings.model_idle_timeout_s,
        )
        runs = await stack.enter_async_context(
            Runs(
                agent=tracing.traced(agent, model.name, "draftstream" if settings.offline else tracing.PROVIDER),
                model=model.name,
                store=store,
                limits=limits,
                telemetry=telemetry,
                max_runs=settings.max_runs,
                run_timeout_s=settings.run_timeout_s,
                save_timeout_s=settings.save_timeout_s,
                drain_timeout_s=settings.drain_timeout_s,
                supervise=supervisor.keep,
            )
        )
        stack.enter_context(draining_on_signals(runs, server))
        readiness = Readiness(store, runs, supervisor)
        stack.callback(readiness.end)
        await stack.enter_async_context(supervisor.running("readiness", readiness.run))
        telemetry.watch(
            ready=lambda: readiness.is_ready,
            runs=lambda: runs.in_progress,
            streams=lambda: runs.readers,
            queued_units=lambda: store.waiting,
            oldest_unit_s=lambda: store.oldest_unit_s,
        )
        retention = Retention(store, runs, checkpointer.forget)
        await stack.enter_async_context(supervisor.running("search_words", partial(keep_searchable, store)))
        if settings.thread_ttl_days is not None:
            expire = partial(retention.expire, timedelta(days=settings.thread_ttl_days))
            await stack.enter_async_context(supervisor.running("thread_expiry", expire))
        page = PAGE.read_bytes()
        policy = page_policy(page.decode())
        openapi = OPENAPI.read_bytes()
        yield Service(
            settings, store, runs, agent, access, limits, telemetry, readiness, retention, page, policy, openapi
        )


@asynccontextmanager
async def open_model(settings: Settings, telemetry: Telemetry) -> AsyncIterator[ChatModel]:
    if settings.offline:
        log.info("model: offline (set OPENAI_API_KEY for a real one)")
        yield OfflineModel()
        return
    from drafting.openai_model import OpenAIModel  # noqa: PLC0415  # half of what a start imports, and only this branch needs it

    model = OpenAIModel(
        settings.openai_model,
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
        on_reply=telemetry.model_replied,
    )
    log.info("model: %s", model.name)
    try:
        yield model
    finally:
        await model.aclose()


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
