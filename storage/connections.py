"""How connections are made: with patience, and at a pooler without prepared statements.

A pooler in transaction mode (PgBouncer, Supavisor) gives each transaction another server. A named statement that was
prepared on one is missing on the next, or is there already under another client's text. A pooler tells a made-up
process id, by which it is known. Its other modes look the same, so they are treated alike. asyncpg without its cache
sends unnamed statements, each parsed again with its execution in one message. That is safe: a pooler never takes a
server away before the message's end.

A pooler that passes the server's process id on is known by the errors of the first statements that it breaks, or named
by `?pgbouncer=true`.

A database may take seconds to connect: one that was suspended wakes first. So an attempt has a budget of its own, which
is longer than a reader waits (`shared.py`).
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Sequence
from functools import cached_property

import asyncpg

from storage.address import Address, Place, read_address, why_not
from storage.closing import close, within
from storage.faults import BACKOFF_S, DATABASE_FAULTS, ConnectTimeout, StoreUnavailable

log = logging.getLogger("draftstream.database")

CACHED_STATEMENTS = 100  # asyncpg's default

# Errors of a statement that another client's, or another server's, prepared statement got in the way of.
POOLER_ERRORS = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
# Of a server that can't take a connection at the moment: the next host may.
BUSY = (asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError, asyncpg.TargetServerAttributeNotMatched)
PASSING = ("08", "53", "57")  # SQLSTATE classes: connection, resources, operator
# PgBouncer has one SQLSTATE for what passes and for what stays.
LASTING_WORDS = (
    "unsupported startup parameter",
    "no such database",
    "no such user",
    "authentication failed",
    "does not exist",
)


class Database:
    """The database at a DSN, and what was found out about it."""

    def __init__(self, dsn: str) -> None:
        """Raises UnusableAddress."""
        self.address: Address = read_address(dsn)
        # None: not known yet. The first connection prepares nothing, as it may be a pooler's.
        self.is_pooled: bool | None = True if self.address.options.is_pooled else None
        self._answered: Place | None = None  # the place that gave the last connection

    @property
    def where(self) -> str:
        return self.address.where

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        return self.address.tls()

    def tell_notes(self) -> None:
        for note in self.address.options.notes:
            log.warning(note)  # no argument: the log shows only words of one

    async def connect(self, first: str = "") -> asyncpg.Connection:
        """One attempt, with a budget of its own. `first` is SQL to begin with; {pid} in it is the server's process id,
        if no pooler stands in between.

        Raises the database's errors, ConnectTimeout, and UnusableAddress.
        """
        while True:
            prepares = self.is_pooled is False
            connection = await self._open(prepares=prepares)
            try:
                is_pooled = await within(self.address.connect_s, connection, _is_pooled(connection, first))
            except BaseException:  # of any kind: nobody else knows of this connection
                await close(connection)
                raise
            if is_pooled and not self.is_pooled:
                self.found_pooler()
            elif self.is_pooled is None:
                self.is_pooled = is_pooled
            if not (prepares and self.is_pooled):
                return connection
            await close(connection)

    def found_pooler(self) -> None:
        self.is_pooled = True
        log.info("the database at %s is behind a pooler: no prepared statements are used", self.where)

    def learn(self, error: Exception) -> bool:
        """Whether the error shows that connections go through a pooler, which was not known."""
        if not isinstance(error, POOLER_ERRORS) or self.is_pooled:
            return False
        self.found_pooler()
        return True

    async def _open(self, *, prepares: bool) -> asyncpg.Connection:
        """The first host that takes a connection. Each has its own budget: one that is silent must not hide others."""
        failures: list[Exception] = []
        budget_s = self.address.connect_s
        for place in self._places():
            host, port = place if isinstance(place, tuple) else (place, None)
            try:
                connection: asyncpg.Connection = await asyncpg.connect(
                    self.address.dsn,
                    host=host,
                    port=port,
                    ssl=self._tls,
                    timeout=budget_s,
                    statement_cache_size=CACHED_STATEMENTS if prepares else 0,
                )
            except TimeoutError:
                failures.append(ConnectTimeout(f"no connection within {budget_s:g} s"))
            except (OSError, *BUSY) as error:
                failures.append(error)
            else:
                self._answered = place
                return connection
        # A host that can't be reached matters more than a standby.
        raise min(reversed(failures), key=lambda error: isinstance(error, asyncpg.TargetServerAttributeNotMatched))

    def _places(self) -> Sequence[Place]:
        """The host that answered last comes first: one that is down would cost each attempt its budget."""
        places = list(self.address.places)
        if self.address.options.balances:
            random.shuffle(places)
        else:
            places.sort(key=lambda place: place != self._answered)
        return places


async def _is_pooled(connection: asyncpg.Connection, first: str) -> bool:
    """In the simple protocol, which prepares nothing. Its answer has no rows, but their number."""
    pid = connection.get_server_pid()
    return await connection.execute(f"{first.format(pid=pid)}\n;SELECT WHERE pg_backend_pid() = {pid}") != "SELECT 1"


async def connect(database: Database, wait_s: float) -> asyncpg.Connection:
    """Begin attempts for `wait_s` seconds, as the database may start beside the service.

    Raises StoreUnavailable, UnusableAddress.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        try:
            return await database.connect()
        except (*DATABASE_FAULTS, ValueError) as error:
            if is_lasting(error) or loop.time() + BACKOFF_S[-1] > deadline:
                raise StoreUnavailable(f"can't use the database at {database.where} ({why_not(error)})") from error
        await asyncio.sleep(BACKOFF_S[-1])


def is_lasting(error: Exception) -> bool:
    """Whether waiting can't help: the server refused, or it can't be trusted."""
    if isinstance(error, asyncpg.PostgresError):
        if isinstance(error, asyncpg.ProtocolViolationError):
            return any(word in str(error) for word in LASTING_WORDS)
        return (error.sqlstate or "08")[:2] not in PASSING
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return False  # a failover may be under way
    if isinstance(error, ValueError | ssl.SSLCertVerificationError):
        return True
    return type(error) is ConnectionError  # asyncpg's, of a server without TLS
