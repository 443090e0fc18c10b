"""Time limits for work in the database, and the end of connections that are given up.

PostgreSQL notices a closed socket only when it writes to it. So the statement of a connection that is merely terminated
goes on for minutes. Here the statement is cancelled at the server first, by a cancel request on a second connection.
Nothing runs on the first one afterwards, so a late cancel request meets no other statement.

asyncpg's own time-outs wait for the server's answer to a cancel request. A frozen network never brings it: asyncpg 0.32
had not returned after 25 s. Only `terminate()` returns, so it ends each wait here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from storage.faults import DATABASE_FAULTS

CANCEL_BUDGET_S = 1.0  # for a cancel request and its answer: milliseconds, or five round trips of a far server with TLS

T = TypeVar("T")


async def close(connection: asyncpg.Connection, work: asyncio.Task[object] | None = None) -> None:
    """Close the connection within CANCEL_BUDGET_S, and cancel `work`, its statement at the server included.

    asyncpg sends the cancel request when the task that awaits a statement is cancelled. `work` may be left out where
    that task has ended.
    """
    try:
        async with asyncio.timeout(CANCEL_BUDGET_S):
            if work is not None:
                work.cancel()
                await asyncio.wait({work})
            await connection.close(timeout=CANCEL_BUDGET_S)
    except DATABASE_FAULTS:
        pass
    finally:
        connection.terminate()
        if work is not None:
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # a consequence of the cancellation


class Closing:
    """Connections that were given up, while `close` ends each of them in the background."""

    def __init__(self) -> None:
        self._tasks: dict[asyncpg.Connection, asyncio.Task[None]] = {}

    def __contains__(self, connection: asyncpg.Connection) -> bool:
        return connection in self._tasks

    def add(self, connection: asyncpg.Connection, work: asyncio.Task[object] | None = None) -> None:
        """Give the connection up. The caller does not use it any more; a second call changes nothing."""
        if connection not in self._tasks:
            task = asyncio.create_task(close(connection, work), name="close a connection")
            self._tasks[connection] = task
            task.add_done_callback(lambda _: self._tasks.pop(connection))

    def when_closed(self, connection: asyncpg.Connection, then: Callable[[], None]) -> None:
        """Call `then` when the connection, which is being closed, is."""
        self._tasks[connection].add_done_callback(lambda _: then())

    async def wait(self) -> None:
        """Return when all of them are closed, after CANCEL_BUDGET_S at most."""
        if self._tasks:
            await asyncio.wait(self._tasks.values())


async def within(
    budget_s: float, connection: asyncpg.Connection, work: Awaitable[T], closing: Closing | None = None
) -> T:
    """Await `work` on the connection. Raises TimeoutError, and gives the connection up, if it takes longer.

    If the caller is cancelled the connection is given up, too. `closing` ends it in the background; without `closing`
    this returns when that is done.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=budget_s)
    finally:
        if not task.done():
            if closing is None:
                await close(connection, task)
            else:
                closing.add(connection, task)
    if not done:
        raise TimeoutError
    return task.result()
