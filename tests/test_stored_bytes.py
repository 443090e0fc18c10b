"""BYTES_PER_OWNER: the sum is that of the tables, it is taken seldom, and it refuses what would store more."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import requests
from conftest import Service, rows
from fault_proxy import FaultProxy
from openai_server import OpenAIServer, finish, text, tool
from sse_client import chat
from test_access import new_key
from test_metering import wait_until
from test_openapi import held

from access import stored_bytes as room
from access.stored_bytes import StorageFull, StoredBytes
from store import READ_STORED_BYTES, Store, open_store

Start = Callable[..., Service]

# The same without the help of an index, from all rows of the owner.
ALL_BYTES = """SELECT sum(bytes)::bigint AS bytes FROM (
    SELECT coalesce(pg_column_size(content), 0) + coalesce(pg_column_size(words), 0) + 250 FROM messages WHERE owner = $1
    UNION ALL SELECT coalesce(pg_column_size(error), 0) + 250 FROM runs WHERE owner = $1
    UNION ALL SELECT pg_column_size(content) + 250 FROM pieces WHERE owner = $1
    UNION ALL SELECT pg_column_size(checkpoint) + pg_column_size(metadata) + 250
        FROM checkpoints WHERE split_part(thread_id, '/', 1) = $1
    UNION ALL SELECT coalesce(pg_column_size(blob), 0) + 250
        FROM checkpoint_blobs WHERE split_part(thread_id, '/', 1) = $1
    UNION ALL SELECT pg_column_size(blob) + 250 FROM checkpoint_writes WHERE split_part(thread_id, '/', 1) = $1
) AS each (bytes)"""

MESSAGES = """INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete, created_at)
SELECT 'o', 't' || thread, seq, 0, 'r', 'user', 'message', repeat('words ', 200), true, now()
FROM generate_series(1, $1) AS thread, generate_series(1, $2) AS seq ON CONFLICT DO NOTHING"""
THREADS = """INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
SELECT 'o', 't' || thread, 'T', 1, now(), now() FROM generate_series(1, $1) AS thread"""


async def fill(store: Store, threads: int, messages: int) -> None:
    await store.fetch(THREADS, threads)
    await store.fetch(MESSAGES, threads, messages)


class Reads:
    """`fetch` of a store, which counts its calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.count = 0

    async def __call__(self, sql: str, *arguments: object) -> Sequence[Any]:
        self.count += 1
        return await self._store.fetch(sql, *arguments)


async def refused(stored: StoredBytes, owner: str = "o") -> bool:
    try:
        await stored.check(owner)
    except StorageFull:
        return True
    return False


@pytest.mark.anyio
async def test_without_a_limit_nothing_is_read() -> None:
    async def fetch(*_: object) -> Sequence[Any]:
        raise AssertionError

    stored = StoredBytes(fetch, None)
    await stored.check("o")
    stored.forget("o")
    await stored.close()


@pytest.mark.anyio
async def test_a_sum_is_read_in_short_reads_and_only_as_far_as_the_limit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "THREADS_A_READ", 10)
    await fill(store, 45, 2)
    [row] = await store.fetch(ALL_BYTES, "o")
    reads = Reads(store)
    stored = StoredBytes(reads, row["bytes"] + 1)
    assert not await refused(stored)
    assert reads.count == 5
    exact = StoredBytes(store.fetch, row["bytes"])
    with pytest.raises(StorageFull) as full:
        await exact.check("o")
    assert full.value.members == {"limit": row["bytes"], "stored": row["bytes"]}
    assert not await refused(exact, "another owner")
    reads.count = 0
    assert await refused(StoredBytes(reads, 1))
    assert reads.count == 1, "the rest would change nothing"


@pytest.mark.anyio
async def test_a_sum_is_used_for_a_while_and_one_of_a_full_owner_for_less(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, 3, 1)
    reads = Reads(store)
    stored = StoredBytes(reads, 10_000)
    await asyncio.gather(*(stored.check("o") for _ in range(20)))
    assert reads.count == 1, "all wait for one sum"
    await store.fetch(MESSAGES, 3, 50)
    assert not await refused(stored)
    assert reads.count == 1
    stored._sums["o"].read_at -= room.FRESH_S + room.FRESH_TIMES * stored._sums["o"].took_s
    assert await refused(stored)
    assert await refused(stored)
    assert reads.count == 2
    await store.fetch("DELETE FROM messages")
    stored._sums["o"].read_at -= room.FULL_S + room.FULL_TIMES * stored._sums["o"].took_s
    assert not await refused(stored), "without a word of a deletion, as it may be another process's"
    await store.fetch(MESSAGES, 3, 50)
    stored.forget("o")
    assert await refused(stored)
    await store.fetch("DELETE FROM messages")
    stored.forget("o")
    assert not await refused(stored), "a deletion is known at once"
    monkeypatch.setattr(room, "OWNERS", 3)
    for number in range(9):
        await stored.check(f"owner {number}")
    assert len(stored._sums) == 3


@pytest.mark.anyio
async def test_without_the_database_the_last_sum_counts_and_without_one_nothing_is_refused(database_url: str) -> None:
    async with (
        FaultProxy(database_url) as proxy,
        open_store(proxy.dsn, queue_size=100, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store,
    ):
        await fill(store, 3, 3)
        stored = StoredBytes(store.fetch, 100)
        assert await refused(stored)
        proxy.refuse = True
        await proxy.reset()
        stored._sums["o"].read_at -= 1000
        assert await refused(stored)
        assert not await refused(stored, "another owner")
        await stored.close()


@pytest.mark.anyio
async def test_the_sum_uses_indexes_alone(store: Store) -> None:
    await fill(store, 2000, 2)
    for table in ("threads", "messages"):
        await store.fetch(f"ANALYZE {table}")
    plan = "\n".join(row[0] for row in await store.fetch(f"EXPLAIN {READ_STORED_BYTES}", "o", "t100", 200))
    assert "Seq Scan" not in plan


def fill_up(replica: Service, key: dict[str, str]) -> None:
    wait_until(lambda: chat(replica.url, "On", headers=key, thread_id="t").status == 507)


def test_an_owner_who_is_full_reads_exports_and_deletes_and_then_stores_again(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    limit = 30_000
    key, other = new_key(database_url, "o").headers, new_key(database_url, "p").headers
    openai.default = (text("Hello"), finish())
    one, two = (service(openai=openai, BYTES_PER_OWNER=str(limit)) for _ in range(2))
    words = " ".join(f"{number:x}" for number in range(10_000, 13_000))
    openai.reply(tool("write_document", {"title": "T", "content": words}), finish("tool_calls"))
    kept = {**key, "Idempotency-Key": "k"}
    first = chat(one.url, "Hi", headers=kept, thread_id="t")
    assert first.last["saved"]
    wait_until(lambda: rows(database_url, "SELECT 1 FROM messages WHERE words IS NULL") == [])
    for replica in (one, two):
        fill_up(replica, key)
        answer = held(replica, "POST", "/api/chat", json={"message": "Hi"}, headers=key)
        assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (507, "storage_full", limit)
        assert "retry-after" not in answer.headers
        answer = held(replica, "POST", "/api/threads/t/fork", json={}, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
        for path in ("", "/export?format=docx", "/checkpoints", "/documents/d1/diff?from=1&to=1"):
            assert requests.get(f"{replica.url}/api/threads/t{path}", headers=key, timeout=20).status_code == 200
        again = chat(replica.url, "Hi", headers=kept, thread_id="t")
        assert again.run_id == first.run_id, "a request that is sent again gets its run"
        assert chat(replica.url, "Hi", headers=other).status == 200, "another owner"
    title = requests.patch(f"{one.url}/api/threads/t", json={"title": "New"}, headers=key, timeout=20)
    assert title.status_code == 200
    [row] = rows(database_url, ALL_BYTES.replace("$1", "'o'"))
    told = held(one, "POST", "/api/chat", json={"message": "Hi"}, headers=key).json()["stored"]
    assert limit <= told <= row["bytes"]
    assert requests.delete(f"{one.url}/api/threads/t", headers=key, timeout=20).status_code == 204
    assert chat(one.url, "Hi", headers=key).last["saved"], "at once, at the replica that deleted"
    wait_until(lambda: chat(two.url, "Hi", headers=key).status == 200)


def test_a_fork_counts_in_full(service: Start, openai: OpenAIServer, database_url: str) -> None:
    openai.default = (text("Hello"), finish())
    running = service(openai=openai, BYTES_PER_OWNER="60000")
    words = " ".join(f"{number:x}" for number in range(10_000, 12_000))
    openai.reply(tool("write_document", {"title": "T", "content": words}), finish("tool_calls"))
    chat(running.url, "Hi", thread_id="t")
    sizes = []
    for _ in range(10):
        answer = requests.post(f"{running.url}/api/threads/t/fork", json={}, timeout=20)
        [row] = rows(database_url, ALL_BYTES.replace("$1", "'anonymous'"))
        sizes.append(row["bytes"])
        if answer.status_code == 507:
            break
    assert answer.status_code == 507
    assert len(sizes) > 1
    assert sizes[-1] == sizes[-2], "nothing was copied"
    assert max(sizes) < 60_000 + max(second - first for first, second in pairwise(sizes)) + 1000
