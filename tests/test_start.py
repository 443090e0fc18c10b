"""A start: the version, and the ways in which it fails."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import requests
from conftest import ROOT, Service

from settings import VERSION

Start = Callable[..., Service]
MAIN = [sys.executable, "asgi_app.py"]


@pytest.mark.parametrize("command", [None, MAIN], ids=["uvicorn", "main"])
def test_the_version_is_in_the_log_healthz_and_the_metrics(service: Start, command: list[str] | None) -> None:
    running = service(command=command)
    of_uvicorn = 0 if command is not None else 2  # lines that it writes before it calls the app
    assert running.log.splitlines()[of_uvicorn].endswith(f"Draftstream {VERSION}")
    assert running.log.count(f"Draftstream {VERSION}") == 1
    assert requests.get(f"{running.url}/healthz", timeout=10).json() == {"status": "ok", "version": VERSION}
    metrics = requests.get(f"{running.url}/metrics", timeout=10).text
    assert f'draftstream_build_info{{version="{VERSION}"}} 1.0' in metrics


def test_the_command_tells_the_version() -> None:
    env = {"PATH": os.environ["PATH"], "PORT": "not a port"}  # which a version does not need
    done = subprocess.run([*MAIN, "--version"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, f"Draftstream {VERSION}")
