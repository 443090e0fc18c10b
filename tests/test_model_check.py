"""The look at the provider after the start: it names a wrong address, key, model or proxy, and raises no false alarm."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from conftest import Service
from openai_server import OpenAIServer
from sse_client import chat
from test_access import until

from drafting.deltas import HeaderError
from drafting.provider import model_check
from drafting.provider.model_check import check
from drafting.provider.openai_model import OpenAIModel
from settings import Settings, SettingsError

pytestmark = pytest.mark.anyio

Start = Callable[..., Service]
Route = tuple[int, object]  # a status, and JSON, or a text or bytes

ERROR = {"error": {"message": "Not Found", "type": "not_found_error", "code": 404}}
PAGE = b"<!doctype html><title>Welcome</title>"


def listing(*names: str, **more: object) -> object:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "x"} | more for name in names]}


@dataclass
class Provider:
    """Answers the GETs that it is given, and others with a text and 404."""

    routes: Mapping[str, Route]
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and query, and the key

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path_qs, request.headers.get("Authorization")))
        status, body = self.routes.get(request.path, (404, b"404 page not found"))
        if status in (301, 302, 307):
            return web.Response(status=status, headers={"Location": str(body)})
        if isinstance(body, bytes):
            return web.Response(status=status, body=body, content_type="text/html")
        return web.json_response(body, status=status)


@asynccontextmanager
async def provider(routes: Mapping[str, Route]) -> AsyncIterator[Provider]:
    serving = Provider(routes)
    app = web.Application()
    app.router.add_get("/{path:.*}", serving.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    serving.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield serving
    await runner.cleanup()


async def checked(base_url: str, name: str = "m") -> OpenAIModel:
    model = OpenAIModel(name, api_key="sk-canary-key", base_url=base_url)
    await check(model, {name: "OPENAI_MODEL"})
    await model.aclose()
    return model


# Where the API is, the path of OPENAI_BASE_URL, and the words of the warning; None is none.
ADDRESSES: list[tuple[Mapping[str, Route], str, str | None]] = [
    ({"/v1/models": (200, listing("m"))}, "/v1", None),
    ({"/v1/models": (200, listing("m"))}, "/v1/", None),
    ({"/models": (200, listing("m"))}, "", None),
    ({"/v1/models": (200, listing("m"))}, "", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m")), "/models": (404, ERROR)}, "", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m")), "/models": (200, PAGE)}, "", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m")), "/models": (405, ERROR)}, "", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m")), "/models": (302, "/login")}, "", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m"))}, "/v1/chat/completions", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m"))}, "/v1/models", "set it to {url}/v1"),
    ({"/v1/models": (200, listing("m"))}, "/api", "set it to {url}/v1"),
    ({"/openai/v1/models": (200, listing("m"))}, "/openai", "set it to {url}/openai/v1"),
    ({}, "/v1", "GET {url}/v1/models has the status 404 and no JSON"),
    ({}, "", "GET {url}/models has the status 404 and no JSON"),
    ({"/v1/models": (200, PAGE)}, "/v1", "has the status 200 and no JSON"),
    ({"/v1/models": (302, "https://canary.example/login")}, "/v1", "has the status 302 and no JSON"),
    # Servers without a list.
    ({"/v1/models": (404, ERROR)}, "/v1", None),
    ({"/v1/models": (405, {"detail": "Method Not Allowed"})}, "/v1", None),
    ({"/v1/models": (404, {"error": {"code": "404", "message": "Resource not found"}})}, "/v1", None),
    ({"/v1/models": (200, {"object": "list"})}, "/v1", None),
    ({"/v1/models": (200, listing())}, "/v1", None),
    ({"/v1/models": (200, "hello")}, "/v1", None),
    ({"/v1/models": (501, {"error": "no"})}, "/v1", None),
    ({"/v1/models": (503, {"error": {"message": "Loading model", "code": 503}})}, "/v1", None),
    ({"/v1/models": (429, {"error": {"message": "slow down"}})}, "/v1", None),
    # Keys.
    ({"/v1/models": (401, {"error": {"message": "no: sk-canary-key", "code": "invalid_api_key"}})}, "/v1", "refused OPENAI_API_KEY (401): no: …"),
    ({"/v1/models": (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}])}, "/v1", "refused OPENAI_API_KEY (400): API key not valid."),
    ({"/v1/models": (403, {"error": {"message": "You have insufficient permissions. Missing scopes: api.model.read"}})}, "/v1", None),
    ({"/v1/models": (402, {"error": {"message": "Insufficient Balance"}})}, "/v1", "refused to list its models (402): Insufficient Balance"),
    ({"/v1/models": (403, b"<html><title>Attention Required!</title>")}, "/v1", "refused to list its models (403): a web page: Attention Required!"),
]  # fmt: skip


@pytest.mark.parametrize(("routes", "path", "words"), ADDRESSES)
async def test_the_log_warns_of_a_wrong_address_or_key(
    routes: Mapping[str, Route], path: str, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "draftstream")
    async with provider(routes) as serving:
        await checked(serving.url + path)
        assert 1 <= len(serving.asked) <= 3
        assert {key for _, key in serving.asked} == {"Bearer sk-canary-key"}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (words is not None), messages
    assert words is None or words.format(url=serving.url) in messages[0]
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("listed", "name", "told"),
    [
        (listing("gpt-5.1", "gpt-5.1-mini", "o3"), "gpt-5.1", None),
        (listing("gpt-5.1", "gpt-5.1-mini", "o3"), "gpt-5.1-mni", "gpt-5.1-mini, gpt-5.1"),
        (listing("llama3.2:latest", "qwen3:14b"), "llama3.2", None),
        (listing("llama3.2:latest", "qwen3:14b"), "qwen3", "qwen3:14b"),
        (listing("models/gemini-2.5-pro"), "gemini-2.5-pro", None),
        (listing("x/y"), "x/y:free", None),
        (listing("openai/*"), "openai/gpt-5.1", None),
        (listing("anthropic/*"), "openai/gpt-5.1", "anthropic/*"),
        (listing("/models/q.gguf", owned_by="llamacpp"), "whatever", None),
        (listing("gpt-4o", lifecycle_status="generally-available"), "my-deployment", None),
        ({"data": [{"id": "claude-a"}], "has_more": True}, "claude-z", None),
        ([{"id": "a", "object": "model"}], "b", "a"),
        ({"data": [1, None, {"id": 5}]}, "b", None),
    ],
)
async def test_a_model_that_is_not_in_the_list_is_named_with_those_near_to_it(
    listed: object, name: str, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "draftstream")
    async with provider({"/v1/models": (200, listed)}) as serving:
        await checked(f"{serving.url}/v1", name)
    messages = [record.getMessage() for record in caplog.records]
    expected = f"the model's provider does not list OPENAI_MODEL {name}; it has {told}"
    assert messages == ([] if told is None else [expected])


async def test_the_key_and_the_query_go_to_the_address_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with provider({}) as other, provider({"/v1/models": (307, f"{other.url}/v1/models")}) as serving:
        await checked(f"{serving.url}/v1?api-version=7")
        assert other.asked == []
        assert serving.asked[0] == ("/v1/models?api-version=7", "Bearer sk-canary-key")
    assert "OPENAI_BASE_URL may be wrong" in caplog.text


async def test_an_address_where_nobody_is_and_a_proxy_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await checked("http://127.0.0.1:9/v1")
    assert "the model can't be reached at http://127.0.0.1:9 (" in caplog.text
    assert "ConnectionRefusedError" in caplog.text
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    await checked("http://model.example/v1")
    assert "at http://model.example through the proxy http://127.0.0.1:9 (" in caplog.text
    assert "canary" not in caplog.text


async def test_a_certificate_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # no TLS is spoken here
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        await checked(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    assert "can't be reached" in caplog.text
    assert "SSLError" in caplog.text
    assert issubclass(ssl.SSLCertVerificationError, ssl.SSLError)


async def test_a_provider_that_is_silent_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_check, "CHECK_TIMEOUT_S", 0.1)

    async def keep_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        writer.close()

    server = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    await checked(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    server.close()
    assert "does not answer within 0.1 s" in caplog.text


async def test_a_list_without_an_end_takes_no_memory() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b"[" * 2**16)

    app = web.Application()
    app.router.add_get("/v1/models", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model = OpenAIModel("m", api_key=None, base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    answer = await model.get(f"{model.base_url}/models")
    await model.aclose()
    await runner.cleanup()
    assert 2**23 < len(answer.body) < 2**24


def test_a_service_starts_and_chats_while_it_looks_and_then_says_what_is_wrong(
    service: Start, openai: OpenAIServer
) -> None:
    openai.silent_list.set()
    running = service(openai=openai, OPENAI_MODEL="gpt-tset")
    assert chat(running.url, "Hi").text == "OK."
    assert "does not list" not in running.log
    openai.silent_list.clear()
    until(
        lambda: "WARNING:  the model's provider does not list OPENAI_MODEL gpt-tset; it has gpt-test\n" in running.log
    )
    openai.silent_list.set()
    assert service(openai=openai).stop() == 0, "the end does not wait for an answer"
    openai.silent_list.clear()


def test_a_wrong_address_is_told_at_the_start_and_to_the_person(service: Start, openai: OpenAIServer) -> None:
    """K02: Ollama's address without /v1."""
    base_url = openai.base_url.removesuffix("/v1")
    running = service(openai=openai, OPENAI_BASE_URL=base_url)
    until(lambda: f"OPENAI_BASE_URL does not lead to the model's API: set it to {base_url}/v1\n" in running.log)
    last = chat(running.url, "Hi").last
    assert (last["code"], last["retryable"]) == ("model_misconfigured", False)
    assert "address" in last["content"]


def test_the_offline_model_asks_nobody(service: Start) -> None:
    running = service()
    assert chat(running.url, "Hello").last["type"] == "end"
    assert "provider" not in running.log


# ---------------------------------------------------------------------------------------------------------------
# Keys that no header can have


@pytest.mark.parametrize("key", ["“sk-test”", "‘sk-test’", '"sk-test"', "'sk-test", "sk-\ntest", "sk-\r\ntest", "sk test", "sk-tést", "sk-\u200btest", "sk-te\x00st", "\ufeffsk-test"])  # fmt: skip
def test_a_key_that_can_not_be_sent_stops_the_start_and_is_not_shown(key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({"OPENAI_API_KEY": key})
    assert str(refused.value).startswith("OPENAI_API_KEY must be visible ASCII characters without quotes")
    assert "test" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-test\n", "  sk-test ", "sk-proj_A.b/c+d==", "a"])
def test_a_usual_key_is_taken_without_the_blanks_around_it(key: str) -> None:
    assert Settings.from_env({"OPENAI_API_KEY": key}).openai_api_key == key.strip()


@pytest.mark.parametrize("name", ["OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
def test_a_variable_of_the_client_that_can_not_be_sent_stops_the_start(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "“canary”")
    with pytest.raises(HeaderError, match=name) as refused:
        OpenAIModel("m", api_key="k", base_url=None)
    assert "canary" not in str(refused.value)


def test_a_list_is_read_as_json() -> None:
    assert model_check.Answer("", 200, json.dumps(listing("a")).encode()).models == [
        {"id": "a", "object": "model", "owned_by": "x"}
    ]
    assert model_check.Answer("", 200, b"[" * 10**6).models is None
