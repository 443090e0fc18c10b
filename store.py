"""The store: all that the service keeps in PostgreSQL, and the front door of storage/.

Three parts stand behind it. The writer commits everything that is written, in the order in which it came. The reader
reads on a pool, concurrently. The journal takes a turn that has ended while the database is away.

A run is written in two units: its start, and its end. The checkpoints that the agent puts in between are kept here, as
a part of the end. So the history that a person reads and the agent's memory are committed together.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from chat import (
    LEASE_S,
    End,
    RunEnded,
    RunProgress,
    RunStarted,
    StoredRun,
    Supervise,
    ThreadHead,
    graph_thread_id,
    unsupervised,
)
from storage.address import passwords_of, where
from storage.batched_reads import BatchedReads
from storage.changes import PendingChanges
from storage.checkpoints import PUT_BLOB, PUT_CHECKPOINT, PUT_TASK_WRITE, REPLACE_TASK_WRITE
from storage.clock import DatabaseClock
from storage.closing import within
from storage.commits import fetch_committed, real_write
from storage.connections import Database
from storage.database import VERSION_BUDGET_S, SchemaError, check_rights, open_connection
from storage.dsn_options import UnusableAddress
from storage.faults import NotConfirmed, NotWritten, StatementTooSlow, StoreUnavailable, Unconfirmed
from storage.journal import Journal, JournalError
from storage.pending import PendingTurns, UnsavedTurns
from storage.pool import READ_BUDGET_S, ReadPool, open_pool
from storage.reader import Reader, ThreadExists, stored_run
from storage.reads import ITEMS_OF_THREAD, READ_STORED_BYTES, RENEW_LEASES, StoredItem, item_of
from storage.recovery import JournaledTurn, replay
from storage.sql import Row, Statement, Write
from storage.statements import (
    DELETE_THREAD,
    RENAME_THREAD,
    end_writes,
    progress_write,
    start_writes,
)
from storage.writer import BATCH_UNITS, GivenUp, QueueFull, Writer, writing

# The front door of storage/: these are its own, or come from there.
__all__ = [
    "FOREVER",
    "ITEMS_OF_THREAD",
    "PUT_BLOB",
    "PUT_CHECKPOINT",
    "PUT_TASK_WRITE",
    "READ_STORED_BYTES",
    "REPLACE_TASK_WRITE",
    "BatchedReads",
    "Database",
    "JournalError",
    "QueueFull",
    "Row",
    "SchemaError",
    "Statement",
    "StatementTooSlow",
    "Store",
    "StoreUnavailable",
    "StoredItem",
    "ThreadExists",
    "Unconfirmed",
    "UnsavedTurns",
    "UnusableAddress",
    "Write",
    "fetch_committed",
    "item_of",
    "open_connection",
    "open_store",
    "passwords_of",
    "where",
    "within",
]

FOREVER = datetime.max  # noqa: DTZ901  # asyncpg's word for infinity
CHANGE_WAIT_S = 5.0  # of a person, for the commit of a change
CHANGE_BUDGET_S = 30.0  # of the writer, for a change; a thread of 28 MB is deleted in 1.6 s


# ---------------------------------------------------------------------------------------------------------------
# The store


@dataclass(slots=True)
class OpenRun:
    first: bool  # of its thread
    started: asyncio.Future[None]  # resolves when its start is committed
    writes: list[Write] = field(default_factory=list)  # to be committed with its end


class Store:
    """One for the process. A thread is named by its owner and id or, for the graph, by "owner/thread_id"."""

    def __init__(
        self, pool: ReadPool, writer: Writer, queue_bytes: int, journal: Journal | None, clock: DatabaseClock
    ) -> None:
        self._reader = Reader(pool)
        self._writer = writer
        self._queue_bytes = queue_bytes
        self._turns = PendingTurns(journal)
        self._changes = PendingChanges()
        self._clock = clock
        self._open_runs: dict[str, OpenRun] = {}  # by the thread's name in the graph

    # The queue

    @property
    def waiting(self) -> int:
        """How many units are not committed."""
        return self._writer.unsaved

    @property
    def oldest_unit_s(self) -> float:
        """How long the oldest of these units has waited."""
        return self._writer.oldest_s

    @property
    def full(self) -> bool:
        """Whether the queue has no place for a run's start and its end.

        Bytes are checked at a start alone, as the length of an answer is not known: every admitted run is written.
        """
        return self._free_places < 2 or self._writer.unsaved_bytes > self._queue_bytes

    @property
    def _free_places(self) -> int:
        """The queue's free places, less one for the end of each run in progress."""
        return self._writer.size - self._writer.waiting - len(self._open_runs)

    @property
    def behind(self) -> bool:
        """Whether the queue holds more than one batch."""
        return self._writer.waiting > BATCH_UNITS

    @property
    def writes_failing_s(self) -> float:
        """For how long nothing could be written; 0 if the last attempt went well."""
        return self._writer.failing_s

    # Runs

    def start_run(self, run: RunStarted) -> asyncio.Future[None]:
        """Queue a run's start. The future resolves when it is committed. Raises QueueFull."""
        if self.full:
            raise QueueFull
        thread = graph_thread_id(run.owner, run.thread_id)
        unit = self._writer.put_nowait(thread, start_writes(run))
        self._open_runs[thread] = OpenRun(run.seq == 1, unit.saved)
        return unit.saved

    async def end_run(self, end: RunEnded) -> asyncio.Future[None]:
        """Queue a run's end with the checkpoints that were put since its start, as one transaction.

        Waits while the queue is full. The future resolves when it is committed.
        """
        thread = graph_thread_id(end.started.owner, end.started.thread_id)
        run = self._open_runs.pop(thread, None)
        checkpoints, after = (run.writes, run.started) if run is not None else ([], None)
        self._turns.add(JournaledTurn(end, checkpoints))
        unit = await self._writer.put(thread, [*end_writes(end), *checkpoints], after)
        unit.saved.add_done_callback(partial(self._turns.settle, end.started.run_id))
        return unit.saved

    @property
    def journals(self) -> bool:
        """Whether there is a journal."""
        return self._turns.has_journal

    async def journal(self, run_id: str) -> bool:
        """Make a turn durable without the database. False if there is no journal, or it can't be written."""
        return await self._turns.journal(run_id)

    @property
    def unsaved(self) -> int:
        """How many turns have ended and are neither in the database nor in the journal."""
        return self._turns.unsaved

    async def renew_leases(self, run_ids: Sequence[str]) -> None:
        """Renew the leases of runs in progress. Raises StoreUnavailable."""
        await self.fetch(RENEW_LEASES, run_ids, LEASE_S)

    def save_progress(self, progress: Sequence[RunProgress]) -> bool:
        """Queue the pieces that runs have added. False while half of the queue is full, or the writer fails."""
        if self._writer.failing or self._free_places < self._writer.size // 2:
            return False
        self._writer.put_nowait("", [progress_write(progress)])
        return True

    async def write(self, thread: str, writes: Sequence[Write]) -> None:
        """Write for a thread of the graph.

        While a run of this process is in progress on it, the writes are kept for the run's end, and this returns at
        once. Otherwise it returns when they are committed. Raises QueueFull.
        """
        if (run := self._open_runs.get(thread)) is not None:
            run.writes.extend(writes)
            return
        if self._free_places < 1:
            raise QueueFull
        await self._writer.put_nowait(thread, writes).saved

    def is_new(self, thread: str) -> bool:
        """Whether the thread of the graph is in its first run, so that nothing of it can be stored."""
        run = self._open_runs.get(thread)
        return run is not None and run.first

    # Threads

    async def rename_thread(self, owner: str, thread_id: str, title: str) -> None:
        """Raises as `_change` does."""
        await self._change(owner, thread_id, RENAME_THREAD(owner, thread_id, title))

    async def delete_thread(self, owner: str, thread_id: str, before: datetime = FOREVER) -> None:
        """Delete the thread with all that is stored or queued of it, unless it was updated since `before`.

        The deletion is queued before the first await. Raises Conflict while any process has a run of the thread in
        progress, and as `_change`.
        """
        await self._change(owner, thread_id, DELETE_THREAD(owner, thread_id, before))

    async def fork_thread(self, owner: str, thread_id: str, tip: str, new_id: str) -> int:
        """Make a new thread of the history of the run `tip`, and of the state that it left. Gives the bytes copied.

        Nothing is made of a thread that was deleted meanwhile. Raises ThreadExists, and StoreUnavailable; after that it
        may have been done.
        """
        return await self._reader.fork_thread(owner, thread_id, tip, new_id)

    async def _change(self, owner: str, thread_id: str, write: Write) -> None:
        """Write behind all that is queued, also while a run is in progress.

        Raises QueueFull, LimitExceeded, and StoreUnavailable when it takes longer than CHANGE_WAIT_S; then it may
        still be done.
        """
        self._changes.check(owner)
        if self._free_places < 1:
            raise QueueFull
        saved = self._writer.put_nowait(graph_thread_id(owner, thread_id), [write], CHANGE_BUDGET_S).saved
        self._changes.add(owner, saved)
        await asyncio.wait({saved}, timeout=CHANGE_WAIT_S)
        if not saved.done():
            raise NotConfirmed
        try:
            saved.result()
        except GivenUp as error:
            raise StatementTooSlow from error

    # Reading

    async def settled(self, thread: str) -> None:
        """Wait until nothing of the thread of the graph is queued. Raises StoreUnavailable after READ_BUDGET_S."""
        unit = self._writer.newest_unsaved(thread)
        if unit is not None:
            await asyncio.wait({unit.saved}, timeout=READ_BUDGET_S)
            if not unit.saved.done():
                raise NotWritten

    async def fetch(self, sql: str, *arguments: object) -> list[Row]:
        """The rows of one statement on the pool. Raises StoreUnavailable, at the latest after READ_BUDGET_S."""
        return await self._reader.fetch(sql, *arguments)

    async def read(self, owner: str, sql: str, *arguments: object) -> list[Row]:
        """As `fetch`, on the owner's share of the pool. Raises Refusal (rate_limited, overloaded), too."""
        return await self._reader.read(owner, sql, *arguments)

    async def search(self, owner: str, sql: str, *arguments: object) -> list[Row]:
        """As `read`, on the owner's share of the searches. Raises Refusal (search_too_broad), too."""
        return await self._reader.search(owner, sql, *arguments)

    async def upkeep(self, sql: str, *arguments: object) -> list[Row]:
        """As `fetch`, for background work: it may take ten seconds."""
        return await self._reader.upkeep(sql, *arguments)

    async def ping(self) -> None:
        """Compare the clocks again. Raises StoreUnavailable."""
        await self._clock.compare(self.fetch)

    def now(self) -> float:
        """Seconds since the epoch by the database's clock, for every time that is stored or compared with one."""
        return self._clock.now()

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None = None) -> ThreadHead:
        """The head of the thread, or the run that left the state `checkpoint_id`: a new run goes on from there.

        Raises UnknownCheckpoint, and StoreUnavailable.
        """
        await self.settled(graph_thread_id(owner, thread_id))
        return await self._reader.head(owner, thread_id, checkpoint_id)

    async def items(self, owner: str, thread_id: str, seqs: Sequence[int]) -> list[StoredItem]:
        """The items in order of the runs in these places of the thread. Raises as `read`."""
        return await self._reader.items(owner, thread_id, seqs)

    async def run(self, owner: str, run_id: str | None = None, idempotency_key: str | None = None) -> StoredRun | None:
        """A run by its id, or by the key of its request, as far as it is stored. Raises StoreUnavailable.

        Rows are visible, too, if no standby has them: their COMMIT may have been cancelled in its wait. So this
        acknowledges a run only after a later commit was waited for.
        """
        row = await self._reader.run_row(owner, run_id, idempotency_key)
        if row is None:
            return None
        await self.settled(graph_thread_id(owner, row["thread_id"]))
        run = stored_run(row, await self.items(owner, row["thread_id"], [row["seq"]]))
        if isinstance(run.last, End) and row["is_replicated"] and not await self._commits_are_confirmed():
            return replace(run, last=replace(run.last, saved=False))
        return run

    async def _commits_are_confirmed(self) -> bool:
        """Whether everything that is visible now is on the standby, too. False after READ_BUDGET_S."""
        if self._writer.failing or self._free_places < 1:
            return False
        saved = self._writer.put_nowait("", real_write()).saved
        await asyncio.wait({saved}, timeout=READ_BUDGET_S)
        return saved.done() and saved.exception() is None

    async def close(self) -> None:
        """Return when no batched read is under way any more."""
        await self._reader.close()


# ---------------------------------------------------------------------------------------------------------------
# Opening it


@asynccontextmanager
async def open_store(
    dsn: str,
    *,
    queue_size: int,
    queue_bytes: int,
    connect_timeout_s: float,
    drain_timeout_s: float,
    migrate_at_start: bool = True,
    journal_dir: Path | None = None,
    on_commit: Callable[[float], None] | None = None,
    supervise: Supervise = unsupervised,
) -> AsyncIterator[Store]:
    """Check the schema, put back the turns of the journal, start the writer; on leaving, commit the queue, for at most
    `drain_timeout_s`. `on_commit` is called with the seconds that each batch took.

    Raises StoreUnavailable, UnusableAddress, SchemaError, JournalError, and UnsavedTurns at the end.
    """
    database = Database(dsn)
    database.tell_notes()
    async with open_connection(database, connect_timeout_s, migrates=migrate_at_start) as connection:
        await check_rights(connection)
        clock = DatabaseClock()
        await within(VERSION_BUDGET_S, connection, clock.compare(connection.fetch))
        if journal_dir is not None:
            await replay(connection, journal_dir)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(database))
        journal = None
        if journal_dir is not None:
            journal = stack.enter_context(closing(Journal(journal_dir)))
        writer = Writer(database, queue_size, on_commit, pool.make_room)
        store = Store(pool, writer, queue_bytes, journal, clock)
        await asyncio.gather(writer.warm_up(), pool.warm_up())
        try:
            async with writing(writer, drain_timeout_s, supervise):
                yield store
                await store.close()
        finally:
            if store.unsaved:
                raise UnsavedTurns(store.unsaved)
