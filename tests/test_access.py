"""Who may call: every route against every kind of caller, the keys, and the tokens of an EventSource."""

import asyncio
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import requests
from conftest import ROOT, Service, free_port, run
from openai_server import OpenAIServer, echo, finish, text, tool, wait
from sse_client import chat

from access import callers as room
from access import stream_tokens
from access.__main__ import _end_date
from access.callers import Access
from access.credentials import ANONYMOUS, Caller, Forbidden, Unauthorized
from access.keys import ADD_KEY, READ_KEYS, REVOKE_KEY, command_to_add_a_key
from settings import SCOPES, Settings
from store import Store, StoreUnavailable
from web.routes import ROUTES
from web.routing import Who

Start = Callable[..., Service]
NOWHERE = "00000000-0000-0000-0000-000000000000"
PUBLIC = {"/", "/debug", "/openapi.json", "/healthz", "/readyz", "/metrics"}
TEMPLATES: dict[str, dict[str, Who]] = {
    path: {method: route.who for method, route in routes.items()} for path, routes in ROUTES.items()
}
GUARDED = [
    (method, path, who) for path, methods in TEMPLATES.items() for method, who in methods.items() if path not in PUBLIC
]
# The body with which a request gets as far as its thread or run. A route with neither in its path is in ELSEWHERE: a test
# of its own below shows another owner's answer.
BODIES = {
    ("PATCH", "/api/threads/{thread_id}"): {"title": "Another"},
    ("POST", "/api/threads/{thread_id}/fork"): {"checkpoint_id": "{checkpoint_id}"},
}
ELSEWHERE = {
    *(("GET", "/chat"), ("POST", "/api/chat"), ("POST", "/api/stream-tokens")),
    ("GET", "/api/usage"),  # test_usage.py has two owners
    *(("GET", "/api/threads"), ("DELETE", "/api/threads")),  # test_threads.py has the threads that the latter deletes
}


@dataclass(frozen=True)
class Key:
    key_id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def execute(database_url: str, sql: str, *arguments: object) -> list[asyncpg.Record]:
    async def work() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    return run(work())


def new_key(
    database_url: str,
    owner: str,
    scopes: Sequence[str] = ("chat", "read", "admin"),
    *,
    expires_at: datetime | None = None,
) -> Key:
    """As `python -m access add`, without its process, which has tests of its own."""
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    secret_hash = hashlib.sha256(secret.encode()).digest()
    execute(database_url, ADD_KEY, key_id, secret_hash, owner, "", list(scopes), expires_at)
    return Key(key_id, f"ds_{key_id}_{secret}")


def revoke(database_url: str, key: Key) -> None:
    execute(database_url, REVOKE_KEY, key.key_id)


def send(service: Service, method: str, path: str, headers: dict[str, str], body: Any = None) -> requests.Response:
    return requests.request(
        method, service.url + path, headers=headers, json=body, timeout=20, stream=True, allow_redirects=False
    )


def body_of(method: str, template: str, ids: dict[str, str]) -> dict[str, str] | None:
    body = BODIES.get((method, template))
    return body and {name: value.format(**ids) for name, value in body.items()}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def as_told(answer: requests.Response) -> tuple[int, dict[str, str], bytes]:
    """All that a client can tell an answer by."""
    headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() != "date"}
    return answer.status_code, headers, answer.content


# ---------------------------------------------------------------------------------------------------------------
# The walk


def test_what_anyone_may_call_is_written_down_here() -> None:
    assert {path for path, methods in TEMPLATES.items() if "anyone" in methods.values()} == PUBLIC


def test_every_route_refuses_who_has_no_good_key_and_says_the_same_to_all(service: Start, database_url: str) -> None:
    good, revoked = new_key(database_url, "a"), new_key(database_url, "a")
    revoke(database_url, revoked)
    expired = new_key(database_url, "a", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    wrong = {
        "no such key": f"Bearer ds_{'0' * 12}_{'0' * 64}",
        "a wrong secret": f"Bearer {good.key[:-64]}{'0' * 64}",
        "cut off": f"Bearer {good.key[:-1]}",
        "with more behind it": f"Bearer {good.key}0",
        "revoked": f"Bearer {revoked.key}",
        "expired": f"Bearer {expired.key}",
        "empty": "Bearer ",
        "another scheme": f"Basic {good.key}",
        "no scheme": good.key,
        "two": f"Bearer {good.key}, Bearer {good.key}",
        "a JWT": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
    }
    running = service()
    bodies = set()
    for method, template, _ in GUARDED:
        path = re.sub(r"\{\w+\}", NOWHERE, template)
        nothing = send(running, method, path, {})
        assert nothing.status_code == 401, (method, path)
        assert nothing.headers["www-authenticate"] == 'Bearer realm="draftstream"'
        bodies.add(nothing.content)
        in_query = send(running, method, f"{path}?access_token={good.key}&message=Hi", {})
        assert in_query.status_code == 401, (method, path)
        bodies.add(in_query.content)
        for what, authorization in wrong.items():
            answer = send(running, method, path, {"Authorization": authorization})
            assert answer.status_code == 401, (method, path, what)
            assert answer.headers["www-authenticate"] == 'Bearer realm="draftstream", error="invalid_token"', what
            bodies.add(answer.content)
        assert send(running, method, path, good.headers).status_code not in (401, 403)
    assert len(bodies) == 1
    assert json.loads(bodies.pop())["code"] == "unauthorized"
    for path in PUBLIC:
        assert send(running, "GET", path, {"Authorization": "Bearer nonsense"}).status_code in (200, 302)
    assert good.key[-64:-1] not in running.log


def test_every_route_takes_its_scope(service: Start, database_url: str) -> None:
    running = service()
    keys = {scope: new_key(database_url, "a", [scope]) for scope in SCOPES}
    chat_and_read = new_key(database_url, "a", ["chat", "read"])
    for method, template, who in GUARDED:
        path = re.sub(r"\{\w+\}", NOWHERE, template)
        for scope, key in keys.items():
            answer = send(running, method, path, key.headers)
            if who in (scope, "any caller") or scope == "admin":
                assert answer.status_code not in (401, 403), (method, path, scope)
                continue
            assert answer.status_code == 403, (method, path, scope)
            says = f'Bearer realm="draftstream", error="insufficient_scope", scope="{who}"'
            assert answer.headers["www-authenticate"] == says
            assert answer.json()["code"] == "insufficient_scope"
            assert answer.json()["scope"] == who
        both = send(running, method, path, chat_and_read.headers).status_code
        assert (both == 403) == (who == "admin"), (method, path)


@pytest.fixture
def written(
    service: Start, openai: OpenAIServer, database_url: str
) -> Iterator[tuple[Service, Key, Key, dict[str, str]]]:
    """An owner with a thread that has a run in progress, and another who knows its ids."""
    mine, theirs = new_key(database_url, "mine"), new_key(database_url, "theirs")
    gate = threading.Event()
    for version in ("One", "Two"):
        openai.reply(tool("write_document", {"title": "NDA", "content": version}), finish("tool_calls"))
    openai.reply(text("Said before"), finish())
    openai.reply(text("Hello"), wait(gate), text(" there"), finish())
    running = service(openai=openai)
    first = chat(running.url, "First", headers=mine.headers, thread_id="t").last
    assert first["saved"]
    body = {"message": "Second", "thread_id": "t"}
    with send(running, "POST", "/api/chat", mine.headers, body) as answer:
        lines = answer.iter_lines(chunk_size=1)
        run_id = next(line for line in lines if line.startswith(b"id: ")).decode()[4:40]
        assert any(b"Hello" in line for line in lines)
        ids = {"thread_id": "t", "run_id": run_id, "checkpoint_id": first["checkpoint_id"], "doc_id": "d1"}
        yield running, mine, theirs, ids
        gate.set()


def test_another_owners_things_are_told_apart_from_nothing_by_nothing(
    written: tuple[Service, Key, Key, dict[str, str]], database_url: str
) -> None:
    running, mine, theirs, ids = written
    history = "/api/threads/t"
    before = send(running, "GET", history, mine.headers).json()
    tables = ("threads", "runs", "messages", "checkpoints")
    counts = [execute(database_url, f"SELECT count(*) FROM {table}") for table in tables]
    walked = [(method, path) for method, path, _ in sorted(GUARDED, key=lambda route: route[0] == "DELETE")]
    for method, template in walked:
        if "{" not in template:
            assert (method, template) in ELSEWHERE, "a new route: show here or below that it keeps owners apart"
            continue
        assert method in ("GET", "DELETE") or "cancel" in template or (method, template) in BODIES, (
            "its body is missing"
        )
        body = body_of(method, template, ids)
        there = template.format(**ids)
        nowhere = template.format(**dict.fromkeys(ids, NOWHERE))
        for headers in ({}, {"Last-Event-ID": f"{ids['run_id']}:1"}, {"Last-Event-ID": f"{NOWHERE}:1"}):
            answers = [
                as_told(send(running, method, path, theirs.headers | headers, body)) for path in (there, nowhere)
            ]
            assert answers[0] == answers[1], (method, template)
            assert answers[0][0] == 404, (method, template)
    assert [execute(database_url, f"SELECT count(*) FROM {table}") for table in tables] == counts
    after = send(running, "GET", history, mine.headers).json()
    assert after["runs"] == before["runs"], "a run in progress goes on"
    assert after["messages"][: len(before["messages"]) - 1] == before["messages"][:-1]
    for method, template in walked:  # and all of this is there, for its owner
        if "{" in template:
            if method == "DELETE":
                until(lambda: execute(database_url, "SELECT 1 FROM runs WHERE status = 'running'") == [])
            answer = send(running, method, template.format(**ids), mine.headers, body_of(method, template, ids))
            assert answer.status_code < 400, (method, template)
            answer.close()


def test_a_list_has_its_owners_threads_alone(service: Start, database_url: str) -> None:
    one, two, none = (new_key(database_url, owner) for owner in ("one", "two", "none"))
    running = service()
    for number in range(3):
        chat(running.url, f"Hello {number}", headers=one.headers)
        chat(running.url, f"Hi {number}", headers=two.headers)
    first = send(running, "GET", "/api/threads?limit=1", one.headers).json()
    for key, begins, count in ((one, "Hello", 3), (two, "Hi", 3), (none, "", 0)):
        whole = send(running, "GET", "/api/threads", key.headers).json()
        assert [thread["title"].split()[0] for thread in whole["threads"]] == [begins] * count
        assert whole["next_cursor"] is None
    page = send(running, "GET", f"/api/threads?cursor={first['next_cursor']}", two.headers).json()
    assert all(thread["title"].startswith("Hi") for thread in page["threads"])


def test_one_thread_id_of_two_owners_is_two_threads(
    written: tuple[Service, Key, Key, dict[str, str]], openai: OpenAIServer
) -> None:
    running, mine, theirs, _ = written
    openai.default = (echo(),)
    busy = send(running, "POST", "/api/chat", mine.headers, {"message": "Third", "thread_id": "t"})
    assert busy.status_code == 409
    for _ in range(2):
        assert chat(running.url, "Hi", headers=theirs.headers, thread_id="t").last["saved"]
    said = send(running, "GET", "/api/threads/t", theirs.headers).json()["messages"]
    assert [message["content"] for message in said if message["role"] == "user"] == ["Hi", "Hi"]
    assert "First" not in json.dumps(said), "the model of theirs has heard nothing of mine"
    assert "Hi" not in [m["content"] for m in send(running, "GET", "/api/threads/t", mine.headers).json()["messages"]]
    assert send(running, "PATCH", "/api/threads/t", theirs.headers, {"title": "Theirs"}).json()["title"] == "Theirs"
    assert send(running, "DELETE", "/api/threads/t", theirs.headers).status_code == 204
    assert send(running, "GET", "/api/threads/t", theirs.headers).status_code == 404
    assert send(running, "GET", "/api/threads/t", mine.headers).json()["title"] == "First"


def test_another_owners_idempotency_key_checkpoint_and_event_id_are_unknown(service: Start, database_url: str) -> None:
    mine, theirs = new_key(database_url, "mine"), new_key(database_url, "theirs")
    running = service()
    first = chat(running.url, "Hello", headers=mine.headers | {"Idempotency-Key": "k"}, thread_id="t")
    second = chat(running.url, "Other", headers=theirs.headers | {"Idempotency-Key": "k"}, thread_id="t")
    assert second.status == 200
    assert second.run_id != first.run_id
    again = chat(running.url, "Hello", headers=mine.headers | {"Idempotency-Key": "k"}, thread_id="t")
    assert again.run_id == first.run_id
    answers = [
        as_told(
            send(
                running,
                "POST",
                "/api/chat",
                theirs.headers,
                {"message": "Go", "thread_id": "t", "checkpoint_id": state},
            )
        )
        for state in (first.last["checkpoint_id"], NOWHERE.replace("0", "1"))
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 422
    assert send(running, "POST", "/api/threads/t/fork", mine.headers, {"thread_id": "f"}).status_code == 201
    for body, status in ((None, 415), ({"checkpoint_id": first.last["checkpoint_id"]}, 422), ({"thread_id": "f"}, 201)):
        assert send(running, "POST", "/api/threads/t/fork", theirs.headers, body).status_code == status
    for key, said in ((mine, "Hello"), (theirs, "Other")):
        assert send(running, "GET", "/api/threads/f", key.headers).json()["messages"][0]["content"] == said
    answers = [
        as_told(send(running, "GET", "/chat?message=Hi", theirs.headers | {"Last-Event-ID": f"{run_id}:0"}))
        for run_id in (first.run_id, NOWHERE)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 204


# ---------------------------------------------------------------------------------------------------------------
# Open and closed


def command(*arguments: str, database_url: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "DATABASE_URL": database_url}
    line = [sys.executable, "-m", "access", *arguments]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_the_first_key_closes_an_open_service_and_nothing_opens_it_again(service: Start, database_url: str) -> None:
    running = service()
    assert running.log.count("access: OPEN") == 1
    assert chat(running.url, "Hello", thread_id="t").status == 200
    assert send(running, "GET", "/api/threads", {"Authorization": "Basic eDp5"}).status_code == 200, "a proxy's login"
    assert send(running, "GET", "/api/threads", {"Authorization": "Bearer x"}).status_code == 401, (
        "credentials that are sent are checked"
    )
    old_token = send(running, "POST", "/api/stream-tokens", {}).json()["access_token"]
    key = new_key(database_url, "anonymous")
    until(lambda: send(running, "GET", "/api/threads", {}).status_code == 401)
    threads = send(running, "GET", "/api/threads", key.headers).json()["threads"]
    assert [thread["thread_id"] for thread in threads] == ["t"], (
        "the threads from before belong to a key for that owner"
    )
    assert send(running, "GET", f"/chat?message=Hi&access_token={old_token}", {}).status_code == 401
    revoke(database_url, key)
    until(lambda: send(running, "GET", "/api/threads", key.headers).status_code == 401)
    assert send(running, "GET", "/api/threads", {}).status_code == 401
    running.restart()
    assert send(running, "GET", "/api/threads", {}).status_code == 401


def test_the_first_key_works_at_once(service: Start, database_url: str) -> None:
    running = service()
    key = new_key(database_url, "first")
    assert send(running, "GET", "/api/threads", key.headers).status_code == 200
    assert send(running, "GET", "/api/threads", {}).status_code == 401


def test_the_line_that_tells_how_to_close_the_service_works_as_written(service: Start, database_url: str) -> None:
    running = service()
    [line] = re.findall(r"access: OPEN, .*; to close it, add a key \((.+)\)", running.log)
    line = line.replace("DATABASE_URL=… ", "").replace("NAME", "acme")
    env = {"PATH": os.defpath, "DATABASE_URL": database_url}  # without the Python of the tests
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    headers = {"Authorization": f"Bearer {done.stdout.strip()}"}
    assert send(running, "GET", "/api/threads", headers).status_code == 200


def command_told(env: dict[str, str]) -> str:
    template, paths = command_to_add_a_key(Settings.from_env(env))
    return template % tuple(paths)


@pytest.mark.parametrize(
    ("data_dir", "python", "line"),
    [
        (".data", ROOT / ".venv/bin/python", ".venv/bin/python -m access add --owner NAME"),
        (".data", Path("/usr/bin/python3"), "/usr/bin/python3 -m access add --owner NAME"),
        ("/a b", ROOT / ".venv/bin/python", "DATA_DIR='/a b' .venv/bin/python -m access add --owner NAME"),
    ],
)
def test_that_line_is_for_the_embedded_database_and_the_python_that_there_is(
    monkeypatch: pytest.MonkeyPatch, data_dir: str, python: Path, line: str
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", str(python))
    assert command_told({"DATA_DIR": data_dir}) == line


def test_from_another_folder_that_line_goes_there_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    told = command_told({})
    assert told == f"cd {ROOT} && DATA_DIR={tmp_path}/.data /usr/bin/python3 -m access add --owner NAME"
    with_url = command_told({"DATABASE_URL": "postgresql://user:secret@db/x"})
    assert with_url == f"cd {ROOT} && DATABASE_URL=… /usr/bin/python3 -m access add --owner NAME"


UVICORN = ["-m", "uvicorn", "asgi_app:app", "--ws", "none"]


@pytest.mark.parametrize("line", [["asgi_app.py"], [*UVICORN, "--host", "0.0.0.0"], [*UVICORN, "--host", "::"]])
def test_an_open_service_refuses_to_start_where_others_reach_it(line: list[str], database_url: str) -> None:
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "HOST": "0.0.0.0", "PORT": str(free_port())}
    if "-m" in line:
        line = [*line, "--port", env["PORT"]]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    [says] = [told for told in done.stderr.splitlines() if "can't start" in told]
    assert "ALLOW_ANONYMOUS" in says
    assert "-m access add --owner NAME" in says
    assert "Traceback" not in done.stderr


def started_everywhere(database_url: str, log: Path, **settings: str) -> Service:
    port = str(free_port())
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "HOST": "0.0.0.0", "PORT": port} | settings
    return Service(env, log, [sys.executable, "asgi_app.py"]).wait_until_ready()


def test_it_starts_there_once_it_has_a_key_or_is_allowed_to(database_url: str, tmp_path: Path) -> None:
    allowed = started_everywhere(database_url, tmp_path / "allowed", ALLOW_ANONYMOUS="1")
    assert send(allowed, "GET", "/api/threads", {}).status_code == 200
    assert allowed.stop() == 0
    assert "access: OPEN" in allowed.log
    new_key(database_url, "a")
    closed = started_everywhere(database_url, tmp_path / "closed", ALLOW_ANONYMOUS="1")
    assert send(closed, "GET", "/api/threads", {}).status_code == 401
    assert closed.stop() == 0
    assert "access: API keys" in closed.log


def test_a_file_descriptor_counts_as_an_address_that_others_reach(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        env = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url}
        line = [sys.executable, *UVICORN, "--fd", str(listening.fileno())]
        done = subprocess.run(
            line, cwd=ROOT, env=env, pass_fds=[listening.fileno()], capture_output=True, text=True, timeout=60
        )
    assert "can't start: the address at which this server listens is unknown" in done.stderr


# ---------------------------------------------------------------------------------------------------------------
# The keys' command


def test_a_key_is_made_shown_once_used_and_revoked(service: Start, database_url: str) -> None:
    running = service()
    made = command(
        "add", "--owner", "acme", "--name", "intake form", "--expires", "2999-12-31", database_url=database_url
    )
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"ds_[0-9a-f]{12}_[0-9a-f]{64}\n", made.stdout), "nothing else, so that it can be piped"
    key = Key(made.stdout[3:15], made.stdout.strip())
    assert key.key not in made.stderr
    assert send(running, "GET", "/api/threads", key.headers).status_code == 200
    [row] = execute(database_url, "SELECT * FROM access_keys")
    assert key.key[-64:] not in repr(row)
    assert row["secret_hash"] == hashlib.sha256(key.key[-64:].encode()).digest()
    assert (row["scopes"], row["expires_at"]) == (["chat", "read"], datetime(3000, 1, 1, tzinfo=UTC))
    listed = command("list", database_url=database_url).stdout
    assert re.search(rf"{key.key_id}  good   chat,read  .* 3000-01-01 00:00Z  acme   intake form", listed)
    assert key.key[-64:] not in listed
    assert command("revoke", key.key_id, database_url=database_url).returncode == 0
    assert command("revoke", key.key_id, database_url=database_url).returncode == 0, "it stays revoked"
    until(lambda: send(running, "GET", "/api/threads", key.headers).status_code == 401)
    assert f"{key.key_id}  revoked" in command("list", database_url=database_url).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add"], "--owner"),
        (["add", "--owner", ""], "must not be empty"),
        (["add", "--owner", "a\nb"], "printable"),
        (["add", "--owner", "a" * 256], "255"),
        (["add", "--owner", "a", "--scopes", "chat,write"], "chat,read,admin"),
        (["add", "--owner", "a", "--expires", "2020-01-01"], "past"),
        (["add", "--owner", "a", "--expires", "soon"], "2027-12-31"),
        (["add", "--owner", "a", "--expires", "9999-12-31"], "before 9999-12-31"),
        (["add", "--owner", "a", "--expires", "9999-12-31T23:59:59-01:00"], "before 9999-12-31"),
        (["revoke", "0123456789ab"], "no key 0123456789ab"),
        ([], "required"),
    ],
)
def test_the_command_says_what_it_can_not_do(arguments: list[str], says: str, database_url: str) -> None:
    done = command(*arguments, database_url=database_url)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert execute(database_url, "SELECT * FROM access_keys") == []


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2999-12-31", datetime(3000, 1, 1, tzinfo=UTC)),
        ("29991231", datetime(3000, 1, 1, tzinfo=UTC)),
        ("2999-12-31T12:00", datetime(2999, 12, 31, 12, tzinfo=UTC)),
        ("2999-12-31T12:00+02:00", datetime(2999, 12, 31, 10, tzinfo=UTC)),
    ],
)
def test_a_key_is_good_to_the_end_of_its_last_day_or_until_a_time(text: str, end: datetime) -> None:
    assert _end_date(text) == end


def test_the_command_says_when_the_database_is_away() -> None:
    done = command("list", database_url=f"postgresql://user:secret@127.0.0.1:{free_port()}/x")
    assert done.returncode == 1
    assert "can't use the database at 127.0.0.1" in done.stderr
    assert "start the database, or set DATABASE_URL to the one of the service" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


# ---------------------------------------------------------------------------------------------------------------
# The cache of keys, and its times


@dataclass
class Link:
    """The way to the database. It can be cut, and it counts statements."""

    store: Store
    cut: bool = False
    sent: int = 0

    async def fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        self.sent += 1
        if self.cut:
            raise StoreUnavailable
        return await self.store.fetch(sql, *arguments)


def closed_access(link: Link) -> Access:
    return Access(link.fetch, provider=None, closed=True, resume_s=660)


async def stored_key(store: Store, owner: str = "a", *, expires_at: datetime | None = None) -> Key:
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    secret_hash = hashlib.sha256(secret.encode()).digest()
    await store.fetch(ADD_KEY, key_id, secret_hash, owner, "", ["chat"], expires_at)
    return Key(key_id, f"ds_{key_id}_{secret}")


@pytest.mark.anyio
async def test_a_key_is_remembered_and_a_wrong_one_is_not(store: Store) -> None:
    link = Link(store)
    access = closed_access(link)
    key = await stored_key(store)
    for _ in range(3):
        assert (await access.caller(f"bearer   {key.key}")).owner == "a"
    assert link.sent == 1
    wrong = f"Bearer {key.key[:-1]}{'1' if key.key.endswith('0') else '0'}"
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await access.caller(wrong)
    assert link.sent == 4
    with pytest.raises(Unauthorized):
        await access.caller("Bearer ds_garbage")
    assert link.sent == 4, "a text that can't be a key costs nothing"
    assert repr(access) == "<Access closed, 1 keys known>"


@pytest.mark.anyio
async def test_a_crowd_is_let_in_by_a_look_or_two_each_by_its_own_key(store: Store) -> None:
    link = Link(store)
    access = closed_access(link)
    keys = [await stored_key(store, owner) for owner in "abc"]
    sent = [keys[number % 3].key for number in range(300)]
    sent[100] = f"ds_{keys[0].key_id}_{'0' * 64}"
    sent[200] = f"ds_{'0' * 12}_{'0' * 64}"
    answers = await asyncio.gather(*(access.caller(f"Bearer {key}") for key in sent), return_exceptions=True)
    assert link.sent <= 2
    assert isinstance(answers[100], Unauthorized)
    assert isinstance(answers[200], Unauthorized)
    owners = [answer.owner if isinstance(answer, Caller) else None for answer in answers]
    expected = [None if number in (100, 200) else "abc"[number % 3] for number in range(300)]
    assert owners == expected


@pytest.mark.anyio
async def test_the_cache_of_keys_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CACHED_KEYS", 2)
    access = closed_access(Link(store))
    for _ in range(4):
        await access.caller(f"Bearer {(await stored_key(store)).key}")
    assert repr(access) == "<Access closed, 2 keys known>"


@pytest.mark.anyio
async def test_a_revoked_key_dies_when_it_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    access = closed_access(Link(store))
    key = await stored_key(store)
    await access.caller(f"Bearer {key.key}")
    await store.fetch(REVOKE_KEY, key.key_id)
    await access.caller(f"Bearer {key.key}")
    later(access, room.CACHE_S)
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await access.caller(f"Bearer {key.key}")
    assert repr(access) == "<Access closed, 0 keys known>"


@pytest.mark.anyio
async def test_a_key_goes_on_for_a_while_when_the_database_is_away(store: Store) -> None:
    link = Link(store)
    access = closed_access(link)
    key, other = await stored_key(store), await stored_key(store)
    await access.caller(f"Bearer {key.key}")
    link.cut = True
    later(access, room.CACHE_S)
    sent = link.sent
    for _ in range(3):
        assert (await access.caller(f"Bearer {key.key}")).owner == "a"
    assert link.sent == sent + 1, "one look in a while: each may take a second"
    with pytest.raises(StoreUnavailable):
        await access.caller(f"Bearer {other.key}")
    later(access, room.OUTAGE_S)
    with pytest.raises(StoreUnavailable):
        await access.caller(f"Bearer {key.key}")


@pytest.mark.anyio
async def test_a_key_that_is_remembered_ends_with_its_end_date(store: Store) -> None:
    link = Link(store)
    access = closed_access(link)
    key, other = [await stored_key(store, expires_at=datetime.now(UTC) + timedelta(seconds=3)) for _ in range(2)]
    for each in (key, other):
        caller = await access.caller(f"Bearer {each.key}")
    assert caller.expires_at is not None
    while time.time() < caller.expires_at:
        await asyncio.sleep(0.02)
    with pytest.raises(Unauthorized):
        await access.caller(f"Bearer {key.key}")
    link.cut = True
    for each in (key, other):
        with pytest.raises(StoreUnavailable):
            await access.caller(f"Bearer {each.key}")


def later(access: Access, seconds: float) -> None:
    """As if so much time had gone by since the keys were read."""
    for known in access._known.values():
        known.checked_at -= seconds
        known.fresh_until -= seconds


def test_admin_may_do_everything_and_chat_and_read_nothing_of_each_others() -> None:
    for has, needs, may in (
        ("admin", "chat", True),
        ("admin", "read", True),
        ("chat", "chat", True),
        ("chat", "read", False),
        ("read", "chat", False),
        ("read", "admin", False),
    ):
        caller = Caller("a", frozenset([has]))
        if may:
            caller.need(needs)  # type: ignore[arg-type]  # a table of words
        else:
            with pytest.raises(Forbidden):
                caller.need(needs)  # type: ignore[arg-type]  # a table of words


@pytest.mark.anyio
async def test_an_open_service_has_one_caller(store: Store) -> None:
    access = Access(Link(store).fetch, provider=None, closed=False, resume_s=1)
    assert await access.caller(None) is ANONYMOUS
    assert repr(access) == "<Access open, 0 keys known>"


@pytest.mark.anyio
async def test_the_statements_use_an_index(store: Store) -> None:
    for sql, values in (
        (READ_KEYS, ["'{k}'::text[]"]),
        (stream_tokens.REDEEM_TOKEN, ["'\\x00'::bytea", "1"]),
        (stream_tokens.FIND_TOKEN, ["'\\x00'::bytea", "'r'"]),
        (stream_tokens.OPEN_TOKEN, ["'\\x00'::bytea", "'r'"]),
        (stream_tokens.CLOSE_TOKEN, ["'\\x00'::bytea", "1", "1", "true"]),
        (stream_tokens.ADD_TOKEN, ["'\\x00'::bytea", "'o'", "'{}'::text[]", "NULL", "NULL", "60"]),
    ):
        for number, value in reversed(list(enumerate(values, 1))):
            sql = sql.replace(f"${number}", value)  # noqa: PLW2901  # filled in step by step
        await store.fetch("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in await store.fetch(f"EXPLAIN {sql}"))
        assert "Index" in plan
        assert "Seq Scan" not in plan, plan
