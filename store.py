"""What is kept: the schema, the statements, the pool with its reads, and what goes to the writer.

Reads go through the pool, concurrently; everything that is written goes through the one writer.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypedDict, cast
from urllib.parse import urlsplit

import asyncpg
import orjson

from chat import (
    USER_ITEM,
    Doc,
    End,
    Error,
    Item,
    LostRun,
    RunEnded,
    RunFailure,
    RunProgress,
    RunStarted,
    StoredRun,
    ThreadHead,
    graph_thread_id,
    title_from,
)
from writer import BACKOFF_S, QueueFull, Write, Writer, within

log = logging.getLogger("draftstream.store")

SCHEMA = Path(__file__).with_name("schema.sql")
SCHEMA_LOCK = 0x6472616674  # "draft": replicas that start at once apply the schema one after the other
READ_BUDGET_S = 1.0
POOL_CONNECTIONS = 8


class StoreUnavailable(RunFailure):
    """The database can't be reached, or does not answer in time."""

    def __init__(self, why: str = "") -> None:
        super().__init__("store_unavailable", "The database can't be reached at the moment.", retryable=True)
        self.why = why

    def __str__(self) -> str:
        return self.why or self.content


# ---------------------------------------------------------------------------------------------------------------
# The statements

PUT_THREAD = """INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
VALUES ($1, $2, $3, $4, to_timestamp($5::float8), to_timestamp($5::float8))
ON CONFLICT (owner, thread_id) DO UPDATE SET
    last_seq = GREATEST(threads.last_seq, EXCLUDED.last_seq),
    updated_at = GREATEST(threads.updated_at, EXCLUDED.updated_at)"""

# The run's row is the claim on its thread: a second one for the same place in the thread is refused. A run whose
# process has not renewed its lease for ten seconds is over, and its thread is free.
START_RUN = """INSERT INTO runs
    (run_id, owner, thread_id, seq, status, model, started_at, idempotency_key, fingerprint, leased_until)
VALUES ($1, $2, $3, $4, 'running', $5, to_timestamp($6::float8), $7, $8, now() + interval '10 s')
ON CONFLICT (run_id) DO NOTHING"""
RENEW_LEASES = """UPDATE runs SET leased_until = now() + interval '10 s'
WHERE run_id = ANY($1) AND status = 'running'"""

PUT_PIECE = """INSERT INTO pieces
    (run_id, position, owner, thread_id, seq, item, type, content, doc_id, title, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (run_id, position) DO NOTHING"""

DELETE_PIECES = "DELETE FROM pieces WHERE run_id = $1"

# The items of runs in progress, and of those whose process ended, out of their pieces.
ITEMS_OF_PIECES = """SELECT owner, thread_id, seq, item, run_id, 'assistant' AS role, type,
    string_agg(content, '' ORDER BY position) AS content, false AS complete, doc_id, title, version, now() AS created_at
FROM pieces WHERE {} GROUP BY owner, thread_id, seq, item, run_id, type, doc_id, title, version"""

# The thread has moved on from a run whose process ended: what was saved of it becomes its items.
KEEP_PIECES = f"""INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
    doc_id, title, version, created_at)
{ITEMS_OF_PIECES.format("run_id = $1")}
ON CONFLICT (owner, thread_id, seq, item) DO NOTHING"""
INTERRUPT_RUN = "UPDATE runs SET status = 'interrupted' WHERE run_id = $1 AND status = 'running'"

# The whole row, so that it stands even if the run's start was set aside; a run ends once.
END_RUN = """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at,
    reason, error, usage, checkpoint_id, ended_at)
VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::float8), $8, $9::jsonb, $10::jsonb, $11, to_timestamp($12::float8))
ON CONFLICT (run_id) DO UPDATE SET
    status = EXCLUDED.status, reason = EXCLUDED.reason, error = EXCLUDED.error, usage = EXCLUDED.usage,
    checkpoint_id = EXCLUDED.checkpoint_id, ended_at = EXCLUDED.ended_at
WHERE runs.status <> EXCLUDED.status"""

PUT_ITEM = """INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
    doc_id, title, version, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, to_timestamp($13::float8))
ON CONFLICT (owner, thread_id, seq, item) DO NOTHING"""

# Newest first from a place in that order; the place is the last row of the page before.
LIST_THREADS = """SELECT thread_id, title, created_at, updated_at FROM threads
WHERE owner = $1 AND (created_at, thread_id) < ($2, $3)
ORDER BY created_at DESC, thread_id DESC LIMIT $4"""

READ_THREAD = "SELECT thread_id, title, created_at, updated_at FROM threads WHERE owner = $1 AND thread_id = $2"

READ_RUNS = """SELECT run_id, seq, status, reason, error::text, usage::text, model, checkpoint_id, started_at, ended_at
FROM runs WHERE owner = $1 AND thread_id = $2 ORDER BY seq"""

READ_ITEMS = f"""SELECT run_id, item, role, type, content, complete, doc_id, title, version, created_at
FROM (
    SELECT owner, thread_id, seq, item, run_id, role, type, content, complete, doc_id, title, version, created_at
    FROM messages WHERE owner = $1 AND thread_id = $2
  UNION ALL
    {ITEMS_OF_PIECES.format("owner = $1 AND thread_id = $2")}
) AS items ORDER BY seq, item"""  # noqa: S608  # our own text

# The thread's runs after the last one that left a state, if there are any.
READ_LOST = """SELECT run_id FROM runs WHERE owner = $1 AND thread_id = $2
AND seq > (SELECT coalesce(max(seq), 0) FROM runs
    WHERE owner = $1 AND thread_id = $2 AND checkpoint_id IS NOT NULL)
ORDER BY seq"""

READ_RUN = """SELECT run_id, thread_id, model, status, reason, error::text, usage::text, checkpoint_id, fingerprint
FROM runs WHERE owner = $1 AND """
READ_RUN_BY_ID = READ_RUN + "run_id = $2"
READ_RUN_BY_KEY = READ_RUN + "idempotency_key = $2"

# What must be known of a thread before a run of it may start: one look at two primary keys.
READ_HEAD = """SELECT
    (SELECT last_seq FROM threads WHERE owner = $1 AND thread_id = $2) AS last_seq,
    (SELECT checkpoint_id IS NULL FROM runs
        WHERE owner = $1 AND thread_id = $2 ORDER BY seq DESC LIMIT 1) AS lost,
    (SELECT run_id FROM runs WHERE owner = $1 AND thread_id = $2 AND status = 'running' AND leased_until > now()
        ORDER BY seq DESC LIMIT 1) AS running,
    EXISTS (SELECT 1 FROM checkpoints
        WHERE thread_id = $3 AND checkpoint_ns = '' AND checkpoint_id = $4) AS has_checkpoint"""


def start_writes(run: RunStarted) -> list[Write]:
    """The rows of a run's start: its thread, the run, the user's message."""
    message: Item = {"item": USER_ITEM, "role": "user", "type": "message", "content": run.message, "complete": True}
    row = (
        *(run.run_id, run.owner, run.thread_id, run.seq, run.model, run.started_at),
        *(run.idempotency_key, run.fingerprint),
    )
    return [
        (PUT_THREAD, (run.owner, run.thread_id, title_from(run.message), run.seq, run.started_at)),
        (START_RUN, row),
        _item_write(run, message, run.started_at),
        *((sql, (lost,)) for lost in run.lost for sql in (KEEP_PIECES, DELETE_PIECES, INTERRUPT_RUN)),
    ]


def end_writes(end: RunEnded) -> list[Write]:
    """The rows of a run's end: what it said, and how it ended."""
    run = end.started
    error = None
    if end.error is not None:
        error = {"content": end.error.content, "code": end.error.code, "retryable": end.error.retryable}
    row = (
        *(run.run_id, run.owner, run.thread_id, run.seq, end.status.value, run.model, run.started_at),
        *(end.reason, _json(error), _json(end.usage), end.checkpoint_id, end.ended_at),
    )
    items = [_item_write(run, item, end.ended_at) for item in end.items]
    return [(END_RUN, row), *items, (DELETE_PIECES, (run.run_id,))]


def progress_writes(progress: RunProgress) -> list[Write]:
    """The rows of what a run in progress has said since the last time."""
    run = progress.started
    writes: list[Write] = []
    for position, piece in progress.pieces:
        place = (run.run_id, position, run.owner, run.thread_id, run.seq, piece.item)
        if isinstance(piece, Doc):
            writes.append((PUT_PIECE, (*place, "doc", piece.content, piece.doc_id, piece.title, piece.version)))
        else:
            writes.append((PUT_PIECE, (*place, "message", piece.content, None, None, None)))
    return writes


def _item_write(run: RunStarted, item: Item, created_at: float) -> Write:
    row = (
        *(run.owner, run.thread_id, run.seq, item["item"], run.run_id, item["role"], item["type"], item["content"]),
        *(item["complete"], item.get("doc_id"), item.get("title"), item.get("version"), created_at),
    )
    return PUT_ITEM, row


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


# ---------------------------------------------------------------------------------------------------------------
# The store


INTERRUPTED = Error(
    "The service ended in the middle of this run; what was saved of it was kept.", "interrupted", retryable=True
)
"""How a run ends whose process did."""


class ThreadSummary(TypedDict):
    thread_id: str
    title: str
    created_at: datetime
    updated_at: datetime


class History(ThreadSummary):
    """A thread with every message and document in order, and the runs that made them."""

    messages: list[dict[str, object]]
    runs: list[dict[str, object]]


@dataclass(slots=True)
class OpenRun:
    """A run in progress: what its end will commit, and whether it is the thread's first."""

    first: bool
    writes: list[Write] = field(default_factory=list)


class Store:
    """Reads go through the pool, concurrently; everything that is written goes through the one writer."""

    def __init__(self, pool: asyncpg.Pool, writer: Writer) -> None:
        self._pool = pool
        self._writer = writer
        self._open_runs: dict[str, OpenRun] = {}

    @property
    def full(self) -> bool:
        """Whether there is no room for a run's start and its end: each run in progress has a place kept for its end."""
        return self._writer.waiting + len(self._open_runs) + 2 > self._writer.size

    # Writing

    def start_run(self, run: RunStarted) -> asyncio.Future[None]:
        """Queue a run's start. The future resolves when it is committed. Raises QueueFull."""
        if self.full:
            raise QueueFull
        thread = graph_thread_id(run.owner, run.thread_id)
        unit = self._writer.put_nowait(thread, start_writes(run))
        self._open_runs[thread] = OpenRun(first=run.seq == 1)
        return unit.saved

    async def end_run(self, end: RunEnded) -> asyncio.Future[None]:
        """Queue a run's end and, with it, the checkpoints that were put since its start: one transaction."""
        thread = graph_thread_id(end.started.owner, end.started.thread_id)
        checkpoints = self._open_runs.pop(thread).writes if thread in self._open_runs else []
        unit = await self._writer.put(thread, [*end_writes(end), *checkpoints])
        return unit.saved

    def renew_leases(self, run_ids: Sequence[str]) -> None:
        """The runs go on: nobody else may take their threads for another while."""
        if not self._writer.failing:
            self._writer.put_nowait("", [(RENEW_LEASES, (list(run_ids),))])

    def save_progress(self, progress: RunProgress) -> bool:
        """Queue what a run has said so far; False while the queue has better things to do."""
        if self._writer.failing or self._writer.waiting > self._writer.size // 2:
            return False
        thread = graph_thread_id(progress.started.owner, progress.started.thread_id)
        self._writer.put_nowait(thread, progress_writes(progress))
        return True

    async def write(self, thread: str, writes: Sequence[Write]) -> None:
        """Write for a thread of the graph ("owner/thread_id").

        While a run is open on it, the writes are kept for the run's end, and this returns at once; otherwise it returns
        when they are committed.
        """
        if (run := self._open_runs.get(thread)) is not None:
            run.writes.extend(writes)
            return
        unit = await self._writer.put(thread, writes)
        await unit.saved

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
        """One read on the pool, within a second. Raises StoreUnavailable."""
        try:
            connection = await self._pool.acquire(timeout=READ_BUDGET_S)
            try:
                return await within(READ_BUDGET_S, connection, connection.fetch(sql, *arguments))
            finally:
                await self._pool.release(connection, timeout=READ_BUDGET_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(type(error).__name__) from error

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        await self.fetch("SELECT 1")

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead:
        thread = graph_thread_id(owner, thread_id)
        await self.settled(thread)
        [row] = await self.fetch(READ_HEAD, owner, thread_id, thread, checkpoint_id)
        if row["running"] is not None:
            return ThreadHead(row["last_seq"], row["has_checkpoint"], running=row["running"])
        lost = await self._lost_runs(owner, thread_id) if row["lost"] and checkpoint_id is None else []
        return ThreadHead(row["last_seq"] or 0, row["has_checkpoint"], lost)

    async def _lost_runs(self, owner: str, thread_id: str) -> list[LostRun]:
        ids = [row["run_id"] for row in await self.fetch(READ_LOST, owner, thread_id)]
        said: dict[str, list[Item]] = {run_id: [] for run_id in ids}
        for row in await self.fetch(READ_ITEMS, owner, thread_id):
            if row["run_id"] in said:
                said[row["run_id"]].append(cast("Item", _item(row)))
        return [LostRun(run_id, items[0]["content"], items[1:]) for run_id, items in said.items() if items]

    async def run(self, owner: str, run_id: str | None, idempotency_key: str | None = None) -> StoredRun | None:
        """A run by its id, or by the key of its request, as far as it is stored."""
        by, value = (READ_RUN_BY_ID, run_id) if run_id is not None else (READ_RUN_BY_KEY, idempotency_key)
        rows = await self.fetch(by, owner, value)
        if not rows:
            return None
        row = rows[0]
        await self.settled(graph_thread_id(owner, row["thread_id"]))
        items = [
            cast("Item", _item(item))
            for item in await self.fetch(READ_ITEMS, owner, row["thread_id"])
            if item["run_id"] == row["run_id"] and item["role"] == "assistant"
        ]
        last: End | Error
        if row["error"] is not None:
            last = Error(**orjson.loads(row["error"]))
        elif row["reason"] is not None:
            usage = None if row["usage"] is None else orjson.loads(row["usage"])
            last = End(row["reason"], saved=True, checkpoint_id=row["checkpoint_id"], usage=usage)
        else:
            last = INTERRUPTED
        return StoredRun(row["run_id"], row["thread_id"], row["model"], row["fingerprint"], items, last)

    async def threads(
        self, owner: str, limit: int, before: tuple[datetime, str] | None
    ) -> tuple[list[ThreadSummary], tuple[datetime, str] | None]:
        """A page of the owner's threads, newest first, and the place where the next one starts."""
        place = before or (datetime.max, "")  # noqa: DTZ901  # asyncpg's word for infinity
        rows = await self.fetch(LIST_THREADS, owner, *place, limit + 1)
        page: list[ThreadSummary] = [_summary(row) for row in rows[:limit]]
        last = page[-1] if len(rows) > limit else None
        return page, (last["created_at"], last["thread_id"]) if last else None

    async def history(self, owner: str, thread_id: str) -> History | None:
        """The thread and everything said in it; None for one that the owner does not have."""
        await self.settled(graph_thread_id(owner, thread_id))
        threads = await self.fetch(READ_THREAD, owner, thread_id)
        if not threads:
            return None
        items = await self.fetch(READ_ITEMS, owner, thread_id)
        runs = await self.fetch(READ_RUNS, owner, thread_id)
        return {
            **_summary(threads[0]),
            "messages": [_item(row) for row in items],
            "runs": [_run(row) for row in runs],
        }


def _summary(row: asyncpg.Record) -> ThreadSummary:
    return {
        "thread_id": row["thread_id"],
        "title": row["title"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def _item(row: asyncpg.Record) -> dict[str, object]:
    item = dict(row)
    if item["type"] == "message":
        del item["doc_id"], item["title"], item["version"]
    return item


def _run(row: asyncpg.Record) -> dict[str, object]:
    run = dict(row)
    for column in ("error", "usage"):
        run[column] = None if run[column] is None else orjson.loads(run[column])
    return run


# ---------------------------------------------------------------------------------------------------------------
# Opening it


def where(dsn: str) -> str:
    """The database's place as it may be shown: host, port and name, never a user or a password."""
    parts = urlsplit(dsn)
    return f"{parts.hostname or 'a local socket'}{f':{parts.port}' if parts.port else ''}{parts.path}"


async def connect(dsn: str, wait_s: float) -> asyncpg.Connection:
    """Connect, trying for `wait_s` seconds, as a database may start beside the service. Raises StoreUnavailable."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        left = deadline - loop.time()
        try:
            return await asyncpg.connect(dsn, timeout=max(left, 0.1))
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0] if str(error) else type(error).__name__
            wrong = isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError)
            if wrong or isinstance(error, ValueError) or deadline - loop.time() < BACKOFF_S[-1]:
                raise StoreUnavailable(f"can't use the database at {where(dsn)} ({reason})") from error
        await asyncio.sleep(BACKOFF_S[-1])


async def apply_schema(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", SCHEMA_LOCK)
        await connection.execute(SCHEMA.read_text("utf-8"))


async def _no_reset(_: asyncpg.Connection) -> None:
    """Reads leave nothing behind, so a connection goes back without the round trip of a reset."""


@asynccontextmanager
async def open_store(
    dsn: str, *, queue_size: int, connect_timeout_s: float, drain_timeout_s: float
) -> AsyncIterator[Store]:
    """Apply the schema, start the writer; on leaving, commit what is queued, for at most `drain_timeout_s`.

    Raises StoreUnavailable.
    """
    connection = await connect(dsn, connect_timeout_s)
    try:
        await apply_schema(connection)
    finally:
        await connection.close()
    writer = Writer(dsn, queue_size)
    async with asyncpg.create_pool(
        dsn, min_size=0, max_size=POOL_CONNECTIONS, reset=_no_reset, timeout=READ_BUDGET_S
    ) as pool:
        writing = asyncio.create_task(writer.run(), name="writer")
        try:
            yield Store(pool, writer)
        finally:
            try:
                async with asyncio.timeout(drain_timeout_s):
                    await writer.close()
                    await writing
            except TimeoutError:
                log.error("the database stayed away: %d units were not saved", writer.waiting)
            finally:
                writing.cancel()
                await asyncio.wait({writing})
                pool.terminate()
