"""A run is an append-only event log, and each of its readers is a cursor into the log.

The agent appends to the log. Every stream, the first as well as one that resumes, reads it from its own position at its
own pace. A slow or absent reader costs the run nothing, and pieces that arrive together leave in one write.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Self

from chat import Doc, End, Error, Item, Message, Piece, RunProgress, RunStarted, Start, StopCause, StoredRun, StreamMode
from runs.log import BEFORE, BEHIND, Log, OpenItem
from runs.sse import HEARTBEAT, RETRY

log = logging.getLogger("draftstream.runs")

MOST_CHARS = 4_000_000  # of a run: about a million tokens, and four times the longest document that can be exported


class Cursor:
    """A reader of a run. Iterate it for the next bytes to write; `close` ends the iteration from outside.

    While the iteration waits, new frames go to `write_now`: that spares the iterating task a step for each token. Where
    `write_now` returns False, because it would have to wait, the iteration yields these frames.
    """

    __slots__ = (
        "_after",
        "_closed",
        "_heartbeat_s",
        "_loop",
        "_mode",
        "_next",
        "_pending",
        "_resumes_at",
        "_run",
        "_taken",
        "_timer",
        "_waiter",
        "_write_now",
        "finished",
    )

    def __init__(
        self,
        run: "Run",
        after: int | None,
        *,
        mode: StreamMode,
        heartbeat_s: float,
        write_now: Callable[[bytes], bool],
    ) -> None:
        self._run = run
        self._mode = mode
        self._heartbeat_s = heartbeat_s
        self._write_now = write_now
        self._loop = asyncio.get_running_loop()
        self._after = after or 0
        self._resumes_at = after
        self.finished = False  # the reader was given all of the run
        # In items mode it counts the start and the items that were sent, else it is a place in the log.
        self._next = (0 if after is None else 1) if mode == "items" else (BEFORE if after is None else after)
        self._pending = RETRY
        self._waiter: asyncio.Future[bool] | None = None
        self._taken = self._loop.time()  # when the reader last took frames, or asked for some
        self._timer = self._loop.call_later(heartbeat_s, self._on_silence)
        self._closed = False
        run.readers.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._closed:
            frames, self._next = self._more()
            if frames or self._pending:
                frames, self._pending = self._pending + frames, b""
                self._taken = self._loop.time()
                return frames
            if self._run.ended:
                self.finished = self._run.was_read = True
                self.close()
                break
            self._waiter = self._loop.create_future()
            more = await self._waiter
            self._waiter = None
            if not more:
                return HEARTBEAT
        raise StopAsyncIteration

    @property
    def sent(self) -> int | None:
        """The position of the last frame that the reader was given; None: the run's last frame."""
        if self._mode == "items":
            return self._run.log.position_of_items(self._next, self._after)
        return None if self._next == BEHIND else max(0, min(self._next, self._run.log.position))

    def _more(self) -> tuple[bytes, int]:
        if self._mode == "pieces":
            return self._run.log.read(self._next, resumed=self._next == self._resumes_at)
        return self._run.log.read_items(self._next, self._after)

    def wake(self) -> None:
        """Called when the log has grown."""
        if self._waiter is None or self._waiter.done():
            return
        if not self._run.ended:
            frames, following = self._more()
            if not frames:
                return  # in items mode, as the item is not whole yet
            try:
                written = self._write_now(frames)
            except Exception:
                # It must fail neither the run nor the readers behind this one. The iteration will meet the fault, too.
                log.exception("run %s: writing to a reader failed; its own task goes on", self._run.run_id)
                self._write_now = _by_the_iteration
                written = False
            if written:
                self._next = following
                self._taken = self._loop.time()
                if self._mode == "items" or following == self._run.log.place:  # else the iteration has more to do
                    return
        self._go_on(more=True)

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        self._run.readers.discard(self)
        self._go_on(more=True)

    def _go_on(self, *, more: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._taken = self._loop.time()
            self._waiter.set_result(more)

    def _on_silence(self) -> None:
        # Each reader has one timer, which is moved when it fires and not with each piece.
        now = self._loop.time()
        silent_until = self._taken + self._heartbeat_s
        if silent_until <= now:
            silent_until = now + self._heartbeat_s
            self._go_on(more=False)
        self._timer = self._loop.call_at(silent_until, self._on_silence)


def _by_the_iteration(_: bytes) -> bool:
    """The `write_now` of a reader whose own has failed."""
    return False


class Run:
    """The answer to one message: the log of its events as frames, and the texts of its items."""

    def __init__(
        self, owner: str, thread_id: str, run_id: str, fingerprint: str | None = None, begun_by: str | None = None
    ) -> None:
        self.owner = owner
        self.fingerprint = fingerprint
        self.begun_by = begun_by
        # Resolves to this run, or to an earlier one with the same idempotency key.
        self.begun: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self.started: RunStarted | None = None
        self.closing = False  # its end is on its way to the database
        self.thread_id = thread_id
        self.run_id = run_id
        self.log = Log(run_id)
        self.readers: set[Cursor] = set()
        self.stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.was_read = False  # a reader was given its end
        self.stored = False  # its end is committed: the database can be asked for it
        self.begun_at = self.first_piece_at = 0.0  # seconds of the monotonic clock; 0 before the event

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running"
        return f"<Run {self.run_id} {state}, {len(self.log)} frames, {len(self.readers)} readers>"

    @classmethod
    def again(cls, owner: str, stored: StoredRun, last: End | Error) -> "Run":
        """An ended run, as it was stored."""
        run = cls(owner, stored.thread_id, stored.run_id, stored.fingerprint, stored.begun_by)
        run.begin(Start(stored.thread_id, stored.run_id, stored.model))
        run.emit([_piece_of(item) for item in stored.items])
        run.finish(last)
        return run

    @property
    def items(self) -> list[OpenItem]:
        return self.log.items

    # Appending

    def begin(self, start: Start) -> None:
        self.begun_at = time.monotonic()
        self.log.begin(start)

    def emit(self, pieces: Sequence[Piece]) -> None:
        """Append pieces that arrived together. Items come one after the other, never mixed."""
        log = self.log
        if not log.items:
            self.first_piece_at = time.monotonic()
        for piece in pieces:
            log.add(piece)
        self._wake_readers()
        if log.position > MOST_CHARS:
            self.stop(StopCause.LENGTH)

    def finish(self, last: End | Error) -> None:
        self.ended = True
        self.log.close(last)
        self._wake_readers()

    def _wake_readers(self) -> None:
        for reader in self.readers:
            reader.wake()

    def stop(self, cause: StopCause) -> None:
        """Tell the agent to stop. Only the first cause counts."""
        if not self.stopping.done():
            self.stopping.set_result(cause)

    def progress(self) -> RunProgress | None:
        """The pieces since the last `mark_kept`. None if there are none, or if the run's end is queued already."""
        if self.started is None or self.closing:
            return None
        pieces = [(item.end, item.unkept()) for item in self.items if item.kept < item.end]
        return RunProgress(self.started, pieces) if pieces else None

    def mark_kept(self) -> None:
        for item in self.items:
            item.kept = item.end

    # Reading

    def follow(
        self,
        after: int | None,
        *,
        mode: StreamMode = "pieces",
        heartbeat_s: float,
        write_now: Callable[[bytes], bool],
    ) -> Cursor:
        """Read from the start (None), or after the first `after` code points of the content. See Cursor."""
        return Cursor(self, after, mode=mode, heartbeat_s=heartbeat_s, write_now=write_now)


def _piece_of(item: Item) -> Piece:
    if item["type"] == "doc":
        return Doc(item["content"], item["item"], item["doc_id"], item["title"], item["version"])
    return Message(item["content"], item["item"])
