"""uvicorn for this service: its address and its signals. At SIGTERM the runs end first, and then the server."""

import asyncio
import errno
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from runs.registry import Runs
from settings import Settings, is_loopback

log = logging.getLogger("draftstream")

READERS_S = 5  # how long the server waits for slow readers, after the last run has ended


class CannotListen(Exception):
    """The text is one line: the reason, and the way out."""


def check_address(host: str, port: int) -> None:
    """Bind the address as uvicorn will, and release it: the first step of a start. Raises CannotListen."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise CannotListen(f"it can't listen at {host}:{port}: {_cause_and_cure(error, port)}") from error


def why_not_listening(host: str, port: int) -> CannotListen:
    """Why a server has just failed to bind the address."""
    try:
        check_address(host, port)
    except CannotListen as reason:
        return reason
    return CannotListen(f"it could not listen at {host}:{port}, which is free again; start it once more")


def _cause_and_cure(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            "another program listens there, perhaps another Draftstream. Stop it (`ss -ltnp` names it), or choose "
            f"another port: PORT={port + 1}, or --port {port + 1} of the uvicorn command"
        )
    if error.errno == errno.EACCES:
        return "ports below 1024 are for root. Choose another with PORT, or --port of the uvicorn command"
    return "this machine has no such address. Set HOST, or --host of the uvicorn command, to one that it has"


def server_of_signals() -> uvicorn.Server | None:
    """The server that `uvicorn asgi_app:app` started. It passes nothing to an app, but it handles the signals."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def listens_on_loopback_only(server: uvicorn.Server | None) -> bool | None:
    """Whether nobody but this machine can connect; None where that can't be known."""
    if server is None or server.config.fd is not None:
        return None
    return server.config.uds is not None or is_loopback(server.config.host)


class draining_on_signals:  # noqa: N801  # reads as the context manager it is
    """At SIGTERM, SIGINT or SIGHUP ends the runs, and then the server. A second SIGINT stops the runs at once, and a
    later one cuts the readers that the server waits for.

    `at_once` ends other work that the server would wait for.

    uvicorn by itself refuses connections from the signal on. It leaves the lifespan after every open response has
    ended, and tells the responses nothing. Here the service listens until its runs have ended: `/readyz` is red, a new
    chat is refused with a reason, and a broken stream can be resumed.

    A terminal that closes sends SIGHUP. It is left alone under nohup, which ignores it, and under servers other than
    uvicorn, as it makes some of them reload.
    """

    def __init__(self, runs: Runs, at_once: Callable[[], None], server: uvicorn.Server | None) -> None:
        self._runs = runs
        self._at_once = at_once
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, object] = {}
        self._drain: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        handled = [signal.SIGTERM, signal.SIGINT]
        if self._server is not None and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            handled.append(signal.SIGHUP)
        for number in handled:
            with suppress(ValueError):  # not in the main thread: then another part of the process handles the signals
                self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # A terminal that closes may send a second SIGHUP. It must not end the process before the queue is written.
            after = signal.SIG_IGN if number == signal.SIGHUP else handler
            signal.signal(number, after)  # type: ignore[arg-type]  # what signal() itself returned

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._server is not None:
            # uvicorn's own handler would raise the signal again after the shutdown, and the exit code would not be 0.
            self._loop.call_soon_threadsafe(self._end, self._server, number)
            return
        self._loop.call_soon_threadsafe(self._start_drain)
        before = self._before[signal.Signals(number)]
        if callable(before):
            before(number, frame)

    def _end(self, server: uvicorn.Server, number: int) -> None:
        if self._drain is not None and number == signal.SIGINT:
            self._runs.stop_all()
            if server.should_exit:
                _cut_readers(server)
            return
        self._start_drain().add_done_callback(lambda _: setattr(server, "should_exit", True))

    def _start_drain(self) -> asyncio.Task[None]:
        if self._drain is None:  # Runs awaits the same end when its block is left
            log.info("shutting down; runs in progress: %d", self._runs.in_progress)
            self._at_once()
            self._drain = asyncio.create_task(self._runs.drain(), name="drain")
        return self._drain


def _cut_readers(server: uvicorn.Server) -> None:
    """End the server's wait for its readers. Its `force_exit` would also skip the rest of the shutdown: the queue."""
    for connection in list(server.server_state.connections):
        connection.transport.abort()


def keep_collections_short() -> None:
    """Call after start-up: freezes the start-up objects out of the garbage collector, and makes collections rarer.

    A full collection would pause every stream for about 100 ms, and many runs at once would cause one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class Server(uvicorn.Server):
    """uvicorn that hands itself to the lifespan, and logs the page's address once it serves."""

    def __init__(self, app: Callable[..., Awaitable[None]], settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws="none",
            access_log=False,
            timeout_graceful_shutdown=READERS_S,
            log_config=None,
            log_level=settings.log_level.lower(),
        )
        super().__init__(config)

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
