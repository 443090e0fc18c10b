"""No message and no document leaves the service but to the model's address: tracers, gateways, redirects, proxies."""

import ast
import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import aiohttp
import langsmith.utils
import pytest
from aiohttp import web
from conftest import ROOT, Service
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from openai_server import OpenAIServer, Step, Stream, finish, text, tool
from sse_client import chat

from access.jwts import JwksProvider
from drafting.deltas import ModelError, ProxyError
from drafting.provider.openai_model import OpenAIModel
from settings import Settings
from telemetry.logs import NO_ORIGIN, origin_of
from telemetry.tracers import TracerError, take_variables, tracers

pytestmark = pytest.mark.anyio

Start = Callable[..., Service]

SAID, WRITTEN = "the fee is a Walrus", "# NDA\n\nThe fee is a Narwhal."


class Collector:
    """Takes whatever it is sent, and keeps it."""

    def __init__(self, answer: tuple[int, dict[str, str]] = (202, {})) -> None:
        collected: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                encoded = self.headers.get("content-encoding") == "zstd"
                collected.append(f"{self.requestline}\n{self.headers}".encode() + (unpacked(body) if encoded else body))
                self.send_response(answer[0])
                for name, value in answer[1].items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_PUT = do_PATCH = do_CONNECT = do_POST  # noqa: N815  # names that http.server wants

            def log_message(self, *_: object) -> None:
                pass

        self.collected = collected
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def has(self, words: str) -> bool:
        return any(words.encode() in request for request in self.collected)


def unpacked(body: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


@contextmanager
def collecting(answer: tuple[int, dict[str, str]] = (202, {})) -> Iterator[Collector]:
    collector = Collector(answer)
    thread = threading.Thread(target=collector.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        collector.server.server_close()
        thread.join()


# ---------------------------------------------------------------------------------------------------------------
# Tracers and gateways

SWITCHES = {
    **{f"{package}_{name}": "true" for package in ("LANGSMITH", "LANGCHAIN") for name in ("TRACING", "TRACING_V2")},
    **dict.fromkeys(("LANGCHAIN_HANDLER", "LANGCHAIN_VERBOSE", "LANGCHAIN_DEBUG"), "true"),
    **dict.fromkeys(("LANGCHAIN_WANDB_TRACING", "LANGCHAIN_COMET_TRACING"), "true"),
    **dict.fromkeys(("LANGSMITH_OTEL_ENABLED", "LANGCHAIN_OTEL_ENABLED"), "true"),
    "LANGSMITH_TRACING_MODE": "hybrid",
}
KEYS = {"LANGSMITH_API_KEY": "lsv2_canary", "LANGCHAIN_API_KEY": "lsv2_canary", "LANGSMITH_GATEWAY_API_KEY": "canary"}


def all_at(url: str) -> dict[str, str]:
    """Every variable by which a package could be told to send something there."""
    places = ["LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT", "LANGSMITH_GATEWAY", "LANGCHAIN_BASE_URL", "OPENAI_API_BASE"]
    places += ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OPENAI_PROXY"]
    endpoints = json.dumps([{"api_url": url, "api_key": "canary"}])
    return SWITCHES | KEYS | dict.fromkeys(places, url) | {"LANGSMITH_RUNS_ENDPOINTS": endpoints}


@pytest.mark.parametrize("value", ["true", "local", "1"])
def test_whatever_the_environment_says_no_tracer_sees_a_turn(service: Start, openai: OpenAIServer, value: str) -> None:
    openai.reply(tool("write_document", {"title": "NDA", "content": WRITTEN}), finish("tool_calls"))
    openai.reply(text("Done."), finish())
    with collecting() as collector:
        switches = dict.fromkeys(SWITCHES, value) | {"LANGSMITH_TRACING_MODE": "hybrid"}
        running = service(openai=openai, **all_at(collector.url) | switches)
        reply = chat(running.url, SAID, thread_id="t")
        assert reply.last["saved"]
        assert [item["content"] for item in reply.items.values()] == [WRITTEN, "Done."]
        assert running.stop() == 0  # a tracer's queue is sent at the latest now
        assert collector.collected == []
    line = next(line for line in running.log.splitlines() if "TRACE_TO_LANGSMITH" in line)
    assert "LANGCHAIN_TRACING_V2" in line
    assert "canary" not in running.log


def test_no_tracer_sees_a_turn_of_the_offline_model(service: Start) -> None:
    with collecting() as collector:
        running = service(**all_at(collector.url))
        assert chat(running.url, "Draft an NDA").last["saved"]
        assert running.stop() == 0
        assert collector.collected == []


def test_a_setting_of_ours_turns_langsmith_on_and_the_log_names_the_address(
    service: Start, openai: OpenAIServer
) -> None:
    openai.reply(tool("write_document", {"title": "NDA", "content": WRITTEN}), finish("tool_calls"))
    openai.reply(text("Done."), finish())
    with collecting() as named, collecting() as other:
        variables = all_at(other.url) | {"LANGSMITH_ENDPOINT": named.url, "TRACE_TO_LANGSMITH": "1"}
        running = service(openai=openai, **variables)
        assert f"LangSmith at {named.url} gets every message and every document" in running.log
        assert "WARNING:" in running.log
        assert chat(running.url, SAID, thread_id="t").last["saved"]
        assert running.stop() == 0
        assert named.has("Walrus")
        assert named.has("Narwhal")
        assert other.collected == []
    assert "canary" not in running.log


def test_a_collector_that_redirects_gets_the_traces_and_no_other(service: Start) -> None:
    with collecting() as other, collecting((307, {"Location": f"{other.url}/steal"})) as named:
        running = service(TRACE_TO_LANGSMITH="1", LANGSMITH_ENDPOINT=named.url)
        assert chat(running.url, "Draft an NDA").last["saved"]
        assert running.stop() == 0
        assert named.collected
        assert other.collected == []


@pytest.mark.parametrize(
    "variables", [{}, {"LANGSMITH_ENDPOINT": "//x"}, {"LANGSMITH_ENDPOINT": "http://user:canary@host"}]
)
async def test_langsmith_without_an_address_or_a_key_stops_the_start(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TracerError, match=r"LANGSMITH_(API_KEY|ENDPOINT)") as refused:
        async with tracers(to_langsmith=True):
            pytest.fail("it started")
    assert "canary" not in str(refused.value)


async def test_tracers_stay_off_in_every_thread_and_task_and_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tracers(to_langsmith=False):
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
        monkeypatch.setenv("LANGCHAIN_TRACING_V2", "true")

        async def ask() -> object:
            return langsmith.utils.tracing_is_enabled()

        found: list[object] = [await ask(), await asyncio.create_task(ask())]
        found.append(await asyncio.to_thread(langsmith.utils.tracing_is_enabled))
        thread = threading.Thread(
            target=lambda: found.append(langsmith.utils.tracing_is_enabled())
        )  # no context of ours
        thread.start()
        thread.join()
        assert found == [False] * 4


def test_the_tracers_variables_are_taken_and_no_others() -> None:
    env = {"LANGSMITH_X": "a", "langchain_y": "b", "LANGCHAIN_EMPTY": "", "OPENAI_API_KEY": "k", "MY_LANGSMITH_X": "c"}
    assert take_variables(env) == {"LANGSMITH_X": "a", "langchain_y": "b"}
    assert env == {"OPENAI_API_KEY": "k", "MY_LANGSMITH_X": "c"}


@pytest.mark.parametrize("name", ["OPENAI_API_BASE", "LANGSMITH_GATEWAY", "OPENAI_BASE_URL"])
async def test_a_model_with_a_key_alone_names_its_own_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://gateway.example")
    model = OpenAIModel("m", api_key="k", base_url=None)
    await model.aclose()
    assert model.origin == "https://api.openai.com"


# Variables that the packages read, and why each is harmless here.
HARMLESS = {
    **dict.fromkeys(
        ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_PROXY", "OPENAI_ADMIN_KEY"),
        "the service names the address, the proxy and the key itself",
    ),
    **dict.fromkeys(
        ("OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"),
        "headers to the model's address, which an operator may want",
    ),
    **dict.fromkeys(("OPENAI_LOG",), "their lines go through our log"),
    **dict.fromkeys(
        (
            *("OPENAI_WEBHOOK_SECRET", "OPENAI_API_VERSION", "OPENAI_API_TYPE", "AZURE_OPENAI_ENDPOINT"),
            *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_REGION"),
            *("AWS_DEFAULT_REGION", "AWS_BEDROCK_BASE_URL", "VENDOR_API_KEY", "CODEX_INTERNAL_ORIGINATOR_OVERRIDE"),
            *("LC_OUTPUT_VERSION", "HOSTED_LANGSERVE_PROJECT_NAME", "LANGGRAPH_AES_KEY", "AZURE_OPENAI_BASE_URL"),
        ),
        "of clients, webhooks and ciphers that the service does not use",
    ),
    **dict.fromkeys(
        (
            *("LANGGRAPH_STRICT_MSGPACK", "LANGGRAPH_DELTA_MAX_SUPERSTEPS_SINCE_SNAPSHOT"),
            *("LANGGRAPH_DEFAULT_RECURSION_LIMIT", "DEFER_PYDANTIC_BUILD", "PYTHONASYNCIODEBUG"),
        ),
        "no address",
    ),
    **dict.fromkeys(
        (
            *("OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"),
            *("OTEL_EXPORTER_OTLP_ENDPOINT", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"),
            *("PYTEST_XDIST_TESTRUNUID", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        ),
        "read by LangSmith's tracer, which is off, or by the proxies that the log names",
    ),
}
PACKAGES = ("langsmith", "langchain_core", "langchain_openai", "langgraph", "langgraph_sdk", "openai", "tiktoken")
READERS = ("get", "getenv", "get_env_var", "_get_langsmith_env_var_uncached", "from_env", "secret_from_env", "pop")
NOT_USED = ("evaluation", "sandbox", "cli", "testing", "wrappers", "integrations", "middleware", "tools", "smith")


def variables_read(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        if any(part in NOT_USED for part in path.relative_to(folder).parts) or path.name.startswith("pytest"):
            continue
        source = path.read_text()
        if "env" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name, called = node.args[0].value, ast.unparse(node.func)
                is_read = called.rpartition(".")[2] in READERS and ("env" in called)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                name, is_read = node.slice.value, ast.unparse(node.value).endswith("environ")
            elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
                name, is_read = node.left.value, "environ" in ast.unparse(node.comparators[0])
            else:
                continue
            if is_read and isinstance(name, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", name):
                prefixed = "env_var" in ast.unparse(node) and "LANG" not in name  # it puts LANGSMITH_ in front
                yield f"LANGSMITH_{name}" if prefixed else name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_variable_that_a_package_reads_is_known(package: str) -> None:
    """An update that reads another one fails here, and somebody decides whether it is harmless."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    read = {name for place in spec.submodule_search_locations for name in variables_read(Path(place))}
    if package in ("langsmith", "openai", "langchain_openai"):
        assert len(read) > 3
    left = {name for name in read if not name.startswith(("LANGSMITH_", "LANGCHAIN_", "TIKTOKEN_", "DATA_GYM_"))}
    assert left - set(HARMLESS) == set()


def test_the_service_needs_no_package_that_exports_spans() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if "==" in line}
    assert {name for name in names if "opentelemetry" in name or name in ("langfuse", "wandb", "sentry-sdk")} == set()
    assert requires("langsmith")


# ---------------------------------------------------------------------------------------------------------------
# Redirects


def redirect(code: int, target: str | None) -> Step:
    async def step(stream: Stream) -> None:
        headers = {} if target is None else {"Location": target}
        stream.response = web.StreamResponse(status=code, headers=headers)
        await stream.response.prepare(stream.http)

    return step


@pytest.mark.parametrize("code", [300, 301, 302, 303, 307, 308])
def test_the_model_is_not_followed_to_another_address(service: Start, openai: OpenAIServer, code: int) -> None:
    with collecting() as other:
        openai.reply(redirect(code, f"{other.url}/steal?canary=1"))
        running = service(openai=openai)
        reply = chat(running.url, SAID)
        assert (reply.last["type"], reply.last["code"], reply.last["retryable"]) == (
            "error",
            "model_unreachable",
            False,
        )
        assert "operator" in reply.last["content"]
        assert other.collected == []
        assert f"redirects ({code}) to {other.url}," in running.log
    assert len(openai.requests) == 1
    assert "canary" not in running.log
    assert "steal" not in running.log


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/v2/chat/completions?canary", "http://127.0.0.1"),
        ("//user:canary@evil.example/x", "http://evil.example,"),
        ("https://[::1]:8443/canary", "https://[::1]:8443,"),
        ("http://[canary", NO_ORIGIN),
        ("http://host:canary/", NO_ORIGIN),
        ("", "http://127.0.0.1"),
        (None, "http://127.0.0.1"),
    ],
)
async def test_a_redirect_is_named_by_its_origin_alone(
    openai: OpenAIServer, target: str | None, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    openai.reply(redirect(307, target))
    model = OpenAIModel("gpt-test", api_key=openai.key, base_url=openai.base_url)
    with pytest.raises(ModelError) as failed:
        await model.reply([HumanMessage("Hi")], (), lambda _: None)
    await model.aclose()
    assert (failed.value.code, failed.value.retryable) == ("model_unreachable", False)
    assert f") to {named}" in caplog.text
    assert "canary" not in caplog.text
    assert len(openai.requests) == 1


@given(st.text(max_size=40))
def test_an_origin_has_no_user_no_path_and_no_query(rest: str) -> None:
    assert origin_of(f"https://user:{quote(rest, safe='')}@host.example/{rest}?{rest}#{rest}") in (
        "https://host.example",
        NO_ORIGIN,
    )


# ---------------------------------------------------------------------------------------------------------------
# Proxies


PROXY, DIRECT = "http://proxy.example:3128", None


@pytest.mark.parametrize(
    ("env", "base_url", "expected"),
    [
        ({}, "https://api.example/v1", DIRECT),
        ({"HTTPS_PROXY": "http://user:canary@proxy.example:3128"}, "https://api.example/v1", PROXY),
        ({"https_proxy": "http://user:canary@proxy.example:3128"}, "https://api.example/v1", PROXY),
        ({"HTTPS_PROXY": "proxy.example:3128"}, None, PROXY),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "https://api.example/v1", DIRECT),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "http://api.example/v1", PROXY),
        ({"ALL_PROXY": "http://proxy.example:3128"}, "http://api.example/v1", PROXY),
        ({"ALL_PROXY": "http://proxy.example:3128", "NO_PROXY": "api.example"}, "http://api.example/v1", DIRECT),
        ({"ALL_PROXY": "http://proxy.example:3128", "NO_PROXY": ".example"}, "http://api.example/v1", DIRECT),
        ({"ALL_PROXY": "http://proxy.example:3128", "NO_PROXY": "*"}, "http://api.example/v1", DIRECT),
        ({"ALL_PROXY": "http://proxy.example:3128", "NO_PROXY": "127.0.0.1"}, "http://api.example/v1", PROXY),
        ({"OPENAI_PROXY": "http://proxy.example:3128"}, "https://api.example/v1", DIRECT),
    ],
)
async def test_the_proxy_is_the_one_that_the_client_takes(
    env: dict[str, str], base_url: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    model = OpenAIModel("m", api_key="k", base_url=base_url)
    await model.aclose()
    assert model.proxy == expected
    assert model.origin == origin_of(base_url or "https://api.openai.com")


@pytest.mark.parametrize(
    "env",
    [
        {"ALL_PROXY": "socks5://user:canary@p.example:1080"},
        {"HTTPS_PROXY": "http://user:canary@p.example:canary"},
        {"HTTPS_PROXY": "ftp://canary"},
    ],
)
def test_a_proxy_that_can_not_be_used_stops_the_start(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProxyError, match="PROXY") as refused:
        OpenAIModel("m", api_key="k", base_url="https://api.example/v1")
    assert "canary" not in str(refused.value)


async def test_a_proxy_of_other_hosts_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://p.example:1080")
    monkeypatch.setenv("NO_PROXY", "api.example")
    model = OpenAIModel("m", api_key="k", base_url="https://api.example/v1")
    await model.aclose()
    assert model.proxy is None


def test_a_start_names_the_proxy_that_the_turns_go_through(service: Start, openai: OpenAIServer) -> None:
    openai.reply(text("Hello."), finish())
    place = openai.base_url.removeprefix("http://").removesuffix("/v1")
    proxied = {"OPENAI_BASE_URL": "http://model.example/v1", "HTTP_PROXY": f"http://user:canary@{place}"}
    running = service(openai=openai, **proxied)
    assert f"model: gpt-test at http://model.example, through the proxy http://{place}" in running.log
    assert chat(running.url, "Hi").text == "Hello."
    assert openai.requests[-1].headers["Host"] == "model.example"
    assert "canary" not in running.log
    assert "a record of" not in running.log, "a warning of a package about a client that is not used"


def test_a_start_says_that_there_is_no_proxy(service: Start, openai: OpenAIServer) -> None:
    openai.reply(text("Hello."), finish())
    nobody = "http://127.0.0.1:9"
    running = service(openai=openai, HTTP_PROXY=nobody, HTTPS_PROXY=nobody, NO_PROXY="127.0.0.1")
    assert ", without a proxy" in running.log
    assert chat(running.url, "Hi").text == "Hello."


async def test_the_keys_of_an_identity_provider_are_fetched_without_a_proxy_and_without_a_redirect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collecting() as other, collecting((302, {"Location": f"{other.url}/keys"})) as provider:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        monkeypatch.setenv("ALL_PROXY", other.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        settings = Settings.from_env(
            {"JWT_JWKS_URL": f"{provider.url}/keys", "JWT_ISSUER": "https://i.example", "JWT_AUDIENCE": "a"}
        )
        assert settings.jwt_jwks_url is not None
        async with aiohttp.ClientSession() as session:
            provider_keys = JwksProvider(settings.jwt_jwks_url, "https://i.example", "a", session)
            await asyncio.wait({provider_keys.refresh()})
        assert len(provider.collected) == 1
        assert other.collected == []
