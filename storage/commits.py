"""Commits that may be told as an acknowledgement.

With synchronous replication a COMMIT waits for the standby. When that wait is cancelled, by an operator or by a cancel
request of ours, the transaction is committed on one machine and visible to everybody. PostgreSQL then returns from
COMMIT as usual, with a WARNING. A WARNING of any other cause counts as well, since their texts are translated.

Rows that are found again prove nothing either: a transaction that writes nothing waits for no standby. WAL is
replicated in order, so a later commit that wrote something and was waited for proves all commits before it. Hence a
batch that is sent again carries `real_write`.
"""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import asyncpg

from storage.closing import Closing, within
from storage.connections import Database
from storage.faults import DATABASE_FAULTS, Unconfirmed, is_refused_content
from storage.sql import Row, Statement, Write
from storage.units import Unit, statements

COMMIT_BUDGET_S = 2.0  # a frozen connection is given up after this; a healthy batch takes milliseconds

# Whatever the role, the database or the server has set: COMMIT waits for the disk, here and on a synchronous standby,
# and its warnings reach us. An operator's `remote_apply` waits longer still. A statement ends at the server in the time
# that we give it, also if no cancel request gets there. All this holds for one transaction, as the sessions of a pooler
# are shared.
BEGIN = """BEGIN {};
SET LOCAL statement_timeout = {};
SET LOCAL client_min_messages = warning;
SELECT set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"""

UNIMPORTANT = frozenset({"NOTICE", "INFO", "LOG", "DEBUG"})  # severities, which the field V gives untranslated


class MarkRow(NamedTuple):
    mark: str


# A row that is there for no time. Any role that the service can use may write it, and two writers never meet in it.
PUT_MARK = Statement("put_mark", MarkRow, "INSERT INTO deleted_runs (run_id) VALUES ($1)")
DELETE_MARK = Statement("delete_mark", MarkRow, "DELETE FROM deleted_runs WHERE run_id = $1")


def real_write() -> Sequence[Write]:
    """Writes that change nothing, and whose COMMIT waits for a synchronous standby all the same."""
    mark = f"mark {uuid.uuid4()}"
    return [PUT_MARK(mark), DELETE_MARK(mark)]


async def begin(connection: asyncpg.Connection, budget_s: float, isolation: str = "") -> None:
    await connection.execute(BEGIN.format(isolation, int(1000 * budget_s)))


async def commit(connection: asyncpg.Connection) -> None:
    """Raises Unconfirmed if the server warned or did not commit, and the errors of deferred constraints."""
    warnings: list[asyncpg.PostgresLogMessage] = []

    # asyncpg schedules this before it wakes the task that awaits the COMMIT.
    def hear(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en not in UNIMPORTANT:
            warnings.append(message)

    connection.add_log_listener(hear)
    try:
        done = await connection.execute("COMMIT")
    finally:
        connection.remove_log_listener(hear)
    if done != "COMMIT":
        raise Unconfirmed(f"the answer to COMMIT was {done}", committed=False)
    if warnings:
        warning = warnings[0]
        raise Unconfirmed(f"COMMIT with warning {warning.sqlstate}: {warning.message}", committed=True)


async def roll_back(connection: asyncpg.Connection) -> None:
    if not connection.is_closed() and connection.is_in_transaction():
        await connection.execute("ROLLBACK")


@asynccontextmanager
async def transaction(connection: asyncpg.Connection, budget_s: float, isolation: str = "") -> AsyncIterator[None]:
    """After the block all of it is committed, on a synchronous standby, too. Raises as `commit`."""
    try:
        await begin(connection, budget_s, isolation)
        yield
        await commit(connection)
    except Exception:
        await roll_back(connection)
        raise


async def fetch_committed(connection: asyncpg.Connection, budget_s: float, sql: str, *arguments: object) -> list[Row]:
    """The rows of one statement in a transaction of its own. Raises as `transaction`."""
    async with transaction(connection, budget_s):
        return list(await connection.fetch(sql, *arguments))


class Committer:
    """A connection that commits batches of units, one after the other, and a new connection after each fault."""

    def __init__(
        self,
        database: Database,
        on_commit: Callable[[float], None] | None = None,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._make_room = make_room
        self._on_commit = on_commit
        self._connection: asyncpg.Connection | None = None
        self._closing = Closing()
        # Whether something that was sent since the last good COMMIT may be visible, and missing on the standby.
        self._in_doubt = False
        self._unconfirmed: Sequence[Unit] = ()  # the batch that this server has committed, if only this one

    async def warm_up(self) -> None:
        """Connect before the readers take all the connections that the server gives. A failure is the next commit's."""
        with suppress(*DATABASE_FAULTS):
            await self._connected()

    async def commit(self, units: Sequence[Unit]) -> None:
        """Return when the units are committed, on a synchronous standby, too.

        Raises the database's errors. Then call it again, also for other units. Raises TimeoutError only if nothing of
        the units is stored, and Unconfirmed where something may be.
        """
        began = time.monotonic()
        try:
            await self._commit(units)
        except Exception as error:
            self._database.learn(error)
            if not (is_refused_content(error) or (isinstance(error, Unconfirmed) and error.committed)):
                self.drop()
            raise
        if self._on_commit is not None:
            self._on_commit(time.monotonic() - began)

    async def _commit(self, units: Sequence[Unit]) -> None:
        connection = await self._connected()
        again, self._in_doubt = self._in_doubt, True
        missing = () if list(units) == self._unconfirmed else units
        self._unconfirmed = ()
        budget_s = units[0].budget_s or COMMIT_BUDGET_S
        writes = list(statements(missing))
        if again:
            writes += [(statement, [row]) for statement, row in real_write()]
        await within(budget_s, connection, self._send(connection, writes, budget_s), self._closing)
        try:
            await within(COMMIT_BUDGET_S, connection, commit(connection), self._closing)
        except Unconfirmed as error:
            # Behind a pooler another server may take over without our notice.
            self._unconfirmed = list(units) if error.committed and not self._database.is_pooled else ()
            raise
        except Exception as error:
            if is_refused_content(error):  # by a deferred constraint
                raise
            raise Unconfirmed(f"COMMIT without an answer: {type(error).__name__}", committed=False) from error
        self._in_doubt = False

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._unconfirmed = ()  # a server that took over may lack it
            try:
                self._connection = await self._database.connect()
            except DATABASE_FAULTS:
                self._make_room()
                raise
        return self._connection

    @staticmethod
    async def _send(
        connection: asyncpg.Connection, writes: Iterable[tuple[Statement[...], Sequence[NamedTuple]]], budget_s: float
    ) -> None:
        try:
            await begin(connection, budget_s)
            for statement, rows in writes:
                if len(rows) == 1:
                    await connection.execute(statement.sql, *rows[0])
                else:
                    await connection.executemany(statement.sql, rows)
        except Exception:
            await roll_back(connection)
            raise

    def drop(self) -> None:
        """Give the connection up; its statement is cancelled at the server."""
        if self._connection is not None:
            self._closing.add(self._connection)
            self._connection = None

    async def close(self) -> None:
        self.drop()
        await self._closing.wait()
