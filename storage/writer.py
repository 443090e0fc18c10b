"""The writer: a bounded queue of units, and the one task that commits them.

It makes three promises. `put` waits while the queue is full. Units are committed in the order in which they came, in
batches, by one task on its own connection. After `close` the task ends when all units are committed. Every statement is
idempotent, so a batch whose COMMIT got no answer is sent again. commits.py says when a unit counts as committed.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import orjson

from chat import Conflict, RunFailure, Supervise
from chat.refusals import Overloaded
from storage.commits import Committer
from storage.connections import Database
from storage.faults import BACKOFF_S, CONFLICTS, DATABASE_FAULTS, TOO_SLOW, Unconfirmed, is_refused_content
from storage.sql import Statement, Write
from storage.units import Unit, in_one_attempt, without_void

log = logging.getLogger("draftstream.writer")

UNWRITABLE_LINE = "the database can't be written to (%s); units that wait: %d"
UNCONFIRMED_LINE = "a commit is not confirmed, so no turn is acknowledged (%s); units that wait: %d"
BATCH_UNITS = 64  # 20,700 small turns a second in batches of 64, 2,300 one by one


class Unstorable(RunFailure):
    """The database refused a turn for its content. The turn is in the dead-letter table."""

    def __init__(self) -> None:
        super().__init__(
            "unstorable",
            "The database refused this turn for its content; it is set aside for the operator.",
            retryable=False,
        )


class DeadLetterRow(NamedTuple):
    thread: str
    error: str
    writes: bytes


ADD_DEAD_LETTER = Statement(
    "add_dead_letter",
    DeadLetterRow,
    """INSERT INTO dead_letters (thread, error, writes) SELECT $1::text, $2::text, $3::bytea
WHERE NOT EXISTS (SELECT FROM dead_letters WHERE thread = $1 AND writes = $3)""",
)


class GivenUp(RunFailure):
    """A unit took longer than its own budget; nothing of it is stored."""

    def __init__(self) -> None:
        super().__init__(
            "store_unavailable", "The database takes too long for this; try again in a few seconds.", retryable=True
        )


class QueueFull(Overloaded):
    """More is waiting to be written than WRITE_QUEUE_SIZE allows."""


class Writer:
    """The queue and its task. The module's docstring has its promises."""

    def __init__(
        self,
        database: Database,
        queue_size: int,
        on_commit: Callable[[float], None] | None = None,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_room` is called when there was no connection to be had."""
        self._committer = Committer(database, on_commit, make_room)
        self._queue: asyncio.Queue[Unit | None] = asyncio.Queue(queue_size)
        self._unsaved: dict[str, Unit] = {}  # the newest unit of each thread that has one waiting
        self._queued_at: dict[Unit, float] = {}  # of each unit that is not committed, oldest first
        self._in_hand: list[Unit] = []  # the batch
        self._closed = False
        self._failing_since: float | None = None
        self.unsaved_bytes = 0

    def __repr__(self) -> str:
        return f"<Writer {self._queue.qsize()} of {self._queue.maxsize} units waiting{', failing' * self.failing}>"

    @property
    def size(self) -> int:
        return self._queue.maxsize

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    @property
    def unsaved(self) -> int:
        """The number of units in the queue and in the batch in hand."""
        return len(self._queued_at)

    @property
    def oldest_s(self) -> float:
        return time.monotonic() - next(iter(self._queued_at.values())) if self._queued_at else 0.0

    @property
    def failing(self) -> bool:
        """Whether the last attempt to write failed, or the loop did."""
        return self._failing_since is not None

    @property
    def failing_s(self) -> float:
        """For how long nothing could be written."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def newest_unsaved(self, thread: str) -> Unit | None:
        return self._unsaved.get(thread)

    async def put(self, thread: str, writes: Sequence[Write], after: asyncio.Future[None] | None = None) -> Unit:
        """Queue the writes as one unit. Waits while the queue is full."""
        unit = Unit(thread, writes, asyncio.get_running_loop().create_future(), after)
        await self._queue.put(unit)
        self._remember(unit)
        return unit

    def put_nowait(self, thread: str, writes: Sequence[Write], budget_s: float | None = None) -> Unit:
        """Queue the writes as one unit. Raises QueueFull."""
        unit = Unit(thread, writes, asyncio.get_running_loop().create_future(), budget_s=budget_s)
        try:
            self._queue.put_nowait(unit)
        except asyncio.QueueFull:
            raise QueueFull from None
        self._remember(unit)
        return unit

    def _remember(self, unit: Unit) -> None:
        size = unit.bytes
        self.unsaved_bytes += size
        self._queued_at[unit] = time.monotonic()
        self._unsaved[unit.thread] = unit
        unit.saved.add_done_callback(lambda _: self._forget(unit, size))

    def _forget(self, unit: Unit, size: int) -> None:
        self.unsaved_bytes -= size
        del self._queued_at[unit]
        if not unit.saved.cancelled():
            unit.saved.exception()  # retrieved, so that a unit without a waiter logs no warning
        if self._unsaved.get(unit.thread) is unit:
            del self._unsaved[unit.thread]

    async def warm_up(self) -> None:
        """Call it before `run`."""
        await self._committer.warm_up()

    async def close(self) -> None:
        """End the queue: `run` returns when all units are committed."""
        await self._queue.put(None)

    async def run(self) -> None:
        """Commit the queue until `close`. A fault of the database is waited out.

        After a failure of any other kind this may be called again: it goes on with the batch in hand.
        """
        try:
            self._drop_settled()
            while self._in_hand or not self._closed:
                if not self._in_hand:
                    await self._take()
                await self._commit(self._in_hand)
                self._drop_settled()
        except Exception:
            self._start_failing()
            raise
        finally:
            await self._committer.close()

    async def _take(self) -> None:
        """Take the next batch out of the queue."""
        unit = await self._queue.get()
        while unit is not None:
            self._in_hand.append(unit)
            if len(self._in_hand) == BATCH_UNITS or self._queue.empty():
                return
            unit = self._queue.get_nowait()
        self._closed = True

    def _drop_settled(self) -> None:
        self._in_hand = [unit for unit in self._in_hand if not unit.saved.done()]
        if not self._in_hand:
            self._failing_since = None  # the failed units do not wait any more

    def _start_failing(self) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()

    async def _commit(self, units: Sequence[Unit]) -> None:
        """Commit the units in order: by halves if one is refused, with retries while the database is away."""
        failures = 0
        in_doubt = False  # whether some of the part may be stored
        size = len(units)
        while units := without_void(units):
            part = in_one_attempt(units[:size])
            try:
                await self._committer.commit(part)
            except Exception as error:  # noqa: BLE001  # of any kind: if this task ended, nothing would be saved any more
                if not is_refused_content(error):
                    failures += 1
                    in_doubt = in_doubt or isinstance(error, Unconfirmed)
                    await self._wait_out(error, failures)
                    if isinstance(error, TOO_SLOW) and part[0].budget_s is not None and not in_doubt:
                        log.error("gave up a change of %s: it takes too long", part[0].thread)
                        part[0].refuse(GivenUp())
                        units = units[1:]
                    continue
                if len(part) > 1:
                    size = (len(part) + 1) // 2
                    continue
                if not await self._set_aside(part[0], error):
                    continue
            for unit in part:
                if not unit.saved.done():
                    unit.saved.set_result(None)
            units = units[len(part) :]
            size = len(units)
            failures, in_doubt = 0, False
            if self.failing:
                log.warning("the database can be written to again")
            self._failing_since = None

    async def _wait_out(self, error: Exception, failures: int) -> None:
        if not self.failing:
            bug = None if isinstance(error, DATABASE_FAULTS) else error
            line = UNCONFIRMED_LINE if isinstance(error, Unconfirmed) else UNWRITABLE_LINE
            log.warning(line, error, self.unsaved, exc_info=bug)
        self._start_failing()
        await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])

    async def _set_aside(self, unit: Unit, error: Exception) -> bool:
        """Put a refused unit into `dead_letters`. False if the database is away, so that it must be tried again."""
        if isinstance(error, CONFLICTS):
            log.warning("a unit of %s was refused: another process has gone on with it", unit.thread)
            unit.refuse(Conflict())
            return True
        log.error("set aside a unit of %s: the database refused it (%s)", unit.thread, type(error).__name__)
        letter = ADD_DEAD_LETTER(unit.thread, type(error).__name__, _dump(unit.writes))
        try:
            await self._committer.commit([Unit(unit.thread, [letter], unit.saved)])
        except DATABASE_FAULTS as away:
            await self._wait_out(away, 1)
            return False
        unit.refuse(Unstorable())
        return True


@asynccontextmanager
async def writing(writer: Writer, drain_timeout_s: float, supervise: Supervise) -> AsyncIterator[None]:
    """Own the writer's task."""
    task = asyncio.create_task(supervise("writer", writer.run), name="writer")
    try:
        yield
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                await writer.close()
                await asyncio.wait({task})
        task.cancel()
        await asyncio.wait({task})


def _dump(writes: Sequence[Write]) -> bytes:
    named = [write.named for write in writes]
    try:
        return orjson.dumps(named, default=_dump_value)
    except TypeError:  # unpaired surrogates, perhaps the cause of the refusal
        return json.dumps(named, default=_dump_value).encode()


def _dump_value(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else repr(value)
