"""The parts of the service, put together: what the handlers work with, and the order in which it lives and ends."""

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from access import Access, open_access
from agent import Agent, ChatModel
from asgi import Request
from checkpointer import Checkpointer
from embedded import embedded_postgres
from model import OpenAIModel
from offline import OfflineModel
from runs import Runs
from server import draining_on_sigterm, listens_on_loopback_only
from settings import Settings
from store import Store, open_store, where

log = logging.getLogger("draftstream")

CONNECT_TIMEOUT_S = 10.0  # how long a start waits for the database
FLUSH_TIMEOUT_S = 4.0  # how long a shutdown waits for the queue, after the runs have ended
PAGE = Path(__file__).with_name("debug.html")


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

    def allows(self, request: Request) -> bool:
        """Whether the page that sent this may use the service: it is our own, or named in CORS_ALLOW_ORIGINS."""
        allowed = self.settings.cors_allow_origins
        return request.foreign_origin is None or "*" in allowed or request.headers.get("origin") in allowed


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
