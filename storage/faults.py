"""The database's errors by their remedy, and a time limit that holds on a frozen network."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

# The schema's own rules refuse a second run in one place of a thread, and the end of a run that ended already.
CONFLICTS = (asyncpg.UniqueViolationError, asyncpg.RestrictViolationError)

DATABASE_FAULTS = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # of a connection that the server ended between two statements
)

Connection = asyncpg.Connection | PoolConnectionProxy

T = TypeVar("T")


def is_refused_content(error: Exception) -> bool:
    """Whether the database refused the values themselves, so that a retry can't help.

    SQLSTATE classes 22 (data exception), 23 (integrity constraint) and 54 (program limit exceeded, a row too large).
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in ("22", "23", "54")
    return isinstance(error, asyncpg.DataError | ValueError | TypeError)  # refused by the client's own encoder


async def within(budget_s: float, connection: Connection, work: Awaitable[T]) -> T:
    """Await `work` on the connection, and terminate the connection if it takes longer. Raises TimeoutError.

    asyncpg's own time-outs wait for the server's answer to a cancellation, and so does a cancelled query. A frozen
    network never brings it: asyncpg 0.32 had not returned after 25 s. Only `terminate()` returns.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=budget_s)
    finally:
        if not task.done():
            connection.terminate()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # the connection's end, which is a consequence of the time limit or the cancellation
    if not done:
        raise TimeoutError
    return task.result()
