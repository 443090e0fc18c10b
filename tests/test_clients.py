"""The clients that people use, each with a connection that breaks: one run, and the exact text."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from conftest import INHERITED, TEMPLATE, WORKER, Service, execute, in_database, required, rows, run
from cutting_proxy import CuttingProxy
from openai_server import OpenAIServer, Stream, finish, text, tool
from playwright.sync_api import Browser
from test_page import browser

__all__ = ["browser"]  # a fixture

PROGRAMS = Path(__file__).with_name("clients")
CUTS = (0, 100, 9000)
TITLE = "Mutual NDA"
DOCUMENT = "# Mutual NDA\n\n" + "".join(
    f"{number}. Cláusula “{number}” 😀 of the agreement.\n" for number in range(1, 200)
)
SAID = ["I write it.", DOCUMENT, "It is ready."]
MESSAGE = "Draft an NDA"


@dataclass
class Reply:
    """What a client made of the events: the text of each item."""

    items: list[str] = field(default_factory=list)
    titles: dict[int, str] = field(default_factory=dict)
    last: dict[str, Any] | None = None

    def take(self, data: str) -> None:
        event = json.loads(data)
        if event.get("type") in ("message", "doc"):
            self.items += [""] * (event["item"] + 1 - len(self.items))
            self.items[event["item"]] += event["content"]
            if "title" in event:
                self.titles[event["item"]] = event["title"]
        elif event.get("type") != "start":
            self.last = event


def drafting() -> Callable[[Stream], Any]:
    """A document while somebody watches: some hundred pieces in half a second."""

    async def step(stream: Stream) -> None:
        if stream.request.body["messages"][-1]["role"] == "tool":
            await text(SAID[2])(stream)
            await finish()(stream)
            return
        await text(SAID[0])(stream)
        begin = tool("write_document", {"title": TITLE, "content": DOCUMENT}, cut=80)
        write = stream.write

        async def slowly(data: bytes) -> None:
            await write(data)
            await asyncio.sleep(0.004)

        stream.write = slowly  # type: ignore[method-assign]
        await begin(stream)
        await finish("tool_calls")(stream)

    return step


@pytest.fixture(scope="module")
def running(postgres: str) -> Iterator[Service]:
    """One service for all of them."""
    name = f"clients_{WORKER}"
    run(execute(postgres, f"DROP DATABASE IF EXISTS {name}"))
    run(execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    with OpenAIServer() as openai, tempfile.TemporaryDirectory() as folder:
        openai.default = (drafting(),)
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
        env |= {"DATABASE_URL": in_database(postgres, name), "OPENAI_BASE_URL": openai.base_url}
        env |= {"OPENAI_API_KEY": openai.key, "OPENAI_MODEL": "gpt-test"}
        service = Service(env, Path(folder) / "service.log").wait_until_ready()
        yield service
        assert service.stop() == 0, service.log
        assert "Traceback" not in service.log
    run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def proxy(running: Service) -> Iterator[CuttingProxy]:
    with CuttingProxy.on_a_thread(running.port) as proxy:
        yield proxy


@dataclass
class Chats:
    """A chat for each cut, each in a thread of its own and through a port of its own."""

    running: Service
    places: list[tuple[str, str]]  # the URL and the thread of each

    @property
    def arguments(self) -> list[str]:
        return [text for place in self.places for text in place]

    def check(self, replies: dict[str, Reply]) -> None:
        for _, thread in self.places:
            reply = replies[thread]
            assert reply.last is not None, thread
            assert reply.last.get("saved") is True, reply.last
            assert reply.items == SAID, thread
            assert reply.titles == {1: TITLE}, thread
            stored = rows(self.running.env["DATABASE_URL"], f"SELECT FROM runs WHERE thread_id = '{thread}'")
            assert len(stored) == 1, f"{thread} has {len(stored)} runs"


@pytest.fixture
def chats(running: Service, proxy: CuttingProxy) -> Chats:
    name = uuid.uuid4().hex[:8]
    return Chats(running, [(proxy.open(cut), f"{name}-{cut}") for cut in CUTS])


def at_once(chats: Chats, client: Callable[[str, str], Reply]) -> dict[str, Reply]:
    with ThreadPoolExecutor(len(chats.places)) as pool:
        replies = pool.map(lambda place: client(*place), chats.places)
        return dict(zip([thread for _, thread in chats.places], replies, strict=True))


# ---------------------------------------------------------------------------------------------------------------
# Clients of a command line


@pytest.mark.parametrize("version", ["", "--http2"])
def test_curl_retries_with_the_key(chats: Chats, tmp_path: Path, version: str) -> None:
    """It starts its file anew, and gets the stream of the same run."""
    program = required("curl")

    def client(url: str, thread: str) -> Reply:
        saved = tmp_path / thread
        command = [program, *version.split(), "-sSN", "--retry", "5", "--retry-all-errors", "--retry-delay", "1"]
        command += ["-o", str(saved), "-H", "Content-Type: application/json", "-H", f"Idempotency-Key: {thread}"]
        command += ["-d", json.dumps({"message": MESSAGE, "thread_id": thread}), f"{url}/api/chat"]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        reply = Reply()
        for line in saved.read_text().splitlines():
            if line.startswith("data: "):
                reply.take(line[6:])
        return reply

    chats.check(at_once(chats, client))


# ---------------------------------------------------------------------------------------------------------------
# Clients in Python


def test_requests_sends_the_post_again_with_the_last_id(chats: Chats) -> None:
    def client(url: str, thread: str) -> Reply:
        reply, headers = Reply(), {"Idempotency-Key": thread}
        while reply.last is None:
            try:
                body = {"message": MESSAGE, "thread_id": thread}
                with requests.post(f"{url}/api/chat", json=body, headers=headers, stream=True, timeout=20) as answer:
                    seen, data = "", ""
                    for line in answer.iter_lines(decode_unicode=True):
                        if line.startswith("id: "):
                            seen = line[4:]
                        elif line.startswith("data: "):
                            data = line[6:]
                        elif not line and data:  # a whole frame
                            reply.take(data)
                            headers["Last-Event-ID"], data = seen, ""
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                continue
        return reply

    chats.check(at_once(chats, client))


def test_httpx_sse_sends_the_post_again_with_the_last_id(chats: Chats) -> None:
    if find_spec("httpx_sse") is None and not os.environ.get("REQUIRE_ALL"):
        pytest.skip("httpx-sse is not installed")
    connect_sse = import_module("httpx_sse").connect_sse

    def client(url: str, thread: str) -> Reply:
        reply, headers = Reply(), {"Idempotency-Key": thread}
        with httpx.Client(timeout=20) as session:
            while reply.last is None:
                try:
                    body = {"message": MESSAGE, "thread_id": thread}
                    with connect_sse(session, "POST", f"{url}/api/chat", json=body, headers=headers) as source:
                        for event in source.iter_sse():
                            reply.take(event.data)
                            headers["Last-Event-ID"] = event.id
                except httpx.TransportError:
                    continue
        return reply

    chats.check(at_once(chats, client))


# ---------------------------------------------------------------------------------------------------------------
# Java and Node


def test_javas_http_client_works_as_it_comes(chats: Chats) -> None:
    java = Path(required("javac")).with_name("java")  # which compiles the file itself, with the compiler of a JDK
    command = [str(java), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8"]
    command += ["-Dstdout.encoding=UTF-8", str(PROGRAMS / "Client.java"), *chats.arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    replies = {thread: Reply() for _, thread in chats.places}
    for line in done.stdout.splitlines():
        thread, _, data = line.partition(" ")
        replies[thread].take(data)
    chats.check(replies)


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder whose node_modules has what the lock file names. It is kept for the next run of the tests."""
    required("node")
    npm, lock = required("npm"), PROGRAMS / "package-lock.json"
    name = f"draftstream-clients-{os.getuid()}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)  # of several processes of tests one installs
        if not (folder / "installed").exists():
            for file in ("package.json", "package-lock.json"):
                shutil.copy(PROGRAMS / file, folder)
            done = subprocess.run(
                [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=120,
            )
            if done.returncode != 0 and not os.environ.get("REQUIRE_ALL"):
                pytest.skip(f"npm can't install the packages: {done.stderr.strip()[-200:]}")
            assert done.returncode == 0, done.stderr
            (folder / "installed").touch()
    return folder


@pytest.mark.parametrize(
    "way", ["eventsource", "eventsource without a key", "eventsource-parser", "fetch-event-source"]
)
def test_the_libraries_of_npm_reconnect(chats: Chats, packages: Path, way: str) -> None:
    """Without a key an EventSource rests on the rule for a GET that comes again, and on its id."""
    command = [required("node"), str(PROGRAMS / "client.mjs"), way, *chats.arguments]
    done = subprocess.run(command, cwd=packages, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    chats.check(
        {
            one["thread"]: Reply(one["items"], {int(item): title for item, title in one["titles"].items()}, one["last"])
            for one in told
        }
    )


# ---------------------------------------------------------------------------------------------------------------
# A browser

LISTEN = """([thread, key]) => {
    const reply = { items: [], titles: {}, last: null };
    const query = new URLSearchParams({ message: "Draft an NDA", thread_id: thread, ...(key && { idempotency_key: key }) });
    const source = new EventSource(`chat?${query}`);
    window.whole = new Promise((done) => {
        source.onmessage = ({ data }) => {
            const event = JSON.parse(data);
            if (event.type === "end" || event.type === "error") { reply.last = event; source.close(); done(reply); }
            if (!("item" in event)) return;
            reply.items[event.item] = (reply.items[event.item] ?? "") + event.content;
            if ("title" in event) reply.titles[event.item] = event.title;
        };
        source.onerror = () => source.readyState === EventSource.CLOSED && done(reply);
    });
}"""


@pytest.mark.parametrize("with_key", [True, False])
def test_an_event_source_of_a_browser_reconnects(chats: Chats, browser: Browser, *, with_key: bool) -> None:
    pages = {thread: browser.new_page() for _, thread in chats.places}
    replies = {}
    for url, thread in chats.places:
        pages[thread].goto(f"{url}/debug")
        pages[thread].evaluate(LISTEN, [thread, uuid.uuid4().hex if with_key else None])
    for thread, page in pages.items():
        got = page.evaluate("window.whole")
        titles = {int(item): title for item, title in got["titles"].items()}
        replies[thread] = Reply(got["items"], titles, got["last"])
        page.close()
    chats.check(replies)
