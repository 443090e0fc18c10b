"""Time travel: a thread's runs make a tree; each branch has its own memory, documents and history."""

from collections.abc import Callable
from typing import Any

import requests
from conftest import Service
from openai_server import OpenAIServer, finish, text, tool
from openai_server import status as http_error
from sse_client import chat

from chat import BEGINNING

Start = Callable[..., Service]


def thread(service: Service, thread_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{service.url}/api/threads/{thread_id}", timeout=10).json()
    return answer


def heard(openai: OpenAIServer) -> list[str]:
    """What the model was asked last, without the prompt."""
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
