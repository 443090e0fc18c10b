"""Runs outlive connections and crashes: real processes are killed, connections are cut, requests come again."""

import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import requests
from conftest import Service, rows
from fault_proxy import FaultProxy
from openai_server import OpenAIServer, Step, echo, finish, pause, stall, status, text, tool, wait
from sse_client import chat, request
from test_service import graph_state, history

from drafting.context.normal_form import INTERRUPTED

Start = Callable[..., Service]
BRIEFLY = {"app": "foreign_run_app:app", "FOREIGN_RUN_WAIT_S": "1"}  # waits no whole lease for another process's run


def forget_leases(database_url: str) -> None:
    """As if the ten seconds had gone by after which a dead process's threads are free."""
    rows(database_url, "UPDATE runs SET leased_until = now() - interval '1 s' RETURNING 1")


def keep_leases(database_url: str) -> None:
    """As if they had not gone by, however long the next start takes."""
    rows(database_url, "UPDATE runs SET leased_until = now() + interval '1 hour' RETURNING 1")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_kill_9_in_the_middle_of_a_run_loses_less_than_a_second_of_it(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    begun = '{"title":"NDA","content":"# NDA\\n\\nThe first half'
    openai.reply(text("Here it ", "comes."), tool("write_document", begun), stall())
    running = service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(chat, running.url, "Draft an NDA", thread_id="t")
        wait_for(lambda: [item for item in rows(database_url, "SELECT 1 FROM pieces WHERE type = 'doc'") if item])
        running.kill()
        assert reply.exception() is not None, "the stream breaks off"
    keep_leases(database_url)
    running.restart()
    busy = chat(running.url, "Too early", thread_id="t")
    assert (busy.status, busy.problem["run_id"]) == (409, history(running, "t")["runs"][0]["run_id"])
    forget_leases(database_url)
    said = [(item["content"], item["complete"]) for item in history(running, "t")["messages"]]
    assert said == [("Draft an NDA", True), ("Here it comes.", False), ("# NDA\n\nThe first half", False)]

    openai.reply(
        tool("edit_document", {"doc_id": "d1", "edits": [{"find": "x", "replace": "y"}]}), finish("tool_calls")
    )
    openai.default = (echo(),)
    after = chat(running.url, "Go on", thread_id="t")
    assert after.last["type"] == "end"
    sent = json.loads(after.text)
    roles = [role for role, _ in sent]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    assert sent[4] == ["assistant", INTERRUPTED]
    assert sent[2] == ["assistant", "Here it comes."]
    assert openai.requests[1].body["messages"][2]["tool_calls"][0]["function"]["name"] == "write_document"
    assert openai.refusals == []
    stored = history(running, "t")
    assert [run["status"] for run in stored["runs"]] == ["interrupted", "completed"]
    assert [item["content"] for item in stored["messages"][:3]] == [content for content, _ in said]
    assert rows(database_url, "SELECT 1 FROM pieces") == []
    state = graph_state(database_url, "t")
    assert [document["complete"] for document in state["documents"]] == [False]
    third = json.loads(chat(running.url, "And on", thread_id="t").text)
    assert third[: len(sent)] == sent


def test_a_run_that_was_killed_is_told_as_interrupted_when_it_is_read_again(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    openai.reply(text("As far as it came"), stall())
    running = service(openai=openai, **BRIEFLY)
    with requests.get(f"{running.url}/chat?message=Hi", stream=True, timeout=20) as answer:
        run_id = next(line for line in answer.iter_lines(chunk_size=1) if line.startswith(b"id: ")).decode()[4:40]
        wait_for(lambda: rows(database_url, "SELECT 1 FROM pieces"))
        running.kill()
    keep_leases(database_url)
    running.restart()
    early = request("GET", f"{running.url}/api/runs/{run_id}/events")
    assert (early.status, early.problem["run_id"]) == (409, run_id), "another process may have it in progress"
    forget_leases(database_url)
    again = request("GET", f"{running.url}/api/runs/{run_id}/events")
    assert again.text == "As far as it came"
    assert again.last["code"] == "interrupted"
    assert len(openai.requests) == 1


def test_a_run_is_read_from_the_database_as_it_was_from_memory(service: Start) -> None:
    running = service()
    first = chat(running.url, "Draft an NDA", thread_id="t")
    events = f"{running.url}/api/runs/{first.run_id}/events"
    live = {after: request("GET", f"{events}?after={after}") for after in (0, 5, 200, 300, 5000)}
    running.restart()
    whole = request("GET", events)
    assert whole.items == first.items
    assert whole.events[0] == first.events[0]
    assert whole.last == first.last
    for after, stream in live.items():
        stored = request("GET", f"{events}?after={after}")
        assert stored.items == stream.items, f"after {after}"
        assert stored.last == stream.last
        assert stored.ids[-2:] == stream.ids[-2:]
    resumed = request("GET", f"{running.url}/chat?message=x", headers={"Last-Event-ID": f"{first.run_id}:300"})
    assert resumed.items == live[300].items
    over = request("GET", f"{running.url}/chat?message=x", headers={"Last-Event-ID": f"{first.run_id}:end"})
    assert over.status == 204


def test_an_event_source_that_is_cut_five_times_has_the_exact_text(service: Start, openai: OpenAIServer) -> None:
    words = [f"word {number} 😀, " for number in range(60)]
    steps: list[Step] = [step for word in words for step in (text(word), pause(0.02))]
    openai.reply(*steps, finish())
    running = service(openai=openai)
    said, last_id, cuts = "", "", 0
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        connection.request("GET", "/chat?message=Hi", headers={"Last-Event-ID": last_id} if last_id else {})
        answer = connection.getresponse()
        if answer.status == 204:
            answer.close()
            connection.close()
            break
        for line in iter(answer.readline, b""):
            if line.startswith(b"id: "):
                last_id = line[4:].decode().strip()
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                said += event.get("content", "")
                if cuts < 5 and len(said) > (cuts + 1) * 100:
                    cuts += 1
                    break
        answer.close()
        connection.close()
    assert cuts == 5
    assert said == "".join(words)
    assert len(openai.requests) == 1


def test_a_request_that_comes_again_with_its_key_gets_its_run(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    running = service(openai=openai)
    key = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    first = chat(running.url, "Hi", headers=key)
    again = chat(running.url, "Hi", headers=key)
    assert (again.run_id, again.text, again.last) == (first.run_id, first.text, first.last)
    other = chat(running.url, "Something else", headers=key)
    assert (other.status, other.problem["errors"][0]["pointer"]) == (422, "/idempotency_key")
    running.kill()
    running.restart()
    after = chat(running.url, "Hi", headers=key)
    assert (after.run_id, after.items, after.last) == (first.run_id, first.items, first.last)
    assert chat(running.url, "Something else", headers=key).status == 422
    by_get = request("GET", f"{running.url}/chat?message=Hi&idempotency_key=k1")
    assert request("GET", f"{running.url}/chat?message=Hi&idempotency_key=k1").run_id == by_get.run_id
    assert chat(running.url, "Hi", headers={"Idempotency-Key": "ü"}).status == 422
    assert len(openai.requests) == 2
    assert len(rows(database_url, "SELECT 1 FROM runs")) == 2


def test_requests_that_come_at_once_with_one_key_get_one_run(service: Start, openai: OpenAIServer) -> None:
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), text(" run"), finish())
    running = service(openai=openai)
    with ThreadPoolExecutor(6) as threads:
        streams = [threads.submit(chat, running.url, "Hi", headers={"Idempotency-Key": "k"}) for _ in range(6)]
        wait_for(lambda: openai.requests)
        gate.set()
        results = [stream.result() for stream in streams]
    assert {stream.text for stream in results} == {"one run"}
    assert len({stream.run_id for stream in results}) == 1
    assert len(openai.requests) == 1


def test_what_is_acknowledged_is_there_after_kill_9_at_random_moments(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    """A client each on 8 threads, the service killed under them, 4 times: no `saved: true` without its turn."""
    openai.default = (text("The ", "answer."), finish())
    running = service(openai=openai)
    acknowledged: dict[str, list[str]] = {}
    stop = threading.Event()

    def converse(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            message = f"{name} {number}"
            try:
                stream = chat(running.url, message, thread_id=name)
            except (OSError, http.client.HTTPException, AssertionError):
                time.sleep(0.05)
                continue
            if stream.status == 200 and stream.last.get("saved"):
                acknowledged.setdefault(name, []).append(message)

    with ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(converse, f"c{number}") for number in range(8)]
        for turns in (14, 5, 23, 9):
            enough = sum(map(len, acknowledged.values())) + turns
            wait_for(lambda enough=enough: sum(map(len, acknowledged.values())) >= enough)  # type: ignore[misc]
            running.kill()
            forget_leases(database_url)
            running.restart()
        wait_for(lambda: sum(map(len, acknowledged.values())) > 20)
        stop.set()
        for client in clients:
            client.result()
    for name, messages in acknowledged.items():
        stored = history(running, name)
        said = [item["content"] for item in stored["messages"] if item["role"] == "user"]
        assert len(said) == len(set(said)), "nothing is stored twice"
        assert [message for message in said if message in messages] == messages
        complete = [run["run_id"] for run in stored["runs"] if run["status"] == "completed"]
        answers = [item["run_id"] for item in stored["messages"] if item["content"] == "The answer."]
        assert set(complete) <= set(answers)
        assert [run["seq"] for run in stored["runs"]] == list(range(1, len(said) + 1))
    assert openai.refusals == []


def test_one_thread_has_one_run_between_two_processes(service: Start, openai: OpenAIServer, database_url: str) -> None:
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    here, there = service(openai=openai), service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(chat, here.url, "Hi", thread_id="t")
        wait_for(lambda: rows(database_url, "SELECT 1 FROM runs"))
        second = chat(there.url, "Hi too", thread_id="t")
        gate.set()
        assert (second.status, second.problem["run_id"]) == (409, first.result().run_id)
    assert chat(there.url, "Now", thread_id="t").last["saved"] is True
    assert chat(here.url, "And here", thread_id="t").last["saved"] is True
    assert [run["seq"] for run in history(here, "t")["runs"]] == [1, 2, 3]


def test_a_run_that_another_process_has_in_progress_is_not_told_as_interrupted(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    here, there = service(openai=openai), service(openai=openai, **BRIEFLY)
    key = {"Idempotency-Key": "k"}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(chat, here.url, "Hi", thread_id="t", headers=key)
        wait_for(lambda: rows(database_url, "SELECT 1 FROM pieces"))
        again = chat(there.url, "Hi", thread_id="t", headers=key)
        events = f"{there.url}/api/runs/{again.problem['run_id']}/events"
        read = request("GET", events)
        gate.set()
        assert [again.status, read.status] == [409, 409]
        assert again.problem["run_id"] == read.problem["run_id"] == first.result().run_id
    assert chat(there.url, "Hi", thread_id="t", headers=key).last == first.result().last == request("GET", events).last
    assert len(openai.requests) == 1


def test_many_at_once_on_one_thread_never_fork_between_two_processes(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    openai.default = (text("The answer."), finish())
    processes = service(openai=openai), service(openai=openai)
    refused: Counter[object] = Counter()

    def send(number: int) -> None:
        while True:
            stream = chat(processes[number % 2].url, f"message {number}", thread_id="t")
            if stream.status == 200 and stream.last.get("saved"):
                return
            refused[stream.status if stream.status != 200 else stream.last["code"]] += 1
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, range(100)))
    stored = history(processes[0], "t")
    completed = [run["run_id"] for run in stored["runs"] if run["status"] == "completed"]
    said = [item["content"] for item in stored["messages"] if item["run_id"] in completed and item["role"] == "user"]
    assert sorted(said) == sorted(f"message {number}" for number in range(100))
    assert [run["seq"] for run in stored["runs"]] == list(range(1, len(stored["runs"]) + 1))
    assert refused.keys() <= {409, "conflict"}
    remembered = [message.content for message in graph_state(database_url, "t")["messages"] if message.type == "human"]
    assert remembered == said
    assert rows(database_url, "SELECT 1 FROM dead_letters") == []


def test_a_process_that_was_stopped_for_long_loses_its_thread(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    gate = threading.Event()
    openai.reply(text("slow"), wait(gate), text(" answer"), finish())
    sleeper, other = service(openai=openai), service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(chat, sleeper.url, "Hi", thread_id="t")
        wait_for(lambda: rows(database_url, "SELECT 1 FROM pieces"))
        sleeper.process.send_signal(signal.SIGSTOP)
        forget_leases(database_url)
        newer = chat(other.url, "Go on", thread_id="t")
        assert newer.last["saved"] is True
        gate.set()
        sleeper.process.send_signal(signal.SIGCONT)
        assert slow.result().last["code"] == "conflict"
    stored = history(other, "t")
    assert [item["content"] for item in stored["messages"]] == ["Hi", "slow", "Go on", "OK."]
    openai.default = (echo(),)
    sent = json.loads(chat(sleeper.url, "On", thread_id="t").text)
    assert [content for _, content in sent[1:]] == ["Hi", "slow", "Go on", "OK.", "On"]


def test_a_client_that_reads_nothing_is_cut_off_and_costs_nobody_else(service: Start, openai: OpenAIServer) -> None:
    words, gate = [f"{number} " + "x" * 1000 for number in range(3000)], threading.Event()
    openai.reply(text(*words), wait(gate), finish())
    running = service(openai=openai, HEARTBEAT_S="0.5")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the kernel does not take it all
    deaf.connect(("127.0.0.1", running.port))
    deaf.sendall(b"GET /chat?message=Hi&thread_id=t HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(lambda: openai.requests)
    busy = chat(running.url, "Hi", thread_id="t")
    gate.set()
    other = request("GET", f"{running.url}/api/runs/{busy.problem['run_id']}/events")
    assert other.text == "".join(words)
    wait_for(lambda: "draftstream_open_streams 0.0" in requests.get(f"{running.url}/metrics", timeout=10).text)
    deaf.settimeout(10)
    got = b""
    try:
        while data := deaf.recv(65536):
            got += data
    except ConnectionResetError:
        pass
    deaf.close()
    assert b'"type":"end"' not in got
    place = got.rpartition(b"\n\nid: ")[0].rpartition(b"\nid: ")[2].partition(b"\n")[0].decode()
    rest = request("GET", f"{running.url}/chat?message=Hi", headers={"Last-Event-ID": place})
    assert rest.text == "".join(words)[int(place.partition(":")[2]) :], "and may come back for the rest"


def test_each_wait_for_the_model_has_its_limit_and_its_code(service: Start, openai: OpenAIServer) -> None:
    limits = {"MODEL_FIRST_TOKEN_TIMEOUT_S": "3", "MODEL_IDLE_TIMEOUT_S": "1.5", "RUN_TIMEOUT_S": "4"}
    running = service(openai=openai, **limits)
    slow: list[Step] = [step for _ in range(100) for step in (text("word "), pause(0.1))]
    replies: list[tuple[str, str, list[Step]]] = [
        ("", "model_first_token_timeout", [stall()]),
        ("half", "model_idle_timeout", [text("half"), stall()]),
        ("word word", "run_timeout", slow),
        ("", "model_rate_limited", [status(429, "busy", retry_after=60)]),
    ]
    for said, code, steps in replies:
        openai.reply(*steps)
        stream = chat(running.url, "Hi", thread_id="t")
        assert stream.last["code"] == code
        assert stream.last["retryable"] is True
        assert stream.text.startswith(said)
    assert chat(running.url, "On", thread_id="t").last["saved"] is True
    assert len(openai.requests) == 5
    assert openai.refusals == []


def test_what_is_admitted_finds_room_and_the_rest_is_refused_at_once(
    service: Start, openai: OpenAIServer, proxy: FaultProxy, database_url: str
) -> None:
    gate = threading.Event()
    openai.default = (text("one"), wait(gate), finish())
    running = service(openai=openai, DATABASE_URL=proxy.dsn, WRITE_QUEUE_SIZE="8", SAVE_TIMEOUT_S="0.2")
    proxy.frozen = True
    with ThreadPoolExecutor(20) as threads, ExitStack() as stack:
        stack.callback(gate.set)
        streams = [threads.submit(chat, running.url, f"message {number}") for number in range(20)]
        wait_for(lambda: sum(stream.done() for stream in streams) + len(openai.requests) == 20)
        refused = [stream.result() for stream in streams if stream.done()]
        assert {(stream.status, stream.problem["code"]) for stream in refused} == {(503, "overloaded")}
        assert all(1 <= int(stream.headers["retry-after"]) <= 5 for stream in refused)
        reasons = ["write_queue_full", "store_unavailable"]
        wait_for(lambda: requests.get(f"{running.url}/readyz", timeout=10).json()["reasons"] == reasons)
        gate.set()
        admitted = [stream.result() for stream in streams if stream.result().status == 200]
    assert [(stream.text, stream.last["saved"]) for stream in admitted] == [("one", False)] * len(admitted)
    assert len(admitted) >= 4
    proxy.cut()
    proxy.frozen = False
    running.wait_until_ready()
    wait_for(lambda: len(rows(database_url, "SELECT 1 FROM runs WHERE status = 'completed'")) == len(admitted))


def test_processes_that_start_at_once_on_an_empty_database_all_serve(service: Start, postgres: str) -> None:
    rows(postgres, "CREATE DATABASE nothing_yet")
    empty = postgres.replace("@/postgres", "@/nothing_yet")
    with ThreadPoolExecutor(4) as threads:
        processes = list(threads.map(lambda _: service(DATABASE_URL=empty), range(4)))
    for number, process in enumerate(processes):
        assert chat(process.url, "Hi", thread_id=f"t{number}").last["saved"] is True
        assert process.stop() == 0
    rows(postgres, "DROP DATABASE nothing_yet")


def test_a_stream_goes_on_while_the_database_is_frozen(
    service: Start, openai: OpenAIServer, proxy: FaultProxy, database_url: str
) -> None:
    """Frozen in the middle of two runs, one on a new thread and one on a known one; thawed before their end."""
    gate, last = threading.Event(), threading.Event()
    running = service(openai=openai, DATABASE_URL=proxy.dsn)
    assert chat(running.url, "Hi", thread_id="known").last["saved"] is True
    openai.default = (text("before "), wait(gate), text("meanwhile "), wait(last), text("after"), finish())
    bodies = ({"message": "New"}, {"message": "On", "thread_id": "known"})
    with ExitStack() as stack:
        answers = [
            stack.enter_context(requests.post(f"{running.url}/api/chat", json=body, stream=True, timeout=30))
            for body in bodies
        ]
        streams = [answer.iter_lines(chunk_size=1) for answer in answers]
        assert all(any(b"before" in line for line in stream) for stream in streams)
        proxy.frozen = True
        gate.set()
        assert all(any(b"meanwhile" in line for line in stream) for stream in streams), "no word waits for the database"
        began = time.monotonic()
        refused = chat(running.url, "Too early", thread_id="another")
        assert (refused.status, refused.problem["code"]) == (503, "store_unavailable")
        assert time.monotonic() - began < 5
        assert requests.get(f"{running.url}/healthz", timeout=10).status_code == 200
        proxy.cut()
        proxy.frozen = False
        last.set()
        assert all(any(b'"saved":true' in line for line in stream) for stream in streams)
    stored = rows(database_url, "SELECT content FROM messages WHERE role = 'assistant' ORDER BY created_at")
    assert [row["content"] for row in stored] == ["OK.", *["before meanwhile after"] * 2]
