"""A strict local server on OpenAI's Chat Completions wire. It refuses the requests that OpenAI refuses, and misbehaves on demand.

    server.reply(text("Hello "), text("world"), finish())
    server.reply(tool("write_document", {"title": "NDA", "content": "…"}, cut=3), finish("tool_calls"))
    server.reply(status(429, "rate_limit_exceeded", retry_after=60))

A reply is a list of steps; requests take the replies in order, and "OK." when there are none left.
"""

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from strict_providers import FAMILIES

KNOWN = {
    *(
        "model",
        "messages",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
    ),
    *(
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "user",
        "parallel_tool_calls",
        "store",
    ),
    *("response_format", "logprobs", "top_logprobs", "metadata", "reasoning_effort", "service_tier", "verbosity"),
}
KNOWN_IN_MESSAGE = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call"}
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MUST_ANSWER = (
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
    "The following tool_call_ids did not have response messages: {}"
)
TOO_MANY = "This model's maximum context length is {} tokens. However, your request has {} input tokens."
MUST_FOLLOW = "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."


class Refusal(Exception):
    """A request that OpenAI would refuse."""

    def __init__(
        self, message: str, *, http_status: int = 400, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if http_status < 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        self.http_status = http_status
        self.headers = headers or {}


@dataclass
class Request:
    """A request as the server saw it."""

    body: dict[str, Any]
    headers: dict[str, str]
    connection: object = None  # the client's address
    closed: threading.Event = field(default_factory=threading.Event)  # the client closed its connection before the end


@dataclass
class Stream:
    """The connection that the steps of a reply write to."""

    http: web.Request
    request: Request
    options: dict[str, Any] = field(default_factory=dict)
    response: web.StreamResponse | None = None
    calls: int = 0
    ended: bool = False

    async def write(self, data: bytes) -> None:
        if self.response is None:
            self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await self.response.prepare(self.http)
        size = self.options.get("bytes_a_write")
        if not size:
            await self.response.write(data)
            return
        for start in range(0, len(data), size):
            await self.response.write(data[start : start + size])
            await asyncio.sleep(0)

    async def chunk(self, choices: list[dict[str, Any]], **more: Any) -> None:
        data = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-test",
            "choices": choices,
        }
        end = self.options.get("line_end", "\n")
        body = json.dumps(data | more, ensure_ascii=self.options.get("ascii", False))
        await self.write(f"data: {body}{end}{end}".encode("utf-8", "surrogatepass"))

    async def delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        await self.chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])


Step = Callable[[Stream], Awaitable[None]]


# ---------------------------------------------------------------------------------------------------------------
# Steps


def option(**options: Any) -> Step:
    """For the steps that follow: `bytes_a_write`, `line_end`, `ascii`."""

    async def step(stream: Stream) -> None:
        stream.options |= options

    return step


def text(*pieces: str) -> Step:
    async def step(stream: Stream) -> None:
        for piece in pieces:
            await stream.delta({"content": piece})

    return step


def role() -> Step:
    """The first chunk of the real thing; some compatible servers send none."""

    async def step(stream: Stream) -> None:
        await stream.delta({"role": "assistant", "content": "", "refusal": None})

    return step


def tool(
    name: str,
    arguments: Any,
    *,
    cut: int | Sequence[int] = 8,
    call_id: str | None = None,
    index: int | None = None,
    whole: bool = False,
    ascii_only: bool = False,
) -> Step:
    """A tool call; `arguments` a dict, or text that goes out as it is.

    `cut`: every so many characters, or at these places; `whole`: in one chunk, without an index.
    """

    async def step(stream: Stream) -> None:
        body = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=ascii_only)
        number = stream.calls if index is None else index
        stream.calls += 1
        call: dict[str, Any] = {"index": number, "id": call_id or f"call_{number}", "type": "function"}
        if whole:
            del call["index"]
            await stream.delta({"tool_calls": [call | {"function": {"name": name, "arguments": body}}]})
            return
        await stream.delta({"tool_calls": [call | {"function": {"name": name, "arguments": ""}}]})
        places = range(cut, len(body), cut) if isinstance(cut, int) else cut
        for start, stop in itertools.pairwise((0, *places, len(body))):
            await arguments_piece(number, body[start:stop])(stream)

    return step


def arguments_piece(index: int, piece: str) -> Step:
    async def step(stream: Stream) -> None:
        await stream.delta({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})

    return step


def finish(reason: str = "stop", *, usage: bool = True, done: bool = True, empty_choices: bool = True) -> Step:
    async def step(stream: Stream) -> None:
        await stream.delta({}, reason)
        if usage and (stream.request.body.get("stream_options") or {}).get("include_usage"):
            figures = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
            await stream.chunk([] if empty_choices else [{"index": 0, "delta": {}}], usage=figures)
        if done:
            await stream.write(b"data: [DONE]\n\n")

    return step


def raw(data: bytes) -> Step:
    async def step(stream: Stream) -> None:
        await stream.write(data)

    return step


def wait(gate: threading.Event) -> Step:
    async def step(_: Stream) -> None:
        while not gate.is_set():
            await asyncio.sleep(0.005)

    return step


def stall() -> Step:
    """Nothing more, for ever; without a step before it not even headers."""

    async def step(_: Stream) -> None:
        await asyncio.Event().wait()

    return step


def pause(seconds: float) -> Step:
    async def step(_: Stream) -> None:
        await asyncio.sleep(seconds)

    return step


def reset() -> Step:
    """Cut the connection in the middle."""

    async def step(stream: Stream) -> None:
        stream.ended = True
        if stream.http.transport is not None:
            stream.http.transport.abort()

    return step


def status(
    code: int, error: str | None = None, *, retry_after: int | None = None, message: str = "no: sk-canary"
) -> Step:
    async def step(_: Stream) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        raise Refusal(message, http_status=code, code=error, headers=headers)

    return step


def echo() -> Step:
    """Say, as JSON, which messages came."""

    async def step(stream: Stream) -> None:
        body = json.dumps([[message["role"], message.get("content")] for message in stream.request.body["messages"]])
        for start in range(0, len(body), 50):
            await stream.delta({"content": body[start : start + 50]})
        await finish()(stream)

    return step


# ---------------------------------------------------------------------------------------------------------------
# The server


class OpenAIServer:
    """Runs on a thread of its own, so that it serves a service in another process as well as the test itself."""

    key = "sk-test-canary"

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refusals: list[str] = []
        self.family: str | None = None  # whose rules hold in place of OpenAI's, see strict_providers.py
        self.silent_list = threading.Event()  # while it is set, the list of models is not given
        self.default: Sequence[Step] = (role(), text("OK."), finish())
        self.tokens: Callable[[str], int] | None = None  # counts a request
        self.context_tokens = 0  # one of more is refused then, in vLLM's words
        self._replies: list[Sequence[Step]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai server")
        self.base_url = ""

    def reply(self, *steps: Step) -> None:
        self._replies.append(steps)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._serve)
        app.router.add_get("/v1/models", self._list)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"

    async def _list(self, http: web.Request) -> web.Response:
        if http.headers.get("Authorization") != f"Bearer {self.key}":
            refusal = Refusal("Incorrect API key provided.", http_status=401, code="invalid_api_key")
            return web.json_response(refusal.body, status=401)
        while self.silent_list.is_set():
            await asyncio.sleep(0.01)
        entry = {"id": "gpt-test", "object": "model", "created": 1, "owned_by": "openai"}
        return web.json_response({"object": "list", "data": [entry]})

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        try:
            body = self._check(http, await http.read())
        except Refusal as refusal:
            self.refusals.append(str(refusal))
            return web.json_response(refusal.body, status=refusal.http_status)
        peer = http.transport.get_extra_info("peername") if http.transport else None
        request = Request(body, dict(http.headers), peer)
        self.requests.append(request)
        stream = Stream(http, request)
        steps = self._replies.pop(0) if self._replies else self.default
        try:
            for step in steps:
                await step(stream)
        except Refusal as scripted:
            return web.json_response(scripted.body, status=scripted.http_status, headers=scripted.headers)
        except (asyncio.CancelledError, ConnectionError):
            request.closed.set()
            raise
        if stream.response is None:
            return web.Response(headers={"Content-Type": "text/event-stream"})
        if not stream.ended:
            await stream.response.write_eof()
        return stream.response

    def _check(self, http: web.Request, raw_body: bytes) -> dict[str, Any]:
        if http.headers.get("Authorization") != f"Bearer {self.key}":
            raise Refusal("Incorrect API key provided.", http_status=401, code="invalid_api_key")
        if http.content_type != "application/json":
            raise Refusal("Unsupported content type.", http_status=415)
        try:
            body = json.loads(raw_body.decode("utf-8"))
            json.dumps(body, ensure_ascii=False).encode()
        except ValueError as error:
            raise Refusal("We could not parse the JSON body of your request.") from error
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise Refusal("you must provide a model parameter")
        for name in body:
            if name not in KNOWN:
                raise Refusal(f"Unrecognized request argument supplied: {name}", code="unknown_parameter")
        if body.get("n") not in (None, 1):
            raise Refusal("Invalid value for 'n': this server gives one choice.")
        if body.get("stream_options") is not None and not body.get("stream"):
            raise Refusal("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        check_tools(body.get("tools"))
        if "tool_choice" in body and "tools" not in body:
            raise Refusal("Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.")
        check_messages(body.get("messages")) if self.family is None else check_family(self.family, body)
        self._check_length(raw_body.decode())
        return body

    def _check_length(self, body: str) -> None:
        if self.tokens is not None and (count := self.tokens(body)) > self.context_tokens:
            raise Refusal(TOO_MANY.format(self.context_tokens, count))


def check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list) or not tools:
        raise Refusal("[] is too short - 'tools'")
    for entry in tools:
        is_function = isinstance(entry, dict) and entry.get("type") == "function"
        function = entry.get("function") if is_function else None
        if not isinstance(function, dict) or not NAME.fullmatch(str(function.get("name", ""))):
            raise Refusal("Invalid 'tools': each must be a function with a name of the pattern ^[a-zA-Z0-9_-]+$")
        if "parameters" in function and function["parameters"].get("type") != "object":
            raise Refusal("Invalid schema for function: schema must be of 'type: \"object\"'")


def check_family(family: str, body: dict[str, Any]) -> None:
    refusal = FAMILIES[family](body)
    if refusal is not None:
        raise Refusal(refusal)


def check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refusal("[] is too short - 'messages'")
    unanswered: list[str] = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not message.keys() <= KNOWN_IN_MESSAGE:
            raise Refusal(f"Invalid type or additional properties. messages[{place}]")
        sender = message.get("role")
        if sender not in ("system", "developer", "user", "assistant", "tool"):
            raise Refusal(f"Invalid value: {sender!r}. messages[{place}].role")
        if sender == "tool":
            if message.get("tool_call_id") not in unanswered:
                raise Refusal(MUST_FOLLOW)
            unanswered.remove(message["tool_call_id"])
        elif unanswered:
            raise Refusal(MUST_ANSWER.format(", ".join(unanswered)))
        calls = message.get("tool_calls")
        if calls is not None:
            unanswered = check_calls(sender, calls)
        check_content(message.get("content"), place, may_be_missing=sender == "assistant" and bool(calls))
    if unanswered:
        raise Refusal(MUST_ANSWER.format(", ".join(unanswered)))


def check_content(content: Any, place: int, *, may_be_missing: bool) -> None:
    if content is None and not may_be_missing:
        raise Refusal(f"Invalid value for 'content': expected a string, got null. messages[{place}].content")
    if not (content is None or isinstance(content, str) or is_parts(content)):
        raise Refusal(f"Invalid type for 'messages[{place}].content'")


def is_parts(content: Any) -> bool:
    """Content in several parts; only text, which is all that the service has."""
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )


def check_calls(sender: str, calls: Any) -> list[str]:
    if sender != "assistant" or not isinstance(calls, list) or not calls:
        raise Refusal("[] is too short - 'messages.tool_calls'")
    for call in calls:
        function = (call.get("function") if isinstance(call, dict) else None) or {}
        if (
            not function
            or call.get("type") != "function"
            or not call.get("id")
            or not NAME.fullmatch(function.get("name", ""))
        ):
            raise Refusal("Invalid 'messages.tool_calls': each needs an id, a type and a function with a valid name")
        if not isinstance(function.get("arguments"), str):
            raise Refusal("Invalid type for 'messages.tool_calls.function.arguments': expected a string")
    ids = [call["id"] for call in calls]
    if len(set(ids)) != len(ids):
        raise Refusal("Duplicate value for 'tool_call_id'")
    return ids
