"""Background loops: a failure of each is logged, `/readyz` names it, and the loop is started again."""

import ast
import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, Service, product_files, rows
from sse_client import chat
from test_access import until
from test_store import ended, started

from storage.writer import Writer
from store import StoreUnavailable, UnsavedTurns, open_store
from telemetry import supervision
from telemetry.resources import Descriptors, Memory
from telemetry.supervision import GaveUp, Supervisor
from web.admission import Admission
from web.readiness import Readiness

pytestmark = pytest.mark.anyio

Start = Callable[..., Service]

# Tasks that are no loops. Each ends with its work, and its owner gets the failure.
SHORT_TASKS = {
    ("access/jwts.py", "self._fetch()"): "whoever needs the keys waits for it",
    ("access/shared_limits.py", "self._write(writes)"): "the limits' loop takes its result",
    ("access/stored_bytes.py", "self._sum(owner, limit)"): "the requests of the owner wait for it",
    ("access/stream_tokens.py", "self._close(stream)"): "the end of the service waits for it",
    ("agent.py", "progress.model.reply(messages, TOOLS, hear, may_call=may_call)"): "the graph's node awaits it",
    ("drafting/models.py", "check(model, variables)"): "it raises nothing, and the model's end waits for it",
    ("runs/registry.py", "self._run_to_end(run, run.started, turn)"): "a run; a drain waits for it",
    ("storage/batched_reads.py", "self._query()"): "those that read get its failure",
    ("storage/closing.py", "close(connection, work)"): "the owner of `Closing` waits for it",
    ("storage/shared.py", "self._attempt()"): "a reader takes its connection, or the end of the pool cancels it",
    ("storage/closing.py", "work"): "`within` awaits it",
    ("web/asgi.py", "self.disconnected()"): "`while_connected` ends it",
    ("web/asgi.py", "work"): "`while_connected` waits for it or cancels it",
    ("web/chats.py", "call.request.disconnected()"): "the stream's handler ends it",
    ("web/listener.py", "self._open(connection)"): "a client's connection; the listener's end waits for it",
    ("web/file_workers.py", "request.disconnected()"): "the download's handler ends it",
    ("web/server.py", "self._runs.drain()"): "the server's end waits for it",
}
# Calls that make a loop's coroutine, and those that give a loop its name.
SUPERVISED = ("supervise", "self._supervise", "self.keep")
NAMING = ("supervise", "self._supervise", "supervisor.running")


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Each call in a file, with the callee as it stands there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def loops() -> set[str]:
    """The names of all loops that are given to the supervisor."""
    return {
        ast.literal_eval(node.args[0])
        for path in product_files("*.py")
        for callee, node in calls(path)
        if callee in NAMING and isinstance(node.args[0], ast.Constant)
    }


# ---------------------------------------------------------------------------------------------------------------
# All of them


def test_every_task_is_a_supervised_loop_or_known_to_be_short() -> None:
    found, supervised = {}, 0
    for path in product_files("*.py"):
        for callee, node in calls(path):
            if callee.endswith(("create_task", "ensure_future")):
                work = node.args[0]
                if isinstance(work, ast.Call) and ast.unparse(work.func) in SUPERVISED:
                    supervised += 1
                else:
                    found[str(path.relative_to(ROOT)), ast.unparse(work)] = path
    assert supervised > 4
    assert found.keys() == SHORT_TASKS.keys()


def table_of_loops() -> set[str]:
    source = ast.parse((ROOT / "tests/broken_loops_app.py").read_text())
    tables = [node.value for node in source.body if isinstance(node, ast.AnnAssign)]
    return {ast.literal_eval(key) for table in tables if isinstance(table, ast.Dict) for key in table.keys if key}


LOOPS = sorted(table_of_loops())


def test_every_loop_is_in_the_table_of_these_tests_and_its_reason_in_the_documents() -> None:
    assert set(LOOPS) == loops()
    document = (ROOT / "web/openapi.json").read_text()
    [reasons] = re.findall(r'"reasons": \{"type": "array", "items": \{"enum": \[(.*?)\]', document)
    assert {
        reason.strip(' "').removesuffix("_down")
        for reason in reasons.split(",")
        if "_down" in reason and "shutting" not in reason
    } == loops()
    readiness = (ROOT / "docs/operating.md").read_text().partition("## Readiness")[2].partition("\n## ")[0]
    assert [name for name in loops() if f"`{name}_down`" not in readiness] == []


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_fails_is_logged_named_and_started_again(
    open_folder: Path, service: Start, tmp_path: Path, loop: str
) -> None:
    fault = tmp_path / "fault"
    settings = {"LOOP": loop, "FAULT": str(fault), "THREAD_TTL_DAYS": "30", "SAVE_TIMEOUT_S": "0.2"}
    if loop == "embedded_postgres":
        settings |= {"DATABASE_URL": "", "DATA_DIR": str(open_folder)}
    running = service(app="broken_loops_app:app", **settings)
    running.breaks_on_purpose = True
    fault.touch()
    chat(running.url, "Hello", thread_id="t")
    until(lambda: f"{loop}_down" in readiness(running))
    until(lambda: ready_gauge(running) == 0.0)
    failures = re.findall(
        rf"ERROR: +the {loop} loop failed \(RuntimeError\)\nTraceback.*(?:\n.+)+?\nRuntimeError", running.log
    )
    assert failures, running.log
    fault.unlink()
    until(lambda: readiness(running) == [] and ready_gauge(running) == 1.0)
    assert len(re.findall(r"WARNING: +not ready: \S*_down", running.log)) == 1
    assert len(re.findall(r"INFO: +ready\n", running.log)) == 2
    assert chat(running.url, "Hello again", thread_id="t").last["saved"] is True


def readiness(running: Service) -> list[str]:
    answer = requests.get(f"{running.url}/readyz", timeout=10)
    reasons: list[str] = answer.json()["reasons"]
    assert (answer.status_code == 503) == bool(reasons)
    return reasons


def ready_gauge(running: Service) -> float:
    metrics = requests.get(f"{running.url}/metrics", timeout=10).text
    [value] = re.findall(r"^draftstream_ready (\S+)$", metrics, re.MULTILINE)
    return float(value)


# ---------------------------------------------------------------------------------------------------------------
# The writer


def break_writer(service: Start, tmp_path: Path, **settings: str) -> tuple[Service, Path]:
    fault = tmp_path / "fault"
    running = service(app="broken_loops_app:app", LOOP="writer", FAULT=str(fault), SAVE_TIMEOUT_S="0.2", **settings)
    running.breaks_on_purpose = True
    fault.touch()
    return running, fault


def test_a_writer_that_failed_loses_none_of_the_turns_it_had_in_hand(
    service: Start, tmp_path: Path, database_url: str
) -> None:
    running, fault = break_writer(service, tmp_path)
    assert [chat(running.url, "Hello").last["saved"] for _ in range(4)] == [False] * 4
    fault.unlink()
    until(lambda: len(rows(database_url, "SELECT 1 FROM runs WHERE status = 'completed'")) == 4)
    assert running.stop() == 0


def test_turns_that_a_failed_writer_could_not_save_are_counted_and_the_exit_code_is_4(
    service: Start, tmp_path: Path
) -> None:
    running, _ = break_writer(service, tmp_path)
    assert [chat(running.url, "Hello").last["saved"] for _ in range(3)] == [False] * 3
    assert running.stop() == 4
    assert "3 turns were not saved; none of them had been acknowledged" in running.log
    assert "appears unsupported" not in running.log


def test_a_writer_that_is_down_gets_one_more_try_at_the_shutdown(
    service: Start, tmp_path: Path, database_url: str
) -> None:
    running, fault = break_writer(service, tmp_path)
    assert chat(running.url, "Hello").last["saved"] is False
    until(lambda: running.log.count("the writer loop failed") >= 4)  # the next start is two seconds away
    fault.unlink()
    assert running.stop() == 0
    assert len(rows(database_url, "SELECT 1 FROM runs WHERE status = 'completed'")) == 1


def test_a_writer_that_keeps_failing_ends_the_process(service: Start, tmp_path: Path) -> None:
    running, _ = break_writer(service, tmp_path, GIVE_UP_S="0.5")
    assert chat(running.url, "Hello").last["saved"] is False
    assert running.process.wait(30) == 4
    assert "the writer loop stays down; the service ends" in running.log
    assert "1 turns were not saved" in running.log


def test_a_process_that_ends_for_its_writer_and_lost_nothing_does_not_exit_0_either(
    service: Start, tmp_path: Path
) -> None:
    running, _ = break_writer(service, tmp_path, GIVE_UP_S="0.5", JOURNAL_DIR=str(tmp_path / "journal"))
    assert chat(running.url, "Hello").last["journaled"] is True
    assert running.process.wait(30) == 1
    assert "the writer loop kept failing; no turn is lost" in running.log


async def test_without_a_supervisor_the_turns_of_a_dead_writer_are_counted(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def commit(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Writer, "_commit", commit)

    async def end_with_a_turn() -> None:
        async with open_store(
            database_url, queue_size=10, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            run = started()
            store.start_run(run)
            await store.end_run(ended(run))

    with pytest.raises(UnsavedTurns, match="1 turns"):
        await end_with_a_turn()


# ---------------------------------------------------------------------------------------------------------------
# Readiness


def test_it_is_not_ready_while_the_database_is_read_only_and_one_line_says_so(
    service: Start, database_url: str, postgres: str
) -> None:
    running = service(SAVE_TIMEOUT_S="0.2")
    name = database_url.partition("@/")[2].partition("?")[0]
    set_read_only(postgres, name, "on")
    assert chat(running.url, "Hello").last["saved"] is False
    began = time.monotonic()
    until(lambda: readiness(running) == ["writes_failing"])
    assert time.monotonic() - began < 2
    until(lambda: ready_gauge(running) == 0.0)
    set_read_only(postgres, name, "off")
    until(lambda: readiness(running) == [])
    until(lambda: ready_gauge(running) == 1.0)
    assert len(re.findall(r"WARNING: +not ready: writes_failing\n", running.log)) == running.log.count("not ready") == 1
    assert len(re.findall(r"INFO: +ready\n", running.log)) == 2
    until(lambda: len(rows(database_url, "SELECT 1 FROM runs WHERE status = 'completed'")) == 1)


@pytest.fixture
def small_disk(open_folder: Path) -> Iterator[Path]:
    """A file system of 120 MB, which only root can make."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m,mode=0755", "tmpfs", str(open_folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can't be mounted here")
    yield open_folder
    subprocess.run(["umount", "--lazy", str(open_folder)], check=True)


def test_it_is_not_ready_while_the_disk_is_full_and_saves_the_turns_afterwards(
    small_disk: Path, service: Start
) -> None:
    running = service(DATABASE_URL="", DATA_DIR=str(small_disk), SAVE_TIMEOUT_S="0.2")
    running.breaks_on_purpose = True  # the journal, on the same disk, logs a traceback
    filler = small_disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(b"0" * 2**16)
            file.flush()
    turns = 0
    while "writes_failing" not in readiness(running):  # until the database has used up the space it had
        turns += chat(running.url, "Draft an NDA").status == 200
    until(lambda: ready_gauge(running) == 0.0)
    filler.unlink()
    until(lambda: readiness(running) == [] and ready_gauge(running) == 1.0)
    threads = requests.get(f"{running.url}/api/threads?limit=100", timeout=10).json()["threads"]
    assert 0 < turns == len(threads)


def set_read_only(postgres: str, name: str, value: str) -> None:
    rows(postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
    rows(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


class Parts:
    """A store, runs and a supervisor in one, without a fault."""

    draining = False
    full = False
    log_full = False
    writes_failing_s = 0.0

    def __init__(self) -> None:
        self.down: list[str] = []
        self.pings: list[asyncio.Future[None]] = []  # the first of them is awaited, if there is one

    async def ping(self) -> None:
        if self.pings:
            await self.pings.pop(0)

    @property
    def readiness(self) -> Readiness:
        parts: Any = self
        return Readiness(parts, parts, Admission(Descriptors(), Memory([])), parts)


async def test_a_batch_that_is_sent_again_at_once_does_not_change_readiness() -> None:
    parts = Parts()
    ready = parts.readiness
    parts.writes_failing_s = 0.4
    assert await ready.reasons() == []
    parts.writes_failing_s = 0.6
    assert await ready.reasons() == ["writes_failing"]


async def test_a_slow_check_does_not_bring_back_an_older_state(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    parts = Parts()
    ready = parts.readiness
    assert await ready.reasons() == []
    slow = asyncio.get_running_loop().create_future()
    parts.pings = [slow]
    older = asyncio.create_task(ready.reasons())
    await asyncio.sleep(0)
    assert await ready.reasons() == []
    slow.set_exception(StoreUnavailable())
    assert await older == ["store_unavailable"]
    assert ready.is_ready
    assert [record.getMessage() for record in caplog.records] == ["ready"]


async def test_it_is_not_ready_when_the_loop_that_checks_is_down() -> None:
    parts = Parts()
    ready = parts.readiness
    await ready.reasons()
    assert ready.is_ready
    parts.down = ["readiness"]
    assert not ready.is_ready


async def test_the_end_of_the_service_is_a_change_of_readiness_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    ready = Parts().readiness
    await ready.reasons()
    ready.end()
    ready.end()
    assert not ready.is_ready
    assert [record.getMessage() for record in caplog.records] == ["ready", "not ready: shutting_down"]


# ---------------------------------------------------------------------------------------------------------------
# The embedded PostgreSQL


def test_the_embedded_database_is_started_again_and_the_turns_that_waited_are_saved(
    open_folder: Path, service: Start
) -> None:
    running = service(DATABASE_URL="", DATA_DIR=str(open_folder), SAVE_TIMEOUT_S="0.2")
    waiting, kills = chat(running.url, "Hello", thread_id="t"), 0
    assert waiting.last["saved"] is True
    while waiting.last["saved"]:  # also if a process of the killed server, or the next server, was quick
        kills += 1
        until(lambda: readiness(running) == [])
        os.kill(int((open_folder / "postgres/postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        waiting = chat(running.url, "Hello")
    assert waiting.last == {**waiting.last, "saved": False, "journaled": True}
    until(lambda: chat(running.url, "Hello again", thread_id="t").status == 200)
    until(lambda: readiness(running) == [])
    thread = requests.get(f"{running.url}/api/threads/{waiting.events[0]['thread_id']}", timeout=10).json()
    assert [message["role"] for message in thread["messages"]] == ["user", "assistant"]
    assert running.log.count("is gone; starting it again") == kills


# ---------------------------------------------------------------------------------------------------------------
# The supervisor alone


class Loop:
    """Raises each of these once, and then goes on until it is cancelled."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.starts = 0
        self.steady = asyncio.Event()

    async def run(self) -> None:
        self.starts += 1
        if self.failures:
            raise self.failures.pop(0)
        self.steady.set()
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.01, 0.02))
    monkeypatch.setattr(supervision, "STEADY_S", 0.1)
    monkeypatch.setattr(supervision, "GIVE_UP_S", 0.05)


def never() -> None:
    pytest.fail("it gave up")


async def test_a_failed_loop_is_started_again_and_its_part_is_up_once_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = Loop(RuntimeError(), ValueError(), asyncio.CancelledError())
    supervisor = Supervisor(give_up=never)
    async with supervisor.running("part", loop.run):
        await loop.steady.wait()
        assert supervisor.down == ["part"]
        while supervisor.down:
            await asyncio.sleep(0.01)
    assert loop.starts == 4
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage().partition(" (")[0] for record in errors] == ["the part loop failed"] * 3
    assert [type(record.exc_info[1]) for record in errors if record.exc_info] == [
        *(RuntimeError, ValueError, asyncio.CancelledError)
    ]


async def test_a_loop_that_returns_has_ended() -> None:
    supervisor = Supervisor(give_up=never)

    async def ends() -> None:
        await asyncio.sleep(0)

    await asyncio.wait_for(supervisor.keep("part", ends), 10)
    assert supervisor.down == []


async def test_a_loop_that_its_owner_cancels_is_no_failure() -> None:
    loop, supervisor = Loop(), Supervisor(give_up=never)
    async with asyncio.timeout(10), supervisor.running("part", loop.run):
        await loop.steady.wait()
    assert (loop.starts, supervisor.down) == (1, [])


async def test_a_vital_loop_that_keeps_failing_ends_the_process_once_and_others_do_not() -> None:
    given_up: list[bool] = []

    async def fail_often() -> None:
        with Supervisor(give_up=lambda: given_up.append(True)) as supervisor:
            for keep in (supervisor.keep, supervisor.keep_vital):
                assert given_up == []
                loop = Loop(*(RuntimeError() for _ in range(12)))
                task = asyncio.create_task(keep("part", loop.run))
                await loop.steady.wait()
                task.cancel()
                await asyncio.wait({task})

    with pytest.raises(GaveUp):
        await fail_often()
    assert given_up == [True]


@pytest.mark.parametrize(("failures", "starts"), [(1, 2), (2, 2)])
async def test_at_the_shutdown_a_loop_that_is_down_gets_one_more_start(
    monkeypatch: pytest.MonkeyPatch, failures: int, starts: int
) -> None:
    monkeypatch.setattr(supervision, "BACKOFF_S", (3600.0,))
    loop, supervisor = Loop(*(RuntimeError() for _ in range(failures))), Supervisor(give_up=never)
    task = asyncio.create_task(supervisor.keep("part", loop.run))
    while not supervisor.down:
        await asyncio.sleep(0)
    supervisor.close()
    await asyncio.wait({task, asyncio.ensure_future(loop.steady.wait())}, return_when="FIRST_COMPLETED")
    assert (loop.starts, task.done()) == (starts, failures == 2)
    task.cancel()
