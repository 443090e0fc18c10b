"""Behind the real nginx, with the very site of deploy/nginx.conf: every frame at once, and silence survived."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conftest import ROOT, Service, free_port, required
from openai_server import OpenAIServer, finish, pause, text, wait

SITE = (ROOT / "deploy/nginx.conf").read_text()


class Nginx:
    def __init__(self, program: str, folder: Path, upstream: int, *, read_timeout_s: int = 60) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "draftstream.log"
        site = SITE.replace("127.0.0.1:8005", f"127.0.0.1:{upstream}").replace(
            "listen 80", f"listen 127.0.0.1:{self.port}"
        )
        site = site.replace("/var/log/nginx/", f"{folder}/")
        site = site.replace("proxy_read_timeout 60s", f"proxy_read_timeout {read_timeout_s}s")
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
                requests.get(f"{self.url}/healthz", timeout=5).raise_for_status()
            except requests.RequestException:
                time.sleep(0.05)
            else:
                return
        pytest.fail(f"nginx does not serve: {(folder / 'error.log').read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    program = required("nginx")
    tmp_path.chmod(0o755)
    started: list[Nginx] = []

    def start(upstream: int, **settings: int) -> Nginx:
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
    front = nginx(service(openai=openai, HEARTBEAT_S="0.5").port, read_timeout_s=2)
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
