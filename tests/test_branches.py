"""Time travel: a thread's runs make a tree; each branch has its own memory, documents and history."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import requests
from conftest import Service, rows, run
from fault_proxy import FaultProxy
from openai_server import OpenAIServer, finish, text, tool, wait
from openai_server import status as http_error
from sse_client import chat
from test_faults import wait_for

from drafting.context.normal_form import INTERRUPTED
from storage.reader import BEGINNING

Start = Callable[..., Service]


def thread(service: Service, thread_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{service.url}/api/threads/{thread_id}", timeout=10).json()
    return answer


def heard(openai: OpenAIServer) -> list[str]:
    """The last messages to the model, without the prompt."""
    return [message["content"] for message in openai.requests[-1].body["messages"][1:]]


def parents(service: Service, thread_id: str) -> dict[str, str | None]:
    """Of each message of the user the one that it goes on from."""
    history = thread(service, thread_id)
    asked = {item["run_id"]: item["content"] for item in history["messages"] if item["role"] == "user"}
    return {asked[run["run_id"]]: asked.get(run["parent_run_id"]) for run in history["runs"]}


def test_a_branch_starts_from_the_state_it_names_and_the_next_message_goes_on_from_it(
    service: Start, openai: OpenAIServer
) -> None:
    openai.default = (text("Yes."), finish("stop"))
    running = service(openai=openai)
    one = chat(running.url, "one", thread_id="t").last["checkpoint_id"]
    chat(running.url, "two", thread_id="t")
    chat(running.url, "three", thread_id="t")
    two_again = chat(running.url, "two again", thread_id="t", checkpoint_id=one)
    assert heard(openai) == ["one", "Yes.", "two again"]
    chat(running.url, "three again", thread_id="t")
    assert heard(openai) == ["one", "Yes.", "two again", "Yes.", "three again"]
    running.restart()
    chat(running.url, "four", thread_id="t", checkpoint_id=two_again.last["checkpoint_id"])
    assert heard(openai) == ["one", "Yes.", "two again", "Yes.", "four"]
    chat(running.url, "another one", thread_id="t", checkpoint_id=BEGINNING)
    assert heard(openai) == ["another one"]
    last = chat(running.url, "another two", thread_id="t")
    assert heard(openai) == ["another one", "Yes.", "another two"]
    assert parents(running, "t") == {
        "one": None,
        "two": "one",
        "three": "two",
        "two again": "one",
        "three again": "two again",
        "four": "two again",
        "another one": None,
        "another two": "another one",
    }
    assert thread(running, "t")["head_run_id"] == last.run_id


def test_each_branch_has_its_own_documents(service: Start, openai: OpenAIServer) -> None:
    def draft(content: str) -> None:
        openai.reply(tool("write_document", {"title": "NDA", "content": content}), finish("tool_calls"))

    running = service(openai=openai)
    draft("First")
    first = chat(running.url, "Draft", thread_id="t").last["checkpoint_id"]
    for content in ("Second, one way", "Second, the other way"):
        draft(content)
        stream = chat(running.url, "Change", thread_id="t", checkpoint_id=first)
        assert [(item["version"], item["content"]) for item in stream.items.values() if item["type"] == "doc"] == [
            (2, content)
        ]
    draft("Third")
    stream = chat(running.url, "Change again", thread_id="t")
    assert stream.items[0]["version"] == 3
    assert [item["content"] for item in thread(running, "t")["messages"] if item["type"] == "doc"] == [
        "First",
        "Second, one way",
        "Second, the other way",
        "Third",
    ]


# ---------------------------------------------------------------------------------------------------------------
# The states of a thread


def states(service: Service, thread_id: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{service.url}/api/threads/{thread_id}/checkpoints", timeout=10)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["checkpoints"]
    return found


def test_the_states_of_all_branches_are_listed_newest_first(service: Start, openai: OpenAIServer) -> None:
    openai.reply(text("Long. " * 100), finish())
    openai.reply(http_error(401))
    openai.reply(tool("write_document", {"title": "NDA", "content": "1. Term"}), finish("tool_calls"))
    openai.reply(finish())
    openai.default = (text("Yes."), finish())
    running = service(openai=openai)
    one = chat(running.url, "one", thread_id="t")
    failed = chat(running.url, "fails", thread_id="t")
    document = chat(running.url, "only a document", thread_id="t")
    branch = chat(running.url, "two", thread_id="t", checkpoint_id=one.last["checkpoint_id"])
    another = chat(running.url, "another one", thread_id="t", checkpoint_id=BEGINNING)
    listed = states(running, "t")
    of_run = {state["run_id"]: state for state in listed}
    assert list(of_run) == [stream.run_id for stream in (another, branch, document, failed, one)]
    left = {run_id: state["checkpoint_id"] for run_id, state in of_run.items()}
    assert left == {run["run_id"]: run["checkpoint_id"] for run in thread(running, "t")["runs"] if run["checkpoint_id"]}
    assert [state["parent_checkpoint_id"] for state in listed] == [
        None,
        left[one.run_id],
        left[failed.run_id],
        left[one.run_id],
        None,
    ]
    assert [state["last_message"] for state in listed] == [
        {"role": "assistant", "content": "Yes."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "only a document"},
        {"role": "user", "content": "fails"},
        {"role": "assistant", "content": ("Long. " * 100)[:240]},
    ]
    step = {state["checkpoint_id"]: state["step"] for state in listed}
    assert all(state["step"] > step.get(state["parent_checkpoint_id"], 0) for state in listed)
    assert requests.get(f"{running.url}/api/threads/unknown/checkpoints", timeout=10).status_code == 404


# ---------------------------------------------------------------------------------------------------------------
# A thread out of another


def fork(service: Service, source: str, **body: Any) -> requests.Response:
    return requests.post(f"{service.url}/api/threads/{source}/fork", json=body, timeout=40)


def contents(service: Service, thread_id: str) -> list[str]:
    return [item["content"] for item in thread(service, thread_id)["messages"]]


@pytest.fixture
def yes(service: Start, openai: OpenAIServer) -> Service:
    """A service whose model says the same to everything, at once."""
    openai.default = (text("Yes."), finish("stop"))
    return service(openai=openai)


def test_a_fork_has_the_history_up_to_its_state_and_goes_its_own_way(yes: Service, openai: OpenAIServer) -> None:
    openai.reply(tool("write_document", {"title": "NDA", "content": "First"}), finish("tool_calls"))
    one = chat(yes.url, "one", thread_id="t")
    two = chat(yes.url, "two", thread_id="t")
    chat(yes.url, "three", thread_id="t")
    chat(yes.url, "two again", thread_id="t", checkpoint_id=one.last["checkpoint_id"])
    before = thread(yes, "t")
    answer = fork(yes, "t", checkpoint_id=two.last["checkpoint_id"], thread_id="f")
    assert (answer.status_code, answer.headers["location"]) == (201, "/api/threads/f")
    assert answer.json().keys() == {"thread_id", "title", "created_at", "updated_at"}
    assert (answer.json()["thread_id"], answer.json()["title"]) == ("f", "one")
    forked = thread(yes, "f")
    assert contents(yes, "f") == ["one", "First", "Yes.", "two", "Yes."]
    assert [run["seq"] for run in forked["runs"]] == [1, 2]
    assert parents(yes, "f") == {"one": None, "two": "one"}
    assert forked["head_run_id"] == forked["runs"][1]["run_id"]
    old = {run["run_id"]: run for run in before["runs"]}
    assert not any(run["run_id"] in old for run in forked["runs"])
    new_ids = {"run_id": "", "parent_run_id": ""}
    assert [each | new_ids for each in forked["runs"]] == [each | new_ids for each in before["runs"][:2]]
    assert [state["checkpoint_id"] for state in states(yes, "f")] == [
        two.last["checkpoint_id"],
        one.last["checkpoint_id"],
    ]
    chat(yes.url, "four", thread_id="f")
    assert heard(openai)[-3:] == ["two", "Yes.", "four"]
    openai.reply(tool("write_document", {"title": "NDA", "content": "Second"}), finish("tool_calls"))
    assert chat(yes.url, "Change", thread_id="f").items[0]["version"] == 2
    assert thread(yes, "t") == before
    chat(yes.url, "three again", thread_id="t", checkpoint_id=two.last["checkpoint_id"])
    assert heard(openai)[-3:] == ["two", "Yes.", "three again"]
    assert "four" not in heard(openai)
    yes.restart()
    chat(yes.url, "five", thread_id="f")
    assert [said for said in heard(openai) if said in ("one", "two", "three", "four", "Change", "five")] == [
        *("one", "two", "four", "Change", "five")
    ]
    chat(yes.url, "two, in the fork", thread_id="f", checkpoint_id=one.last["checkpoint_id"])
    assert heard(openai)[-2:] == ["Yes.", "two, in the fork"]


def test_a_fork_of_a_fork_and_of_every_state_remembers_just_its_line(yes: Service, openai: OpenAIServer) -> None:
    """A tree with states that are stored as deltas, and such that are whole, from each of which a fork goes on."""
    left: dict[str, str] = {}
    line: dict[str, list[str]] = {"": []}
    for said, before in (("1", ""), ("2", "1"), ("3", "2"), ("2b", "1"), ("3b", "2b"), ("4b", "3b"), ("4", "3")):
        fields = {"message": said, "thread_id": "t"}
        if before and list(left)[-1] != before:
            fields["checkpoint_id"] = left[before]
        left[said] = chat(yes.url, headers=None, **fields).last["checkpoint_id"]
        line[said] = [*line[before], said, "Yes."]
    for said, state in left.items():
        assert fork(yes, "t", checkpoint_id=state, thread_id=f"f{said}").status_code == 201
        chat(yes.url, "on", thread_id=f"f{said}")
        assert heard(openai) == [*line[said], "on"]
        chat(yes.url, "and on", thread_id=f"f{said}")
        assert fork(yes, f"f{said}", thread_id=f"ff{said}").status_code == 201
        chat(yes.url, "on again", thread_id=f"ff{said}")
        assert heard(openai) == [*line[said], "on", "Yes.", "and on", "Yes.", "on again"]
        assert contents(yes, f"ff{said}") == [*heard(openai), "Yes."]
    for said, state in left.items():
        chat(yes.url, "still", thread_id="t", checkpoint_id=state)
        assert heard(openai) == [*line[said], "still"]


def test_a_fork_is_searched_named_and_deleted_as_any_thread(yes: Service, database_url: str) -> None:
    chat(yes.url, "Quartz", thread_id="t")
    wait_for(lambda: rows(database_url, "SELECT 1 FROM messages WHERE words IS NULL") == [])
    name = fork(yes, "t").json()["thread_id"]
    url = f"{yes.url}/api/threads"
    found = requests.get(url, params={"q": "quartz"}, timeout=10).json()["threads"]
    assert [each["thread_id"] for each in found] == [name, "t"]
    assert requests.patch(f"{url}/{name}", json={"title": "New"}, timeout=10).json()["title"] == "New"
    assert thread(yes, "t")["title"] == "Quartz"
    assert requests.delete(f"{url}/t", timeout=10).status_code == 204
    assert contents(yes, name) == ["Quartz", "Yes."]
    assert chat(yes.url, "On", thread_id=name).last["saved"]
    assert requests.delete(f"{url}/{name}", timeout=10).status_code == 204
    for table in ("threads", "runs", "messages", "checkpoints", "checkpoint_blobs", "checkpoint_writes"):
        assert rows(database_url, f"SELECT 1 FROM {table}") == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"checkpoint_id": BEGINNING}, "/checkpoint_id"),
        ({"checkpoint_id": "1f1e79fa-4dd3-66ff-8003-796a8d117922"}, "/checkpoint_id"),
        ({"checkpoint_id": "x"}, "/checkpoint_id"),
        ({"checkpoint_id": 7}, "/checkpoint_id"),
        ({"thread_id": "a b"}, "/thread_id"),
        ({"thread_id": []}, "/thread_id"),
        ({"title": "x"}, "/title"),
        ([], ""),
    ],
)
def test_what_can_not_be_forked_is_refused(yes: Service, body: Any, pointer: str) -> None:
    chat(yes.url, "one", thread_id="t")
    answer = requests.post(f"{yes.url}/api/threads/t/fork", json=body, timeout=10)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert len(requests.get(f"{yes.url}/api/threads", timeout=10).json()["threads"]) == 1


def test_a_fork_takes_no_name_that_is_taken(yes: Service) -> None:
    for name in ("t", "u"):
        chat(yes.url, name, thread_id=name)
    for name in ("t", "u"):
        answer = fork(yes, "t", thread_id=name)
        assert (answer.status_code, answer.json()["code"]) == (409, "thread_exists")
    assert (contents(yes, "t"), contents(yes, "u")) == (["t", "Yes."], ["u", "Yes."])
    assert fork(yes, "unknown").status_code == 404
    assert fork(yes, "unknown", thread_id="t").status_code == 404


def test_of_forks_of_one_name_at_once_one_is_made(service: Start, openai: OpenAIServer) -> None:
    openai.default = (text("Yes."), finish())
    processes = service(openai=openai), service(openai=openai)
    for said in ("one", "two"):
        chat(processes[0].url, said, thread_id="t")
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(fork, processes[number % 2], "t", thread_id="f") for number in range(6)]
    statuses = sorted(answer.result().status_code for answer in asked)
    assert statuses[0] == 201
    assert set(statuses[1:]) <= {409, 429}, "of one owner a process makes one fork at a time"
    assert fork(processes[1], "t", thread_id="f").status_code == 409
    assert contents(processes[1], "f") == ["one", "Yes.", "two", "Yes."]


def test_a_fork_that_takes_long_holds_nobody_up(yes: Service, database_url: str) -> None:
    """Chats of other threads, and such as begin a thread of the same name meanwhile, at another process or here."""
    stop = """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END'"""
    rows(database_url, stop)
    rows(
        database_url,
        """CREATE TRIGGER wait BEFORE INSERT ON threads FOR EACH ROW
        WHEN (NEW.thread_id = 'f' AND NEW.last_seq = 3) EXECUTE FUNCTION wait()""",
    )
    for said in ("one", "two", "three"):
        chat(yes.url, said, thread_id="t")
    gate = run(asyncpg.connect(database_url))
    run(gate.execute("SELECT pg_advisory_lock(42)"))
    with ThreadPoolExecutor(1) as threads:
        forking = threads.submit(fork, yes, "t", thread_id="f")
        wait_for(lambda: rows(database_url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        assert chat(yes.url, "of that name", thread_id="f").last["saved"]
        second = chat(yes.url, "once more", thread_id="f").last
        assert second["code"] == "conflict"
        assert chat(yes.url, "four", thread_id="t").last["saved"]
        assert not forking.done()
        run(gate.close())
        assert forking.result().json()["code"] == "thread_exists"
    assert contents(yes, "f") == ["of that name", "Yes."]
    assert chat(yes.url, "once more", thread_id="f").last["saved"]


def test_a_fork_is_refused_while_the_database_is_away(service: Start, openai: OpenAIServer, proxy: FaultProxy) -> None:
    running = service(openai=openai, DATABASE_URL=proxy.dsn)
    chat(running.url, "one", thread_id="t")
    proxy.frozen = True
    answer = fork(running, "t", thread_id="f")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    proxy.cut()
    proxy.frozen = False
    wait_for(lambda: fork(running, "t", thread_id="f").status_code == 201)


def test_a_thread_in_the_middle_of_a_run_is_forked_from_a_state_that_it_has(
    service: Start, openai: OpenAIServer
) -> None:
    gate = threading.Event()
    openai.reply(text("One."), finish())
    openai.reply(text("Two"), wait(gate), finish())
    running = service(openai=openai)
    one = chat(running.url, "one", thread_id="t").last["checkpoint_id"]
    with ThreadPoolExecutor(1) as threads:
        two = threads.submit(chat, running.url, "two", thread_id="t")
        wait_for(lambda: len(openai.requests) == 2)
        refused = fork(running, "t")
        assert (refused.status_code, refused.json()["code"]) == (409, "thread_busy")
        assert refused.json()["run_id"] == thread(running, "t")["runs"][1]["run_id"]
        assert fork(running, "t", checkpoint_id=one, thread_id="f").status_code == 201
        openai.default = (text("Yes."), finish())
        chat(running.url, "another two", thread_id="f")
        assert heard(openai) == ["one", "One.", "another two"]
        gate.set()
        assert two.result().last["saved"]
    chat(running.url, "three", thread_id="t")
    assert heard(openai) == ["one", "One.", "two", "Two", "three"]


# ---------------------------------------------------------------------------------------------------------------
# Branches that nobody asked for


def test_a_turn_of_the_journal_and_the_one_that_went_on_meanwhile_remember_each_their_own(
    service: Start, openai: OpenAIServer, proxy: FaultProxy, database_url: str, tmp_path: Path
) -> None:
    """Both went on from one state, and so stored their additions with it."""
    openai.default = (text("Yes."), finish())
    ours = service(openai=openai, DATABASE_URL=proxy.dsn, JOURNAL_DIR=str(tmp_path / "journal"))
    theirs = service(openai=openai)
    for said in ("one", "two"):
        chat(ours.url, said, thread_id="t")
    gate = threading.Event()
    openai.reply(
        wait(gate), text("Ours."), tool("write_document", {"title": "NDA", "content": "Ours"}), finish("tool_calls")
    )
    with ThreadPoolExecutor(1) as threads:
        turn = threads.submit(chat, ours.url, "ours", thread_id="t")
        wait_for(lambda: rows(database_url, "SELECT 1 FROM runs WHERE status = 'running'"))
        wait_for(lambda: len(openai.requests) == 3)
        proxy.frozen = True
        gate.set()
        assert turn.result().last["journaled"]
    ours.kill()
    proxy.cut()
    proxy.frozen = False
    rows(database_url, "UPDATE runs SET leased_until = now() - interval '1 s' WHERE status = 'running' RETURNING 1")
    went_on = chat(theirs.url, "theirs", thread_id="t")
    common = ["one", "Yes.", "two", "Yes.", "ours"]
    assert heard(openai) == [*common, INTERRUPTED, "theirs"]
    ours.restart()
    assert "1 turns put back as branches" in ours.log
    history = thread(ours, "t")
    assert history["head_run_id"] == went_on.run_id
    [put_back] = [run for run in history["runs"] if run["seq"] == 5]
    assert put_back["parent_run_id"] == history["runs"][1]["run_id"]
    assert [state["run_id"] for state in states(ours, "t")][:2] == [put_back["run_id"], went_on.run_id]
    assert states(ours, "t")[0]["parent_checkpoint_id"] == history["runs"][1]["checkpoint_id"]
    for _ in range(2):  # read from the database, and from memory
        chat(ours.url, "on", thread_id="t", checkpoint_id=put_back["checkpoint_id"])
        [answer] = [said for said in heard(openai) if "NDA" in said]
        assert heard(openai) == [*common, "Ours.", answer, "Yes.", "on"]
        chat(theirs.url, "on", thread_id="t", checkpoint_id=went_on.last["checkpoint_id"])
        assert heard(openai) == [*common, INTERRUPTED, "theirs", "Yes.", "on"]
    chat(ours.url, "after two", thread_id="t", checkpoint_id=history["runs"][1]["checkpoint_id"])
    assert heard(openai) == [*common[:4], "after two"]
    for left, said in ((put_back, "Ours."), (went_on.last, "theirs")):
        assert fork(ours, "t", checkpoint_id=left["checkpoint_id"], thread_id=f"f{said}").status_code == 201
        chat(ours.url, "in the fork", thread_id=f"f{said}")
        assert len({"Ours.", "theirs"} & set(heard(openai))) == 1
        assert said in heard(openai)


@contextmanager
def killed(service: Service, openai: OpenAIServer, database_url: str, **body: str) -> Iterator[None]:
    """In the middle of its run; then the process is killed and comes back, and the run's lease is over."""
    gate, half = threading.Event(), f"Half of {body['message']}"
    openai.reply(text(half), wait(gate), finish())
    with ThreadPoolExecutor(1) as threads:
        threads.submit(requests.post, f"{service.url}/api/chat", json=body, timeout=20)
        wait_for(lambda: rows(database_url, f"SELECT 1 FROM pieces WHERE content = '{half}'"))
        yield
        service.kill()
        gate.set()
    service.restart()
    rows(database_url, "UPDATE runs SET leased_until = now() - interval '1 s' WHERE status = 'running' RETURNING 1")


def test_a_run_that_was_lost_in_a_branch_is_remembered_there_and_nowhere_else(
    yes: Service, openai: OpenAIServer, database_url: str
) -> None:
    one = chat(yes.url, "one", thread_id="t").last["checkpoint_id"]
    two = chat(yes.url, "two", thread_id="t").last["checkpoint_id"]
    with killed(yes, openai, database_url, message="lost", thread_id="t", checkpoint_id=one):
        refused = chat(yes.url, "three", thread_id="t", checkpoint_id=two)
        assert (refused.status, refused.problem["code"]) == (409, "thread_busy"), "one run at a time, in all branches"
    assert fork(yes, "t", thread_id="f").status_code == 201
    assert contents(yes, "f") == ["one", "Yes.", "lost", "Half of lost"]
    assert thread(yes, "f")["runs"][1]["status"] == "interrupted"
    chat(yes.url, "three", thread_id="t", checkpoint_id=two)
    assert heard(openai) == ["one", "Yes.", "two", "Yes.", "three"]
    chat(yes.url, "again", thread_id="t", checkpoint_id=one)
    assert heard(openai) == ["one", "Yes.", "again"]
    for _ in range(2):
        chat(yes.url, "on", thread_id="f")
    assert heard(openai) == ["one", "Yes.", "lost", "Half of lost", "on", "Yes.", "on"]
    assert parents(yes, "t") == {"one": None, "two": "one", "lost": "one", "three": "two", "again": "one"}


def test_what_was_lost_at_the_end_of_a_branch_is_what_its_next_message_goes_on_from(
    yes: Service, openai: OpenAIServer, database_url: str
) -> None:
    one = chat(yes.url, "one", thread_id="t").last["checkpoint_id"]
    two = chat(yes.url, "two", thread_id="t").last["checkpoint_id"]
    with killed(yes, openai, database_url, message="lost", thread_id="t", checkpoint_id=one):
        pass
    with killed(yes, openai, database_url, message="lost too", thread_id="t"):
        pass
    chat(yes.url, "on", thread_id="t")
    line = ["one", "Yes.", "lost", "Half of lost", "lost too", "Half of lost too", "on"]
    assert heard(openai) == line
    assert fork(yes, "t", thread_id="f").status_code == 201
    chat(yes.url, "and on", thread_id="f")
    assert heard(openai) == [*line, "Yes.", "and on"]
    assert contents(yes, "f") == [*heard(openai), "Yes."]
    chat(yes.url, "three", thread_id="t", checkpoint_id=two)
    assert heard(openai) == ["one", "Yes.", "two", "Yes.", "three"]
