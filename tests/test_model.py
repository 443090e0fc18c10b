"""The model on the real wire: whatever a provider sends, deltas come out right or one clear error does."""

import asyncio
import json
import os
import resource
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import openai as openai_package
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from openai_server import (
    OpenAIServer,
    Step,
    arguments_piece,
    finish,
    option,
    pause,
    raw,
    reset,
    role,
    stall,
    status,
    text,
    tool,
    wait,
)

from chat import Finished
from drafting.context.give_back import source_of
from drafting.deltas import ModelDelta, ModelError, Opaque, ToolCallDelta
from drafting.provider import openai_model as model
from drafting.provider.openai_model import OpenAIModel
from drafting.provider.wire import ReplyDecoder
from drafting.tools import TOOLS
from telemetry.resources import Descriptors

pytestmark = pytest.mark.anyio

HOSTILE = '"quotes" \\ \n\r\t 😀 \u2028 \u202e </script> e\u0301'


def deaf(_: Sequence[ModelDelta]) -> None:
    """Hears nothing."""


async def ask(
    server: OpenAIServer, messages: Sequence[BaseMessage] = (HumanMessage("Hi"),), **settings: Any
) -> tuple[str, dict[int, tuple[str, str, str]], Finished]:
    """The reply's text, its calls by index (id, name, arguments), and how it finished."""
    fields: dict[str, Any] = {"api_key": server.key, "base_url": server.base_url} | settings
    model = OpenAIModel("gpt-test", **fields)
    said = ""
    calls: dict[int, tuple[str, str, str]] = {}

    def hear(deltas: Sequence[ModelDelta]) -> None:
        nonlocal said
        for delta in deltas:
            if isinstance(delta, ToolCallDelta):
                call_id, name, arguments = calls.get(delta.index, ("", "", ""))
                calls[delta.index] = (call_id or delta.call_id, name or delta.name, arguments + delta.arguments)
            elif isinstance(delta, str):
                assert delta
                said += delta

    try:
        finished = await model.reply(messages, TOOLS, hear)
    finally:
        await model.aclose()
    return said, calls, finished


async def test_a_reply_comes_with_its_usage(openai: OpenAIServer) -> None:
    openai.reply(role(), text("Hello ", "world"), finish())
    assert await ask(openai) == ("Hello world", {}, Finished("stop", {"input_tokens": 11, "output_tokens": 7}))


@pytest.mark.parametrize("bytes_a_write", [1, 2, 7, 1000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("ascii_only", [True, False])
async def test_bytes_may_be_cut_anywhere(
    openai: OpenAIServer, bytes_a_write: int, line_end: str, *, ascii_only: bool
) -> None:
    arguments = {"title": "NDA", "content": HOSTILE}
    wire = option(bytes_a_write=bytes_a_write, line_end=line_end, ascii=ascii_only)
    openai.reply(
        wire,
        text(HOSTILE, HOSTILE),
        tool("write_document", arguments, cut=1, ascii_only=ascii_only),
        finish("tool_calls"),
    )
    said, calls, _ = await ask(openai)
    assert said == HOSTILE * 2
    assert json.loads(calls[0][2]) == arguments


@pytest.mark.parametrize(
    "steps",
    [
        (text("OK"), finish(usage=False)),
        (text("OK"), finish(done=False)),
        (text("OK"), finish(empty_choices=False)),
        (raw(b": keep-alive\n\n"), role(), raw(b'event: x\n\ndata: {"choices":[]}\n\n'), text("OK"), finish()),
        (raw(b'data:{"choices":[{"delta":{"content":"OK"}}]}\n\n'), finish()),
        (raw(b'data: {"choices":[{"delta":{"content":"OK"},"finish_reason":"stop"}]}'),),
        (raw(b'data: {"choices":[{"delta":null,"index":0}]}\n\n'), text("OK"), finish()),
        (raw(b'data: {"choices":[{"delta":{"content":null,"refusal":"OK"}}]}\n\n'), finish()),
    ],
)
async def test_servers_that_send_less_than_openai_are_understood(openai: OpenAIServer, steps: Sequence[Step]) -> None:
    openai.reply(*steps)
    said, _, finished = await ask(openai)
    assert said == "OK"
    assert finished.reason == "stop"


async def test_a_whole_call_in_one_chunk_and_calls_without_an_index(openai: OpenAIServer) -> None:
    openai.reply(tool("a", {"x": 1}, whole=True), tool("b", {"y": 2}, whole=True), finish("tool_calls"))
    _, calls, _ = await ask(openai)
    assert calls == {0: ("call_0", "a", '{"x": 1}'), 1: ("call_1", "b", '{"y": 2}')}


async def test_calls_that_are_interleaved_are_told_apart(openai: OpenAIServer) -> None:
    begin = (tool("a", "", index=0), tool("b", "", index=1))
    pieces = [arguments_piece(index, piece) for piece in ("{", "}") for index in (0, 1)]
    openai.reply(*begin, *pieces, finish("tool_calls"))
    assert (await ask(openai))[1] == {0: ("call_0", "a", "{}"), 1: ("call_1", "b", "{}")}


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (b'"a\\ud83d"', "a\ufffd"),
        (b'"\\ude00b"', "\ufffdb"),
        (b'"a\\u0000b"', "a\ufffdb"),
        (b'"a\xff\xfeb"', "a\ufffd\ufffdb"),
        (b'"\\ud83d\\ude00"', "😀"),
    ],
)
async def test_what_no_text_can_hold_is_replaced(openai: OpenAIServer, wire: bytes, said: str) -> None:
    openai.reply(raw(b'data: {"choices":[{"delta":{"content":' + wire + b"}}]}\n\n"), text("."), finish())
    assert (await ask(openai))[0] == said + "."


def chunk_of(said: str) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": said}}]}).join(("data: ", "\n\n")).encode()


def test_nothing_counts_behind_the_sign_of_the_end() -> None:
    decoder = ReplyDecoder()
    assert decoder.feed(chunk_of("a") + b"data: [DONE]\n\n" + chunk_of("b")) == ["a"]
    assert decoder.done


def test_texts_that_come_together_are_one_piece_of_a_bounded_length() -> None:
    deltas = ReplyDecoder().feed(chunk_of("x" * 300) * 20)
    assert deltas is not None
    assert "".join(map(str, deltas)) == "x" * 6000
    assert [len(str(piece)) for piece in deltas] == [1200] * 5


async def test_a_surrogate_pair_that_is_cut_between_two_chunks_is_joined(openai: OpenAIServer) -> None:
    halves = (
        raw(b'data: {"choices":[{"delta":{"content":"' + half + b'"}}]}\n\n') for half in (b"x\\ud83d", b"\\ude00y")
    )
    openai.reply(*halves, finish())
    assert (await ask(openai))[0] == "x😀y"


async def test_halves_that_calls_interleave_are_joined_each_with_its_own(openai: OpenAIServer) -> None:
    begin = (tool("a", "", index=0), tool("b", "", index=1))
    halves = [arguments_piece(index, half) for half in ("\ud83d", "\ude00") for index in (0, 1)]
    openai.reply(option(ascii=True), *begin, *halves, finish("tool_calls"))
    assert (await ask(openai))[1] == {0: ("call_0", "a", "😀"), 1: ("call_1", "b", "😀")}


async def test_half_a_character_at_a_texts_end_leaves_the_call_behind_it_whole(openai: OpenAIServer) -> None:
    openai.reply(option(ascii=True), text("x\ud83d"), tool("a", {"y": 1}), finish("tool_calls"))
    assert (await ask(openai))[1] == {0: ("call_0", "a", '{"y": 1}')}


@pytest.mark.parametrize(
    "chunk",
    [
        '{"choices":[null]}',
        '{"choices":{"0":{}}}',
        '{"choices":[{"delta":"half"}]}',
        '{"choices":[{"delta":{"content":5}}]}',
        '{"choices":[{"delta":{},"finish_reason":["stop"]}]}',
        '{"choices":[{"delta":{"tool_calls":[{"index":[0],"id":"call_0"}]}}]}',
    ],
)
async def test_json_that_is_not_of_the_wire_is_the_models_fault_and_what_came_with_it_is_kept(
    openai: OpenAIServer, chunk: str
) -> None:
    with_it = b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
    openai.reply(raw(with_it + b"data: " + chunk.encode() + b"\n\n"))
    heard: list[ModelDelta] = []
    model = OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)
    with pytest.raises(ModelError) as failed:
        await model.reply([HumanMessage("Hi")], [], heard.extend)
    await model.aclose()
    assert (failed.value.code, heard) == ("model_protocol", ["half"])


@pytest.mark.parametrize("tokens", ["-5", "1e400", "12345678901234567890123", '"many"', "[1]"])
async def test_figures_that_no_reply_can_have_used_count_as_untold(openai: OpenAIServer, tokens: str) -> None:
    usage = f'data: {{"choices":[],"usage":{{"prompt_tokens":{tokens},"completion_tokens":1}}}}\n\n'
    openai.reply(text("OK"), raw(usage.encode()), finish(usage=False))
    said, _, finished = await ask(openai)
    assert (said, finished.usage) == ("OK", None)


ODD_CHUNKS = (
    b'"text"',
    b"[" * 100_000,
    b'{"choices":[null]}',
    b'{"choices":"text"}',
    b'{"choices":[{"delta":"text"}]}',
    b'{"choices":[{"delta":{"content":5}}]}',
    b'{"choices":[{"delta":{"content":[5]}}]}',
    b'{"choices":[{"delta":{"tool_calls":[5]}}]}',
    b'{"choices":[{"delta":{"tool_calls":[{"index":{}}]}}]}',
    b'{"choices":[{"finish_reason":["stop"]}]}',
)


@pytest.mark.parametrize(
    ("steps", "code", "retryable"),
    [
        ((text("half"),), "model_truncated", True),
        ((text("half"), raw(b"data: [DONE]\n\n")), "model_truncated", True),
        ((), "model_truncated", True),
        ((text("half"), reset()), "model_disconnected", True),
        ((text("half"), raw(b"data: {broken\n\n")), "model_protocol", True),
        ((text("half"), raw(b"data: [1]\n\n")), "model_protocol", True),
        *(((text("half"), raw(b"data: %b\n\n" % odd)), "model_protocol", True) for odd in ODD_CHUNKS),
        (
            (text("half"), raw(b'data: {"error":{"message":"sk-canary","type":"server_error"}}\n\n')),
            "model_unavailable",
            True,
        ),
        ((text("half"), raw(b'data: {"error":{"code":"rate_limit_exceeded"}}\n\n')), "model_rate_limited", True),
        ((raw(b'data: {"error":"sk-canary"}\n\n'),), "model_unavailable", True),
        ((status(401, "invalid_api_key"),), "model_auth", False),
        ((status(403),), "model_auth", False),
        ((status(404, "model_not_found"),), "model_not_found", False),
        ((status(400, "context_length_exceeded"),), "model_context", False),
        ((status(400),), "model_rejected", False),
        ((status(422),), "model_rejected", False),
    ],
)
async def test_each_fault_has_its_code_and_shows_no_secret(
    openai: OpenAIServer, steps: Sequence[Step], code: str, *, retryable: bool
) -> None:
    openai.reply(*steps)
    with pytest.raises(ModelError) as failed:
        await ask(openai)
    assert (failed.value.code, failed.value.retryable) == (code, retryable)
    assert "canary" not in failed.value.content


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (status(429, "rate_limit_exceeded", retry_after=0), "model_rate_limited"),
        (status(429, "insufficient_quota", retry_after=0), "model_quota"),
        (status(500, retry_after=0), "model_unavailable"),
        (status(503, retry_after=0), "model_unavailable"),
    ],
)
async def test_a_passing_fault_is_tried_again_before_it_is_given_up(
    openai: OpenAIServer, step: Step, code: str
) -> None:
    for _ in range(3):
        openai.reply(step)
    with pytest.raises(ModelError) as failed:
        await ask(openai)
    assert failed.value.code == code
    openai.reply(step)
    assert (await ask(openai))[0] == "OK."


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    with OpenAIServer() as gone:
        pass
    with pytest.raises(ModelError) as failed:
        await ask(gone)
    assert failed.value.code == "model_unreachable"


async def test_a_connection_that_this_process_lacks_the_descriptor_for_is_no_fault_of_the_model(
    openai: OpenAIServer,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    short_of_means = OpenAIModel("m", api_key=openai.key, base_url=openai.base_url)
    with ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (Descriptors().used + 20, hard))
        with suppress(OSError):  # too many open files
            while True:
                taken.callback(os.close, os.dup(0))
        with pytest.raises(ModelError) as failed:
            await short_of_means.reply([HumanMessage("Hi")], (), deaf)
    assert (failed.value.code, failed.value.retryable) == ("overloaded", True)
    assert (await short_of_means.reply([HumanMessage("Hi")], (), deaf)).reason == "stop"
    await short_of_means.aclose()


async def test_a_server_that_takes_no_connection_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CONNECT_TIMEOUT_S", 0.1)
    with ExitStack() as stack:
        mute = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than its queue takes: a later connection gets no answer at all
            knock = stack.enter_context(socket.socket())
            knock.setblocking(False)
            knock.connect_ex(mute.getsockname())
        mute_model = OpenAIModel("m", api_key=None, base_url=f"http://127.0.0.1:{mute.getsockname()[1]}/v1")
        with pytest.raises(ModelError) as failed:
            await mute_model.reply([HumanMessage("Hi")], (), deaf)
        await mute_model.aclose()
    assert failed.value.code == "model_unreachable"


@pytest.mark.parametrize("code", [429, 503])
async def test_a_provider_is_not_waited_for_longer_than_a_person_would(openai: OpenAIServer, code: int) -> None:
    openai.reply(status(code, "busy", retry_after=60))
    with pytest.raises(ModelError) as failed:
        await ask(openai)
    assert failed.value.code == ("model_rate_limited" if code == 429 else "model_unavailable")
    assert failed.value.retryable
    assert len(openai.requests) == 1
    openai.reply(status(code, "busy", retry_after=1))
    assert (await ask(openai))[0] == "OK."


async def test_a_model_that_reasons_gives_a_sign_of_life(openai: OpenAIServer) -> None:
    gate = threading.Event()
    thought = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
    openai.reply(raw(b": thinking\n\n"), raw(thought), wait(gate), text("OK"), finish())
    reasoning = OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)
    heard: list[Sequence[ModelDelta]] = []

    def hear(deltas: Sequence[ModelDelta]) -> None:
        heard.append(deltas)
        gate.set()

    await reasoning.reply([HumanMessage("Hi")], (), hear)
    await reasoning.aclose()
    assert heard[0] == [Opaque(None, {"reasoning_content": "hm"}, source_of(openai.base_url, "gpt-test"))]
    assert heard[1][0] == "OK"


async def test_leaving_the_stream_closes_the_providers_connection(openai: OpenAIServer) -> None:
    openai.reply(text("first"), pause(0.01), text("second"), stall())
    model = OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)
    heard = asyncio.Event()
    reply = asyncio.create_task(model.reply([HumanMessage("Hi")], (), lambda _: heard.set()))
    await heard.wait()
    reply.cancel()
    await asyncio.wait({reply})
    assert await asyncio.to_thread(openai.requests[0].closed.wait, 5)
    await model.aclose()


async def test_replies_one_after_the_other_share_a_connection(openai: OpenAIServer) -> None:
    model = OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)
    for _ in range(5):
        await model.reply([HumanMessage("Hi")], (), deaf)
    await model.aclose()
    assert len({request.connection for request in openai.requests}) == 1


async def test_a_server_that_keeps_the_body_open_after_its_end_holds_nothing_up(openai: OpenAIServer) -> None:
    openai.reply(text("OK"), finish(), stall())
    assert (await ask(openai))[0] == "OK"


async def test_the_request_is_what_openai_takes(openai: OpenAIServer) -> None:
    call = {"id": "c1", "name": "write_document", "args": {"title": "é", "content": HOSTILE}}
    history = [
        SystemMessage("You draft."),
        HumanMessage(HOSTILE),
        AIMessage("", tool_calls=[call]),
        ToolMessage('{"doc_id":"d1"}', tool_call_id="c1"),
        AIMessage("Done."),
        HumanMessage("On"),
    ]
    await ask(openai, history)
    body = openai.requests[0].body
    assert openai.refusals == []
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert [entry["function"]["name"] for entry in body["tools"]] == ["write_document", "edit_document"]
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert json.loads(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == call["args"]


async def test_a_query_in_the_base_url_goes_along(openai: OpenAIServer) -> None:
    assert (await ask(openai, base_url=openai.base_url + "/?api-version=2026-01-01"))[0] == "OK."


async def test_the_test_server_refuses_what_openai_refuses(openai: OpenAIServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    bodies: list[dict[str, Any]] = [
        {"messages": []},
        {"messages": [user, assistant]},
        {"messages": [user, assistant, user]},
        {"messages": [user, answer]},
        {"messages": [user, assistant, answer, answer]},
        {"messages": [user, assistant | {"tool_calls": [call, call]}, answer]},
        {"messages": [user, assistant | {"tool_calls": []}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [user], "unknown": 1},
        {"messages": [user], "tools": []},
        {"messages": [user], "tool_choice": "none"},
        {"messages": [user], "stream_options": {"include_usage": True}},
    ]
    async with openai_package.AsyncOpenAI(api_key=openai.key, base_url=openai.base_url, max_retries=0) as client:
        for body in bodies:
            with pytest.raises(openai_package.BadRequestError):
                await client.post("/chat/completions", body={"model": "m"} | body, cast_to=object)
        with pytest.raises(openai_package.AuthenticationError):
            await client.with_options(api_key="wrong").post("/chat/completions", body={}, cast_to=object)
    assert len(openai.refusals) == len(bodies) + 1
    assert openai.requests == []
