"""A strict reader of the service's streams: WHATWG's parsing of `text/event-stream`, and what the contract adds to it.

    async with sse_client.post(url, {"message": "Hi"}) as stream:
        async for frame in stream:
            ...
        assert stream.text("message") == "Hello"

Reading to the end checks the whole stream; leaving early checks what came.
"""

import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

LINE_END = re.compile(rb"\r\n|\n|\r(?!$)")
EVENT_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(0|[1-9][0-9]*|end)")
FIELDS = {
    "start": {"type", "thread_id", "run_id", "model"},
    "message": {"type", "content", "item"},
    "doc": {"type", "content", "item", "doc_id", "title", "version"},
    "end": {"type", "reason", "saved", "checkpoint_id", "usage"},
    "error": {"type", "content", "code", "retryable"},
}
LAST = ("end", "error")


@dataclass(frozen=True, slots=True)
class Frame:
    """An event as it came: its id, its JSON, and when (seconds of a monotonic clock)."""

    id: str
    data: dict[str, Any]
    at: float

    @property
    def type(self) -> str:
        return str(self.data["type"])

    @property
    def position(self) -> str:
        return self.id.partition(":")[2]


@dataclass
class Refused(Exception):
    """An answer that is no stream."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["Content-Type"] == "application/problem+json"
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["status"] == self.status
        return problem


@dataclass
class Contract:
    """What a stream has said so far, held against what it may say."""

    after: int | None = None  # code points that the client had before
    whole_items: bool = False
    run_id: str | None = None
    position: int = 0
    frames: list[Frame] = field(default_factory=list)
    items: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, frame: Frame) -> None:
        match = EVENT_ID.fullmatch(frame.id)
        assert match, f"no event id: {frame.id!r}"
        assert self.run_id in (None, match[1]), "another run's frame"
        assert not self.ended, f"a frame after the last: {frame}"
        assert set(frame.data) == FIELDS[frame.type], frame.data
        self.run_id = match[1]
        if not self.frames:
            self._begin(frame)
        else:
            assert frame.type != "start", "a second start"
        if frame.type in LAST:
            assert match[2] == "end", frame.id
        elif frame.type != "start":
            self._add_piece(frame.data, int(match[2]))
        self.frames.append(frame)

    def _begin(self, frame: Frame) -> None:
        if self.after is None:
            assert frame.type == "start", f"the first frame is {frame.data}"
            assert frame.position == "0"
            assert frame.data["run_id"] == self.run_id
        else:
            assert frame.type != "start", "a start for a client that has it"
            self.position = self.after

    def _add_piece(self, data: dict[str, Any], position: int) -> None:
        content, number = data["content"], data["item"]
        assert content, "an empty piece"
        assert position == self.position + len(content), f"{position} after {self.position} and {content!r}"
        self.position = position
        newest = max(self.items, default=number if self.after else -1)
        assert number in (newest, newest + 1), f"item {number} after item {newest}"
        item = self.items.setdefault(number, data | {"content": ""})
        assert not (self.whole_items and item["content"]), "an item in two pieces"
        assert {name: item[name] for name in data if name != "content"} == {
            name: value for name, value in data.items() if name != "content"
        }
        item["content"] += content

    @property
    def ended(self) -> bool:
        return bool(self.frames) and self.frames[-1].type in LAST


class Stream:
    """An answer that is being read; `comments` counts the heartbeats."""

    def __init__(self, response: aiohttp.ClientResponse, after: int | None, *, whole_items: bool) -> None:
        self.response = response
        self.contract = Contract(after, whole_items)
        self.comments = 0
        self.retry_ms: int | None = None
        self._frames = self._read()

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self._frames

    async def next(self) -> Frame:
        return await anext(self._frames)

    async def read_all(self) -> list[Frame]:
        """The rest of the stream."""
        return [frame async for frame in self]

    @property
    def frames(self) -> list[Frame]:
        return self.contract.frames

    @property
    def last(self) -> dict[str, Any]:
        assert self.contract.ended, self.frames[-3:]
        return self.frames[-1].data

    @property
    def run_id(self) -> str:
        assert self.contract.run_id is not None
        return self.contract.run_id

    @property
    def items(self) -> list[dict[str, Any]]:
        """The messages and documents that came, put together."""
        return list(self.contract.items.values())

    def text(self, kind: str = "message") -> str:
        return "".join(item["content"] for item in self.items if item["type"] == kind)

    async def _read(self) -> AsyncIterator[Frame]:
        data: list[str] = []
        event_id = ""
        async for line in lines(self.response.content):
            name, colon, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    frame = Frame(event_id, json.loads("\n".join(data)), time.monotonic())
                    assert self.retry_ms is not None, "no retry before the first frame"
                    self.contract.add(frame)
                    yield frame
                data = []
                event_id = ""
            elif colon and not name:
                self.comments += 1
            elif name == "data":
                assert event_id, "data without an id before it"
                assert not data, "data in two lines"
                data.append(value)
            elif name == "id":
                assert "\0" not in value
                event_id = value
            elif name == "retry":
                assert not self.frames, "retry after the first frame"
                self.retry_ms = int(value)
            else:
                raise AssertionError(f"a field that the contract does not have: {line!r}")
        assert not data, "the stream ends inside of a frame"
        assert self.contract.ended, f"the stream ends without end or error: {self.frames[-3:]}"


async def lines(body: aiohttp.StreamReader) -> AsyncIterator[str]:
    """The lines of the body, cut as WHATWG has it (CR LF, LF or CR), in UTF-8 without mercy."""
    rest = b""
    async for chunk in body.iter_any():
        *whole, rest = LINE_END.split(rest + chunk)
        for line in whole:
            yield line.decode()
    assert not rest, f"an unfinished line at the end: {rest!r}"


@asynccontextmanager
async def _open(method: str, url: str, after: int | None, *, whole_items: bool, **request: Any) -> AsyncIterator[Stream]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with (
        aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
        session.request(method, url, **request) as response,
    ):
        if response.status != 200:
            raise Refused(response.status, response.headers, await response.read())
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache, no-transform"
        assert "Content-Encoding" not in response.headers
        stream = Stream(response, after, whole_items=whole_items)
        yield stream
        if stream.contract.run_id is not None:
            assert response.headers["Location"] == f"/api/runs/{stream.run_id}/events"


@asynccontextmanager
async def post(url: str, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> AsyncIterator[Stream]:
    """`POST /api/chat` of the service at `url`. Raises Refused."""
    whole_items = body.get("stream") == "items"
    async with _open("POST", f"{url}/api/chat", None, whole_items=whole_items, json=body, headers=headers) as stream:
        yield stream


@asynccontextmanager
async def get(url: str, query: dict[str, str], headers: Mapping[str, str] | None = None) -> AsyncIterator[Stream]:
    """`GET /chat` of the service at `url`. Raises Refused."""
    whole_items = query.get("stream") == "items"
    async with _open("GET", f"{url}/chat", None, whole_items=whole_items, params=query, headers=headers) as stream:
        yield stream


@asynccontextmanager
async def follow(url: str, run_id: str, last_event_id: str | None = None) -> AsyncIterator[Stream]:
    """`GET /api/runs/{run_id}/events`, from the start or after a frame. Raises Refused."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    after = None if last_event_id is None else int(last_event_id.partition(":")[2])
    events = f"{url}/api/runs/{run_id}/events"
    async with _open("GET", events, after, whole_items=False, headers=headers) as stream:
        yield stream


async def chat(url: str, message: str, thread_id: str | None = None, **fields: Any) -> Stream:
    """A whole chat: the stream, read to its end."""
    body = {"message": message, **fields} | ({} if thread_id is None else {"thread_id": thread_id})
    async with post(url, body) as stream:
        await stream.read_all()
    return stream
