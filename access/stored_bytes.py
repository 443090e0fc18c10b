"""BYTES_PER_OWNER: how much of the database an owner's threads may take. Nothing here runs while it is not set.

The bytes are added up in the database, where they are: of an owner who wants to store more, and no more often than each
FRESH_S seconds. A large sum takes longer and is used longer, so that it never takes more than a hundredth of a
connection. A full owner's sum is taken again sooner, as they may have deleted something.

So the limit can be exceeded by as much as is stored while a sum is used, by the runs then in progress, and by one fork.
That holds for any number of processes, as each one reads what all have stored. Of an owner whose sum can't be read,
because the database is away or takes too long, the last sum counts, and without one nothing is refused.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from chat.refusals import Refusal
from store import READ_STORED_BYTES, Row, StoreUnavailable

FRESH_S = 5.0
FULL_S = 1.0  # the same for an owner who is full
FRESH_TIMES, FULL_TIMES = 100, 10  # of the time that the sum took, if that is longer
WAIT_S = 1.0  # how long a request waits for a sum
THREADS_A_READ = 200  # so that a read is short: 200 threads of 20 messages take 20 ms
SUMS_AT_ONCE = 2  # of all owners, as they take connections of the pool
OWNERS = 10_000  # whose sums are remembered


class StorageFull(Refusal):
    """The owner has as much stored as they may."""

    def __init__(self, stored: int, limit: int) -> None:
        detail = (
            f"Your threads take {stored} bytes, of which you may have {limit}. "
            "Delete threads that you do not need any more; deleting a thread frees what it takes at once."
        )
        super().__init__("storage_full", detail, limit=limit, stored=stored)


@dataclass(slots=True)
class Sum:
    stored: int  # of a full owner, a part that is as much as the limit
    read_at: float
    took_s: float


class StoredBytes:
    """`limit`: of each owner; None: no limit."""

    def __init__(self, fetch: Callable[..., Awaitable[Sequence[Row]]], limit: int | None) -> None:
        self._fetch = fetch
        self._limit = limit
        self._sums: dict[str, Sum] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(SUMS_AT_ONCE)
        self._loop = asyncio.get_running_loop()

    async def check(self, owner: str) -> None:
        """Raises StorageFull."""
        if self._limit is None:
            return
        if not self._is_fresh(owner, self._limit):
            reading = self._read(owner, self._limit)
            await asyncio.wait({reading}, timeout=WAIT_S)
            if reading.done():
                reading.result()  # raises a fault of ours
        known = self._sums.get(owner)
        if known is not None and known.stored >= self._limit:
            raise StorageFull(known.stored, self._limit)

    def forget(self, owner: str) -> None:
        """The owner has stored or deleted much at once."""
        self._sums.pop(owner, None)

    async def close(self) -> None:
        """Wait for the sums that are under way."""
        if self._reading:
            await asyncio.wait(self._reading.values())

    def _is_fresh(self, owner: str, limit: int) -> bool:
        known = self._sums.get(owner)
        if known is None:
            return False
        is_full = known.stored >= limit
        least_s, times = (FULL_S, FULL_TIMES) if is_full else (FRESH_S, FRESH_TIMES)
        return self._loop.time() < known.read_at + max(least_s, times * known.took_s)

    def _read(self, owner: str, limit: int) -> asyncio.Task[None]:
        """The sum of an owner is read once at a time, for all requests that wait for it."""
        task = self._reading.get(owner)
        if task is None:
            task = self._reading[owner] = asyncio.create_task(self._sum(owner, limit), name="stored bytes")
            task.add_done_callback(lambda _: self._reading.pop(owner))
        return task

    async def _sum(self, owner: str, limit: int) -> None:
        stored, after = 0, ""
        try:
            async with self._places:
                began = self._loop.time()
                while stored < limit:
                    [page] = await self._fetch(READ_STORED_BYTES, owner, after, THREADS_A_READ)
                    stored, after = stored + page["bytes"], page["last"]
                    if page["threads"] < THREADS_A_READ:
                        break
        except StoreUnavailable:
            return
        while len(self._sums) >= OWNERS:
            del self._sums[next(iter(self._sums))]
        self._sums[owner] = Sum(stored, began, self._loop.time() - began)
