"""A key with the scope `chat` alone reads the answers to its own messages, and nothing else that was said."""

import json
import threading
from dataclasses import dataclass

import pytest
import requests
from conftest import Service
from openai_server import OpenAIServer, echo, finish, text, tool, wait
from sse_client import Stream, chat, request
from test_access import NOWHERE, TEMPLATES, Key, Start, as_told, execute, new_key, send, until

from access.credentials import ANONYMOUS, Caller
from runs.sse import EventId

SECRET = "a secret of the board"
WAYS_TO_READ = ("chat", "events", "idempotency key")


@dataclass
class Said:
    """A run of the key `full`, in which the secret was said."""

    running: Service
    full: Key
    run_id: str
    state: str | None


def stream_token_of(running: Service, key: Key) -> str:
    token: str = send(running, "POST", "/api/stream-tokens", key.headers).json()["access_token"]
    return token


def with_token(running: Service, key: Key, path: str) -> str:
    return f"{running.url}{path}{'&' if '?' in path else '?'}access_token={stream_token_of(running, key)}"


def follow(running: Service, key: Key, run_id: str, way: str, *, by_token: bool = False) -> Stream:
    """Ask for the run from its start, in one of the ways in which a client goes on with a run."""
    if way == "idempotency key":
        return chat(running.url, SECRET, headers=key.headers | {"Idempotency-Key": "k"}, thread_id="t")
    path = {"chat": "/chat?message=x", "events": f"/api/runs/{run_id}/events"}[way]
    headers = {"Last-Event-ID": f"{run_id}:0"}
    if by_token:
        return request("GET", with_token(running, key, path), headers=headers)
    return request("GET", running.url + path, headers=headers | key.headers)


@pytest.fixture
def said(service: Start, openai: OpenAIServer, database_url: str) -> Said:
    openai.default = (echo(),)
    full = new_key(database_url, "alice", ["chat", "read"])
    running = service(openai=openai)
    made = chat(running.url, SECRET, headers=full.headers | {"Idempotency-Key": "k"}, thread_id="t")
    assert SECRET in made.text
    return Said(running, full, made.run_id, made.last["checkpoint_id"])


REFUSED = {"chat": 204, "events": 403, "idempotency key": 422}


@pytest.mark.parametrize("where", ["memory", "database"])
def test_a_chat_key_follows_its_own_runs_and_those_of_no_other_key(said: Said, database_url: str, where: str) -> None:
    running = said.running
    only, other = (new_key(database_url, "alice", ["chat"]) for _ in range(2))
    mine = chat(running.url, "Mine alone", headers=only.headers | {"Idempotency-Key": "m"}, thread_id="mine")
    if where == "database":
        running.restart()
    for by_token in (False, True):
        for way in WAYS_TO_READ:
            for stranger in (only, other):
                got = follow(running, stranger, said.run_id, way, by_token=by_token)
                assert got.status == REFUSED[way], (way, by_token)
                assert SECRET not in json.dumps([got.events, got.problem, got.headers])
            for scopes, may_chat in ((["chat", "read"], True), (["read"], False), (["admin"], True)):
                reader = new_key(database_url, "alice", scopes)
                got = follow(running, reader, said.run_id, way, by_token=by_token)
                assert got.status == (200 if may_chat or way == "events" else 403), (way, scopes)
        for way in ("chat", "events"):
            assert "Mine alone" in follow(running, only, mine.run_id, way, by_token=by_token).text
            assert follow(running, other, mine.run_id, way, by_token=by_token).status == REFUSED[way]
    again = chat(running.url, "Mine alone", headers=only.headers | {"Idempotency-Key": "m"}, thread_id="mine")
    assert (again.run_id, again.text) == (mine.run_id, mine.text)
    assert execute(database_url, "SELECT count(*) AS runs FROM runs")[0]["runs"] == 2, "no second run was started"


def test_another_keys_run_is_answered_like_no_run(said: Said, database_url: str) -> None:
    only = new_key(database_url, "alice", ["chat"])
    for where in ("memory", "database"):
        if where == "database":
            said.running.restart()
        for path in ("/chat?message=x", "/api/runs/{}/events", "/api/runs/{}/events?after=3"):
            for place in ("{}:0", "{}:7", "{}:end"):
                answers = [
                    as_told(
                        send(
                            said.running,
                            "GET",
                            path.format(run_id),
                            only.headers | {"Last-Event-ID": place.format(run_id)},
                        )
                    )
                    for run_id in (said.run_id, NOWHERE)
                ]
                assert answers[0] == answers[1], (where, path, place)
                assert answers[0][0] in (204, 403)


def test_a_live_run_of_another_key_is_neither_named_nor_read(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    full, only = new_key(database_url, "alice", ["chat", "read"]), new_key(database_url, "alice", ["chat"])
    gate = threading.Event()
    openai.reply(text(SECRET), wait(gate), text(" told"), finish())
    running, replica = service(openai=openai), service(openai=openai)
    body = {"message": "Hi", "thread_id": "t"}
    with send(running, "POST", "/api/chat", full.headers | {"Idempotency-Key": "k"}, body) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert any(SECRET.encode() in line for line in lines)
        until(lambda: execute(database_url, "SELECT 1 FROM runs") != [])
        run_id = execute(database_url, "SELECT run_id FROM runs")[0]["run_id"]
        for service_ in (running, replica):
            for headers, at in ((full.headers, run_id), (only.headers, None)):
                for path in ("/api/chat", "/api/threads/t/fork"):
                    busy = send(
                        service_, "POST", path, headers, {"message": "x", "thread_id": "t"} if "chat" in path else {}
                    )
                    assert (busy.status_code, busy.json()["code"], busy.json()["run_id"]) == (409, "thread_busy", at)
            keyed = {"Idempotency-Key": "k"}
            assert send(service_, "POST", "/api/chat", only.headers | keyed, body).status_code == 422
            for path in ("/chat", f"/api/runs/{run_id}/events"):
                got = send(service_, "GET", path, only.headers | {"Last-Event-ID": f"{run_id}:0"})
                assert (got.status_code, SECRET in got.text) == (204 if path == "/chat" else 403, False)
        gate.set()
        assert b'"end"' in b"".join(lines)


def test_a_chat_key_is_told_the_run_of_its_own_that_is_in_progress(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    only, gate = new_key(database_url, "alice", ["chat"]), threading.Event()
    openai.reply(text("Hello"), wait(gate), finish())
    running, replica = service(openai=openai), service(openai=openai)
    with send(running, "POST", "/api/chat", only.headers, {"message": "Hi", "thread_id": "t"}) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert any(b"Hello" in line for line in lines)
        own = answer.headers["location"]
        until(lambda: execute(database_url, "SELECT 1 FROM runs") != [])
        for service_ in (running, replica):
            busy = send(service_, "POST", "/api/chat", only.headers, {"message": "x", "thread_id": "t"}).json()
            assert f"/api/runs/{busy['run_id']}/events" == own
        gate.set()
        assert b'"end"' in b"".join(lines)
    assert request("GET", running.url + own, headers=only.headers).text == "Hello", "as the Location says"


# The body with which a request gets as far as it can.
BODIES = {
    ("POST", "/api/chat"): {"message": "x", "thread_id": "new"},
    ("PATCH", "/api/threads/{thread_id}"): {"title": "Another"},
    ("POST", "/api/threads/{thread_id}/fork"): {"checkpoint_id": "{state}"},
}


def test_no_route_tells_a_chat_key_what_was_said(service: Start, openai: OpenAIServer, database_url: str) -> None:
    """Every route, with every id that there is; the message is the thread's title, too."""
    full = new_key(database_url, "alice")
    openai.reply(tool("write_document", {"title": f"Title: {SECRET}", "content": SECRET}), finish("tool_calls"))
    openai.reply(text(SECRET), finish())
    openai.default = (text("Nothing"), finish())
    running = service(openai=openai)
    made = chat(running.url, SECRET, headers=full.headers, thread_id="t")
    ids = {"thread_id": "t", "run_id": made.run_id, "doc_id": "d1", "state": made.last["checkpoint_id"]}
    only = new_key(database_url, "alice", ["chat"])
    told = 0
    for who in (full, only):
        for template, methods in TEMPLATES.items():
            for method in sorted(methods):
                if method == "DELETE":
                    continue
                body = BODIES.get((method, template))
                body = body and {name: value.format(**ids) for name, value in body.items()}
                for query in ("", f"?q={SECRET.split()[1]}", "?message=x", "?format=json", "?after=0"):
                    for place in ({}, {"Last-Event-ID": f"{made.run_id}:0"}, {"Last-Event-ID": f"{made.run_id}:3"}):
                        path = template.format(**ids) + query
                        answer = send(running, method, path, who.headers | place, body)
                        is_told = SECRET in answer.text or SECRET in str(answer.headers)
                        assert not (is_told and who is only), (method, path, place)
                        told += is_told
    assert told > 10, "the key that may read was told"


def test_the_answers_to_a_fork_and_a_rename_have_no_title_that_the_caller_did_not_send(
    said: Said, database_url: str
) -> None:
    only = new_key(database_url, "alice", ["chat"])
    for key, names in ((said.full, {"title"}), (only, set())):
        forked = send(said.running, "POST", "/api/threads/t/fork", key.headers, {})
        assert forked.status_code == 201
        assert forked.json().keys() == {"thread_id", "created_at", "updated_at"} | names
        renamed = send(said.running, "PATCH", "/api/threads/t", key.headers, {"title": "Mine"})
        assert renamed.json()["title"] == "Mine"


def test_the_copies_of_a_fork_were_begun_by_whoever_began_the_runs(said: Said, database_url: str) -> None:
    only = new_key(database_url, "alice", ["chat"])
    mine = chat(said.running.url, "Mine alone", headers=only.headers, thread_id="t")
    forked = send(said.running, "POST", "/api/threads/t/fork", only.headers, {"thread_id": "f"})
    assert forked.status_code == 201
    runs = {row["seq"]: row for row in execute(database_url, "SELECT * FROM runs WHERE thread_id = 'f'")}
    assert [runs[seq]["begun_by"] for seq in (1, 2)] == [said.full.key_id, only.key_id]
    assert follow(said.running, only, runs[1]["run_id"], "chat").status == 204
    assert follow(said.running, only, runs[2]["run_id"], "chat").text == mine.text


def test_a_run_that_nobodys_key_began_is_read_with_the_scope_read_only(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    """From the time in which the service was open, or from before the database knew who began a run."""
    openai.default = (echo(),)
    running = service(openai=openai)
    made = chat(running.url, SECRET)
    assert follow(running, Key("", ""), made.run_id, "chat").status == 401
    assert SECRET in request("GET", f"{running.url}/chat", headers={"Last-Event-ID": f"{made.run_id}:0"}).text
    only, full = (new_key(database_url, "anonymous", scopes) for scopes in (["chat"], ["chat", "read"]))
    until(lambda: send(running, "GET", "/api/threads", {}).status_code == 401)
    assert follow(running, only, made.run_id, "chat").status == 204
    assert follow(running, only, made.run_id, "events").status == 403
    assert SECRET in follow(running, full, made.run_id, "chat").text


def test_who_reads_whose_runs() -> None:
    for scopes, credential, reads in (
        (["chat"], "k", "k"),
        (["chat"], None, ""),
        ([], "k", "k"),
        (["read"], "k", None),
        (["chat", "read"], "k", None),
        (["admin"], "k", None),
    ):
        assert Caller("a", frozenset(scopes), credential=credential).reads_runs_of == reads
    assert ANONYMOUS.reads_runs_of is None
    assert EventId.parse("") is None


def test_a_dummy_key_of_an_open_service_is_told_that_none_is_needed(service: Start, database_url: str) -> None:
    running = service()
    dummy = {"Authorization": "Bearer sk-dummy"}
    for headers in (dummy, {"Authorization": "Bearer"}, {"Authorization": f"Bearer ds_{'0' * 12}_{'0' * 64}"}):
        refused = send(running, "POST", "/api/chat", headers, {"message": "Hi"})
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == 'Bearer realm="draftstream", error="invalid_token"'
        assert "This service is open" in refused.json()["detail"]
        assert "without an Authorization header" in refused.json()["detail"]
    assert chat(running.url, "Hi").status == 200
    wrong_token = requests.get(f"{running.url}/chat?message=Hi&access_token=st_x", timeout=10)
    assert wrong_token.status_code == 401
    assert "This service is open" in wrong_token.json()["detail"]
    assert "without an access_token" in wrong_token.json()["detail"]
    new_key(database_url, "a")
    until(lambda: send(running, "GET", "/api/threads", {}).status_code == 401)
    closed = send(running, "POST", "/api/chat", dummy, {"message": "Hi"}).json()["detail"]
    assert "open" not in closed
    assert "The operator of the service issues keys" in closed
