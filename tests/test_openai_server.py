"""The strict server is itself held to the wire: with a raw socket, and with OpenAI's own client."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import openai as openai_package
import pytest
from openai.types.chat import ChatCompletionChunk
from openai_server import OpenAIServer, echo, finish, option, pause, raw, reset, role, stall, status, text, tool, wait

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "x"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
async def client(openai: OpenAIServer) -> AsyncIterator[openai_package.AsyncOpenAI]:
    async with openai_package.AsyncOpenAI(api_key=openai.key, base_url=openai.base_url, max_retries=0) as client:
        yield client


async def chunks(client: openai_package.AsyncOpenAI, **parameters: Any) -> list[ChatCompletionChunk]:
    everything: dict[str, Any] = {"model": "m", "messages": [USER], "stream": True, **parameters}
    return [chunk async for chunk in await client.chat.completions.create(**everything)]


def said(reply: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)


async def exchange(server: OpenAIServer, body: bytes, authorization: str | None = None) -> tuple[int, bytes]:
    """The server's answer to these very bytes: the status, and all bytes behind the headers."""
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Authorization: {authorization or f'Bearer {server.key}'}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    headers, _, rest = answer.partition(b"\r\n\r\n")
    return int(headers.split()[1]), rest


async def test_openais_client_reads_a_reply_and_its_usage(
    openai: OpenAIServer, client: openai_package.AsyncOpenAI
) -> None:
    openai.reply(role(), text("Hello ", "world"), finish("length"))
    reply = await chunks(client, stream_options={"include_usage": True})
    assert said(reply) == "Hello world"
    assert reply[0].choices[0].delta.role == "assistant"
    assert reply[-2].choices[0].finish_reason == "length"
    assert reply[-1].choices == []
    assert reply[-1].usage is not None


async def test_usage_comes_only_to_who_asked_for_it(openai: OpenAIServer, client: openai_package.AsyncOpenAI) -> None:
    assert all(chunk.usage is None for chunk in await chunks(client))
    assert openai.requests[0].body["messages"] == [USER]


async def test_replies_are_taken_in_order_and_then_it_is_ok(
    openai: OpenAIServer, client: openai_package.AsyncOpenAI
) -> None:
    openai.reply(text("1"), finish())
    openai.reply(text("2"), finish())
    assert [said(await chunks(client)) for _ in range(4)] == ["1", "2", "OK.", "OK."]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("cut", [1, 3, 100, [12, 15, 16]])
async def test_arguments_arrive_whole_however_they_are_cut(
    openai: OpenAIServer, client: openai_package.AsyncOpenAI, cut: int | list[int], *, ascii_only: bool
) -> None:
    arguments = {"title": "😀é", "content": 'a "quoted" line\n'}
    openai.reply(
        option(bytes_a_write=5), tool("write", arguments, cut=cut, ascii_only=ascii_only), finish("tool_calls")
    )
    calls = [call for chunk in await chunks(client) for call in chunk.choices[0].delta.tool_calls or ()]
    pieces = [call.function.arguments or "" for call in calls if call.function]
    assert json.loads("".join(pieces)) == arguments
    assert calls[0].function is not None
    assert calls[0].function.name == "write"
    if isinstance(cut, list):
        assert [len(piece) for piece in pieces[1:4]] == [12, 3, 1]


async def test_the_wire_is_server_sent_events_to_the_byte(openai: OpenAIServer) -> None:
    openai.reply(raw(b": keep-alive\n\n"), option(line_end="\r\n"), text("é"), raw(b"data: [DONE]\n\n"))
    http_status, body = await exchange(openai, json.dumps({"model": "m", "messages": [USER], "stream": True}).encode())
    assert http_status == 200
    assert b": keep-alive\n\n" in body
    assert '"delta": {"content": "é"}'.encode() in body
    assert b"}\r\n\r\n" in body
    assert b"data: [DONE]\n\n" in body


async def test_a_reset_is_not_a_clean_end(openai: OpenAIServer, client: openai_package.AsyncOpenAI) -> None:
    openai.reply(text("half"))
    assert said(await chunks(client)) == "half"
    openai.reply(text("half"), pause(0.05), reset())
    with pytest.raises(openai_package.APIConnectionError):
        await chunks(client)


async def test_it_sees_the_client_go(openai: OpenAIServer, client: openai_package.AsyncOpenAI) -> None:
    openai.reply(text("first"), stall())
    stream = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True)
    await anext(aiter(stream))
    assert not openai.requests[0].closed.is_set()
    await stream.close()
    assert await asyncio.to_thread(openai.requests[0].closed.wait, 5)


async def test_it_waits_for_the_test(openai: OpenAIServer, client: openai_package.AsyncOpenAI) -> None:
    gate = threading.Event()
    openai.reply(text("first"), wait(gate), text("second"), finish())
    parameters: dict[str, Any] = {"model": "m", "messages": [USER], "stream": True}
    async for chunk in await client.chat.completions.create(**parameters):
        if chunk.choices and chunk.choices[0].delta.content == "first":
            gate.set()
    assert gate.is_set()


async def test_echo_says_what_was_sent(openai: OpenAIServer, client: openai_package.AsyncOpenAI) -> None:
    openai.reply(echo())
    assert json.loads(said(await chunks(client))) == [["user", "Hi"]]


async def test_errors_have_openais_form(openai: OpenAIServer, client: openai_package.AsyncOpenAI) -> None:
    openai.reply(status(429, "rate_limit_exceeded", retry_after=60))
    with pytest.raises(openai_package.RateLimitError) as limited:
        await chunks(client)
    assert limited.value.response.headers["Retry-After"] == "60"
    assert limited.value.code == "rate_limit_exceeded"
    assert openai.refusals == [], "a scripted error is no refusal"
    openai.reply(status(400, "context_length_exceeded"))
    with pytest.raises(openai_package.BadRequestError) as refused:
        await chunks(client)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["Hi"],
        [USER | {"unknown": 1}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [USER, ASKS],
        [USER, ASKS, USER],
        [USER, ASKS, USER, ANSWER],
        [USER, ANSWER],
        [USER, ASKS, ANSWER, ANSWER],
        [USER, ASKS, ANSWER | {"tool_call_id": "c2"}],
        [USER, ASKS | {"tool_calls": [CALL, CALL]}, ANSWER],
        [USER, ASKS | {"tool_calls": []}],
        [USER, ASKS | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}, ANSWER],
        [USER, ASKS | {"tool_calls": [CALL | {"function": {"name": "a b", "arguments": "{}"}}]}, ANSWER],
        [USER, ASKS | {"tool_calls": [CALL | {"function": None}]}, ANSWER],
    ],
)
async def test_a_history_that_openai_would_refuse_is_refused(openai: OpenAIServer, messages: list[Any]) -> None:
    http_status, body = await exchange(openai, json.dumps({"model": "m", "messages": messages}).encode())
    assert http_status == 400
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert len(openai.refusals) == 1
    assert openai.requests == []


@pytest.mark.parametrize(
    "parameters",
    [
        {"model": None},
        {"messages": None},
        {"unknown": 1},
        {"n": 2},
        {"tools": []},
        {"tools": ["f"]},
        {"tools": [{"type": "function"}]},
        {"tools": [FUNCTION | {"function": {"name": "a b"}}]},
        {"tools": [FUNCTION | {"function": {"name": "f", "parameters": {"type": "array"}}}]},
        {"stream_options": {"include_usage": True}},
    ],
)
async def test_parameters_that_openai_would_refuse_are_refused(
    openai: OpenAIServer, parameters: dict[str, Any]
) -> None:
    http_status, _ = await exchange(openai, json.dumps({"model": "m", "messages": [USER]} | parameters).encode())
    assert http_status == 400
    assert len(openai.refusals) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', b'{"model":"\xff"}']
)
async def test_a_body_that_is_no_text_or_no_json_is_refused(openai: OpenAIServer, body: bytes) -> None:
    assert (await exchange(openai, body))[0] == 400
    assert len(openai.refusals) == 1


async def test_a_wrong_key_is_refused(openai: OpenAIServer) -> None:
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    assert (await exchange(openai, body, "Bearer wrong"))[0] == 401
    assert (await exchange(openai, body))[0] == 200
    assert openai.refusals == ["Incorrect API key provided."]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "x"}, USER, ASKS, ANSWER, {"role": "assistant", "content": "y"}, USER],
        [USER, ASKS | {"tool_calls": [CALL, CALL | {"id": "c2"}]}, ANSWER | {"tool_call_id": "c2"}, ANSWER],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": ""}],
    ],
)
async def test_what_openai_takes_is_taken(openai: OpenAIServer, messages: list[Any]) -> None:
    body = {"model": "m", "messages": messages, "tools": [FUNCTION], "stream": True, "n": 1}
    assert (await exchange(openai, json.dumps(body).encode()))[0] == 200
    assert openai.refusals == []


@pytest.mark.parametrize(
    ("family", "is_refused"), [(None, False), ("qwen", False), ("mistral", True), ("template", True)]
)
async def test_the_rules_of_a_family_hold_in_place_of_openais(
    openai: OpenAIServer, client: openai_package.AsyncOpenAI, family: str | None, *, is_refused: bool
) -> None:
    openai.family = family
    if is_refused:
        with pytest.raises(openai_package.BadRequestError):
            await chunks(client, messages=[USER, USER])
    else:
        assert said(await chunks(client, messages=[USER, USER])) == "OK."
