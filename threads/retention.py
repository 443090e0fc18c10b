"""Threads that go, one or the old ones; and, beside the requests, what the search has yet to know."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from chat import Conflict, ThreadBusy, graph_thread_id
from runs.registry import Runs
from store import FOREVER, QueueFull, Store, StoreUnavailable

log = logging.getLogger("draftstream.upkeep")

OLD_A_PAGE = 500
WALKED_A_PAGE = 5000  # rows of the table of threads, in some milliseconds
EXPIRY_S = 3600.0
# Of small items some milliseconds' work, of the largest a second's: then fewer are taken.
WORDS_AT_ONCE = 32
WORDS_S = 0.5


@dataclass(frozen=True, slots=True)
class Upkeep:
    """`forget` is told the graph's name of each thread that is gone."""

    store: Store
    runs: Runs
    forget: Callable[[str], None]

    async def delete(self, owner: str, thread_id: str, before: datetime = FOREVER) -> None:
        """Delete a thread, unless it was updated since `before`.

        Raises ThreadBusy, QueueFull, and StoreUnavailable; after that it may still be deleted.
        """
        while True:
            # Nothing waits between this look and the place in the queue, so no run can begin here in between; of other
            # processes the database knows.
            if (run_id := self.runs.busy(owner, thread_id)) is not None:
                raise ThreadBusy(run_id)
            try:
                await self.store.delete_thread(owner, thread_id, before)
                break
            except Conflict:
                head = await self.store.head(owner, thread_id, None)
                if head.running is not None:
                    raise ThreadBusy(head.running) from None
        self.runs.forget_thread(owner, thread_id)
        self.forget(graph_thread_id(owner, thread_id))

    async def delete_old(self, owner: str, before: datetime) -> int:
        """Delete the owner's threads that were last updated before that time, and say how many; not those in a run.

        Each is a transaction, so that none keeps the writer long.
        """
        count, after = 0, ""
        while page := await self.store.old_threads(owner, before, after, OLD_A_PAGE):
            for thread_id in page:
                count += await self._delete_if_idle(owner, thread_id, before)
            after = page[-1]
        return count

    async def _delete_if_idle(self, owner: str, thread_id: str, before: datetime) -> bool:
        try:
            await self.delete(owner, thread_id, before)
        except ThreadBusy:
            return False
        return True

    async def expire(self, ttl: timedelta) -> None:
        """Delete, for ever, what was last updated so long ago. Several processes may do so at once."""
        while True:
            try:
                await self._expire_once(datetime.now(UTC) - ttl)
            except (StoreUnavailable, QueueFull):
                log.warning("old threads could not be deleted; the next try is in an hour")
            await asyncio.sleep(EXPIRY_S)

    async def _expire_once(self, before: datetime) -> None:
        count, after = 0, ("", "")
        while page := await self.store.walk(after, before, WALKED_A_PAGE):
            for owner, thread_id, old in page:
                count += old and await self._delete_if_idle(owner, thread_id, before)
            after = page[-1][:2]
        if count:
            log.info("deleted %d threads that were last updated before %s", count, before.isoformat(" ", "minutes"))

    async def find_words(self) -> None:
        """Let the search know what was said, for ever.

        Not the writer's work, as it takes more time than to store it; and little by little while the writer is behind.
        """
        items = WORDS_AT_ONCE
        while True:
            try:
                found = await self.store.find_words(items)
                more, items = found == items and not self.store.behind, WORDS_AT_ONCE
            except StoreUnavailable:
                more, items = False, max(items // 2, 1)
            if not more:
                await asyncio.sleep(WORDS_S)


@asynccontextmanager
async def keeping_up(upkeep: Upkeep, ttl_days: int | None) -> AsyncIterator[None]:
    """Own the tasks that go on beside the requests."""
    tasks = {asyncio.create_task(upkeep.find_words(), name="search words")}
    if ttl_days is not None:
        tasks.add(asyncio.create_task(upkeep.expire(timedelta(days=ttl_days)), name="expiry"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
