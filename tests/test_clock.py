"""The times that are stored: by the database's clock, whatever this machine's says."""

import signal
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest
import requests
from conftest import Service, rows
from fault_proxy import FaultProxy
from hypothesis import given
from hypothesis import strategies as st
from openai_server import OpenAIServer
from sse_client import chat

from access.keys import ApiKey
from storage.clock import READ_CLOCK, DatabaseClock
from store import Store

Start = Callable[..., Service]
HOUR_S = 3600.0

# ---------------------------------------------------------------------------------------------------------------
# The estimate

# By how much the database's clock is ahead, how long its answer took, and how late within that it read the clock.
seconds = st.integers(0, 10**6)
comparisons = st.tuples(seconds, seconds, seconds).map(lambda drawn: (drawn[0], max(drawn[1:]), min(drawn[1:])))


@given(st.lists(comparisons, min_size=1))
def test_the_estimate_is_always_within_what_the_last_comparison_allows(history: list[tuple[int, int, int]]) -> None:
    """However the database's clock was set, and however long an answer took."""
    clock = DatabaseClock()
    asked_at = 0
    for ahead, took, late in history:
        read = asked_at + late + ahead
        before = clock._offset
        clock.compared(asked_at, read, asked_at + took)
        assert clock._offset is not None
        least, most = read - asked_at - took, read - asked_at
        assert least <= clock._offset <= most
        if before is not None and least <= before <= most:
            assert clock._offset == before, "it does not jitter"
        asked_at += took


def test_there_is_no_time_before_the_first_comparison() -> None:
    with pytest.raises(RuntimeError, match="has not been read"):
        DatabaseClock().now()


@pytest.mark.anyio
async def test_a_database_with_another_clock_is_followed(store: Store, database_url: str) -> None:
    """As after a failover to a machine whose clock is an hour behind."""
    right = store.now()
    await store.fetch(
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        "$$ SELECT pg_catalog.clock_timestamp() - interval '1 hour' $$"
    )
    name = database_url.partition("@/")[2].partition("?")[0]
    await store.fetch(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    [row] = await connection.fetch(READ_CLOCK)
    assert row["now"] < right - HOUR_S / 2
    await connection.close()
    while store.now() > right - HOUR_S / 2:
        store._reader._pool.make_room()
        await store.ping()
    assert abs(store.now() - row["now"]) < 60


# ---------------------------------------------------------------------------------------------------------------
# The service on a machine with a wrong clock


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    file = tmp_path / "shift"
    file.write_text("3600")
    return file


def clock_of(database_url: str) -> datetime:
    [row] = rows(database_url, "SELECT clock_timestamp() AS now")
    now: datetime = row["now"]
    return now


TIMES = """SELECT created_at AS at FROM threads UNION ALL SELECT updated_at FROM threads
UNION ALL SELECT started_at FROM runs UNION ALL SELECT ended_at FROM runs UNION ALL SELECT created_at FROM messages"""


def test_a_replica_with_a_wrong_clock_stores_right_times_in_their_order(
    service: Start, openai: OpenAIServer, database_url: str, shift: Path
) -> None:
    began = clock_of(database_url)
    wrong = service(openai=openai, app="shifted_app:app", SHIFT=str(shift))
    right = service(openai=openai)
    threads = []
    for turn in range(6):
        replica = (wrong, right)[turn % 2]
        assert chat(replica.url, f"Turn {turn}", thread_id="shared").last["saved"]
        threads.append(chat(replica.url, "Hello").events[0]["thread_id"])
        if turn == 1:
            shift.write_text("-7200")  # the clock is set while the service runs
        if turn == 3:
            wrong.process.send_signal(signal.SIGSTOP)
            chat(right.url, "Meanwhile", thread_id="shared")
            wrong.process.send_signal(signal.SIGCONT)
    ended = clock_of(database_url)
    times = [row["at"] for row in rows(database_url, TIMES)]
    assert None not in times
    assert began <= min(times)
    assert max(times) <= ended
    listed = requests.get(f"{right.url}/api/threads?limit=100", timeout=10).json()["threads"]
    assert [thread["thread_id"] for thread in listed if thread["thread_id"] != "shared"] == threads[::-1]
    runs = rows(database_url, "SELECT started_at, ended_at FROM runs WHERE thread_id = 'shared' ORDER BY seq")
    assert all(earlier["ended_at"] <= later["started_at"] for earlier, later in pairwise(runs))
    asked = [request.body["messages"] for request in openai.requests if len(request.body["messages"]) > 2]
    assert [message["content"] for message in asked[-1] if message["role"] == "user"] == [
        *("Turn 0", "Turn 1", "Turn 2", "Turn 3", "Meanwhile", "Turn 4", "Turn 5")
    ]


def test_a_replica_with_a_wrong_clock_deletes_no_thread_before_its_time(
    service: Start, database_url: str, shift: Path
) -> None:
    shift.write_text(str(30 * 24 * HOUR_S))
    right = service()
    for thread in ("old", "new"):
        assert chat(right.url, "Hello", thread_id=thread).last["saved"]
    rows(
        database_url,
        "UPDATE threads SET created_at = now() - interval '3 days', updated_at = now() - interval '2 days' WHERE thread_id = 'old'",
    )
    service(app="shifted_app:app", SHIFT=str(shift), THREAD_TTL_DAYS="1")
    deadline = time.monotonic() + 30
    while rows(database_url, "SELECT 1 FROM threads WHERE thread_id = 'old'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(rows(database_url, "SELECT 1 FROM threads")) == 1


def test_a_turn_that_waits_for_the_database_keeps_the_time_of_its_end(
    service: Start, database_url: str, proxy: FaultProxy
) -> None:
    running = service(DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="0.2")
    proxy.frozen = True
    assert chat(running.url, "Hello").last["saved"] is False
    ended = clock_of(database_url)
    while (clock_of(database_url) - ended).total_seconds() < 1:
        time.sleep(0.05)
    proxy.frozen = False
    deadline = time.monotonic() + 30
    while not (found := rows(database_url, "SELECT ended_at FROM runs WHERE status = 'completed'")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found[0]["ended_at"] <= ended


def test_replicas_share_a_limit_though_the_clock_of_one_is_wrong(
    service: Start, database_url: str, shift: Path
) -> None:
    right = service(REQUESTS_PER_MINUTE="30")
    wrong = service(app="shifted_app:app", SHIFT=str(shift), REQUESTS_PER_MINUTE="30")
    while chat(right.url, "Hello").status != 429:
        pass
    for _ in range(15):
        if chat(wrong.url, "Hello").status == 429:
            return
        time.sleep(0.5)
    pytest.fail("it does not know what the other one counted")


def test_a_key_ends_by_the_database_s_clock(service: Start, database_url: str, shift: Path) -> None:
    """It has half an hour left, and the clock of the replica is an hour ahead."""
    key = ApiKey.new()
    rows(
        database_url,
        "INSERT INTO access_keys (key_id, secret_hash, owner, name, scopes, expires_at) VALUES "  # our own text
        f"('{key.key_id}', '\\x{key.secret_hash.hex()}', 'a', '', '{{chat,read}}', now() + interval '30 minutes')",
    )
    running = service(app="shifted_app:app", SHIFT=str(shift))
    bearer = {"Authorization": f"Bearer {key}"}
    answer = requests.post(f"{running.url}/api/stream-tokens", headers=bearer, timeout=10)
    assert answer.status_code in (200, 201)
    token = answer.json()
    assert token["expires_in"] > 0
    assert chat(running.url, "Hello", headers=bearer).last["saved"]
