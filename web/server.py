"""uvicorn, as the service wants it: says where to go, and at SIGTERM lets the runs end before it does."""

import asyncio
import gc
import logging
import signal
import socket
from contextlib import suppress
from types import FrameType

import uvicorn

from runs.registry import Runs
from settings import is_loopback

log = logging.getLogger("draftstream")


def listens_on_loopback_only() -> bool:
    """Whether it is certain that nobody but this machine can connect.

    A server binds after the lifespan's start and tells it nothing; uvicorn's can be asked, as it handles the signals.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server) or server.config.fd is not None:
        return False
    return server.config.uds is not None or is_loopback(server.config.host)


class draining_on_sigterm:  # noqa: N801  # reads as the context manager it is
    """Ends the runs at SIGTERM or SIGINT first, and only then the server. A second SIGINT doesn't wait for them.

    uvicorn by itself refuses connections from the signal on, and leaves the lifespan only after every open response has
    ended, of which it tells them nothing. So here, while runs finish, the service still listens: it says that it is not
    ready, refuses chats with a reason, and a stream whose connection breaks is gone on with.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, object] = {}
        self._drain: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not in the main thread: then whoever runs us handles the signals
                self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        before = self._before[signal.Signals(number)]
        server = getattr(before, "__self__", None)
        if isinstance(server, uvicorn.Server):
            # Not its own handler, which would raise the signal again after the shutdown: the exit code would not be 0.
            self._loop.call_soon_threadsafe(self._end, server, number)
        else:
            self._loop.call_soon_threadsafe(self._start_drain)
            if callable(before):
                before(number, frame)

    def _end(self, server: uvicorn.Server, number: int) -> None:
        if self._drain is not None and number == signal.SIGINT:
            self._runs.stop_all()
            server.force_exit = server.should_exit  # what uvicorn offers while it waits for readers
            return
        self._start_drain().add_done_callback(lambda _: setattr(server, "should_exit", True))

    def _start_drain(self) -> asyncio.Task[None]:
        if self._drain is None:  # Runs awaits the same end when its block is left
            log.info("shutting down; runs in progress: %d", self._runs.in_progress)
            self._drain = asyncio.create_task(self._runs.drain(), name="drain")
        return self._drain


def keep_collections_short() -> None:
    """To be called once all is set up, whose objects stay and need not be looked through again.

    Else a full collection stops every stream for a tenth of a second, and a crowd of runs brings one about.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class Server(uvicorn.Server):
    """uvicorn, saying where to go once it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state["server"] = self
        await super().startup(sockets)
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        base = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::', '::1') else host}:{port}"  # noqa: S104  # compared, not bound
        log.info("page: %s/debug", base)
        if self.lifespan.state["service"].access.is_open:
            log.info("try: curl -N '%s/chat?message=Draft+an+NDA&thread_id=first'", base)
        else:
            log.info("try: curl -N -H \"Authorization: Bearer $KEY\" '%s/chat?message=Draft+an+NDA'", base)
