"""A provider that plays case files: bytes and waits, on a raw socket, for any number of cases at once.

The last message of a request names its case and its step, "[C01] first". The replies of the case are for its steps
"first" and "again", one for each model call of the turn; any other request is answered "All done.".
"""

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from strict_providers import FAMILIES

Body = Mapping[str, Any]
NAMED = re.compile(r"\[([\w-]+)\] (\S+)")
SCRIPTED = ("first", "again")
WRITE_S = 0.002  # between two chunks, so that they arrive one after the other


@dataclass(frozen=True)
class Reply:
    """`body`: chunks, and seconds to wait. `end`: "ok", "fin" without the end of the body, "reset", or "hang"."""

    body: Sequence[str | bytes | float]
    status: int = 200
    type: str = "text/event-stream"
    end: str = "ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    until_closed: bool = False  # as HTTP/1.0 ends a body


@dataclass(frozen=True)
class Case:
    name: str
    messages: Sequence[str]
    replies: Sequence[Reply]
    expect: Sequence[Mapping[str, Any]]
    strict: str | None = None

    @classmethod
    def from_json(cls, case: Mapping[str, Any]) -> Self:
        replies = [Reply(**reply) for reply in case["replies"]]
        return cls(case["case"], case["messages"], replies, case["expect"], case.get("strict"))


def delta(_delta: Any = None, finish: object = None, /, **fields: Any) -> str:
    choice = {"index": 0, "delta": fields if _delta is None else _delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


DONE = "data: [DONE]\n\n"
ALL_DONE = Reply((delta(content="All done."), delta({}, "stop"), DONE))


# ---------------------------------------------------------------------------------------------------------------
# The rules of strict providers, as the reports of the published cases quote them: why a request is refused


def alternate(body: Body) -> str | None:
    senders = [message["role"] for message in body["messages"] if message["role"] != "system"]
    twice = [one for one, other in itertools.pairwise(senders) if one == other and one != "tool"]
    return "Conversation roles must alternate user/assistant/user/assistant/..." if twice else None


def anthropic_ids(body: Body) -> str | None:
    ids = [call["id"] for message in body["messages"] for call in message.get("tool_calls") or ()]
    return "messages: `tool_use` ids must be unique" if len(set(ids)) != len(ids) else None


def nostreamopts(body: Body) -> str | None:
    return "Extra inputs are not permitted: stream_options" if "stream_options" in body else None


def filter_poison(body: Body) -> str | None:
    filtered = any("FORBIDDEN" in str(message.get("content")) for message in body["messages"])
    return "The response was filtered" if filtered else None


RULES: Mapping[str, Callable[[Body], str | None]] = {
    **FAMILIES,
    **{rule.__name__: rule for rule in (alternate, anthropic_ids, nostreamopts, filter_poison)},
}


# ---------------------------------------------------------------------------------------------------------------
# The server


class CaseProvider:
    """Runs on a thread of its own."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = {case.name: case for case in cases}
        assert len(self._cases) == len(cases)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="case provider")
        self.base_url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.base_url = f"http://{host}:{port}/v1"

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks) if tasks else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = json.loads(await reader.readexactly(int(length[1]) if length else 0) or b"{}")
                if not await self._answer(self._reply_to(body), reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _reply_to(self, body: Body) -> Reply:
        if "messages" not in body:
            return Reply(["{}"], 404, "application/json")
        messages = body["messages"]
        last = max(place for place, message in enumerate(messages) if message["role"] == "user")
        name, step = NAMED.findall(messages[last]["content"])[-1]
        case = self._cases[name]
        if case.strict and (why := RULES[case.strict](body)) is not None:
            code = "content_filter" if case.strict == "filter_poison" else None
            error = {"error": {"message": why, "type": "invalid_request_error", "code": code}}
            return Reply([json.dumps(error)], 400, "application/json")
        number = sum(message["role"] == "assistant" for message in messages[last + 1 :])
        return case.replies[number] if step in SCRIPTED and number < len(case.replies) else ALL_DONE

    async def _answer(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        version, framing = ("1.0", "close") if reply.until_closed else ("1.1", "chunked")
        headers = {"Content-Type": reply.type, **reply.headers}
        headers |= {"Connection": framing} if reply.until_closed else {"Transfer-Encoding": framing}
        lines = [f"HTTP/{version} {reply.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        for piece in reply.body:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            data = piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogatepass")
            writer.write(data if reply.until_closed else b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(WRITE_S)
        if reply.end == "ok" and not reply.until_closed:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        if reply.end == "hang":
            await reader.read()  # until the client leaves
        if reply.end == "heartbeats":
            while not reader.at_eof():
                writer.write(b"%x\r\n%b\r\n" % (3, b":\n\n"))
                await writer.drain()
                await asyncio.sleep(0.05)
        if reply.end == "reset":
            writer.transport.abort()
        return False
