"""The models that the settings choose: what each request to a provider has, the one that a caller names, the fallback."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import requests
from aiohttp import web
from conftest import Service, rows
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from openai_server import OpenAIServer, finish, reset, role, status, text
from sse_client import chat

from agent import Agent
from chat import Finished, StopCause, Turn
from drafting.context.give_back import OPAQUE, source_of
from drafting.deltas import Hear, ModelDelta, ModelError, Reported, ToolCallDelta
from drafting.fallback import ELSEWHERE, ModelWithFallback
from drafting.port import ChatModel
from drafting.provider.endpoint import Endpoint
from drafting.provider.openai_model import OpenAIModel
from settings import Settings, SettingsError
from threads.checkpointer import Checkpointer

pytestmark = pytest.mark.anyio

Start = Callable[..., Service]
PROVIDER = {"OPENAI_API_KEY": "sk-x"}
KEPT = {"reasoning_content": "secret thought"}


@pytest.fixture
def second() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


# ---------------------------------------------------------------------------------------------------------------
# The settings


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
        ("https://openai.com.example.org/v1", "max_tokens"),
        ("http://localhost:11434/v1", "max_tokens"),
        ("https://api.mistral.ai/v1", "max_tokens"),
    ],
)
def test_the_limit_of_a_reply_has_the_name_that_the_provider_knows(base_url: str | None, name: str) -> None:
    assert Endpoint(base_url=base_url, max_output_tokens=7).parameters == {
        "stream_options": {"include_usage": True},
        name: 7,
    }


def test_nothing_is_sent_that_is_not_set() -> None:
    assert Endpoint(stream_options=False).parameters == {}


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"MODEL_HEADERS": "api-key: x"}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '["api-key"]'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"api-key": 7}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"api key": "x"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"api-key": "x\\r\\nX-Other: y"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"Host": "evil"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"content-LENGTH": "5"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"api-key": "x", "API-Key": "y"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"api-key": "x", "api-key": "y"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"a": {"b": "x"}}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '[["a", "b"]]'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"a": ""}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": '{"a": "ü"}'}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": "[" * 100_000}, "MODEL_HEADERS"),
        ({"MODEL_HEADERS": "'{}'"}, "MODEL_HEADERS"),
        ({"MODEL_QUERY": "api-version"}, "MODEL_QUERY"),
        ({"MODEL_QUERY": "a=1&a=2"}, "MODEL_QUERY"),
        ({"MODELS": '"a","b"'}, "MODELS"),
        ({"MODELS": "a," + "b" * 201}, "MODELS"),
        ({"OPENAI_MODEL": "'gpt-5.1'"}, "OPENAI_MODEL"),
        ({"OPENAI_MODEL": "gpt\n5"}, "OPENAI_MODEL"),
        ({"OPENAI_MODEL": "gpt\u200b5"}, "OPENAI_MODEL"),
        ({"MODEL_FALLBACK": "gpt-5.1"}, "MODEL_FALLBACK"),
        ({"MODEL_TEMPERATURE": "inf"}, "MODEL_TEMPERATURE"),
        ({"MODEL_STREAM_OPTIONS": "no"}, "MODEL_STREAM_OPTIONS"),
        ({"MODEL_MAX_OUTPUT_TOKENS": "1.5"}, "MODEL_MAX_OUTPUT_TOKENS"),
        ({"MODELS": "a b"}, "MODELS"),
        ({"MODEL_TEMPERATURE": "2.1"}, "MODEL_TEMPERATURE"),
        ({"MODEL_TEMPERATURE": "nan"}, "MODEL_TEMPERATURE"),
        ({"MODEL_MAX_OUTPUT_TOKENS": "0"}, "MODEL_MAX_OUTPUT_TOKENS"),
        ({"MODEL_REASONING_EFFORT": "very high"}, "MODEL_REASONING_EFFORT"),
        ({"MODEL_FALLBACK_BASE_URL": "http://x"}, "MODEL_FALLBACK_BASE_URL"),
        ({"MODEL_FALLBACK_API_KEY": "x"}, "MODEL_FALLBACK_API_KEY"),
        ({"MODELS": "a", "OPENAI_API_KEY": ""}, "MODELS"),
        ({"MODEL_FALLBACK": "a", "OPENAI_API_KEY": ""}, "MODEL_FALLBACK"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_setting(env: Mapping[str, str], name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} (must be|needs)") as wrong:
        Settings.from_env({**PROVIDER, **env})
    assert "\n" not in str(wrong.value)
    assert "api-key: x" not in str(wrong.value)
    assert "evil" not in str(wrong.value)


@pytest.mark.parametrize(
    ("env", "name", "value"),
    [
        ({"OPENAI_MODEL": "Meta Llama 3"}, "openai_model", "Meta Llama 3"),
        ({"OPENAI_MODEL": "通义千问/max:free"}, "openai_model", "通义千问/max:free"),
        ({"MODEL_FALLBACK": " a "}, "model_fallback", "a"),
        ({"MODELS": "a,,b, a"}, "model_names", ("gpt-5.1", "a", "b")),
        ({"MODELS": " , "}, "model_names", ("gpt-5.1",)),
        ({"MODELS": "vendor/x:free,gpt-5.1"}, "model_names", ("gpt-5.1", "vendor/x:free")),
        ({"MODEL_HEADERS": "{}"}, "model_headers", ()),
        ({"MODEL_HEADERS": ' {"X-Title": "My Draft" }'}, "model_headers", (("X-Title", "My Draft"),)),
        ({"MODEL_QUERY": "?a=1&b="}, "model_query", (("a", "1"), ("b", ""))),
        ({"MODEL_QUERY": "sig=a%2Fb+c%3D"}, "model_query", (("sig", "a/b c="),)),
        ({"MODEL_TEMPERATURE": "0"}, "model_temperature", 0.0),
        ({"MODEL_FALLBACK": "gpt-5.1", "MODEL_FALLBACK_API_KEY": "sk-y"}, "model_fallback", "gpt-5.1"),
        ({"MODEL_HEADERS": "", "MODELS": " ", "MODEL_TEMPERATURE": ""}, "model_names", ("gpt-5.1",)),
    ],
)
def test_a_value_is_read_as_it_was_meant(env: Mapping[str, str], name: str, value: object) -> None:
    assert getattr(Settings.from_env({**PROVIDER, **env}), name) == value


def test_headers_and_queries_are_secret() -> None:
    env = {
        "MODEL_HEADERS": '{"api-key": "geheim-eins", "Authorization": "Bearer geheim-drei"}',
        "MODEL_QUERY": "sig=geheim-zwei&api-version=1",
    }
    settings = Settings.from_env({**PROVIDER, **env})
    assert {"geheim-eins", "geheim-zwei", "1", "geheim-drei"} < set(settings.secrets)
    assert "geheim" not in repr(settings)


def test_the_default_model_is_one_of_the_models() -> None:
    settings = Settings.from_env(PROVIDER | {"OPENAI_MODEL": "b", "MODELS": "a, b,c"})
    assert settings.model_names == ("b", "a", "c")
    assert Settings.from_env({}).model_names == ("offline",)


def test_each_setting_arrives_at_the_provider(service: Start, openai: OpenAIServer) -> None:
    running = service(
        openai=openai,
        MODEL_HEADERS='{"api-key": "geheim-eins", "X-Tenant": "acme"}',
        MODEL_QUERY="api-version=2024-10-21",
        MODEL_STREAM_OPTIONS="0",
        MODEL_MAX_OUTPUT_TOKENS="900",
        MODEL_TEMPERATURE="0.2",
        MODEL_REASONING_EFFORT="low",
    )
    assert chat(running.url, "Hi").last["reason"] == "stop"
    [asked] = [request for request in openai.requests if request.body]
    body = asked.body
    assert (body["max_tokens"], body["temperature"], body["reasoning_effort"]) == (900, 0.2, "low")
    assert "stream_options" not in body
    assert "max_completion_tokens" not in body
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert (headers["api-key"], headers["x-tenant"]) == ("geheim-eins", "acme")
    assert headers["authorization"] == f"Bearer {openai.key}"
    assert "geheim" not in running.log


HEADERS: list[tuple[str | None, Mapping[str, str], Mapping[str, list[str]]]] = [
    # The key, the headers that are set, and those that arrive.
    ("sk-x", {}, {"authorization": ["Bearer sk-x"]}),
    (None, {}, {"authorization": []}),
    (None, {"api-key": "a"}, {"authorization": [], "api-key": ["a"]}),
    ("sk-x", {"API-Key": "a"}, {"authorization": ["Bearer sk-x"], "api-key": ["a"]}),
    ("sk-x", {"Authorization": "Basic abc"}, {"authorization": ["Basic abc"]}),
    (None, {"authorization": "Basic abc"}, {"authorization": ["Basic abc"]}),
    ("sk-x", {"AUTHORIZATION": "Basic abc"}, {"authorization": ["Basic abc"]}),
    (None, {"user-agent": "Acme/1"}, {"user-agent": ["Acme/1"]}),
    (None, {"ACCEPT": "text/event-stream"}, {"accept": ["text/event-stream"]}),
    (None, {"x-stainless-lang": "none"}, {"x-stainless-lang": ["none"]}),
    (None, {"traceparent": "x"}, {"traceparent": ["x"]}),
]


async def test_a_header_of_the_settings_takes_the_place_of_the_clients_own() -> None:
    """Whatever its capitals: two of a kind would be refused, or the wrong one obeyed."""
    seen: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        return web.json_response({"data": []})

    server = web.Server(answer)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1?a=url&b=url"
    for key, headers, expected in HEADERS:
        model = OpenAIModel("m", api_key=key, base_url=base_url, headers=headers, query={"b": "setting", "c": "ü/ &"})
        await model.named("n").get(f"{model.base_url}/models")
        await model.aclose()
        arrived = seen[-1].headers
        assert {name: arrived.getall(name, []) for name in expected} == expected, (key, headers)
        assert dict(seen[-1].query) == {"a": "url", "b": "setting", "c": "ü/ &"}, "MODEL_QUERY wins"
    await runner.cleanup()


async def test_a_model_of_the_same_address_shares_nothing_that_is_a_models_own(openai: OpenAIServer) -> None:
    first = OpenAIModel("o1", api_key=openai.key, base_url=openai.base_url)
    second = first.named("gpt-small")
    signed = AIMessage("Hello", additional_kwargs={OPAQUE: {"from": source_of(first.base_url, "o1"), "reply": KEPT}})
    signed.additional_kwargs[OPAQUE]["calls"] = []
    history = [HumanMessage("Hi"), signed, HumanMessage("And now?")]
    given = [model.payload(history, {})[0] for model in (first, second)]
    assert [payload["model"] for payload in given] == ["o1", "gpt-small"]
    assert [payload["messages"][1].get("reasoning_content") for payload in given] == ["secret thought", None]
    assert [payload.get("temperature") for payload in given] == [None, None], "nothing is sent that is not set"
    await first.aclose()


# ---------------------------------------------------------------------------------------------------------------
# The model of a request


def test_a_request_names_its_model(service: Start, openai: OpenAIServer, database_url: str) -> None:
    running = service(openai=openai, MODELS="gpt-small,vendor/large:free")
    named = chat(running.url, "Hi", model="vendor/large:free", thread_id="t", headers={"Idempotency-Key": "k"})
    default = chat(running.url, "And now?", thread_id="t")
    by_get = requests.get(f"{running.url}/chat", {"message": "Hi", "model": "gpt-small"}, timeout=30)
    assert (named.events[0]["model"], default.events[0]["model"]) == ("vendor/large:free", "gpt-test")
    assert '"model":"gpt-small"' in by_get.text
    asked = [request.body["model"] for request in openai.requests if request.body]
    assert asked == ["vendor/large:free", "gpt-test", "gpt-small"]
    history = requests.get(f"{running.url}/api/threads/t", timeout=30).json()
    assert [run["model"] for run in history["runs"]] == ["vendor/large:free", "gpt-test"]
    other = chat(running.url, "Hi", model="gpt-small", thread_id="t", headers={"Idempotency-Key": "k"})
    assert other.status == 422, "the model is part of the request"
    null = chat(running.url, "Hi", model=None, thread_id="n", headers={"Idempotency-Key": "n"})
    assert null.events[0]["model"] == "gpt-test", "null is the default, as for a thread_id"
    left_out = chat(running.url, "Hi", thread_id="n", headers={"Idempotency-Key": "n"})
    assert left_out.events[0]["run_id"] == null.events[0]["run_id"]
    for unknown in ("gpt-large", "GPT-SMALL", " gpt-small", "größte"):
        refused = chat(running.url, "Hi", model=unknown)
        detail = "must be a model of this service: gpt-test, gpt-small, vendor/large:free"
        assert refused.problem["errors"] == [{"pointer": "/model", "detail": detail}]
    for wrong in ("", 7, "a\n", "a" * 201, ["gpt-test"]):
        refused = chat(running.url, "Hi", model=wrong)
        detail = "must be the name of a model, of 1 to 200 characters"
        assert refused.problem["errors"] == [{"pointer": "/model", "detail": detail}]
    assert len(rows(database_url, "SELECT 1 FROM runs")) == 4
    assert "models that a request may name: gpt-test,gpt-small,vendor/large:free" in running.log
    assert running.stop() == 0
    # The operator has taken both models away. A request that names its run starts none, so it needs no model.
    changed = service(openai=openai, OPENAI_MODEL="gpt-new")
    body = {"model": "vendor/large:free", "thread_id": "t"}
    again = chat(changed.url, "Hi", **body, headers={"Idempotency-Key": "k"})
    assert (again.events[0], again.text) == (named.events[0], named.text)
    resumed = {"Last-Event-ID": f"{named.events[0]['run_id']}:0"}
    assert chat(changed.url, "Hi", **body, headers=resumed).text == named.text
    assert chat(changed.url, "Hi", thread_id="n", headers={"Idempotency-Key": "n"}).events[0] == null.events[0]
    refused = chat(changed.url, "Hi", **body, headers={"Idempotency-Key": "new"})
    assert refused.problem["errors"] == [{"pointer": "/model", "detail": "must be a model of this service: gpt-new"}]
    assert len(rows(database_url, "SELECT 1 FROM runs")) == 4


async def test_a_document_that_is_too_long_for_one_model_is_not_for_another(checkpointer: Checkpointer) -> None:
    """Each model has a context of its own, whichever others a request may name."""
    contract = json.dumps({"title": "Lease", "content": "The Tenant pays rent. " * 2500})
    writes, said = ToolCallDelta(0, "c1", "write_document", contract), Finished("stop")
    large = Drafter("large", [([writes], Finished("tool_calls")), (["Done."], said), (["Still here."], said)])
    small = Drafter("small", [(["Never."], said)])
    agent = Agent(
        large,
        checkpointer,
        remember=checkpointer.remember,
        first_token_timeout_s=60,
        idle_timeout_s=60,
        context_tokens={"large": 128_000, "small": 8_000},
        others={"large": large, "small": small},
    )
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
    last, ended = None, []
    for number, model in enumerate((None, "small", "large")):
        turn = Turn("o", "t", str(uuid.uuid4()), f"Message {number}", checkpoint_id=last, model=model)
        outcome = await agent(turn, lambda _: None, stopping)
        last = outcome.checkpoint_id
        ended.append(outcome.error.code if outcome.error is not None else outcome.reason)
    assert ended == ["stop", "model_context", "stop"]
    assert (large.asked, small.asked) == (3, 0)


class Drafter:
    """Replies with these deltas, each with its end."""

    def __init__(self, name: str, replies: Sequence[tuple[Sequence[ModelDelta], Finished]]) -> None:
        self.name = name
        self.asked = 0
        self._replies = replies

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        deltas, finished = self._replies[self.asked]
        self.asked += 1
        hear(deltas)
        return finished


# ---------------------------------------------------------------------------------------------------------------
# The fallback


class Scripted:
    """A model whose replies are a text, or an error; `heard` is said before that."""

    def __init__(self, name: str, *replies: str | ModelError, heard: Sequence[str] = ()) -> None:
        self.name = name
        self.asked = 0
        self._replies = list(replies)
        self._heard = heard

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        self.asked += 1
        hear(self._heard)
        reply = self._replies.pop(0)
        if isinstance(reply, ModelError):
            raise reply
        hear([reply])
        return Finished("stop")


def failure(code: str) -> ModelError:
    return ModelError(code, f"because of {code}", retryable=False)


async def ask(model: ChatModel) -> tuple[str, Finished]:
    said: list[str] = []
    finished = await model.reply([], [], lambda deltas: said.extend(map(str, deltas)))
    return "".join(said), finished


@pytest.mark.parametrize("code", sorted(ELSEWHERE))
async def test_the_fallback_answers_where_a_retry_would_fail(code: str) -> None:
    first, second = Scripted("a", failure(code)), Scripted("b", "Hello", "again")
    model = ModelWithFallback(first, second)
    assert await ask(model) == ("Hello", Finished("stop", model="b"))
    assert await ask(model) == ("again", Finished("stop", model="b")), "the next call does not fail first"
    assert (first.asked, second.asked, model.name) == (1, 2, "a")


@pytest.mark.parametrize(
    "code", ["model_rejected", "model_context", "content_filter", "model_truncated", "model_empty"]
)
async def test_the_conversations_own_fault_goes_nowhere_else(code: str) -> None:
    second = Scripted("b", "Hello")
    with pytest.raises(ModelError, match=code):
        await ask(ModelWithFallback(Scripted("a", failure(code)), second))
    assert second.asked == 0


async def test_a_reply_that_has_begun_is_not_begun_again() -> None:
    second = Scripted("b", "Hello")
    with pytest.raises(ModelError, match="model_unavailable"):
        await ask(ModelWithFallback(Scripted("a", failure("model_unavailable"), heard=["Half a"]), second))
    assert second.asked == 0


async def test_if_both_fail_the_first_ones_error_is_told(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Scripted("a", failure("model_quota"), "Back"), Scripted("b", failure("model_auth"))
    model = ModelWithFallback(first, second)
    with pytest.raises(ModelError, match="model_quota"):
        await ask(model)
    assert "b failed, too (model_auth)" in caplog.text
    assert await ask(model) == ("Back", Finished("stop")), "a fallback that fails is not asked first"


async def test_while_the_first_model_is_passed_by_it_stands_behind_the_fallback() -> None:
    """Its rate limit may last a second, and an account of the fallback may be empty just then."""
    first = Scripted("a", failure("model_rate_limited"), "Back")
    second = Scripted("b", "Hello", failure("model_quota"))
    model = ModelWithFallback(first, second)
    assert (await ask(model))[0] == "Hello"
    assert await ask(model) == ("Back", Finished("stop"))
    assert (first.asked, second.asked) == (2, 2)


async def test_runs_that_fail_together_are_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Scripted):
        async def reply(self, *arguments: Any, **named: Any) -> Finished:
            await asyncio.sleep(0)  # until all have asked it
            return await super().reply(*arguments, **named)

    told = ModelError("model_quota", "No.", retryable=False, reported=Reported(402, ["quota"], "pay first"))
    model = ModelWithFallback(Slow("a", *[told] * 50), Scripted("b", *["Hello"] * 50))
    said = await asyncio.gather(*(ask(model) for _ in range(50)))
    assert {text for text, _ in said} == {"Hello"}
    assert [record.getMessage() for record in caplog.records] == [
        "the model's provider reported an error (model_quota)",
        "a failed (model_quota), so b answers for the next 30 seconds",
    ]


async def test_the_first_model_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Scripted("a", failure("model_quota"), "Back"), Scripted("b", "Hello")
    model = ModelWithFallback(first, second)
    await ask(model)
    later = asyncio.get_running_loop().time() + 31
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: later)
    assert await ask(model) == ("Back", Finished("stop"))


def test_another_provider_takes_over_and_gets_no_key_of_the_first(
    service: Start, openai: OpenAIServer, second: OpenAIServer
) -> None:
    running = service(
        openai=openai,
        MODEL_HEADERS='{"X-Secret-Of-First": "Token geheim-eins"}',
        MODEL_QUERY="sig=geheim%2Fzwei",
        LOG_LEVEL="DEBUG",
        MODEL_FALLBACK="other-model",
        MODEL_FALLBACK_BASE_URL=second.base_url,
        MODEL_FALLBACK_API_KEY=second.key,
    )
    echoed = "pay first: geheim-eins, ?sig=geheim%2Fzwei, geheim/zwei"
    openai.reply(status(402, "insufficient_quota", message=echoed))
    second.reply(role(), text("From elsewhere."), finish())
    stream = chat(running.url, "Hi", thread_id="t")
    assert (stream.text, stream.last["reason"], stream.last["saved"]) == ("From elsewhere.", "stop", True)
    assert stream.events[0]["model"] == "gpt-test"
    [run] = requests.get(f"{running.url}/api/threads/t", timeout=30).json()["runs"]
    assert run["model"] == "other-model"
    [asked] = [request for request in second.requests if request.body]
    assert asked.body["model"] == "other-model"
    assert "x-secret-of-first" not in {name.lower() for name in asked.headers}
    assert "gpt-test failed (model_quota), so other-model answers" in running.log
    # Both fail: the first one's error is told, and nothing that a provider says of a key gets anywhere.
    second.reply(status(401, "invalid_api_key", message=f"no: {second.key}"))
    openai.reply(status(402, "insufficient_quota", message=echoed))
    both = chat(running.url, "Hi again", thread_id="t")
    assert both.last["code"] == "model_quota"
    assert "other-model failed, too (model_auth)" in running.log
    assert "pay first: " in running.log
    for seen in (running.log, json.dumps(both.events)):
        assert [secret for secret in ("geheim", second.key) if secret in seen] == []


def test_a_fallback_elsewhere_has_no_key_unless_it_is_given() -> None:
    endpoint = Endpoint(base_url="http://a/v1", api_key="sk-a", headers={"h": "x"}, query={"q": "x"}, temperature=1)
    there = endpoint.elsewhere("http://b/v1", None)
    assert (there.api_key, there.headers, there.query, there.temperature) == (None, {}, {}, 1)
    here = endpoint.elsewhere(None, None)
    assert here == endpoint
    assert endpoint.elsewhere(None, "sk-b").api_key == "sk-b"


def test_a_reply_that_breaks_off_is_not_continued_elsewhere(
    service: Start, openai: OpenAIServer, second: OpenAIServer
) -> None:
    running = service(openai=openai, MODEL_FALLBACK="other", MODEL_FALLBACK_BASE_URL=second.base_url)
    openai.reply(role(), text("Half a sen"), reset())
    stream = chat(running.url, "Hi")
    assert (stream.text, stream.last["type"]) == ("Half a sen", "error")
    assert [request for request in second.requests if request.body] == []
