"""Time travel: a thread's runs make a tree; each branch has its own memory, documents and history."""

from collections.abc import Callable
from typing import Any

import requests
from conftest import Service
from openai_server import OpenAIServer, finish, text, tool
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
