"""The service with a bug in one of its background loops: LOOP names it, and it fails while the file FAULT exists."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asgi_app
from access.callers import Access
from access.shared_limits import _Exchange
from asgi_app import app
from runs.registry import Runs
from storage.embedded import _Server
from storage.writer import Writer
from telemetry import supervision
from threads.retention import Retention
from web.readiness import Readiness

__all__ = ["app"]

FAULT = Path(os.environ["FAULT"])
# The owner of each loop, and the loop.
LOOPS: dict[str, tuple[Any, str]] = {
    "writer": (Writer, "_commit"),
    "embedded_postgres": (_Server, "stay_up"),
    "limits": (_Exchange, "run"),
    "first_key": (Access, "watch_for_the_first_key"),
    "progress": (Runs, "_renew_and_save"),
    "readiness": (Readiness, "run"),
    "search_words": (asgi_app, "keep_searchable"),
    "thread_expiry": (Retention, "expire"),
}


def failing(loop: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def run(*arguments: object) -> None:
        work = asyncio.ensure_future(loop(*arguments))
        try:
            while True:
                if FAULT.exists():
                    raise RuntimeError("a bug")
                if (await asyncio.wait({work}, timeout=0.01))[0]:
                    return work.result()
        finally:
            work.cancel()
            await asyncio.wait({work})

    return run


owner, name = LOOPS[os.environ["LOOP"]]
setattr(owner, name, failing(getattr(owner, name)))
supervision.STEADY_S = 1.0
supervision.GIVE_UP_S = float(os.environ.get("GIVE_UP_S", "60"))
