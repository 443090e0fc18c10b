"""The tests' ground: a real PostgreSQL, the real service as a process, a strict OpenAI-wire server."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.error import URLError

import asyncpg
import pytest
from fault_proxy import FaultProxy
from hypothesis import HealthCheck, settings
from openai_server import OpenAIServer
from zygote import Zygote

from storage.database import migrate
from storage.embedded import embedded_postgres
from store import Store, open_store
from threads.checkpointer import Checkpointer

if TYPE_CHECKING:
    from fault_database import FaultDatabase

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {"tests", "bench", "docs", "clients", "node_modules"}  # nor names that begin with a dot
NUMBERS = itertools.count(1)
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "gw")  # several may share one server
TEMPLATE = f"template_{WORKER}"
# The files that take longest come first, the longest of them in front: else one of them would end alone.
LONGEST: tuple[str, ...] = (
    *("page", "admission", "supervision", "faults", "service", "browsers", "databases", "chaos", "standby", "docs"),
    *("clients", "repeats", "container", "access", "embedded", "upgrades", "soak", "openapi", "start", "clock"),
)
T = TypeVar("T")
THREAD = ThreadPoolExecutor(1)
RUNNER = asyncio.Runner()
ZYGOTE = Zygote()
# How long an example takes is the machine's business, which may be loaded.
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
INHERITED = ("PATH", "HOME", "LANG", "COVERAGE_PROCESS_CONFIG")  # by a service, whose settings are the test's
UNCLEAN = ("Traceback", "was never retrieved", "never awaited", "was destroyed but it is pending")


def product_files(*patterns: str) -> list[Path]:
    """The files of the service itself, without its tests and benchmarks, wherever they lie below the root.

    Fails where the patterns find next to nothing: a rule over no file holds nothing.
    """
    found = [
        path
        for pattern in patterns
        for path in sorted(ROOT.rglob(pattern))
        if not any(part in NOT_OURS or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert len(found) > (40 if "*.py" in patterns else 0), f"only {len(found)} files of {patterns}"
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two a core: a test waits for about half of its time."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_unconfigure() -> None:
    ZYGOTE.close()


def rows(database_url: str, sql: str) -> list[asyncpg.Record]:
    async def read() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    return run(read())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def folder_for_all(prefix: str) -> Iterator[Path]:
    """A folder that every user can reach: PostgreSQL runs as another user than root.

    It is not among pytest's folders: each session that starts closes these to other users.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Asked for before `service`, it outlives the service."""
    with folder_for_all("data-") as folder:
        yield folder


def required(program: str) -> str:
    """The program's path. Where it is missing the test is skipped; in CI, where nothing may be, it fails."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")
    return path


# ---------------------------------------------------------------------------------------------------------------
# PostgreSQL: one server, a database a test, cloned from one that has the schema


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The embedded server, or the one of TEST_DATABASE_URL, of which CONTRIBUTING.md gives the form."""
    stack = AsyncExitStack()
    dsn = os.environ.get("TEST_DATABASE_URL") or run(stack.enter_async_context(_embedded()))
    run(_make_template(dsn))
    yield dsn
    run(stack.aclose())
    THREAD.submit(RUNNER.close).result()
    THREAD.shutdown()


@asynccontextmanager
async def _embedded() -> AsyncIterator[str]:
    with folder_for_all("postgres-") as folder:
        async with embedded_postgres(folder) as dsn:
            yield dsn


def run(work: Coroutine[None, None, T]) -> T:
    """To its end, on a thread of its own: a browser's driver has a loop going on this one."""
    return THREAD.submit(RUNNER.run, work).result()


async def _make_template(dsn: str) -> None:
    await execute(dsn, f"DROP DATABASE IF EXISTS {TEMPLATE}")
    await execute(dsn, f"CREATE DATABASE {TEMPLATE}")
    connection = await asyncpg.connect(in_database(dsn, TEMPLATE))
    await migrate(connection)
    await connection.close()


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(sql)
    await connection.close()


def in_database(dsn: str, name: str) -> str:
    return dsn.replace("@/postgres", f"@/{name}")


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    name = f"test_{WORKER}_{next(NUMBERS)}"
    run(execute(postgres, f"DROP DATABASE IF EXISTS {name}"))
    run(execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    yield in_database(postgres, name)
    run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def fault_database(postgres: str) -> Iterator["FaultDatabase"]:
    """A PostgreSQL that a test may crash."""
    from fault_database import FaultDatabase

    with folder_for_all("chaos-") as folder:  # a short name: so the server's socket keeps its place
        database = FaultDatabase(folder)
        yield database
        database.leave()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(
        database_url, queue_size=100, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
    ) as store:
        yield store


@pytest.fixture
def checkpointer(store: Store) -> Checkpointer:
    return Checkpointer(store)


@pytest.fixture
def proxy(database_url: str) -> Iterator[FaultProxy]:
    """Between a service and its database: `service(DATABASE_URL=proxy.dsn)`."""
    with FaultProxy.on_a_thread(database_url) as proxy:
        yield proxy


# ---------------------------------------------------------------------------------------------------------------
# The model's server, and the service


@pytest.fixture
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """The service as a process of its own, by default `uvicorn asgi_app:app`; another `app` may be one of the tests'."""

    def __init__(
        self, env: dict[str, str], log: Path, command: list[str] | None = None, app: str = "asgi_app:app"
    ) -> None:
        self.port = int(env.get("PORT") or free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = env
        self._log = log
        self._uvicorn = [app, "--app-dir", "tests", "--port", str(self.port), "--ws", "none"]
        self._uvicorn += ["--timeout-graceful-shutdown", "10"]
        self._command = command
        self.breaks_on_purpose = False  # then its log may have tracebacks
        self.start()

    def start(self) -> None:
        if self._command is None and ZYGOTE.can(self.env):
            self.process = ZYGOTE.fork(self._uvicorn, self.env, self._log)
            return
        command = self._command or [sys.executable, "-m", "uvicorn", *self._uvicorn]
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def wait_until_ready(self) -> "Service":
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"the service ended with {self.process.returncode}:\n{self.log}")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                    return self
            except (URLError, OSError):
                time.sleep(0.05)
        pytest.fail(f"the service does not become ready:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def restart(self) -> "Service":
        if self.process.poll() is None:
            assert self.stop() == 0, self.log
        self.start()
        return self.wait_until_ready()


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start the service with settings: `service(openai=server, MAX_RUNS="3")`. At the end it must go down cleanly."""
    services: list[Service] = []

    def start(
        openai: OpenAIServer | None = None,
        app: str = "asgi_app:app",
        command: list[str] | None = None,
        **settings: str,
    ) -> Service:
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
        env |= {"DATABASE_URL": database_url, "PYTHONASYNCIODEBUG": "0", "PYTHONUNBUFFERED": "1"}
        if openai is not None:
            env |= {"OPENAI_BASE_URL": openai.base_url, "OPENAI_API_KEY": openai.key, "OPENAI_MODEL": "gpt-test"}
        if command is not None:
            env["PORT"] = str(free_port())
        started = Service(env | settings, tmp_path / f"service-{len(services)}.log", command, app)
        services.append(started)
        return started.wait_until_ready()

    yield start
    for started in services:
        if started.process.poll() is None:
            code = started.stop()
            assert code == 0, f"it exited with {code}:\n{started.log}"
        unclean = UNCLEAN[1:] if started.breaks_on_purpose else UNCLEAN
        assert not [word for word in unclean if word in started.log], started.log
