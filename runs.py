"""Runs: an append-only event log each, cursors into it, and the registry that starts, follows and ends them.

The agent appends to the log; every stream, the first as well as one that comes back, reads it from its own position at
its own pace. A reader that is slow or gone costs the run nothing; what arrived together leaves in one write.
No HTTP, SQL or LangGraph in sight: the agent and the store are callables.
"""

import asyncio
import logging
import time
import uuid
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from chat import (
    ChatRequest,
    Conflict,
    Doc,
    End,
    Error,
    Item,
    Message,
    Outcome,
    Piece,
    RunEnded,
    RunFailure,
    RunProgress,
    RunStarted,
    RunStatus,
    Start,
    StopCause,
    StoredRun,
    StreamMode,
    ThreadHead,
    Turn,
)
from sse import HEARTBEAT, RETRY, last_frame, parse_frame, piece_frame, start_frame, with_content

log = logging.getLogger("draftstream.runs")

FRAMES_A_WRITE = 512  # bounds the copy that a reader with a long backlog makes
LINGER_S = 60.0  # an ended run stays in memory this long, for a client whose connection broke near the end
LINGERING_RUNS = 1000
# An end waits no longer for its commit where there is a journal, or nothing to acknowledge; or at a shutdown, which
# ends within DRAIN_TIMEOUT_S and five seconds: this, and what empties the queue.
IMPATIENT_SAVE_S = 1.0
RENEWAL_S = 2.5  # of a lease of 10 s
PROGRESS_S = 0.5  # what runs have said is saved this often, so that a crash loses less than a second of it

Emit = Callable[[Piece], None]
Agent = Callable[[Turn, Emit, asyncio.Future[StopCause]], Awaitable[Outcome]]
"""Carries out a turn, calling `emit` with each piece. When the future resolves it stops soon, and keeps what it has."""


class ThreadBusy(Exception):
    """The thread has a run in progress."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id


class TooManyRuns(Exception):
    """As many runs are in progress as MAX_RUNS allows."""


class Draining(Exception):
    """The service is going down and starts no more runs."""


class UnknownCheckpoint(Exception):
    """The thread has no such checkpoint."""


class KeyReused(Exception):
    """The idempotency key came before with another request."""


# ---------------------------------------------------------------------------------------------------------------
# A run's log, and a reader's place in it


class Cursor:
    """A reader of a run: iterate for what to write next, as bytes; `close` ends the iteration from outside.

    `on_stuck` is called when the reader has not come back for more in one to two heartbeats: it takes nothing.
    """

    __slots__ = (
        "_after",
        "_closed",
        "_heard",
        "_heartbeat_s",
        "_loop",
        "_mode",
        "_next",
        "_on_stuck",
        "_pending",
        "_run",
        "_taken",
        "_timer",
        "_waiter",
    )

    def __init__(
        self, run: "Run", after: int | None, mode: StreamMode, heartbeat_s: float, on_stuck: Callable[[], None]
    ) -> None:
        self._run = run
        self._mode = mode
        self._heartbeat_s = heartbeat_s
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self._after = after or 0
        rest_of_piece, self._next = run.seek(after) if mode == "pieces" else (b"", 0 if after is None else 1)
        self._pending = RETRY + rest_of_piece
        self._waiter: asyncio.Future[bool] | None = None
        self._heard = self._taken = self._loop.time()
        self._timer = self._loop.call_later(heartbeat_s, self._on_silence)
        self._closed = False
        run.readers.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._closed:
            if self._mode == "pieces":
                frames, self._next = self._run.frames_from(self._next)
            else:
                frames, self._next = self._run.items_from(self._next, self._after)
            if frames or self._pending:
                frames, self._pending = self._pending + frames, b""
                self._taken = self._loop.time()
                return frames
            if self._run.ended:
                self.close()
                break
            self._waiter = self._loop.create_future()
            if not await self._waiter:
                self._taken = self._loop.time()
                return HEARTBEAT
        raise StopAsyncIteration

    def wake(self) -> None:
        """There is more in the log."""
        self._heard = self._loop.time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        self._run.readers.discard(self)
        self.wake()

    def _on_silence(self) -> None:
        # One timer a reader, moved on when it fires and not with each piece.
        now = self._loop.time()
        silent_until = self._heard + self._heartbeat_s
        waiting = self._waiter is not None and not self._waiter.done()
        if not waiting and self._taken + self._heartbeat_s <= now:
            self._on_stuck()
        if silent_until <= now:
            silent_until = now + self._heartbeat_s
            if waiting and self._waiter is not None:
                self._waiter.set_result(False)
        self._timer = self._loop.call_at(silent_until, self._on_silence)


@dataclass(slots=True)
class OpenItem:
    """A message or document while its pieces arrive."""

    first: Piece
    begin: int  # the positions before its first piece, and of its last
    end: int
    pieces: list[str] = field(default_factory=list)
    kept: int = 0  # so many of the pieces are on their way to the database

    def unkept(self) -> Piece:
        return with_content(self.first, "".join(self.pieces[self.kept :]))

    def whole(self) -> Piece:
        return with_content(self.first, "".join(self.pieces))

    def record(self, *, complete: bool) -> Item:
        piece = self.whole()
        item: Item = {
            "item": piece.item,
            "role": "assistant",
            "type": "message",
            "content": piece.content,
            "complete": complete,
        }
        if isinstance(piece, Doc):
            item |= {"type": "doc", "doc_id": piece.doc_id, "title": piece.title, "version": piece.version}
        return item


class Run:
    """One answer to one message: the log of its events as frames, and the texts of its items."""

    def __init__(self, owner: str, thread_id: str, run_id: str, fingerprint: str | None = None) -> None:
        self.owner = owner
        self.fingerprint = fingerprint
        # Resolves to this run, or to the one that its idempotency key stands for.
        self.begun: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self.started: RunStarted | None = None
        self.closing = False  # its end is on its way to the database
        self.thread_id = thread_id
        self.run_id = run_id
        self.items: list[OpenItem] = []
        self.readers: set[Cursor] = set()
        self.stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._id = run_id.encode()
        self._frames: list[bytes] = []
        self._positions: list[int] = []  # of each frame; the last one has its piece's, too
        self._position = 0

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running"
        return f"<Run {self.run_id} {state}, {len(self._frames)} events, {len(self.readers)} readers>"

    @classmethod
    def again(cls, owner: str, stored: StoredRun) -> "Run":
        """A run that has ended, out of what was stored of it."""
        run = cls(owner, stored.thread_id, stored.run_id, stored.fingerprint)
        run.begin(Start(stored.thread_id, stored.run_id, stored.model))
        for item in stored.items:
            if item["type"] == "doc":
                run.emit(Doc(item["content"], item["item"], item["doc_id"], item["title"], item["version"]))
            else:
                run.emit(Message(item["content"], item["item"]))
        run.finish(stored.last)
        return run

    # Appending

    def begin(self, start: Start) -> None:
        self._append(start_frame(self._id, start))

    def emit(self, piece: Piece) -> None:
        """Append a piece. Items come one after the other, never mixed."""
        if not self.items or self.items[-1].first.item != piece.item:
            self.items.append(OpenItem(piece, self._position, self._position))
        self._position += len(piece.content)
        self.items[-1].pieces.append(piece.content)
        self.items[-1].end = self._position
        self._append(piece_frame(self._id, self._position, piece))

    def finish(self, last: End | Error) -> None:
        self.ended = True
        self._append(last_frame(self._id, last))

    def _append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._positions.append(self._position)
        for reader in list(self.readers):
            reader.wake()

    def stop(self, cause: StopCause) -> None:
        """Let the agent stop; the first cause counts."""
        if not self.stopping.done():
            self.stopping.set_result(cause)

    def progress(self) -> RunProgress | None:
        """What was said since `mark_kept`; None if nothing was, or if the run's end is on its way to the database."""
        if self.started is None or self.closing:
            return None
        pieces = [(item.end, item.unkept()) for item in self.items if item.kept < len(item.pieces)]
        return RunProgress(self.started, pieces) if pieces else None

    def mark_kept(self) -> None:
        for item in self.items:
            item.kept = len(item.pieces)

    # Reading

    def follow(
        self, after: int | None, *, mode: StreamMode = "pieces", heartbeat_s: float, on_stuck: Callable[[], None]
    ) -> Cursor:
        """Read from the start (None), or after the first `after` code points of the content."""
        return Cursor(self, after, mode, heartbeat_s, on_stuck)

    def seek(self, after: int | None) -> tuple[bytes, int]:
        """What is left of the piece that `after` cuts, as a frame, and the index of the frame to go on with."""
        if after is None or not self._frames:
            return b"", 0
        index = max(bisect_right(self._positions, after), 1)
        if self.ended and index == len(self._frames):
            return b"", index - 1  # the last frame shares its position with the last piece
        begins = self._positions[index - 1]
        if begins == after or index == len(self._frames):
            return b"", index
        piece = parse_frame(self._frames[index])
        if not isinstance(piece, Doc | Message):
            return b"", index
        rest = piece.content[after - begins :]
        return piece_frame(self._id, self._positions[index], with_content(piece, rest)), index + 1

    def frames_from(self, index: int) -> tuple[bytes, int]:
        """What stands in the log from `index` on, as bytes, and the index after it."""
        frames = self._frames[index : index + FRAMES_A_WRITE]
        return b"".join(frames), index + len(frames)

    def items_from(self, index: int, after: int) -> tuple[bytes, int]:
        """The same of another log: the start, each item once it is whole, less what is not `after`, the last frame."""
        whole = len(self.items) if self.ended else max(len(self.items) - 1, 0)
        frames = self._frames[:1] if index == 0 else []
        for item in self.items[max(index - 1, 0) : whole]:
            if item.end > after:
                piece = item.whole()
                rest = with_content(piece, piece.content[max(after - item.begin, 0) :])
                frames.append(piece_frame(self._id, item.end, rest))
        if self.ended and index <= whole + 1:
            frames.append(self._frames[-1])
        return b"".join(frames), whole + 1 + self.ended if self._frames else 0


# ---------------------------------------------------------------------------------------------------------------
# The registry


class Runs:
    """Starts runs, one a thread, and owns their tasks: leaving the block ends them all and waits for it."""

    def __init__(
        self,
        *,
        agent: Agent,
        model: str,
        head: Callable[[str, str, str | None], Awaitable[ThreadHead]],
        start_run: Callable[[RunStarted], asyncio.Future[None]],
        end_run: Callable[[RunEnded], Awaitable[asyncio.Future[None]]],
        renew_leases: Callable[[Sequence[str]], bool],
        journal: Callable[[str], Awaitable[bool]] | None,
        save_progress: Callable[[RunProgress], bool],
        stored_run: Callable[[str, str | None, str | None], Awaitable[StoredRun | None]],
        max_runs: int,
        run_timeout_s: float,
        save_timeout_s: float,
        drain_timeout_s: float,
    ) -> None:
        self._agent = agent
        self._model = model
        self._head = head
        self._start_run = start_run
        self._end_run = end_run
        self._renew_leases = renew_leases
        self._journal = journal
        self._save_progress = save_progress
        self._stored_run = stored_run
        self._max_runs = max_runs
        self._run_timeout_s = run_timeout_s
        self._save_timeout_s = save_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._runs: dict[str, Run] = {}  # by run_id; the ended ones linger
        self._busy: dict[tuple[str, str], Run] = {}  # by owner and thread
        self._keyed: dict[tuple[str, str], Run] = {}  # by owner and idempotency key
        self._tasks: set[asyncio.Task[None]] = set()
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self.draining = False

    def __repr__(self) -> str:
        return f"<Runs {len(self._busy)} in progress, {len(self._lingering)} ended{', draining' * self.draining}>"

    @property
    def full(self) -> bool:
        return len(self._busy) >= self._max_runs

    def get(self, owner: str, run_id: str) -> Run | None:
        """The run, if it is the owner's and still in memory."""
        run = self._runs.get(run_id)
        return run if run is not None and run.owner == owner else None

    async def find(self, owner: str, run_id: str) -> Run | None:
        """The run, in memory or as it is stored. A client can't tell which it was."""
        run = self.get(owner, run_id)
        if run is not None:
            return run
        stored = await self._stored_run(owner, run_id, None)
        return Run.again(owner, stored) if stored is not None else None

    async def start(self, owner: str, request: ChatRequest) -> Run:
        """Start a run for the message; its `start` is in the log when this returns.

        A new thread (no thread_id) waits for nothing. A named one is looked up first, as what can be refused must be
        refused before the first byte. Raises Draining, TooManyRuns, ThreadBusy, UnknownCheckpoint, and what the
        callables raise. A request with an idempotency key that came before gets the run that it got then; raises
        KeyReused if the request was another.
        """
        key = request.idempotency_key
        if key is not None and (claimed := self._keyed.get((owner, key))) is not None:
            return _same(await asyncio.shield(claimed.begun), request)
        run = self._claim(owner, request)
        try:
            stored = await self._stored_run(owner, None, key) if key is not None else None
            if stored is None:
                await self._begin(run, request)
        except BaseException as error:
            self._unclaim(run, key)
            run.begun.set_exception(error if isinstance(error, Exception) else TooManyRuns())
            run.begun.exception()  # those that wait for it with its key hear why; there may be none
            raise
        if stored is None:
            run.begun.set_result(run)
            return run
        self._unclaim(run, key)
        run.begun.set_result(Run.again(owner, stored))
        return _same(run.begun.result(), request)

    async def _begin(self, run: Run, request: ChatRequest) -> None:
        head = ThreadHead(0, has_checkpoint=False)
        if request.thread_id is not None:
            head = await self._head(run.owner, request.thread_id, request.checkpoint_id)
            if head.running is not None:
                raise ThreadBusy(head.running)
            if request.checkpoint_id is not None and not head.has_checkpoint:
                raise UnknownCheckpoint
        run.started = RunStarted(
            owner=run.owner,
            thread_id=run.thread_id,
            run_id=run.run_id,
            seq=head.last_seq + 1,
            message=request.message,
            model=self._model,
            started_at=time.time(),
            idempotency_key=request.idempotency_key,
            fingerprint=request.fingerprint if request.idempotency_key is not None else None,
            lost=[lost.run_id for lost in head.lost],
        )
        claimed = self._start_run(run.started)
        claimed.add_done_callback(lambda claim: run.stop(StopCause.CONFLICT) if _is_lost(claim) else None)
        self._runs[run.run_id] = run
        run.begin(Start(run.thread_id, run.run_id, self._model))
        turn = Turn(run.owner, run.thread_id, run.run_id, request.message, request.checkpoint_id, head.lost)
        task = asyncio.create_task(self._carry_out(run, run.started, turn), name=f"run {run.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _unclaim(self, run: Run, key: str | None) -> None:
        del self._busy[run.owner, run.thread_id]
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
        run = self._busy[owner, thread_id] = Run(owner, thread_id, str(uuid.uuid4()), request.fingerprint)
        if request.idempotency_key is not None:
            self._keyed[owner, request.idempotency_key] = run
        return run

    async def _carry_out(self, run: Run, started: RunStarted, turn: Turn) -> None:
        timer = asyncio.get_running_loop().call_later(self._run_timeout_s, run.stop, StopCause.TIMEOUT)
        try:
            outcome = await self._agent_outcome(run, turn)
        finally:
            timer.cancel()
        try:
            run.finish(await self._save(run, started, outcome))
        finally:
            del self._busy[run.owner, run.thread_id]
            self._linger(run)

    async def _agent_outcome(self, run: Run, turn: Turn) -> Outcome:
        try:
            return await self._agent(turn, run.emit, run.stopping)
        except RunFailure as failure:
            error = failure
        except Exception:
            log.exception("run %s failed", run.run_id)
            error = RunFailure("internal", "Something went wrong on our side; it has been logged.", retryable=True)
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
        if error is not None:
            log.warning("run %s: %s (%s)", run.run_id, error.code, error.__cause__ or "no cause")
        items = [item.record(complete=item.first.item not in outcome.unfinished) for item in run.items]
        last = Error(error.content, error.code, error.retryable) if error else None
        run.closing = True
        saved = await self._end_run(
            RunEnded(
                started=started,
                status=status,
                items=items,
                reason=outcome.reason,
                error=last,
                usage=outcome.usage,
                checkpoint_id=outcome.checkpoint_id,
                ended_at=time.time(),
            )
        )
        patience_s = self._save_timeout_s
        if self.draining or self._journal is not None or last is not None:
            patience_s = min(patience_s, IMPATIENT_SAVE_S)
        await asyncio.wait({saved}, timeout=patience_s)
        journaled = False
        if not saved.done() and self._journal is not None:
            journaled = await self._journal(run.run_id)
        if last is not None or outcome.reason is None:
            return last or Error("The run ended without a reason.", "internal", retryable=True)
        if saved.done() and isinstance(refused := saved.exception(), RunFailure):
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

    async def _keep_progress(self) -> None:
        """Save what runs have said, in batches; a run's end does it for the rest. And renew their leases."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_S)
            if self._busy and time.monotonic() - renewed > RENEWAL_S:
                run_ids = [run.run_id for run in self._busy.values()]
                renewed = time.monotonic() if self._renew_leases(run_ids) else renewed
            for run in self._busy.values():
                progress = run.progress()
                if progress is not None and self._save_progress(progress):
                    run.mark_kept()

    # Ending

    async def drain(self) -> None:
        """Start no more; let what runs finish for a while, stop the rest, and wait until all has ended."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_timeout_s)
        for run in list(self._busy.values()):
            run.stop(StopCause.SHUTDOWN)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_progress(), name="progress")
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
