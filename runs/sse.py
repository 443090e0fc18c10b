"""Events as frames of `text/event-stream`, and the positions that their ids carry. Pure, and on the hot path.

A position is a place in the content, not in the frames: the number of code points of all the run's pieces up to and
including this one. So any copy of the text can continue a stream, however its pieces were cut the first time.
"""

import re
from dataclasses import dataclass

import orjson

from chat import RUN_ID, Doc, End, Error, Message, Piece, Start

RETRY = b"retry: 2000\n"  # ms until an EventSource reconnects; goes before a stream's first frame
HEARTBEAT = b":\n\n"
EVENT_STREAM = "text/event-stream"
MEDIA_TYPE = f"{EVENT_STREAM}; charset=utf-8"
END = "end"
EVENT_ID = re.compile(rf"({RUN_ID.pattern}):(0|[1-9][0-9]{{0,14}}|end)")


def piece_frame(run_id: bytes, position: int, piece: Piece, *, first: bool) -> bytes:
    """The frame of a piece whose last code point is the run's `position`-th.

    `first`: it is the first one of its item in a stream. There a document tells its title and version.
    """
    content = orjson.dumps(piece.content)
    if isinstance(piece, Message):
        return b'id: %b:%d\ndata: {"type":"message","content":%b,"item":%d}\n\n' % (
            run_id,
            position,
            content,
            piece.item,
        )
    doc_id = orjson.dumps(piece.doc_id)
    if not first:
        return b'id: %b:%d\ndata: {"type":"doc","content":%b,"item":%d,"doc_id":%b}\n\n' % (
            *(run_id, position, content),
            *(piece.item, doc_id),
        )
    return b'id: %b:%d\ndata: {"type":"doc","content":%b,"item":%d,"doc_id":%b,"title":%b,"version":%d}\n\n' % (
        *(run_id, position, content, piece.item),
        *(doc_id, orjson.dumps(piece.title), piece.version),
    )


def pause(seconds: int) -> bytes:
    """A stream that has nothing but this makes an EventSource come back after that time."""
    return b"retry: %d\n\n" % (1000 * seconds)


def start_frame(run_id: bytes, start: Start) -> bytes:
    data = orjson.dumps({"type": "start", "thread_id": start.thread_id, "run_id": start.run_id, "model": start.model})
    return b"id: %b:0\ndata: %b\n\n" % (run_id, data)


def last_frame(run_id: bytes, last: End | Error) -> bytes:
    data: dict[str, object] = {"type": "end" if isinstance(last, End) else "error"}
    data |= {field: getattr(last, field) for field in last.__slots__}
    if data.get("journaled") is False:
        del data["journaled"]  # sent only where it is true
    return b"id: %b:end\ndata: %b\n\n" % (run_id, orjson.dumps(data))


@dataclass(frozen=True, slots=True)
class EventId:
    """The part of a run that a client has: the first `after` code points, or all of it (None)."""

    run_id: str
    after: int | None

    @classmethod
    def parse(cls, text: str) -> "EventId | None":
        """Read a `Last-Event-ID`. None for a text that is not one of ours."""
        match = EVENT_ID.fullmatch(text)
        if match is None:
            return None
        return cls(match[1], None if match[2] == END else int(match[2]))


def with_content(piece: Piece, content: str) -> Piece:
    """The same piece with another text."""
    if isinstance(piece, Doc):
        return Doc(content, piece.item, piece.doc_id, piece.title, piece.version)
    return Message(content, piece.item)


def content_of(frame: bytes) -> str:
    """The text of the frame of a piece."""
    content: str = orjson.loads(frame[frame.index(b"data: ") + 6 :])["content"]
    return content
