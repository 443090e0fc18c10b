"""The life of one run, from its first step to its last event: the agent carries it out, its end is saved and reported.

Which runs there are, and who may start one, is the registry's business.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from chat import (
    Conflict,
    Emit,
    End,
    Error,
    Outcome,
    RunEnded,
    RunFailure,
    RunStarted,
    RunStatus,
    StopCause,
    Turn,
    Usage,
)
from chat.refusals import OVERLOADED
from runs.run import Run
from telemetry import tracing
from telemetry.metrics import RunReport, Telemetry

log = logging.getLogger("draftstream.runs")

# The save time-out where waiting longer gains nothing: there is a journal, or the run ends with an error, which
# acknowledges nothing. And at a shutdown, which has DRAIN_TIMEOUT_S and five seconds: this, and the writer's queue.
SHORT_SAVE_TIMEOUT_S = 1.0
FIRST_STEP_DELAY_S = 0.1  # the longest that a run waits for the `start` frames of others that start with it

INTERNAL = "Something went wrong on our side; it has been logged."
NO_REASON = RunFailure("internal", "The run ended without a reason.", retryable=True)

STOP_FAILURES = {
    StopCause.TIMEOUT: RunFailure(
        "run_timeout", "The run reached its time limit; the reply so far is kept.", retryable=True
    ),
    StopCause.SHUTDOWN: RunFailure(
        "shutting_down", "The service is restarting; the reply so far is kept.", retryable=True
    ),
    StopCause.CONFLICT: Conflict(),
    StopCause.LENGTH: RunFailure(
        "run_too_long", "The reply has become too long and was ended; what came before is kept.", retryable=False
    ),
}
"""The stops that end a run with an `error`. A person's own cancel is an `end`."""

RunAgent = Callable[[Turn, Emit, asyncio.Future[StopCause]], Awaitable[Outcome]]
"""Carries out a turn, calling `emit` with its pieces. It stops soon after the future resolves, and keeps these."""


class TurnStore(Protocol):
    """Where the end of a run is saved; see Store."""

    @property
    def journals(self) -> bool: ...

    def now(self) -> float: ...

    async def end_run(self, end: RunEnded) -> asyncio.Future[None]: ...

    async def journal(self, run_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Saving:
    """How far the turn's rows have come when the run's last event is due."""

    committed: bool = False
    journaled: bool = False
    refused: RunFailure | None = None  # by the database: for its content, or as another process has the thread


class Turns:
    """Carries out turns and saves their ends."""

    def __init__(
        self,
        *,
        agent: RunAgent,
        store: TurnStore,
        telemetry: Telemetry,
        run_timeout_s: float,
        save_timeout_s: float,
    ) -> None:
        self._agent = agent
        self._store = store
        self._telemetry = telemetry
        self._run_timeout_s = run_timeout_s
        self._save_timeout_s = save_timeout_s
        self.starts = StaggeredStarts()
        self.shutting_down = False

    async def carry_out(self, run: Run, turn: Turn) -> Outcome:
        """Raises nothing: a fault of ours is an outcome, too."""
        timer = asyncio.get_running_loop().call_later(self._run_timeout_s, run.stop, StopCause.TIMEOUT)
        try:
            await self.starts.first_step(run)
            return await self._agent(turn, run.emit, run.stopping)
        except RunFailure as failure:
            return _failed(run, failure)
        except MemoryError:
            log.exception("run %s failed: no memory was left", run.run_id)
            return _failed(run, RunFailure("overloaded", OVERLOADED, retryable=True))
        except Exception:
            log.exception("run %s failed", run.run_id)
            return _failed(run, RunFailure("internal", INTERNAL, retryable=True))
        finally:
            timer.cancel()

    async def save(self, run: Run, started: RunStarted, outcome: Outcome) -> End | Error:
        """Have the turn stored, report it, and return the run's last event. Raises nothing.

        Three things can fail a run, and the first of them counts: the agent (a fault of ours or the model's), a stop
        that is not a person's, the database's refusal. The first two are known beforehand and stored with the run.
        """
        try:
            status, failure = _end_of(run, outcome)
            ended_at = max(started.started_at, self._store.now())  # the clock of another database, after a failover
            ended = _ended(run, started, outcome, status, failure, ended_at)
            run.closing = True
            saving = await self._store_end(run, ended)
            failure = failure or saving.refused
            self._telemetry.run_ended(_report(run, ended, failure, saving))
        except Exception:
            log.exception("the end of run %s could not be saved", run.run_id)
            return Error(INTERNAL, "internal", retryable=True)
        if failure is None and outcome.reason is not None:
            return End(outcome.reason, saving.committed, outcome.checkpoint_id, outcome.usage, saving.journaled)
        return _error(failure or NO_REASON)

    async def _store_end(self, run: Run, ended: RunEnded) -> Saving:
        """Wait for the commit until the save time-out, and then journal the turn, if there is a journal."""
        saved = await self._store.end_run(ended)
        saved.add_done_callback(partial(_note_stored, run))
        timeout_s = self._save_timeout_s
        if self.shutting_down or self._store.journals or ended.error is not None:
            timeout_s = min(timeout_s, SHORT_SAVE_TIMEOUT_S)
        await asyncio.wait({saved}, timeout=timeout_s)
        journaled = not saved.done() and await self._store.journal(ended.started.run_id)
        if not saved.done():
            return Saving(journaled=journaled)
        if (refused := saved.exception()) is None:
            return Saving(committed=True, journaled=journaled)
        if isinstance(refused, RunFailure):
            return Saving(refused=refused, journaled=journaled)
        raise refused


def _note_stored(run: Run, saved: asyncio.Future[None]) -> None:
    run.stored = not saved.cancelled() and saved.exception() is None


def _failed(run: Run, error: RunFailure) -> Outcome:
    """The outcome of an agent that raised: of its items the newest is cut off."""
    unfinished = frozenset(item.first.item for item in run.items[-1:])
    return Outcome(reason=None, error=error, unfinished=unfinished, usage=None, checkpoint_id=None)


def _end_of(run: Run, outcome: Outcome) -> tuple[RunStatus, RunFailure | None]:
    """The run's status, and the failure that is stored with it."""
    if outcome.error is not None or outcome.reason is None:
        return RunStatus.FAILED, outcome.error or NO_REASON
    if outcome.reason == "cancelled":
        return RunStatus.CANCELLED, STOP_FAILURES.get(run.stopping.result())
    return RunStatus.COMPLETED, None


def _ended(  # noqa: PLR0917  # the values of one row
    run: Run, started: RunStarted, outcome: Outcome, status: RunStatus, failure: RunFailure | None, ended_at: float
) -> RunEnded:
    return RunEnded(
        started=started,
        status=status,
        items=[item.record(complete=item.first.item not in outcome.unfinished) for item in run.items],
        reason=outcome.reason,
        error=_error(failure) if failure is not None else None,
        usage=outcome.usage,
        checkpoint_id=outcome.checkpoint_id,
        ended_at=ended_at,
        model=outcome.model,
    )


def _error(failure: RunFailure) -> Error:
    return Error(failure.content, failure.code, failure.retryable)


def _report(run: Run, ended: RunEnded, failure: RunFailure | None, saving: Saving) -> RunReport:
    """`failure`: as the client hears of it, the database's refusal included."""
    usage: Usage | dict[str, None] = ended.usage or {"input_tokens": None, "output_tokens": None}
    trace = tracing.here()
    return RunReport(
        run_id=run.run_id,
        thread_id=run.thread_id,
        owner=run.owner,
        status=ended.status if failure is None or ended.error is not None else RunStatus.FAILED,
        reason=failure.code if failure is not None else str(ended.reason),
        cause=failure.__cause__ if failure is not None else None,
        model=ended.model or ended.started.model,
        seconds=time.monotonic() - run.begun_at,
        first_token_s=run.first_piece_at - run.begun_at if run.items else None,
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        saved=saving.committed,
        journaled=None if saving.committed else saving.journaled,
        trace_id=trace.trace_id if trace is not None else None,
    )


# ---------------------------------------------------------------------------------------------------------------
# The first steps of runs that start together


class StaggeredStarts:
    """Lets runs take their first step one at a time, after the `start` frames of all that start with them.

    The first step (the graph, the model's request) takes milliseconds of CPU. If each run took it at once, the last of
    200 requests that come together would wait for 200 first steps before it had its `start`.
    """

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()
        self._started = 0  # runs, so far
        self._lookups = 0  # requests that wait for the head of their thread
        self._no_lookups = asyncio.Event()

    def run_started(self) -> None:
        self._started += 1

    @contextmanager
    def lookup(self) -> Iterator[None]:
        """Around the read of a thread's head: its run is about to start."""
        self._lookups += 1
        self._no_lookups.clear()
        try:
            yield
        finally:
            self._lookups -= 1
            if not self._lookups:
                self._no_lookups.set()

    async def first_step(self, run: Run) -> None:
        """Return when the run may take its first step; after FIRST_STEP_DELAY_S in any case."""
        async with self._one_at_a_time:
            started = None
            while started != self._started:
                started = self._started
                await asyncio.sleep(0)
                remaining_s = run.begun_at + FIRST_STEP_DELAY_S - time.monotonic()
                if remaining_s <= 0:
                    return
                if self._lookups:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(remaining_s):
                            await self._no_lookups.wait()
