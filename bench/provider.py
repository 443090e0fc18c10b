"""A model's provider on OpenAI's wire, cheap enough to share a core with the load: its chunks are encoded beforehand.

The user's last message says which reply to give, as a query: `tokens=500&rate=50` is 500 tokens at 50 a second. Without a
rate they come as fast as they are read. `hold` falls silent after the first token. `document=6000` first writes a document
of about 6,000 characters with the service's tool. With `stamp` the first token is the time when the whole request had
arrived (nanoseconds of CLOCK_MONOTONIC, which all processes share). Run: `provider.py PORT`.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Iterator
from typing import cast
from urllib.parse import parse_qsl

import orjson
import uvloop

WORDS = (
    "the",
    "parties",
    "agree",
    "that",
    "each",
    "of",
    "them",
    "shall",
    "keep",
    "in",
    "confidence",
    "all",
    "information",
)
TOKENS_A_SLICE = 64  # written at once when flat out
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"cache-control: no-cache\r\nx-request-id: req_bench\r\n\r\n"
)


def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
    """A chunk of the reply with the fields that OpenAI sends, as an HTTP chunk."""
    return http_chunk(
        {
            "id": "chatcmpl-BxQy2Dx0Qb1kUeGm1rNnYzWvQp3Ta",
            "object": "chat.completion.chunk",
            "created": 1790000000,
            "model": "bench",
            "service_tier": "default",
            "system_fingerprint": "fp_bench00000",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
            "usage": None,
        }
    )


def http_chunk(data: dict[str, object]) -> bytes:
    event = b"data: " + orjson.dumps(data) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def token(number: int) -> str:
    """Every token is one word with a space before it, so that they can be counted however they are cut."""
    return " " + WORDS[number % len(WORDS)]


TOKENS = [chunk({"content": token(number)}) for number in range(len(WORDS))]
ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def ending(reason: str, tokens: int) -> bytes:
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    last = {"id": "chatcmpl-BxQy2Dx0Qb1kUeGm1rNnYzWvQp3Ta", "object": "chat.completion.chunk", "model": "bench"}
    return chunk({}, reason) + http_chunk({**last, "created": 1790000000, "choices": [], "usage": usage}) + DONE


def document_call(characters: int) -> bytes:
    """The whole reply that writes a document, its arguments word by word."""
    arguments = ['{"title": "Agreement", "content": "', *(token(number) for number in range(characters // 6)), '"}']
    function = {"name": "write_document", "arguments": ""}
    call = {"index": 0, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
    pieces = [chunk({"role": "assistant", "content": None, "tool_calls": [call]})]
    pieces += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}) for text in arguments]
    return b"".join(pieces) + ending("tool_calls", len(arguments))


class Provider(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = bytearray()
        self._flat_out: Iterator[bytes] = iter(())
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, found, _ = bytes(self._request[:8192]).partition(b"\r\n\r\n")
        if not found:
            return
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        begin = len(head) + len(found)
        if len(self._request) < begin + int(length.partition(b":")[2]):
            return
        arrived = time.monotonic_ns()
        fields = orjson.loads(memoryview(self._request)[begin:])
        self._request = bytearray()
        # The load itself asks with a bare `message`, to measure the provider alone.
        messages = fields.get("messages") or [{"role": "user", "content": fields["message"]}]
        self._answer(messages, arrived)

    def _answer(self, messages: list[dict[str, str]], arrived: int) -> None:
        asked = next(message["content"] for message in reversed(messages) if message["role"] == "user")
        wish = dict(parse_qsl(asked, keep_blank_values=True))
        self._transport.write(HEAD)
        if "document" in wish and messages[-1]["role"] != "tool":
            self._transport.write(document_call(int(wish["document"])))
            return
        self._transport.write(ROLE)
        if "stamp" in wish:
            self._transport.write(chunk({"content": str(arrived)}))
        tokens = int(wish["tokens"])
        if "hold" in wish:
            self._transport.write(TOKENS[0])
        elif "rate" in wish:
            self._began = self._loop.time()
            self._pace(0, tokens, 1 / float(wish["rate"]))
        else:
            self._flat_out = flat_out(tokens)
            self._pump()

    def _pace(self, number: int, tokens: int, period_s: float) -> None:
        if number == tokens:
            self._transport.write(ending("stop", tokens))
            return
        self._transport.write(TOKENS[number % len(TOKENS)])
        due = self._began + (number + 1) * period_s  # of the schedule, so that a late one delays no other
        self._timer = self._loop.call_at(due, self._pace, number + 1, tokens, period_s)

    def _pump(self) -> None:
        while not self._paused and (data := next(self._flat_out, None)) is not None:
            self._transport.write(data)


def flat_out(tokens: int) -> Iterator[bytes]:
    for begin in range(0, tokens, TOKENS_A_SLICE):
        numbers = range(begin, min(begin + TOKENS_A_SLICE, tokens))
        yield b"".join(TOKENS[number % len(TOKENS)] for number in numbers)
    yield ending("stop", tokens)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
