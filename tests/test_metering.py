"""What a caller may ask for: every route is metered, and streams, forks and changes at once are bounded for each owner."""

import asyncio
import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from conftest import ROOT, Service, rows
from fault_proxy import FaultProxy
from hypothesis import given
from hypothesis import strategies as st
from openai_server import OpenAIServer, finish, text, tool, wait
from openai_server import status as http_error
from sse_client import chat
from test_access import NOWHERE, Key, new_key
from test_docs import section, table
from test_limits import Clock

from access.budgets import Budget
from access.forks import FAILED_BYTES_A_S, Forks
from access.limits import HOUR_S, Quota
from access.per_owner import STREAM_TOKENS_A_MINUTE
from access.places import Places
from chat import RunStarted
from chat.refusals import LimitExceeded
from storage.changes import CHANGES_AT_ONCE
from storage.reads import READ_THREAD_BYTES
from store import open_store
from web.routes import ROUTES
from web.routing import Route

Start = Callable[..., Service]
IDS = {"{thread_id}": "t", "{run_id}": NOWHERE, "{doc_id}": "d1"}
METERED = [
    (method, path, route)
    for path, methods in ROUTES.items()
    for method, route in methods.items()
    if route.who != "anyone"
]


def at(template: str) -> str:
    return re.sub(r"\{\w+\}", lambda name: IDS[name[0]], template)


def left(answer: requests.Response) -> int:
    """The rest of the minute, as the answer has it."""
    told = re.search(r'"requests";r=(\d+)', answer.headers["ratelimit"])
    assert told is not None, answer.headers
    return int(told[1])


# ---------------------------------------------------------------------------------------------------------------
# Requests by weight


def test_every_weight_is_in_limits_with_its_reason() -> None:
    told = {}
    for call, weight, reason in table(section(ROOT / "docs/limits.md", "## Weights")):
        assert len(reason) > 5
        told[call.strip("`")] = int(weight)
    weights = {f"{method} {path}": route.weight for method, path, route in METERED}
    for method, path, route in METERED:
        weights |= {f"{method} {path}?{name}=": weight for name, weight in route.heavier.items()}
    assert told == weights


def test_every_route_of_a_caller_weighs_something_but_one_and_no_open_route_does() -> None:
    assert [path for _, path, route in METERED if route.weight == 0] == ["/api/runs/{run_id}/cancel"]
    assert {route.weight for methods in ROUTES.values() for route in methods.values() if route.who == "anyone"} == {0}


def test_every_route_that_answers_with_a_stream_has_places_for_its_readers() -> None:
    document = json.loads((ROOT / "web/openapi.json").read_text())
    streams = set()
    for method, path, _ in METERED:
        answers = document["paths"][path][method.lower()]["responses"]
        if answers.get("200", {}).get("$ref", "").endswith("/Stream"):
            streams.add((method, path))
    assert len(streams) > 2
    assert streams == {(method, path) for method, path, route in METERED if route.reader}


def test_each_request_counts_once_by_its_weight_whatever_becomes_of_it(service: Start, database_url: str) -> None:
    both, none = new_key(database_url, "o"), new_key(database_url, "p", ["chat"])
    running = service(REQUESTS_PER_MINUTE="1000")
    counted = Counter[str]()

    def costs(key: Key, method: str, path: str, **more: Any) -> tuple[int, int]:
        answer = requests.request(method, running.url + path, headers=key.headers, timeout=20, **more)
        cost = 1000 - counted[key.key_id] - left(answer)
        counted[key.key_id] += cost
        return answer.status_code, cost

    for method, path, route in METERED:
        assert costs(both, method, at(path)) in [(status, route.weight) for status in (200, 201, 404, 415, 422)], path
        status, cost = costs(none, method, at(path))
        assert cost == route.weight, path
        assert (status == 403) is (route.who in ("read", "admin")), path
    assert costs(both, "GET", "/api/threads?q=a") == (200, 5)
    assert costs(both, "GET", "/api/threads?limit=5&%71=a") == (200, 5)
    assert costs(both, "GET", "/api/threads?limit=5&cursor=q") == (422, 1)
    assert costs(both, "GET", "/api/threads?q=a&q=%ff%") == (400, 5)
    assert costs(both, "HEAD", "/api/threads") == (200, 1)
    assert costs(both, "POST", "/api/chat", json={"message": ""}) == (422, 1)
    assert costs(both, "POST", "/api/chat", data=b"{") == (415, 1)
    assert requests.options(f"{running.url}/api/threads", timeout=10).headers.get("ratelimit") is None
    assert requests.get(f"{running.url}/api/nothing", headers=both.headers, timeout=10).status_code == 404


def test_above_the_limit_nothing_is_answered_but_a_cancel_and_what_is_open(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    key, other = new_key(database_url, "o"), new_key(database_url, "p")
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    running = service(openai=openai, REQUESTS_PER_MINUTE="1")
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(chat, running.url, "Hi", headers=key.headers)
        wait_until(lambda: rows(database_url, "SELECT FROM runs") != [])
        [run_id] = rows(database_url, "SELECT run_id FROM runs")[0]
        for method, path, route in METERED:
            if route.weight:
                answer = requests.request(method, running.url + at(path), headers=key.headers, timeout=20)
                assert (answer.status_code, answer.json()["limit"]) == (429, "requests"), path
                assert 1 <= int(answer.headers["retry-after"]) <= 67
                assert left(answer) == 0
        cancel = requests.post(f"{running.url}/api/runs/{run_id}/cancel", headers=key.headers, timeout=20)
        assert cancel.status_code == 202
        assert first.result().last["reason"] == "cancelled"
        gate.set()
    for path, methods in ROUTES.items():
        if "GET" in methods and methods["GET"].who == "anyone":
            assert requests.get(running.url + path, headers=key.headers, timeout=10).status_code in (200, 302, 307, 308)
    assert requests.get(f"{running.url}/api/threads", headers=other.headers, timeout=10).status_code == 200


def test_an_event_source_that_comes_back_too_often_is_told_when_and_not_refused(
    service: Start, openai: OpenAIServer
) -> None:
    """A 429 would end it for good."""
    openai.default = (text("Hello"), finish())
    running = service(openai=openai, REQUESTS_PER_MINUTE="3")
    run_id = chat(running.url, "Hi").run_id
    events = f"{running.url}/api/runs/{run_id}/events"
    source = {"Last-Event-ID": f"{run_id}:2", "Accept": "text/event-stream"}
    for url in (events, f"{running.url}/chat?message=Hi"):
        answer = requests.get(url, headers=source, timeout=10)
        assert (answer.status_code, answer.text.count("data:")) == (200, 2)
    for url in (events, f"{running.url}/chat?message=Hi"):
        answer = requests.get(url, headers=source, timeout=10)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        [wait_ms] = re.fullmatch(r"retry: (\d+)000\n\n", answer.text).groups()  # type: ignore[union-attr]  # matched
        assert 1 <= int(wait_ms) <= 67
        assert left(answer) == 0
        for headers in ({"Accept": "text/event-stream"}, {"Last-Event-ID": f"{run_id}:2", "Accept": "*/*"}):
            assert requests.get(url, headers=headers, timeout=10).status_code == 429
    metrics = requests.get(f"{running.url}/metrics", timeout=10).text
    assert 'refusals_total{code="rate_limited"} 6.0' in metrics


def test_an_event_source_outlives_a_database_that_is_away_for_a_moment(service: Start, proxy: FaultProxy) -> None:
    running = service(DATABASE_URL=proxy.dsn)
    proxy.frozen = True
    source = {"Last-Event-ID": f"{NOWHERE}:1", "Accept": "text/event-stream"}
    for path in ("/chat?message=Hi", f"/api/runs/{NOWHERE}/events"):
        answer = requests.get(running.url + path, headers=source, timeout=20)
        assert answer.status_code == 200
        assert re.fullmatch(r"retry: [1-5]000\n\n", answer.text)
        answer = requests.get(running.url + path, headers=source | {"Accept": "*/*"}, timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    proxy.frozen = False
    wait_until(lambda: requests.get(f"{running.url}/chat?message=Hi", headers=source, timeout=20).status_code == 204)


def test_many_kinds_of_requests_at_once_over_two_replicas_stay_within_the_bound(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    """Each replica grants at most the limit and the weight of one request, however many come at once."""
    limit, heaviest = 40, 10
    key = new_key(database_url, "o")
    openai.default = (text("Hello"), finish())
    replicas = [service(openai=openai, REQUESTS_PER_MINUTE=str(limit)) for _ in range(2)]
    choices = Random(11)
    asked = [(number, *choices.choice(METERED)) for number in (0, 1) for _ in range(120)]
    choices.shuffle(asked)

    def weigh(number: int, method: str, path: str, route: Route) -> tuple[int, int]:
        body = {"message": "Hi"} if path == "/api/chat" else None
        url = replicas[number].url + at(path)
        answer = requests.request(method, url, headers=key.headers, json=body, timeout=60)
        return number, 0 if answer.status_code == 429 else route.weight

    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda call: weigh(*call), asked))
    for number in (0, 1):
        granted = sum(weight for at_replica, weight in answers if at_replica == number)
        assert 1 <= granted < limit + heaviest
    assert sum(weight for _, weight in answers) >= limit


# ---------------------------------------------------------------------------------------------------------------
# Streams


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=60), st.integers(1, 5))
def test_places_come_back_and_no_owner_has_more_than_there_are(steps: list[tuple[str, bool]], at_once: int) -> None:
    places = Places("streams", "open streams", at_once)
    open_places: dict[str, list[Any]] = {"a": [], "b": []}
    for owner, opens in steps:
        if opens:
            place = places.taken(owner)
            if len(open_places[owner]) == at_once:
                with pytest.raises(LimitExceeded, match=f"You have {at_once} open streams"):
                    place.__enter__()
            else:
                place.__enter__()
                open_places[owner].append(place)
        elif open_places[owner]:
            with suppress(KeyError):
                open_places[owner].pop().__exit__(KeyError, KeyError(), None)
        assert all(len(taken) <= at_once for taken in open_places.values())
    for place in (*open_places["a"], *open_places["b"]):
        place.__exit__(None, None, None)
    assert repr(places) == "<Places streams, 0 taken by 0 owners>"


NOBODY: dict[str, str] = {}


@contextmanager
def reader(
    service: Service, path: str, headers: dict[str, str], body: Any = None
) -> Iterator[http.client.HTTPResponse]:
    """A stream whose socket is closed at the end of the block, with whatever is unread."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(service.url).port, timeout=20)
    sent = {**headers, "Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), sent)
    answer = connection.getresponse()
    try:
        yield answer
    finally:
        answer.close()
        connection.close()


@contextmanager
def readers(number: int, service: Service, path: str, headers: dict[str, str]) -> Iterator[list[int]]:
    """The statuses of so many streams at once. The first one is read a little."""
    with ExitStack() as stack:
        answers = [stack.enter_context(reader(service, path, headers)) for _ in range(number)]
        if answers[0].status == 200:
            answers[0].read(20)
        yield [answer.status for answer in answers]


def until_free(places: int, service: Service, path: str, headers: dict[str, str]) -> None:
    """Wait until so many streams of the run can be open beside those that are, and no more."""

    def all_are_free() -> bool:
        with readers(places + 1, service, path, headers) as statuses:
            return statuses == [200] * places + [429]

    wait_until(all_are_free)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_streams_above_the_limit_are_refused_and_each_end_gives_its_place_back(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    key, other = new_key(database_url, "o").headers, new_key(database_url, "p").headers
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    openai.default = (text("Hello"), finish())
    running = service(openai=openai, STREAMS_PER_OWNER="3")
    message = {"message": "Hi"}
    with reader(running, "/api/chat", key, message) as first:
        events = first.headers["location"]
        until_free(2, running, events, key)
        until_free(2, running, events, key)
        with ExitStack() as stack:
            statuses: list[int] = []
            while statuses != [200, 200]:  # those of before may not be gone yet
                stack.close()
                statuses = stack.enter_context(readers(2, running, events, key))
            with reader(running, "/api/chat", key, message) as refused:
                problem = json.loads(refused.read())
                assert (refused.status, problem["code"], problem["limit"]) == (429, "rate_limited", "streams")
                assert problem["detail"] == "You have 3 open streams, which is as many as you may have at once."
                assert int(refused.headers["retry-after"]) >= 1
            assert len(openai.requests) == 1, "no run has started"
            resumes = {**key, "Last-Event-ID": f"{events.split('/')[3]}:1", "Accept": "text/event-stream"}
            comes_back = requests.get(running.url + events, headers=resumes, timeout=10)
            assert re.fullmatch(r"retry: [1-3]000\n\n", comes_back.text)
            assert chat(running.url, "Hi", headers=other).status == 200, "another owner"
        until_free(2, running, events, key)
        openai.reply(http_error(401))
        wait_until(lambda: [event["type"] for event in chat(running.url, "Hi", headers=key).events][1:] == ["error"])
        with ThreadPoolExecutor(8) as threads:  # refusals, ends, and clients that leave, all at once
            list(threads.map(lambda number: leave(running, key, number), range(60)))
        until_free(2, running, events, key)
    gate.set()


def leave(running: Service, key: dict[str, str], number: int) -> None:
    with reader(running, "/api/chat", key, {"message": "Hi" if number % 3 else ""}) as answer:
        answer.read(number % 5 and 10 * number)


@pytest.mark.parametrize(("settings", "expected"), [({"RUNS_PER_OWNER": "1"}, 4), ({"STREAMS_PER_OWNER": "2"}, 2)])
def test_callers_without_a_key_have_as_many_streams_as_they_like_unless_a_number_is_set(
    service: Start, openai: OpenAIServer, settings: dict[str, str], expected: int
) -> None:
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    running = service(openai=openai, **settings)
    with reader(running, "/api/chat", NOBODY, {"message": "Hi"}) as first:
        with readers(3, running, first.headers["location"], NOBODY) as statuses:
            assert [first.status, *statuses].count(200) == expected
        gate.set()
        first.read()


# ---------------------------------------------------------------------------------------------------------------
# Forks


def test_an_owner_has_one_fork_at_a_time_and_so_many_bytes_an_hour() -> None:
    clock = Clock()
    forks = Forks(1000, clock)
    with forks.one("o") as first:
        with pytest.raises(LimitExceeded, match="1 forks in progress"), forks.one("o"):
            pass
        with forks.one("another owner") as other:
            other.copied = 10**9
        first.copied = 999
    with forks.one("o") as last:
        last.copied = 5000
    with pytest.raises(LimitExceeded, match="1000 bytes") as refused, forks.one("o"):
        pass
    assert HOUR_S * 11 / 12 < refused.value.retry_after_s < HOUR_S * 13 / 12 + 5
    clock.now += refused.value.retry_after_s
    with forks.one("o"):
        pass


def test_a_fork_that_fails_counts_by_the_time_that_it_took() -> None:
    clock = Clock()
    forks = Forks(FAILED_BYTES_A_S * 30, clock)
    for _ in range(3):
        with suppress(TimeoutError), forks.one("o"):
            clock.now += 10.0
            raise TimeoutError
    with pytest.raises(LimitExceeded), forks.one("o"):
        pass


def test_the_use_of_few_owners_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("access.budgets.OWNERS", 3)
    budget = Budget(Quota("things", "things", 1, HOUR_S), "You have had your thing.")
    for number in range(9):
        budget.take(f"owner {number}")
    assert repr(budget) == "<Budget things, 3 owners>"
    budget.take("owner 5")
    with pytest.raises(LimitExceeded, match="You have had your thing"):
        budget.take("owner 8")


def test_stream_tokens_are_rows_and_have_a_bound_without_any_setting(service: Start, database_url: str) -> None:
    key, other = new_key(database_url, "o"), new_key(database_url, "p")
    running = service()

    def ask(who: Key) -> int:
        return sessions.request("POST", f"{running.url}/api/stream-tokens", headers=who.headers, timeout=20).status_code

    with requests.Session() as sessions, ThreadPoolExecutor(4) as threads:
        statuses = Counter(threads.map(lambda _: ask(key), range(STREAM_TOKENS_A_MINUTE + 50)))
        assert ask(other) == 201
    assert statuses == {201: STREAM_TOKENS_A_MINUTE, 429: 50}
    assert [row[0] for row in rows(database_url, "SELECT count(*) FROM stream_tokens WHERE owner = 'o'")] == [1000]


THREAD_BYTES = READ_THREAD_BYTES.replace("$1", "'o'").replace("$2", "'t'")


def test_forks_over_the_bytes_of_an_hour_are_refused_without_any_setting_of_requests(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    key, other = new_key(database_url, "o"), new_key(database_url, "p")
    running = service(openai=openai, FORK_BYTES_PER_HOUR="200000")
    words = " ".join(f"{number:x}" for number in range(10_000, 20_000))
    for who in (key, other):
        openai.reply(tool("write_document", {"title": "T", "content": words}), finish("tool_calls"))
        openai.reply(finish())
        chat(running.url, "Hi", headers=who.headers, thread_id="t")

    def fork(who: Key) -> requests.Response:
        return requests.post(f"{running.url}/api/threads/t/fork", headers=who.headers, json={}, timeout=30)

    # The words for the search are stored a moment after the turn, and count as well.
    while rows(database_url, "SELECT 1 FROM messages WHERE words IS NULL"):
        time.sleep(0.05)
    answers = [fork(key) for _ in range(20)]
    made = sum(answer.status_code == 201 for answer in answers)
    assert [answer.status_code for answer in answers] == [201] * made + [429] * (20 - made)
    [row] = rows(database_url, THREAD_BYTES)
    assert made == -(-200_000 // row["bytes"]), "forks that fill the hour, the last of them in part"
    assert answers[-1].json()["limit"] == "forks"
    assert len(rows(database_url, "SELECT 1 FROM threads WHERE owner = 'o'")) == made + 1
    assert fork(other).status_code == 201, "another owner"
    chats = chat(running.url, "Hi", headers=key.headers, thread_id="t")
    assert chats.last["saved"], "only forks are refused"


# ---------------------------------------------------------------------------------------------------------------
# Changes of threads, in the queue of the turns


@pytest.mark.anyio
async def test_the_changes_of_one_owner_leave_places_in_the_queue_for_the_turns_of_others(database_url: str) -> None:
    async with (
        FaultProxy(database_url) as proxy,
        open_store(proxy.dsn, queue_size=20, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store,
    ):
        proxy.frozen = True
        changes = [asyncio.create_task(store.rename_thread("o", f"t{number}", "T")) for number in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = [task for task in changes if task.done()]
        assert len(refused) == 50 - CHANGES_AT_ONCE
        assert {type(task.exception()) for task in refused} == {LimitExceeded}
        other = asyncio.create_task(store.rename_thread("p", "t", "T"))
        turn = store.start_run(RunStarted("p", "a", "run a", 1, "Hi", "m", time.time()))
        proxy.frozen = False
        await proxy.reset()
        await asyncio.gather(turn, other, *(task for task in changes if task not in refused))
        await store.rename_thread("o", "t", "T")
        assert not store._changes._waiting


def test_a_flood_of_renames_by_one_owner_refuses_no_other_owners_chat(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    key, other = new_key(database_url, "o"), new_key(database_url, "p")
    openai.default = (text("Hello"), finish())
    running = service(openai=openai, WRITE_QUEUE_SIZE="24")
    chat(running.url, "Hi", headers=key.headers, thread_id="t")
    stop = threading.Event()

    def flood() -> Counter[int]:
        statuses = Counter[int]()
        with requests.Session() as session:
            while not stop.is_set():
                url = f"{running.url}/api/threads/t"
                statuses[session.patch(url, json={"title": "x"}, headers=key.headers, timeout=20).status_code] += 1
        return statuses

    with ThreadPoolExecutor(24) as threads:
        floods = [threads.submit(flood) for _ in range(24)]
        try:
            turns = [chat(running.url, "Hi", headers=other.headers, thread_id="t") for _ in range(20)]
        finally:
            stop.set()
        statuses = sum((each.result() for each in floods), Counter[int]())
    assert [(turn.status, turn.problem) for turn in turns if turn.status != 200] == []
    assert all(turn.last["saved"] for turn in turns)
    assert statuses.keys() <= {200, 429}
    assert statuses[200] > 20
