"""The registry of runs: starts them, one a thread, keeps what they say, finds them again, and ends them all.

No HTTP, SQL or LangGraph in sight: the agent is a callable, the store and the limits are what the protocols say.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from chat import (
    ChatRequest,
    Conflict,
    End,
    Error,
    Outcome,
    RunEnded,
    RunFailure,
    RunProgress,
    RunStarted,
    RunStatus,
    Start,
    StopCause,
    StoredRun,
    ThreadHead,
    Turn,
    Usage,
)
from runs.run import Run
from telemetry import tracing
from telemetry.metrics import RunReport, Telemetry

log = logging.getLogger("draftstream.runs")

LINGER_S = 60.0  # an ended run stays in memory this long, for a client whose connection broke near the end
LINGERING_RUNS = 1000
# An end waits no longer for its commit where there is a journal, or nothing to acknowledge; or at a shutdown, which
# ends within DRAIN_TIMEOUT_S and five seconds: this, and what empties the queue.
IMPATIENT_SAVE_S = 1.0
ELSEWHERE_S = 11.0  # how long a run is waited for that another process has: a lease, and a little
CROWD_S = 0.1  # how long a run that has sent its `start` lets others come to theirs
RENEWAL_S = 2.5  # of a lease of 10 s
PROGRESS_S = 0.5  # what runs have said is saved this often, so that a crash loses less than a second of it

INTERNAL = "Something went wrong on our side; it has been logged."


class RunStore(Protocol):
    """Where runs are kept; see Store."""

    @property
    def journals(self) -> bool: ...

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead: ...

    async def run(
        self, owner: str, run_id: str | None = None, idempotency_key: str | None = None
    ) -> StoredRun | None: ...

    def start_run(self, run: RunStarted) -> asyncio.Future[None]: ...

    async def end_run(self, end: RunEnded) -> asyncio.Future[None]: ...

    def renew_leases(self, run_ids: Sequence[str]) -> bool: ...

    def save_progress(self, progress: Sequence[RunProgress]) -> bool: ...

    async def journal(self, run_id: str) -> bool: ...


class RunLimits(Protocol):
    """How many runs an owner may have; see Limits."""

    def check(self, owner: str) -> None: ...

    def run_started(self, owner: str, run_id: str) -> None: ...

    def run_ended(self, owner: str, run_id: str, tokens: int) -> None: ...


class ThreadBusy(Exception):
    """The thread has a run in progress."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id


class TooManyRuns(Exception):
    """As many runs are in progress as MAX_RUNS allows."""


class Draining(Exception):
    """The service is going down and starts no more runs."""


class KeyReused(Exception):
    """The idempotency key came before with another request."""


# ---------------------------------------------------------------------------------------------------------------
# The registry


class Runs:
    """Starts runs, one a thread, and owns their tasks: leaving the block ends them all and waits for it."""

    def __init__(
        self,
        *,
        agent: tracing.Agent,
        model: str,
        store: RunStore,
        limits: RunLimits,
        telemetry: Telemetry,
        max_runs: int,
        run_timeout_s: float,
        save_timeout_s: float,
        drain_timeout_s: float,
    ) -> None:
        self._agent = agent
        self._model = model
        self._store = store
        self._limits = limits
        self._telemetry = telemetry
        self._max_runs = max_runs
        self._run_timeout_s = run_timeout_s
        self._save_timeout_s = save_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._runs: dict[str, Run] = {}  # by run_id; the ended ones linger
        self._busy: dict[tuple[str, str], Run] = {}  # by owner and thread
        self._keyed: dict[tuple[str, str], Run] = {}  # by owner and idempotency key
        self._tasks: set[asyncio.Task[None]] = set()
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        # One run begins in a pass of the loop, once no more are being started, or wait for a look at their thread: the
        # first steps of a crowd would hold up its own `start` frames.
        self._beginning = asyncio.Lock()
        self._started = 0
        self._renewed_at = time.monotonic()
        self._looking = 0
        self._looked = asyncio.Event()
        self.draining = False

    def __repr__(self) -> str:
        return f"<Runs {len(self._busy)} in progress, {len(self._lingering)} ended{', draining' * self.draining}>"

    @property
    def in_progress(self) -> int:
        return len(self._busy)

    @property
    def readers(self) -> int:
        """Of runs that are in memory, ended or not."""
        return sum(len(run.readers) for run in self._runs.values())

    @property
    def full(self) -> bool:
        return len(self._busy) >= self._max_runs

    def get(self, owner: str, run_id: str) -> Run | None:
        """The run, if it is the owner's and still in memory."""
        run = self._runs.get(run_id)
        return run if run is not None and run.owner == owner else None

    def busy(self, owner: str, thread_id: str) -> str | None:
        """The run that is in progress on the thread here."""
        run = self._busy.get((owner, thread_id))
        return run.run_id if run is not None else None

    def forget_thread(self, owner: str, thread_id: str) -> None:
        """Its ended runs are not to be had from memory any more."""
        for run_id in list(self._lingering):
            run = self._runs[run_id]
            if (run.owner, run.thread_id) == (owner, thread_id):
                self._forget(run_id)

    async def find(self, owner: str, run_id: str) -> Run | None:
        """The run, in memory or as it is stored; a client can't tell which it was.

        One that another process has in progress is waited for as long as a lease may last: that process may be dead,
        and an EventSource that was refused would not come back. Raises ThreadBusy after that.
        """
        patient_until = time.monotonic() + ELSEWHERE_S
        while True:
            run = self.get(owner, run_id)
            if run is not None:
                return run
            stored = await self._store.run(owner, run_id)
            if stored is None:
                return None
            if stored.last is not None or self.draining or time.monotonic() > patient_until:
                return _again(owner, stored)
            await asyncio.sleep(PROGRESS_S)

    async def start(self, owner: str, request: ChatRequest) -> Run:
        """Start a run for the message; its `start` is in the log when this returns.

        A new thread (no thread_id) waits for nothing. A named one is looked up first, as what can be refused must be
        refused before the first byte. Raises Draining, TooManyRuns, ThreadBusy, UnknownCheckpoint, and what the
        callables raise. A request with an idempotency key that came before gets the run that it got then; raises
        KeyReused if the request was another.
        """
        asked_at = time.monotonic()
        key = request.idempotency_key
        if key is not None and (claimed := self._keyed.get((owner, key))) is not None:
            return _same(await asyncio.shield(claimed.begun), request)
        run = self._claim(owner, request)
        try:
            stored = await self._store.run(owner, idempotency_key=key) if key is not None else None
            again = _again(owner, stored) if stored is not None else None
            if again is None:
                await self._begin(run, request)
        except BaseException as error:
            self._unclaim(run, key)
            run.begun.set_exception(error if isinstance(error, Exception) else TooManyRuns())
            run.begun.exception()  # those that wait for it with its key hear why; there may be none
            raise
        if again is None:
            self._telemetry.run_started(run.begun_at - asked_at)
            run.begun.set_result(run)
            return run
        self._unclaim(run, key)
        run.begun.set_result(again)
        return _same(again, request)

    async def _begin(self, run: Run, request: ChatRequest) -> None:
        head = ThreadHead()
        if request.thread_id is not None:
            head = await self._head(run.owner, request.thread_id, request.checkpoint_id)
            if head.running is not None:
                raise ThreadBusy(head.running)
        if self.draining:  # meanwhile: whoever drains waits for no run that begins later
            raise Draining
        run.started = RunStarted(
            owner=run.owner,
            thread_id=run.thread_id,
            run_id=run.run_id,
            seq=head.last_seq + 1,
            message=request.message,
            model=self._model,
            started_at=time.time(),
            idempotency_key=request.idempotency_key,
            fingerprint=request.fingerprint,
            lost=[(lost.run_id, lost.position) for lost in head.lost],
            parent_run_id=head.parent_run_id,
        )
        claimed = self._store.start_run(run.started)
        claimed.add_done_callback(lambda claim: run.stop(StopCause.CONFLICT) if _is_lost(claim) else None)
        self._runs[run.run_id] = run
        self._started += 1
        run.begin(Start(run.thread_id, run.run_id, self._model))
        turn = Turn(
            *(run.owner, run.thread_id, run.run_id, request.message),
            *(head.checkpoint_id, head.lost, head.branches),
        )
        task = asyncio.create_task(self._carry_out(run, run.started, turn), name=f"run {run.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead:
        self._looking += 1
        self._looked.clear()
        try:
            return await self._store.head(owner, thread_id, checkpoint_id)
        finally:
            self._looking -= 1
            if not self._looking:
                self._looked.set()

    async def _turn_to_begin(self, run: Run) -> None:
        async with self._beginning:
            started = None
            while started != self._started:
                started = self._started
                await asyncio.sleep(0)
                patience_s = run.begun_at + CROWD_S - time.monotonic()
                if patience_s <= 0:
                    break
                if self._looking:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(patience_s):
                            await self._looked.wait()

    def _unclaim(self, run: Run, key: str | None) -> None:
        del self._busy[run.owner, run.thread_id]
        self._limits.run_ended(run.owner, run.run_id, 0)
        if key is not None:
            del self._keyed[run.owner, key]

    def _claim(self, owner: str, request: ChatRequest) -> Run:
        thread_id = request.thread_id or str(uuid.uuid4())
        if self.draining:
            raise Draining
        if (busy := self._busy.get((owner, thread_id))) is not None:
            raise ThreadBusy(busy.run_id)
        if self.full:
            raise TooManyRuns
        self._limits.check(owner)
        run = self._busy[owner, thread_id] = Run(owner, thread_id, str(uuid.uuid4()), request.fingerprint)
        self._limits.run_started(owner, run.run_id)
        if request.idempotency_key is not None:
            self._keyed[owner, request.idempotency_key] = run
        return run

    async def _carry_out(self, run: Run, started: RunStarted, turn: Turn) -> None:
        timer = asyncio.get_running_loop().call_later(self._run_timeout_s, run.stop, StopCause.TIMEOUT)
        await self._turn_to_begin(run)
        try:
            outcome = await self._agent_outcome(run, turn)
        finally:
            timer.cancel()
        try:
            last = await self._save(run, started, outcome)
        except Exception:
            log.exception("the end of run %s could not be saved", run.run_id)
            last = Error(INTERNAL, "internal", retryable=True)
        finally:
            del self._busy[run.owner, run.thread_id]
            self._limits.run_ended(run.owner, run.run_id, outcome.tokens)
            self._linger(run)
        run.finish(last)

    async def _agent_outcome(self, run: Run, turn: Turn) -> Outcome:
        try:
            return await self._agent(turn, run.emit, run.stopping)
        except RunFailure as failure:
            error = failure
        except Exception:
            log.exception("run %s failed", run.run_id)
            error = RunFailure("internal", INTERNAL, retryable=True)
        unfinished = frozenset(item.first.item for item in run.items[-1:])
        return Outcome(reason=None, error=error, unfinished=unfinished, usage=None, checkpoint_id=None)

    async def _save(self, run: Run, started: RunStarted, outcome: Outcome) -> End | Error:
        """Have the turn stored, and give the run's last event."""
        status, error = RunStatus.COMPLETED, outcome.error
        if error is not None:
            status = RunStatus.FAILED
        elif outcome.reason == "cancelled":
            status = RunStatus.CANCELLED
            error = STOPPED.get(run.stopping.result())
        items = [item.record(complete=item.first.item not in outcome.unfinished) for item in run.items]
        last = Error(error.content, error.code, error.retryable) if error else None
        run.closing = True
        ended = RunEnded(
            started=started,
            status=status,
            items=items,
            reason=outcome.reason,
            error=last,
            usage=outcome.usage,
            checkpoint_id=outcome.checkpoint_id,
            ended_at=time.time(),
        )
        saved = await self._store.end_run(ended)
        patience_s = self._save_timeout_s
        if self.draining or self._store.journals or last is not None:
            patience_s = min(patience_s, IMPATIENT_SAVE_S)
        await asyncio.wait({saved}, timeout=patience_s)
        journaled = not saved.done() and await self._store.journal(run.run_id)
        refused = saved.exception() if saved.done() else None
        failure = error or (refused if isinstance(refused, RunFailure) else None)
        self._telemetry.run_ended(
            _report(run, ended, failure, saved=saved.done() and refused is None, journaled=journaled)
        )
        if last is not None or outcome.reason is None:
            return last or Error("The run ended without a reason.", "internal", retryable=True)
        if isinstance(refused, RunFailure):
            return Error(refused.content, refused.code, refused.retryable)
        return End(outcome.reason, saved.done(), outcome.checkpoint_id, outcome.usage, journaled)

    def _linger(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        self._lingering[run.run_id] = loop.call_later(LINGER_S, self._forget, run.run_id)
        while len(self._lingering) > LINGERING_RUNS:
            self._forget(next(iter(self._lingering)))

    def _forget(self, run_id: str) -> None:
        self._lingering.pop(run_id).cancel()
        run = self._runs.pop(run_id)
        if run.started is not None and run.started.idempotency_key is not None:
            del self._keyed[run.owner, run.started.idempotency_key]

    async def _keep(self) -> None:
        """Twice a second, whatever goes wrong: without it a crash loses whole runs, and others take their threads."""
        while True:
            await asyncio.sleep(PROGRESS_S)
            try:
                self._renew_leases()
                self._keep_progress()
            except Exception:
                log.exception("what runs have said could not be saved on the way")

    def _renew_leases(self) -> None:
        if self._busy and time.monotonic() - self._renewed_at > RENEWAL_S:
            run_ids = [run.run_id for run in self._busy.values()]
            if self._store.renew_leases(run_ids):
                self._renewed_at = time.monotonic()

    def _keep_progress(self) -> None:
        """Save what runs have said since the last time, all of them at once; a run's end does it for the rest."""
        said = [(run, progress) for run in self._busy.values() if (progress := run.progress()) is not None]
        if said and self._store.save_progress([progress for _, progress in said]):
            for run, _ in said:
                run.mark_kept()

    # Ending

    async def drain(self) -> None:
        """Start no more; let what runs finish for a while, stop the rest, and wait until all has ended."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_timeout_s)
        self.stop_all()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop_all(self) -> None:
        """End what runs; what it has is kept."""
        for run in list(self._busy.values()):
            run.stop(StopCause.SHUTDOWN)

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep(), name="progress")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()
        self._keeper.cancel()
        with suppress(asyncio.CancelledError):
            await self._keeper
        for run_id in list(self._lingering):
            self._forget(run_id)


def _is_lost(claim: asyncio.Future[None]) -> bool:
    return not claim.cancelled() and claim.exception() is not None


def _report(run: Run, ended: RunEnded, failure: RunFailure | None, *, saved: bool, journaled: bool) -> RunReport:
    """`failure`: what the client is told; also where only the database refused the turn."""
    usage: Usage | dict[str, None] = ended.usage or {"input_tokens": None, "output_tokens": None}
    trace = tracing.here()
    return RunReport(
        run_id=run.run_id,
        thread_id=run.thread_id,
        owner=run.owner,
        status=ended.status if failure is None or ended.error is not None else RunStatus.FAILED,
        reason=failure.code if failure is not None else str(ended.reason),
        cause=failure.__cause__ if failure is not None else None,
        model=ended.started.model,
        seconds=time.monotonic() - run.begun_at,
        first_token_s=run.first_piece_at - run.begun_at if run.items else None,
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        saved=saved,
        journaled=None if saved else journaled,
        trace_id=trace.trace_id if trace is not None else None,
    )


def _again(owner: str, stored: StoredRun) -> Run:
    """A run out of what was stored of it. Raises ThreadBusy if another process has it in progress."""
    if stored.last is None:
        raise ThreadBusy(stored.run_id)
    return Run.again(owner, stored, stored.last)


def _same(run: Run, request: ChatRequest) -> Run:
    """The run of a request that came before, if this is that request."""
    if run.fingerprint != request.fingerprint:
        raise KeyReused
    return run


STOPPED = {
    StopCause.TIMEOUT: RunFailure(
        "run_timeout", "The run took longer than it may; what it has was kept.", retryable=True
    ),
    StopCause.SHUTDOWN: RunFailure("shutting_down", "The service is restarting; what it has was kept.", retryable=True),
    StopCause.CONFLICT: Conflict(),
}
"""The stops that a client hears of as an error; a person's own cancel is an `end`."""
