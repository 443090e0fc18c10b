"""The service as a client meets it: a real process, a real socket, a real database."""

import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from conftest import ROOT, Service, required, rows, run
from fault_proxy import FaultProxy
from openai_server import OpenAIServer, echo, finish, pause, reset, stall, text, tool, wait
from sse_client import Stream, chat, request
from test_access import until

from agent import Agent
from drafting.offline import OfflineModel
from drafting.offline.agreement import Terms, render
from settings import VERSION
from store import open_store
from threads.checkpointer import Checkpointer

Start = Callable[..., Service]
HOSTILE = (
    "\"quotes\" 'single' \\back\\slash\\n \n\nnew lines\r\n\ttab 😀👩‍👩‍👧 \u2028\u2029 \u202ertl </script> data: x\n\nevent: end\n\n e\u0301"
    * 3
)


def history(service: Service, thread_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{service.url}/api/threads/{thread_id}", timeout=10).json()
    return answer


def graph_state(database_url: str, thread_id: str) -> dict[str, Any]:
    """A thread's state in the graph, read by a graph of its own."""

    async def read() -> dict[str, Any]:
        async with open_store(
            database_url, queue_size=1, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            saver = Checkpointer(store)
            agent = Agent(OfflineModel(), saver, remember=saver.remember, first_token_timeout_s=1, idle_timeout_s=1)
            return dict(await agent.state("anonymous", thread_id))

    return run(read())


# ---------------------------------------------------------------------------------------------------------------
# The conversation


def test_the_seed_conversation_makes_three_versions_and_survives_a_restart(service: Start) -> None:
    running = service()
    chat(running.url, "Draft an NDA", thread_id="test-456")
    running.restart()
    chat(running.url, "Make it mutual", thread_id="test-456")
    last = chat(running.url, "Add 2-year term", thread_id="test-456")
    docs = [message for message in history(running, "test-456")["messages"] if message["type"] == "doc"]
    assert [(doc["doc_id"], doc["version"], doc["complete"]) for doc in docs] == [("d1", n, True) for n in (1, 2, 3)]
    assert [doc["title"] for doc in docs] == [f"{kind}Non-Disclosure Agreement" for kind in ("", "Mutual ", "Mutual ")]
    one, two, three = (doc["content"].split("\n\n") for doc in docs)
    assert sum(before != after for before, after in zip(one, two, strict=True)) == 8
    changed = [(before, after) for before, after in zip(two, three, strict=True) if before != after]
    assert len(changed) == 1
    assert "a term of two (2) years" in changed[0][1]
    assert last.last["reason"] == "stop"
    assert last.last["saved"] is True


def test_what_was_streamed_stored_and_remembered_is_the_same_byte_for_byte(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    arguments = {"title": "Ünïcode 😀", "content": HOSTILE}
    edits = {"doc_id": "d1", "edits": [{"find": "x", "replace": "y"}]}
    openai.reply(
        text(*HOSTILE),
        tool("write_document", arguments, cut=1, ascii_only=True),
        tool("edit_document", edits),
        text(HOSTILE),
        finish("tool_calls"),
    )
    running = service(openai=openai)
    stream = chat(running.url, HOSTILE, thread_id="t")
    items = stream.items
    assert [item["type"] for item in items.values()] == ["message", "doc", "message", "message"]
    stored = history(running, "t")["messages"]
    assert stored[0]["content"] == HOSTILE
    for item in stored[1:]:
        assert {name: item[name] for name in items[item["item"]]} == items[item["item"]]
    state = graph_state(database_url, "t")
    assert state["messages"][0].content == HOSTILE
    assert state["messages"][1].content == items[0]["content"] + items[2]["content"]
    [document] = state["documents"]
    assert document["content"] == items[1]["content"] == HOSTILE
    assert document["title"] == items[1]["title"]
    assert state["messages"][1].tool_calls[0]["args"] == arguments
    assert "stands 3 times" in state["messages"][3].content
    assert state["messages"][-1].content == items[3]["content"] == "OK."
    assert openai.refusals == []


def test_two_clients_on_two_threads_never_see_each_others_words(service: Start, openai: OpenAIServer) -> None:
    openai.default = (echo(),)
    running = service(openai=openai)

    def converse(name: str) -> list[str]:
        streams = [chat(running.url, f"{name} says {turn}", thread_id=name) for turn in range(4)]
        assert [(stream.status, stream.events and stream.last["type"]) for stream in streams] == [(200, "end")] * 4
        return [stream.text for stream in streams]

    names = [f"client-{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        conversations = list(threads.map(converse, names))
    for name, replies in zip(names, conversations, strict=True):
        said = [content for role, content in json.loads(replies[-1]) if role == "user"]
        assert said == [f"{name} says {turn}" for turn in range(4)]
        assert not any(
            other in reply
            for other in names
            if other != name and not name.startswith(other)
            for reply in replies
            if f'"{other} ' in reply
        )
    assert openai.refusals == []


def test_a_model_error_in_the_middle_of_a_document_leaves_the_thread_usable(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    begun = '{"title":"NDA","content":"# NDA\\n\\nThe first half'
    openai.reply(text("Here it comes."), tool("write_document", begun), reset())
    running = service(openai=openai)
    broken = chat(running.url, "Draft", thread_id="t")
    assert broken.last["code"] == "model_disconnected"
    assert "canary" not in str(broken.last)
    stored = history(running, "t")
    assert [(item["content"], item["complete"]) for item in stored["messages"]] == [
        ("Draft", True),
        ("Here it comes.", True),
        ("# NDA\n\nThe first half", False),
    ]
    assert stored["runs"][0]["status"] == "failed"
    openai.reply(tool("write_document", {"title": "NDA", "content": "# NDA\n\nAll of it."}), finish("tool_calls"))
    again = chat(running.url, "Go on", thread_id="t")
    assert again.last["type"] == "end"
    assert again.items[0]["version"] == 2
    assert [document["complete"] for document in graph_state(database_url, "t")["documents"]] == [False, True]
    assert openai.refusals == []


def test_what_the_model_is_sent_is_what_was_said(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    openai.reply(text("First answer."), finish())
    chat(running.url, "First", thread_id="t")
    openai.default = (echo(),)
    sent = json.loads(chat(running.url, "Second", thread_id="t").text)
    assert sent[1:] == [["user", "First"], ["assistant", "First answer."], ["user", "Second"]]
    assert sent[0][0] == "system"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_reply_that_the_provider_cuts_says_so_and_is_never_complete(
    service: Start, openai: OpenAIServer, reason: str
) -> None:
    openai.reply(tool("write_document", '{"title":"NDA","content":"half'), finish(reason))
    running = service(openai=openai)
    stream = chat(running.url, "Draft", thread_id="t")
    assert stream.last["reason"] == reason
    assert history(running, "t")["messages"][-1]["complete"] is False
    assert chat(running.url, "On", thread_id="t").last["reason"] == "stop"
    assert openai.refusals == []


def test_a_document_that_was_cut_off_is_edited_further_under_a_new_title(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    openai.reply(tool("write_document", '{"title":"NDA","content":"# NDA\\n\\n1. The “Parties” agr'), finish("length"))
    chat(running.url, "Draft", thread_id="t")
    on = {"id": "NDA", "edits": {"old_string": '1. The "Parties" agr', "new_string": '1. The "Parties" agree.'}}
    openai.reply(tool("edit_document", on), finish("tool_calls"))
    assert chat(running.url, "Go on", thread_id="t").items[0]["version"] == 2
    told = json.loads(openai.requests[1].body["messages"][3]["content"])["error"]
    assert "1. The “Parties” agr\n" in told
    renamed = {"doc_id": "d1", "title": "Mutual NDA"}
    openai.reply(tool("edit_document", renamed), finish("tool_calls"))
    assert chat(running.url, "Rename it", thread_id="t").items[0]["title"] == "Mutual NDA"
    documents = [item for item in history(running, "t")["messages"] if item["type"] == "doc"]
    assert [(each["title"], each["version"], each["content"], each["complete"]) for each in documents] == [
        ("NDA", 1, "# NDA\n\n1. The “Parties” agr", False),
        ("NDA", 2, "# NDA\n\n1. The “Parties” agree.", True),
        ("Mutual NDA", 3, "# NDA\n\n1. The “Parties” agree.", True),
    ]
    export = requests.get(f"{running.url}/api/threads/t/export?format=md&document=d1", timeout=10)
    assert (
        "Mutual%20NDA" in export.headers["content-disposition"] or "Mutual NDA" in export.headers["content-disposition"]
    )
    assert openai.refusals == []


def test_a_server_that_ignores_tools_is_told_of_in_the_log(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    openai.default = (text(render(Terms())), finish())
    for _ in range(2):
        assert chat(running.url, "Draft an NDA").last["reason"] == "stop"
    assert running.log.count("wrote a document into its reply and called no tool") == 1


def test_a_model_that_never_stops_calling_tools_is_bounded(service: Start, openai: OpenAIServer) -> None:
    openai.default = (tool("nonsense", {}), finish("tool_calls"))
    running = service(openai=openai)
    assert chat(running.url, "Go", thread_id="t").last["reason"] == "length"
    assert 2 < len(openai.requests) <= 10
    first, *_, last = (request.body for request in openai.requests)
    assert "tool_choice" not in first
    assert (last["tools"], last["tool_choice"]) == (first["tools"], "none")
    assert last["messages"][: len(first["messages"])] == first["messages"]
    openai.default = (text("Fine."), finish())
    assert chat(running.url, "On", thread_id="t").text == "Fine."
    assert openai.refusals == []


def test_a_cancelled_run_closes_the_providers_connection_and_keeps_what_it_has(
    service: Start, openai: OpenAIServer
) -> None:
    openai.reply(text("So far"), stall())
    running = service(openai=openai)
    with requests.get(f"{running.url}/chat?message=Hi&thread_id=t", stream=True, timeout=10) as answer:
        lines = answer.iter_lines(chunk_size=1)
        run_id = next(line for line in lines if line.startswith(b"id: ")).decode()[4:40]
        assert any(b"So far" in line for line in lines)
        assert requests.post(f"{running.url}/api/runs/{run_id}/cancel", timeout=10).status_code == 202
        assert any(b'"reason":"cancelled","saved":true' in line for line in lines)
    assert openai.requests[0].closed.wait(20)
    stored = history(running, "t")
    assert [(item["content"], item["complete"]) for item in stored["messages"]] == [("Hi", True), ("So far", False)]
    assert stored["runs"][0]["status"] == "cancelled"
    openai.default = (echo(),)
    assert json.loads(chat(running.url, "On", thread_id="t").text)[1:] == [
        ["user", "Hi"],
        ["assistant", "So far"],
        ["user", "On"],
    ]


def test_a_client_may_ask_that_its_leaving_cancels(service: Start, openai: OpenAIServer) -> None:
    openai.reply(text("So far"), stall())
    running = service(openai=openai)
    body = {"message": "Hi", "thread_id": "t", "on_disconnect": "cancel"}
    with requests.post(f"{running.url}/api/chat", json=body, stream=True, timeout=10) as answer:
        lines = answer.iter_lines(chunk_size=1)  # whose end would be the connection's
        assert any(b"So far" in line for line in lines)
        with requests.get(f"{running.url}{answer.headers['Location']}", stream=True, timeout=10) as other:
            assert any(b"So far" in line for line in other.iter_lines(chunk_size=1))
        assert not openai.requests[0].closed.wait(0.3), "another reader that leaves cancels nothing"
    assert openai.requests[0].closed.wait(20)
    followed = request("GET", f"{running.url}{answer.headers['Location']}")
    assert (followed.text, followed.last["reason"], followed.last["saved"]) == ("So far", "cancelled", True)
    assert chat(running.url, "Hi", on_disconnect="perhaps").status == 422


@pytest.mark.parametrize(("on_disconnect", "status"), [("continue", "completed"), ("cancel", "cancelled")])
def test_a_client_that_leaves_with_a_second_request_in_line_has_its_run_go_on_unless_it_asked_otherwise(
    service: Start, openai: OpenAIServer, on_disconnect: str, status: str
) -> None:
    gate = threading.Event()
    slowly = [step for word in ("two ", "three ", "four ", "five") for step in (text(word), pause(0.2))]
    openai.reply(text("one "), wait(gate), *slowly, finish())
    running = service(openai=openai)
    get = f"GET /chat?message=Hi&thread_id=t&on_disconnect={on_disconnect} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(get.encode() * 2)
        while b'"one "' not in client.recv(65536):
            pass
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the close is a reset
    gate.set()
    until(lambda: history(running, "t")["runs"][0]["status"] != "running")
    stored = history(running, "t")
    assert stored["runs"][0]["status"] == status
    assert (stored["messages"][-1]["content"] == "one two three four five") == (status == "completed")
    assert len(openai.requests) == 1, "nobody is there to read a second reply"


def test_a_client_that_leaves_does_not_stop_its_run(service: Start, openai: OpenAIServer) -> None:
    gate = threading.Event()
    openai.reply(text("one "), wait(gate), text("two"), finish())
    running = service(openai=openai)
    with requests.get(f"{running.url}/chat?message=Hi&thread_id=t", stream=True, timeout=10) as answer:
        run_id = next(line for line in answer.iter_lines(chunk_size=1) if line.startswith(b"id: ")).decode()[4:40]
    gate.set()
    followed = request("GET", f"{running.url}/api/runs/{run_id}/events")
    assert followed.text == "one two"
    rest = request("GET", f"{running.url}/chat?message=Hi&thread_id=t", headers={"Last-Event-ID": f"{run_id}:2"})
    assert rest.text == "e two"
    over = request("GET", f"{running.url}/chat?message=Hi", headers={"Last-Event-ID": f"{run_id}:end"})
    assert over.status == 204
    assert len(openai.requests) == 1
    assert history(running, "t")["messages"][-1]["content"] == "one two"


def test_a_busy_thread_is_answered_409_with_the_run_to_follow(service: Start, openai: OpenAIServer) -> None:
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    running = service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(chat, running.url, "Hi", thread_id="t")
        while not openai.requests:
            time.sleep(0.01)
        second = chat(running.url, "Hi again", thread_id="t")
        gate.set()
        assert second.status == 409
        assert second.problem["run_id"] == first.result().run_id
        assert second.headers["retry-after"].isdigit()
    assert len(openai.requests) == 1


def test_items_mode_sends_each_item_whole(service: Start) -> None:
    running = service()
    pieces = chat(running.url, "Draft an NDA")
    items = chat(running.url, "Draft an NDA", stream="items")
    assert [event["type"] for event in items.events] == ["start", "message", "doc", "message", "end"]
    assert items.items == pieces.items
    query = request("GET", f"{running.url}/chat?message=Hello&stream=items")
    assert len(query.events) == 3


# ---------------------------------------------------------------------------------------------------------------
# The three clients that people write first


def snippet(name: str, service: Service) -> str:
    """A client of the README, as it stands there, for this service."""
    readme = (ROOT / "README.md").read_text("utf-8")
    text = readme.partition(f"<!-- {name} -->")[2].partition("\n")[2].partition("\n")[2].partition("```")[0]
    assert "http://localhost:8005" in text
    return text.replace("http://localhost:8005", service.url)


def test_python_requests_with_iter_lines(service: Start) -> None:
    code = snippet("requests", service())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("start")
    assert "doc # Non-Disclosure" in done.stdout
    assert done.stdout.rstrip().endswith("end")


def test_fetch_with_a_reader_that_splits_lines(service: Start) -> None:
    command = [required("node"), "--input-type=module", "-e", snippet("fetch", service())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("type: 'start'") == 1
    assert done.stdout.count("type: 'doc'") > 50
    assert done.stdout.count("saved: true") == 1


# ---------------------------------------------------------------------------------------------------------------
# Refusals


def query(message: str = "Hi", **more: str) -> str:
    return "/chat?" + "&".join(f"{name}={quote(value)}" for name, value in {"message": message, **more}.items())


JSON = {"Content-Type": "application/json"}
REFUSED: list[tuple[str, str, str | bytes | None, dict[str, str], int, str]] = [
    ("GET", "/nope", None, {}, 404, "not_found"),
    ("GET", "//chat?message=Hi", None, {}, 404, "not_found"),
    ("GET", "/chat/?message=Hi", None, {}, 404, "not_found"),
    ("GET", "/CHAT?message=Hi", None, {}, 404, "not_found"),
    ("GET", "/chat%00?message=Hi", None, {}, 404, "not_found"),
    ("GET", "/api/threads/unknown", None, {}, 404, "not_found"),
    ("GET", "/api/runs/00000000-0000-0000-0000-000000000000/events", None, {}, 404, "not_found"),
    ("POST", "/api/runs/00000000-0000-0000-0000-000000000000/cancel", None, {}, 404, "not_found"),
    ("POST", "/chat", None, {}, 405, "method_not_allowed"),
    ("GET", "/api/chat", None, {}, 405, "method_not_allowed"),
    ("PUT", "/api/threads", None, {}, 405, "method_not_allowed"),
    ("DELETE", "/api/threads", None, {}, 422, "invalid_request"),
    ("DELETE", "/api/threads/unknown", None, {}, 404, "not_found"),
    ("PATCH", "/api/threads/unknown", '{"title": ""}', JSON, 422, "invalid_request"),
    ("GET", "/chat", None, {}, 422, "invalid_request"),
    ("GET", query(""), None, {}, 422, "invalid_request"),
    ("GET", query("a\0b"), None, {}, 422, "invalid_request"),
    ("GET", query(thread_id="a/b"), None, {}, 422, "invalid_request"),
    ("GET", query(unknown="x"), None, {}, 422, "invalid_request"),
    ("GET", "/chat?message=a&message=b", None, {}, 400, "bad_query"),
    ("GET", "/chat?message=%ff", None, {}, 400, "bad_query"),
    ("GET", "/chat?message=%zz", None, {}, 400, "bad_query"),
    ("GET", "/chat?message=100%", None, {}, 400, "bad_query"),
    ("GET", query("x" * 200), None, {}, 413, "message_too_long"),
    ("GET", query(), None, {"Sec-Purpose": "prefetch;prerender"}, 403, "prefetch"),
    ("GET", query(), None, {"Origin": "https://evil.example"}, 403, "bad_origin"),
    ("GET", query(), None, {"Sec-Fetch-Site": "cross-site"}, 403, "bad_origin"),
    ("POST", "/api/chat", '{"message":"Hi"}', JSON | {"Origin": "https://evil.example"}, 403, "bad_origin"),
    (
        "GET",
        query(thread_id="t", checkpoint_id="1f1e7774-6f1f-6390-bffe-2da23c4264ef"),
        None,
        {},
        422,
        "invalid_request",
    ),
    ("POST", "/api/chat", "{}", {}, 415, "not_json"),
    ("POST", "/api/chat", "{}", {"Content-Type": "text/plain"}, 415, "not_json"),
    ("POST", "/api/chat", "{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "not_json"),
    ("POST", "/api/chat", "{}", JSON | {"Content-Encoding": "gzip"}, 415, "not_json"),
    ("POST", "/api/chat", "", JSON, 400, "invalid_json"),
    ("POST", "/api/chat", "{", JSON, 400, "invalid_json"),
    ("POST", "/api/chat", '{"message": NaN}', JSON, 400, "invalid_json"),
    ("POST", "/api/chat", '{"message": 1e999}', JSON, 400, "invalid_json"),
    ("POST", "/api/chat", "[" * 1500, JSON, 400, "invalid_json"),
    ("POST", "/api/chat", b'{"message": "\xff"}', JSON, 400, "invalid_json"),
    ("POST", "/api/chat", '{"message": "\\ud800"}', JSON, 400, "invalid_json"),
    ("POST", "/api/chat", b'\xef\xbb\xbf{"message": "Hi"}', JSON, 400, "invalid_json"),
    ("POST", "/api/chat", "[]", JSON, 422, "invalid_request"),
    ("POST", "/api/chat", '{"message": "a\\u0000b"}', JSON, 422, "invalid_request"),
    ("POST", "/api/chat", '{"message": ["a"]}', JSON, 422, "invalid_request"),
    ("POST", "/api/chat", '{"message": "x", "extra": 1}', JSON, 422, "invalid_request"),
    ("POST", "/api/chat", json.dumps({"message": "x" * 200}), JSON, 413, "message_too_long"),
    ("POST", "/api/chat", json.dumps({"message": "x" * 4000}), JSON, 413, "body_too_large"),
    ("GET", "/api/threads?limit=0", None, {}, 422, "invalid_request"),
    ("GET", "/api/threads?limit=x", None, {}, 422, "invalid_request"),
    ("GET", "/api/threads?cursor=x", None, {}, 422, "invalid_request"),
    ("GET", "/api/threads?what=x", None, {}, 422, "invalid_request"),
]


def test_every_refusal_is_a_problem_and_stores_nothing(service: Start, openai: OpenAIServer, database_url: str) -> None:
    running = service(openai=openai, MAX_BODY_BYTES="2000", MAX_MESSAGE_CHARS="100")
    for method, path, body, headers, status, code in REFUSED:
        answer = request(method, running.url + path, body, headers)
        case = f"{method} {path} {body!r:.60} {headers}"
        assert (answer.status, answer.problem and answer.problem["code"]) == (status, code), case
        assert answer.headers["content-type"] == "application/problem+json", case
        assert answer.headers["cache-control"] == "no-store", case
        assert answer.headers["x-content-type-options"] == "nosniff", case
        assert answer.problem["status"] == status, case
        assert answer.problem["title"], case
        if status == 405:
            assert answer.headers["allow"], case
        if code == "invalid_request":
            assert answer.problem["errors"][0].keys() == {"pointer", "detail"}, case
    assert openai.requests == []
    for table in ("threads", "runs", "messages", "checkpoints"):
        assert rows(database_url, f"SELECT 1 FROM {table}") == []


def test_a_connection_stays_usable_after_refusals(service: Start) -> None:
    running = service(MAX_BODY_BYTES="2000")
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.connect()
    first = connection.sock
    for method, path, body, headers, _, code in REFUSED:
        if code == "body_too_large" or (body is not None and len(body) > 1000):
            continue
        connection.request(method, path, body, headers)
        connection.getresponse().read()
        assert connection.sock is first, f"{method} {path} {body!r}"
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


def raw(port: int, data: bytes, *, then: bytes = b"", delay: float = 0.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(data)
        if then:
            time.sleep(delay)
            client.sendall(then)
        answer = b""
        while part := client.recv(65536):
            answer += part
        return answer


def test_a_body_over_the_limit_is_refused_before_it_is_read(service: Start) -> None:
    running = service(MAX_BODY_BYTES="2000")
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    declared = raw(running.port, head + b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n")
    assert declared.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in declared.lower()
    chunk = b"400\r\n" + b"x" * 0x400 + b"\r\n"
    arriving = raw(running.port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4)
    assert arriving.startswith(b"HTTP/1.1 413 ")
    chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n11\r\n" + b'{"message": "Hi"}' + b"\r\n0\r\n\r\n"
    assert b'"type":"end"' in raw(running.port, head + chunked)


def test_odd_requests_do_no_harm(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    two_hosts = raw(running.port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n")
    assert two_hosts.startswith(b"HTTP/1.1 400 ")
    no_host = raw(running.port, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert no_host.startswith(b"HTTP/1.1 400 ")
    assert b'"ok"' in raw(running.port, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
    upgrade = b"GET /chat?message=Hi HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(upgrade)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert requests.get(f"{running.url}/healthz", timeout=10).json() == {"status": "ok", "version": VERSION}


def test_options_and_head_are_answered(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    options = requests.options(f"{running.url}/api/threads", timeout=10)
    assert (options.status_code, options.headers["Allow"]) == (204, "GET, DELETE, OPTIONS, HEAD")
    head = requests.head(f"{running.url}/api/threads", timeout=10)
    assert head.status_code == 200
    assert int(head.headers["Content-Length"]) == len(requests.get(f"{running.url}/api/threads", timeout=10).content)
    refused = requests.head(f"{running.url}/chat?message=Hi", timeout=10)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, OPTIONS")
    assert openai.requests == []


def test_cross_origin_requests_of_the_origins_configured(service: Start) -> None:
    running = service(CORS_ALLOW_ORIGINS="https://app.example, http://localhost:3000")
    for origin in ("https://app.example", "http://localhost:3000"):
        answer = chat(running.url, "Hello", headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        assert {"Location", "Content-Disposition"} < set(answer.headers["access-control-expose-headers"].split(", "))
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    allowed = requests.options(f"{running.url}/api/chat", headers=preflight, timeout=10)
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    assert "Content-Type" in allowed.headers["Access-Control-Allow-Headers"]
    refused = chat(running.url, "Hello", headers={"Origin": "https://evil.example"})
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers
    same = chat(running.url, "Hello", headers={"Origin": running.url})
    assert same.status == 200


# ---------------------------------------------------------------------------------------------------------------
# Headers, lists, the service's own state


def test_a_stream_has_the_headers_of_the_contract(service: Start) -> None:
    stream = chat(service().url, "Hello")
    expected = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "connection": "keep-alive",
        "x-accel-buffering": "no",
        "location": f"/api/runs/{stream.run_id}/events",
        "referrer-policy": "no-referrer",
    }
    assert {name: stream.headers[name] for name in expected} == expected


def test_the_start_comes_before_any_work_on_a_new_thread(service: Start, openai: OpenAIServer) -> None:
    openai.default = (stall(),)
    running = service(openai=openai)
    with requests.post(f"{running.url}/api/chat", json={"message": "Hi"}, stream=True, timeout=10) as answer:
        line = next(line for line in answer.iter_lines(chunk_size=1) if line.startswith(b"data: "))
        assert json.loads(line[6:])["type"] == "start"
        requests.post(f"{running.url}{answer.headers['Location'].replace('events', 'cancel')}", timeout=10)


def test_threads_are_listed_newest_first_without_gap_or_repetition(service: Start) -> None:
    running = service()
    for number in range(7):
        chat(running.url, f"Thread {number}\nand more", thread_id=f"t{number}", stream="items")
    titles, cursor, pages = [], "", 0
    while True:
        page = requests.get(
            f"{running.url}/api/threads", params={"limit": "3", **({"cursor": cursor} if cursor else {})}, timeout=10
        ).json()
        titles += [thread["title"] for thread in page["threads"]]
        chat(running.url, "Again", thread_id=f"t{pages}", stream="items")
        cursor, pages = page["next_cursor"], pages + 1
        if cursor is None:
            break
    assert titles == [f"Thread {number}" for number in reversed(range(7))]
    assert pages == 3


def test_it_is_alive_and_ready_and_sends_a_browser_to_the_page(service: Start) -> None:
    running = service()
    assert requests.get(f"{running.url}/healthz", timeout=10).json() == {"status": "ok", "version": VERSION}
    assert requests.get(f"{running.url}/readyz", timeout=10).json() == {"status": "ready", "reasons": []}
    root = requests.get(running.url, timeout=10, allow_redirects=False)
    assert (root.status_code, root.headers["Location"]) == (302, "/debug")


def test_no_log_line_carries_a_message_or_a_key(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai, LOG_LEVEL="DEBUG")
    request("GET", f"{running.url}/chat?message=secretword")
    chat(running.url, "secretword")
    assert "secretword" not in running.log
    assert openai.key not in running.log


# ---------------------------------------------------------------------------------------------------------------
# Starting and stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_run_finish_and_saves_it(service: Start, openai: OpenAIServer, number: signal.Signals) -> None:
    openai.reply(text("one "), pause(1), text("two"), finish())
    running = service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(chat, running.url, "Hi", thread_id="t")
        while not openai.requests:
            time.sleep(0.01)
        running.process.send_signal(number)
        stream: Stream = reply.result()
    assert stream.text == "one two"
    assert stream.last["saved"] is True
    assert running.process.wait(20) == 0
    running.restart()
    assert history(running, "t")["messages"][-1]["content"] == "one two"


def test_a_second_sighup_does_not_cut_the_shutdown(service: Start, proxy: FaultProxy) -> None:
    """A terminal that closes sends two of them."""
    running = service(DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="0.1")
    proxy.frozen = True
    assert chat(running.url, "Hello").last["saved"] is False
    running.process.send_signal(signal.SIGHUP)
    until(lambda: "Waiting for application shutdown" in running.log)
    while running.process.poll() is None:
        running.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    assert running.process.wait(20) == 4
    assert "1 turns were not saved" in running.log


def test_ctrl_c_while_the_server_waits_for_readers_cuts_them_and_not_the_shutdown(
    service: Start, proxy: FaultProxy
) -> None:
    running = service(DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="0.1")
    with socket.create_connection(("127.0.0.1", running.port)) as reader:
        reader.sendall(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        proxy.frozen = True
        assert chat(running.url, "Hello").last["saved"] is False
        running.process.send_signal(signal.SIGINT)
        until(lambda: "Waiting for connections to close" in running.log)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 4
    assert "timeout graceful shutdown exceeded" not in running.log
    assert "1 turns were not saved" in running.log


def test_under_nohup_a_terminal_that_closes_ends_nothing(service: Start) -> None:
    running = service(command=["nohup", sys.executable, "asgi_app.py"])
    running.process.send_signal(signal.SIGHUP)
    assert chat(running.url, "Hello").last["saved"] is True
    assert requests.get(f"{running.url}/readyz", timeout=10).json()["reasons"] == []


def test_after_sigterm_it_still_listens_until_its_runs_have_ended(service: Start, openai: OpenAIServer) -> None:
    gate = threading.Event()
    openai.reply(text("one "), wait(gate), text("two"), finish())
    running = service(openai=openai)
    url = f"{running.url}/api/chat"
    with requests.post(url, json={"message": "Hi", "thread_id": "t"}, stream=True, timeout=20) as first:
        assert any(b"one" in line for line in first.iter_lines(chunk_size=1))
        running.process.send_signal(signal.SIGTERM)
        until(lambda: requests.get(f"{running.url}/readyz", timeout=10).json()["reasons"] == ["shutting_down"])
        # By itself uvicorn stops to listen at its next tick. It sets the `Date` of its answers at each tenth one.
        ticked = requests.get(f"{running.url}/healthz", timeout=10).headers["date"]
        until(lambda: requests.get(f"{running.url}/healthz", timeout=10).headers["date"] != ticked)
        refused = requests.post(url, json={"message": "Hi"}, timeout=10)
        assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
        assert refused.headers["connection"] == "close"
        assert requests.get(f"{running.url}/healthz", timeout=10).status_code == 200
        run_id = first.headers["location"].split("/")[-2]
    back = {"Last-Event-ID": f"{run_id}:4"}  # whose connection broke
    with requests.get(f"{running.url}/chat?message=Hi", headers=back, stream=True, timeout=20) as again:
        gate.set()
        rest = again.text
    assert '"content":"two"' in rest
    assert '"saved":true' in rest
    assert running.process.wait(20) == 0
    assert "shutting down; runs in progress: 1" in running.log


def test_a_second_ctrl_c_does_not_wait_for_the_runs_and_keeps_what_they_have(
    service: Start, openai: OpenAIServer
) -> None:
    openai.reply(text("half"), stall())
    running = service(openai=openai, DRAIN_TIMEOUT_S="600")
    with requests.post(
        f"{running.url}/api/chat", json={"message": "Hi", "thread_id": "t"}, stream=True, timeout=20
    ) as stream:
        lines = stream.iter_lines(chunk_size=1)
        assert any(b"half" in line for line in lines)
        running.process.send_signal(signal.SIGINT)
        until(lambda: requests.get(f"{running.url}/readyz", timeout=10).status_code == 503)
        running.process.send_signal(signal.SIGINT)
        assert any(b'"code":"shutting_down"' in line for line in lines)
    assert running.process.wait(20) == 0
    running.restart()
    assert [item["content"] for item in history(running, "t")["messages"]] == ["Hi", "half"]


def test_sigterm_stops_a_run_that_does_not_end_and_keeps_what_it_has(service: Start, openai: OpenAIServer) -> None:
    openai.reply(text("half"), stall())
    running = service(openai=openai, DRAIN_TIMEOUT_S="0.5")
    with requests.get(f"{running.url}/chat?message=Hi&thread_id=t", stream=True, timeout=20) as stream:
        lines = stream.iter_lines(chunk_size=1)
        assert any(b"half" in line for line in lines)
        assert running.stop() == 0
        assert any(b'"code":"shutting_down"' in line for line in lines)
    running.restart()
    assert [item["content"] for item in history(running, "t")["messages"]] == ["Hi", "half"]


def test_a_database_that_is_away_is_told_within_a_second_and_new_threads_chat_on(
    open_folder: Path, service: Start, openai: OpenAIServer
) -> None:
    """The database of this one is a server of its own, which is stopped and started."""
    from storage.embedded import _Server

    database = _Server(open_folder)
    database.start()
    try:
        running = service(openai=openai, DATABASE_URL=database.dsn, SAVE_TIMEOUT_S="1")
        assert chat(running.url, "Hi", thread_id="known").last["saved"] is True
        database._run("pg_ctl", "stop", "-m", "immediate", "-D", str(open_folder / "postgres"))
        began = time.monotonic()
        refused = chat(running.url, "Hi", thread_id="known")
        assert (refused.status, refused.problem["code"]) == (503, "store_unavailable")
        assert time.monotonic() - began < 5
        assert requests.get(f"{running.url}/readyz", timeout=10).json()["reasons"] == ["store_unavailable"]
        assert requests.get(f"{running.url}/healthz", timeout=10).status_code == 200
        fresh = chat(running.url, "Hello")
        assert fresh.last == {**fresh.last, "type": "end", "saved": False}
        database.leave()
        database.start()
        running.wait_until_ready()
        thread_id = fresh.events[0]["thread_id"]
        assert [item["content"] for item in history(running, thread_id)["messages"]] == ["Hello", "OK."]
        assert chat(running.url, "On", thread_id=thread_id).last["saved"] is True
        assert running.stop() == 0
    finally:
        database.leave()
