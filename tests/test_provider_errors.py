"""Errors of providers: each family's come out with the right code, and the log has their words without the chat's."""

import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import pytest
from aiohttp import web
from conftest import Service
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from openai_server import OpenAIServer, Step, Stream, raw, text
from provider_bodies import CASES as BODIES
from provider_bodies import RETRYABLE, Case
from provider_gateways import GATEWAYS
from pydantic_core.core_schema import ErrorType
from sse_client import chat

from drafting.deltas import ModelError
from drafting.provider.errors import ERRORS, STATUSES, provider_error
from drafting.provider.reported import log_reported
from drafting.provider.words import Kind
from telemetry.cleared import GAP, LONGEST, Cleared

Start = Callable[..., Service]
CASES = [*BODIES, *GATEWAYS]


# ---------------------------------------------------------------------------------------------------------------
# Codes


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.source}"[:60])
def test_an_error_of_a_family_has_its_code(case: Case) -> None:
    assert len(CASES) > 400
    error = provider_error(case.body, case.status)
    assert (error.code, error.retryable) == (case.code, case.code in RETRYABLE)
    assert "canary" not in error.content
    assert error.reported is not None


def as_text(body: object) -> object:
    return body if isinstance(body, str | bytes) else json.dumps(body, ensure_ascii=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.source}"[:60])
def test_the_shape_of_an_error_does_not_change_its_code(case: Case) -> None:
    """Text or bytes, alone or in a list, with its object around it or without, in an error of a proxy."""
    text_of_it = as_text(case.body)
    shapes: list[object] = [text_of_it, text_of_it.encode() if isinstance(text_of_it, str) else text_of_it]
    if not isinstance(case.body, str | bytes):
        shapes += [[case.body], {"error": case.body}, {"detail": case.body}, {"error": {"message": text_of_it}}]
        if isinstance(case.body, dict) and "error" in case.body:
            shapes.append(case.body["error"])
    assert {provider_error(shape, case.status).code for shape in shapes} == {case.code}


def test_a_field_that_pydantic_refuses_is_a_rejected_request_and_is_named() -> None:
    """Mistral, vLLM and FastAPI servers give its errors: the type as a code, and the field apart from the sentence."""
    kinds = get_args(ErrorType)
    assert len(kinds) > 90
    for kind in kinds:
        fault = {"type": kind, "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
        for body in ({"detail": [fault]}, {"object": "error", "message": {"detail": [fault]}, "code": None}):
            error = provider_error(body, 422)
            assert error.code == "model_rejected", kind
            assert error.reported is not None
            assert "body.stream_options" in error.reported.message


@pytest.mark.parametrize("number", [401, 402, 404, 405, 413, 429, 451, 503, 529])
def test_a_number_means_the_same_wherever_it_stands(number: int) -> None:
    code = provider_error(b"", number).code
    inner = ({"code": number}, {"code": str(number)}, {"status": number}, {"error": {"code": number, "message": "no"}})
    for error in (*inner, {"error": {"metadata": {"status_code": number}}}, {"message": f"Error code: {number} - no"}):
        assert provider_error(error).code == code
        assert provider_error(error, 400).code == code, "a vague number yields to one that says more"


def test_each_code_is_retryable_or_not_and_every_cause_has_a_text() -> None:
    assert ERRORS.keys() == set(get_args(Kind))
    by_code: dict[str, set[bool]] = {}
    for code, content, retryable in ERRORS.values():
        by_code.setdefault(code, set()).add(retryable)
        assert content.endswith(".")
    assert all(len(values) == 1 for values in by_code.values())
    assert {code for code, values in by_code.items() if True in values} == {*RETRYABLE, "model_protocol"}


@pytest.mark.parametrize("status", [*range(300, 600)])
def test_every_status_number_has_a_code_and_only_a_passing_one_is_retryable(status: int) -> None:
    error = provider_error(b"", status)
    passing = {408, 409, 424, 425, 429, 498, 499} | set(range(500, 600)) - {501, 505}
    assert error.retryable == (status in passing)
    assert status not in STATUSES or error.code == ERRORS[STATUSES[status][0]][0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "a moment"), (0.2, "a moment"), (30, "30 seconds"), (432, "7 minutes"), (36_000, "10 hours")],
)
def test_a_rate_limit_says_when_to_come_back(seconds: float | None, words: str) -> None:
    assert provider_error({"code": 429}, retry_after_s=seconds).content.endswith(f"try again in {words}.")
    assert "seconds" not in provider_error({"code": 402}, retry_after_s=30).content


def test_a_model_without_tools_is_told_as_such() -> None:
    told = [case for case in CASES if "tool" in provider_error(case.body, case.status).content]
    assert len(told) == 13
    assert all("tool" in str(case.body).lower() or "function" in str(case.body).lower() for case in told)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["429", "error"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "message", "type", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON | st.text() | st.binary(), st.sampled_from([None, 200, 400, 404, 429, 500]))
def test_whatever_a_provider_sends_it_is_one_error(error: object, status: int | None) -> None:
    assert provider_error(error, status).code in {code for code, _, _ in ERRORS.values()}


@pytest.mark.parametrize("error", ["[" * 100_000, '{"error":' * 50_000, "x" * 10**7, [[[]]] * 10**5, "a_" * 10**5])
def test_an_endless_error_is_read_in_bounds(error: object) -> None:
    assert provider_error(error, 500).code == "model_unavailable"


# ---------------------------------------------------------------------------------------------------------------
# The line of the log

SAID = """Draft an NDA between Müller & Söhne GmbH and "Jane Q. Public", born 1 April 1970, of 12 Canary Wharf.
The fee is EUR 1,250,000. Jane's bank account is DE89 3704 0044 0532 0130 00; she must not learn of the merger."""
ECHOES: Sequence[Callable[[str], str]] = (
    str,
    lambda part: f'"{part}"',
    lambda part: json.dumps({"content": part}),
    lambda part: json.dumps(json.dumps({"content": part})),
    lambda part: json.dumps({"content": part}, ensure_ascii=False),
    repr,
    lambda part: repr(part.encode()),
    str.upper,
    lambda part: " ".join(part.split()),
    lambda part: part.replace("\n", "<br>").replace("&", "&amp;").replace('"', "&quot;"),
    lambda part: f"messages[1].content: '{part}'",
)


def letters(words: str) -> str:
    return re.sub(r"[^a-z0-9]", "", words.lower())


def shares(line: str, said: str, length: int) -> list[str]:
    """The runs of letters that both have."""
    ours, theirs = letters(line), letters(said)
    return [ours[at : at + length] for at in range(len(ours) - length + 1) if ours[at : at + length] in theirs]


@given(st.integers(0, len(SAID)), st.integers(20, 160), st.sampled_from(ECHOES), st.randoms())
def test_no_passage_of_the_conversation_stands_in_the_line(
    start: int, length: int, echo: Callable[[str], str], chance: random.Random
) -> None:
    part = SAID[start : start + length]
    told = f"Invalid request of {chance.randrange(10**6)} tokens: {echo(part)} is not allowed by policy_7"
    line = Cleared(told, ["Hello.", SAID])
    assert shares(line, SAID, 20) == []
    assert line.startswith("Invalid request of")
    assert len(line) <= LONGEST
    assert line.isprintable()


@pytest.mark.parametrize("name", ["Jane Q. Public", "the merger", "April", "Söhne"])
@pytest.mark.parametrize("quotes", ['""', "''", "``", "“”", "«»"])
def test_a_quoted_passage_is_left_out_however_short_it_is(name: str, quotes: str) -> None:
    line = Cleared(f"I can't accept {quotes[0]}{name}{quotes[1]} here", [SAID])
    assert line == f"I can't accept {GAP} here"


@pytest.mark.parametrize("message", ["Fire John", "murder", "héllo!"])
def test_a_short_message_is_left_out_as_a_whole(message: str) -> None:
    assert Cleared(f"flagged: {message.upper()} (violence)", [message]).startswith(f"flagged: {GAP}")


KEPT = [
    "This model's maximum context length is 4096 tokens. However, your messages resulted in 4294 tokens.",
    "Unexpected role 'user' after role 'tool'",
    "registry.ollama.ai/library/gemma:2b does not support tools",
    "Unsupported value: 'temperature' does not support 0.7 with this model.",
    "Invalid schema for function 'edit_document'",
    "messages.3.content.0.text: cache_control cannot be set for empty text blocks",
    "The model `gpt-9` does not exist or you do not have access to it.",
]


@pytest.mark.parametrize("sentence", KEPT)
def test_the_providers_own_words_are_kept(sentence: str) -> None:
    assert Cleared(sentence, [SAID, "Hello, a user asks for a model contract"]) == sentence


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abc123def456",
        "sk-canary",
        "Bearer canary-token",
        "gsk_canary1234567",
        "jane@canary.example",
        "org_canary01k9gg5588eftc8k",
        "https://user:canary@host.example/x",
        "https://host.example/x?token=canary",
        "canary0123456789abcdef0123456789abcdef0123456789",
    ],
)
def test_what_looks_like_a_key_is_left_out(secret: str) -> None:
    line = Cleared(f"Incorrect API key provided: {secret} of you", [])
    assert "canary" not in line
    assert line.endswith(" of you")
    assert "abc123" not in line


def test_output_that_a_server_could_not_read_is_not_shown() -> None:
    told = "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] last read: '\"Jane pays'"
    assert Cleared(told, []) == "Failed to parse tool call arguments as JSON"


def test_one_line_has_the_status_the_codes_and_the_sentence(caplog: pytest.LogCaptureFixture) -> None:
    body = {"error": {"message": f"no: '{SAID[60:120]}'\nnot so", "type": "invalid_request_error", "code": 400}}
    error = provider_error(body, 400)
    call = {"id": "1", "name": "write_document", "args": {"content": "The Canary shall pay nothing to anyone."}}
    log_reported(error, [HumanMessage(SAID), AIMessage("", tool_calls=[call])])
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.__dict__["fields"] == {
        "status": 400, "code": "invalid_request_error", "said": f"no: {GAP} not so", "content_type": None
    }  # fmt: skip
    log_reported(ModelError("model_idle_timeout", "", retryable=True), [])
    assert len(caplog.records) == 1


def test_the_arguments_of_a_tool_call_are_part_of_the_conversation(caplog: pytest.LogCaptureFixture) -> None:
    call = {"id": "1", "name": "write_document", "args": {"content": "The Canary shall pay\nnothing to anyone."}}
    told = json.dumps(json.dumps(call["args"]))
    log_reported(provider_error({"message": f"bad arguments {told}"}, 400), [AIMessage("", tool_calls=[call])])
    assert "canary" not in str(caplog.records[0].__dict__["fields"]).lower()


# ---------------------------------------------------------------------------------------------------------------
# Over the wire


def answer(case: Case) -> Step:
    """A whole response with the case's status and body."""

    async def step(stream: Stream) -> None:
        body = as_text(case.body)
        data = body if isinstance(body, bytes) else str(body).encode()
        kind = "text/html" if data.lstrip().startswith(b"<") else "application/json"
        stream.response = web.StreamResponse(status=case.status or 200, headers={"Content-Type": kind})
        stream.response.headers["x-should-retry"] = "false"
        await stream.response.prepare(stream.http)
        await stream.response.write(data)

    return step


def in_stream(case: Case, told: str) -> Step:
    echo = {"error": {"message": f"about: '{told}'"}}
    return raw(b"data: " + json.dumps({"error": [case.body, echo]}).encode() + b"\n\n")


def some(statuses: Callable[[int | None], bool]) -> Iterator[Case]:
    """One case of each code among those with such a status."""
    found = {case.code: case for case in BODIES if statuses(case.status)}
    yield from found.values()


def test_errors_of_the_wire_end_the_run_with_their_code_and_the_log_says_why(
    service: Start, openai: OpenAIServer
) -> None:
    """Those of C20 to C34 and C49 among them."""
    running = service(openai=openai)
    told = "Draft a letter to Canary, who must not hear of the merger"
    cases = [*some(lambda status: status is not None and status != 200), *some(lambda status: status is None)]
    assert len(cases) > 14
    for case in cases:
        openai.reply(*([text("half"), in_stream(case, told)] if case.status is None else [answer(case)]))
        last = chat(running.url, told).last
        assert (last["type"], last["code"], last["retryable"]) == ("error", case.code, case.code in RETRYABLE), case
    assert chat(running.url, "Hello").text == "OK."
    lines = [line for line in running.log.splitlines() if "provider reported" in line]
    assert len(lines) == len(cases)
    assert all("said=" in line or "status=" in line for line in lines)
    assert "Function calling is not enabled for models/gemma-3-27b-it" in running.log
    assert len(openai.requests) == len(cases) + 1, "none of them is tried again"
    assert "canary" not in running.log.lower()
