"""A client that takes nothing is cut off from every answer, a slow one from none, and neither holds much memory."""

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Service
from openai_server import OpenAIServer, finish, text
from sse_client import chat
from test_export import peak_mb
from test_faults import wait_for
from test_history_pages import add

from web.asgi import PIECE_BYTES, Disconnected, Request, Response
from web.outlet import UNSENT_BYTES, Outlet

Start = Callable[..., Service]
LARGE = "/api/threads/t"


def ask(running: Service, path: str) -> socket.socket:
    """A connection that has asked, and whose system takes as little as it can."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.settimeout(60)
    asking.connect(("127.0.0.1", running.port))
    asking.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return asking


def descriptors(running: Service) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def is_reset(asking: socket.socket) -> bool:
    poll = select.poll()
    poll.register(asking, 0)
    return bool(poll.poll(0))


def whole_of(asking: socket.socket, bytes_a_read: int, pause_s: float, slowly_s: float) -> bytes:
    """All that comes; slowly for a while."""
    received, began = bytearray(), time.monotonic()
    while piece := asking.recv(bytes_a_read if time.monotonic() - began < slowly_s else 2**20):
        received += piece
        if time.monotonic() - began < slowly_s:
            time.sleep(pause_s)
    return bytes(received)


@pytest.mark.parametrize("path", [LARGE, f"{LARGE}/export?format=md", f"{LARGE}/export?format=json", "events"])
def test_a_reader_that_takes_nothing_is_cut_off_from_every_answer(
    service: Start, openai: OpenAIServer, database_url: str, path: str
) -> None:
    running = service(openai=openai, HEARTBEAT_S="0.2")
    if path == "events":
        openai.reply(*(text("x" * 100_000) for _ in range(80)), finish())
        path = f"/api/runs/{chat(running.url, 'Hi').run_id}/events"
    else:
        add(database_url, 20, 200_000)
    with ExitStack() as stack:
        deaf = [stack.enter_context(ask(running, path)) for _ in range(3)]
        wait_for(lambda: all(map(is_reset, deaf)))


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/metrics", "/api/threads/none", "/none"])
def test_a_reader_that_asks_for_more_and_takes_nothing_is_cut_off(service: Start, path: str) -> None:
    """Small answers, in line on one connection: each of them alone would fit into the buffers."""
    running = service(HEARTBEAT_S="0.2", REQUESTS_PER_MINUTE="1000000")
    before = peak_mb(running, anew=True)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", running.port))
        deaf.setblocking(False)
        asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 100

        def takes_no_more() -> bool:
            with suppress(BlockingIOError, ConnectionError):
                while True:
                    deaf.send(asked)
            return is_reset(deaf)

        wait_for(takes_no_more)
    assert chat(running.url, "Hi").last["saved"]
    assert peak_mb(running) - before < 100, "one read of the connection has some thousand requests"


def test_requests_in_line_get_their_answers(service: Start) -> None:
    running = service()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as asking:
        asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert whole_of(asking, 2**20, 0, 0).count(b"HTTP/1.1 200 OK") == 51


def test_a_slow_reader_that_takes_something_gets_all_of_it(service: Start, database_url: str) -> None:
    """Much slower than the kernel tells us that it has room again."""
    running = service(HEARTBEAT_S="0.5")
    add(database_url, 6, 200_000)
    for path in (LARGE, f"{LARGE}/export?format=md"):
        with ask(running, path) as slow, ask(running, path) as quick:
            fast = whole_of(quick, 2**20, 0, 0)
            assert len(fast) > 3_600_000
            answer = whole_of(slow, 2_000, 0.2, 6)  # six times as long as it takes to be cut off
        assert len(answer) == len(fast)
        assert answer.endswith(fast[-100:])


def test_readers_that_take_nothing_hold_little_memory(service: Start, database_url: str) -> None:
    running = service()
    add(database_url, 7, 190_000)  # a history of four megabytes
    with ask(running, LARGE) as first:
        assert len(whole_of(first, 2**20, 0, 0)) > 3_900_000
    before, idle = peak_mb(running, anew=True), descriptors(running)
    with ExitStack() as stack:
        for count in range(1, 31):
            stack.enter_context(ask(running, LARGE))
            wait_for(lambda count=count: descriptors(running) >= idle + count)  # type: ignore[misc]
        wait_for(lambda: running.process.poll() is None and chat(running.url, "Hi").last["saved"])
        assert peak_mb(running) - before < 60  # 120 MB of answers


# ---------------------------------------------------------------------------------------------------------------
# The rule itself


class Client:
    """A transport: a client that takes what it is told to."""

    def __init__(self, unsent: int = 0) -> None:
        self.unsent = unsent
        self.aborted = False
        self.transport = self
        self.sent: list[bytes] = []

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, _: str) -> None:
        return None

    def get_protocol(self) -> None:
        return None

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted, self.unsent = True, 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """As uvicorn: it waits for the client first, and is silent about one that is gone."""
        while self.unsent > UNSENT_BYTES:
            await asyncio.sleep(0.001)
        if message["type"] == "http.response.body" and not self.aborted:
            self.sent.append(message["body"])
            self.unsent += len(message["body"])


@pytest.mark.anyio
@pytest.mark.parametrize("unsent", [1, UNSENT_BYTES, UNSENT_BYTES + 1])
async def test_an_end_waits_for_the_client_and_gives_one_up_that_takes_nothing(unsent: int) -> None:
    client = Client(unsent)
    await Response(client.send, stuck_s=0.05).end(b"x" * 20_000)
    assert client.aborted


@pytest.mark.anyio
async def test_a_client_that_takes_a_byte_now_and_then_is_waited_for() -> None:
    client = Client(UNSENT_BYTES + 40)
    writing = asyncio.create_task(Response(client.send, stuck_s=0.2).write(b"more"))
    began = asyncio.get_running_loop().time()
    while not writing.done():
        client.unsent -= 1
        await asyncio.sleep(0.02)
    assert not client.aborted
    assert client.sent == [b"more"]
    assert asyncio.get_running_loop().time() - began > 0.4  # longer than without a byte


@pytest.mark.anyio
async def test_nothing_more_is_written_for_a_client_that_is_gone() -> None:
    client = Client()
    response = Response(client.send)
    await response.write(b"one")
    client.aborted = True
    with pytest.raises(Disconnected):
        await response.write(b"two")


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 7])
async def test_a_whole_answer_leaves_in_pieces(size: int) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await Response(send).whole(200, "text/plain", os.urandom(size))
    start, *bodies = sent
    assert (b"content-length", str(size).encode()) in start["headers"]
    assert sum(len(body["body"]) for body in bodies) == size
    assert all(len(body["body"]) <= PIECE_BYTES for body in bodies)
    assert [body.get("more_body", False) for body in bodies] == [True] * (len(bodies) - 1) + [False]


@pytest.mark.anyio
async def test_an_outlet_without_a_transport_neither_watches_nor_fails() -> None:
    outlet = Outlet(None, 0.01)
    outlet.abort()
    await outlet.flushed()
    assert not outlet.has_room
    assert not outlet.may_wait


@pytest.mark.anyio
async def test_work_ends_when_its_client_leaves() -> None:
    left, ended = asyncio.Event(), asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "never"

    async def quick() -> str:
        return "done"

    request = Request("GET", "/", "1.1", {}, b"", receive)
    assert await request.while_connected(quick()) == "done"
    working = asyncio.create_task(request.while_connected(work()))
    await asyncio.sleep(0)
    left.set()
    with pytest.raises(Disconnected):
        await working
    assert ended.is_set()
