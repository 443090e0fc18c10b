"""The end of a thread: a person deletes one, or the old ones, or an old one expires."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol

from chat import Conflict, graph_thread_id
from chat.refusals import LimitExceeded, ThreadBusy
from store import FOREVER, QueueFull, Store, StoreUnavailable
from threads.statements import READ_OLD, WALK_THREADS

log = logging.getLogger("draftstream.retention")

OLD_A_PAGE = 500
WALKED_A_PAGE = 5000  # rows of the table of threads, in some milliseconds
EXPIRY_S = 3600.0


class Runs(Protocol):
    """The runs of this process."""

    def busy(self, owner: str, thread_id: str) -> str | None:
        """The run that is in progress on the thread."""

    def forget_thread(self, owner: str, thread_id: str) -> None:
        """Drop the thread's ended runs from memory."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Deletes threads. `forget` is called with the graph's name of each deleted thread."""

    store: Store
    runs: Runs
    forget: Callable[[str], None]

    async def delete(self, owner: str, thread_id: str, before: datetime = FOREVER) -> None:
        """Delete a thread, unless it was updated since `before`.

        Raises ThreadBusy, QueueFull, LimitExceeded, and StoreUnavailable; after that it may still be deleted.
        """
        while True:
            # There is no await between this check and the place in the queue, so no run can begin here in between.
            # The database knows the runs of other processes.
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
        """Delete the owner's threads that were last updated before that time and have no run in progress; their number.

        Each is a transaction, so that none holds up the writer for long.
        """
        count, after = 0, ""
        while page := await self.store.read(owner, READ_OLD, owner, before, after, OLD_A_PAGE):
            for row in page:
                count += await self._delete_if_idle(owner, row["thread_id"], before)
            after = page[-1]["thread_id"]
        return count

    async def _delete_if_idle(self, owner: str, thread_id: str, before: datetime) -> bool:
        try:
            await self.delete(owner, thread_id, before)
        except ThreadBusy:
            return False
        return True

    async def expire(self, ttl: timedelta) -> NoReturn:
        """Delete the threads whose last update is older than `ttl`, for ever. Several processes may do so at once."""
        while True:
            try:
                await self._expire_once(datetime.fromtimestamp(self.store.now(), UTC) - ttl)
            except (StoreUnavailable, QueueFull, LimitExceeded):
                log.warning("old threads could not be deleted; the next try is in an hour")
            await asyncio.sleep(EXPIRY_S)

    async def _expire_once(self, before: datetime) -> None:
        count, after = 0, ("", "")
        while page := await self.store.fetch(WALK_THREADS, *after, before, WALKED_A_PAGE):
            for row in page:
                count += row["old"] and await self._delete_if_idle(row["owner"], row["thread_id"], before)
            after = page[-1]["owner"], page[-1]["thread_id"]
        if count:
            log.info("deleted %d threads that were last updated before %s", count, before.isoformat(" ", "minutes"))
