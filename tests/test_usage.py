"""GET /api/usage: an owner's tokens by day and model, whatever happens to the threads."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import requests
from conftest import Service, rows
from openai_server import OpenAIServer
from sse_client import chat
from test_access import Key, execute, new_key

from threads.usage import READ_USAGE

Start = Callable[..., Service]


def usage(running: Service, key: Key, **query: str) -> Any:
    return requests.get(f"{running.url}/api/usage", query, headers=key.headers, timeout=30).json()


def insert_run(
    database_url: str, ended_at: str, usage: str | None, *, model: str = "m", owner: str = "a", thread: str = "past"
) -> None:
    [last] = rows(
        database_url, f"SELECT coalesce(max(seq), 0) AS seq FROM runs WHERE thread_id = '{thread}'"
    )  # a test's own text
    seq = last["seq"] + 1
    execute(
        database_url,
        """INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
        VALUES ($1, $2, '', $3, '2020-01-01', '2020-01-01') ON CONFLICT DO NOTHING""",
        owner,
        thread,
        seq,
    )
    execute(
        database_url,
        """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at, leased_until)
        VALUES ($1, $2, $3, $4, 'running', $5, $6, $6)""",
        f"{thread}-{seq}",
        owner,
        thread,
        seq,
        model,
        datetime.fromisoformat(ended_at),
    )
    execute(
        database_url,
        "UPDATE runs SET status = 'completed', ended_at = started_at, usage = $2::jsonb WHERE run_id = $1",
        f"{thread}-{seq}",
        usage,
    )


def test_days_and_models_are_summed_for_the_owner_alone(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    running = service(openai=openai)
    key, other = new_key(database_url, "a"), new_key(database_url, "b")
    insert_run(database_url, "2026-03-01T23:59:59.999+00:00", '{"input_tokens": 10, "output_tokens": 1}')
    insert_run(database_url, "2026-03-02T00:00:00+00:00", '{"input_tokens": 20, "output_tokens": 2}')
    insert_run(
        database_url,
        "2026-03-02T01:30:00+02:00",  # the day before, in UTC
        '{"input_tokens": 40, "output_tokens": 4, "cached_input_tokens": 30, "reasoning_tokens": 3}',
    )
    insert_run(database_url, "2026-03-02T12:00:00+00:00", '{"input_tokens": 5, "output_tokens": 5}', model="n")
    insert_run(database_url, "2026-03-02T13:00:00+00:00", None)
    insert_run(
        database_url, "2026-03-02T12:00:00+00:00", '{"input_tokens": 7, "output_tokens": 7}', owner="b", thread="b"
    )
    assert usage(running, key, **{"from": "2026-03-01", "to": "2026-03-02"}) == {
        "from": "2026-03-01",
        "to": "2026-03-02",
        "items": [
            _item("2026-03-01", "m", 2, 50, 5, 30, 3),
            _item("2026-03-02", "m", 1, 20, 2, None, None),
            _item("2026-03-02", "n", 1, 5, 5, None, None),
        ],
    }
    assert usage(running, key, **{"from": "2026-03-02", "to": "2026-03-02"})["items"][0]["input_tokens"] == 20
    assert [item["input_tokens"] for item in usage(running, other, to="2026-03-05")["items"]] == [7]
    today = usage(running, key)
    assert today["items"] == []
    assert date.fromisoformat(today["to"]) - date.fromisoformat(today["from"]) == timedelta(days=29)


def test_a_turn_counts_once_whatever_becomes_of_its_thread(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    running = service(openai=openai)
    key = new_key(database_url, "a")
    for message in ("Hi", "And now?"):
        assert chat(running.url, message, thread_id="t", headers=key.headers).last["saved"]
    before = usage(running, key)["items"]
    [row] = before
    assert (row["runs"], row["model"]) == (2, "gpt-test")
    assert row["input_tokens"] > 0
    threads = ["t"]
    for _ in range(3):  # a fork of a fork, too
        fork = f"{running.url}/api/threads/{threads[-1]}/fork"
        threads.append(requests.post(fork, json={}, headers=key.headers, timeout=30).json()["thread_id"])
    assert usage(running, key)["items"] == before, "a copy has used nothing"
    # The clocks of this service and of the database may differ.
    execute(database_url, "UPDATE threads SET created_at = '2020-01-01' WHERE thread_id = $1", threads[-1])
    execute(database_url, "UPDATE threads SET created_at = '2100-01-01' WHERE thread_id = $1", threads[1])
    for thread in ("t", *threads[1:]):
        gone = requests.delete(f"{running.url}/api/threads/{thread}", headers=key.headers, timeout=30)
        assert gone.status_code == 204
        assert usage(running, key)["items"] == before
    assert rows(database_url, "SELECT 1 FROM runs") == []
    again = chat(running.url, "Anew", thread_id="t", headers=key.headers)
    assert again.last["saved"]
    [row] = usage(running, key)["items"]
    assert row["runs"] == 3
    later = requests.post(f"{running.url}/api/threads/t/fork", json={}, headers=key.headers, timeout=30).json()
    execute(database_url, "UPDATE threads SET created_at = '2100-01-01'")
    assert chat(running.url, "Here", thread_id=later["thread_id"], headers=key.headers).last["saved"]
    [row] = usage(running, key)["items"]
    assert row["runs"] == 4, "a run of the fork itself counts, whatever the clocks say"
    only_chats = new_key(database_url, "a", ["chat"])
    assert requests.get(f"{running.url}/api/usage", headers=only_chats.headers, timeout=30).status_code == 403


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ({"from": "2026-3-1"}, "from"),
        ({"from": "2026-02-30"}, "from"),
        ({"to": "yesterday"}, "to"),
        ({"from": "2026-03-02", "to": "2026-03-01"}, "from"),
        ({"from": "2025-02-28", "to": "2026-03-01"}, "from"),
        ({"to": "9999-12-31"}, "to"),
        ({"day": "2026-03-01"}, "day"),
    ],
)
def test_a_wrong_day_is_refused(service: Start, query: dict[str, str], wrong: str) -> None:
    running = service()
    answer = requests.get(f"{running.url}/api/usage", query, timeout=30)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{wrong}"]


def _item(  # the columns of a row
    day: str, model: str, runs: int, read: int, written: int, cached: int | None, reasoning: int | None
) -> dict[str, object]:
    return {
        "day": day,
        "model": model,
        "runs": runs,
        "input_tokens": read,
        "output_tokens": written,
        "cached_input_tokens": cached,
        "reasoning_tokens": reasoning,
    }


def test_today_is_the_databases_day_in_utc(service: Start) -> None:
    running = service()
    today = requests.get(f"{running.url}/api/usage", timeout=30).json()["to"]
    assert abs(datetime.now(UTC).date() - date.fromisoformat(today)) <= timedelta(days=1)


def test_the_runs_of_other_days_are_not_read(database_url: str) -> None:
    """100,000 runs of one owner within a year are summed in 0.3 s."""
    execute(database_url, "ALTER TABLE runs DISABLE TRIGGER USER")
    execute(
        database_url,
        """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at, ended_at, leased_until, usage)
        SELECT i::text, 'a', 't', i, 'completed', 'm', at, at, at, '{"input_tokens": 2, "output_tokens": 1}'
        FROM (SELECT i, timestamptz '2026-01-01 00:00Z' + i * interval '30 minutes' AS at
            FROM generate_series(1, 10000) AS i) AS runs""",
    )
    execute(database_url, "ANALYZE runs")
    first, last = date(2026, 3, 1), date(2026, 3, 7)
    asked = ("a", first, last, datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 8, tzinfo=UTC))
    days = execute(database_url, READ_USAGE, *asked)
    assert [(day["day"], day["runs"], day["input_tokens"]) for day in days] == [
        (first + timedelta(days=number), 48, 96) for number in range(7)
    ]
    plan = "\n".join(row[0] for row in execute(database_url, f"EXPLAIN {READ_USAGE}", *asked))
    assert "runs_usage" in plan, plan
