"""What arrives of a response's body, taken as it arrives: on the hot path, without a task's turn for each token."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import aiohttp
import httpx2

Take = Callable[[bytes], bool]
"""Takes the next bytes of a body, b"" at its end; True when no more are wanted."""


class Body:
    """A response's body, to be read once. The response is let go: it would hold the request, with its prompt."""

    def __init__(self, response: httpx2.Response) -> None:
        stream = cast("httpx2.AsyncByteStream", response.stream)
        arriving: aiohttp.ClientResponse | None = getattr(getattr(stream, "_stream", None), "_aiohttp_response", None)
        self.aclose: Callable[[], Awaitable[None]] = stream.aclose
        self._arriving = arriving if "content-encoding" not in response.headers else None
        if self._arriving is None:
            self._chunks = response.aiter_bytes()
            self.aclose = response.aclose

    async def feed(self, take: Take) -> None:
        """Have it taken until no more is wanted. Raises what breaks the connection, and what `take` raises."""
        if self._arriving is not None:
            await Tap(self._arriving, take).drained()
        else:
            async for data in self._chunks:
                if take(data):
                    return
            take(b"")

    async def skip(self) -> None:
        """Read the rest, so that the connection can be used again."""
        if self._arriving is not None:
            while await self._arriving.content.readany():
                pass
        else:
            async for _ in self._chunks:
                pass


class Tap(asyncio.Protocol):
    """Stands between a connection and aiohttp's protocol for it, and has taken at once what that has made of the bytes.

    To read it the usual way costs a future, a pass of the loop and a turn of the reading task for each arrival.
    """

    def __init__(self, response: aiohttp.ClientResponse, take: Take) -> None:
        self._content = response.content
        self._take = take
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection = response.connection
        # None where all of the body has arrived with the headers: the connection is free again then.
        self._transport = connection.transport if connection is not None else None
        self._protocol = cast("asyncio.Protocol", connection.protocol if connection is not None else None)

    async def drained(self) -> None:
        if self._transport is not None:
            self._transport.set_protocol(self)
        try:
            self._hand_on()
            await self._done
        finally:
            # The connection may have its next request by now, but no answer to it before the next pass of the loop.
            if self._transport is not None:
                self._transport.set_protocol(self._protocol)

    def _hand_on(self) -> None:
        if self._done.done():
            return
        try:
            wanted = True
            while wanted and (data := self._content.read_nowait()):  # which may parse more, of what was held back
                wanted = not self._take(data)
            if wanted and self._content.at_eof():
                self._take(b"")
                wanted = False
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for whoever waits
            self._done.set_exception(error)
        else:
            if not wanted:
                self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)
        self._hand_on()

    def eof_received(self) -> bool | None:
        self._protocol.eof_received()
        self._hand_on()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None  # it takes no protocol any more
        self._protocol.connection_lost(error)
        self._hand_on()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
