"""The pool: connections for reads, each with a time limit that the server itself keeps.

PostgreSQL ends a statement after STATEMENT_LIMIT_S, so the connection stays usable and nothing goes on behind the
answer. The limit is set when a connection is made, and nothing is sent when it is given back.
A role may have a smaller limit of its own, which is kept.

A pooler in transaction mode shares its sessions, so a limit set there would hold for other clients. There none is set
(`connections.py`). There, as on a network that freezes, READ_BUDGET_S ends the wait: the statement is cancelled by a
cancel request, and the connection closed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import asyncpg

from storage.closing import Closing, within
from storage.connections import Database
from storage.faults import DATABASE_FAULTS, unavailable
from storage.shared import SharedConnections
from storage.sql import Row

log = logging.getLogger("draftstream.reader")

POOL_CONNECTIONS = 8
READ_BUDGET_S = 1.0
STATEMENT_LIMIT_S = 0.9  # below READ_BUDGET_S, so that the server is the first to give up
LOCK_LIMIT_S = 0.7  # below STATEMENT_LIMIT_S, so that a wait for a lock is told from a slow statement
LOG_AGAIN_S = 10.0  # between two lines about failed reads with the same cause

# `current_setting` gives a time with its unit, as an interval is written; 0 is no limit.
SET_LIMITS = """SELECT set_config(name, most || ' ms', false)
FROM (VALUES ('statement_timeout', {}), ('lock_timeout', {})) AS ours(name, most)
WHERE pg_backend_pid() = {}
    AND current_setting(name)::interval NOT BETWEEN '1 ms' AND make_interval(secs => most / 1000.0)"""

T = TypeVar("T")


@asynccontextmanager
async def open_pool(database: Database) -> AsyncIterator["ReadPool"]:
    """Connections for reads, opened on demand."""
    closing = Closing()
    limits = (int(1000 * limit_s) for limit_s in (STATEMENT_LIMIT_S, LOCK_LIMIT_S))
    make = partial(database.connect, SET_LIMITS.format(*limits, "{pid}"))
    connections = SharedConnections(make, closing, POOL_CONNECTIONS)
    try:
        yield ReadPool(connections, closing, database)
    finally:
        await connections.close()


class ReadPool:
    def __init__(self, connections: SharedConnections, closing: Closing, database: Database) -> None:
        self._connections = connections
        self._closing = closing
        self._database = database
        self._failures = Failures()

    async def fetch(self, sql: str, *arguments: object) -> list[Row]:
        """The rows of one statement. Raises StoreUnavailable."""
        return await self.run(READ_BUDGET_S, lambda connection: connection.fetch(sql, *arguments))

    async def warm_up(self) -> None:
        """Return when there is a connection, as no reader could wait so long. A failure is the next reader's."""
        with suppress(*DATABASE_FAULTS):
            self._connections.give_back(await self._connections.take())

    def make_room(self) -> None:
        """Close idle connections: they may be all that the server gives to the service."""
        self._connections.renew()

    async def run(self, budget_s: float, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """The result of `work` on a connection.

        Raises StoreUnavailable, and the database's refusals of content. The place of a connection in the pool is free
        again when its statement is over at the server, or after CANCEL_BUDGET_S.
        """
        try:
            connection = await self._connections.take(READ_BUDGET_S)
            try:
                return await within(budget_s, connection, work(connection), self._closing)
            finally:
                self._connections.give_back(connection)
        except asyncpg.UniqueViolationError:
            raise
        except DATABASE_FAULTS as error:
            if self._database.learn(error):
                self._connections.renew()
            self._failures.tell(error)
            raise unavailable(error) from error


class Failures:
    """The log of failed reads. Under load there may be thousands, so each cause is told once in LOG_AGAIN_S."""

    def __init__(self) -> None:
        self._counts: dict[type[Exception], int] = {}

    def tell(self, error: Exception) -> None:
        cause = type(error)
        if cause in self._counts:
            self._counts[cause] += 1
            return
        self._counts[cause] = 0
        log.warning("a read failed (%s)", error)
        asyncio.get_running_loop().call_later(LOG_AGAIN_S, self._sum_up, error)

    def _sum_up(self, error: Exception) -> None:
        if count := self._counts.pop(type(error)):
            log.warning("%d more reads failed within %d s (%s)", count, LOG_AGAIN_S, error)
