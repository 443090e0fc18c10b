"""Whom a request was meant for, and what sent it: what a browser carries from foreign pages is refused."""

import re
import socket
import string
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
import requests
from conftest import Service, rows
from hypothesis import example, given
from hypothesis import strategies as st
from openai_server import OpenAIServer
from test_access import new_key

from chat.refusals import Refusal
from settings import Settings, SettingsError
from web import boundary
from web.asgi import Request
from web.routes import ROUTES

Start = Callable[..., Service]

ALLOWED = ("draft.lan", "*.draft.example.com")

# ---------------------------------------------------------------------------------------------------------------
# The host

OURS = [
    *("127.0.0.1", "127.0.0.1:8005", "192.168.1.20:80", "0.0.0.0:8005", "8.8.8.8", "255.255.255.255:65535"),
    *("[::1]", "[::1]:8005", "[2001:DB8::1]", "[::ffff:127.0.0.1]:1", "[::]"),
    *("localhost", "localhost:8005", "LocalHost:1", "draft.localhost", "a.b.localhost:8005"),
    *("draft.lan", "DRAFT.lan:8005", "a.draft.example.com", "a.b.draft.example.com:443"),
]
NOT_OURS = [
    *("", " ", ":8005", "attacker.example", "attacker.example:8005", "draft.lan.attacker.example", "xdraft.lan"),
    *("draft.example.com", "xdraft.example.com", ".draft.example.com", "draft.example.com.evil.example", "lan"),
    # Near localhost
    *("localhost.", "localhost.:8005", "localhost.evil.example", "evil-localhost", "xlocalhost", ".localhost"),
    *("a..localhost", "localhost.localdomain", "local\xadhost", "localhost\xa0", "evil.example#.localhost"),
    # Addresses that a program may read as a name, or as another address
    *("127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01", "127.0.0.1."),
    *("127.0.0.256", "127.0.0.1.evil.example", "1.2.3", "1.2.3.4.5", "::1", "::1:8005", "[::1", "::1]", "[]", "[:]"),
    *("[::1%lo]", "[::1%25lo]", "[fe80::1%25eth0]:1", "[127.0.0.1]", "[::1]evil", "[::1].evil.example", "[localhost]"),
    # Around the name
    *("user@localhost", "user:pass@localhost", "localhost@evil.example", "evil.example@127.0.0.1", "http://localhost"),
    *("localhost/", "localhost/.evil.example", "localhost?", "localhost#", "localhost\\", "localhost:", "localhost:x"),
    *("localhost:-1", "localhost:+80", "localhost:65536", "localhost:99999", "localhost:8005:8005", "localhost:80 80"),
    *("localhost, evil.example", "evil.example, localhost", "localhost localhost", "localhost\tx", "localhost\x00"),
    *("localhost:\xb2", "\xb9\xb2\xb7.0.0.1", "*", "*.draft.example.com", "%6cocalhost", "localhost%00.evil.example"),
]


@pytest.mark.parametrize("host", OURS)
def test_a_host_that_no_page_can_point_elsewhere_is_ours(host: str) -> None:
    assert boundary.is_ours(host, ALLOWED)


@pytest.mark.parametrize("host", NOT_OURS)
def test_every_other_host_is_not_ours(host: str) -> None:
    assert not boundary.is_ours(host, ALLOWED)


@given(st.text(st.characters(max_codepoint=255)) | st.text(string.ascii_lowercase + string.digits + ".:[]-_@%"))
@example("localhost")
def test_whatever_is_sent_is_ours_only_if_it_is_an_address_or_one_of_the_names(host: str) -> None:
    if not boundary.is_ours(host, ALLOWED):
        return
    name = re.sub(r":\d+$", "", host.lower()) if not host.endswith("]") else host.lower()
    if name.startswith("["):
        assert str(IPv6Address(name[1:-1]))
    elif name[-1].isdigit():
        assert str(IPv4Address(name)) == name
    else:
        assert re.fullmatch(r"([a-z0-9_-]+\.)*localhost|draft\.lan|([a-z0-9_-]+\.)+draft\.example\.com", name)


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_every_address_is_ours_with_and_without_a_port(address: IPv4Address | IPv6Address, port: int | None) -> None:
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    if "%" in host:
        return
    assert boundary.is_ours(host if port is None else f"{host}:{port}", ())


@pytest.mark.parametrize(
    "value", ["draft.lan", "Draft.LAN, other", "*.example.com", "a_b.c-d", "127.0.0.1", "xn--mnchen-3ya.de"]
)
def test_a_name_may_be_allowed(value: str) -> None:
    assert Settings.from_env({"ALLOWED_HOSTS": value}).allowed_hosts


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "*.com",
        "*.*",
        "a.*",
        "*draft.lan",
        "http://draft.lan",
        "draft.lan:80",
        "draft.lan/",
        "draft.lan.",
        "münchen.de",
        "a b",
    ],
)
def test_what_would_allow_too_much_or_nothing_can_not_be_set(value: str) -> None:
    with pytest.raises(SettingsError, match="ALLOWED_HOSTS must be"):
        Settings.from_env({"ALLOWED_HOSTS": value})


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


def status_and_code(answer: bytes) -> tuple[int, str]:
    code = re.search(rb'"code":"(\w+)"', answer)
    return int(answer.split(b" ")[1]), code[1].decode() if code else ""


PATHS = [re.sub(r"\{run_id\}", "0" * 8 + "-0000-0000-0000-" + "0" * 12, path) for path in ROUTES]
PATHS = [re.sub(r"\{\w+\}", "d1", path) for path in PATHS]


def test_an_open_service_answers_a_foreign_host_on_no_path_and_to_no_method(service: Start) -> None:
    running = service(ALLOWED_HOSTS="draft.lan")
    for path in [*PATHS, "/nowhere", "/%ff", "//evil.example/", "/chat?message=Hi"]:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            request = f"{method} {path} HTTP/1.1\r\nHost: evil.example:{running.port}\r\nConnection: close\r\n\r\n"
            assert status_and_code(raw(running.port, request.encode())) == (403, "bad_host"), (method, path)
        head = f"HEAD {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert raw(running.port, head.encode()).startswith(b"HTTP/1.1 403 ")
    assert rows(running.env["DATABASE_URL"], "SELECT FROM threads") == []


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\n", (403, "bad_host")),
        (
            b"HTTP/1.1\r\nHost: evil.example\r\nForwarded: host=localhost\r\nX-Forwarded-For: 127.0.0.1\r\n",
            (403, "bad_host"),
        ),
        (b"HTTP/1.1\r\nHost: evil.example\r\nX-Host: localhost\r\nX-Original-Host: localhost\r\n", (403, "bad_host")),
        (b"HTTP/1.1\r\nHost:\r\n", (403, "bad_host")),
        (b"HTTP/1.1\r\nHost: \t \r\n", (403, "bad_host")),
        (b"HTTP/1.0\r\n", (403, "bad_host")),
        (b"HTTP/1.0\r\nHost: evil.example\r\n", (403, "bad_host")),
        (b"HTTP/1.0\r\nHost: localhost\r\n", (200, "")),
        (b"HTTP/1.1\r\n", (400, "malformed_host")),
        (b"HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", (400, "malformed_host")),
        (b"HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", (400, "malformed_host")),
        (b"HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: evil.example\r\n", (200, "")),
        (b"HTTP/1.1\r\nHost: draft.lan\r\n", (200, "")),
        (b"HTTP/1.1\r\nHost: draft.lan:8005\r\n", (200, "")),
        (b"HTTP/1.1\r\nHost: [::1]:8005\r\n", (200, "")),
    ],
)
def test_the_host_header_counts_and_nothing_else(open_service: Service, head: bytes, expected: tuple[int, str]) -> None:
    request = b"GET /healthz " + head + b"Connection: close\r\n\r\n"
    assert status_and_code(raw(open_service.port, request)) == expected


@pytest.fixture
def open_service(service: Start) -> Service:
    return service(ALLOWED_HOSTS="draft.lan")


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (b"http://evil.example/healthz", b"localhost", 403),
        (b"http://localhost/healthz", b"evil.example", 403),
        (b"http://localhost@evil.example/healthz", b"localhost", 403),
        (b"HTTP://evil.example:80/healthz?a=://localhost/", b"localhost", 403),
        (b"http://localhost:8005/healthz", b"localhost", 200),
        (b"/healthz?next=http://evil.example/", b"localhost", 200),
    ],
)
def test_a_request_line_with_a_whole_url_is_for_the_host_of_that_url(
    service: Start, target: bytes, host: bytes, expected: int
) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    assert status_and_code(raw(service().port, request))[0] == expected


def test_a_service_with_a_key_answers_at_every_name(service: Start, database_url: str) -> None:
    key = new_key(database_url, "acme")
    running = service()
    headers = {"Host": "draft.example.com", "Authorization": f"Bearer {key.key}"}
    answer = requests.get(f"{running.url}/api/threads", headers=headers, timeout=20)
    assert answer.status_code == 200
    assert requests.get(f"{running.url}/healthz", headers={"Host": "evil.example"}, timeout=20).status_code == 200
    assert requests.get(f"{running.url}/api/threads", headers={"Host": "evil.example"}, timeout=20).status_code == 401


@pytest.mark.parametrize(
    ("allowed", "said"), [("", "IP addresses and localhost only"), ("draft.lan", "localhost and ALLOWED_HOSTS only")]
)
def test_the_start_of_an_open_service_says_at_which_names_it_answers(service: Start, allowed: str, said: str) -> None:
    log = service(ALLOWED_HOSTS=allowed).log
    assert re.search(rf"access: OPEN, .*{said}.* add the name in the address bar to ALLOWED_HOSTS", log)


# ---------------------------------------------------------------------------------------------------------------
# The sender

PAGE = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0"}
OWN = "http://localhost:8005"
STREAM = {"Accept": "text/event-stream"}
IMAGE = {"Accept": "image/avif,image/webp,*/*;q=0.8"}
DOCUMENT = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def fetched(site: str, mode: str = "cors", kind: str = "empty") -> dict[str, str]:
    return {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": kind}


def sent(headers: dict[str, str], method: str = "GET", host: str = "localhost:8005", scheme: str = "http") -> Request:
    raw_headers = [(name.lower().encode(), value.encode()) for name, value in ({"Host": host} | headers).items()]
    scope = {"method": method, "path": "/chat", "query_string": b"", "headers": raw_headers}
    scope |= {"http_version": "1.1", "scheme": scheme}

    async def receive() -> dict[str, object]:
        return {}

    return Request.from_scope(scope, receive)


def refused(request: Request, *origins: str, is_open: bool = True) -> str | None:
    """The code with which it may not start a run, or None."""
    try:
        if request.method in boundary.SAFE_METHODS:
            boundary.check_start_by_get(request, origins, is_open=is_open)
        else:
            boundary.check_sender(request, origins)
    except Refusal as refusal:
        return refusal.code
    return None


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl -H Accept: -A ""
        {"User-Agent": "curl/8.7.1", "Accept": "*/*"},
        {"User-Agent": "python-requests/2.32", "Accept": "*/*"},
        {"User-Agent": "node", "Accept": "*/*", "Sec-Fetch-Mode": "cors"},  # Node's fetch
        {"User-Agent": "axios/1.7", "Accept": "application/json, text/plain, */*"},
        {"User-Agent": "Go-http-client/1.1"},
        PAGE | STREAM | fetched("same-origin"),
        PAGE | {"Accept": "*/*"} | fetched("same-origin"),
        PAGE | {"Accept": "*/*"} | fetched("same-origin", "same-origin"),
        PAGE | STREAM | fetched("same-origin") | {"Origin": OWN},
        PAGE | STREAM,  # an old browser
        PAGE | STREAM | {"Referer": f"{OWN}/debug"},
    ],
)
def test_a_client_and_the_own_page_start_runs_by_get(headers: dict[str, str]) -> None:
    assert refused(sent(headers)) is None


LISTED = "http://localhost:3000"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        # Another site, another port, the address bar: with what current browsers say of it
        (PAGE | STREAM | fetched("cross-site"), "bad_origin"),
        (PAGE | STREAM | fetched("same-site"), "bad_origin"),
        (PAGE | IMAGE | fetched("same-site", "no-cors", "image"), "bad_origin"),
        (PAGE | IMAGE | fetched("same-origin", "no-cors", "image"), "event_stream_only"),
        (PAGE | STREAM | fetched("same-origin", "no-cors"), "event_stream_only"),
        (PAGE | {"Accept": "*/*"} | fetched("same-origin", "no-cors", "script"), "event_stream_only"),
        (PAGE | DOCUMENT | fetched("none", "navigate", "document"), "event_stream_only"),
        (PAGE | DOCUMENT | fetched("same-origin", "navigate", "iframe"), "event_stream_only"),
        (PAGE | STREAM | fetched("none", "navigate", "document"), "event_stream_only"),
        (PAGE | STREAM | fetched("same-origin", "websocket", "empty"), "event_stream_only"),
        (STREAM | {"Sec-Fetch-Site": "cross-site, same-origin"}, "bad_origin"),
        (STREAM | {"Sec-Fetch-Site": ""}, "bad_origin"),
        (STREAM | {"Sec-Fetch-Site": "Same-Origin"}, "bad_origin"),
        # The two signals do not agree
        (PAGE | STREAM | fetched("cross-site") | {"Origin": OWN}, "bad_origin"),
        (PAGE | STREAM | fetched("same-site") | {"Origin": OWN}, "bad_origin"),
        (PAGE | STREAM | fetched("same-origin") | {"Origin": "http://localhost:8006"}, "bad_origin"),
        (PAGE | STREAM | fetched("none") | {"Origin": "null"}, "bad_origin"),
        # What old browsers say, and all of them at an http:// address of another machine
        (PAGE | IMAGE, "event_stream_only"),
        (PAGE | DOCUMENT, "event_stream_only"),
        (PAGE | {"Accept": "*/*"}, "event_stream_only"),
        (PAGE, "event_stream_only"),
        (PAGE | {"Accept": "text/event-streams"}, "event_stream_only"),
        (IMAGE, "event_stream_only"),
        (DOCUMENT | {"User-Agent": "An app"}, "event_stream_only"),
        (PAGE | STREAM | {"Referer": "http://evil.example/"}, "bad_origin"),
        (PAGE | STREAM | {"Referer": f"{OWN}.evil.example/"}, "bad_origin"),
        (PAGE | STREAM | {"Referer": f"{OWN}@evil.example/"}, "bad_origin"),
        (PAGE | STREAM | {"Origin": ""}, "bad_origin"),
        (PAGE | STREAM | {"Origin": "null"}, "bad_origin"),
        # Prefetches, whoever sends them
        *(({name: value}, "prefetch") for name in boundary.PREFETCH_HEADERS for value in ("prefetch", "Prefetch", "x")),
        (PAGE | STREAM | fetched("same-origin") | {"Sec-Purpose": "prefetch;prerender"}, "prefetch"),
        (PAGE | {"Purpose": "prefetch", "Sec-Purpose": ""}, "prefetch"),
    ],
)
def test_what_a_foreign_page_a_link_or_a_browser_by_itself_sends_starts_no_run(
    headers: dict[str, str], code: str
) -> None:
    assert refused(sent(headers)) == code
    if "Origin" not in headers:
        assert refused(sent(headers), LISTED, "*") == code, "an allowed origin is one that is told"


def test_a_page_of_an_allowed_origin_may_start_runs() -> None:
    for site in ("same-site", "cross-site"):
        headers = PAGE | STREAM | fetched(site) | {"Origin": LISTED}
        assert refused(sent(headers)) == "bad_origin"
        assert refused(sent(headers), LISTED) is None
        assert refused(sent(headers), "*") is None
        assert refused(sent(headers, "POST"), LISTED) is None
        assert refused(sent(headers, "POST"), "http://localhost:3001") == "bad_origin"
        image = PAGE | IMAGE | fetched(site, "cors", "image") | {"Origin": LISTED}
        assert refused(sent(image), LISTED) == "event_stream_only", "<img crossorigin>"


@pytest.mark.parametrize("host", ["draft.lan", "draft.lan:8005", "192.168.1.20:8005", "[2001:db8::1]:8005"])
def test_over_plain_http_the_page_is_known_by_its_referer(host: str) -> None:
    """A foreign script may send any Accept there (mode "no-cors"), without a Sec-Fetch-Site and without an Origin."""
    headers = PAGE | STREAM
    assert refused(sent(headers, host=host)) == "bad_origin"
    assert refused(sent(headers | {"Referer": "http://evil.example/"}, host=host)) == "bad_origin"
    assert refused(sent(headers | {"Referer": f"http://{host}/debug"}, host=host)) is None
    assert refused(sent(headers | {"Origin": f"http://{host}"}, host=host)) is None
    assert refused(sent(headers | {"Origin": LISTED}, host=host), LISTED) is None
    assert refused(sent(headers, host=host), is_open=False) is None, "with keys no page can send a credential"
    assert refused(sent(headers, host=host, scheme="https")) is None, "there all current browsers tell"
    assert refused(sent({"User-Agent": "curl/8", "Accept": "*/*"}, host=host)) is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "post", "TRACE"])
def test_a_foreign_page_changes_nothing(method: str) -> None:
    assert refused(sent({}, method)) is None
    assert refused(sent({"Origin": OWN}, method)) is None
    assert refused(sent(fetched("same-origin") | {"Origin": OWN}, method)) is None
    assert refused(sent(fetched("none"), method)) is None
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
    ):
        assert refused(sent(headers, method)) == "bad_origin"


@pytest.mark.parametrize(
    ("host", "scheme", "origin", "is_own"),
    [
        ("localhost:8005", "http", "http://localhost:8005", True),
        ("LOCALHOST:8005", "http", "http://localhost:8005", True),
        ("localhost:8005", "http", "http://localhost:8006", False),
        ("localhost:8005", "http", "http://localhost", False),
        ("x", "http", "http://x", True),
        ("x:80", "http", "http://x", True),
        ("x:443", "https", "https://x", True),
        ("x", "http", "https://x", True),  # a proxy ended TLS and did not say so
        ("x", "https", "https://x", True),
        ("x", "https", "http://x", False),
        ("x", "http", "http://x:8005", False),
        ("x:8005", "http", "https://x", False),
        ("x:443", "http", "http://x", False),
        ("localhost", "http", "capacitor://localhost", False),
        ("", "http", "http://", False),
        ("x", "http", "http://x/", False),
        ("x", "http", "http://x, http://x", False),
    ],
)
def test_the_own_origin_is_the_name_and_the_port_that_the_client_used(
    host: str, scheme: str, origin: str, *, is_own: bool
) -> None:
    assert sent({}, host=host, scheme=scheme).is_own(origin) is is_own


def test_every_route_that_changes_or_starts_something_refuses_a_foreign_page(
    service: Start, openai: OpenAIServer
) -> None:
    running = service(openai=openai)
    changing = [
        (method, path)
        for path, methods in zip(PATHS, ROUTES.values(), strict=True)
        for method in methods
        if method != "GET" or path == "/chat"
    ]
    assert len(changing) >= 8
    for method, path in changing:
        for headers in ({"Origin": "http://localhost:1"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
            answer = requests.request(method, f"{running.url}{path}?message=Hi", headers=headers, json={}, timeout=20)
            assert (answer.status_code, answer.json()["code"]) == (403, "bad_origin"), (method, path)
    assert rows(running.env["DATABASE_URL"], "SELECT FROM threads") == []
    assert rows(running.env["DATABASE_URL"], "SELECT FROM stream_tokens") == []


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (fetched("cross-site", "no-cors", "image"), "bad_origin"),
        (fetched("same-site", "no-cors", "script"), "bad_origin"),
        (fetched("cross-site", "no-cors", "empty"), "bad_origin"),
        (fetched("cross-site", "cors", "empty") | {"Origin": "http://evil.example"}, "bad_origin"),
        (fetched("cross-site", "navigate", "iframe"), "bad_origin"),
        (fetched("cross-site", "navigate", "embed"), "bad_origin"),
        (fetched("same-site", "navigate", "object"), "bad_origin"),
        (fetched("cross-site", "no-cors", "document"), "bad_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "bad_origin"),
        (fetched("cross-site") | {"Sec-Fetch-Storage-Access": "active"}, "bad_origin"),
        (fetched("cross-site", "navigate", "document"), None),  # a link in a mail
        (fetched("same-origin", "navigate", "iframe"), None),
        (fetched("same-origin", "no-cors", "image"), None),
        (fetched("same-origin"), None),
        (fetched("none", "navigate", "document"), None),
        (fetched("cross-site") | {"Origin": LISTED}, None),
        ({"Sec-Fetch-Mode": "cors"}, None),  # Node's fetch
        ({}, None),
    ],
)
def test_a_foreign_page_measures_no_read_and_a_link_is_followed(headers: dict[str, str], code: str | None) -> None:
    if code is None:
        boundary.check_read(sent(headers), (LISTED,))
        return
    with pytest.raises(Refusal) as refusal:
        boundary.check_read(sent(headers), (LISTED,))
    assert refusal.value.code == code


def test_every_route_of_a_caller_is_measured_by_no_foreign_page(service: Start) -> None:
    running = service()
    reads = [
        (path, methods["GET"].who)
        for path, methods in zip(PATHS, ROUTES.values(), strict=True)
        if "GET" in methods and not methods["GET"].starts
    ]
    image = fetched("cross-site", "no-cors", "image")
    for path, who in reads:
        for method in ("GET", "HEAD"):
            answer = requests.request(method, f"{running.url}{path}", headers=image, timeout=20, allow_redirects=False)
            if who == "anyone":
                assert answer.status_code in (200, 302)
            elif method == "GET":
                assert (answer.status_code, answer.json()["code"]) == (403, "bad_origin"), path
            else:
                assert answer.status_code in (403, 405)


def test_only_the_route_that_starts_a_run_by_get_needs_more_than_a_get() -> None:
    starts = [path for path, methods in ROUTES.items() for route in methods.values() if route.starts]
    assert starts == ["/chat"]
