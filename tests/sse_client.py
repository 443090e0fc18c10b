"""A strict reader of our streams: every byte must be of the contract."""

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


class BrokenOff(AssertionError):
    """The stream was cut."""


@dataclass
class Stream:
    """A stream that was read to its end, and held to the contract."""

    status: int
    headers: dict[str, str]
    events: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    comments: int = 0
    problem: Any = None

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def run_id(self) -> str:
        return self.ids[0].split(":")[0]

    @property
    def items(self) -> dict[int, dict[str, Any]]:
        """Each message and document whole, by its number."""
        items: dict[int, dict[str, Any]] = {}
        for event in self.events:
            if event["type"] in ("message", "doc"):
                assert event["content"]
                item = items.setdefault(event["item"], {**event, "content": ""})
                assert {**item, **event, "content": ""} == {**item, "content": ""}, "an item changes in the middle"
                item["content"] += event["content"]
        return items

    @property
    def text(self) -> str:
        return "".join(event["content"] for event in self.events if event["type"] == "message")


def chat(url: str, message: str | None = None, *, headers: dict[str, str] | None = None, **body: Any) -> Stream:
    """POST a message and read the stream to its end; a refusal comes back with its `problem`."""
    fields = body if message is None else {"message": message, **body}
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    return request("POST", f"{url}/api/chat", json.dumps(fields), all_headers)


def request(method: str, url: str, body: str | bytes | None = None, headers: dict[str, str] | None = None) -> Stream:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), body, headers or {})
        answer = connection.getresponse()
        stream = Stream(answer.status, {name.lower(): value for name, value in answer.getheaders()})
        if not stream.headers.get("content-type", "").startswith("text/event-stream"):
            text = answer.read()
            stream.problem = json.loads(text) if text else None
            return stream
        for line_of_event in frames(answer):
            take(stream, line_of_event)
        check(stream, resumed="events" in url or "last-event-id" in {name.lower() for name in headers or {}})
        return stream
    finally:
        connection.close()


def frames(answer: http.client.HTTPResponse) -> Iterator[list[str]]:
    """The frames as they arrive, each as its lines."""
    lines: list[str] = []
    for raw in iter(answer.readline, b""):
        line = raw.decode()
        if not line.endswith("\n"):
            raise BrokenOff("in a line")
        assert "\r" not in line
        if line == "\n":
            yield lines
            lines = []
        else:
            lines.append(line[:-1])
    if lines:
        raise BrokenOff("in a frame")


def take(stream: Stream, lines: list[str]) -> None:
    if lines == [":"]:
        stream.comments += 1
        return
    if not stream.events:
        assert lines[0] == "retry: 2000"
        lines = lines[1:]
    assert len(lines) == 2, lines
    assert lines[0].startswith("id: ")
    assert lines[1].startswith("data: ")
    stream.ids.append(lines[0].removeprefix("id: "))
    stream.events.append(json.loads(lines[1].removeprefix("data: ")))


FIELDS = {
    "start": {"type", "thread_id", "run_id", "model"},
    "message": {"type", "content", "item"},
    "doc": {"type", "content", "item", "doc_id", "title", "version"},
    "end": {"type", "reason", "saved", "checkpoint_id", "usage"},
    "error": {"type", "content", "code", "retryable"},
}


def check(stream: Stream, *, resumed: bool) -> None:
    named: set[int] = set()  # the documents whose title this stream has told
    for event in stream.events:
        unsaved = {"journaled"} if event.get("journaled") is True and event["saved"] is False else set()
        told = {"title", "version"} if event["type"] == "doc" and event["item"] in named else set()
        assert event.keys() - unsaved == FIELDS[event["type"]] - told, event
        if event["type"] == "doc":
            named.add(event["item"])
    kinds = [event["type"] for event in stream.events]
    assert kinds[-1:] in (["end"], ["error"]), "a stream that was cut off"
    assert sum(kind in ("end", "error") for kind in kinds) == 1
    assert {place.split(":")[0] for place in stream.ids} == {stream.run_id}
    assert stream.ids[-1].endswith(":end")
    assert resumed or kinds[0] == "start"
    assert "start" not in kinds[1:]
    numbers = list(stream.items)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True, "items have a gap"
    pieces = [event["item"] for event in stream.events if "item" in event]
    assert pieces == sorted(pieces), "items are interleaved"
    # Where a stream that goes on began shows in its first id: from there each position counts its own content.
    position = 0
    for number, (place, event) in enumerate(zip(stream.ids[:-1], stream.events[:-1], strict=True)):
        length = len(event["content"]) if "item" in event else 0
        if number == 0 and event["type"] != "start":
            position = int(place.split(":")[1]) - length
            assert position >= 0
        position += length
        assert place == f"{stream.run_id}:{position}"
