"""The exchange of counts between the processes on one database, about once a second.

Counts are written by the writer and read on the pool, beside the requests. No request waits for either.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, NoReturn

from access.limits import DAY_S, Limits
from chat import RunFailure, Supervise, unsupervised
from store import QueueFull, Statement, Store, StoreUnavailable, Write

log = logging.getLogger("draftstream.exchange")

EXCHANGE_S = 1.0
OVERLAP_S = 10.0  # a row is read again this long after its change: a transaction may show up late, by COMMIT_BUDGET_S
LEAVING_S = 0.5  # how long a shutdown waits for the commit of the last counts
CLEANING_S = 60.0  # how often expired counts are deleted


class CountsRow(NamedTuple):
    """Column by column: one statement for all counts."""

    process: str
    owners: list[str]
    names: list[str]
    slots: list[int]
    used: list[int]
    expires_at: list[float]


# The counts of this process are absolute: sent again or out of order, they are the same.
PUBLISH = Statement(
    "publish_counts",
    CountsRow,
    """INSERT INTO limit_counts (owner, name, slot, process, used, updated_at, expires_at)
SELECT owner, name, slot, $1, used, now(), to_timestamp(expires_at)
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::float8[]) AS u (owner, name, slot, used, expires_at)
ON CONFLICT (owner, name, slot, process) DO UPDATE SET
    used = GREATEST(limit_counts.used, EXCLUDED.used), updated_at = EXCLUDED.updated_at""",
    batchable=True,
)


class NoRow(NamedTuple):
    pass


FORGET_EXPIRED = Statement("forget_expired_counts", NoRow, "DELETE FROM limit_counts WHERE expires_at < now()")

# The sum of all other processes, for the counts that one of them changed in the last $2 seconds.
READ_OTHERS = """SELECT owner, name, slot, sum(used)::bigint AS used FROM limit_counts
WHERE process <> $1 AND (owner, name, slot) IN (
    SELECT owner, name, slot FROM limit_counts
    WHERE process <> $1 AND updated_at > now() - make_interval(secs => $2) AND expires_at > now())
GROUP BY owner, name, slot"""

# Runs in progress in other processes; $1 are this one's. A process that died keeps its places until its lease ends.
READ_RUNNING = """SELECT owner, count(*) AS runs FROM runs r
WHERE in_progress(r) AND run_id <> ALL($1::text[])
GROUP BY owner"""


@asynccontextmanager
async def exchanging(limits: Limits, store: Store, supervise: Supervise = unsupervised) -> AsyncIterator[None]:
    """Share the counts with the other processes while the block lasts; on entering, read theirs."""
    if limits.runs_at_once is None and not limits.counts:
        yield
        return
    exchange = _Exchange(limits, store)
    await exchange.read_others()
    task = asyncio.create_task(supervise("limits", exchange.run), name="limits")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await exchange.leave()


class _Exchange:
    def __init__(self, limits: Limits, store: Store) -> None:
        self._limits = limits
        self._store = store
        self._publishing: asyncio.Task[None] | None = None
        self._read_at = -math.inf  # by the loop's clock
        self._cleaned = -math.inf

    async def run(self) -> NoReturn:
        while True:
            await asyncio.sleep(EXCHANGE_S)
            if self._publishing is not None and self._publishing.done():
                last, self._publishing = self._publishing, None
                last.result()  # an error of ours there is one of this loop
            self.publish()
            await self.read_others()

    def publish(self) -> None:
        """Queue the changed counts, unless the last ones still wait for their commit: so they never pile up."""
        if self._publishing is not None and not self._publishing.done():
            return
        if not (rows := self._limits.unpublished()):
            return
        writes = [Write(PUBLISH, CountsRow(self._limits.process, *map(list, zip(*rows, strict=True))))]
        now = asyncio.get_running_loop().time()
        if now - self._cleaned > CLEANING_S:
            self._cleaned = now
            writes.append(FORGET_EXPIRED())
        self._publishing = asyncio.create_task(self._write(writes), name="limits publishing")

    async def leave(self) -> None:
        """Publish the last counts, if the database is there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                await self._published()
                self.publish()
                await self._published()
        if self._publishing is not None:
            self._publishing.cancel()
            await self._published()

    async def _published(self) -> None:
        if self._publishing is not None:
            await asyncio.wait({self._publishing})

    async def _write(self, writes: Sequence[Write]) -> None:
        while True:
            try:
                await self._store.write("", writes)
            except QueueFull:  # turns come first; the counts are sent later, as the others need them
                await asyncio.sleep(EXCHANGE_S)
                continue
            except RunFailure as refused:
                log.error("the counts of the limits were not stored (%s)", refused.code)
            return

    async def read_others(self) -> None:
        """Read the counts of the others; without the database, keep those that are still true."""
        limits, now = self._limits, asyncio.get_running_loop().time()
        try:
            if limits.counts:
                since_s = min(now - self._read_at + OVERLAP_S, 2.0 * DAY_S)
                rows = await self._store.fetch(READ_OTHERS, limits.process, since_s)
                limits.merge_counts((row["owner"], row["name"], row["slot"], row["used"]) for row in rows)
                self._read_at = now
            if limits.runs_at_once is not None:
                rows = await self._store.fetch(READ_RUNNING, limits.our_runs())
                limits.replace_runs((row["owner"], row["runs"]) for row in rows)
        except StoreUnavailable:
            limits.replace_runs(())  # they may have ended long since
