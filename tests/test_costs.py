"""The counts that make the speed: the requests, reads, writes and bytes of a turn. Times are the benchmark's business."""

import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import requests
from conftest import Service, rows
from openai_server import OpenAIServer, finish, pause, raw, text, tool, wait
from sse_client import chat

Start = Callable[..., Service]
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
HEAD = END = 1  # the response's first message, and its last


def done(service: Service) -> Counter[str]:
    return Counter(requests.get(f"{service.url}/done", timeout=10).json())


def cost(service: Service, message: str, thread_id: str | None = None) -> Counter[str]:
    """The counts of one turn, once it is saved."""
    before = done(service)
    stream = chat(service.url, message, thread_id=thread_id)
    assert stream.last["saved"] is True
    after = done(service)
    after.subtract(before)
    return after


def test_each_arrival_of_the_model_is_one_send(service: Start, openai: OpenAIServer) -> None:
    gates = [threading.Event() for _ in range(5)]
    openai.reply(*(step for gate in gates for step in (raw(TOKEN * 3), wait(gate))), finish())
    running = service(openai=openai, app="counted_app:app")
    before = done(running)["sends"]
    with requests.post(f"{running.url}/api/chat", json={"message": "Go"}, stream=True, timeout=60) as response:
        arrivals = (line for line in response.iter_lines() if line.startswith(b'data: {"type":"message"'))
        for gate, line in zip(gates, arrivals, strict=True):
            assert line.count(b"word ") == 3
            gate.set()
    sends = done(running)["sends"] - before
    assert sends <= HEAD + 1 + len(gates) + 1 + END, "the start, each arrival, the last event"


def test_a_token_goes_from_socket_to_socket_in_one_call(service: Start, openai: OpenAIServer) -> None:
    """Fails where an update turns one of the two fast paths off: Tap's, or Response.write_now's."""
    tokens = 50
    openai.reply(*(step for _ in range(tokens) for step in (text("word "), pause(0.01))), finish())
    running = service(openai=openai, app="counted_app:app")
    before = done(running)
    with requests.post(f"{running.url}/api/chat", json={"message": "Go"}, stream=True, timeout=60) as response:
        frames = [line for line in response.iter_lines() if line.startswith(b'data: {"type":"message"')]
    assert sum(frame.count(b"word ") for frame in frames) == tokens
    sends = done(running) - before
    assert sends["sends within the model's arrival"] > len(frames) / 2, f"{sends}; some find it busy"


def test_the_calls_of_a_tool_that_arrive_together_leave_together(service: Start, openai: OpenAIServer) -> None:
    opening = tool_chunk(id="c1", function={"name": "write_document", "arguments": '{"title": "NDA", "content": "'})
    pieces = [tool_chunk(function={"arguments": f"word {number} "}) for number in range(200)]
    closing = tool_chunk(function={"arguments": '"}'})
    openai.reply(raw(b"".join([opening, *pieces, closing])), finish("tool_calls"))
    running = service(openai=openai, app="counted_app:app")
    sends = cost(running, "Go")["sends"]
    assert sends < 20, "200 pieces of a document"


def tool_chunk(**fields: object) -> bytes:
    delta = {"tool_calls": [{"index": 0, "type": "function", **fields}]}
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"


def test_a_reply_that_comes_at_once_leaves_in_a_few_sends(service: Start, openai: OpenAIServer) -> None:
    openai.reply(raw(TOKEN * 3000), finish())
    running = service(openai=openai, app="counted_app:app")
    assert cost(running, "Go")["sends"] < 100, "3,000 tokens"


def test_a_turn_reads_its_threads_head_and_nothing_else(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai, app="counted_app:app")
    new = cost(running, "Hi")
    assert new["reads"] == 0, "a new thread is not read"
    assert cost(running, "Hi", "t")["reads"] == 1, "one that is named is, once"
    assert cost(running, "Hi", "t")["reads"] == 1, "and its state is at hand"
    running.restart()
    assert cost(running, "Hi", "t")["reads"] == 3, "elsewhere, its state is read in two looks"
    assert new["units"] == 2, "its start and its end"
    # The thread, the run and the message; the run's end, the reply, its pieces gone; the checkpoint with the state
    # before it and the three writes of the turn.
    assert new["rows"] <= 3 + 3 + 5


def test_many_chats_on_known_threads_are_read_together(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai, app="counted_app:app")
    threads = [f"t{number}" for number in range(40)]
    for thread in threads:
        chat(running.url, "Hi", thread_id=thread)
    before = done(running)["reads"]
    crowd = [threading.Thread(target=chat, args=(running.url, "Hi"), kwargs={"thread_id": name}) for name in threads]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert done(running)["reads"] - before < len(threads)


def test_a_thread_stores_what_was_said_and_little_more(service: Start, openai: OpenAIServer, database_url: str) -> None:
    """Twenty versions of a document: the memory holds each about once, and does not grow with the square."""
    document = "The parties agree that each of them shall keep in confidence all information. " * 75
    running = service(openai=openai)
    stored = []
    for number in range(20):
        openai.reply(tool("write_document", {"title": "NDA", "content": f"{number} {document}"}), finish("tool_calls"))
        chat(running.url, "Again", thread_id="t")
        stored.append(memory_bytes(database_url))
    said = len(document) * 20
    assert stored[-1] < 2.5 * said, "once in the call, once as the document, and the overhead"
    second_half, first_half = stored[19] - stored[9], stored[9]
    assert second_half < 1.2 * first_half


def memory_bytes(database_url: str) -> int:
    [row] = rows(
        database_url,
        "SELECT (SELECT coalesce(sum(octet_length(blob)), 0) FROM checkpoint_writes)"
        " + (SELECT coalesce(sum(octet_length(blob)), 0) FROM checkpoint_blobs)"
        " + (SELECT sum(octet_length(checkpoint::text) + octet_length(metadata::text)) FROM checkpoints) AS bytes",
    )
    return int(row["bytes"])


def test_a_token_costs_two_system_calls(service: Start, openai: OpenAIServer) -> None:
    """One read from the model's socket, one write to the client's: as the kernel counts them for the process."""
    tokens = 200
    openai.default = (*(step for _ in range(tokens) for step in (text("word "), pause(0.002))), finish())
    running = service(openai=openai)
    chat(running.url, "warm up")
    before = system_calls(running)
    chat(running.url, "Go")
    calls = system_calls(running) - before
    assert calls < 2.5 * tokens + 150, f"{calls} for {tokens} tokens and a turn"


def system_calls(service: Service) -> int:
    io = Path(f"/proc/{service.process.pid}/io").read_text()
    return sum(int(count) for count in re.findall(r"^sysc[rw]: (\d+)$", io, re.MULTILINE))
