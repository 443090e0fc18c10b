"""The load: many streams at once over plain sockets. While they run, each read is only kept, with its time.

Their text is checked afterwards, so that the check costs the measurement nothing: every stream must have the provider's whole
text and its end.
"""

import asyncio
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import cast

import orjson
from provider import token

LAST_CHUNK = b"\r\n0\r\n\r\n"


class Incomplete(Exception):
    """A stream was not the one that was asked for, so its cost is no figure."""


@dataclass
class Said:
    """The text of a stream, with its times."""

    start_s: float  # from the request to the first event
    arrivals: list[float]  # of each token, on the loop's clock
    text: str
    ended: bool
    saved: bool  # its `end` says so

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in pairwise(self.arrivals)]


@dataclass
class Stream(asyncio.Protocol):
    """One connection with one request."""

    body: dict[str, object]
    reads: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._now = self._loop.time
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        body = orjson.dumps(self.body)
        head = b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(body) + body)

    def data_received(self, data: bytes) -> None:
        self.times.append(self._now())
        self.reads.append(data)
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        if self._tail == LAST_CHUNK:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(Incomplete(f"cut off after {b''.join(self.reads)[-200:]!r}"))

    async def open(self, port: int) -> "Stream":
        self.asked = self._now()
        await self._loop.create_connection(lambda: self, "127.0.0.1", port)
        return self

    def said(self) -> Said:
        """Decode it. Raises Incomplete."""
        raw = b"".join(self.reads)
        head, _, _ = raw.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Incomplete(raw[:500].decode("utf-8", "replace"))
        read_ends = list(accumulate(map(len, self.reads)))
        body, places = dechunked(raw, len(head) + 4)
        chunk_ends = [end for end, _ in places]
        said = Said(0.0, [], "", ended=False, saved=False)
        texts = []
        at = 0
        for frame in body.split(b"\n\n")[:-1]:
            at += len(frame) + 2
            body_end, raw_end = places[bisect_left(chunk_ends, at)]
            time = self.times[bisect_left(read_ends, raw_end - (body_end - at))]
            said.start_s = said.start_s or time - self.asked
            text = take(frame, said)
            texts.append(text)
            said.arrivals += [time] * text.count(" ")
        said.text = "".join(texts)
        return said


def dechunked(raw: bytes, at: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The body without its HTTP chunks, and where each of these ends: in the body, and in the received bytes."""
    parts = []
    places = []
    length = 0
    while at < len(raw):
        line_end = raw.index(b"\r\n", at)
        size = int(raw[at:line_end], 16)
        parts.append(raw[line_end + 2 : line_end + 2 + size])
        length += size
        places.append((length, line_end + 2 + size))
        at = line_end + 2 + size + 2
    return b"".join(parts), places


def take(frame: bytes, said: Said) -> str:
    """The text in a frame: of the service, of the template, or of the provider itself, which the floor relays."""
    data = next((line[6:] for line in frame.split(b"\n") if line.startswith(b"data: ")), None)
    if data is None:
        return ""
    if data == b"[DONE]":
        said.ended = True
        return ""
    fields = orjson.loads(data)
    if "choices" in fields:
        return "".join(choice["delta"].get("content") or "" for choice in fields["choices"])
    if fields["type"] == "end":
        said.ended, said.saved = True, fields.get("saved", False)
    elif fields["type"] == "error":
        raise Incomplete(str(fields))
    return str(fields["content"]) if fields["type"] == "message" else ""


async def run_streams(
    port: int, wish: str, count: int, *, thread_ids: Sequence[str | None] | None = None, spread_s: float = 0.0
) -> list[Stream]:
    """Open the streams, over so many seconds in random phases, and read them to their ends. Raises Incomplete."""
    phases = random.Random(7)
    threads = thread_ids or [None] * count

    async def run(thread_id: str | None) -> Stream:
        if spread_s:
            await asyncio.sleep(phases.uniform(0, spread_s))
        body: dict[str, object] = {"message": wish}
        if thread_id is not None:
            body["thread_id"] = thread_id
        stream = await Stream(body).open(port)
        await stream.done
        return stream

    ended = await asyncio.gather(*(run(thread_id) for thread_id in threads), return_exceptions=True)
    failed = [outcome for outcome in ended if isinstance(outcome, BaseException)]
    if failed:
        raise Incomplete(f"{len(failed)} of {count} streams, the first: {failed[0]}")
    return [outcome for outcome in ended if isinstance(outcome, Stream)]


def complete(streams: Sequence[Stream], tokens: int) -> list[Said]:
    """The texts of all. Raises Incomplete unless each has every token and its end."""
    text = "".join(token(number) for number in range(tokens))
    all_said = [stream.said() for stream in streams]
    for said in all_said:
        if said.text != text or not said.ended:
            raise Incomplete(f"{len(said.arrivals)} of {tokens} tokens, ended: {said.ended}")
    return all_said
