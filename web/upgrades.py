"""Requests that offer another protocol: answered in HTTP/1.1, as if they had not offered it.

A server may ignore `Upgrade` (RFC 9110, section 7.8). Java's HttpClient and `curl --http2` offer h2c with each request,
and go on in HTTP/1.1. httptools can't ignore it: it ends such a request behind its headers, so the body would be lost.
Here the headers are parsed again without `Upgrade`, and then the body.
"""

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chat.refusals import Refusal
from web.asgi import Request


def ignoring_upgrades(server: uvicorn.Server | None) -> None:
    """Call it before the server listens. uvicorn's other parser, h11, reads the body by itself."""
    if server is not None and server.config.http_protocol_class is HttpToolsProtocol:
        server.config.http_protocol_class = Http11Protocol


class Http11Protocol(HttpToolsProtocol):
    """A connection that stays in HTTP/1.1. A WebSocket handshake comes to the app as the GET that it is."""

    def _offers_another(self) -> bool:
        """httptools counts a CONNECT in, which uvicorn refuses for its target."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_headers_complete(self) -> None:
        if not self._offers_another():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._offers_another():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while (end_of_headers := self._feed(rest)) is not None:
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
                self._feed(head)
                rest = rest[end_of_headers:]
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _feed(self, data: bytes | memoryview) -> int | None:
        """Where the headers of a request end that offers another protocol; None if all of the data is read."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            place: int = offered.args[0]
            return place
        return None

    def _head_without_upgrade(self) -> bytes:
        request_line = b"%b %b HTTP/%b" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([request_line, *headers, b"", b""])


def check_no_websocket(request: Request) -> None:
    """Raises Refusal (no_websockets) for a handshake: its client can't read another answer. Pages can't set `Sec-`."""
    if request.method == "GET" and "sec-websocket-key" in request.headers:
        raise Refusal(
            "no_websockets",
            "The service has no WebSockets. It streams Server-Sent Events: read GET /chat with an EventSource, or "
            "POST /api/chat with any HTTP client.",
        )
