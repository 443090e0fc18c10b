"""Shares of the pool's connections: one kind of work, or one owner, never takes all of them.

The heads of threads, the keys and the limits take a connection without a share, as chats wait for these reads. They are
batched, so they take few. Everything that an owner reads at length has a share.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from chat.refusals import LimitExceeded, Overloaded, Refusal
from storage.pool import READ_BUDGET_S

READS = 4  # of POOL_CONNECTIONS; two are for forks, and two for reads without a share
READS_OF_OWNER = 3
SEARCHES = 3  # of READS, so that a slow search holds up no other read
SEARCHES_OF_OWNER = 2


def _too_many(limit: str) -> LimitExceeded:
    detail = f"You have too many {limit} under way; wait for their answers, and try again in a second."
    return LimitExceeded(limit, detail)


class Shares:
    def __init__(self) -> None:
        self._reads = asyncio.Semaphore(READS)
        self._searches = asyncio.Semaphore(SEARCHES)
        self._reads_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._searches_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def read(self, owner: str) -> AsyncIterator[None]:
        """Wait for a place, for READ_BUDGET_S at most. Raises LimitExceeded, and Overloaded if all shares are full."""
        own = self._reads_of.setdefault(owner, asyncio.Semaphore(READS_OF_OWNER))
        async with _place(own, lambda: _too_many("reads")), _place(self._reads, Overloaded):
            yield

    @asynccontextmanager
    async def search(self, owner: str) -> AsyncIterator[None]:
        """As `read`, but the owner's own searches don't wait for each other."""
        own = self._searches_of.setdefault(owner, asyncio.Semaphore(SEARCHES_OF_OWNER))
        if own.locked():
            raise _too_many("searches")
        async with own, _place(self._searches, Overloaded), self.read(owner):
            yield


@asynccontextmanager
async def _place(semaphore: asyncio.Semaphore, refusal: Callable[[], Refusal]) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(READ_BUDGET_S):
            await semaphore.acquire()
    except TimeoutError:
        raise refusal() from None
    try:
        yield
    finally:
        semaphore.release()
