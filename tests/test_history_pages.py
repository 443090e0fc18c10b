"""A history comes in pages of whole runs, and is read a part at a time."""

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from conftest import Service, rows
from hypothesis import given
from hypothesis import strategies as st
from openai_server import OpenAIServer, finish, text, wait
from sse_client import chat
from test_faults import wait_for

from store import Store
from threads import histories
from threads.histories import HISTORY_BYTES, READ_BYTES, RUN_BYTES, ThreadGone, Threads, UnknownRun

Start = Callable[..., Service]
ADD = """WITH made AS (
    INSERT INTO runs (run_id, owner, thread_id, seq, parent_run_id, status, model, started_at)
    SELECT md5('r' || n)::uuid::text, '{owner}', 't', n, CASE WHEN n > 1 THEN md5('r' || n - 1)::uuid::text END,
        'running', 'm', now() FROM generate_series(1, {runs}) AS n RETURNING run_id, seq
), said AS (
    INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete, created_at)
    SELECT '{owner}', 't', seq, item, run_id, 'user', 'message', repeat('x', {chars}) || seq, true, now()
    FROM made, generate_series(-1, 1) AS item
) INSERT INTO threads SELECT '{owner}', 't', 'T', {runs}, md5('r{runs}')::uuid::text, now(), now()"""


def add(database_url: str, runs: int, chars: int, owner: str = "anonymous") -> list[str]:
    """The thread `t` with so many runs of three items each; their ids."""
    rows(database_url, ADD.format(owner=owner, runs=runs, chars=chars))
    rows(database_url, "UPDATE runs SET status = 'completed', reason = 'stop'")
    return [row[0] for row in rows(database_url, "SELECT run_id FROM runs ORDER BY seq")]


def read(running: Service, thread_id: str = "t", **parameters: str) -> requests.Response:
    return requests.get(f"{running.url}/api/threads/{thread_id}", params=parameters, timeout=60)


def walk(running: Service, **parameters: str) -> list[dict[str, Any]]:
    """The pages, newest first."""
    pages = [read(running, **parameters).json()]
    while (before := pages[-1]["next_before"]) is not None:
        pages.append(read(running, **parameters | {"before": before}).json())
    return pages


def test_a_history_without_parameters_is_whole(service: Start, database_url: str) -> None:
    running = service()
    ids = add(database_url, 30, 10)
    history = read(running).json()
    assert [run["run_id"] for run in history["runs"]] == ids
    assert [message["run_id"] for message in history["messages"]] == [run for run in ids for _ in range(3)]
    assert history["next_before"] is None


@pytest.mark.parametrize("limit", [1, 2, 7, 29, 30, 31, 1000])
def test_the_pages_of_any_size_are_the_whole_history(service: Start, database_url: str, limit: int) -> None:
    running = service()
    add(database_url, 30, 10)
    whole = read(running).json()
    pages = walk(running, limit=str(limit))
    for key in ("runs", "messages"):
        assert [each for page in reversed(pages) for each in page[key]] == whole[key]
    assert all(len(page["runs"]) == limit for page in pages[:-1])
    assert {page["head_run_id"] for page in pages} == {whole["head_run_id"]}
    for page in pages:
        assert {message["run_id"] for message in page["messages"]} == {run["run_id"] for run in page["runs"]}


def test_a_large_history_comes_in_pages_without_being_asked(service: Start, database_url: str) -> None:
    running = service()
    ids = add(database_url, 30, 200_000)
    pages = walk(running)
    assert len(pages) == 5
    assert all(len(page["runs"]) == HISTORY_BYTES // (600_000 + RUN_BYTES) for page in pages[:-1])
    assert [run["run_id"] for page in reversed(pages) for run in page["runs"]] == ids
    [page, *_] = walk(running, limit="1000")
    assert page == pages[0]


def test_a_run_that_is_larger_than_a_page_is_a_page(service: Start, database_url: str) -> None:
    running = service()
    add(database_url, 3, HISTORY_BYTES)
    pages = walk(running)
    assert [len(page["runs"]) for page in pages] == [1, 1, 1]
    assert {len(page["messages"]) for page in pages} == {3}


def test_a_page_before_a_run_that_the_thread_does_not_have_is_refused(service: Start, database_url: str) -> None:
    running = service()
    ids = add(database_url, 3, 1)
    rows(database_url, "INSERT INTO threads SELECT 'anonymous', 'other', 'T', 1, NULL, now(), now()")
    rows(
        database_url,
        "INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at)"
        " VALUES (md5('other')::uuid::text, 'anonymous', 'other', 1, 'running', 'm', now())",
    )
    [(other,)] = rows(database_url, "SELECT md5('other')::uuid::text")
    for before in ("00000000-0000-0000-0000-000000000000", other, "x", "", ids[0].upper()):
        answer = read(running, before=before)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/before"), before
    for limit in ("0", "1001", "-1", "a", "1.5", ""):
        answer = read(running, limit=limit)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/limit"), limit
    assert read(running, "nobody", before=ids[0]).status_code == 404
    assert read(running, before=ids[0]).json()["runs"] == []
    assert read(running, before=ids[0]).json()["next_before"] is None


def test_a_run_in_progress_is_a_part_of_its_page(service: Start, openai: OpenAIServer) -> None:
    running, gate = service(openai=openai), threading.Event()
    openai.reply(text("First."), finish())
    chat(running.url, "Hi", thread_id="t")
    openai.reply(text("Half "), wait(gate), text("and half."), finish())
    with requests.post(
        f"{running.url}/api/chat", json={"message": "More", "thread_id": "t"}, stream=True, timeout=20
    ) as answer:
        wait_for(lambda: "Half " in [message["content"] for message in read(running, limit="1").json()["messages"]])
        page = read(running, limit="1").json()
        assert [(run["status"], run["seq"]) for run in page["runs"]] == [("running", 2)]
        assert [message["content"] for message in page["messages"]] == ["More", "Half "]
        assert page["next_before"] == page["runs"][0]["run_id"]
        gate.set()
        assert b'"end"' in answer.content
    whole = read(running).json()
    assert [message["content"] for message in whole["messages"]] == ["Hi", "First.", "More", "Half and half."]


def test_the_head_of_a_history_is_that_of_a_get(service: Start, database_url: str) -> None:
    running = service()
    add(database_url, 2, 10)
    head = requests.head(f"{running.url}/api/threads/t", timeout=20)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(read(running).content))


@pytest.mark.anyio
async def test_only_a_part_of_a_history_is_read_at_a_time(store: Store, database_url: str) -> None:
    await asyncio.to_thread(add, database_url, 40, 30_000, "o")
    page = await Threads(store, "o").history("t")
    assert (await anext(page.messages))["content"] == "x" * 30_000 + "1"
    await asyncio.to_thread(rows, database_url, "DELETE FROM messages WHERE seq > 6")
    with pytest.raises(ThreadGone):
        [item async for item in page.messages]
    assert READ_BYTES < 40 * 90_000


@pytest.mark.anyio
async def test_a_run_of_another_owner_is_unknown(store: Store, database_url: str) -> None:
    ids = await asyncio.to_thread(add, database_url, 2, 1, "o")
    await asyncio.to_thread(rows, database_url, "INSERT INTO threads SELECT 'other', 't', 'T', 0, NULL, now(), now()")
    with pytest.raises(UnknownRun):
        await Threads(store, "other").history("t", before=ids[0])


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(0, 50_000))
def test_what_fits_is_as_much_as_possible_and_one_run_at_least(sizes: list[int], limit: int) -> None:
    count = histories.fitting(sizes, limit)
    assert count == 0 if not sizes else count >= 1
    needed = [size + RUN_BYTES for size in sizes]
    assert count <= 1 or sum(needed[:count]) <= limit
    assert count == len(sizes) or sum(needed[: count + 1]) > limit


PLACE = """INSERT INTO runs (run_id, owner, thread_id, seq, parent_run_id, status, model, started_at, leased_until)
VALUES ('{run}', 'o', 't', {seq}, {parent}, 'running', 'm', now(), now() + interval '{lease} s')"""


async def a_random_thread(store: Store, made: random.Random) -> int:
    """With branches; runs of every status, some of which said nothing, and some as much as a page."""
    runs = made.randrange(1, 40)
    await store.fetch("INSERT INTO threads SELECT 'o', 't', 'T', $1, NULL, now(), now()", runs)
    for seq in range(1, runs + 1):
        status = made.choice(("completed", "failed", "cancelled", "running", "interrupted"))
        parent = f"'r{made.randrange(1, seq)}'" if seq > 1 and made.random() < 0.9 else "NULL"
        await store.fetch(PLACE.format(run=f"r{seq}", seq=seq, parent=parent, lease=made.choice((-1, 60))))
        items = range(-1, made.randrange(0, 4))
        size = made.choice((0, 10, 1_000, 300_000, 3_000_000))
        await store.fetch(
            """INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete, created_at)
            SELECT 'o', 't', $1::bigint, item, 'r' || $1::bigint, 'user', 'message', repeat('ü', $2::int), true, now()
            FROM unnest($3::int[]) AS item""",
            seq,
            size // len(items) // 2,
            list(items),
        )
        if status == "running":
            await store.fetch(
                """INSERT INTO pieces (run_id, position, owner, thread_id, seq, item, type, content)
                SELECT 'r' || $1::bigint, n, 'o', 't', $1::bigint, 9, 'message', repeat('x', $2::int) FROM generate_series(1, 3) AS n""",
                seq,
                size,
            )
        await store.fetch("UPDATE runs SET status = $2 WHERE run_id = $1", f"r{seq}", status)
    await store.fetch("UPDATE threads SET head_run_id = 'r' || last_seq")
    return runs


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(4))
async def test_the_pages_of_any_thread_are_the_whole_of_it(store: Store, seed: int) -> None:
    """Also while runs begin. A page of several runs is within its bound."""
    made = random.Random(seed)
    runs, threads = await a_random_thread(store, made), Threads(store, "o")
    expected = await store.fetch("SELECT run_id, item, content FROM thread_items ORDER BY seq, item")
    for limit in (None, 1, 3, 1000):
        found: list[tuple[object, ...]] = []
        listed: list[str] = []
        before = None
        while before is not None or not listed:
            page = await threads.history("t", limit, before)
            items = [item async for item in page.messages]
            found[:0] = [(item["run_id"], item["item"], item["content"]) for item in items]
            listed[:0] = [run["run_id"] for run in page.runs]
            size = sum(len(str(item["content"]).encode()) for item in items) + RUN_BYTES * len(page.runs)
            assert len(page.runs) == 1 or size <= HISTORY_BYTES
            assert limit is None or len(page.runs) <= limit
            assert {item["run_id"] for item in items} == {run["run_id"] for run in page.runs}
            before = page.next_before
            runs += 1
            await store.fetch(PLACE.format(run=f"r{runs}", seq=runs, parent="NULL", lease=60))
        known = {row["run_id"] for row in expected}
        assert [run for run in listed if run in known] == [f"r{seq}" for seq in range(1, len(known) + 1)]
        assert found == [tuple(row) for row in expected]
        await store.fetch("DELETE FROM runs WHERE seq > $1", len(known))
        runs = len(known)
