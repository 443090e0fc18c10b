"""A response's body, taken as it arrives: however it is delimited, cut, held back or left."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import aiohttp
import openai
import pytest

from tap import Body

pytestmark = pytest.mark.anyio

WHOLE = bytes(range(256)) * 12_000  # three megabytes: more than any buffer on the way
PIECES = [WHOLE[:1], WHOLE[1:70_000], WHOLE[70_000:]]


def head(*fields: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode()


def chunked(*pieces: bytes, whole: bool = True) -> list[bytes]:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return [head("Transfer-Encoding: chunked"), *chunks, *[b"0\r\n\r\n"] * whole]


class Server:
    """Answers each request with the next of its answers, write by write, and counts its connections."""

    def __init__(self, *answers: list[bytes]) -> None:
        self._answers = list(answers)
        self.connections = 0
        self.left = asyncio.Event()
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n") and self._answers:
                answer = self._answers.pop(0)
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
                if b"Connection: close" in answer[0] or (
                    b"chunked" in answer[0] and not answer[-1].endswith(b"0\r\n\r\n")
                ):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


async def taken(client: openai.DefaultAioHttpClient, url: str, *, enough: int | None = None) -> list[bytes]:
    """All that is taken of a body, with b"" for its end; or until there is `enough`."""
    arrived: list[bytes] = []

    def take(data: bytes) -> bool:
        arrived.append(data)
        return enough is not None and sum(map(len, arrived)) >= enough

    response = await client.send(client.build_request("GET", url), stream=True)
    async with aclosing(Body(response)) as body:
        await body.feed(take)
        await body.skip()
    return arrived


DELIMITED = {
    "chunked": chunked(*PIECES),
    "in many small chunks, written at once": [
        b"".join(chunked(*(WHOLE[at : at + 100] for at in range(0, 60_000, 100))))
    ],
    "larger than what is held, at once": [b"".join(chunked(WHOLE[:240_000]))],
    "with its length": [head(f"Content-Length: {len(WHOLE)}"), *PIECES],
    "ended by the connection's end": [head("Connection: close"), *PIECES],
    "with its headers": [b"".join(chunked(b"all of it"))],
    "empty": [head("Content-Length: 0")],
    "compressed": chunked(gzip.compress(WHOLE)),
}
DELIMITED["compressed"][0] = head("Transfer-Encoding: chunked", "Content-Encoding: gzip")
EXPECTED = {
    "larger than what is held, at once": WHOLE[:240_000],
    "in many small chunks, written at once": WHOLE[:60_000],
    "with its headers": b"all of it",
    "empty": b"",
}


@pytest.mark.parametrize("kind", DELIMITED)
async def test_a_body_is_taken_whole_to_its_end(kind: str) -> None:
    async with Server(DELIMITED[kind]).serving() as server, openai.DefaultAioHttpClient() as client:
        arrived = await taken(client, server.url)
    *pieces, end = arrived
    assert b"".join(pieces) == EXPECTED.get(kind, WHOLE)
    assert end == b""
    assert all(pieces), "nothing but the end is empty"


async def test_a_body_that_breaks_off_says_so_after_what_there_was_of_it() -> None:
    arrived: list[bytes] = []

    def take(data: bytes) -> bool:
        arrived.append(data)
        return False

    broken = chunked(b"some of it", whole=False)
    async with Server(broken).serving() as server, openai.DefaultAioHttpClient() as client:
        response = await client.send(client.build_request("GET", server.url), stream=True)
        async with aclosing(Body(response)) as body:
            with pytest.raises(aiohttp.ClientPayloadError):
                await body.feed(take)
    assert arrived == [b"some of it"]


async def test_requests_one_after_the_other_share_a_connection() -> None:
    answers = [chunked(b"one"), [b"".join(chunked(b"two"))], chunked(*PIECES), chunked(b"four")]
    async with Server(*answers).serving() as server, openai.DefaultAioHttpClient() as client:
        said = [b"".join(await taken(client, server.url)) for _ in answers]
        assert server.connections == 1
    assert said == [b"one", b"two", WHOLE, b"four"]


async def test_a_connection_is_free_for_the_next_request_as_soon_as_its_body_has_ended() -> None:
    """Both use the same connections in turn, and neither takes what is the other's."""
    answers = [chunked(b"%d" % number) for number in range(60)]
    async with Server(*answers).serving() as server, openai.DefaultAioHttpClient() as client:

        async def some() -> list[bytes]:
            return [b"".join(await taken(client, server.url)) for _ in range(20)]

        said = [text for texts in await asyncio.gather(some(), some(), some()) for text in texts]
        assert server.connections <= 3
    assert sorted(said, key=int) == [b"%d" % number for number in range(60)]


async def test_no_more_is_taken_than_is_wanted_and_the_rest_is_skipped() -> None:
    async with Server(chunked(b"first", b"second"), chunked(b"next")).serving() as server:
        async with openai.DefaultAioHttpClient() as client:
            assert await taken(client, server.url, enough=1) == [b"first"]
            assert await taken(client, server.url, enough=1) == [b"next"]
        assert server.connections == 1


async def test_leaving_a_body_in_the_middle_closes_its_connection() -> None:
    endless = [head("Transfer-Encoding: chunked"), *[b"1\r\nx\r\n"] * 10_000]
    async with Server(endless).serving() as server, openai.DefaultAioHttpClient() as client:
        reading = asyncio.create_task(taken(client, server.url))
        await asyncio.sleep(0.1)
        reading.cancel()
        await asyncio.wait({reading})
        assert reading.cancelled()
        async with asyncio.timeout(10):
            await server.left.wait()


async def test_what_the_taker_raises_is_raised_where_the_body_is_read() -> None:
    def choke(data: bytes) -> bool:
        raise LookupError(data)

    async with Server(chunked(b"first", b"second")).serving() as server, openai.DefaultAioHttpClient() as client:
        response = await client.send(client.build_request("GET", server.url), stream=True)
        async with aclosing(Body(response)) as body:
            with pytest.raises(LookupError):
                await body.feed(choke)
