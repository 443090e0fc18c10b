"""A response's body, taken as it arrives: however it is delimited, cut, held back or left; on both loops, and over TLS."""

import asyncio
import gzip
import inspect
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
import httpx2
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from drafting.provider.tap import Body

pytestmark = pytest.mark.anyio

WHOLE = bytes(range(256)) * 12_000  # three megabytes: more than any buffer on the way
PIECES = [WHOLE[:1], WHOLE[1:70_000], WHOLE[70_000:]]


@dataclass(frozen=True)
class Security:
    """The two ends of a connection."""

    server: ssl.SSLContext | None
    client: ssl.SSLContext | bool


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(params=["http", "https"])
def security(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Security:
    if request.param == "http":
        return Security(None, client=True)
    pem = tmp_path_factory.mktemp("tls") / "pem"
    write_certificate(pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return Security(server, ssl.create_default_context(cafile=str(pem)))


def write_certificate(path: Path) -> None:
    """Of this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a provider")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))


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
    async def serving(self, security: Security) -> AsyncIterator[openai.DefaultAioHttpClient]:
        """Serve, and give a client for it."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=security.server)
        scheme = "http" if security.server is None else "https"
        async with server, openai.DefaultAioHttpClient(verify=security.client) as client:
            self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield client

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


async def taken(
    client: openai.DefaultAioHttpClient, url: str, *, enough: int | None = None, arrived: list[bytes] | None = None
) -> list[bytes]:
    """All that is taken of a body, with b"" for its end; or until there is `enough`. It is in `arrived` at once."""
    arrived = [] if arrived is None else arrived

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
    "larger than the buffer, at once": [b"".join(chunked(WHOLE[:240_000]))],
    "with its length": [head(f"Content-Length: {len(WHOLE)}"), *PIECES],
    "ended by the connection's end": [head("Connection: close"), *PIECES],
    "with its headers": [b"".join(chunked(b"all of it"))],
    "empty": [head("Content-Length: 0")],
    "compressed": chunked(gzip.compress(WHOLE)),
}
DELIMITED["compressed"][0] = head("Transfer-Encoding: chunked", "Content-Encoding: gzip")
EXPECTED = {
    "larger than the buffer, at once": WHOLE[:240_000],
    "in many small chunks, written at once": WHOLE[:60_000],
    "with its headers": b"all of it",
    "empty": b"",
}


@pytest.mark.parametrize("kind", DELIMITED)
async def test_a_body_is_taken_whole_to_its_end(kind: str, security: Security) -> None:
    server = Server(DELIMITED[kind])
    async with server.serving(security) as client:
        arrived = await taken(client, server.url)
    *pieces, end = arrived
    assert b"".join(pieces) == EXPECTED.get(kind, WHOLE)
    assert end == b""
    assert all(pieces), "nothing but the end is empty"


def callers() -> set[str]:
    """The functions on the stack."""
    return {frame.function for frame in inspect.stack(0)}


async def test_the_pinned_packages_leave_the_fast_path_on(security: Security) -> None:
    """Should this fail after an update, each token costs more: see `_aiohttp_response`."""
    stacks: list[set[str]] = []

    def take(data: bytes) -> bool:
        stacks.append(callers())
        return False

    server = Server(chunked(*[b"token"] * 20))
    async with server.serving(security) as client:
        response = await client.send(client.build_request("GET", server.url), stream=True)
        async with aclosing(Body(response)) as body:
            assert (body.path, body.not_tapped) == ("tap", None)
            await body.feed(take)
    within_the_callback = ["data_received" in stack for stack in stacks]
    assert all(within_the_callback[1:]), "the first may have come with the headers"
    assert len(stacks) > 10


async def test_a_body_that_can_not_be_tapped_says_why(security: Security) -> None:
    server = Server(DELIMITED["compressed"])
    async with server.serving(security) as client:
        response = await client.send(client.build_request("GET", server.url), stream=True)
        async with aclosing(Body(response)) as body:
            assert (body.path, body.not_tapped) == ("iterator", "the body is compressed (gzip)")
    foreign = httpx2.Response(200, stream=httpx2.ByteStream(b"of another transport"))
    body = Body(foreign)
    assert (body.path, body.not_tapped) == ("iterator", "aiohttp's response was not found inside of httpx2's")
    arrived: list[bytes] = []

    def take(data: bytes) -> bool:
        arrived.append(data)
        return False

    await body.feed(take)
    assert arrived == [b"of another transport", b""]


async def test_a_body_that_breaks_off_says_so_after_what_there_was_of_it(security: Security) -> None:
    arrived: list[bytes] = []

    def take(data: bytes) -> bool:
        arrived.append(data)
        return False

    broken = chunked(b"some of it", whole=False)
    server = Server(broken)
    async with server.serving(security) as client:
        response = await client.send(client.build_request("GET", server.url), stream=True)
        async with aclosing(Body(response)) as body:
            with pytest.raises(aiohttp.ClientPayloadError):
                await body.feed(take)
    assert arrived == [b"some of it"]


async def test_requests_one_after_the_other_share_a_connection(security: Security) -> None:
    answers = [chunked(b"one"), [b"".join(chunked(b"two"))], chunked(*PIECES), chunked(b"four")]
    server = Server(*answers)
    async with server.serving(security) as client:
        said = [b"".join(await taken(client, server.url)) for _ in answers]
        assert server.connections == 1
    assert said == [b"one", b"two", WHOLE, b"four"]


async def test_a_connection_is_free_for_the_next_request_as_soon_as_its_body_has_ended(security: Security) -> None:
    """Both use the same connections in turn, and neither takes the other's bytes."""
    answers = [chunked(b"%d" % number) for number in range(60)]
    server = Server(*answers)
    async with server.serving(security) as client:

        async def some() -> list[bytes]:
            return [b"".join(await taken(client, server.url)) for _ in range(20)]

        said = [text for texts in await asyncio.gather(some(), some(), some()) for text in texts]
        assert server.connections <= 3
    assert sorted(said, key=int) == [b"%d" % number for number in range(60)]


async def test_no_more_is_taken_than_is_wanted_and_the_rest_is_skipped(security: Security) -> None:
    server = Server(chunked(b"first", b"second"), chunked(b"next"))
    async with server.serving(security) as client:
        assert await taken(client, server.url, enough=1) == [b"first"]
        assert await taken(client, server.url, enough=1) == [b"next"]
        assert server.connections == 1


async def test_leaving_a_body_in_the_middle_closes_its_connection(security: Security) -> None:
    endless = [head("Transfer-Encoding: chunked"), *[b"1\r\nx\r\n"] * 10_000]
    server = Server(endless)
    async with server.serving(security) as client:
        arrived: list[bytes] = []
        reading = asyncio.create_task(taken(client, server.url, arrived=arrived))
        async with asyncio.timeout(60):
            while not arrived:
                await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait({reading})
        assert reading.cancelled()
        async with asyncio.timeout(10):
            await server.left.wait()


async def test_what_the_taker_raises_is_raised_where_the_body_is_read(security: Security) -> None:
    def choke(data: bytes) -> bool:
        raise LookupError(data)

    server = Server(chunked(b"first", b"second"))
    async with server.serving(security) as client:
        response = await client.send(client.build_request("GET", server.url), stream=True)
        async with aclosing(Body(response)) as body:
            with pytest.raises(LookupError):
                await body.feed(choke)
