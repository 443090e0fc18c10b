"""Behind the real nginx, with the very site of deploy/nginx.conf: every frame at once, silence survived, one name answered."""

import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from conftest import ROOT, Service, free_port, required
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from openai_server import OpenAIServer, finish, pause, text, wait
from playwright.sync_api import Browser, expect
from test_page import DEADLINE_MS, browser, downloaded, send

__all__ = ["browser"]  # a fixture

SITE = (ROOT / "deploy/nginx.conf").read_text()
BELOW = (ROOT / "deploy/nginx-subpath.conf").read_text()


class Nginx:
    """The site with its addresses and names replaced. `changes`: more text to replace, each of which must be there."""

    def __init__(
        self,
        program: str,
        folder: Path,
        upstream: int,
        *,
        name: str = "127.0.0.1",
        certificate: Path | None = None,
        changes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "draftstream.log"
        self.name = name
        site = SITE if certificate is None else SITE.replace("#tls ", "")
        replaced = {
            "127.0.0.1:8005": f"127.0.0.1:{upstream}",
            "listen 80": f"listen 127.0.0.1:{self.port}",
            "listen 443": f"listen 127.0.0.1:{self.tls_port}",
            "server_name draftstream.example.com": f"server_name {name}",
            "/var/log/nginx/": f"{folder}/",
            "/etc/ssl/certs/draftstream.pem": str(certificate),
            "/etc/ssl/private/draftstream.key": f"{folder}/key.pem",
            **changes,
        }
        for text_of_site, instead in replaced.items():
            assert text_of_site in site, text_of_site
            site = site.replace(text_of_site, instead)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = folder / "nginx.conf"
        config.write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;\n"
            f"events {{ worker_connections 256; }}\nhttp {{\n{temporary}{site}\n}}\n"
        )
        self.process = subprocess.Popen(
            [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        pytest.fail(f"nginx does not serve: {(folder / 'error.log').read_text()}")

    def raw(self, request: bytes) -> bytes:
        """The whole answer, which is empty where the connection was closed without one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    program = required("nginx")
    tmp_path.chmod(0o755)
    started: list[Nginx] = []

    def start(upstream: int, **settings: Any) -> Nginx:
        started.append(Nginx(program, tmp_path, upstream, **settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_each_token_passes_before_the_next_one_is_made(
    nginx: Callable[..., Nginx], service: Callable[..., Service], openai: OpenAIServer
) -> None:
    """The model makes a token only after the client behind nginx has seen the one before: so nothing holds one back."""
    words = [f"word{number} " for number in range(8)]
    seen = [threading.Event() for _ in words]
    steps = [
        step
        for word, gate in zip(words, [None, *seen], strict=False)
        for step in ([wait(gate)] if gate else []) + [text(word)]
    ]
    openai.reply(*steps, finish())
    front = nginx(service(openai=openai).port)
    with requests.post(f"{front.url}/api/chat", json={"message": "Hi"}, stream=True, timeout=20) as answer:
        for line in answer.iter_lines(chunk_size=1):
            for word, gate in zip(words, seen, strict=True):
                if word.strip().encode() in line:
                    gate.set()
            if b'"type":"end"' in line:
                break
    assert all(gate.is_set() for gate in seen)


def test_the_start_passes_while_the_model_has_said_nothing(
    nginx: Callable[..., Nginx], service: Callable[..., Service], openai: OpenAIServer
) -> None:
    gate = threading.Event()
    openai.reply(wait(gate), text("late"), finish())
    front = nginx(service(openai=openai).port)
    with requests.get(f"{front.url}/chat?message=Hi", stream=True, timeout=20) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert next(line for line in lines if line.startswith(b"data: ")).startswith(b'data: {"type":"start"')
        gate.set()
        assert any(b'"type":"end"' in line for line in lines)


def test_a_heartbeat_keeps_a_silent_stream_open(
    nginx: Callable[..., Nginx], service: Callable[..., Service], openai: OpenAIServer
) -> None:
    openai.reply(text("first"), pause(5), text("last"), finish())
    front = nginx(
        service(openai=openai, HEARTBEAT_S="0.5").port, changes={"proxy_read_timeout 60s": "proxy_read_timeout 2s"}
    )
    with requests.get(f"{front.url}/chat?message=Hi", stream=True, timeout=20) as answer:
        body = answer.raw.read().decode()
    assert body.count("\n:\n") + body.count("\n\n:") >= 4
    assert '"content":"last"' in body
    assert '"type":"end"' in body


def test_no_log_line_carries_the_message(nginx: Callable[..., Nginx], service: Callable[..., Service]) -> None:
    behind = service()
    front = nginx(behind.port)
    assert requests.get(f"{front.url}/chat", params={"message": "secretword"}, timeout=20).status_code == 200
    front.stop()
    assert re.search(r'"GET /chat" 200', front.log.read_text())
    assert "secretword" not in front.log.read_text()
    assert "secretword" not in behind.log


def test_no_log_line_carries_the_message_of_a_chat_that_fails(
    nginx: Callable[..., Nginx], service: Callable[..., Service]
) -> None:
    behind = service()
    front = nginx(behind.port)
    assert behind.stop() == 0
    assert requests.get(f"{front.url}/chat", params={"message": "secretword"}, timeout=20).status_code == 502
    front.stop()
    logs = [path.read_text() for path in front.log.parent.glob("*.log")]
    assert any('"GET /chat" 502' in log for log in logs)
    assert not any("secretword" in log for log in logs)


def test_a_stream_goes_on_behind_nginx_where_the_client_left_it(
    nginx: Callable[..., Nginx], service: Callable[..., Service], openai: OpenAIServer
) -> None:
    openai.reply(text("Hello ", "world"), finish())
    front = nginx(service(openai=openai).port)
    first = requests.get(f"{front.url}/chat?message=Hi", timeout=20).text
    event_id = re.findall(r"id: (.+):0\n", first)[0] + ":6"  # behind "Hello ", however it was cut
    rest = requests.get(f"{front.url}/chat?message=Hi", headers={"Last-Event-ID": event_id}, timeout=20).text
    assert re.findall(r'"content":"([^"]*)"', rest) == ["world"]
    assert len(openai.requests) == 1


def test_a_body_over_the_limit_is_refused(nginx: Callable[..., Nginx], service: Callable[..., Service]) -> None:
    front = nginx(service().port)
    assert requests.post(f"{front.url}/api/chat", json={"message": "x" * 2**21}, timeout=20).status_code == 413


# ---------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1\r\nHost: evil.example",
        b"HTTP/1.1\r\nHost: 127.0.0.1",
        b"HTTP/1.1\r\nHost: localhost",
        b"HTTP/1.1\r\nHost: draft.lan.evil.example",
        b"HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: draft.lan",
        b"HTTP/1.0",
        b"HTTP/1.0\r\nHost: evil.example",
    ],
)
def test_every_name_but_the_sites_is_closed_without_an_answer(
    nginx: Callable[..., Nginx], service: Callable[..., Service], head: bytes
) -> None:
    front = nginx(service(ALLOWED_HOSTS="draft.lan").port, name="draft.lan")
    assert front.raw(b"GET /healthz " + head + b"\r\nConnection: close\r\n\r\n") == b""


def test_the_service_gets_the_name_that_was_checked(
    nginx: Callable[..., Nginx], service: Callable[..., Service]
) -> None:
    front = nginx(service(ALLOWED_HOSTS="draft.lan").port, name="draft.lan")
    close = b"\r\nConnection: close\r\n\r\n"
    for request in (
        b"GET /healthz HTTP/1.1\r\nHost: draft.lan",
        b"GET /healthz HTTP/1.1\r\nHost: DRAFT.LAN:8005",
        b"GET http://draft.lan/healthz HTTP/1.1\r\nHost: evil.example",
        b"GET http://draft.lan/healthz HTTP/1.1\r\nHost: evil.example:80",
    ):
        assert b'"status":"ok"' in front.raw(request + close)
    assert front.raw(b"GET http://evil.example/healthz HTTP/1.1\r\nHost: draft.lan" + close) == b""


def test_a_page_at_the_port_of_nginx_is_the_services_own(
    nginx: Callable[..., Nginx], service: Callable[..., Service]
) -> None:
    front = nginx(service(ALLOWED_HOSTS="draft.lan").port, name="draft.lan")

    def sent(origin: str) -> int:
        headers = {"Host": f"draft.lan:{front.port}", "Origin": origin}
        return requests.post(f"{front.url}/api/stream-tokens", headers=headers, timeout=20).status_code

    assert sent(f"http://draft.lan:{front.port}") == 201
    assert sent("http://draft.lan") == 403
    assert sent(f"http://evil.example:{front.port}") == 403


def test_no_answer_tells_the_version_of_nginx(nginx: Callable[..., Nginx], service: Callable[..., Service]) -> None:
    front = nginx(service().port)
    for path, size in (("/healthz", 0), ("/api/chat", 2**21), ("/%ff%", 0)):
        answer = requests.post(f"{front.url}{path}", data=b"x" * size, timeout=20)
        assert answer.headers["Server"] == "nginx"
        assert not re.search(r"nginx/\d", answer.text)


# ---------------------------------------------------------------------------------------------------------------
# Limits


def test_a_page_and_some_searches_pass_at_once(nginx: Callable[..., Nginx], service: Callable[..., Service]) -> None:
    front = nginx(service().port)
    assert {requests.get(f"{front.url}/healthz", timeout=20).status_code for _ in range(40)} == {200}


def test_an_address_that_asks_for_too_much_gets_429(
    nginx: Callable[..., Nginx], service: Callable[..., Service]
) -> None:
    front = nginx(service().port, changes={"rate=20r/s": "rate=1r/m", "burst=60": "burst=2"})
    codes = [
        requests.get(f"{front.url}{path}", timeout=20).status_code for path in ("/healthz",) * 4 + ("/chat?message=a",)
    ]
    assert codes == [200, 200, 200, 429, 429]


def test_streams_of_one_address_are_limited(
    nginx: Callable[..., Nginx], service: Callable[..., Service], openai: OpenAIServer
) -> None:
    gate = threading.Event()
    openai.reply(wait(gate), text("late"), finish())
    front = nginx(service(openai=openai).port, changes={"draftstream_streams 200": "draftstream_streams 1"})
    with requests.get(f"{front.url}/chat?message=Hi", stream=True, timeout=20) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert next(lines) == b"retry: 2000"
        assert requests.get(f"{front.url}/healthz", timeout=20).status_code == 429
        gate.set()
        assert b'"type":"end"' in b"".join(lines)


@pytest.mark.parametrize("without", [False, True])
def test_an_export_for_a_slow_reader_lies_in_no_file(
    nginx: Callable[..., Nginx], service: Callable[..., Service], openai: OpenAIServer, *, without: bool
) -> None:
    """The second case shows that the line is what does it."""
    openai.reply(text("word " * 200_000), finish())
    changes = {"-error.log crit": "-error.log warn", " default_server;": " default_server sndbuf=16k;"}
    changes |= {"proxy_max_temp_file_size 0;": ""} if without else {}
    front = nginx(service(openai=openai).port, changes=changes)
    chat = requests.post(f"{front.url}/api/chat", json={"message": "Hi", "thread_id": "t"}, timeout=60)
    assert '"saved":true' in chat.text
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        slow.sendall(b"GET /api/threads/t/export?format=json HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        errors = front.log.with_name("draftstream-error.log")
        if without:  # the worker, another user, may not be able to make the file
            deadline = time.monotonic() + 60
            while not re.search(r"temporary file|/proxy/0", errors.read_text()) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert re.search(r"temporary file|/proxy/0", errors.read_text())
            return
        received = 0
        while data := slow.recv(65536):
            received += len(data)
    assert received > 1_000_000
    assert not re.search(r"temporary file|/proxy/0", errors.read_text())


# ---------------------------------------------------------------------------------------------------------------
# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Self-signed, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (tmp_path / "certificate.pem").write_bytes(made.public_bytes(pem))
    return tmp_path / "certificate.pem"


def test_over_tls_it_streams_and_knows_its_own_page(
    nginx: Callable[..., Nginx], service: Callable[..., Service], certificate: Path
) -> None:
    front = nginx(service().port, name="localhost", certificate=certificate)
    url = f"https://localhost:{front.tls_port}"
    trusted = str(certificate)
    answer = requests.get(f"{url}/chat?message=Draft+an+NDA", verify=trusted, timeout=60)
    assert '"saved":true' in answer.text
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    for origin, status in ((url, 201), (url.replace("https", "http"), 403), ("https://localhost", 403)):
        sent = requests.post(f"{url}/api/stream-tokens", headers={"Origin": origin}, verify=trusted, timeout=20)
        assert sent.status_code == status


def test_over_tls_other_names_get_no_certificate_and_plain_http_is_sent_on(
    nginx: Callable[..., Nginx], service: Callable[..., Service], certificate: Path
) -> None:
    front = nginx(service().port, name="localhost", certificate=certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.set_alpn_protocols(["h2", "http/1.1"])

    def shaken_hands_as(name: str) -> str | None:
        with (
            socket.create_connection(("127.0.0.1", front.tls_port), timeout=20) as connection,
            trusting.wrap_socket(connection, server_hostname=name) as secure,
        ):
            return secure.selected_alpn_protocol()

    assert shaken_hands_as("localhost") == "h2", "more than six streams a browser"
    with pytest.raises(ssl.SSLError):
        shaken_hands_as("evil.example")
    headers = {"Host": "localhost"}
    plain = requests.get(f"{front.url}/debug?a=b", headers=headers, allow_redirects=False, timeout=20)
    assert (plain.status_code, plain.headers["Location"]) == (301, "https://localhost/debug?a=b")
    assert front.raw(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n") == b""


# ---------------------------------------------------------------------------------------------------------------
# Below a sub-path


def below(text_of_locations: str) -> dict[str, str]:
    """The changes that put the service below a sub-path of the site, whose own pages are another program's."""
    own = "location / {\n        return 200 'another program';"
    return {
        "    # The streams.\n": f"{text_of_locations}\n    # The streams.\n",
        "location ~ ^/(chat$|api/chat$|api/runs/) {": "location /none/ {",
        "location / {\n        proxy_pass http://draftstream;": own,
    }


BARE = "location /draft/ { proxy_pass http://draftstream/; }"


@pytest.mark.parametrize("locations", [BELOW, BARE], ids=["the site", "bare"])
def test_below_a_sub_path_the_page_drafts_and_resumes(
    nginx: Callable[..., Nginx], service: Callable[..., Service], browser: Browser, tmp_path: Path, locations: str
) -> None:
    front = nginx(service().port, changes=below(locations.replace("/var/log/nginx", str(tmp_path))))
    page = browser.new_page()
    page.set_default_timeout(DEADLINE_MS)
    expect.set_options(timeout=DEADLINE_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    page.goto(f"{front.url}/draft/debug")
    for how, message in (("GET", "Draft an NDA"), ("POST", "Make it mutual")):
        send(page, message, how)
        expect(page.locator("#log .end").last).to_contain_text('"saved":true')
    page.reload()
    expect(page.locator(".chip")).to_have_count(2)
    assert downloaded(page, "Download the conversation", "Word")[1][:2] == b"PK"
    expect(page.locator("#state-text")).to_contain_text("ready")
    assert {path.split("/")[1] for path in asked} == {"draft"}
    page.close()


def test_below_a_sub_path_every_url_of_an_answer_leads_back_there(
    nginx: Callable[..., Nginx], service: Callable[..., Service], tmp_path: Path
) -> None:
    front = nginx(service().port, changes=below(BELOW.replace("/var/log/nginx", str(tmp_path))))
    root = f"{front.url}/draft"
    assert requests.get(f"{front.url}/debug", timeout=20).text == "another program"
    for path in ("/draft", "/draft/"):
        assert requests.get(front.url + path, timeout=20).url == f"{root}/debug"
    started = requests.post(f"{root}/api/chat", json={"message": "Draft an NDA", "thread_id": "t"}, timeout=60)
    again = requests.get(urljoin(started.url, started.headers["Location"]), timeout=60)
    assert again.url.startswith(f"{root}/api/runs/")
    assert again.text.splitlines()[-2] == started.text.splitlines()[-2]  # the end
    fork = requests.post(f"{root}/api/threads/t/fork", json={}, timeout=20)
    assert fork.headers["Location"].startswith("/draft/api/threads/")
    assert requests.get(urljoin(fork.url, fork.headers["Location"]), timeout=20).status_code == 200
    document = requests.get(f"{root}/openapi.json", timeout=20)
    [server] = document.json()["servers"]
    assert urljoin(document.url, server["url"]) == root
    assert requests.get(f"{root}/metrics", timeout=20).status_code == 200


def test_a_client_behind_nginx_chooses_no_prefix(
    nginx: Callable[..., Nginx], service: Callable[..., Service], tmp_path: Path
) -> None:
    running = service()
    for changes, expected in (({}, "/debug"), (below(BELOW.replace("/var/log/nginx", str(tmp_path))), "/draft/debug")):
        front = nginx(running.port, changes=changes)
        path = "/" if expected == "/debug" else "/draft/"
        headers = {"X-Forwarded-Prefix": "/evil"}
        answer = requests.get(front.url + path, headers=headers, allow_redirects=False, timeout=20)
        assert answer.headers["Location"] == expected
        front.stop()
