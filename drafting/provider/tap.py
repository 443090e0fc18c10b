"""The body of the model's response. On the hot path it is taken in the callback of the connection, without a task.

This is the fast path, "tap". It goes through private attributes of two packages and takes the place of aiohttp's
protocol on the transport. Where that can't be done, the body is iterated: the path "iterator", which costs a future, a
pass of the event loop and a step of the reading task for each arrival. The log and the metrics say which path is used.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, cast

import aiohttp
import httpx2

Take = Callable[[bytes], bool]
"""Takes the next bytes of a body, b"" at its end; True when no more are wanted."""

Path = Literal["tap", "iterator"]


def _aiohttp_response(response: httpx2.Response) -> aiohttp.ClientResponse | None:
    """aiohttp's response inside of httpx2's; None where the versions at hand are made differently.

    httpx2's client wraps the stream of its transport in a BoundAsyncStream, and keeps it as `_stream`. The transport is
    the one that openai carries (openai/_vendor/httpx_aiohttp): its AiohttpResponseStream has aiohttp's response as
    `_aiohttp_response`. There is no public way. tests/test_tap.py fails when the pinned versions change this.
    """
    try:
        found: object = response.stream._stream._aiohttp_response  # type: ignore[union-attr]  # noqa: SLF001  # see above
    except AttributeError:
        return None
    return found if isinstance(found, aiohttp.ClientResponse) else None


class Body:
    """A response's body, to be read once. It does not keep the response, which holds the request with its prompt."""

    def __init__(self, response: httpx2.Response) -> None:
        self._inner = _aiohttp_response(response)
        self.content_type: str = response.headers.get("content-type", "")
        self.not_tapped: str | None = None  # the reason, where the path is not the fast one
        if "content-encoding" in response.headers:
            self.not_tapped = f"the body is compressed ({response.headers.get('content-encoding')})"
        elif self._inner is None:
            self.not_tapped = "aiohttp's response was not found inside of httpx2's"
        self.aclose: Callable[[], Awaitable[None]]
        if self.not_tapped is None:
            self.aclose = cast("httpx2.AsyncByteStream", response.stream).aclose
        else:
            self._inner = None
            self._chunks = response.aiter_bytes()
            self.aclose = response.aclose

    @property
    def path(self) -> Path:
        return "tap" if self._inner is not None else "iterator"

    async def feed(self, take: Take) -> None:
        """Give the body to `take` until it wants no more. Raises the connection's errors, and those of `take`."""
        if self._inner is not None:
            await Tap(self._inner, take).run()
            return
        async for data in self._chunks:
            if take(data):
                return
        take(b"")

    async def skip(self) -> None:
        """Read the rest, so that the connection can be used again."""
        if self._inner is not None:
            while await self._inner.content.readany():
                pass
        else:
            async for _ in self._chunks:
                pass


class Tap(asyncio.Protocol):
    """Stands between a connection and aiohttp's protocol: after each arrival it takes the part of the body it made."""

    def __init__(self, response: aiohttp.ClientResponse, take: Take) -> None:
        self._content = response.content
        self._take = take
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection = response.connection
        # None where all of the body has arrived with the headers: the connection is free again then.
        self._transport = connection.transport if connection is not None else None
        self._protocol = cast("asyncio.Protocol", connection.protocol if connection is not None else None)

    async def run(self) -> None:
        """Return when the body is at its end, or no more of it is wanted."""
        if self._transport is not None:
            self._transport.set_protocol(self)
        try:
            self._take_body()
            await self._done
        finally:
            # The connection may have its next request by now, but no answer to it before the next pass of the loop.
            if self._transport is not None:
                self._transport.set_protocol(self._protocol)

    def _take_body(self) -> None:
        if self._done.done():
            return
        try:
            wanted = True
            while wanted and (data := self._content.read_nowait()):  # which may parse more, of the data held back
                wanted = not self._take(data)
            if wanted and self._content.at_eof():
                self._take(b"")
                wanted = False
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for the task that waits
            self._done.set_exception(error)
        else:
            if not wanted:
                self._done.set_result(None)

    # The callbacks of the transport. aiohttp's protocol gets each of them first.

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)
        self._take_body()

    def eof_received(self) -> bool | None:
        self._protocol.eof_received()
        self._take_body()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None  # it takes no protocol any more
        self._protocol.connection_lost(error)
        self._take_body()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
