"""The reader: statements on the pool, many at a time, beside the writer.

A read has READ_BUDGET_S. A fork is here too, though it writes: it copies a thread in one long transaction, and the
writer's other work would wait for it.
"""

import asyncio
from collections.abc import Sequence

import asyncpg
import orjson

from chat import End, Error, Item, LostRun, StoredRun, ThreadHead, graph_thread_id
from chat.refusals import Refusal, UnknownCheckpoint
from storage.batched_reads import BatchedReads
from storage.commits import transaction
from storage.faults import NotConfirmed, StatementTooSlow
from storage.pool import STATEMENT_LIMIT_S, ReadPool
from storage.reads import (
    FORK_THREAD,
    READ_HEADS,
    READ_ITEMS_OF,
    READ_LOST,
    READ_RUN_BY_ID,
    READ_RUN_BY_KEY,
    READ_THREAD_BYTES,
    StoredItem,
    item_of,
)
from storage.shares import Shares
from storage.sql import Row

# The state before the first message: a chat that starts from it branches at the thread's very beginning.
BEGINNING = "00000000-0000-0000-0000-000000000000"
FORK_BUDGET_S = 30.0
FORKS_AT_ONCE = 2  # the pool's other connections are for reads
UPKEEP_BUDGET_S = 10.0

INTERRUPTED = Error(
    "The service ended in the middle of this run; the part that was saved is kept.", "interrupted", retryable=True
)
"""The last event of a run whose process ended before it."""


class ThreadExists(Refusal):
    """The owner has a thread of that name."""

    def __init__(self) -> None:
        super().__init__(
            "thread_exists", "There is a thread of that name already; choose another thread_id, or send none."
        )


class SearchTooBroad(Refusal):
    """The server ended a search at its time limit."""

    def __init__(self) -> None:
        super().__init__(
            "search_too_broad",
            f"The search took more than {STATEMENT_LIMIT_S:g} s and was stopped. Search for a rarer word or a phrase, "
            "for fewer words, without `or` and without a -word that stands alone.",
        )


class Reader:
    """Each method raises StoreUnavailable."""

    def __init__(self, pool: ReadPool) -> None:
        self._pool = pool
        self._shares = Shares()
        self._heads = BatchedReads(self.fetch, READ_HEADS)
        self._forks = asyncio.Semaphore(FORKS_AT_ONCE)

    async def fetch(self, sql: str, *arguments: object) -> list[Row]:
        return await self._pool.fetch(sql, *arguments)

    async def read(self, owner: str, sql: str, *arguments: object) -> list[Row]:
        async with self._shares.read(owner):
            return await self._pool.fetch(sql, *arguments)

    async def search(self, owner: str, sql: str, *arguments: object) -> list[Row]:
        """Raises SearchTooBroad."""
        async with self._shares.search(owner):
            try:
                return await self._pool.fetch(sql, *arguments)
            except StatementTooSlow as error:
                raise SearchTooBroad from error

    async def upkeep(self, sql: str, *arguments: object) -> list[Row]:
        """The rows of a statement that may take UPKEEP_BUDGET_S, as nobody waits for it."""

        async def work(connection: asyncpg.Connection) -> list[Row]:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = '{UPKEEP_BUDGET_S:.0f}s'")
                rows: list[Row] = await connection.fetch(sql, *arguments)
            return rows

        return await self._pool.run(UPKEEP_BUDGET_S, work)

    async def close(self) -> None:
        """Return when no batched read is under way any more."""
        await self._heads.close()

    async def items(self, owner: str, thread_id: str, seqs: Sequence[int]) -> list[StoredItem]:
        """The items in order of the runs in these places of the thread."""
        return [item_of(row) for row in await self.read(owner, READ_ITEMS_OF, owner, thread_id, seqs)]

    async def run_row(self, owner: str, run_id: str | None, idempotency_key: str | None) -> Row | None:
        if run_id is not None:
            rows = await self.read(owner, READ_RUN_BY_ID, owner, run_id)
        else:
            rows = await self.fetch(READ_RUN_BY_KEY, owner, idempotency_key)
        return rows[0] if rows else None

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead:
        """Raises UnknownCheckpoint."""
        row = await self._heads.read(owner, thread_id, graph_thread_id(owner, thread_id), checkpoint_id)
        if row["last_seq"] is None:
            if checkpoint_id not in (None, BEGINNING):
                raise UnknownCheckpoint
            return ThreadHead()
        if row["running"] is not None:
            return ThreadHead(row["last_seq"], running=row["running"], running_begun_by=row["running_begun_by"])
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
        """The newest state that the run or a run before it left, and the runs since that state."""
        line = await self.fetch(READ_LOST, newest)
        state = line[0]["checkpoint_id"]
        lost = line[state is not None :]
        said: dict[str, list[Item]] = {row["run_id"]: [] for row in lost}
        for row in await self.fetch(READ_ITEMS_OF, owner, thread_id, [row["seq"] for row in lost]):
            said[row["run_id"]].append(item_of(row))
        return state, [LostRun(run_id, items[0]["content"], items[1:]) for run_id, items in said.items() if items]

    async def fork_thread(self, owner: str, thread_id: str, tip: str, new_id: str) -> int:
        """Gives the bytes that were copied. Raises ThreadExists. After StoreUnavailable it may have been done."""
        try:
            async with asyncio.timeout(FORK_BUDGET_S), self._forks:
                return await self._pool.run(FORK_BUDGET_S, lambda taken: _fork(taken, owner, thread_id, tip, new_id))
        except asyncpg.UniqueViolationError:
            raise ThreadExists from None
        except TimeoutError as error:
            raise NotConfirmed(type(error).__name__) from error


async def _fork(connection: asyncpg.Connection, owner: str, thread_id: str, tip: str, new_id: str) -> int:
    async with transaction(connection, FORK_BUDGET_S, "ISOLATION LEVEL REPEATABLE READ"):
        await connection.execute("SET LOCAL lock_timeout = 0")
        await connection.execute(FORK_THREAD, owner, thread_id, tip, new_id)
        copied: int = await connection.fetchval(READ_THREAD_BYTES, owner, new_id)
        return copied


def stored_run(row: Row, items: Sequence[StoredItem]) -> StoredRun:
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
    answer = [item for item in items if item["role"] == "assistant"]
    return StoredRun(row["run_id"], row["thread_id"], row["model"], row["fingerprint"], answer, last, row["begun_by"])
