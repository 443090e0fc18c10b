"""What is kept: the schema, the pool with its reads, and what goes to the writer.

Reads go through the pool, concurrently; everything that is written goes through the one writer.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from chat import (
    BEGINNING,
    Conflict,
    End,
    Error,
    Item,
    LostRun,
    Refusal,
    RunEnded,
    RunProgress,
    RunStarted,
    StoredItem,
    StoredRun,
    ThreadHead,
    UnknownCheckpoint,
    graph_thread_id,
)
from storage.batched_reads import BatchedReads
from storage.checkpoints import PUT_BLOB, PUT_CHECKPOINT, PUT_TASK_WRITE, REPLACE_TASK_WRITE
from storage.database import READ_BUDGET_S, SchemaError, StoreUnavailable, check_schema, connect, open_pool, where
from storage.journal import Journal
from storage.reads import (
    FIND_WORDS,
    FORK_THREAD,
    ITEMS_OF_THREAD,
    READ_HEADS,
    READ_ITEMS,
    READ_ITEMS_OF,
    READ_LOST,
    READ_OLD,
    READ_RUN_BY_ID,
    READ_RUN_BY_KEY,
    WALK_THREADS,
    item_of,
)
from storage.recovery import JournaledTurn, replay
from storage.sql import Statement, Write
from storage.statements import (
    DELETE_THREAD,
    RENAME_THREAD,
    RENEW_LEASES,
    end_writes,
    progress_write,
    start_writes,
)
from storage.writer import BATCH_UNITS, DATABASE_FAULTS, GivenUp, QueueFull, Writer, within

# The front door of storage/: these are its own, or come from there.
__all__ = [
    "FOREVER",
    "ITEMS_OF_THREAD",
    "PUT_BLOB",
    "PUT_CHECKPOINT",
    "PUT_TASK_WRITE",
    "REPLACE_TASK_WRITE",
    "BatchedReads",
    "QueueFull",
    "SchemaError",
    "Statement",
    "Store",
    "StoreUnavailable",
    "ThreadExists",
    "UnsavedTurns",
    "Write",
    "item_of",
    "open_store",
    "where",
]

log = logging.getLogger("draftstream.store")

FOREVER = datetime.max  # noqa: DTZ901  # asyncpg's word for infinity
CHANGE_PATIENCE_S = 5.0  # what a person waits for the commit of a change
CHANGE_BUDGET_S = 30.0  # what the writer gives it: of a thread of 28 MB, all is deleted in 1.6 s
FORK_BUDGET_S = 30.0
FORKS_AT_ONCE = 2  # the pool's other connections are for reads


class ThreadExists(Refusal):
    """The owner has a thread of that name."""

    def __init__(self) -> None:
        super().__init__("thread_exists", "There is a thread of that name already.")


class UnsavedTurns(Exception):
    """The database stayed away to the end: so many turns are lost, of which none was acknowledged."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} turns were not saved, as the database stayed away; none had been acknowledged")


# ---------------------------------------------------------------------------------------------------------------
# The store


INTERRUPTED = Error(
    "The service ended in the middle of this run; what was saved of it was kept.", "interrupted", retryable=True
)
"""How a run ends whose process did."""


@dataclass(slots=True)
class OpenRun:
    """A run in progress: whether it is the thread's first, the commit of its start, and what its end will commit."""

    first: bool
    begun: asyncio.Future[None]
    writes: list[Write] = field(default_factory=list)


class Store:
    """Reads go through the pool, concurrently; everything that is written goes through the one writer."""

    def __init__(self, pool: asyncpg.Pool, writer: Writer, queue_bytes: int, journal: Journal | None) -> None:
        self._pool = pool
        self._writer = writer
        self._queue_bytes = queue_bytes
        self._journal = journal
        self._heads = BatchedReads(self.fetch, READ_HEADS)
        self._forking = asyncio.Semaphore(FORKS_AT_ONCE)
        self._open_runs: dict[str, OpenRun] = {}
        self._unsaved: dict[str, JournaledTurn] = {}  # the turns that have ended and wait for the writer, by run_id

    @property
    def waiting(self) -> int:
        """Units that are not committed."""
        return self._writer.unsaved

    @property
    def oldest_unit_s(self) -> float:
        """How long the oldest of them has waited."""
        return self._writer.oldest_s

    @property
    def full(self) -> bool:
        """Whether there is no room for a run's start and its end.

        The bytes count at the start alone, as nobody knows how long an answer will be: what was admitted is written.
        """
        return self._free_places < 2 or self._writer.unsaved_bytes > self._queue_bytes

    @property
    def _free_places(self) -> int:
        """In the queue; each run in progress has one kept for its end."""
        return self._writer.size - self._writer.waiting - len(self._open_runs)

    @property
    def behind(self) -> bool:
        """Whether more is waiting to be written than goes at once."""
        return self._writer.waiting > BATCH_UNITS

    # Writing

    def start_run(self, run: RunStarted) -> asyncio.Future[None]:
        """Queue a run's start. The future resolves when it is committed. Raises QueueFull."""
        if self.full:
            raise QueueFull
        thread = graph_thread_id(run.owner, run.thread_id)
        unit = self._writer.put_nowait(thread, start_writes(run))
        self._open_runs[thread] = OpenRun(run.seq == 1, unit.saved)
        return unit.saved

    async def end_run(self, end: RunEnded) -> asyncio.Future[None]:
        """Queue a run's end and, with it, the checkpoints that were put since its start: one transaction."""
        thread = graph_thread_id(end.started.owner, end.started.thread_id)
        run = self._open_runs.pop(thread, None)
        checkpoints = run.writes if run is not None else []
        run_id = end.started.run_id
        self._unsaved[run_id] = JournaledTurn(end, checkpoints)
        after = run.begun if run is not None else None
        unit = await self._writer.put(thread, [*end_writes(end), *checkpoints], after)
        unit.saved.add_done_callback(lambda saved: self._on_saved(run_id, saved))
        return unit.saved

    def _on_saved(self, run_id: str, saved: asyncio.Future[None]) -> None:
        self._unsaved.pop(run_id, None)
        if self._journal is None or saved.cancelled():
            return
        if isinstance(saved.exception(), Conflict) and run_id in self._journal.unsettled:
            log.error("run %s was journaled, and its thread has moved on: the next start makes it a branch", run_id)
        else:
            self._journal.settle(run_id)

    @property
    def journals(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    async def journal(self, run_id: str) -> bool:
        """Make a turn durable that the database does not take; False if that can't be done, or there is no journal."""
        turn = self._unsaved.get(run_id)
        if turn is None or self._journal is None:
            return False
        try:
            await self._journal.append(run_id, turn.encode())
        except OSError:
            log.exception("run %s can't be journaled", run_id)
            return False
        if run_id not in self._unsaved:
            self._journal.settle(run_id)
        return True

    @property
    def unsaved(self) -> int:
        """How many turns have ended and are neither in the database nor in the journal."""
        journaled = self._journal.unsettled if self._journal is not None else set()
        return len(self._unsaved.keys() - journaled)

    def renew_leases(self, run_ids: Sequence[str]) -> bool:
        """The runs go on: nobody else may take their threads for another while. False if that could not be queued."""
        if self._writer.failing or self._free_places < 1:
            return False
        self._writer.put_nowait("", [RENEW_LEASES(list(run_ids))])
        return True

    def save_progress(self, progress: Sequence[RunProgress]) -> bool:
        """Queue what runs have said so far; False while the queue has better things to do."""
        if self._writer.failing or self._free_places < self._writer.size // 2:
            return False
        self._writer.put_nowait("", [progress_write(progress)])
        return True

    async def write(self, thread: str, writes: Sequence[Write]) -> None:
        """Write for a thread of the graph ("owner/thread_id").

        While a run is open on it, the writes are kept for the run's end, and this returns at once; otherwise it returns
        when they are committed. Raises QueueFull.
        """
        if (run := self._open_runs.get(thread)) is not None:
            run.writes.extend(writes)
            return
        if self._free_places < 1:
            raise QueueFull
        await self._writer.put_nowait(thread, writes).saved

    async def rename_thread(self, owner: str, thread_id: str, title: str) -> None:
        """Raises as `_change` does."""
        await self._change(owner, thread_id, RENAME_THREAD(owner, thread_id, title))

    async def delete_thread(self, owner: str, thread_id: str, before: datetime = FOREVER) -> None:
        """Delete all that is stored and queued of the thread, unless it was updated since `before`.

        It is queued when this first waits. Raises Conflict while a run of it is in progress anywhere, and as `_change`.
        """
        await self._change(owner, thread_id, DELETE_THREAD(owner, thread_id, before))

    async def fork_thread(self, owner: str, thread_id: str, tip: str, new_id: str) -> None:
        """A new thread out of the history of a run, back to where its conversation began, and the state that it left.

        Not the writer's work: a large thread takes seconds. Nothing is made of one that is gone meanwhile. Raises
        ThreadExists, and StoreUnavailable; then it may have been done.
        """
        try:
            async with asyncio.timeout(FORK_BUDGET_S), self._forking:
                connection = await self._pool.acquire(timeout=READ_BUDGET_S)
                try:
                    work = _forked(connection, (owner, thread_id, tip, new_id))
                    await within(FORK_BUDGET_S, connection, work)
                finally:
                    await self._pool.release(connection, timeout=READ_BUDGET_S)
        except asyncpg.UniqueViolationError:
            raise ThreadExists from None
        except DATABASE_FAULTS as error:
            raise StoreUnavailable(type(error).__name__) from error

    async def _change(self, owner: str, thread_id: str, write: Write) -> None:
        """Write behind all that is queued, and not with the end of a run that is in progress.

        Raises QueueFull, and StoreUnavailable when it takes long; then it may still be done.
        """
        if self._free_places < 1:
            raise QueueFull
        saved = self._writer.put_nowait(graph_thread_id(owner, thread_id), [write], CHANGE_BUDGET_S).saved
        await asyncio.wait({saved}, timeout=CHANGE_PATIENCE_S)
        if not saved.done():
            raise StoreUnavailable
        try:
            saved.result()
        except GivenUp as error:
            raise StoreUnavailable from error

    async def find_words(self, items: int) -> int:
        """Find the words of so many items that the search does not know yet; gives how many there were."""
        return len(await self.fetch(FIND_WORDS, items))

    # Reading

    def is_new(self, thread: str) -> bool:
        """Whether the thread is in its first run, so that nothing of it can have been stored before."""
        run = self._open_runs.get(thread)
        return run is not None and run.first

    async def settled(self, thread: str) -> None:
        """Wait for what is still queued of the thread. Raises StoreUnavailable when that takes too long."""
        unit = self._writer.newest_unsaved(thread)
        if unit is not None:
            await asyncio.wait({unit.saved}, timeout=READ_BUDGET_S)
            if not unit.saved.done():
                raise StoreUnavailable

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """One statement on the pool, within a second. Raises StoreUnavailable."""
        try:
            connection = await self._pool.acquire(timeout=READ_BUDGET_S)
            try:
                return await within(READ_BUDGET_S, connection, connection.fetch(sql, *arguments))
            finally:
                await self._pool.release(connection, timeout=READ_BUDGET_S)
        except DATABASE_FAULTS as error:
            raise StoreUnavailable(type(error).__name__) from error

    async def looked(self) -> None:
        """Return when no look at a thread's head is under way any more."""
        await self._heads.close()

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        await self.fetch("SELECT 1")

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None = None) -> ThreadHead:
        """What a run goes on from: the thread's head, or the run that left the state `checkpoint_id`.

        Raises UnknownCheckpoint.
        """
        thread = graph_thread_id(owner, thread_id)
        await self.settled(thread)
        row = await self._heads.read(owner, thread_id, thread, checkpoint_id)
        if row["last_seq"] is None:
            if checkpoint_id not in (None, BEGINNING):
                raise UnknownCheckpoint
            return ThreadHead()
        if row["running"] is not None:
            return ThreadHead(row["last_seq"], running=row["running"])
        if checkpoint_id == BEGINNING:
            return ThreadHead(row["last_seq"], checkpoint_id=BEGINNING, branches=True)
        parent, state = row["parent_run_id"], row["checkpoint_id"]
        if parent is None:
            raise UnknownCheckpoint
        lost: Sequence[LostRun] = ()
        if state is None:
            state, lost = await self._lost_runs(owner, thread_id, parent)
        branches = state != row["stored_last"]
        return ThreadHead(row["last_seq"], parent, state or BEGINNING, lost, branches=branches)

    async def _lost_runs(self, owner: str, thread_id: str, newest: str) -> tuple[str | None, list[LostRun]]:
        """The state that was left last before the run or by it, and the runs since then."""
        line = await self.fetch(READ_LOST, newest)
        state = line[0]["checkpoint_id"]
        lost = line[state is not None :]
        said: dict[str, list[Item]] = {row["run_id"]: [] for row in lost}
        for item in await self.items(owner, thread_id, [row["seq"] for row in lost]):
            said[item["run_id"]].append(item)
        return state, [LostRun(run_id, items[0]["content"], items[1:]) for run_id, items in said.items() if items]

    async def items(self, owner: str, thread_id: str, seqs: Sequence[int] | None = None) -> list[StoredItem]:
        """The items of a thread in order, or those of the runs in these places of it."""
        if seqs is None:
            rows = await self.fetch(READ_ITEMS, owner, thread_id)
        else:
            rows = await self.fetch(READ_ITEMS_OF, owner, thread_id, seqs)
        return [item_of(row) for row in rows]

    async def run(self, owner: str, run_id: str | None = None, idempotency_key: str | None = None) -> StoredRun | None:
        """A run by its id, or by the key of its request, as far as it is stored."""
        by, value = (READ_RUN_BY_ID, run_id) if run_id is not None else (READ_RUN_BY_KEY, idempotency_key)
        rows = await self.fetch(by, owner, value)
        if not rows:
            return None
        row = rows[0]
        await self.settled(graph_thread_id(owner, row["thread_id"]))
        items = await self.items(owner, row["thread_id"], [row["seq"]])
        answer = [item for item in items if item["role"] == "assistant"]
        last: End | Error | None
        if row["in_progress"]:
            last = None
        elif row["error"] is not None:
            last = Error(**orjson.loads(row["error"]))
        elif row["reason"] is not None:
            usage = None if row["usage"] is None else orjson.loads(row["usage"])
            last = End(row["reason"], saved=True, checkpoint_id=row["checkpoint_id"], usage=usage)
        else:
            last = INTERRUPTED
        return StoredRun(row["run_id"], row["thread_id"], row["model"], row["fingerprint"], answer, last)

    async def old_threads(self, owner: str, before: datetime, after: str, limit: int) -> list[str]:
        """The owner's threads last updated before that time and with no run in progress, in order, `after` an id."""
        return [row["thread_id"] for row in await self.fetch(READ_OLD, owner, before, after, limit)]

    async def walk(self, after: tuple[str, str], before: datetime, limit: int) -> list[tuple[str, str, bool]]:
        """The next threads of all owners by owner and id, and whether each was last updated before that time."""
        return [tuple(row) for row in await self.fetch(WALK_THREADS, *after, before, limit)]


async def _forked(connection: PoolConnectionProxy, arguments: tuple[str, ...]) -> None:
    async with connection.transaction(isolation="repeatable_read"):
        # The server's own limit, as it does not notice that nobody waits any more.
        await connection.execute(f"SET LOCAL statement_timeout = '{FORK_BUDGET_S:.0f}s'")
        await connection.execute(FORK_THREAD, *arguments)


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
) -> AsyncIterator[Store]:
    """Check the schema, put back the turns of the journal, start the writer; on leaving, commit what is queued, for at
    most `drain_timeout_s`. `on_commit` is called with the seconds that each batch took.

    Raises StoreUnavailable, SchemaError, JournalError, and UnsavedTurns at the end.
    """
    connection = await connect(dsn, connect_timeout_s)
    try:
        await check_schema(connection, migrates=migrate_at_start)
        if journal_dir is not None:
            await replay(connection, journal_dir)
    except DATABASE_FAULTS as error:
        raise StoreUnavailable(f"the database at {where(dsn)} went away ({type(error).__name__})") from error
    finally:
        connection.terminate()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(dsn))
        journal = None
        if journal_dir is not None:
            journal = stack.enter_context(closing(Journal(journal_dir)))
        writer = Writer(dsn, queue_size, on_commit)
        store = Store(pool, writer, queue_bytes, journal)
        async with writing(writer, drain_timeout_s):
            yield store
            await store.looked()
        if store.unsaved:
            raise UnsavedTurns(store.unsaved)


@asynccontextmanager
async def writing(writer: Writer, drain_timeout_s: float) -> AsyncIterator[None]:
    """Own the writer's task."""
    task = asyncio.create_task(writer.run(), name="writer")
    try:
        yield
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                await writer.close()
                await task
        task.cancel()
        await asyncio.wait({task})
