"""The way out to a client: how many bytes it has still to take, and the end of a client that takes none.

A client that reads nothing would hold its answer in memory for ever. So each wait for a client is watched, whatever the
answer is, and the connection is aborted once the client has taken no byte for STUCK_S. One byte is enough, so a slow
link is not cut off. A large answer is written in pieces, and each piece waits for the one before.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

UNSENT_BYTES = 16384  # below it a transport never asks to wait: asyncio's low-water mark for uvicorn's limit of 64 KiB
STUCK_S = 30.0
LOOKS = 4  # within STUCK_S
REQUESTS_IN_LINE = 100  # on one connection; browsers send none before the answer, and each takes kilobytes


def transport_of(call: Callable[..., Awaitable[object]]) -> asyncio.Transport | None:
    """uvicorn's transport, found through its `receive` or `send` method: ASGI does not offer it."""
    transport: asyncio.Transport | None = getattr(getattr(call, "__self__", None), "transport", None)
    return transport


class Outlet:
    """The transport of a response; without one, as under another server, nothing is known and nothing is watched."""

    def __init__(self, transport: asyncio.Transport | None, stuck_s: float) -> None:
        self._transport = transport
        self._stuck_s = stuck_s
        self._timer: asyncio.TimerHandle | None = None
        self._aborted = False

    @property
    def closing(self) -> bool:
        return self._transport is not None and self._transport.is_closing()

    @property
    def has_room(self) -> bool:
        """Whether it is sure that a write does not wait."""
        return self._transport is not None and not self.may_wait

    @property
    def may_wait(self) -> bool:
        """Whether the client has taken so little that a write may wait for it."""
        return self._transport is not None and self._transport.get_write_buffer_size() > UNSENT_BYTES

    def abort(self) -> None:
        """Close the connection at once, and drop the bytes that are still unsent, in the kernel, too.

        A close waits for the client to take the rest, which one that reads nothing never does.
        """
        self._aborted = True
        if self._transport is not None:
            with suppress(OSError, AttributeError):
                connection = self._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def bound_line(self) -> None:
        """Abort if too many requests are in line behind this one. uvicorn reads more of them after each answer."""
        protocol = self._transport.get_protocol() if self._transport is not None else None
        if len(getattr(protocol, "pipeline", ())) > REQUESTS_IN_LINE:
            self.abort()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this waits for the client: abort if it takes nothing for `stuck_s`."""
        self._look(self._untaken(), 0)
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _look(self, before: int, in_vain: int) -> None:
        untaken = self._untaken()
        in_vain = 0 if untaken < before else in_vain + 1
        if in_vain > LOOKS:
            self.abort()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._stuck_s / LOOKS, self._look, untaken, in_vain)

    def _untaken(self) -> int:
        """The bytes that the client has not acknowledged: ours, and the kernel's.

        The kernel takes more from us only when a third of its buffer is free, which may be a megabyte.
        """
        if self._transport is None:
            return 0
        kernel = 0
        with suppress(OSError, AttributeError, ValueError):  # another system, no socket, a closed one
            answer = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            [kernel] = struct.unpack("i", answer)
        return self._transport.get_write_buffer_size() + kernel

    async def flushed(self) -> None:
        """Return when the client's system has taken all of it, or the connection is gone.

        The server would close the connection after the answer, and wait for this without an end.
        """
        if self._transport is None or self._transport.get_write_buffer_size() == 0:
            return
        with self.watched():
            while not self._aborted and self._transport.get_write_buffer_size() > 0:  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(self._stuck_s / LOOKS / 10)
