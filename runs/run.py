"""A run is an append-only event log, and each of its readers is a cursor into the log.

The agent appends to the log. Every stream, the first as well as one that resumes, reads it from its own position at its
own pace. A slow or absent reader costs the run nothing, and pieces that arrive together leave in one write.
"""

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from chat import Doc, End, Error, Item, Message, Piece, RunProgress, RunStarted, Start, StopCause, StoredRun, StreamMode
from runs.sse import HEARTBEAT, RETRY, last_frame, parse_frame, piece_frame, start_frame, with_content

log = logging.getLogger("draftstream.runs")

FRAMES_A_WRITE = 512  # bounds the copy that is made for a reader with a long backlog


class Cursor:
    """A reader of a run. Iterate it for the next bytes to write; `close` ends the iteration from outside.

    While the iteration waits, new frames go to `write_now`: that spares the iterating task a step for each token. Where
    `write_now` returns False, because it would have to wait, the iteration yields these frames. `on_stuck` is called
    when the reader has taken nothing for one to two heartbeats.
    """

    __slots__ = (
        "_after",
        "_closed",
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
        "_write_now",
    )

    def __init__(
        self,
        run: "Run",
        after: int | None,
        *,
        mode: StreamMode,
        heartbeat_s: float,
        on_stuck: Callable[[], None],
        write_now: Callable[[bytes], bool],
    ) -> None:
        self._run = run
        self._mode = mode
        self._heartbeat_s = heartbeat_s
        self._on_stuck = on_stuck
        self._write_now = write_now
        self._loop = asyncio.get_running_loop()
        self._after = after or 0
        rest_of_piece, self._next = run.seek(after) if mode == "pieces" else (b"", 0 if after is None else 1)
        self._pending = RETRY + rest_of_piece
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
                self.close()
                break
            self._waiter = self._loop.create_future()
            more = await self._waiter
            self._waiter = None
            if not more:
                return HEARTBEAT
        raise StopAsyncIteration

    def _more(self) -> tuple[bytes, int]:
        if self._mode == "pieces":
            return self._run.frames_from(self._next)
        return self._run.items_from(self._next, self._after)

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
                count = following - self._next
                self._next = following
                self._taken = self._loop.time()
                if count < FRAMES_A_WRITE:  # else there may be more, for the iteration
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
            if self._waiter is None:
                self._on_stuck()
            self._go_on(more=False)
        self._timer = self._loop.call_at(silent_until, self._on_silence)


def _by_the_iteration(_: bytes) -> bool:
    """The `write_now` of a reader whose own has failed."""
    return False


@dataclass(slots=True)
class OpenItem:
    """A message or document while its pieces arrive."""

    first: Piece
    begin: int  # the position before its first piece; `end` is that of its last
    end: int
    pieces: list[str] = field(default_factory=list)
    kept: int = 0  # the number of pieces that are on their way to the database

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
    """The answer to one message: the log of its events as frames, and the texts of its items."""

    def __init__(self, owner: str, thread_id: str, run_id: str, fingerprint: str | None = None) -> None:
        self.owner = owner
        self.fingerprint = fingerprint
        # Resolves to this run, or to an earlier one with the same idempotency key.
        self.begun: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self.started: RunStarted | None = None
        self.closing = False  # its end is on its way to the database
        self.thread_id = thread_id
        self.run_id = run_id
        self.items: list[OpenItem] = []
        self.readers: set[Cursor] = set()
        self.stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.begun_at = self.first_piece_at = 0.0  # seconds of the monotonic clock; 0 before the event
        self._id = run_id.encode()
        self._frames: list[bytes] = []
        self._positions: list[int] = []  # of each frame; the last frame has the position of the last piece
        self._position = 0

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running"
        return f"<Run {self.run_id} {state}, {len(self._frames)} events, {len(self.readers)} readers>"

    @classmethod
    def again(cls, owner: str, stored: StoredRun, last: End | Error) -> "Run":
        """An ended run, as it was stored."""
        run = cls(owner, stored.thread_id, stored.run_id, stored.fingerprint)
        run.begin(Start(stored.thread_id, stored.run_id, stored.model))
        run.emit([_piece_of(item) for item in stored.items])
        run.finish(last)
        return run

    # Appending

    def begin(self, start: Start) -> None:
        self.begun_at = time.monotonic()
        self._append(start_frame(self._id, start))

    def emit(self, pieces: Sequence[Piece]) -> None:
        """Append pieces that arrived together. Items come one after the other, never mixed."""
        for piece in pieces:
            if not self.items:
                self.first_piece_at = time.monotonic()
            if not self.items or self.items[-1].first.item != piece.item:
                self.items.append(OpenItem(piece, self._position, self._position))
            item = self.items[-1]
            self._position += len(piece.content)
            item.pieces.append(piece.content)
            item.end = self._position
            self._append(piece_frame(self._id, self._position, piece))
        self._wake_readers()

    def finish(self, last: End | Error) -> None:
        self.ended = True
        self._append(last_frame(self._id, last))
        self._wake_readers()

    def _append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._positions.append(self._position)

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
        pieces = [(item.end, item.unkept()) for item in self.items if item.kept < len(item.pieces)]
        return RunProgress(self.started, pieces) if pieces else None

    def mark_kept(self) -> None:
        for item in self.items:
            item.kept = len(item.pieces)

    # Reading

    def follow(
        self,
        after: int | None,
        *,
        mode: StreamMode = "pieces",
        heartbeat_s: float,
        on_stuck: Callable[[], None],
        write_now: Callable[[bytes], bool],
    ) -> Cursor:
        """Read from the start (None), or after the first `after` code points of the content. See Cursor."""
        return Cursor(self, after, mode=mode, heartbeat_s=heartbeat_s, on_stuck=on_stuck, write_now=write_now)

    def seek(self, after: int | None) -> tuple[bytes, int]:
        """The rest of the piece that `after` cuts, as a frame, and the index of the next frame."""
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
        """The frames from `index` on, at most FRAMES_A_WRITE of them, and the index after them."""
        frames = self._frames[index : index + FRAMES_A_WRITE]
        return b"".join(frames), index + len(frames)

    def items_from(self, index: int, after: int) -> tuple[bytes, int]:
        """The same in items mode: the start, the text after `after` of each item that is whole, the last frame."""
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


def _piece_of(item: Item) -> Piece:
    if item["type"] == "doc":
        return Doc(item["content"], item["item"], item["doc_id"], item["title"], item["version"])
    return Message(item["content"], item["item"])
