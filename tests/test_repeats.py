"""A request that names its run starts none, whatever its verb, and a GET that comes again follows the run it began."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from conftest import Service, rows
from openai_server import OpenAIServer, finish, text, tool, wait
from sse_client import Stream, chat, request
from test_access import Key, new_key
from test_runs import later, read, registry, says, waits

from chat import ChatRequest, StopCause
from chat.refusals import ThreadBusy
from runs.repeats import REPEAT_S
from runs.run import Run

Start = Callable[..., Service]
UNKNOWN = "123e4567-e89b-12d3-a456-426614174000"
TITLE = "Mutual NDA"
DOCUMENT = "# Mutual NDA\n\n1. Ünïcode 😀 clause\n" + "2. Another clause\n" * 40
HI = ChatRequest("Hi", "t")


def runs_of(database_url: str) -> int:
    return len(rows(database_url, "SELECT FROM runs"))


# ---------------------------------------------------------------------------------------------------------------
# A request that names its run


def test_a_post_that_names_its_run_goes_on_with_it_or_gets_204(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    openai.reply(text("Here it is."), tool("write_document", {"title": TITLE, "content": DOCUMENT}, cut=7), finish())
    openai.reply(text("Done."), finish())
    keys = {"mine": new_key(database_url, "a", ["chat", "read"]), "chat": new_key(database_url, "a", ["chat"])}
    keys["other owner's"] = new_key(database_url, "b", ["chat", "read"])
    running = service(openai=openai)

    def post(place: str, who: str = "mine", key: str | None = None, **body: Any) -> Stream:
        headers = keys[who].headers | {"Last-Event-ID": place} | ({"Idempotency-Key": key} if key else {})
        return chat(running.url, headers=headers, **{"message": "Draft", **body})

    whole = chat(running.url, "Draft", headers=keys["mine"].headers | {"Idempotency-Key": "k"})
    run_id = whole.run_id
    everything = "".join(event.get("content", "") for event in whole.events)
    for where in ("memory", "database"):
        for position in (0, 3, 11, 12, 40, 400, len(everything)):
            rest = post(f"{run_id}:{position}")
            assert "".join(event.get("content", "") for event in rest.events) == everything[position:]
            assert {item["title"] for item in rest.items.values() if item["type"] == "doc"} <= {TITLE}
            assert rest.headers["location"] == f"/api/runs/{run_id}/events"
        # A key counts for nothing beside the id, and no field of the body but `stream` does.
        assert post(f"{run_id}:3", key="k").text == post(f"{run_id}:3", key="other").text == whole.text[3:]
        assert post(f"{run_id}:3", message="Else", thread_id="elsewhere").text == whole.text[3:]
        in_items = post(f"{run_id}:11", stream="items")
        assert [event["content"] for event in in_items.events[:-1]] == [DOCUMENT, "Done."]
        for place in (f"{run_id}:end", f"{UNKNOWN}:0", "nonsense", run_id, f"{run_id}:007"):
            assert post(place).status == 204, place
        assert post(f"{run_id}:0", who="chat").status == 204, "another credential began it"
        assert post(f"{run_id}:0", who="other owner's").status == 204
        assert post(f"{run_id}:0", stream="x").status == post(f"{run_id}:0", message="").status == 422
        if where == "memory":
            running.restart()
    assert runs_of(database_url) == 1
    assert len(openai.requests) == 2
    openai.default = (text("Yes."), finish())
    assert post("", thread_id="empty").run_id != run_id, "an empty id names no run"
    empty = keys["mine"].headers | {"Last-Event-ID": ""}
    assert request("GET", f"{running.url}/chat?message=Hi&thread_id=empty", headers=empty).text == "Yes."
    assert request("GET", f"{running.url}/api/runs/{run_id}/events", headers=empty).text == whole.text
    assert runs_of(database_url) == 3


def test_a_post_that_names_its_run_follows_it_while_it_is_in_progress(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    gate = threading.Event()
    openai.reply(text("As far as "), wait(gate), text("it goes."), finish())
    running = service(openai=openai)
    body = {"message": "Hi", "thread_id": "t"}
    with requests.post(f"{running.url}/api/chat", json=body, stream=True, timeout=20) as broken:
        lines = broken.iter_lines(chunk_size=1)
        last = next(line for line in lines if line.endswith(b":10"))
    headers = {"Last-Event-ID": last.removeprefix(b"id: ").decode()}
    with requests.post(f"{running.url}/api/chat", json=body, headers=headers, stream=True, timeout=20) as again:
        gate.set()
        assert again.status_code == 200
        assert '"content":"it goes."' in again.text
        assert "As far" not in again.text
    assert runs_of(database_url) == 1


# ---------------------------------------------------------------------------------------------------------------
# A GET that comes again


def get(running: Service, message: str = "Hi", thread_id: str = "t", key: Key | None = None, **more: str) -> Stream:
    query = urlencode({"message": message, "thread_id": thread_id, **more})
    return request("GET", f"{running.url}/chat?{query}", headers=key.headers if key else {})


def left(running: Service, thread_id: str) -> None:
    """A GET whose connection breaks before its first frame."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        client.sendall(b"GET /chat?message=Hi&thread_id=%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % thread_id.encode())
        client.recv(15)


def test_a_get_that_comes_again_follows_the_run_it_began_and_no_other_request_does(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    gate = threading.Event()
    openai.default = (text("One "), wait(gate), text("answer."), finish())
    mine, only = new_key(database_url, "a", ["chat", "read"]), new_key(database_url, "a", ["chat"])
    other = new_key(database_url, "a", ["chat"])
    running = service(openai=openai)
    first: list[Stream] = []
    reader = threading.Thread(target=lambda: first.append(get(running, key=only)))
    reader.start()
    deadline = time.monotonic() + 20
    while not openai.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    for refused, sees_it in (
        (get(running, key=other), False),
        (get(running, key=mine), True),
        (get(running, "Hi again", key=only), True),
        (get(running, key=only, idempotency_key="k"), True),
        (get(running, key=only, stream="items"), True),
        (get(running, key=only, on_disconnect="cancel"), True),
        (chat(running.url, "Hi", thread_id="t", headers=only.headers), True),
    ):
        assert (refused.status, refused.problem["code"]) == (409, "thread_busy")
        assert (refused.problem["run_id"] is not None) is sees_it
    two: list[Stream] = []
    tabs = [threading.Thread(target=lambda: two.append(get(running, key=only))) for _ in range(2)]
    for tab in tabs:
        tab.start()
    while running_readers(running) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.set()
    for thread in (reader, *tabs):
        thread.join(20)
    assert [stream.text for stream in first + two] == ["One answer."] * 3
    assert {stream.run_id for stream in two} == {first[0].run_id}
    assert runs_of(database_url) == 1
    assert get(running, key=only).run_id != first[0].run_id, "the answer was read, so these are new words"


def running_readers(running: Service) -> int:
    for line in requests.get(f"{running.url}/metrics", timeout=20).text.splitlines():
        if line.startswith("draftstream_open_streams "):
            return int(float(line.split()[1]))
    raise AssertionError


def test_a_get_that_comes_again_after_the_end_of_its_run_gets_the_answer_that_nobody_has_read(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    gate = threading.Event()
    openai.default = (text("One "), wait(gate), text("answer."), finish())
    running = service(openai=openai)
    left(running, "t")
    deadline = time.monotonic() + 20
    while running_readers(running) and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.set()
    while rows(database_url, "SELECT FROM runs WHERE status = 'running'") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert get(running).text == "One answer."
    assert runs_of(database_url) == 1
    assert get(running).text == "One answer."
    assert runs_of(database_url) == 2, "it was read"
    assert request("GET", f"{running.url}/chat?message=Hi").run_id != get(running, thread_id="u").run_id
    assert request("GET", f"{running.url}/chat?message=Hi").status == 200
    assert runs_of(database_url) == 5, "each without a thread has its own"


# ---------------------------------------------------------------------------------------------------------------
# The rule itself


pytestmark = pytest.mark.anyio


async def begun_by(credential: str | None, reads: str | None, again_by: str | None, reads_again: str | None) -> bool:
    async with registry(waits) as runs:
        first = await runs.start("o", HI, begun_by=credential, reads=reads, by_get=True)
        try:
            with suppress(ThreadBusy):
                return await runs.start("o", HI, begun_by=again_by, reads=reads_again, by_get=True) is first
            return False
        finally:
            first.stop(StopCause.USER)


async def test_only_the_credential_that_began_the_run_follows_it() -> None:
    for first, again, follows in (
        (("k", "k"), ("k", "k"), True),
        (("k", None), ("k", None), True),
        ((None, None), (None, None), True),  # of an open service
        (("k", "k"), ("l", "l"), False),
        (("k", "k"), ("l", None), False),  # it may read the run, but has not begun it
        ((None, ""), (None, ""), False),  # a caller who may read nothing
        ((None, None), ("k", "k"), False),
    ):
        assert await begun_by(*first, *again) is follows, (first, again)


async def test_an_answer_that_was_read_is_not_given_again() -> None:
    async with registry(says) as runs:
        first = await runs.start("o", HI, by_get=True)
        while not first.ended:
            await asyncio.sleep(0)
        assert await runs.start("o", HI, by_get=True) is first
        await read(first.follow(None, heartbeat_s=60, write_now=later))
        assert await runs.start("o", HI, by_get=True) is not first


async def test_a_get_comes_again_within_seconds_or_not_at_all() -> None:
    now = 1000.0
    async with registry(waits) as runs:
        runs._repeats._clock = lambda: now
        first = await runs.start("o", HI, by_get=True)
        for _ in range(4):  # as long as it comes again and again
            now += REPEAT_S - 1
            assert await runs.start("o", HI, by_get=True) is first
        now += REPEAT_S + 1
        with pytest.raises(ThreadBusy):
            await runs.start("o", HI, by_get=True)
        first.stop(StopCause.USER)


async def test_what_was_said_in_the_thread_since_makes_it_a_new_chat() -> None:
    async with registry(says) as runs:
        first = await runs.start("o", HI, by_get=True)
        while not first.ended:
            await asyncio.sleep(0)
        between = await runs.start("o", ChatRequest("Something else", "t"))
        while not between.ended:
            await asyncio.sleep(0)
        assert await runs.start("o", HI, by_get=True) is not first


async def test_of_gets_that_come_at_once_each_follows_the_one_run_or_gets_its_refusal() -> None:
    async with registry(waits) as runs:
        got = await asyncio.gather(*(runs.start("o", HI, by_get=True) for _ in range(5)))
        assert len(set(map(id, got))) == 1
        got[0].stop(StopCause.USER)
        wrong = ChatRequest("Hi", "u", "1f1e7774-6f1f-6390-bffe-2da23c4264ef")
        refused = await asyncio.gather(*(runs.start("o", wrong, by_get=True) for _ in range(5)), return_exceptions=True)
        assert {type(one).__name__ for one in refused} == {"UnknownCheckpoint"}
        assert not isinstance(refused[0], Run)


async def test_a_run_that_leaves_memory_leaves_nothing() -> None:
    async with registry(says) as runs:
        for number in range(9):
            await runs.start("o", ChatRequest("Hi", f"t{number}"), by_get=True)
    assert runs._repeats._begun == {}
