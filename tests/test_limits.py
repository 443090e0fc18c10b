"""How often a caller may call: grants, refusals and their ends, alone and beside other processes."""

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests
from conftest import Service
from fault_proxy import FaultProxy
from hypothesis import given
from hypothesis import strategies as st
from openai_server import OpenAIServer, finish, status, text, wait
from sse_client import Stream, chat

from access.limits import DAY_S, MINUTE_S, SLOTS, Limits
from access.shared_limits import FORGET_EXPIRED, READ_OTHERS, READ_RUNNING, exchanging
from chat import RunStarted
from chat.refusals import JITTER_S, LimitExceeded
from store import Store, open_store

SLOT_S = MINUTE_S / SLOTS
POLICY = re.compile(r'"[a-z]+";q=[0-9]+(;qu="[a-z-]+")?(;w=[1-9][0-9]*)?')
LIMIT = re.compile(r'"[a-z]+";r=[0-9]+(;t=[0-9]+)?')


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def new(
    clock: Callable[[], float] = time.time,
    *,
    requests: int | None = None,
    runs: int | None = None,
    tokens: int | None = None,
    everyone: str | None = None,
) -> Limits:
    return Limits(requests_a_minute=requests, runs_at_once=runs, tokens_a_day=tokens, everyone=everyone, clock=clock)


def ask(limits: Limits, owner: str = "o", weight: int = 1) -> None:
    """A chat: the dispatcher counts the request, and the start of its run asks for a place."""
    limits.count_request(owner, weight)
    limits.check_run(owner)


def granted(limits: Limits, owner: str = "o") -> bool:
    try:
        ask(limits, owner)
    except LimitExceeded:
        return False
    return True


def refusal(limits: Limits, owner: str = "o") -> LimitExceeded:
    with pytest.raises(LimitExceeded) as refused:
        ask(limits, owner)
    return refused.value


def use(limits: Limits, tokens: int, owner: str = "o") -> None:
    limits.run_started(owner, "r")
    limits.run_ended(owner, "r", tokens)


# ---------------------------------------------------------------------------------------------------------------
# One process


def test_requests_over_the_limit_are_refused_until_the_minute_is_over() -> None:
    clock = Clock()
    limits = new(clock, requests=3)
    assert [granted(limits) for _ in range(5)] == [True, True, True, False, False]
    assert granted(limits, "another owner")
    error = refusal(limits)
    assert error.limit == "requests"
    assert str(error) == "You have used your 3 requests of the last minute."
    assert MINUTE_S - SLOT_S <= error.retry_after_s <= MINUTE_S + SLOT_S + JITTER_S
    clock.now += error.retry_after_s
    assert granted(limits)


def test_without_a_limit_nothing_is_refused_counted_or_told() -> None:
    limits = new()
    for number in range(1000):
        ask(limits, "o")
        limits.run_started("o", str(number))
    assert limits.headers("o") == []
    assert limits.unpublished() == []


@given(st.integers(1, 20), st.lists(st.floats(0, 20), min_size=1, max_size=200), st.floats(0, 10))
def test_no_more_than_the_limit_is_granted_in_less_than_a_minute_by_a_slot(
    quota: int, pauses: list[float], start: float
) -> None:
    clock = Clock(1_800_000_000.0 + start)
    limits = new(clock, requests=quota)
    times: list[float] = []
    for pause in pauses:
        clock.now += pause
        if granted(limits):
            times.append(clock.now)
    for place, moment in enumerate(times):
        assert sum(moment <= other < moment + MINUTE_S - SLOT_S for other in times[place:]) <= quota


@given(st.integers(1, 20), st.lists(st.floats(0, 9), min_size=1, max_size=60))
def test_who_waits_as_told_is_granted_and_not_much_earlier(quota: int, pauses: list[float]) -> None:
    clock = Clock(1_800_000_000.0 + random.random() * 60)
    limits = new(clock, requests=quota)
    for pause in pauses:
        clock.now += pause
        before = clock.now
        for _ in range(quota + 1):
            try:
                ask(limits, "o")
            except LimitExceeded:
                [(_, _), (_, field)] = limits.headers("o")
                wait_s = int(field.rpartition("t=")[2])
                clock.now = max(before, before + wait_s - 1.001)
                assert not granted(limits)
                clock.now = before + wait_s
                assert granted(limits)
                break


@pytest.mark.parametrize("quota", [1, 7, 60, 600])
def test_a_caller_who_keeps_to_the_pace_is_refused_only_at_the_edge(quota: int) -> None:
    clock = Clock()
    limits = new(clock, requests=quota)
    answers = []
    for _ in range(20 * quota):
        answers.append(granted(limits))
        clock.now += MINUTE_S / quota * 1.001
    assert sum(answers) >= 0.95 * len(answers)


def test_a_refused_request_does_not_count() -> None:
    clock = Clock()
    limits = new(clock, requests=2)
    for _ in range(100):
        granted(limits)
        clock.now += 1.5
    assert sum(granted(limits) for _ in range(3)) <= 2
    assert limits.headers("o")[1][1].startswith('"requests";r=0;t=')


def test_runs_at_once_have_places_that_come_back() -> None:
    limits = new(runs=2)
    for run_id in "ab":
        ask(limits, "o")
        limits.run_started("o", run_id)
    error = refusal(limits)
    assert error.limit == "runs"
    assert 1 <= error.retry_after_s <= 1 + JITTER_S
    assert granted(limits, "another owner")
    limits.run_ended("o", "a", 0)
    assert granted(limits)


def test_the_runs_of_everyone_are_not_limited_but_their_requests_are() -> None:
    limits = new(requests=3, runs=1, everyone="anonymous")
    for run_id in "abc":
        ask(limits, "anonymous")
        limits.run_started("anonymous", run_id)
    assert refusal(limits, "anonymous").limit == "requests"


def test_tokens_of_the_last_day_are_counted_when_a_run_ends() -> None:
    clock = Clock()
    limits = new(clock, tokens=1000)
    use(limits, 999)
    assert granted(limits)
    use(limits, 500)
    error = refusal(limits)
    assert error.limit == "tokens"
    assert str(error) == "You have used your 1000 tokens of the last day."
    assert DAY_S * (1 - 1 / SLOTS) < error.retry_after_s < DAY_S * (1 + 1 / SLOTS) + JITTER_S
    clock.now += error.retry_after_s
    assert granted(limits)


def test_a_run_that_is_refused_has_counted_as_a_request() -> None:
    limits = new(requests=5, runs=1)
    ask(limits, "o")
    limits.run_started("o", "a")
    assert [refusal(limits).limit for _ in range(6)] == ["runs"] * 4 + ["requests"] * 2
    limits.run_ended("o", "a", 0)
    assert not granted(limits)


def test_used_up_tokens_refuse_runs_and_no_other_request() -> None:
    limits = new(requests=5, tokens=10)
    use(limits, 10)
    limits.count_request("o", 1)
    with pytest.raises(LimitExceeded, match="10 tokens of the last day"):
        limits.check_run("o")
    assert '"requests";r=4;' in told(limits)


def test_a_request_is_granted_while_anything_is_left_whatever_it_weighs() -> None:
    clock = Clock()
    limits = new(clock, requests=1)
    limits.count_request("o", 10)
    error = refusal(limits)
    assert error.retry_after_s <= MINUTE_S + SLOT_S + JITTER_S, "a heavy request is over in a minute, too"
    limits.count_request("o", 0)
    clock.now += error.retry_after_s
    limits.count_request("o", 10)


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from([0, 1, 2, 5, 10])), min_size=1, max_size=100),
)
def test_a_minute_less_a_slot_has_at_most_the_limit_and_the_weight_of_one_request(
    quota: int, requests: list[tuple[float, int]]
) -> None:
    clock = Clock()
    limits = new(clock, requests=quota)
    granted: list[tuple[float, int]] = []
    for pause, weight in requests:
        clock.now += pause
        with suppress(LimitExceeded):
            limits.count_request("o", weight)
            granted.append((clock.now, weight))
    for place, (moment, _) in enumerate(granted):
        window = [weight for at, weight in granted[place:] if moment <= at < moment + MINUTE_S - SLOT_S]
        assert sum(window) < quota + 10
    assert [weight for _, weight in granted if weight == 0] == [weight for _, weight in requests if weight == 0]


def test_the_headers_are_the_drafts() -> None:
    clock = Clock()
    limits = new(clock, requests=60, runs=5, tokens=1000)
    clock.now += 1
    assert limits.headers("o") == [
        (
            "ratelimit-policy",
            '"tokens";q=1000;qu="tokens";w=86400, "requests";q=60;w=60, "runs";q=5;qu="concurrent-requests"',
        ),
        ("ratelimit", '"tokens";r=1000, "requests";r=60, "runs";r=5'),
    ]
    ask(limits, "o")
    limits.run_started("o", "a")
    limits.run_ended("o", "a", 1100)
    limits.run_started("o", "b")
    (_, policy), (_, limit) = limits.headers("o")
    assert all(POLICY.fullmatch(item) for item in policy.split(", "))
    assert all(LIMIT.fullmatch(item) for item in limit.split(", "))
    assert re.fullmatch(r'"tokens";r=0;t=\d+, "requests";r=59;t=6\d, "runs";r=4', limit)
    told = int(limit.partition("t=")[2].partition(",")[0])
    assert refusal(limits).retry_after_s >= told, "Retry-After must not be before the reset"


def test_idle_owners_are_forgotten() -> None:
    clock = Clock()
    limits = new(clock, requests=10, runs=5)
    for number in range(1000):
        ask(limits, f"owner {number}")
    limits.run_started("busy", "a")
    limits.merge_counts((f"elsewhere {number}", "requests", int(clock.now // SLOT_S), 1) for number in range(1000))
    assert "2001 owners" in repr(limits)
    clock.now += MINUTE_S + SLOT_S
    for _ in range(1500):
        granted(limits)
    assert "2 owners" in repr(limits)
    limits.run_ended("busy", "a", 0)
    granted(limits)
    assert "1 owners" in repr(limits)


def test_an_owner_takes_the_same_memory_however_much_it_calls() -> None:
    clock = Clock()
    limits = new(clock, requests=10**9, tokens=10**9)
    for _ in range(5000):
        ask(limits, "o")
        use(limits, 10)
        clock.now += 7.7
    counts = [len(used.ours) for used in limits._tallies["o"].used.values()]
    assert max(counts) <= SLOTS + 2


# ---------------------------------------------------------------------------------------------------------------
# Several processes


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("access.shared_limits.EXCHANGE_S", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def told(limits: Limits, owner: str = "o") -> str:
    return limits.headers(owner)[1][1]


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_two_processes_share_requests_and_tokens(store: Store) -> None:
    clock = Clock(time.time())
    one, two = (new(clock, requests=4, tokens=100) for _ in range(2))
    async with exchanging(one, store), exchanging(two, store):
        ask(one, "o")
        ask(one, "o")
        ask(two, "o")
        use(two, 30)
        use(one, 40)
        await until(lambda: '"requests";r=1;' in told(one) and '"requests";r=1;' in told(two))
        await until(lambda: '"tokens";r=30;' in told(one) and '"tokens";r=30;' in told(two))
        use(one, 10)
        await until(lambda: '"tokens";r=20;' in told(two))
        ask(two, "o")
        await until(lambda: not granted(one))
        assert refusal(one).limit == refusal(two).limit == "requests"
        assert granted(one, "another owner")
        clock.now += MINUTE_S + SLOT_S
        assert granted(one)


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_a_process_that_starts_again_knows_what_was_used(store: Store) -> None:
    before = new(requests=3, tokens=100)
    async with exchanging(before, store):
        ask(before, "o")
        use(before, 150)
    after = new(requests=3, tokens=100)
    async with exchanging(after, store):
        assert '"requests";r=2;' in told(after)
        assert refusal(after).limit == "tokens"


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_runs_of_other_processes_take_places_while_they_hold_their_lease(store: Store) -> None:
    mine, other = new(runs=2), new(runs=2)
    async with exchanging(mine, store), exchanging(other, store):
        ask(mine, "o")
        mine.run_started("o", "run a")
        await store.start_run(RunStarted("o", "a", "run a", 1, "Hi", "m", time.time()))
        await until(lambda: told(other) == '"runs";r=1')
        assert told(mine) == '"runs";r=1', "its own run counts once"
        other.run_started("o", "run b")
        await store.start_run(RunStarted("o", "b", "run b", 1, "Hi", "m", time.time()))
        await until(lambda: told(mine) == '"runs";r=0')
        assert refusal(mine).limit == refusal(other).limit == "runs"
        mine.run_ended("o", "run a", 0)
        assert told(mine) == '"runs";r=1', "though its row still says that it runs"
        # The other process dies: nobody renews the lease.
        await store.fetch("UPDATE runs SET leased_until = now() - interval '1 s' WHERE run_id = 'run b'")
        await until(lambda: told(mine) == '"runs";r=2')
    assert await store.fetch("SELECT * FROM limit_counts") == [], "runs at once alone write nothing"


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_the_database_being_away_refuses_nobody(database_url: str) -> None:
    async with (
        FaultProxy(database_url) as proxy,
        open_store(proxy.dsn, queue_size=100, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store,
    ):
        one, two = new(requests=4, runs=2), new(requests=4, runs=2)
        async with exchanging(one, store), exchanging(two, store):
            two.run_started("o", "run a")
            await store.start_run(RunStarted("o", "a", "run a", 1, "Hi", "m", time.time()))
            ask(two, "o")
            await until(lambda: '"requests";r=3;' in told(one) and '"runs";r=1' in told(one))
            proxy.refuse = True
            await proxy.reset()
            await until(lambda: '"runs";r=2' in told(one))
            assert [granted(one) for _ in range(4)] == [True, True, True, False], "the last known counts still hold"
            proxy.refuse = False
            await until(lambda: '"requests";r=0;' in told(two) and '"runs";r=1' in told(one))


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_a_frozen_database_does_not_pile_up_writes_or_hold_up_the_end(database_url: str) -> None:
    async with (
        FaultProxy(database_url) as proxy,
        open_store(proxy.dsn, queue_size=100, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store,
    ):
        one = new(requests=1000)
        async with exchanging(one, store):
            proxy.frozen = True
            for _ in range(50):
                ask(one, "o")
                await asyncio.sleep(0)
            await until(lambda: store._writer.newest_unsaved("") is not None)
            assert store._writer.waiting <= 1
        proxy.frozen = False
        await proxy.reset()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("limits")]


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_counts_that_a_full_queue_has_no_place_for_are_told_later(database_url: str) -> None:
    async with (
        FaultProxy(database_url) as proxy,
        open_store(proxy.dsn, queue_size=2, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store,
    ):
        one, two = new(requests=4), new(requests=4)
        async with exchanging(one, store), exchanging(two, store):
            proxy.frozen = True
            for number in range(3):  # one in the writer's hand, and two behind it
                store._writer.put_nowait(f"t{number}", [FORGET_EXPIRED()])
                await asyncio.sleep(0)
            ask(one, "o")
            await until(lambda: one._unpublished == set())
            proxy.frozen = False
            await proxy.reset()
            await until(lambda: '"requests";r=3;' in told(two))


@pytest.mark.anyio
@pytest.mark.usefixtures("often")
async def test_expired_counts_are_deleted(store: Store) -> None:
    old = new(Clock(time.time() - 2 * MINUTE_S), requests=5)
    async with exchanging(old, store):
        ask(old, "o")
    one = new(requests=5)
    async with exchanging(one, store):
        ask(one, "p")
    assert [row["owner"] for row in await store.fetch("SELECT owner FROM limit_counts")] == ["p"]


@pytest.mark.anyio
async def test_without_a_limit_there_is_no_exchange(store: Store) -> None:
    async with exchanging(new(), store):
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("limits")]


@pytest.mark.anyio
async def test_the_reads_use_their_indexes(store: Store) -> None:
    counts = """INSERT INTO limit_counts
        SELECT 'o' || n, 'requests', n, 'p', 1, now() - interval '1 h', now() + interval '1 h'
        FROM generate_series(1, 20000) n"""
    runs = """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at)
        SELECT 'r' || n, 'o', 't' || n, 1, 'running', 'm', now() FROM generate_series(1, 20000) n"""
    end = "UPDATE runs SET status = 'completed'"
    for sql in (counts, runs, end, "ANALYZE limit_counts", "ANALYZE runs"):
        await store.fetch(sql)
    plan = "\n".join(row[0] for row in await store.fetch(f"EXPLAIN {READ_OTHERS}", "me", 11.0))
    assert "limit_counts_changed" in plan
    assert "Seq Scan" not in plan
    plan = "\n".join(row[0] for row in await store.fetch(f"EXPLAIN {READ_RUNNING}", ["r1"]))
    assert "runs_running" in plan


def test_a_caller_who_calls_too_often_is_told_when_to_come_back(
    service: Callable[..., Service], openai: OpenAIServer
) -> None:
    running = service(openai=openai, REQUESTS_PER_MINUTE="6", RUNS_PER_OWNER="1", TOKENS_PER_DAY="1000")
    gate = threading.Event()
    openai.reply(text("one"), wait(gate), finish())
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(chat, running.url, "Hi")
        while not openai.requests:
            time.sleep(0.01)
        busy = chat(running.url, "Hi too")
        assert (busy.status, busy.problem["code"], busy.problem["limit"]) == (429, "rate_limited", "runs")
        gate.set()
        assert first.result().headers["ratelimit-policy"].startswith('"tokens";q=1000')
    key = {"Idempotency-Key": "k"}
    again = [chat(running.url, "Hi", headers=key) for _ in range(3)]
    assert len({stream.run_id for stream in again}) == 1, "one run, of three requests"
    assert chat(running.url, "Hi").status == 200
    refused = chat(running.url, "Hi")
    assert (refused.status, refused.problem["limit"]) == (429, "requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 65
    assert '"requests";r=0;t=' in refused.headers["ratelimit"]
    assert requests.get(f"{running.url}/api/threads", timeout=10).status_code == 429
    assert requests.get(f"{running.url}/healthz", timeout=10).status_code == 200
    cancel = requests.post(f"{running.url}/api/runs/{again[0].run_id}/cancel", timeout=10)
    assert cancel.status_code == 202, "a run can be stopped whatever was used"
    assert len(openai.requests) == 3


def told_tokens(stream: Stream) -> int:
    """The rest of the day's tokens when the stream began."""
    return int(stream.headers["ratelimit"].partition('"tokens";r=')[2].partition(";")[0].partition(",")[0])


def test_tokens_of_which_the_provider_tells_nothing_are_counted_by_what_was_said(
    service: Callable[..., Service], openai: OpenAIServer
) -> None:
    running = service(openai=openai, TOKENS_PER_DAY="100000")
    openai.reply(status(401))
    assert chat(running.url, "Hi").last["code"] == "model_auth"
    openai.reply(text("Hello"), finish())
    stream = chat(running.url, "Hi")
    assert told_tokens(stream) == 100_000, "nothing was used where the provider took nothing"
    known = told_tokens(chat(running.url, "Hi"))
    assert known == 100_000 - 18, "as the provider says"

    openai.reply(text("word " * 4000), finish(usage=False))
    chat(running.url, "Hi")
    silent = told_tokens(chat(running.url, "Hi"))
    assert 5000 < known - silent < 8000

    gate = threading.Event()
    openai.reply(text("word " * 4000), wait(gate), finish())
    with requests.post(f"{running.url}/api/chat", json={"message": "Hi"}, stream=True, timeout=20) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert any(b"word" in line for line in lines)
        assert requests.post(f"{running.url}{answer.headers['location'][:-7]}/cancel", timeout=20).status_code == 202
        assert any(b'"reason":"cancelled"' in line for line in lines)
    gate.set()
    assert 5000 < silent - told_tokens(chat(running.url, "Hi")) < 8000, "who cancels at the end gets nothing for free"
