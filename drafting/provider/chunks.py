"""The chunks in the body of a reply: JSON objects, in whatever framing a provider sends them. Pure, on the hot path.

Errors come in more shapes than chunks: as an event of that name, as a field, without any framing, as the whole body.
Each becomes a chunk whose `error` has what was sent.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from drafting.provider.event_stream import AFTER_DATA, EventReader

Chunk = dict[str, Any]

DONE = b"[DONE]"
ERROR = b"error"
UNNAMED = (b"", b"message")  # the names of an event that EventSource gives to `onmessage`
STRAY_BYTES = 2**24  # the longest body without the framing of a stream
# A chunk that has one of these, and neither choices nor usage, is an error that stands by itself.
ERROR_FIELDS = frozenset({"message", "detail", "error_type", "error_message", "error_code", "errors", "msg", "title"})


class ChunkReader:
    """Feed it with the bytes of a body, however they are cut."""

    def __init__(self) -> None:
        self.done = False  # the provider has said that this is all
        self._events = EventReader()
        self._any = False  # a chunk was read
        self._idle = False  # nothing of an event is held, so that the next bytes may be taken by themselves
        self._stray: list[bytes] = []  # lines that are no field of an event: a body without framing, or a piece of one
        self._stray_bytes = 0

    def feed(self, data: bytes) -> Iterable[Chunk]:
        """The chunks of the next bytes, b"" at their end. Raises ValueError for what is no JSON, or not of this wire.

        Empty events, and lines that the specification ignores, are no chunks: a proxy may send them for a dead model.
        """
        # Nearly every arrival is one whole event of one line.
        if self._idle and data[:7] == b"data: {" and data[-3:] == b"}\n\n" and data.find(b"\n") == len(data) - 2:
            try:
                return (orjson.loads(data[AFTER_DATA]),)
            except orjson.JSONDecodeError:  # it is read with more care
                pass
        return self._read(data)

    def _read(self, data: bytes) -> Iterator[Chunk]:
        self._idle = False
        for name, event in self._events.feed(data) if data else self._events.close():
            if self.done:
                return
            if name is None:
                yield from self._take_stray(event)
            elif event:
                yield self._chunk(name, event, ends=not data)
        if len(self._events.data_lines) > 1:
            yield from self._take_unended()
        if not data and self._stray and not self.done:
            yield from self._take_body()
        self._idle = self._any and self._events.idle and not self._stray

    def _chunk(self, name: bytes, event: bytes, *, ends: bool) -> Chunk:
        try:
            chunk = orjson.loads(event)
        except orjson.JSONDecodeError:
            chunk = self._unusual(name, event, ends=ends)
        if self._stray:
            self._drop_stray()
        self._any = True
        if name == ERROR:
            return _as_error(chunk)
        return chunk if chunk.__class__ is dict else _object_of(chunk)

    def _unusual(self, name: bytes, event: bytes, *, ends: bool) -> Any:  # noqa: ANN401  # JSON
        """[DONE] as an empty chunk; else JSON with bad UTF-8 or unpaired surrogates, which orjson rightly refuses.

        Some providers have "data:" before the first line alone. Half an event at the end of the body is no fault of
        its own: the reply has no finish reason then.
        """
        while event.startswith(b"data:"):  # a proxy has framed events once more
            event = event.removeprefix(b"data:").lstrip()
        if event.strip(b' \t\n"') == DONE:
            self.done = True
            return {}
        try:
            return _json(b"\n".join((event, *self._stray)))
        except ValueError:
            if name == ERROR:
                return event.decode("utf-8", "replace")
            if ends or name not in UNNAMED:  # such as "ping"
                return {}
            raise

    def _take_unended(self) -> Iterator[Chunk]:
        """Some servers end an event with one line end in place of two: then each of its lines is JSON."""
        try:
            orjson.loads(self._events.data_lines[0])
        except orjson.JSONDecodeError:
            return
        name, event = self._events.end_event()
        for line in event.split(b"\n"):
            if line and not self.done:
                yield self._chunk(name, line, ends=False)

    def _take_stray(self, line: bytes) -> Iterator[Chunk]:
        field, _, value = line.partition(b":")
        if field == ERROR:  # llama.cpp
            self._any = True
            yield _as_error(_json_or_text(value))
            return
        self._stray.append(line)
        self._stray_bytes += len(line)
        if self._stray_bytes > STRAY_BYTES:
            raise ValueError("a body without events, or too long an event")
        if self._stray[0].lstrip()[:1] in (b"{", b"[") and (len(self._stray) == 1 or line[:1] in (b"}", b"]")):
            try:
                chunk = _json(b"\n".join(self._stray))
            except ValueError:
                return  # the rest of it may follow
            self._drop_stray()
            self._any = True
            yield _object_of(chunk)

    def _take_body(self) -> Iterator[Chunk]:
        """A body without framing that is no JSON: a page, or a sentence. Beside events it means nothing."""
        body = b"\n".join(self._stray).strip()
        self._drop_stray()
        if body and (not self._any or body[:1] in (b"{", b"<")):
            yield _as_error(_json_or_text(body))

    def _drop_stray(self) -> None:
        self._stray.clear()
        self._stray_bytes = 0


def error_in(chunk: Mapping[str, Any]) -> object:
    """The error in a chunk without choices, None if there is none."""
    if chunk.get("usage"):
        return None
    if chunk.get("object") == "error" or chunk.get("type") == "error" or not ERROR_FIELDS.isdisjoint(chunk):
        return chunk
    answer = chunk.get("base_resp")  # MiniMax
    return answer if isinstance(answer, Mapping) and answer.get("status_code") else None


def _object_of(chunk: object) -> Chunk:
    """A list stands for its only member, as Google sends errors; and a text may be the sign of the end."""
    if isinstance(chunk, list) and len(chunk) == 1:
        chunk = chunk[0]
    if isinstance(chunk, dict):
        return chunk
    if chunk is None:  # a heartbeat
        return {}
    raise ValueError(f"a chunk is a {type(chunk).__name__}")


def _as_error(error: object) -> Chunk:
    if isinstance(error, list) and len(error) == 1:
        error = error[0]
    if isinstance(error, Mapping) and error.get("error"):
        return {"error": error["error"]}
    return {"error": error or "unnamed"}


def _json(data: bytes) -> Any:  # noqa: ANN401  # JSON
    return json.loads(data.decode("utf-8", "replace"))


def _json_or_text(data: bytes) -> object:
    try:
        return _json(data)
    except ValueError:
        return data.decode("utf-8", "replace").strip()
