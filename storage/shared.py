"""Connections that readers share: idle, taken, or being made.

A reader takes an idle connection, or waits for the first that is given back or made, whichever it is. So an attempt
belongs to no reader: it goes on when the one that began it gives up. A failed attempt is told to the readers only where
nothing else is left to wait for. A server or a pooler may give fewer connections than `most`: then the readers share
those.

Nothing here awaits between a look at the state and its change.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import asyncpg

from storage.closing import Closing

IDLE_S = 300.0  # a connection that nobody used for so long is closed, within twice the time


class SharedConnections:
    def __init__(self, make: Callable[[], Awaitable[asyncpg.Connection]], closing: Closing, most: int) -> None:
        self._make = make
        self._closing = closing
        self._most = most
        self._idle: dict[asyncpg.Connection, float] = {}  # with the time of its last use, the newest last
        self._taken: set[asyncpg.Connection] = set()
        self._stale: set[asyncpg.Connection] = set()  # of the taken ones: to be closed, and not shared any more
        self._attempts: set[asyncio.Task[asyncpg.Connection]] = set()
        self._waiting: deque[asyncio.Future[asyncpg.Connection]] = deque()
        self._sweep: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<SharedConnections {len(self._idle)} idle, {len(self._taken)} taken, {len(self._attempts)} being made,"
            f" {len(self._waiting)} readers waiting>"
        )

    async def take(self, timeout_s: float | None = None) -> asyncpg.Connection:
        """Give it back. Raises TimeoutError, and as `make`."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.is_closed():
                self._taken.add(connection)
                return connection
        waiter: asyncio.Future[asyncpg.Connection] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._begin_attempts()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except BaseException:
            self._leave(waiter)
            raise

    def give_back(self, connection: asyncpg.Connection) -> None:
        """A connection that was given up keeps its place until it is closed."""
        if connection in self._closing:
            self._closing.when_closed(connection, lambda: self._drop(connection))
        elif connection.is_closed():
            self._drop(connection)
        elif connection in self._stale:
            self._close([connection])
        else:
            self._offer(connection)

    def renew(self) -> None:
        """Readers after this get new connections."""
        self._stale |= self._taken
        self._close(self._idle)
        self._idle.clear()

    async def close(self) -> None:
        self._most = 0
        for task in self._attempts:
            task.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        if self._sweep is not None:
            self._sweep.cancel()
        self._close([*self._idle, *self._taken])
        await self._closing.wait()

    def _leave(self, waiter: asyncio.Future[asyncpg.Connection]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif not waiter.cancelled() and waiter.exception() is None:  # it came as the reader was leaving
            self.give_back(waiter.result())

    def _begin_attempts(self) -> None:
        places = self._most - len(self._taken) - len(self._idle) - len(self._attempts)
        for _ in range(min(places, len(self._waiting) - len(self._attempts))):
            task = asyncio.create_task(self._attempt(), name="connect to the database")
            self._attempts.add(task)
            task.add_done_callback(self._attempted)

    async def _attempt(self) -> asyncpg.Connection:
        return await self._make()

    def _attempted(self, task: asyncio.Task[asyncpg.Connection]) -> None:
        self._attempts.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._offer(task.result())
        elif not self._attempts and not self._taken:
            while (waiter := self._next()) is not None:
                waiter.set_exception(error)

    def _offer(self, connection: asyncpg.Connection) -> None:
        if (waiter := self._next()) is not None:
            self._taken.add(connection)
            waiter.set_result(connection)
            return
        self._taken.discard(connection)
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.time()
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE_S, self._close_unused)

    def _next(self) -> asyncio.Future[asyncpg.Connection] | None:
        """The reader that has waited longest. One that was cancelled may still be in the queue."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _drop(self, connection: asyncpg.Connection) -> None:
        self._taken.discard(connection)
        self._stale.discard(connection)
        self._begin_attempts()

    def _close_unused(self) -> None:
        loop = asyncio.get_running_loop()
        unused = [connection for connection, used_at in self._idle.items() if loop.time() - used_at >= IDLE_S]
        for connection in unused:
            del self._idle[connection]
        self._close(unused)
        self._sweep = loop.call_later(IDLE_S, self._close_unused) if self._idle else None

    def _close(self, connections: Iterable[asyncpg.Connection]) -> None:
        for connection in connections:
            self._closing.add(connection)
            self._taken.add(connection)  # it keeps its place
            self.give_back(connection)
