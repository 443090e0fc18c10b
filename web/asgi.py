"""HTTP over ASGI: its types, requests read within limits, and responses. It knows nothing of chat but Refusal.

Two facts of uvicorn that this rests on: after a disconnect `send` returns silently and only `receive` reports it. The
server reads and drops a body that the app did not read to its end, so the connection stays usable.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import orjson

from chat.refusals import Refusal
from web.outlet import STUCK_S, Outlet, transport_of
from web.prefix import Proxies, path_below, prefix_of

T = TypeVar("T")
ConnectionScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[str, str]]

BODY_TIMEOUT_S = 10.0
PIECE_BYTES = 65536  # of an answer, between two waits for the client
MAX_HEADER_BYTES = 65536  # twice the default limit of nginx
BROKEN_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")
JSON = "application/json"
OWN_SITES = ("same-origin", "none")  # Sec-Fetch-Site; "none": the person did it, or no page
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
SAFE_TO_READ = (("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "same-origin"))
COMMON_HEADERS = (*SAFE_TO_READ, ("cache-control", "no-store"))


class Disconnected(Exception):
    """The client left before the request or the response was complete, so there is no one to answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, decoded from its ASGI scope."""

    method: str
    path: str
    http_version: str
    headers: Mapping[str, str]
    raw_query: bytes
    receive: Receive
    scheme: str = "http"  # behind a proxy "https" only if that says so, from an address that uvicorn trusts
    target_host: str | None = None  # of a request line with a whole URL, which counts before the Host header (RFC 9112)
    prefix: str = ""  # see web/prefix.py; the path is without it

    @classmethod
    def from_scope(cls, scope: ConnectionScope, receive: Receive, trusted_proxies: Proxies = ()) -> "Request":
        """Raises Refusal (headers_too_large, malformed_host)."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            detail = f"The headers have more than {MAX_HEADER_BYTES} bytes; send fewer or shorter ones."
            raise Refusal("headers_too_large", detail, limit=MAX_HEADER_BYTES)
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if name == "host" and name in headers:
                raise Refusal("malformed_host", "A request must have exactly one Host header.")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if "host" not in headers and scope["http_version"] == "1.1":
            raise Refusal("malformed_host", "A request must have exactly one Host header.")
        return cls(
            scope["method"],
            path_below(scope),
            scope["http_version"],
            headers,
            scope["query_string"],
            receive,
            scope.get("scheme", "http"),
            _target_host(scope, receive),
            prefix_of(scope, headers.get("x-forwarded-prefix"), transport_of(receive), trusted_proxies),
        )

    def query(self) -> dict[str, str]:
        """The parameters. Raises Refusal (bad_query) for a repeated name, and for bad percent encoding or UTF-8."""
        parameters: dict[str, str] = {}
        for pair in self.raw_query.split(b"&"):
            if not pair:
                continue
            name, _, value = (_unquote(part) for part in pair.partition(b"="))
            if name in parameters:
                raise Refusal("bad_query", f"The query has the parameter {name!r} twice; send it once.")
            parameters[name] = value
        return parameters

    def body_bytes(self, limit: int) -> int:
        """The most that its body can take in memory. A body without a length may be as long as the limit."""
        length = self.headers.get("content-length", "")
        if length.isdecimal():
            return min(int(length), limit)
        return limit if "transfer-encoding" in self.headers else 0

    async def json(self, limit: int) -> object:
        """The decoded body. Raises Refusal (not_json, invalid_json), and as `body` does."""
        media_type, _, parameters = self.headers.get("content-type", "").partition(";")
        charset = parameters.replace(" ", "").lower().removeprefix("charset=").strip('"')
        transfer = self.headers.get("transfer-encoding", "chunked").lower()
        encoded = "content-encoding" in self.headers or transfer != "chunked"
        if media_type.strip().lower() != JSON or charset not in ("", "utf-8") or encoded:
            raise Refusal("not_json", "The body must be sent as application/json, in UTF-8, uncompressed.")
        body = await self.body(limit)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Refusal("invalid_json", f"The body is not valid JSON: {error}.") from None

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises Refusal (slow_body, body_too_large) and Disconnected."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._body(limit)
        except TimeoutError:
            detail = f"The body did not arrive within {BODY_TIMEOUT_S:g} seconds; send the request again."
            raise Refusal("slow_body", detail) from None

    async def _body(self, limit: int) -> bytes:
        too_large = Refusal(
            "body_too_large", f"The body has more than {limit} bytes, which is the limit (MAX_BODY_BYTES).", limit=limit
        )
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        body = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large
            if not message.get("more_body", False):
                break
        if (transport := transport_of(self.receive)) is not None and transport.is_closing():
            # uvicorn has refused the bytes behind this request, or the client has left. Either way no answer reaches
            # the client, which may send the request again: so it must not be carried out.
            raise Refusal("connection_closed", "The connection was closed behind this request.")
        return bytes(body)

    async def while_connected(self, work: Coroutine[None, None, T]) -> T:
        """The result of `work`, which is cancelled if the client leaves before. Raises Disconnected, and as it does."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.create_task(self.disconnected(), name="a client leaves")
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Disconnected
            return working.result()
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.wait({working, leaving})

    async def disconnected(self) -> None:
        """Return once the client has left."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @property
    def foreign_origin(self) -> str | None:
        """The origin of the page that sent this, unless it is the service's own; "null" where the browser hides it.

        Both headers must say that it is the own one. Another port or a subdomain ("same-site") is foreign.
        """
        origin = self.headers.get("origin")
        from_own_site = self.headers.get("sec-fetch-site", "none") in OWN_SITES
        if from_own_site and (origin is None or self.is_own(origin)):
            return None
        return "null" if origin is None else origin

    def is_own(self, origin: str) -> bool:
        """Whether `origin` is that of the service, as the client addresses it.

        Behind a proxy that ends TLS the service may not know its scheme. An http:// page of the same name passes then;
        current browsers tell such a page in Sec-Fetch-Site.
        """
        scheme, _, host = origin.partition("://")
        port = DEFAULT_PORTS.get(scheme)
        if port is None or (self.scheme == "https" and scheme == "http"):
            return False
        return host.removesuffix(port) == self.headers.get("host", "").lower().removesuffix(port) != ""


def _unquote(part: bytes) -> str:
    if BROKEN_ESCAPE.search(part):
        raise Refusal("bad_query", "The query has a % without two hexadecimal digits; send a percent sign as %25.")
    try:
        return unquote_to_bytes(part.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise Refusal("bad_query", "The query is not UTF-8; percent-encode its text as UTF-8.") from None


def _target_host(scope: ConnectionScope, receive: Receive) -> str | None:
    """The host of a request line with a whole URL. uvicorn keeps it out of the scope.

    It is not known for a request with others behind it on the connection, which no browser sends.
    """
    transport = transport_of(receive)
    protocol = transport.get_protocol() if transport is not None else None
    target: bytes = getattr(protocol, "url", b"")
    if getattr(protocol, "scope", None) is not scope or b"://" not in target.partition(b"?")[0]:
        return None
    return target.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0].decode("latin-1")


class Response:
    """The one answer to a request. `started`: its status is sent, so no other answer can be given."""

    def __init__(self, send: Send, headers: Headers = (), *, head: bool = False, stuck_s: float = STUCK_S) -> None:
        self._send = send
        self._outlet = Outlet(transport_of(send), stuck_s)
        self._headers = tuple(headers)
        self._head = head
        self.started = False
        self.at_start: Callable[[], Headers] = tuple  # more headers, as they are when the answer begins

    @property
    def is_open(self) -> bool:
        """Whether the client is still there, as far as that is known."""
        return not self._outlet.closing

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        told = (*headers, *self._headers, *self.at_start())
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told]
        await self._transmit({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, body: bytes) -> None:
        """Write in pieces, each of which waits for the client to take those before.

        Raises Disconnected, so that nothing more is read for a client that has left or was cut off.
        """
        for begin in range(0, len(body), PIECE_BYTES):
            piece = body[begin : begin + PIECE_BYTES]
            await self._transmit({"type": "http.response.body", "body": piece, "more_body": True})
            if self._outlet.closing:
                raise Disconnected

    def write_now(self, body: bytes) -> bool:
        """Write without waiting. If the server might make us wait, write nothing and return False.

        uvicorn's `send` waits only for a slow client, and the number of unsent bytes shows one. If it waits all the
        same, the connection is aborted: a reader must not hold up the run.
        """
        if not self._outlet.has_room:
            return False
        sending = self._send({"type": "http.response.body", "body": body, "more_body": True}).__await__()
        try:
            next(sending)
        except StopIteration:
            return True
        except RuntimeError:  # see `_transmit`; the next `write` reports it
            return False
        self._outlet.abort()
        return True

    async def end(self, body: bytes = b"") -> None:
        """Raises Disconnected if the client does not take the rest."""
        await self._transmit({"type": "http.response.body", "body": body})
        self._outlet.bound_line()
        await self._outlet.flushed()

    async def _transmit(self, message: MutableMapping[str, Any]) -> None:
        """Raises Disconnected in the case where uvicorn does not return silently after a disconnect.

        While the client has a further request in line it notes the loss for that one alone, and uvloop's transport
        takes nothing any more.
        """
        try:
            if self._outlet.may_wait:
                with self._outlet.watched():
                    await self._send(message)
            else:
                await self._send(message)
        except RuntimeError as error:
            if not self._outlet.closing:
                raise
            raise Disconnected from error

    def abort(self) -> None:
        """Close the connection at once: of an answer that has begun, the client sees that it is cut."""
        self._outlet.abort()

    async def whole(self, status: int, content_type: str | None, body: bytes, headers: Headers = ()) -> None:
        """The answer with its length; to a HEAD request, its headers only. A large body is written in pieces."""
        described = [("content-type", content_type), ("content-length", str(len(body)))] if content_type else []
        names = {name for name, _ in headers}
        common = [header for header in COMMON_HEADERS if header[0] not in names]
        await self.start(status, [*described, *common, *headers])
        if self._head:
            await self.end()
            return
        last = max((len(body) - 1) // PIECE_BYTES * PIECE_BYTES, 0)  # where the last piece begins
        await self.write(body[:last])
        await self.end(body[last:])

    async def json(self, status: int, content: object, headers: Headers = ()) -> None:
        await self.whole(status, JSON, orjson.dumps(content), headers)
