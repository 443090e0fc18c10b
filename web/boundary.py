"""The checks before routing: the host that a request was meant for, and what sent it.

A browser sends the requests of any page to any address that it can reach. Two rules keep foreign pages out.

The host: while the service is open, the answer to a request is for whoever can send it. A page whose name was made to
point at this machine (DNS rebinding) counts as the service's own page. So an open service answers only at hosts that
can't be pointed elsewhere: IP addresses, `localhost` and the names under it, and ALLOWED_HOSTS. X-Forwarded-Host is
never read, because such a page can send it.

The sender: what changes something or starts a run must come from a page that may use the service, or from a client
that is no browser. Browsers send `Origin` with every request that is not a GET or HEAD, so `cors.allows` decides those.
A GET that starts a run needs more, because an image, a link or a prefetch sends it without `Origin`. The other GETs
of a caller are refused where the browser says that a foreign page sent them and no person followed a link.
"""

import re
from collections.abc import Collection, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from chat.refusals import Refusal
from runs.sse import EVENT_STREAM
from web import cors
from web.asgi import Request

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# A host in the one form in which browsers write it. A trailing dot, user info, a zone id, an address that is not
# written in full and a port that is no number do not match: no browser sends them, and they may be read in two ways.
HOST = re.compile(r"(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
MAX_PORT = 65535

PREFETCH_HEADERS = ("sec-purpose", "purpose", "x-purpose", "x-moz")
SCRIPT_MODES = ("cors", "same-origin")  # Sec-Fetch-Mode of an EventSource and of a fetch that can read its answer
BROWSER = "mozilla/"  # how the User-Agent of every browser begins
ELEMENT_TYPES = ("text/html", "text/css", "application/xhtml+xml", "image/", "audio/", "video/", "font/")


def check_host(request: Request, allowed_hosts: Collection[str]) -> None:
    """Raises Refusal (bad_host). Call it while the service is open."""
    hosts = [request.headers.get("host", "")]
    if request.target_host is not None:
        hosts.append(request.target_host)
    if not all(is_ours(host, allowed_hosts) for host in hosts):
        raise Refusal(
            "bad_host",
            "Without an API key the service answers only at an IP address, at localhost and at the names in "
            "ALLOWED_HOSTS. The operator can add this host name to ALLOWED_HOSTS, or add an API key.",
        )


def is_ours(host: str, allowed_hosts: Collection[str]) -> bool:
    """Whether no foreign page can make `host` (with or without a port) point at this service."""
    name = name_of(host)
    if name is None:
        return False
    return _is_address(name) or _is_under(name, "localhost") or any(_matches(name, one) for one in allowed_hosts)


def name_of(host: str) -> str | None:
    """The host without its port, in lower case; None if it is not in the form of `HOST`."""
    found = HOST.fullmatch(host.lower())
    return None if found is None or int(found["port"] or 0) > MAX_PORT else found["name"]


def _is_address(name: str) -> bool:
    try:
        IPv6Address(name[1:-1]) if name.startswith("[") else IPv4Address(name)
    except AddressValueError:
        return False
    return True


def _is_under(name: str, domain: str) -> bool:
    return name == domain or name.endswith(f".{domain}")


def _matches(name: str, allowed: str) -> bool:
    return name.endswith(allowed[1:]) if allowed.startswith("*.") else name == allowed


def check_sender(request: Request, origins: Collection[str]) -> None:
    """Raises Refusal (bad_origin) for a page that may not use the service."""
    if not cors.allows(origins, request):
        raise Refusal(
            "bad_origin",
            "Pages of this origin may not use the service; the operator can name the origin in CORS_ALLOW_ORIGINS.",
        )


def check_read(request: Request, origins: Collection[str]) -> None:
    """Raises Refusal (bad_origin) for an image, a frame or a script of a foreign page.

    The page can't read the answer. But it can measure its time, which tells of a search whether there is a hit, and it
    uses up the owner's limits.
    """
    headers = request.headers
    follows_a_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if "sec-fetch-site" in headers and not follows_a_link:
        check_sender(request, origins)


def check_start_by_get(request: Request, origins: Collection[str], *, is_open: bool) -> None:
    """Raises Refusal (prefetch, bad_origin, event_stream_only) for a GET that must not start a run."""
    headers = request.headers
    if any(name in headers for name in PREFETCH_HEADERS):
        raise Refusal("prefetch", "A prefetch starts no chat; send the request when a person asks for it.")
    check_sender(request, origins)
    mode, kind = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    by_script = mode in SCRIPT_MODES and kind == "empty"
    if by_script and "sec-fetch-site" in headers:
        return
    says_otherwise = mode not in (None, *SCRIPT_MODES) or kind not in (None, "empty")
    if says_otherwise or (_may_be_a_browser(headers) and EVENT_STREAM not in accepted(headers)):
        raise Refusal(
            "event_stream_only",
            "In a browser a GET starts a chat only for an EventSource or a fetch, not for an address, a link or an "
            f"image. Use the page at /debug. A program can send Accept: {EVENT_STREAM}, or use POST /api/chat.",
        )
    if _may_be_a_browser(headers) and not _is_from_own_page(request, is_open=is_open):
        raise Refusal(
            "bad_origin",
            "It is unknown which page sent this, because browsers tell it at this address only in a Referer. Let the "
            "page send one, serve it over https, or add an API key. A program can use POST /api/chat.",
        )


def accepted(headers: Mapping[str, str]) -> list[str]:
    """The media types of its Accept header, without their parameters."""
    return [part.partition(";")[0].strip().lower() for part in headers.get("accept", "").split(",")]


def _may_be_a_browser(headers: Mapping[str, str]) -> bool:
    """Whether the page behind a GET has to be known. Others accept anything and give their own name."""
    by_element = any(media_type.startswith(ELEMENT_TYPES) for media_type in accepted(headers))
    return by_element or BROWSER in headers.get("user-agent", "").lower()


def _is_from_own_page(request: Request, *, is_open: bool) -> bool:
    """For a browser that sent no Sec-Fetch-Site: an old one, or any at an http:// address of another machine.

    A script of a foreign page can send `Accept: text/event-stream` there without an Origin (mode "no-cors"), and leave
    the Referer out, but it can't choose a Referer.
    """
    if "origin" in request.headers:  # which `check_sender` has checked
        return True
    referer = request.headers.get("referer")
    if referer is not None:
        scheme, _, rest = referer.partition("://")
        return request.is_own(f"{scheme}://{rest.partition('/')[0]}")
    name = name_of(request.headers.get("host", "")) or ""
    always_tells = request.scheme == "https" or _is_under(name, "localhost") or _is_loopback(name)
    return always_tells or not is_open


def _is_loopback(name: str) -> bool:
    return _is_address(name) and (name == "[::1]" or name.startswith("127."))
