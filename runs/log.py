"""The log of a run: its events as frames, and the texts of its items. It is on the hot path.

A reader's place in it is a position (see sse.py), and no index: so old frames can be merged. A frame of one token takes
320 bytes here. When MERGE_AT of an item have come, the oldest MERGED of them become one frame with all of their text,
which takes about 20 bytes a token. Every reader gets the same text, and one that is up to date the same frames.
"""

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from chat import Doc, End, Error, Item, Piece, Start
from runs.sse import content_of, last_frame, piece_frame, start_frame, with_content

BEFORE = -1  # the place of a reader that has nothing yet
BEHIND = 2**62  # the place behind the last frame; every position is less
FRAMES_A_READ = 512  # bounds the copy that is made for a reader with a long backlog
MERGED = 64
MERGE_AT = 2 * MERGED  # so that a reader that is up to date finds the frame of each piece
MERGED_CHARS = 1000  # a merged frame is no longer than a piece of one arrival may be
FRAME_BYTES = 150  # in memory, of a frame and its piece beside their texts


@dataclass(slots=True)
class OpenItem:
    """A message or document while its pieces arrive. The pieces before the index `merged` are merged ones."""

    first: Piece
    begin: int  # the position before its first piece; `end` is that of its last
    end: int
    pieces: list[str] = field(default_factory=list)
    merged: int = 0
    kept: int = 0  # the position up to which it is on its way to the database

    def unkept(self) -> Piece:
        missing = self.end - max(self.kept, self.begin)
        parts = []
        for piece in reversed(self.pieces):
            if missing <= 0:
                break
            parts.append(piece[-missing:])
            missing -= len(piece)
        return with_content(self.first, "".join(reversed(parts)))

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


class Log:
    """The frames of the newest item's pieces are the last ones, until `close`."""

    def __init__(self, run_id: str) -> None:
        self.items: list[OpenItem] = []
        self.position = 0
        self.closed = False
        self.place = BEFORE  # of a reader who has all of it
        self._before_last = BEFORE  # the place of a reader who lacks the last frame only
        self._until_merge = MERGE_AT  # so many more pieces of the newest item
        self._id = run_id.encode()
        self._frames: list[bytes] = []
        self._positions = array("q")  # of each frame
        self._text_bytes = 0  # of all frames

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> int:
        """About its bytes in memory. The text of a frame is there once more in its item."""
        return 2 * self._text_bytes + FRAME_BYTES * len(self._frames)

    # Appending

    def begin(self, start: Start) -> None:
        self._append(start_frame(self._id, start), 0)

    def add(self, piece: Piece) -> None:
        items, content = self.items, piece.content
        if not content:
            return  # its frame would have no place of its own, and be read again and again
        if not items or items[-1].first.item != piece.item:
            self._begin_item(piece)
        item = items[-1]
        item.pieces.append(content)
        first = item.end == item.begin
        item.end = self.position = position = self.position + len(content)
        self._append(piece_frame(self._id, position, piece, first=first), position)
        self._until_merge -= 1
        if not self._until_merge:
            self._merge(item)
            self._until_merge = max(1, MERGE_AT - len(item.pieces) + item.merged)

    def _begin_item(self, piece: Piece) -> None:
        if self.items:
            self._merge_rest(self.items[-1])
        self.items.append(OpenItem(piece, self.position, self.position))
        self._until_merge = MERGE_AT

    def close(self, last: End | Error) -> None:
        if self.items:
            self._merge_rest(self.items[-1])
        self.closed = True
        self._append(last_frame(self._id, last), BEHIND)

    def _append(self, frame: bytes, position: int) -> None:
        self._frames.append(frame)
        self._positions.append(position)
        self._text_bytes += len(frame)
        self._before_last = self.place
        self.place = position

    def _merge_rest(self, item: OpenItem) -> None:
        """Of a long item, at its end."""
        while item.merged and item.merged < len(item.pieces):
            self._merge(item)

    def _merge(self, item: OpenItem) -> None:
        """Merge the oldest frames of the newest item that are not merged."""
        begin = end = item.merged
        chars = 0
        while end < len(item.pieces) and end - begin < MERGED and chars + len(item.pieces[end]) <= MERGED_CHARS:
            chars += len(item.pieces[end])
            end += 1
        item.merged += 1
        if end - begin < 2:
            return
        first = len(self._frames) - len(item.pieces) + begin  # the index of the oldest frame
        frames = slice(first, first + end - begin)
        text = "".join(item.pieces[begin:end])
        position = self._positions[frames.stop - 1]
        frame = piece_frame(self._id, position, with_content(item.first, text), first=begin == 0)
        self._text_bytes += len(frame) - sum(map(len, self._frames[frames]))
        item.pieces[begin:end] = [text]
        self._frames[frames] = [frame]
        self._positions[frames] = array("q", [position])

    # Reading

    def read(self, place: int, *, resumed: bool = False) -> tuple[bytes, int]:
        """The frames behind the place, at most FRAMES_A_READ, and the place behind them.

        `resumed`: nothing before the place was sent in this stream, so it does not know the title of a document yet.
        """
        if place == self._before_last and self._frames and not resumed:
            return self._frames[-1], self.place
        positions = self._positions
        count = len(positions)
        index = min(bisect_right(positions, place), count - self.closed)
        frames = self._frames[index : index + FRAMES_A_READ]
        if not frames or place == BEHIND:
            return b"", place
        if index and (resumed or place > positions[index - 1]):
            frames[0] = self._rest(index, place, resumed=resumed)
        return b"".join(frames), positions[index + len(frames) - 1]

    def _rest(self, index: int, place: int, *, resumed: bool) -> bytes:
        """The frame, without its text up to the place."""
        frame, item = self._frames[index], self._item_at(place)
        if item is None:
            return frame  # the last one
        content = content_of(frame)[place - self._positions[index - 1] :]
        first = resumed or place == item.begin
        return piece_frame(self._id, self._positions[index], with_content(item.first, content), first=first)

    def _item_at(self, place: int) -> OpenItem | None:
        """The item of the text behind the place."""
        index = bisect_right(self.items, place, key=lambda item: item.begin) - 1
        return self.items[index] if index >= 0 and place < self.items[index].end else None

    def position_of_items(self, index: int, after: int) -> int | None:
        """Of a reader in items mode that began at `after` and has read up to `index`; None behind the last frame."""
        if self.closed and index == len(self.items) + 2:
            return None
        whole = self.items[index - 2].end if index > 1 else 0
        return max(whole, min(after, self.position))

    def read_items(self, index: int, after: int) -> tuple[bytes, int]:
        """In items mode: the start, the text after `after` of each item that is whole, the last frame.

        `index` counts these.
        """
        whole = len(self.items) if self.closed else max(len(self.items) - 1, 0)
        frames = self._frames[:1] if index == 0 else []
        for item in self.items[max(index - 1, 0) : whole]:
            if item.end > after:
                piece = item.whole()
                rest = with_content(piece, piece.content[max(after - item.begin, 0) :])
                frames.append(piece_frame(self._id, item.end, rest, first=True))
        if self.closed and index <= whole + 1:
            frames.append(self._frames[-1])
        return b"".join(frames), whole + 1 + self.closed if self._frames else 0
