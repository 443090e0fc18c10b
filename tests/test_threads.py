"""Threads: listed, searched, named and deleted, over the real service and against the real store."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import requests
from conftest import Service, rows
from openai_server import OpenAIServer, echo, finish, text, tool, wait
from sse_client import chat, request
from test_access import new_key
from test_faults import wait_for
from test_journal import put_back, turn_of
from test_service import history
from test_store import ended, started, texts

from chat import Conflict, Doc, Message, Piece, RunProgress
from chat.refusals import NotFound
from store import FOREVER, Store
from threads.histories import Threads
from threads.search import find_words, marked, pattern
from threads.statements import SEARCH_THREADS
from web.fields import timestamp

Start = Callable[..., Service]
TABLES = ("threads", "runs", "messages", "pieces", "checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture
def quick(service: Start, openai: OpenAIServer) -> Start:
    """A service whose model answers at once, always the same."""
    openai.default = (text("Good day."), finish())
    return lambda **settings: service(openai=openai, **settings)


def call(service: Service, method: str, path: str, body: Any = None, **parameters: str) -> requests.Response:
    return requests.request(method, f"{service.url}{path}", json=body, params=parameters, timeout=20)


def ids(service: Service, **parameters: str) -> list[str]:
    """Of all pages."""
    found: list[str] = []
    while True:
        page = call(service, "GET", "/api/threads", **parameters).json()
        found += [thread["thread_id"] for thread in page["threads"]]
        if page["next_cursor"] is None:
            return found
        parameters["cursor"] = page["next_cursor"]


def left(database_url: str, thread_id: str = "t") -> dict[str, int]:
    """The rows that each table has of the thread."""
    return {
        table: count
        for table in TABLES
        if (count := rows(database_url, f"SELECT count(*) FROM {table} WHERE thread_id ~ '(^|/){thread_id}$'")[0][0])
    }


# ---------------------------------------------------------------------------------------------------------------
# The list


def test_a_walk_through_the_list_neither_skips_nor_repeats_while_threads_are_written(quick: Start) -> None:
    running = quick()
    before = [f"t{number}" for number in range(23)]
    for name in before:
        chat(running.url, "Hello", thread_id=name, stream="items")
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            chat(running.url, "Again", thread_id=before[number % 23], stream="items")
            chat(running.url, "New", stream="items")
            number += 1

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            walks = [ids(running, limit="2")]
            while len(walks) < 5 or len(walks[-1]) == len(walks[0]):
                walks.append(ids(running, limit="2"))
        finally:
            done.set()
        writing.result()
    for walk in walks:
        assert len(set(walk)) == len(walk)
        assert [name for name in walk if name in before] == before[::-1]


@pytest.mark.anyio
async def test_threads_of_one_moment_are_listed_and_found_once_each(store: Store) -> None:
    names = [f"t{number}" for number in range(7)]
    for name in (names[number] for number in (3, 0, 6, 2, 5, 1, 4)):
        await store.start_run(replace(started(name), message="Hello", started_at=1_800_000_000.0))
    while await find_words(store, 10):
        pass
    for words in (None, "hello"):
        walk: list[str] = []
        place = None
        while place is not None or not walk:
            if words is None:
                page, place = await Threads(store, "o").page(2, place)
                walk += [thread["thread_id"] for thread in page]
            else:
                found, place = await Threads(store, "o").search(words, 2, place)
                walk += [thread["thread_id"] for thread in found]
        assert walk == names[::-1]


# ---------------------------------------------------------------------------------------------------------------
# Names


def test_a_title_that_a_person_set_stays(quick: Start) -> None:
    running = quick()
    chat(running.url, "Hello", thread_id="t")
    answer = call(running, "PATCH", "/api/threads/t", {"title": "  Akte <b>7</b> – “Müller” 😀 "})
    assert (answer.status_code, answer.json()["title"]) == (200, "Akte <b>7</b> – “Müller” 😀")
    assert answer.json().keys() == {"thread_id", "title", "created_at", "updated_at"}
    chat(running.url, "And more", thread_id="t")
    assert history(running, "t")["title"] == "Akte <b>7</b> – “Müller” 😀"
    assert ids(running, q="müller") == ["t"]


def test_a_thread_is_named_while_its_run_goes_on(service: Start, openai: OpenAIServer) -> None:
    gate = threading.Event()
    openai.reply(text("Hello"), wait(gate), finish())
    running = service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(chat, running.url, "Hi", thread_id="t")
        wait_for(lambda: openai.requests)
        assert call(running, "PATCH", "/api/threads/t", {"title": "New"}).status_code == 200
        assert history(running, "t")["title"] == "New"
        gate.set()
        assert reply.result().last["saved"]
    assert history(running, "t")["title"] == "New"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/title"),
        ({"title": " "}, "/title"),
        ({"title": "x" * 201}, "/title"),
        ({"title": 7}, "/title"),
        ({"title": None}, "/title"),
        ({"title": "a\nb"}, "/title"),
        ({"title": "a\0b"}, "/title"),
        ({"title": "x", "owner": "y"}, "/owner"),
        (["x"], ""),
    ],
)
def test_what_is_no_title_is_refused(quick: Start, body: Any, pointer: str) -> None:
    running = quick()
    chat(running.url, "Hello", thread_id="t")
    answer = call(running, "PATCH", "/api/threads/t", body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert history(running, "t")["title"] == "Hello"


def test_what_is_not_there_can_be_neither_named_nor_deleted(service: Start) -> None:
    running = service()
    assert call(running, "PATCH", "/api/threads/t", {"title": "x"}).status_code == 404
    assert call(running, "DELETE", "/api/threads/t").status_code == 404
    assert call(running, "DELETE", "/api/threads").json()["errors"][0]["pointer"] == "/before"
    for wrong in (
        "yesterday",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "0001-01-01T00:00:00+14:00",
        "2026-13-01T00:00:00Z",
    ):
        assert call(running, "DELETE", "/api/threads", before=wrong).status_code == 422, wrong
    for wrong in ("", " ", "x" * 201, "a\0b"):
        assert call(running, "GET", "/api/threads", q=wrong).status_code == 422, wrong


# ---------------------------------------------------------------------------------------------------------------
# Deleting


def test_a_deleted_thread_is_gone_with_all_that_it_had(service: Start, openai: OpenAIServer, database_url: str) -> None:
    openai.reply(tool("write_document", {"title": "NDA", "content": "Secret"}), finish("tool_calls"))
    openai.default = (echo(),)
    running = service(openai=openai)
    first = chat(running.url, "Draft", thread_id="t", headers={"Idempotency-Key": "k"})
    chat(running.url, "Other", thread_id="a-t")
    chat(running.url, "More", thread_id="t")
    rows(database_url, "INSERT INTO dead_letters (thread, error, writes) VALUES ('anonymous/t', 'x', 'y') RETURNING 1")
    assert left(database_url).keys() >= {"threads", "runs", "messages", "checkpoints"}
    assert call(running, "DELETE", "/api/threads/t").status_code == 204
    assert left(database_url) == {}
    assert rows(database_url, "SELECT 1 FROM dead_letters") == []
    assert call(running, "GET", "/api/threads/t").status_code == 404
    assert call(running, "GET", f"/api/runs/{first.run_id}/events").status_code == 404, "nor is it in memory"
    came_back = request("GET", f"{running.url}/chat?message=x", headers={"Last-Event-ID": f"{first.run_id}:1"})
    assert came_back.status == 204
    assert ids(running) == ["a-t"]
    again = chat(running.url, "Draft", thread_id="t", headers={"Idempotency-Key": "k"})
    assert again.run_id != first.run_id
    assert "Secret" not in again.text, "the model hears nothing of before"
    assert [run["seq"] for run in history(running, "t")["runs"]] == [1]
    assert "Other" in chat(running.url, "On", thread_id="a-t").text


def test_a_thread_is_deleted_when_its_run_has_ended(service: Start, openai: OpenAIServer, database_url: str) -> None:
    gate = threading.Event()
    openai.reply(text("Hello"), wait(gate), finish())
    processes = service(openai=openai), service(openai=openai)
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(chat, processes[0].url, "Hi", thread_id="t")
        wait_for(lambda: rows(database_url, "SELECT 1 FROM pieces"))
        run_id = history(processes[0], "t")["runs"][0]["run_id"]
        for process in processes:
            refused = call(process, "DELETE", "/api/threads/t")
            assert (refused.status_code, refused.json()["code"]) == (409, "thread_busy")
            assert refused.json()["run_id"] == run_id
            assert call(process, "DELETE", "/api/threads", before="2100-01-01T00:00:00Z").json() == {"deleted": 0}
        gate.set()
        assert reply.result().last["saved"]
    assert call(processes[1], "DELETE", "/api/threads/t").status_code == 204
    assert left(database_url) == {}


def test_what_is_still_queued_of_a_thread_goes_too(quick: Start, database_url: str) -> None:
    """Deleted in the moment in which its run ends, many times over, by two processes."""
    processes = quick(), quick()
    for number in range(20):
        chat(processes[0].url, "Hello", thread_id="t", stream="items")
        assert call(processes[number % 2], "DELETE", "/api/threads/t").status_code == 204
        assert left(database_url) == {}


def test_deleting_and_chatting_at_once_leaves_whole_threads(quick: Start, database_url: str) -> None:
    processes = quick(), quick()
    done = threading.Event()

    def talk(number: int) -> None:
        while not done.is_set():
            stream = chat(processes[number % 2].url, "Hello", thread_id="t", stream="items")
            assert stream.status in (200, 409), stream.problem

    with ThreadPoolExecutor(3) as threads:
        talking = [threads.submit(talk, number) for number in range(3)]
        answers: list[int] = []
        try:
            while answers.count(204) < 20:
                answers.append(call(processes[len(answers) % 2], "DELETE", "/api/threads/t").status_code)
        finally:
            done.set()
        for each in talking:
            each.result()
    assert set(answers) <= {204, 404, 409}
    chat(processes[0].url, "Last", thread_id="t")
    [(runs, newest)] = rows(database_url, "SELECT count(*), max(seq) FROM runs WHERE thread_id = 't'")
    assert runs == newest, "its runs are counted from 1 without a gap"
    told = history(processes[1], "t")
    assert {message["run_id"] for message in told["messages"]} == {run["run_id"] for run in told["runs"]}
    assert rows(database_url, "SELECT 1 FROM pieces") == []
    wait_for(lambda: call(processes[0], "DELETE", "/api/threads/t").status_code == 204)
    assert left(database_url) == {}


@pytest.mark.anyio
async def test_a_thread_is_there_as_soon_as_its_first_run_has_begun(store: Store) -> None:
    for number in range(20):
        store.start_run(started(f"t{number}"))
        assert await Threads(store, "o").summary(f"t{number}")


@pytest.mark.anyio
async def test_nothing_of_a_deleted_thread_comes_back_with_a_process_that_slept(store: Store) -> None:
    runs = [started(seq=seq) for seq in (1, 2)]
    await store.start_run(runs[0])
    await (await store.end_run(ended(runs[0])))
    await store.start_run(runs[1])
    with pytest.raises(Conflict):
        await store.delete_thread("o", "t")
    await store.fetch("UPDATE runs SET leased_until = now() - interval '1 s' WHERE status = 'running'")
    await store.delete_thread("o", "t")
    with pytest.raises(NotFound):
        await Threads(store, "o").history("t")
    pieces: list[tuple[int, Piece]] = [(5, Message("Hello", 0)), (9, Doc("# ND", 1, "d1", "NDA", 1))]
    assert store.save_progress([RunProgress(runs[1], pieces)])
    with pytest.raises(Conflict):
        await (await store.end_run(ended(runs[1])))
    for table in ("threads", "runs", "messages", "pieces"):
        assert await store.fetch(f"SELECT 1 FROM {table}") == []
    with pytest.raises(Conflict):
        await store.start_run(started(seq=3))  # it had read the thread before
    with pytest.raises(NotFound):
        await Threads(store, "o").history("t")
    newer = [started(seq=seq, run_id=f"newer {seq}") for seq in (1, 2)]
    for run in newer:
        await store.start_run(run)
        await (await store.end_run(ended(run)))
    with pytest.raises(Conflict):
        await (await store.end_run(ended(replace(runs[1], seq=3), "Too late")))
    assert await texts(store) == ["Hi", "Hello"] * 2


@pytest.mark.anyio
async def test_a_thread_that_was_updated_since_is_not_old(store: Store) -> None:
    before = datetime.now(UTC)
    run = replace(started(), started_at=(before + timedelta(seconds=1)).timestamp())
    await store.start_run(run)
    await (await store.end_run(ended(run)))
    await store.delete_thread("o", "t", before)
    assert await texts(store) == ["Hi", "Hello"]
    await store.delete_thread("another", "t", FOREVER)
    assert await texts(store) == ["Hi", "Hello"]


def test_a_turn_in_a_journal_stays_away_when_its_thread_was_deleted(database_url: str, tmp_path: Path) -> None:
    put_back(database_url, tmp_path, turn_of("r1", 1), turn_of("r2", 2))
    rows(database_url, "SELECT delete_thread('o', 't', 'infinity')")
    put_back(database_url, tmp_path, turn_of("r1", 1), turn_of("r2", 2))
    assert left(database_url) == {}
    put_back(database_url, tmp_path, turn_of("r3", 1))
    assert left(database_url)["runs"] == 1, "a thread of that name may begin anew"


# ---------------------------------------------------------------------------------------------------------------
# Retention


def age(database_url: str, thread_id: str, days: int) -> None:
    past = f"now() - interval '{days} days'"
    sql = f"UPDATE threads SET updated_at = {past}, created_at = {past} WHERE thread_id = '{thread_id}' RETURNING 1"
    assert len(rows(database_url, sql)) == 1


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-24T09:30:00Z", datetime(2026, 11, 24, 9, 30, tzinfo=UTC)),
        ("2026-11-24t09:30:00.5z", datetime(2026, 11, 24, 9, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-11-24 09:30:00-01:30", datetime(2026, 11, 24, 11, 0, tzinfo=UTC)),
        ("2026-11-24T09:30:00.123456789+01:00", datetime(2026, 11, 24, 8, 30, 0, 123_456, tzinfo=UTC)),
        ("2026-11-24T09:30:00.123456 00:00", datetime(2026, 11, 24, 9, 30, 0, 123_456, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_the_list_tells_it_also_out_of_a_url_that_was_not_escaped(text: str, time: datetime) -> None:
    assert timestamp(text) == time


def test_the_callers_old_threads_are_deleted_and_nobody_elses(quick: Start, database_url: str) -> None:
    mine, theirs = new_key(database_url, "mine"), new_key(database_url, "theirs")
    running = quick()
    for key in (mine, theirs):
        for name in ("old", "older", "new"):
            chat(running.url, "Hello", headers=key.headers, thread_id=f"{key.key_id}-{name}", stream="items")
        age(database_url, f"{key.key_id}-old", 3)
        age(database_url, f"{key.key_id}-older", 300)
    before = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    url = f"{running.url}/api/threads"
    for count in (2, 0):
        answer = requests.delete(url, params={"before": before}, headers=mine.headers, timeout=20)
        assert (answer.status_code, answer.json()) == (200, {"deleted": count})
    for key, names in ((mine, {"new"}), (theirs, {"old", "older", "new"})):
        threads = requests.get(url, headers=key.headers, timeout=20).json()["threads"]
        assert {thread["thread_id"].partition("-")[2] for thread in threads} == names


def test_threads_expire_whoever_they_belong_to(quick: Start, database_url: str) -> None:
    mine, theirs = new_key(database_url, "mine"), new_key(database_url, "theirs")
    running = quick()
    for key in (mine, theirs):
        for name in ("old", "new"):
            chat(running.url, "Hello", headers=key.headers, thread_id=f"{key.key_id}-{name}", stream="items")
        age(database_url, f"{key.key_id}-old", 8)
    running.restart()
    assert len(rows(database_url, "SELECT 1 FROM threads")) == 4, "without a limit they stay"
    quick(THREAD_TTL_DAYS="7")
    quick(THREAD_TTL_DAYS="7")
    wait_for(lambda: len(rows(database_url, "SELECT 1 FROM threads")) == 2)
    assert rows(database_url, "SELECT 1 FROM threads WHERE thread_id LIKE '%-old'") == []


def test_old_threads_are_found_however_many_there_are(quick: Start, database_url: str) -> None:
    """Of pages of 500 and of 5000."""
    fill = """INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
        SELECT '{owner}', 't' || n, 'x', 1, {time}, {time} FROM generate_series(1, {count}) n RETURNING 1"""
    past = "now() - interval '300 days'"
    rows(database_url, fill.format(owner="anonymous", time=past, count=501))
    running = quick()
    before = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    assert call(running, "DELETE", "/api/threads", before=before).json() == {"deleted": 501}
    rows(database_url, fill.format(owner="many", time="now()", count=5001))
    rows(database_url, fill.format(owner="old", time=past, count=1))
    quick(THREAD_TTL_DAYS="7")
    wait_for(lambda: rows(database_url, "SELECT 1 FROM threads WHERE owner = 'old'") == [])
    assert len(rows(database_url, "SELECT 1 FROM threads")) == 5001


# ---------------------------------------------------------------------------------------------------------------
# Search


def found(service: Service, words: str) -> list[dict[str, Any]]:
    threads: list[dict[str, Any]] = call(service, "GET", "/api/threads", q=words).json()["threads"]
    return threads


def test_a_search_finds_titles_and_what_was_said(service: Start, openai: OpenAIServer, database_url: str) -> None:
    draft = (
        "# Mietvertrag über drei Jahre\n\n"
        + "Lorem ipsum. " * 300
        + "Die <b>Kündigungsfrist</b> 😀 beträgt drei Monate (the “Quoted—Term”). "
        + "Dolor. " * 99
    )
    openai.reply(tool("write_document", {"title": "Lease", "content": draft}), finish("tool_calls"))
    openai.default = (text("I can't."), finish())
    running = service(openai=openai)
    chat(running.url, "Bitte ein Vertrag", thread_id="lease")
    chat(running.url, "What of Delaware law?", thread_id="law")
    chat(running.url, "What of Texas law?", thread_id="texas")
    wait_for(lambda: rows(database_url, "SELECT 1 FROM messages WHERE words IS NULL") == [])
    [thread] = found(running, "kündigungsfrist")
    assert (thread["thread_id"], thread["match"]["type"], thread["match"]["item"]) == ("lease", "doc", 0)
    passage, marks = thread["match"]["passage"], thread["match"]["marks"]
    assert [passage[start:end] for start, end in marks] == ["Kündigungsfrist"]
    assert "<b>Kündigungsfrist</b> 😀 beträgt" in passage
    assert len(passage) <= 240
    [thread] = found(running, '"drei monate"')  # not where its first word stands alone
    assert "drei Monate" in thread["match"]["passage"]
    for words, expected in (
        ("law", ["texas", "law"]),
        ("law -texas", ["law"]),
        ("delaware or texas", ["texas", "law"]),
        ('"delaware law"', ["law"]),
        ('"law delaware"', []),
        ("drei monate", ["lease"]),
        ("“drei monate”", ["lease"]),
        ("quoted", ["lease"]),
        ("lease", ["lease"]),
        ("?!", []),
        ("' | ! & ( :*", []),
    ):
        assert ids(running, q=words) == expected, words
    assert ids(running, q="law", limit="1") == ["texas", "law"]
    call(running, "PATCH", "/api/threads/law", {"title": "Quartz"})
    [renamed] = found(running, "quartz")
    assert (renamed["title"], renamed["match"]) == ("Quartz", None)
    call(running, "DELETE", "/api/threads/lease")
    assert found(running, "kündigungsfrist") == []


def test_a_search_finds_its_owners_threads_alone(quick: Start, database_url: str) -> None:
    mine, theirs, nobody = (new_key(database_url, owner) for owner in ("mine", "theirs", "nobody"))
    running = quick()
    for key in (mine, theirs):
        chat(running.url, "Hello", headers=key.headers, thread_id="t", stream="items")
    wait_for(lambda: rows(database_url, "SELECT 1 FROM messages WHERE words IS NULL") == [])
    for words in ("hello", "hello or mine", "-nothing"):
        counts = [
            len(requests.get(f"{running.url}/api/threads", params={"q": words}, headers=key.headers).json()["threads"])
            for key in (mine, theirs, nobody)
        ]
        assert counts == [1, 1, 0], words


@pytest.mark.anyio
async def test_documents_of_any_length_and_script_are_stored_and_the_others_found(store: Store) -> None:
    alphabet = [chr(0x10330 + number) for number in range(26)]  # Gothic: four bytes a letter
    hardest = "-".join(alphabet[i % 26] + alphabet[i // 26 % 26] + alphabet[i // 676 % 26] for i in range(60_000))
    documents = ["x" * 3_000_000, hardest, " ".join(f"w{number}" for number in range(400_000)), "needle"]
    for number, document in enumerate(documents):
        run = started(f"t{number}")
        await store.start_run(run)
        await (await store.end_run(ended(run, document)))
    while await find_words(store, 1):
        pass
    assert await store.fetch("SELECT 1 FROM dead_letters") == []
    assert (await texts(store, "t2"))[1] == documents[2]
    page, _ = await Threads(store, "o").search("needle", 10, None)
    assert [thread["thread_id"] for thread in page] == ["t3"]
    page, _ = await Threads(store, "o").search("w77", 10, None)
    assert [thread["thread_id"] for thread in page] == ["t2"]


@pytest.mark.anyio
async def test_the_search_uses_its_indexes_among_many_owners(store: Store, database_url: str) -> None:
    """Of 200 owners with 50 threads each, all of which say `agreement`; one says `needle`, too."""
    fill = (
        """INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
            SELECT 'o' || n % 200, 't' || n, 'An agreement ' || n, 1, now(), now()
        FROM generate_series(1, 10000) n""",
        """INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete, created_at)
        SELECT 'o' || n % 200, 't' || n, 1, i, 'r', 'user', 'message',
            'the agreement of ' || n || CASE WHEN n = 7 THEN ' needle' ELSE '' END, true, now()
        FROM generate_series(1, 10000) n, generate_series(0, 1) i""",
    )
    words = "UPDATE messages SET words = search_vector(owner, content)"
    connection = await asyncpg.connect(database_url)  # as it takes longer than the store allows
    try:
        for sql in (*fill, words, "VACUUM ANALYZE threads", "VACUUM ANALYZE messages"):
            await connection.execute(sql)
    finally:
        await connection.close()
    for words, count in (("agreement", 50), ("needle", 1)):
        page, _ = await Threads(store, "o7").search(words, 100, None)
        assert len(page) == count
        sql = SEARCH_THREADS
        values = ("'o7'", "'infinity'::timestamptz", "''", "21", f"'{words}'", "'x'", "'mark'")
        for number, value in reversed(list(enumerate(values, 1))):
            sql = sql.replace(f"${number}", value)
        plan = "\n".join(row[0] for row in await store.fetch(f"EXPLAIN (ANALYZE, COSTS off, TIMING off) {sql}"))
        assert "Bitmap Index Scan on messages_search" in plan, plan
        assert "Bitmap Index Scan on threads_search" in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "10000" not in plan, f"it looks at its owner's alone: {plan}"
    page, _ = await Threads(store, "o8").search("needle", 100, None)
    assert page == []


@pytest.mark.anyio
async def test_processes_that_find_words_at_once_do_not_wait_for_each_other(store: Store) -> None:
    for number in range(20):
        await store.start_run(started(f"t{number}"))
    counts = await asyncio.gather(*(find_words(store, 5) for _ in range(4)))
    while await find_words(store, 5):
        pass
    assert sum(counts) <= 20
    assert await store.fetch("SELECT 1 FROM messages WHERE words IS NULL") == []


@pytest.mark.parametrize(
    ("passage", "query", "words"),
    [
        ("An NDA, and a nda.", "nda", ["NDA", "nda"]),
        ("the party's art", "art", ["art"]),
        ("rent or lease", "rent or lease", ["rent", "lease"]),
        ("rent, no pets", "rent -pets", ["rent"]),
        ("rent, no pets", 'rent -"no pets"', ["rent"]),
        ("😀 Straße", "straße", ["Straße"]),
        ("<b>x</b>", "x", ["x"]),
        ("Of (2) parties, for two (2) years.", '"two (2) years"', ["two (2) years"]),
        ("Years: two **(2) Years**", 'two "2 years"', ["two", "2) Years"]),
        ("rent or lease; rent", '"rent or lease"', ["rent or lease"]),
        ("rent", '"" -"', []),
        ("anything", "?!", []),
    ],
)
def test_the_words_of_a_search_are_marked(passage: str, query: str, words: list[str]) -> None:
    assert [passage[start:end] for start, end in marked(passage, query)] == words
    assert pattern(query).startswith("\\")
