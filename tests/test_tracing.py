"""Trace context from the caller to the model, and the spans that OpenTelemetry records of it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import ROOT, Service
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from openai_server import OpenAIServer, finish, stall, status, text
from opentelemetry import trace as otel
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from sse_client import chat

from chat import Emit, Outcome, StopCause, Turn, Usage
from drafting.deltas import ModelError
from drafting.provider.openai_model import OpenAIModel
from runs.turn import RunAgent
from telemetry import tracing
from telemetry.tracing import TraceContext, arrive, traced

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"
USAGE: Usage = {"input_tokens": 11, "output_tokens": 7}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (HEADER, TraceContext(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, 0)),
        (f"00-{TRACE}-{SPAN}-ff", TraceContext(TRACE, SPAN, 1)),  # flags of later versions are not passed on
        (f"cc-{TRACE}-{SPAN}-01-what-may-come", TraceContext(TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01.what-may-not", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"00-{TRACE}-{SPAN}-01-", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"{HEADER}, {HEADER}", None),
        (f" {HEADER}", None),
        (f"{HEADER}\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_taken_by_the_standard_or_ignored(header: str | None, expected: TraceContext | None) -> None:
    assert TraceContext.parse(header) == expected


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*", fullmatch=True))
def test_the_child_of_any_traceparent_is_valid(header: str) -> None:
    context = TraceContext.parse(header)
    if context is not None:
        child = context.child()
        assert TraceContext.parse(child.traceparent) == child
        assert (child.trace_id, child.flags) == (context.trace_id, context.flags)
        assert child.span_id != context.span_id


@pytest.fixture
def model(openai: OpenAIServer) -> OpenAIModel:
    return OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)


async def ask(model: OpenAIModel) -> None:
    try:
        await model.reply([HumanMessage("canary")], [], lambda _: None)
    finally:
        await model.aclose()


async def in_a_request(header: str | None, model: OpenAIModel) -> None:
    """As a server does it: a task a request, and the run in a task of its own."""

    async def request() -> None:
        arrive(header)
        await asyncio.create_task(ask(model))

    await asyncio.create_task(request())


@pytest.mark.anyio
async def test_the_models_request_has_a_span_of_the_callers_trace(openai: OpenAIServer, model: OpenAIModel) -> None:
    await in_a_request(HEADER, model)
    sent = TraceContext.parse(openai.requests[0].headers.get("traceparent"))
    assert sent is not None
    assert (sent.trace_id, sent.flags) == (TRACE, 1)
    assert sent.span_id != SPAN


@pytest.mark.anyio
@pytest.mark.parametrize("header", [None, "nonsense"])
async def test_without_one_the_model_gets_none(openai: OpenAIServer, model: OpenAIModel, header: str | None) -> None:
    await in_a_request(header, model)
    assert "traceparent" not in openai.requests[0].headers


@pytest.mark.anyio
async def test_a_request_without_one_does_not_inherit_it_from_the_one_before() -> None:
    arrive(HEADER)
    arrive(None)
    assert tracing.here() is None


# ---------------------------------------------------------------------------------------------------------------
# OpenTelemetry


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "_TRACER_PROVIDER", provider)  # the package lets nobody set it twice
    return exporter


def scripted(model: OpenAIModel, outcome: Outcome) -> RunAgent:
    async def agent(turn: Turn, emit: Emit, stopping: asyncio.Future[StopCause]) -> Outcome:
        await ask(model)
        return outcome

    return traced(agent, model.name)


async def run(agent: RunAgent) -> Outcome:
    arrive(HEADER)
    turn = Turn("o", "thread", "run", "canary")
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
    return await asyncio.create_task(_awaited(agent, turn, stopping))


async def _awaited(agent: RunAgent, turn: Turn, stopping: asyncio.Future[StopCause]) -> Outcome:
    return await agent(turn, lambda _: None, stopping)


@pytest.mark.anyio
async def test_a_turn_and_its_call_of_the_model_are_spans_of_the_callers_trace(
    openai: OpenAIServer, model: OpenAIModel, spans: InMemorySpanExporter
) -> None:
    openai.reply(text("canary"), finish())
    await run(scripted(model, Outcome("stop", None, frozenset(), USAGE, None)))
    chat, agent = spans.get_finished_spans()
    assert (chat.name, chat.kind) == ("chat gpt-test", otel.SpanKind.CLIENT)
    assert dict(chat.attributes or {}) == {
        gen_ai.GEN_AI_OPERATION_NAME: "chat",
        gen_ai.GEN_AI_PROVIDER_NAME: "openai",
        gen_ai.GEN_AI_REQUEST_MODEL: "gpt-test",
        gen_ai.GEN_AI_REQUEST_STREAM: True,
        gen_ai.GEN_AI_CONVERSATION_ID: "thread",
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: ("stop",),
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: 11,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: 7,
        "server.address": "127.0.0.1",
        "server.port": int(openai.base_url.rpartition(":")[2].partition("/")[0]),
    }
    assert (agent.name, agent.kind) == ("invoke_agent draftstream", otel.SpanKind.INTERNAL)
    assert dict(agent.attributes or {}) == {
        gen_ai.GEN_AI_OPERATION_NAME: "invoke_agent",
        gen_ai.GEN_AI_PROVIDER_NAME: "openai",
        gen_ai.GEN_AI_AGENT_NAME: "draftstream",
        gen_ai.GEN_AI_REQUEST_MODEL: "gpt-test",
        gen_ai.GEN_AI_CONVERSATION_ID: "thread",
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: 11,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: 7,
        "draftstream.run_id": "run",
    }
    assert agent.parent is not None
    assert agent.context is not None
    assert chat.parent is not None
    assert chat.context is not None
    assert f"{agent.parent.span_id:016x}" == SPAN
    assert f"{agent.context.trace_id:032x}" == TRACE
    assert chat.parent.span_id == agent.context.span_id
    assert openai.requests[0].headers["traceparent"] == f"00-{TRACE}-{chat.context.span_id:016x}-01"
    assert "canary" not in chat.to_json() + agent.to_json()


@pytest.mark.anyio
async def test_an_http_client_that_is_instrumented_sends_a_span_of_the_same_trace(
    openai: OpenAIServer, spans: InMemorySpanExporter
) -> None:
    AioHttpClientInstrumentor().instrument()
    try:
        model = OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)
        await run(scripted(model, Outcome("stop", None, frozenset(), USAGE, None)))
    finally:
        AioHttpClientInstrumentor().uninstrument()
    post, chat, agent = spans.get_finished_spans()
    parents = [f"{span.parent.span_id:016x}" if span.parent is not None else None for span in (post, chat, agent)]
    ids = [f"{span.context.span_id:016x}" if span.context is not None else None for span in (post, chat, agent)]
    assert parents == [ids[1], ids[2], SPAN]
    assert openai.requests[0].headers["traceparent"].startswith(f"00-{TRACE}-{ids[0]}-")


@pytest.mark.anyio
async def test_a_call_that_fails_says_so_by_its_code(
    openai: OpenAIServer, model: OpenAIModel, spans: InMemorySpanExporter
) -> None:
    openai.reply(status(401, "invalid_api_key"))
    with pytest.raises(ModelError):
        await ask(model)
    [span] = spans.get_finished_spans()
    assert span.status.status_code is otel.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "model_auth"
    assert "canary" not in span.to_json()


@pytest.mark.anyio
async def test_a_turn_that_failed_says_so(
    openai: OpenAIServer, model: OpenAIModel, spans: InMemorySpanExporter
) -> None:
    error = ModelError("model_truncated", "canary", retryable=True)
    await run(scripted(model, Outcome(None, error, frozenset(), None, None)))
    agent = spans.get_finished_spans()[-1]
    assert (agent.attributes or {})["error.type"] == "model_truncated"
    assert "canary" not in agent.to_json()


@pytest.mark.anyio
async def test_a_call_that_is_left_in_the_middle_has_not_failed(
    openai: OpenAIServer, model: OpenAIModel, spans: InMemorySpanExporter
) -> None:
    openai.reply(text("a"), stall())
    heard = asyncio.Event()
    reply = asyncio.create_task(model.reply([HumanMessage("Hi")], [], lambda _: heard.set()))
    await heard.wait()
    reply.cancel()
    await asyncio.wait({reply})
    assert reply.cancelled()
    await model.aclose()
    [span] = spans.get_finished_spans()
    assert span.status.status_code is otel.StatusCode.UNSET


@pytest.mark.anyio
async def test_where_the_server_has_a_span_it_is_the_parent(spans: InMemorySpanExporter) -> None:
    with otel.get_tracer("asgi").start_as_current_span("POST /api/chat") as server:
        context = arrive(HEADER)
    assert context is not None
    assert context.span_id == f"{server.get_span_context().span_id:016x}"


@pytest.mark.parametrize("provider", ["openai", "draftstream"])
def test_a_service_that_has_it_configured_records_its_turns(
    service: Callable[..., Service], openai: OpenAIServer, provider: str
) -> None:
    running = service(openai=openai if provider == "openai" else None, app="traced_app:app")
    said = chat(running.url, "canary", thread_id="t", headers={"traceparent": HEADER})
    spans = [json.loads(line) for line in running.log.splitlines() if line.startswith('{"name')]
    [turn] = [span for span in spans if span["name"] == "invoke_agent draftstream"]
    assert turn["attributes"]["draftstream.run_id"] == said.run_id
    assert turn["attributes"]["gen_ai.provider.name"] == provider
    assert turn["parent_id"] == f"0x{SPAN}"
    calls = [span for span in spans if span["name"] == "chat gpt-test"]
    assert [call["parent_id"] for call in calls] == [turn["context"]["span_id"]] * len(openai.requests)
    assert "canary" not in running.log
    assert "spans without any text of conversations: ConsoleSpanExporter to unknown" in running.log


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("https://user:canary@otel.example:4318/v1/traces?canary", "https://otel.example:4318"),
        ("otel.example:4317", "grpc://otel.example:4317"),
        (None, "unknown"),
    ],
)
def test_the_place_that_spans_go_to_is_named(
    endpoint: str | None, shown: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemorySpanExporter()
    if endpoint is not None:
        exporter._endpoint = endpoint  # type: ignore[attr-defined]  # as the exporters of OTLP have it
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: provider)
    with caplog.at_level("INFO", "draftstream"):
        tracing.name_exporters()
    assert caplog.messages == [f"spans without any text of conversations: InMemorySpanExporter to {shown}"]


def test_it_works_without_the_package() -> None:
    script = """import sys
sys.modules["opentelemetry"] = None
from telemetry import tracing
context = tracing.arrive(sys.argv[1])
with tracing.ModelCall("m", "http://localhost/v1") as call:
    assert call.headers["traceparent"].startswith(sys.argv[1][:36]), call.headers
"""
    subprocess.run([sys.executable, "-c", script, HEADER], cwd=ROOT, check=True)
