"""The processes that make files: whose turn it is, and everything that ends their work."""

import ast
import asyncio
import http.client
import os
import re
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import requests
from conftest import Service
from openai_server import OpenAIServer
from sse_client import chat
from test_access import new_key, until
from test_export import Start, download, draft, lengthen

from chat.refusals import Refusal
from documents import files, worker
from telemetry.logs import Lines
from web import file_workers
from web.asgi import Disconnected, Request, Response
from web.file_workers import FileWorkers, WorkerFailed
from web.places import FairPlaces, LineFull

pytestmark = pytest.mark.anyio

ONE_TABLE = "|" + "a|" * 250 + "\n|" + "-|" * 250 + "\n" + "a\n" * 250 + "\n"  # 62,750 cells, if it is filled up


def version(title: str, content: str = "") -> files.Version:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    return files.Version(doc_id="d1", title=title, version=1, content=content, complete=True, created_at=at)


# ---------------------------------------------------------------------------------------------------------------
# Whose turn it is


class Line:
    """Requests of owners for the places, in the order in which each got one."""

    def __init__(self, places: int, most: int, longest: int = 10, waiting: int = 100) -> None:
        self.places = FairPlaces(places, lambda _: most, lambda _: longest, waiting)
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """Each is an owner's letter and a number."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._work(name))
            await asyncio.sleep(0)

    async def _work(self, name: str) -> None:
        async with self.places.take(name[0]):
            self.began.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            assert name in self.began
            self._ends[name].set()
            await self.tasks[name]
            await asyncio.sleep(0)


async def test_an_owner_has_its_places_and_no_more_while_another_gets_one_at_once() -> None:
    line = Line(2, most=1)
    await line.ask("a1", "a2", "b1")
    assert line.began == ["a1", "b1"]
    await line.end("b1")
    assert line.began == ["a1", "b1"], "the free place is not a's"
    await line.ask("c1")
    assert line.began == ["a1", "b1", "c1"]
    await line.end("a1", "a2", "c1")
    assert repr(line.places) == "<FairPlaces 2 free, 0 taken, 0 waiting>"


async def test_the_owners_who_wait_have_turns() -> None:
    line = Line(1, most=1)
    await line.ask("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    await line.end("a1", "a2", "b1", "c1", "a3", "b2", "a4")
    assert line.began == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_line_has_an_end_for_an_owner_and_for_all() -> None:
    line = Line(1, most=1, longest=2, waiting=3)
    await line.ask("a1", "a2", "a3")
    with pytest.raises(LineFull) as full:
        async with line.places.take("a"):
            pass
    assert full.value.of_owner
    await line.ask("b1")
    with pytest.raises(LineFull) as full:
        async with line.places.take("c"):
            pass
    assert not full.value.of_owner
    await line.end("a1", "a2", "b1", "a3")


@pytest.mark.parametrize("at_its_turn", [False, True])
async def test_a_request_that_leaves_the_line_takes_no_place(at_its_turn: bool) -> None:  # noqa: FBT001  # pytest's form
    line = Line(1, most=1)
    await line.ask("a1", "a2", "b1")
    if at_its_turn:
        line._ends["a1"].set()
        await asyncio.sleep(0)  # a1 ends; a2 is called, and is cancelled before it can begin
    line.tasks["a2"].cancel()
    await asyncio.wait({line.tasks["a2"]})
    await line.end("a1", "b1")
    assert line.began == ["a1", "b1"]
    assert repr(line.places) == "<FairPlaces 1 free, 0 taken, 0 waiting>"


# ---------------------------------------------------------------------------------------------------------------
# A process, and what ends its work


@asynccontextmanager
async def workers(monkeypatch: pytest.MonkeyPatch, timeout_s: float = 60) -> AsyncIterator[FileWorkers]:
    monkeypatch.setattr(file_workers, "START", file_workers.START.replace("documents.worker", "slow_worker"))
    async with AsyncExitStack() as stack:
        made = FileWorkers(per_owner=None, timeout_s=timeout_s, everyone="anonymous")
        stack.push_async_callback(made.aclose)
        yield made


async def test_it_is_started_when_it_is_needed_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with workers(monkeypatch) as files:
        assert files._workers == set()
        first = await files.make("document_as_docx", version("x"))
        assert first == await files.make("document_as_docx", version("y"))
        assert len(files._workers) == 1
        [kept] = files._idle
        files._drop(kept)  # as after WARM_S
        await kept.process.wait()
        assert first != await files.make("document_as_docx", version("z"))


async def test_it_gets_no_environment_no_descriptor_and_gives_way_to_the_streams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    async with workers(monkeypatch) as files:
        environment, descriptors, nice = ast.literal_eval(
            (await files.make("document_as_docx", version("look x"))).decode()
        )
    os.close(secret)
    assert environment.keys() <= {"LC_CTYPE"}, "which the interpreter sets itself"
    assert [name for name in descriptors if not name.startswith(("pipe:", "socket:", "/dev/null"))] == []
    assert len(descriptors) <= 4
    assert nice > os.nice(0)


@pytest.mark.parametrize(
    ("title", "timeout_s", "code", "told"),
    [
        ("sleep x", 0.5, "export_too_complex", "takes longer than 0.5 seconds"),
        ("spin x", 0.5, "export_too_complex", "takes longer than 0.5 seconds"),
        ("eat x", 60, "export_too_complex", "needs too much memory"),
        ("die x", 60, "export_too_complex", "needs too much memory or time"),
        ("large x", 60, "export_too_large", "makes more than 67,108,864 bytes"),
    ],
)
async def test_work_that_is_too_much_is_refused_for_its_cause_and_the_next_file_is_made(
    monkeypatch: pytest.MonkeyPatch, title: str, timeout_s: float, code: str, told: str
) -> None:
    async with workers(monkeypatch, timeout_s) as files:
        with pytest.raises(Refusal, match=told) as refusal:
            await files.make("document_as_docx", version(title))
        assert refusal.value.code == code
        files._timeout_s = 60
        assert await files.make("document_as_docx", version("x"))
        for gone in files._workers - set(files._idle):
            await asyncio.wait_for(gone.process.wait(), 60)


async def test_a_process_that_was_killed_before_the_job_began_says_nothing_about_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with workers(monkeypatch) as files:
        first = await files.make("document_as_docx", version("x"))
        [idle] = files._idle
        idle.process.kill()
        assert idle.process.returncode is None, "the service does not know it yet"
        assert first != await files.make("document_as_docx", version("x"))
        [idle] = files._idle
        idle.process.send_signal(signal.SIGSTOP)
        files._timeout_s = 0.5
        with pytest.raises(Refusal) as refusal:
            await files.make("document_as_docx", version("x"))
        assert refusal.value.code == "overloaded"
        monkeypatch.setattr(file_workers, "START", "import os; os.kill(os.getpid(), 9)")
        files._timeout_s = 60
        with pytest.raises(Refusal) as refusal:
            await files.make("document_as_docx", version("x"))
        assert refusal.value.code == "overloaded"


async def test_a_process_that_cant_be_started_now_is_no_fault_and_a_missing_program_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with workers(monkeypatch) as files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        try:
            with pytest.raises(Refusal) as refusal:
                await files.make("document_as_docx", version("x"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert refusal.value.code == "overloaded"
        assert await files.make("document_as_docx", version("x"))
        files._drop(files._idle[0])
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(WorkerFailed):
            await files.make("document_as_docx", version("x"))
    told = [record.levelname for record in caplog.records if record.name == "draftstream.files"]
    assert told == ["WARNING", "ERROR"]


async def test_the_processor_time_of_a_job_is_limited_by_the_system(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with workers(monkeypatch, 0.5) as files:
        await files.make("document_as_docx", version("x"))
        files._timeout_s = 60  # the service's own deadline does not come
        with pytest.raises(Refusal, match="too much memory or time"):
            await files.make("document_as_docx", version("spin x"))
    assert caplog.messages == [f"gave up a file (document_as_docx): signal-{signal.SIGXCPU:d}"]


async def test_a_fault_is_logged_with_its_place_and_without_the_text_of_the_document(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with workers(monkeypatch) as files:
        with pytest.raises(WorkerFailed):
            await files.make("document_as_docx", version("raise the fee is 900"))
        monkeypatch.setattr(file_workers, "START", "raise SystemExit(3)")
        with pytest.raises(WorkerFailed):
            await files.make("document_as_docx", version("x"))
    first, second = caplog.records
    shown = Lines("text", content=False, secrets=[]).format(first)
    assert re.search(r"failed in its process: ValueError@slow_worker.py:\d+@slow_worker.py:\d+@worker.py:\d+$", shown)
    assert second.getMessage() == "a process that makes files ended with 3"


class Client:
    """A request whose client leaves when it is told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.request = Request("GET", "/", "1.1", {}, b"", self._receive)
        self.sent: list[object] = []
        self.response = Response(self._send)

    async def _receive(self) -> dict[str, object]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: object) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("end", ["leaves", "shutdown"])
async def test_a_client_who_leaves_and_a_shutdown_kill_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    client = Client()
    async with workers(monkeypatch) as files:

        async def handle() -> None:
            async with files.lasting(client.request, client.response), files.place("a"):
                await files.make("document_as_docx", version(f"wait {tmp_path}"))

        task = asyncio.create_task(handle())
        while not (begun := list(tmp_path.glob("begun *"))):
            await asyncio.sleep(0.01)
        client.left.set() if end == "leaves" else files.close()
        with pytest.raises(Disconnected if end == "leaves" else Refusal) as ended:
            await asyncio.wait_for(task, 60)
        assert end == "leaves" or (isinstance(ended.value, Refusal) and ended.value.code == "shutting_down")
        assert repr(files._places) == "<FairPlaces 2 free, 0 taken, 0 waiting>"
        [used] = files._workers
        assert await used.process.wait() == -signal.SIGKILL
        assert begun[0].name == f"begun {used.process.pid}"
        if end == "shutdown":
            with pytest.raises(Refusal, match="shutting down"):
                async with files.lasting(client.request, client.response):
                    pytest.fail("it began")


def test_the_tables_of_kinds_agree() -> None:
    assert worker.answer(worker.job("document_as_docx", version("x", "1.1 y"))[worker.LENGTH_BYTES :])[0] == worker.MADE
    assert worker.answer(worker.job("redline_as_json", version("x"))[worker.LENGTH_BYTES :])[0] == worker.FAILED


# ---------------------------------------------------------------------------------------------------------------
# The whole service


class Asked:
    """A request on a thread of its own."""

    def __init__(self, service: Service, headers: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        self.answer: requests.Response | None = None
        self.error: requests.RequestException | None = None
        self._ask = partial(
            requests.get,
            f"{service.url}/api/threads/t/export",
            params={"format": "docx", "document": "d1", **parameters},
            headers=headers,
            timeout=60,
        )
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.answer = self._ask()
        except requests.RequestException as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> requests.Response:
        self._thread.join(60)
        assert self.answer is not None, self.error
        return self.answer


def ask(service: Service, headers: Mapping[str, str] | None = None, **parameters: str) -> Asked:
    return Asked(service, headers or {}, parameters)


def with_document(service: Service, openai: OpenAIServer, title: str, headers: dict[str, str] | None = None) -> None:
    draft(openai, "1.1 x", title=title)
    assert chat(service.url, "Draft", headers=headers, thread_id="t").last["saved"]


def begun(folder: Path) -> list[int]:
    """The processes that have begun to make a file, of a document whose title names the folder."""
    return [int(file.name.split()[1]) for file in folder.glob("begun *")]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_slow_files_of_one_owner_do_not_hold_anothers_and_their_line_has_an_end(
    service: Start, openai: OpenAIServer, database_url: str, tmp_path: Path
) -> None:
    slow, quick = (new_key(database_url, owner).headers for owner in ("slow", "quick"))
    running = service(openai=openai, app="slow_files_app:app")
    with_document(running, openai, f"wait {tmp_path}", slow)
    with_document(running, openai, "quick", quick)
    all_asked = [ask(running, slow) for _ in range(1 + file_workers.WAITING_PER_OWNER + 4)]
    until(lambda: len(begun(tmp_path)) == 1 and sum(asked.is_over for asked in all_asked) == 4)
    for asked in all_asked:
        if asked.is_over:
            refused = asked.result()
            assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (
                429,
                "rate_limited",
                "exports",
            )
            assert int(refused.headers["retry-after"]) > 0
    assert ask(running, quick).result().content.startswith(b"made by"), "while the first of the others is being made"
    assert len(begun(tmp_path)) == 1
    (tmp_path / "go").touch()
    assert sorted(asked.result().status_code for asked in all_asked) == [200] * 11 + [429] * 4


def test_callers_without_a_key_have_all_places_and_one_line(
    service: Start, openai: OpenAIServer, tmp_path: Path
) -> None:
    running = service(openai=openai, app="slow_files_app:app")
    with_document(running, openai, f"wait {tmp_path}")
    all_asked = [ask(running) for _ in range(file_workers.WORKERS + file_workers.WAITING_OF_EVERYONE + 1)]
    until(lambda: len(begun(tmp_path)) == 2 and any(asked.is_over for asked in all_asked))
    [refused] = [asked.result() for asked in all_asked if asked.is_over]
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    (tmp_path / "go").touch()
    assert sum(asked.result().status_code == 200 for asked in all_asked) == len(all_asked) - 1


def test_the_work_for_a_client_who_left_ends_and_its_place_in_the_line_as_well(
    service: Start, openai: OpenAIServer, tmp_path: Path
) -> None:
    running = service(openai=openai, app="slow_files_app:app", EXPORTS_PER_OWNER="1")
    with_document(running, openai, f"wait {tmp_path}")
    path = "/api/threads/t/export?format=docx&document=d1"
    first, second, third = (http.client.HTTPConnection("127.0.0.1", running.port, timeout=60) for _ in range(3))
    first.request("GET", path)
    until(lambda: len(begun(tmp_path)) == 1)
    [pid] = begun(tmp_path)
    second.request("GET", path)
    second.close()
    third.request("GET", path)
    first.close()
    until(lambda: not is_alive(pid))
    until(lambda: len(begun(tmp_path)) == 2)
    (tmp_path / "go").touch()
    with third.getresponse() as answer:
        assert answer.status == 200
    third.close()
    assert len(begun(tmp_path)) == 2, "nothing was made for the second"


def test_a_shutdown_ends_the_work_at_once(service: Start, openai: OpenAIServer, tmp_path: Path) -> None:
    running = service(openai=openai, app="slow_files_app:app", EXPORTS_PER_OWNER="1")
    with_document(running, openai, f"wait {tmp_path}")
    all_asked = [ask(running), ask(running)]
    until(lambda: len(begun(tmp_path)) == 1)
    assert running.stop() == 0
    assert [not is_alive(pid) for pid in begun(tmp_path)] == [True]
    for asked in all_asked:
        problem = asked.result()
        assert (problem.status_code, problem.json()["code"]) == (503, "shutting_down")
    assert "ASGI" not in running.log


def test_a_shutdown_does_not_wait_for_a_download_that_nobody_reads(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    running = service(openai=openai)
    chat(running.url, "Hi", thread_id="t")
    lengthen(database_url, 500, 10_000)
    with socket.create_connection(("127.0.0.1", running.port)) as reader:
        reader.sendall(b"GET /api/threads/t/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reader.recv(15) == b"HTTP/1.1 200 OK"
        assert running.stop() == 0
        assert "ASGI" not in running.log
        assert "graceful shutdown exceeded" not in running.log


def test_a_worker_does_not_outlive_a_service_that_was_killed(
    service: Start, openai: OpenAIServer, tmp_path: Path
) -> None:
    running = service(openai=openai, app="slow_files_app:app")
    with_document(running, openai, f"wait {tmp_path}")
    asked = ask(running)
    until(lambda: len(begun(tmp_path)) == 1)
    running.kill()
    until(lambda: not is_alive(begun(tmp_path)[0]))
    until(lambda: asked.is_over)


def test_a_table_that_would_be_many_cells_is_a_small_file(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai, EXPORT_TIMEOUT_S="60")
    for versions in range(1, 3):
        draft(openai, ONE_TABLE * 3 + f"\n\n{versions}")
        chat(running.url, "Draft", thread_id="t")
    assert len(download(running, format="docx", document="d1").content) < 200_000
    for kind in ("html", "json", "docx"):
        answer = requests.get(f"{running.url}/api/threads/t/documents/d1/diff", params={"format": kind}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) < 20 * len(ONE_TABLE) * 3


def test_what_is_above_the_limits_is_refused_in_each_format(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai, MAX_BODY_BYTES="2000000")
    for version in ("a", "b"):
        draft(openai, "a\n\n" * (files.PARTS // 2 + 1) + version)
        chat(running.url, "Draft", thread_id="t")
    for kind in ("html", "json", "docx"):
        answer = requests.get(f"{running.url}/api/threads/t/documents/d1/diff", params={"format": kind}, timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (413, "export_too_large")
        assert "has more than 20,000 paragraphs" in answer.json()["detail"]
    assert download(running, document="d1").text.startswith("a\n\na")


def test_too_slow_a_file_is_refused_and_logged(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai, app="slow_files_app:app", EXPORT_TIMEOUT_S="0.3")
    with_document(running, openai, "spin x")
    problem = ask(running).result()
    assert (problem.status_code, problem.json()["code"]) == (413, "export_too_complex")
    assert "retry-after" not in problem.headers
    assert "gave up a file (document_as_docx): deadline" in running.log
