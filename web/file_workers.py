"""The processes that make files (documents/worker.py), and the ends of their work: a deadline, a client who leaves, the
shutdown.

A process is started when a file is asked for and none is idle, and ended after WARM_S without work. Whatever ends the
work in it before its file is made also kills it, so that no work outlives its request. None of its memory, and of its
time in the interpreter, is the service's.
"""

import asyncio
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from chat.refusals import LimitExceeded, Refusal
from documents import worker
from documents.worker import Kind
from web.asgi import Disconnected, Request, Response
from web.places import FairPlaces, LineFull

log = logging.getLogger("draftstream.files")

WORKERS = 2  # the streams need the other processors
WARM_S = 300.0  # a start takes 0.2 s, an idle process 45 MB
FILES_A_WORKER = 100  # then it is replaced, as what packages keep in memory adds up
WAITING_PER_OWNER = 10
WAITING_OF_EVERYONE = 50  # all callers without a key together
WAITING = 100  # of all owners; each holds two versions of a document at most
CUT_S = 1.0  # how long a cut connection may take to report its end
ROOT = Path(__file__).resolve().parent.parent
PATH = [str(ROOT), *(str(Path(entry).resolve()) for entry in sys.path)]  # of imports, however this process got its own
INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # an interpreter may need it to start, and no other variable
# Isolated (-I), and without the modules that a site's files would import at a start (-S).
COMMAND = ("-I", "-S", "-B", "-c")
START = "import sys; sys.path[:] = sys.argv[2:]; from documents.worker import main; main(float(sys.argv[1]))"


class WorkerFailed(Exception):
    """A fault of ours in a process that makes files."""


class NotBegun(Exception):
    """No process began the work, which says nothing about the file: it was killed before, or could not be started."""


class WorkerDied(Exception):
    """The process was killed in the middle of its work, by a limit of the system or for want of memory."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass(slots=True, eq=False)
class Worker:
    process: Process
    files: int = 0
    has_begun: bool = False  # the file in hand
    idle: asyncio.TimerHandle | None = field(default=None, repr=False)  # its end, when it has no work

    async def make(self, job: bytes) -> tuple[bytes, bytes]:
        """How it went, and the file or the reason. Raises NotBegun, WorkerDied and WorkerFailed."""
        self.has_begun = False
        to, made = cast("asyncio.StreamWriter", self.process.stdin), cast("asyncio.StreamReader", self.process.stdout)
        try:
            to.write(job)
            await to.drain()
            self.has_begun = await made.readexactly(1) == worker.BEGUN
            how = await made.readexactly(1)
            length = int.from_bytes(await made.readexactly(worker.LENGTH_BYTES), "big")
            return how, await made.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.process.wait()
            if code < 0:
                raise (WorkerDied(-code) if self.has_begun else NotBegun) from None
            log.error("a process that makes files ended with %d", code)
            raise WorkerFailed from None

    def rest(self, end: asyncio.TimerHandle | None = None) -> None:
        """It has no work until the timer ends it; or has again, with None."""
        if self.idle is not None:
            self.idle.cancel()
        self.idle = end

    def kill(self) -> None:
        self.rest()
        with suppress(ProcessLookupError):
            self.process.kill()


class FileWorkers:
    """Makes files in processes of their own. `everyone`: the owner that stands for all callers without a key.

    `per_owner`: how many files of an owner are made at once. None: one, and for everyone as many as there are workers.
    """

    def __init__(self, *, per_owner: int | None, timeout_s: float, everyone: str) -> None:
        self._timeout_s = timeout_s
        self._everyone = everyone
        self._per_owner = per_owner
        self._places = FairPlaces(WORKERS, self._most, self._longest, WAITING)
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._open: set[asyncio.Timeout] = set()
        self._closed = False

    def _most(self, owner: str) -> int:
        return self._per_owner or (WORKERS if owner == self._everyone else 1)

    def _longest(self, owner: str) -> int:
        return WAITING_OF_EVERYONE if owner == self._everyone else WAITING_PER_OWNER

    # The ends

    @asynccontextmanager
    async def lasting(self, request: Request, response: Response) -> AsyncIterator[None]:
        """A block that ends when the client leaves (Disconnected), or when the service shuts down (Refusal).

        An answer that has begun by then is cut off.
        """
        if self._closed:
            raise _shutting_down()
        scope = asyncio.timeout(None)
        leaving = asyncio.create_task(request.disconnected(), name="client of a download")
        leaving.add_done_callback(lambda _: self._end(scope))
        self._open.add(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            if leaving.done():
                raise Disconnected from None
            if not response.started:
                raise _shutting_down() from None
            response.abort()
            await asyncio.wait({leaving}, timeout=CUT_S)
            raise Disconnected from None
        finally:
            self._open.discard(scope)
            leaving.cancel()
            await asyncio.wait({leaving})

    def _end(self, scope: asyncio.Timeout) -> None:
        if scope in self._open and not scope.expired():
            self._open.discard(scope)
            scope.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """The shutdown has begun: end all downloads, refuse new ones, and kill the processes."""
        self._closed = True
        for scope in list(self._open):
            self._end(scope)
        for each in self._workers:
            each.kill()

    async def aclose(self) -> None:
        self.close()
        await asyncio.gather(*(each.process.wait() for each in self._workers))

    # The work

    @asynccontextmanager
    async def place(self, owner: str) -> AsyncIterator[None]:
        """A place to make a file, which the owner may have to wait for. Raises LimitExceeded, Overloaded."""
        try:
            async with self._places.take(owner):
                yield
        except LineFull as full:
            if full.of_owner and owner != self._everyone:
                detail = (
                    f"{WAITING_PER_OWNER} of your exports and redlines are waiting already; ask for this one later."
                )
                raise LimitExceeded("exports", detail) from None
            raise _overloaded("Too many exports and redlines are waiting already; try again in a moment.") from None

    async def make(self, kind: Kind, *arguments: object) -> bytes:
        """The file. Call it with a place.

        Raises Refusal (export_too_large, export_too_complex, overloaded) and WorkerFailed.
        """
        job = worker.job(kind, *arguments)
        for _ in range(WORKERS + 1):  # every idle process may have been killed, and then a new one is used
            with suppress(NotBegun):
                how, made = await self._try(kind, job)
                break
        else:
            log.warning("no process began a file (%s)", kind)
            raise _overloaded()
        if how == worker.MADE:
            return made
        if how == worker.TOO_LARGE:
            raise too_large(made.decode())
        if how == worker.TOO_COMPLEX:
            raise _given_up(kind, "memory", "needs too much memory")
        log.error("a file (%s) failed in its process: %s", kind, made.decode())
        raise WorkerFailed

    async def _try(self, kind: Kind, job: bytes) -> tuple[bytes, bytes]:
        used: Worker | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                used = await self._ready()
                how, made = await used.make(job)
        except TimeoutError:
            if used is None or not used.has_begun:
                log.warning("no process began a file (%s) in time", kind)
                raise _overloaded() from None
            raise _given_up(kind, "deadline", f"takes longer than {self._timeout_s:g} seconds") from None
        except WorkerDied as death:
            raise _given_up(kind, f"signal-{death.signal}", "needs too much memory or time") from None
        else:
            if how in {worker.MADE, worker.TOO_LARGE}:
                self._keep(used)
            return how, made
        finally:
            if used is not None and used not in self._idle:
                self._drop(used)

    async def _ready(self) -> Worker:
        while self._idle:
            used = self._idle.pop()
            used.rest()
            if used.process.returncode is None:
                return used
        used = Worker(await self._start())
        self._workers = {each for each in self._workers if each.process.returncode is None} | {used}
        return used

    async def _start(self) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable, *COMMAND, START, str(self._timeout_s), *PATH,
                stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd="/", start_new_session=True,
                env={name: os.environ[name] for name in INHERITED if name in os.environ},
            )  # fmt: skip
        except (FileNotFoundError, PermissionError) as error:
            log.error("a process that makes files can't be started: %s", type(error).__name__)
            raise WorkerFailed from None
        except OSError as error:  # no descriptor, process or memory is left; uvloop tells no errno
            log.warning("a process that makes files can't be started now: %s", type(error).__name__)
            raise _overloaded() from None

    def _keep(self, used: Worker) -> None:
        used.files += 1
        if used.files < FILES_A_WORKER and not self._closed:
            used.rest(asyncio.get_running_loop().call_later(WARM_S, self._drop, used))
            self._idle.append(used)

    def _drop(self, used: Worker) -> None:
        if used in self._idle:
            self._idle.remove(used)
        used.kill()


WAY_OUT = "export it as md or json, or take a single document or two shorter versions"


def too_large(reason: str) -> Refusal:
    return Refusal("export_too_large", f"The text {reason}; {WAY_OUT}.")


def _given_up(kind: Kind, cause: str, reason: str) -> Refusal:
    log.warning("gave up a file (%s): %s", kind, cause)
    return Refusal("export_too_complex", f"To make this file {reason}; {WAY_OUT}.")


def _overloaded(detail: str = "The service has no means left to make this file; try again in a moment.") -> Refusal:
    return Refusal("overloaded", detail)


def _shutting_down() -> Refusal:
    return Refusal("shutting_down", "The service is shutting down; try again in a moment.")
