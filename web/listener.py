"""The listener: accepts connections in uvicorn's place, and no more of them than there are descriptors for.

The event loops accept all connections that wait. At the limit of descriptors uvloop closes them without an answer, and
asyncio's own loop pauses for a second. Here a connection for which there is no descriptor waits in the kernel's queue.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import uvicorn

log = logging.getLogger("draftstream")

ROUND = 64  # connections that are accepted in one pass of the loop
PAUSE_S = 0.02  # until the next look for descriptors
SILENCE_S = 5.0  # as uvicorn's keep-alive: while descriptors are scarce, a client has so long for its headers


class Doorkeeper(Protocol):
    """See Admission."""

    @property
    def connections_left(self) -> int: ...

    @property
    def is_scarce(self) -> bool: ...

    def connected(self) -> None: ...


def bounded(server: uvicorn.Server | None, doorkeeper: Doorkeeper) -> Callable[[], int]:
    """Bound the connections of the server, if it is uvicorn. Gives the function that closes those without a request."""
    if server is None:
        return lambda: 0
    listener = Listener(server, doorkeeper)
    listener.install()
    return listener.close_idle


class Listener:
    """Takes uvicorn's place in its `servers`, which it closes and waits for."""

    def __init__(self, server: uvicorn.Server, doorkeeper: Doorkeeper) -> None:
        self._server = server
        self._doorkeeper = doorkeeper
        self._loop = asyncio.get_running_loop()
        self._accepting: set[asyncio.Task[None]] = set()
        self._silent: dict[object, float] = {}  # connections without a request, and since when that is known
        self._pause: asyncio.TimerHandle | None = None
        self.sockets: Sequence[socket.socket] = ()

    def install(self) -> None:
        """Take over when uvicorn listens: it calls this hook first of all then, and every half a minute."""
        config = self._server.config
        if config.uds is not None and isinstance(self._loop, asyncio.BaseEventLoop):
            return  # asyncio's own loop removes a socket's path when it is closed
        before = config.callback_notify

        async def notified() -> None:
            if before is not None:
                await before()
            if not self.sockets and self._server.started and not self._server.should_exit:
                self._take_over()

        config.callback_notify = notified

    def _take_over(self) -> None:
        """The listening sockets stay, with the connections that wait in them; uvicorn's own accepting ends."""
        servers = self._server.servers
        self.sockets = [socket.socket(fileno=os.dup(each.fileno())) for server in servers for each in server.sockets]
        for server in servers:
            server.close()
        self._server.servers = [self]  # type: ignore[list-item]  # uvicorn calls `close` and `wait_closed`
        self._resume()

    def _resume(self) -> None:
        self._pause = None
        for listening in self.sockets:
            listening.setblocking(False)
            self._loop.add_reader(listening, self._accept, listening)

    def _wait(self) -> None:
        """For descriptors."""
        if self._pause is None:
            for listening in self.sockets:
                self._loop.remove_reader(listening)
            self._pause = self._loop.call_later(PAUSE_S, self._resume)

    def _accept(self, listening: socket.socket) -> None:
        if self._doorkeeper.is_scarce:
            self.close_idle()
        for _ in range(ROUND):
            if self._doorkeeper.connections_left <= 0:
                self._wait()
                return
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # the client has left the queue
            except OSError as error:
                log.warning("a connection can't be accepted now: %s", error)
                self._wait()
                return
            self._doorkeeper.connected()
            task = asyncio.create_task(self._open(connection), name="accept")
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _open(self, connection: socket.socket) -> None:
        config = self._server.config
        protocol_class: Callable[..., asyncio.Protocol] = config.http_protocol_class
        protocol = partial(
            protocol_class,
            config=config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
        )
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(protocol, connection, ssl=config.ssl)
        except (OSError, ssl.SSLError):  # the client has left, or speaks no TLS
            connection.close()

    def close_idle(self) -> int:
        """Close the connections that wait between two requests, and those that have sent none for SILENCE_S.

        The others close after their answer. Gives the number of connections that are closed.
        """
        now = self._loop.time()
        closed = 0
        silent: dict[object, float] = {}
        for connection in list(self._server.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is None:
                silent[connection] = since = self._silent.get(connection, now)
                if now - since < SILENCE_S:
                    continue
            closed += cycle is None or cycle.response_complete
            connection.shutdown()
        self._silent = silent
        return closed

    # uvicorn's shutdown

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()

    async def wait_closed(self) -> None:
        if self._accepting:
            await asyncio.wait(self._accepting)
