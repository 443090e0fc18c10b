"""The registry of runs: starts them, one a thread, renews their leases, saves their progress, finds and ends them.

It knows no HTTP, SQL or LangGraph: the agent is a callable, the store and the limits are protocols. How one run goes,
from its first step to its last event, is in `runs/turn.py`.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Protocol, Self

from chat import (
    LEASE_S,
    ChatRequest,
    RunProgress,
    RunStarted,
    Start,
    StopCause,
    StoredRun,
    Supervise,
    ThreadHead,
    Turn,
    unsupervised,
)
from chat.refusals import InvalidRequest, Overloaded, Refusal, ThreadBusy, UnknownModel
from runs.lingering import EndedRuns
from runs.repeats import Repeats
from runs.run import Run
from runs.turn import RunAgent, Turns, TurnStore
from telemetry.metrics import Telemetry

log = logging.getLogger("draftstream.runs")

RUN_BYTES = 2**16  # that the log of a run in progress counts for at least: a turn with a document of 30 KB
FOREIGN_RUN_WAIT_S = LEASE_S + 1.0  # the longest wait for the end of another process's run: a lease and some slack
LEASE_RENEWAL_S = LEASE_S / 4  # so that a renewal may fail or come late
PROGRESS_S = 0.5  # between two saves of the runs' progress: a crash loses less than a second of it


class RunStore(TurnStore, Protocol):
    """Where runs are kept; see Store."""

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead: ...

    async def run(
        self, owner: str, run_id: str | None = None, idempotency_key: str | None = None
    ) -> StoredRun | None: ...

    def start_run(self, run: RunStarted) -> asyncio.Future[None]: ...

    async def renew_leases(self, run_ids: Sequence[str]) -> None: ...

    def save_progress(self, progress: Sequence[RunProgress]) -> bool: ...


class RunLimits(Protocol):
    """How many runs an owner may have; see Limits."""

    def check_run(self, owner: str) -> None: ...

    def run_started(self, owner: str, run_id: str) -> None: ...

    def run_ended(self, owner: str, run_id: str, tokens: int) -> None: ...


class TooManyRuns(Overloaded):
    """As many runs are in progress, or in memory, as MAX_RUNS or RUN_LOG_BYTES allows."""


class Draining(Refusal):
    """The service is going down and starts no more runs."""

    def __init__(self) -> None:
        super().__init__("shutting_down", "The service is shutting down; send the request again in a few seconds.")


class KeyReused(InvalidRequest):
    """The idempotency key came before with another request, or by a caller whose runs this one may not read."""

    def __init__(self) -> None:
        detail = "came before with another request, or by another caller; use a new key for each request"
        super().__init__([{"pointer": "/idempotency_key", "detail": detail}])


# ---------------------------------------------------------------------------------------------------------------
# The registry


class Runs:
    """Starts runs, one a thread, and owns their tasks. Leaving the block ends them all and waits for their ends."""

    def __init__(
        self,
        *,
        agent: RunAgent,
        models: Sequence[str],
        store: RunStore,
        limits: RunLimits,
        check_stored_bytes: Callable[[str], Awaitable[None]],
        telemetry: Telemetry,
        max_runs: int,
        log_bytes: int,
        check_resources: Callable[[int], None] = lambda _: None,
        run_timeout_s: float,
        save_timeout_s: float,
        drain_timeout_s: float,
        supervise: Supervise = unsupervised,
    ) -> None:
        self._supervise = supervise
        self._turns = Turns(
            agent=agent,
            store=store,
            telemetry=telemetry,
            run_timeout_s=run_timeout_s,
            save_timeout_s=save_timeout_s,
        )
        self._models = models  # that a request may name; the first one is the default
        self._store = store
        self._limits = limits
        self._check_stored_bytes = check_stored_bytes
        self._telemetry = telemetry
        self._max_runs = max_runs
        self._log_bytes = log_bytes  # for the logs of all runs
        self._check_resources = check_resources  # raises Overloaded where the process lacks descriptors or memory
        self._drain_timeout_s = drain_timeout_s
        self._runs: dict[str, Run] = {}  # by run_id; the ended ones linger
        self._busy: dict[tuple[str, str], Run] = {}  # by owner and thread
        self._keyed: dict[tuple[str, str], Run] = {}  # by owner and idempotency key
        self._repeats = Repeats(time.monotonic)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = EndedRuns(self._forget)
        self._renewed_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Runs {len(self._busy)} in progress, {len(self._ended)} ended{', draining' * self.draining}>"

    @property
    def draining(self) -> bool:
        return self._turns.shutting_down

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

    @property
    def log_full(self) -> bool:
        """Whether there is no place for the log of another run. Drops ended runs to make one.

        A run in progress has its share from the start. If it needs more it takes more, and is never cut.
        """
        running = sum(max(run.log.size, RUN_BYTES) for run in self._busy.values())
        self._ended.shrink(max(0, self._log_bytes - running - RUN_BYTES))
        return running + RUN_BYTES + self._ended.size > self._log_bytes

    def get(self, owner: str, run_id: str) -> Run | None:
        """The run, if it is the owner's and still in memory."""
        run = self._runs.get(run_id)
        return run if run is not None and run.owner == owner else None

    def busy(self, owner: str, thread_id: str) -> str | None:
        """The run that is in progress on the thread here."""
        run = self._busy.get((owner, thread_id))
        return run.run_id if run is not None else None

    def forget_thread(self, owner: str, thread_id: str) -> None:
        """Drop the thread's ended runs from memory."""
        for run in self._ended:
            if (run.owner, run.thread_id) == (owner, thread_id):
                self._ended.drop(run)

    async def find(self, owner: str, run_id: str, begun_by: str | None = None) -> Run | None:
        """The run, from memory or from the database; a client can't tell the difference.

        With `begun_by`, a run that this credential did not begin is not there.
        If another process has the run in progress, this waits for its end, or raises ThreadBusy after a lease: that
        process may be dead, and an EventSource that was refused would not come back.
        """
        give_up_at = time.monotonic() + FOREIGN_RUN_WAIT_S
        while True:
            run = self.get(owner, run_id)
            if run is not None:
                return run if begun_by in (None, run.begun_by) else None
            stored = await self._store.run(owner, run_id)
            if stored is None or begun_by not in (None, stored.begun_by):
                return None
            if stored.last is not None or self.draining or time.monotonic() > give_up_at:
                return _again(owner, stored)
            await asyncio.sleep(PROGRESS_S)

    async def start(
        self,
        owner: str,
        request: ChatRequest,
        *,
        begun_by: str | None = None,
        reads: str | None = None,
        by_get: bool = False,
    ) -> Run:
        """Start a run for the message; its `start` is in the log when this returns.

        `begun_by`: the caller's credential. `reads`: the credential whose runs the caller may read, None for all runs.
        `by_get`: it may be the repetition of a GET, see Repeats.

        A new thread (no thread_id) waits for nothing. The head of a named thread is read first, because every refusal
        must come before the first byte. Raises Draining, TooManyRuns, ThreadBusy, UnknownCheckpoint, and the refusals
        of the store and the limits. A repeated idempotency key gets the run of the first request. If the two requests
        differ, or the caller may not read that run, this raises KeyReused.
        """
        asked_at = time.monotonic()
        key = request.idempotency_key
        if key is not None and (claimed := self._keyed.get((owner, key))) is not None:
            earlier = await asyncio.shield(claimed.begun)
            _check_same(earlier, request, reads)
            return earlier
        if by_get and (repeated := self._repeats.find(owner, request, begun_by, reads)) is not None:
            return await asyncio.shield(repeated.begun)
        run = self._claim(owner, request, begun_by)
        if request.thread_id is not None:
            self._repeats.begin(run, request, by_get=by_get)
        stored = None
        try:
            stored = await self._store.run(owner, idempotency_key=key) if key is not None else None
            again = _again(owner, stored) if stored is not None else None
            if again is None:
                await self._begin(run, request)
        except BaseException as error:
            self._unclaim(run, key)
            run.begun.set_exception(error if isinstance(error, Exception) else TooManyRuns())
            run.begun.exception()  # for requests that wait with the same key; there may be none
            if stored is not None:
                _check_same(stored, request, reads)
            raise
        if again is None:
            self._telemetry.run_started(run.begun_at - asked_at)
            run.begun.set_result(run)
            return run
        self._unclaim(run, key)
        run.begun.set_result(again)
        _check_same(again, request, reads)
        return again

    def _claim(self, owner: str, request: ChatRequest, begun_by: str | None) -> Run:
        thread_id = request.thread_id or str(uuid.uuid4())
        if self.draining:
            raise Draining
        if (busy := self._busy.get((owner, thread_id))) is not None:
            raise ThreadBusy(busy.run_id, busy.begun_by)
        if self.full or self.log_full:
            raise TooManyRuns
        self._check_resources(len(request.message))
        self._limits.check_run(owner)
        run = self._busy[owner, thread_id] = Run(owner, thread_id, str(uuid.uuid4()), request.fingerprint, begun_by)
        self._limits.run_started(owner, run.run_id)
        if request.idempotency_key is not None:
            self._keyed[owner, request.idempotency_key] = run
        return run

    def _unclaim(self, run: Run, key: str | None) -> None:
        del self._busy[run.owner, run.thread_id]
        self._repeats.forget(run)
        self._limits.run_ended(run.owner, run.run_id, 0)
        if key is not None:
            del self._keyed[run.owner, key]

    async def _begin(self, run: Run, request: ChatRequest) -> None:
        if request.model not in (None, *self._models):
            raise UnknownModel(self._models)  # here, as a request that finds its run needs no model
        await self._check_stored_bytes(run.owner)
        head = ThreadHead()
        if request.thread_id is not None:
            with self._turns.starts.lookup():
                head = await self._store.head(run.owner, request.thread_id, request.checkpoint_id)
            if head.running is not None:
                raise ThreadBusy(head.running, head.running_begun_by)
        if self.draining:  # since the head was read: `drain` does not wait for a run that begins later
            raise Draining
        run.started = RunStarted(
            owner=run.owner,
            thread_id=run.thread_id,
            run_id=run.run_id,
            seq=head.last_seq + 1,
            message=request.message,
            model=request.model or self._models[0],
            started_at=self._store.now(),
            idempotency_key=request.idempotency_key,
            fingerprint=request.fingerprint,
            lost=[(lost.run_id, lost.position) for lost in head.lost],
            parent_run_id=head.parent_run_id,
            begun_by=run.begun_by,
        )
        claimed = self._store.start_run(run.started)
        claimed.add_done_callback(lambda claim: run.stop(StopCause.CONFLICT) if _is_lost(claim) else None)
        self._runs[run.run_id] = run
        self._turns.starts.run_started()
        run.begin(Start(run.thread_id, run.run_id, run.started.model))
        thread = (run.owner, run.thread_id)
        turn = Turn(*thread, run.run_id, request.message, head.checkpoint_id, head.lost, head.branches, request.model)
        task = asyncio.create_task(self._run_to_end(run, run.started, turn), name=f"run {run.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_to_end(self, run: Run, started: RunStarted, turn: Turn) -> None:
        """From the first step to the last event. The thread is free again before a reader sees that event."""
        outcome = await self._turns.carry_out(run, turn)
        try:
            last = await self._turns.save(run, started, outcome)
        finally:
            del self._busy[run.owner, run.thread_id]
            self._limits.run_ended(run.owner, run.run_id, outcome.tokens)
            self._ended.add(run)
        run.finish(last)

    def _forget(self, run: Run) -> None:
        """It leaves memory."""
        del self._runs[run.run_id]
        self._repeats.forget(run)
        if run.started is not None and run.started.idempotency_key is not None:
            del self._keyed[run.owner, run.started.idempotency_key]

    async def _renew_and_save(self) -> NoReturn:
        """Twice a second. Without it a crash loses whole runs, and other processes take their threads."""
        while True:
            await asyncio.sleep(PROGRESS_S)
            await self._renew_leases()
            self._save_progress()

    async def _renew_leases(self) -> None:
        asked_at = time.monotonic()
        if self._busy and asked_at - self._renewed_at > LEASE_RENEWAL_S:
            with suppress(Refusal):  # the store is unavailable; the next try is half a second later
                await self._store.renew_leases([run.run_id for run in self._busy.values()])
                self._renewed_at = asked_at

    def _save_progress(self) -> None:
        """Save the progress of all runs since the last time, together. A run's end saves the rest of it."""
        unsaved = [(run, progress) for run in self._busy.values() if (progress := run.progress()) is not None]
        if unsaved and self._store.save_progress([progress for _, progress in unsaved]):
            for run, _ in unsaved:
                run.mark_kept()

    # Ending

    async def drain(self) -> None:
        """Start no more runs. Let those in progress finish for DRAIN_TIMEOUT_S, then stop them, and wait for them."""
        self._turns.shutting_down = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_timeout_s)
        self.stop_all()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop_all(self) -> None:
        """Stop the runs in progress. They keep the pieces that they have."""
        for run in list(self._busy.values()):
            run.stop(StopCause.SHUTDOWN)

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._supervise("progress", self._renew_and_save), name="progress")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()
        self._keeper.cancel()
        await asyncio.wait({self._keeper})
        for run in self._ended:
            self._ended.drop(run)


def _is_lost(claim: asyncio.Future[None]) -> bool:
    return not claim.cancelled() and claim.exception() is not None


def _again(owner: str, stored: StoredRun) -> Run:
    """The stored run. Raises ThreadBusy if another process has it in progress."""
    if stored.last is None:
        raise ThreadBusy(stored.run_id, stored.begun_by)
    return Run.again(owner, stored, stored.last)


def _check_same(earlier: Run | StoredRun, request: ChatRequest, reads: str | None) -> None:
    """Raises KeyReused unless the run that has the request's idempotency key may be its answer."""
    if earlier.fingerprint != request.fingerprint or reads not in (None, earlier.begun_by):
        raise KeyReused
