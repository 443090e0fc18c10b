"""A start: the version, and the ways in which it fails, each with exit code 3 and one line that says the way out."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from conftest import ROOT, Service, free_port, rows
from test_access import until

from settings import VERSION, Settings, SettingsError
from web.server import CannotListen, check_address

Start = Callable[..., Service]
MAIN = [sys.executable, "asgi_app.py"]
COMMANDS = pytest.mark.parametrize("command", [None, MAIN], ids=["uvicorn", "main"])


@COMMANDS
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


@COMMANDS
def test_ctrl_c_in_a_start_ends_it_without_a_traceback(
    command: list[str] | None, database_url: str, tmp_path: Path
) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PORT": str(free_port()), "DATABASE_URL": database_url}
    log = tmp_path / "service.log"
    log.touch()
    starting = Service(env, log, command)
    try:
        until(lambda: "Waiting for application startup" in starting.log)
        starting.process.send_signal(signal.SIGINT)
        assert starting.process.wait(60) == 0
    finally:
        starting.kill()
    assert "Application shutdown complete" in starting.log
    assert "Traceback" not in starting.log


# ---------------------------------------------------------------------------------------------------------------
# Starts that fail


Fails = Callable[..., tuple[int, str]]


@pytest.fixture
def fails(tmp_path: Path) -> Fails:
    """Start the service, which must end by itself: gives its exit code and the one line about it."""

    def start(command: list[str] | None, app: str = "asgi_app:app", **settings: str) -> tuple[int, str]:
        env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PORT": str(free_port())} | settings
        failed = Service(env, tmp_path / "service.log", command, app)
        try:
            code = failed.process.wait(60)
        finally:
            failed.process.kill()
        [line] = [line for line in failed.log.splitlines() if "Draftstream can't start" in line]
        assert ("Traceback" in failed.log) == ("traceback" in line), failed.log
        assert "secret" not in failed.log
        return code, line

    return start


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "abc", "PORT must be a whole number from 0 to 65535, not 'abc'"),
        ("MAX_RUNS", "0", "MAX_RUNS must be a whole number from 1 to 2147483647, not '0'"),
        ("DATABASE_URL", "mysql://user:secret@x/y", "DATABASE_URL must be a postgresql:// URL"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, not 'loud'"),
        ("OPENAI_BASE_URL", "ftp://user:secret@x", "OPENAI_BASE_URL must be an http:// or https:// URL"),
        ("CORS_ALLOW_ORIGINS", "app.example", "CORS_ALLOW_ORIGINS must be"),
    ],
)
def test_a_wrong_setting_is_named_without_a_secret(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({name: value})
    assert str(refused.value).startswith(said)
    assert "secret" not in str(refused.value)


@COMMANDS
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MAX_RUNS": "0"}, "MAX_RUNS must be a whole number from 1 to 2147483647, not '0'"),
        ({"DATABASE_URL": "postgresql://user:secret@127.0.0.1:1/x"}, "can't use the database at 127.0.0.1:1/x"),
        ({"DATABASE_URL": "postgresql://user:12/34secret@127.0.0.1:1/x"}, "percent-encoded (%40 for @)"),
        ({"DATA_DIR": "/dev/null/data"}, "DATA_DIR can't be used"),
    ],
    ids=["setting", "database", "password", "embedded"],
)
def test_a_start_that_fails_exits_3_with_one_line(
    fails: Fails, command: list[str] | None, settings: dict[str, str], said: str
) -> None:
    code, line = fails(command, **settings)
    assert code == 3
    assert said in line


@COMMANDS
def test_a_journal_that_cannot_be_kept_is_named(fails: Fails, command: list[str] | None, database_url: str) -> None:
    code, line = fails(command, DATABASE_URL=database_url, JOURNAL_DIR="/dev/null/journal")
    assert code == 3
    assert "the journal can't be kept in /dev/null/journal" in line


def test_the_schema_of_a_newer_service_is_refused(fails: Fails, database_url: str) -> None:
    rows(database_url, "UPDATE draftstream_schema SET version = 999 RETURNING version")
    code, line = fails(None, DATABASE_URL=database_url)
    assert code == 3
    assert "version 999 of the schema" in line


@COMMANDS
def test_a_port_in_use_is_named_with_the_way_out(fails: Fails, command: list[str] | None, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = fails(command, PORT=str(port), DATABASE_URL=database_url)
    assert code == 3
    assert f"127.0.0.1:{port}: another program listens there" in line
    assert f"PORT={port + 1}" in line


def test_an_error_of_ours_in_a_start_exits_3_and_its_traceback_is_in_the_log(fails: Fails, database_url: str) -> None:
    code, line = fails(None, "broken_app:app", DATABASE_URL=database_url, BREAKS="start")
    assert code == 3
    assert "an error of ours (KeyError); the traceback is in the log" in line


def test_an_error_of_ours_in_a_shutdown_is_answered_and_not_exit_0(service: Start) -> None:
    running = service(app="broken_app:app", BREAKS="shutdown")
    running.breaks_on_purpose = True
    assert running.stop() == 1
    assert "The shutdown failed" in running.log
    assert "appears unsupported" not in running.log


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("192.0.2.1", 8005, "Set HOST"), ("no-such-host.invalid", 8005, "Set HOST")],
)
def test_an_address_that_is_not_ours_is_named(host: str, port: int, said: str) -> None:
    with pytest.raises(CannotListen, match=f"it can't listen at {host}:{port}: .*{said}"):
        check_address(host, port)


def test_an_address_that_is_free_passes() -> None:
    check_address("127.0.0.1", free_port())
    check_address("localhost", 0)


FOREIGN_SERVER = """import asyncio, asgi_app
async def main():
    async def receive():
        return {"type": "lifespan.startup"}
    async def send(message):
        print(message["type"], message.get("message"))
    await asgi_app.app({"type": "lifespan", "state": {}}, receive, send)
asyncio.run(main())"""


def test_under_a_server_that_cannot_be_asked_an_open_service_says_how_to_start(database_url: str) -> None:
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url}
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN_SERVER], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(
        "lifespan.startup.failed Draftstream can't start: the address at which this server listens is unknown"
    )
    assert "ALLOW_ANONYMOUS=1" in done.stdout
    assert "python -m access add" in done.stdout
