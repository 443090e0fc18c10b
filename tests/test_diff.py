"""The comparison of two versions of a document, by the real service."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
from conftest import Service
from openai_server import OpenAIServer, finish, text, tool
from sse_client import chat

Start = Callable[..., Service]
TITLE = "Vertrag “Ä/B”\r\n"
VERSIONS = (
    "# Contract\n\n1.1 The Seller pays.\n\n1.2 It lasts.",
    "# Contract\n\n1.1 The Buyer pays.\n\n1.2 It lasts.",
    "# Contract\n\n1.1 The Buyer pays.\n\n1.2 Notices are in writing.\n\n1.3 It lasts.",
)


def write(openai: OpenAIServer, content: str, title: str = TITLE) -> None:
    openai.reply(tool("write_document", {"title": title, "content": content}), finish("tool_calls"))
    openai.reply(text("Done."), finish())


@pytest.fixture
def drafted(service: Start, openai: OpenAIServer) -> Service:
    """With a thread `t` whose document d1 has three versions, a run each."""
    running = service(openai)
    for version in VERSIONS:
        write(openai, version)
        assert chat(running.url, "Go on", thread_id="t", stream="items").last["saved"]
    return running


def diff(service: Service, thread_id: str = "t", doc_id: str = "d1", **query: str) -> requests.Response:
    path = f"/api/threads/{thread_id}/documents/{doc_id}/diff"
    return requests.get(service.url + path, params=query, timeout=30)


def json_of(service: Service, **query: str) -> Any:
    answer = diff(service, format="json", **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_compares_the_last_two_versions_or_those_that_are_named(drafted: Service) -> None:
    for query, versions, words in (
        ({}, (2, 3), {"inserted": 4, "deleted": 0}),
        ({"to": "2"}, (1, 2), {"inserted": 1, "deleted": 1}),
        ({"from": "1"}, (1, 3), {"inserted": 5, "deleted": 1}),
        ({"from": "3", "to": "1"}, (3, 1), {"inserted": 1, "deleted": 5}),
        ({"from": "2", "to": "2"}, (2, 2), {"inserted": 0, "deleted": 0}),
    ):
        found = json_of(drafted, **query)
        assert ((found["from"]["version"], found["to"]["version"]), found["words"]) == (versions, words)


def test_json_has_each_block_with_its_marks(drafted: Service) -> None:
    found = json_of(drafted, **{"from": "1"})
    assert found["doc_id"] == "d1"
    assert found["to"].keys() == {"version", "title", "complete", "created_at"}
    marks = [(block["mark"], block["old_number"], block["number"]) for block in found["blocks"]]
    assert marks == [("kept", "", ""), ("kept", "1.1", "1.1"), ("inserted", "1.2", "1.2"), ("kept", "1.2", "1.3")]
    spans = [(span["text"], span["mark"]) for span in found["blocks"][1]["spans"]]
    assert spans == [("The ", "kept"), ("Seller", "deleted"), ("Buyer", "inserted"), (" pays.", "kept")]


def test_html_is_what_comes_unless_another_format_is_asked_for(drafted: Service) -> None:
    answer = diff(drafted)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "version 2 to version 3" in answer.text
    assert "<ins>1.2 </ins></span><ins>Notices are in writing.</ins>" in answer.text
    assert diff(drafted, format="html").text == answer.text
    path = f"{drafted.url}/api/threads/t/documents/d1/diff"
    assert requests.head(path, timeout=30).headers["content-length"] == str(len(answer.content))


def test_a_branch_is_compared_with_what_came_before_it_alone(drafted: Service, openai: OpenAIServer) -> None:
    states = requests.get(f"{drafted.url}/api/threads/t/checkpoints", timeout=10).json()["checkpoints"]
    first = states[-1]["checkpoint_id"]
    write(openai, "# Contract\n\n1.1 The Landlord pays.\n\n1.2 It lasts.")
    last = chat(drafted.url, "Another", thread_id="t", checkpoint_id=first, stream="items").last
    for query in ({}, {"checkpoint_id": last["checkpoint_id"]}):
        found = json_of(drafted, **query)
        assert (found["from"]["version"], found["to"]["version"]) == (1, 2)
        assert "Landlord" in [span["text"] for span in found["blocks"][1]["spans"]]
    other = json_of(drafted, checkpoint_id=states[0]["checkpoint_id"])
    assert (other["from"]["version"], other["to"]["version"]) == (2, 3)
    assert diff(drafted, checkpoint_id=first).status_code == 404  # its document has one version


def test_an_incomplete_version_is_compared_and_called_so(drafted: Service, openai: OpenAIServer) -> None:
    cut = json.dumps({"title": TITLE, "content": "# Contract\n\n1.1 The Lessee pays."})[:-9]
    openai.reply(tool("write_document", cut), finish("length"))
    chat(drafted.url, "Go on", thread_id="t", stream="items")
    found = json_of(drafted)
    assert [found[side]["complete"] for side in ("from", "to")] == [True, False]
    assert "Version 4 is incomplete: it broke off." in diff(drafted).text


def test_a_wrong_parameter_is_refused_and_named(drafted: Service) -> None:
    for query, pointer in (
        ({"format": "pdf"}, "/format"),
        ({"from": "0"}, "/from"),
        ({"from": "-1"}, "/from"),
        ({"to": "1.5"}, "/to"),
        ({"to": "10000000000"}, "/to"),
        ({"to": "٣"}, "/to"),
        ({"checkpoint_id": "\0"}, "/checkpoint_id"),
        ({"checkpoint_id": "00000000-0000-0000-0000-000000000001"}, "/checkpoint_id"),
        ({"colour": "red"}, "/colour"),
    ):
        answer = diff(drafted, **query)
        assert (answer.status_code, [error["pointer"] for error in answer.json()["errors"]]) == (422, [pointer]), query


def test_an_unknown_thread_document_or_version_is_not_found(drafted: Service, openai: OpenAIServer) -> None:
    write(openai, VERSIONS[0], "Another")
    chat(drafted.url, "Another", thread_id="t", stream="items")
    chat(drafted.url, "Hello", thread_id="empty", stream="items")
    for arguments, what in (
        ({"thread_id": "unknown"}, "thread"),
        ({"thread_id": "empty"}, "document"),
        ({"doc_id": "d3"}, "document"),
        ({"to": "4"}, "version of a document"),
        ({"from": "4"}, "version of a document"),
        ({"to": "1"}, "version of a document"),  # there is none before it
        ({"doc_id": "d2"}, "version of a document"),  # that has one version
    ):
        answer = diff(drafted, **arguments)
        told = (answer.status_code, answer.json()["code"], answer.json()["detail"])
        assert told == (404, "not_found", f"There is no such {what}."), arguments
