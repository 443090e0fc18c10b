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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from chat import (
    ChatRequest,
    Doc,
    End,
    Error,
    Item,
    Message,
    Outcome,
    Piece,
    RunEnded,
    RunFailure,
    RunStarted,
    RunStatus,
    Start,
    StopCause,
    StreamMode,
    ThreadHead,
    Turn,
)
from sse import HEARTBEAT, RETRY, last_frame, parse_frame, piece_frame, start_frame, tail

log = logging.getLogger("draftstream.runs")

FRAMES_A_WRITE = 512  # bounds the copy that a reader with a long backlog makes
LINGER_S = 60.0  # an ended run stays in memory this long, for a client whose connection broke near the end
LINGERING_RUNS = 1000

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


# ---------------------------------------------------------------------------------------------------------------
# A run's log, and a reader's place in it


class Cursor:
    """A reader of a run: iterate for what to write next, as bytes; `close` ends the iteration from outside."""

    __slots__ = (
        "_closed",
        "_heard",
        "_heartbeat_s",
        "_loop",
        "_mode",
        "_next",
        "_pending",
        "_run",
        "_timer",
        "_waiter",
    )

    def __init__(self, run: "Run", after: int | None, mode: StreamMode, heartbeat_s: float) -> None:
        self._run = run
        self._mode = mode
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        rest_of_piece, self._next = run.seek(after) if mode == "pieces" else (b"", 0)
        self._pending = RETRY + rest_of_piece
        self._waiter: asyncio.Future[bool] | None = None
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(heartbeat_s, self._on_silence)
        self._closed = False
        run.readers.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._closed:
            frames, self._next = self._run.frames_from(self._next, self._mode)
            if frames or self._pending:
                frames, self._pending = self._pending + frames, b""
                return frames
            if self._run.ended:
                self.close()
                break
            self._waiter = self._loop.create_future()
            if not await self._waiter:
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
        silent_until = self._heard + self._heartbeat_s
        if silent_until <= self._loop.time():
            silent_until = self._loop.time() + self._heartbeat_s
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(False)
        self._timer = self._loop.call_at(silent_until, self._on_silence)


@dataclass(slots=True)
class OpenItem:
    """A message or document while its pieces arrive."""

    first: Piece
    end: int  # the position of its last piece
    pieces: list[str] = field(default_factory=list)

    def whole(self) -> Piece:
        content = "".join(self.pieces)
        if isinstance(self.first, Doc):
            return Doc(content, self.first.item, self.first.doc_id, self.first.title, self.first.version)
        return Message(content, self.first.item)

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

    def __init__(self, owner: str, thread_id: str, run_id: str) -> None:
        self.owner = owner
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

    # Appending

    def begin(self, start: Start) -> None:
        self._append(start_frame(self._id, start))

    def emit(self, piece: Piece) -> None:
        """Append a piece. Items come one after the other, never mixed."""
        self._position += len(piece.content)
        if not self.items or self.items[-1].first.item != piece.item:
            self.items.append(OpenItem(piece, 0))
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

    # Reading

    def follow(self, after: int | None, *, mode: StreamMode = "pieces", heartbeat_s: float) -> Cursor:
        """Read from the start (None), or after the first `after` code points of the content."""
        return Cursor(self, after, mode, heartbeat_s)

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
        return piece_frame(self._id, self._positions[index], tail(piece, after - begins)), index + 1

    def frames_from(self, index: int, mode: StreamMode) -> tuple[bytes, int]:
        """What stands in the log from `index` on, as bytes, and the index after it."""
        if mode == "pieces":
            frames = self._frames[index : index + FRAMES_A_WRITE]
            return b"".join(frames), index + len(frames)
        return self._items_from(index)

    def _items_from(self, index: int) -> tuple[bytes, int]:
        # In this mode the log is: the start, each item once it is whole, the last frame.
        whole = len(self.items) if self.ended else len(self.items) - 1
        frames = []
        if index == 0 and self._frames:
            frames.append(self._frames[0])
        frames += [
            piece_frame(self._id, item.end, item.whole()) for item in self.items[max(index - 1, 0) : max(whole, 0)]
        ]
        if self.ended and index <= len(self.items) + 1:
            frames.append(self._frames[-1])
        return b"".join(frames), index + len(frames)


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
        self._max_runs = max_runs
        self._run_timeout_s = run_timeout_s
        self._save_timeout_s = save_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._runs: dict[str, Run] = {}  # by run_id; the ended ones linger
        self._busy: dict[tuple[str, str], Run] = {}  # by owner and thread
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

    async def start(self, owner: str, request: ChatRequest) -> Run:
        """Start a run for the message; its `start` is in the log when this returns.

        A new thread (no thread_id) waits for nothing. A named one is looked up first, as what can be refused must be
        refused before the first byte. Raises Draining, TooManyRuns, ThreadBusy, UnknownCheckpoint, and what the
        callables raise.
        """
        run = self._claim(owner, request.thread_id or str(uuid.uuid4()))
        try:
            seq = 1
            if request.thread_id is not None:
                head = await self._head(owner, request.thread_id, request.checkpoint_id)
                if request.checkpoint_id is not None and not head.has_checkpoint:
                    raise UnknownCheckpoint
                seq = head.last_seq + 1
            started = RunStarted(owner, run.thread_id, run.run_id, seq, request.message, self._model, time.time())
            self._start_run(started)
        except BaseException:
            del self._busy[owner, run.thread_id]
            raise
        self._runs[run.run_id] = run
        run.begin(Start(run.thread_id, run.run_id, self._model))
        turn = Turn(owner, run.thread_id, run.run_id, request.message, request.checkpoint_id)
        task = asyncio.create_task(self._carry_out(run, started, turn), name=f"run {run.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    def _claim(self, owner: str, thread_id: str) -> Run:
        if self.draining:
            raise Draining
        if (busy := self._busy.get((owner, thread_id))) is not None:
            raise ThreadBusy(busy.run_id)
        if self.full:
            raise TooManyRuns
        run = self._busy[owner, thread_id] = Run(owner, thread_id, str(uuid.uuid4()))
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
        if last is not None or outcome.reason is None:
            return last or Error("The run ended without a reason.", "internal", retryable=True)
        await asyncio.wait({saved}, timeout=self._save_timeout_s)
        if saved.done() and saved.exception() is not None:
            return Error(
                "The database refused this turn for its content; it was set aside.", "unstorable", retryable=False
            )
        return End(outcome.reason, saved.done(), outcome.checkpoint_id, outcome.usage)

    def _linger(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        self._lingering[run.run_id] = loop.call_later(LINGER_S, self._forget, run.run_id)
        while len(self._lingering) > LINGERING_RUNS:
            self._forget(next(iter(self._lingering)))

    def _forget(self, run_id: str) -> None:
        self._lingering.pop(run_id).cancel()
        del self._runs[run_id]

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
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()
        for run_id in list(self._lingering):
            self._forget(run_id)


STOPPED = {
    StopCause.TIMEOUT: RunFailure(
        "run_timeout", "The run took longer than it may; what it has was kept.", retryable=True
    ),
    StopCause.SHUTDOWN: RunFailure("shutting_down", "The service is restarting; what it has was kept.", retryable=True),
}
"""The stops that a client hears of as an error; a person's own cancel is an `end`."""
