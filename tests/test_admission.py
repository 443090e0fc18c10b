"""Admission: beyond its descriptors and its memory the service answers 503 `overloaded`, and serves on afterwards."""

import asyncio
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, Service, rows
from openai_server import OpenAIServer, finish, role, text, wait
from sse_client import chat
from test_access import until
from test_runs import later, read, registry

from chat import ChatRequest, Emit, Outcome, StopCause, Turn
from chat.refusals import Overloaded
from telemetry import resources
from telemetry.resources import Descriptors, Memory, MemoryLimit, raise_descriptor_limit
from web import admission as web_admission
from web.admission import HEADROOM, RESERVED, RUN_BYTES, Admission
from web.problems import refusal_of

pytestmark = pytest.mark.anyio

Start = Callable[..., Service]
Answer = tuple[int, dict[str, str], bytes]

ASGI_APP = [sys.executable, "asgi_app.py"]
UVICORN = ["sh", "-c", f'exec {sys.executable} -m uvicorn "$0" "$@" --port "$PORT"', "asgi_app:app", "--ws", "none"]
SERVERS = {
    "python asgi_app.py": ASGI_APP,
    "uvicorn": UVICORN,
    "uvicorn on asyncio's loop": [*UVICORN, "--loop", "asyncio", "--http", "h11"],
}


def limited(limit: str, command: Sequence[str] = ASGI_APP) -> list[str]:
    """The command under limits of the shell's `ulimit`."""
    return ["sh", "-c", f'{limit} && exec "$@"', "sh", *command]


async def ask(port: int, message: str = "hello", settled: Callable[[], None] = lambda: None) -> Answer:
    """POST on a connection of its own. An answer that is cut, or none, raises.

    `settled` is called when the chat is refused, or the model has said something.
    """
    body = json.dumps({"message": message}).encode()
    head = "POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if "content-length" in headers:
            settled()
            return int(status.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
        content = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            begun = b'"message"' in content
            content += (await reader.readexactly(size + 2))[:-2]
            if not begun and b'"message"' in content:
                settled()
        return int(status.split()[1]), headers, content
    finally:
        writer.close()


def is_whole(answer: Answer) -> bool:
    status, headers, content = answer
    if status == 200:
        return bool(json.loads(content.strip().rsplit(b"data: ", 1)[1])["type"] == "end")
    problem = json.loads(content)
    return (status, problem["code"], problem["status"]) == (503, "overloaded", 503) and headers["retry-after"] != ""


async def ask_at_once(
    port: int, count: int, gate: threading.Event | None = None, message: str = "hello"
) -> Counter[int]:
    """So many chats at once; gives the number of each status. `gate` opens when all are refused or begun."""
    waiting = count

    def settled() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting and gate is not None:
            gate.set()

    whole = await asyncio.gather(*(ask(port, message, settled) for _ in range(count)))
    assert [answer for answer in whole if not is_whole(answer)] == []
    return Counter(status for status, _, _ in whole)


def holds(openai: OpenAIServer) -> threading.Event:
    """The model begins each reply, and ends it when the gate opens."""
    gate = threading.Event()
    openai.default = (role(), text("As far"), wait(gate), text(" as this."), finish())
    return gate


# ---------------------------------------------------------------------------------------------------------------
# Descriptors


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
async def test_beyond_its_descriptors_each_client_is_answered_and_no_run_fails(
    service: Start, openai: OpenAIServer, database_url: str, command: Sequence[str]
) -> None:
    gate = holds(openai)
    started = service(openai=openai, command=limited("ulimit -n 256", command), RUNS_PER_OWNER="1000")
    answered = await ask_at_once(started.port, 400, gate)
    assert answered[200] > 40
    assert answered[200] + answered[503] == 400
    stored = await asyncio.to_thread(rows, database_url, "SELECT status, count(*) FROM runs GROUP BY 1")
    assert [tuple(row) for row in stored] == [("completed", answered[200])]
    assert "can't be written to" not in started.log
    assert "Too many open files" not in started.log
    assert (await ask_at_once(started.port, 20))[200] == 20
    assert requests.get(f"{started.url}/readyz", timeout=30).json()["reasons"] == []


async def test_a_soft_limit_of_descriptors_is_raised(service: Start, openai: OpenAIServer) -> None:
    """1024 is what shells and systemd give, and 700 runs need 1400."""
    gate = holds(openai)
    started = service(openai=openai, command=limited("ulimit -Sn 1024 && ulimit -Hn 5000"), RUNS_PER_OWNER="1000")
    assert "Max open files            5000 " in Path(f"/proc/{started.process.pid}/limits").read_text()
    assert await ask_at_once(started.port, 700, gate) == {200: 700}


def test_a_start_says_for_how_many_runs_its_descriptors_are_enough(service: Start, openai: OpenAIServer) -> None:
    def said(**more: Any) -> int:
        log = service(command=limited("ulimit -n 256"), **more).log
        return int(re.findall(r"enough for about (\d+) runs", log)[0])

    with_a_model = said(openai=openai)
    assert 60 < with_a_model < 100
    assert abs(said() - 2 * with_a_model) < 10, "the offline model needs no connection"


def test_idle_connections_make_room_for_chats(service: Start) -> None:
    started = service(command=limited("ulimit -n 128"), RUNS_PER_OWNER="1000")
    with ExitStack() as sessions:
        for _ in range(200):
            session = sessions.enter_context(requests.Session())
            assert session.get(f"{started.url}/healthz", timeout=30).status_code == 200
        assert chat(started.url, "Draft an NDA").last["type"] == "end"


def test_clients_that_send_nothing_do_not_close_the_service(service: Start) -> None:
    started = service(command=limited("ulimit -n 128"))
    with ExitStack() as silent:
        for _ in range(200):
            silent.enter_context(socket.create_connection(("127.0.0.1", started.port)))
        assert requests.get(f"{started.url}/healthz", timeout=60).status_code == 200
        assert chat(started.url, "Draft an NDA").last["type"] == "end"


def test_readers_beyond_the_descriptors_are_refused_and_the_state_stays_readable(
    service: Start, openai: OpenAIServer
) -> None:
    gate = holds(openai)
    started = service(openai=openai, command=limited("ulimit -n 128"))
    with ExitStack() as readers:

        def read(method: str, path: str, **more: Any) -> requests.Response:
            answer = requests.request(method, f"{started.url}{path}", stream=True, timeout=60, **more)
            readers.callback(answer.close)
            return answer

        first = read("POST", "/api/chat", json={"message": "hello"})
        run_id = json.loads(next(line for line in first.iter_lines() if line.startswith(b"data: "))[6:])["run_id"]
        statuses = [read("GET", f"/api/runs/{run_id}/events").status_code for _ in range(150)]
        assert Counter(statuses).keys() == {200, 503}
        ready = requests.get(f"{started.url}/readyz", timeout=30)
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["descriptors_short"])
        assert requests.get(f"{started.url}/healthz", timeout=30).status_code == 200
        assert requests.get(f"{started.url}/metrics", timeout=30).status_code == 200
        assert requests.get(f"{started.url}/api/threads", timeout=30).headers["connection"] == "close"
        event_source = {"last-event-id": f"{run_id}:0", "accept": "text/event-stream"}
        later = requests.get(f"{started.url}/chat", headers=event_source, timeout=30)
        assert later.status_code == 200, "after a 503 it would not come back"
        assert later.text in [f"retry: {seconds}000\n\n" for seconds in range(1, 6)]
        assert requests.post(f"{started.url}/api/runs/{run_id}/cancel", timeout=30).status_code == 202
    gate.set()
    until(lambda: requests.get(f"{started.url}/readyz", timeout=30).status_code == 200)
    assert chat(started.url, "Draft an NDA").last["type"] == "end"
    assert "not ready: descriptors_short" in started.log
    assert "128 descriptors" in started.log


class Opened(Descriptors):
    """Descriptors whose number a test sets."""

    def __init__(self, limit: int, used: int = 0) -> None:
        self.limit = limit
        self.count = used

    @property
    def used(self) -> int:
        return self.count


@pytest.mark.parametrize("limit", [16, 64, 128, 256, 1024, 4096, 20_000, 2**20])
@pytest.mark.parametrize("replies", [0.0, 0.5, 1.0])
def test_runs_with_their_clients_and_models_never_reach_what_is_reserved(limit: int, replies: float) -> None:
    """Whichever part of the runs has its connection to the model already."""
    descriptors = Opened(limit)
    admission = Admission(descriptors, Memory([]))
    runs = 0
    admission.watch(runs=lambda: runs, close_idle=lambda: 0)
    refused = False
    with ExitStack() as replying:
        while not refused and runs < limit:
            descriptors.count += 1
            try:
                admission.check_run(5)
            except Overloaded:
                refused = True
                break
            runs += 1
            if runs * replies >= 1 and runs % max(1, round(1 / replies)) == 0:
                replying.enter_context(admission.model_connection())
                descriptors.count += 1
        assert refused
        unopened = runs - admission._model_connections
        assert descriptors.count + unopened <= limit - min(RESERVED, limit // 4)
        assert admission.connections_left >= min(HEADROOM, limit // 16) - 1, "the next one can be refused"


async def test_the_count_of_descriptors_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = Descriptors()
    for platform in (sys.platform, "other"):
        monkeypatch.setattr("telemetry.resources.sys.platform", platform)
        monkeypatch.setattr(descriptors, "_listed_at", -1.0)
        before = descriptors.used
        with ExitStack() as files:
            for _ in range(50):
                files.callback(os.close, os.dup(0))
            monkeypatch.setattr(descriptors, "_listed_at", -1.0)
            assert descriptors.used == before + 50


def test_a_limit_that_is_no_limit_is_not_raised_beyond_what_libraries_can_loop_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, infinite))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert raise_descriptor_limit() == 2**20
    assert asked == [(2**20, infinite)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (infinite, infinite))
    assert raise_descriptor_limit() == 2**20
    assert len(asked) == 1


# ---------------------------------------------------------------------------------------------------------------
# Memory


def address_space(process_id: int) -> int:
    """In KiB."""
    return int(Path(f"/proc/{process_id}/status").read_text().partition("VmSize:")[2].split()[0])


async def test_under_a_limit_of_memory_it_refuses_chats_before_it_dies(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    """Without the guard it ended by a signal, with all its streams cut."""
    openai.default = (role(), text("As far"), text(" as this."), finish())
    idle = service(openai=openai, command=ASGI_APP)
    limit = address_space(idle.process.pid) * 3 // 2
    assert idle.stop() == 0
    started = service(openai=openai, command=limited(f"ulimit -v {limit}"), RUNS_PER_OWNER="1000")
    answered = await ask_at_once(started.port, 500, message="x" * 31_000)
    assert answered[200] > 20
    assert answered[200] + answered[503] == 500
    stored = await asyncio.to_thread(rows, database_url, "SELECT status, count(*) FROM runs GROUP BY 1")
    assert [tuple(row) for row in stored] == [("completed", answered[200])]
    await asyncio.to_thread(until, lambda: requests.get(f"{started.url}/readyz", timeout=30).status_code == 200)
    assert (await ask_at_once(started.port, 5))[200] == 5


def test_bodies_that_arrive_slowly_have_their_memory_promised(service: Start) -> None:
    idle = service(command=ASGI_APP)
    limit = address_space(idle.process.pid) * 3 // 2
    assert idle.stop() == 0
    started = service(command=limited(f"ulimit -v {limit}"))
    head = b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n"
    with ExitStack() as slow:
        sockets = [slow.enter_context(socket.create_connection(("127.0.0.1", started.port))) for _ in range(300)]
        for each in sockets:
            each.sendall(head)
        refused = sum(status_of(each) == 503 for each in sockets[-20:])
        assert refused == 20
        assert requests.get(f"{started.url}/healthz", timeout=30).status_code == 200
    until(lambda: requests.get(f"{started.url}/readyz", timeout=30).status_code == 200)
    assert chat(started.url, "Draft an NDA").last["type"] == "end"


def status_of(connection: socket.socket) -> int:
    connection.settimeout(30)
    return int(connection.recv(64).split()[1])


class Used:
    """Memory whose use a test sets."""

    def __init__(self) -> None:
        self.used = 0


@pytest.mark.parametrize("limit", [2**26, 2**28, 2**30])
async def test_work_that_begins_together_fits_into_the_memory_that_is_left(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is admitted before a reading shows any of it."""
    monkeypatch.setattr(resources, "MEASURE_S", -1.0)
    monkeypatch.setattr(web_admission, "PROMISE_S", 3600.0)  # however slow the machine is
    used = Used()
    admission = Admission(Opened(20_000), Memory([MemoryLimit("a limit", limit, lambda: used.used)]))
    admitted = 0
    with suppress(Overloaded):
        while True:
            await admission.check("long", 10_000)
            admission.check_run(10_000)
            admitted += 1
    assert 0 < admitted * RUN_BYTES < limit - admission._reserve
    assert admission.is_memory_short
    await admission.check("none", 2**40)
    used.used = limit
    with pytest.raises(Overloaded):
        await admission.check("short", 0)


def test_without_a_limit_no_memory_is_measured() -> None:
    memory = Memory([])
    admission = Admission(Opened(20_000), memory)
    assert memory.left is None
    assert not admission.is_memory_short
    admission.check_run(2**40)
    assert admission._promised == deque()
    assert admission.log_bytes == 2**28


@pytest.mark.parametrize(
    ("version", "lines"), [(2, ["0::/app/worker"]), (1, ["4:cpu,memory:/app/worker", "0::/", "9:name=systemd:/"])]
)
def test_the_nearest_limit_of_the_control_groups_counts(tmp_path: Path, version: int, lines: list[str]) -> None:
    group = tmp_path / ("app/worker" if version == 2 else "memory/app/worker")
    group.mkdir(parents=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder, limit, usage, cached in ((group, "max", 900, 100), (group.parent, "1000", 950, 150)):
        (folder / names[0]).write_text(limit if version == 2 or limit != "max" else str(2**63 - 4096))
        (folder / names[1]).write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\nactive_file 3\n")
    limits = resources._cgroup_limits(lines, tmp_path)
    assert [limit.limit for limit in limits] == [1000]
    assert Memory(limits).left == 200


def test_limits_of_this_process_are_found_and_read() -> None:
    code = "import telemetry.resources as r; m = r.Memory(); print(sorted((l.name, l.limit) for l in m.limits if l.name[0] == 'R'), m.left)"
    command = limited("ulimit -v 4000000 && ulimit -d 3000000", [sys.executable, "-c", code])
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    limits, _, left = said.strip().rpartition(" ")
    assert limits == "[('RLIMIT_AS', 4096000000), ('RLIMIT_DATA', 3072000000)]"
    assert 2**31 < int(left) < 3_072_000_000


async def test_a_run_that_finds_no_memory_says_that_the_service_is_overloaded() -> None:
    async def greedy(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        raise MemoryError

    async with registry(greedy) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        *_, last = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert (last[1]["code"], last[1]["retryable"]) == ("overloaded", True)
    assert refusal_of(MemoryError()).code == "overloaded"
