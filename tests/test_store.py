"""The store against a real PostgreSQL: order, batches, refused rows, recovery after a fault."""

import asyncio
import gc
import json
import re
import time
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from types import ModuleType

import asyncpg
import pytest
from fault_proxy import FaultProxy

import store as store_room
from access import shared_limits
from chat import LEASE_S, Conflict, Message, RunEnded, RunProgress, RunStarted, RunStatus
from chat.refusals import NotFound
from storage import checkpoints, commits, reads, writer
from storage import statements as sql_statements
from storage.pool import POOL_CONNECTIONS
from storage.sql import Statement, Write
from storage.statements import RENAME_THREAD, end_writes, start_writes
from storage.units import Unit, statements
from storage.writer import QueueFull, Unstorable
from store import Store, StoreUnavailable, open_store, where
from threads import statements as thread_statements
from threads.histories import Threads

pytestmark = pytest.mark.anyio


def started(thread_id: str = "t", seq: int = 1, message: str = "Hi", run_id: str | None = None) -> RunStarted:
    return RunStarted("o", thread_id, run_id or f"run {thread_id} {seq}", seq, message, "m", time.time())


def ended(run: RunStarted, text: str = "Hello") -> RunEnded:
    return RunEnded(
        started=run,
        status=RunStatus.COMPLETED,
        items=[{"item": 0, "role": "assistant", "type": "message", "content": text, "complete": True}],
        reason="stop",
        error=None,
        usage={"input_tokens": 1, "output_tokens": 2},
        checkpoint_id=None,
        ended_at=time.time(),
    )


async def texts(store: Store, thread_id: str = "t") -> list[object]:
    try:
        history = await Threads(store, "o").history(thread_id)
    except NotFound:
        return []
    return [message["content"] async for message in history.messages]


async def test_a_turn_is_there_once_its_future_is_done(store: Store) -> None:
    run = started()
    await store.start_run(run)
    assert await texts(store) == ["Hi"]
    await (await store.end_run(ended(run)))
    assert await texts(store) == ["Hi", "Hello"]
    history = await Threads(store, "o").history("t")
    assert history.thread["title"] == "Hi"
    assert [(entry["status"], entry["usage"]) for entry in history.runs] == [
        ("completed", {"input_tokens": 1, "output_tokens": 2})
    ]
    assert (await store.head("o", "t", None)).last_seq == 1
    with pytest.raises(NotFound):
        await Threads(store, "another owner").history("t")


async def test_a_read_waits_for_what_is_still_queued_of_its_thread(store: Store) -> None:
    for seq in range(1, 20):
        run = started(seq=seq, message=f"{seq}")
        store.start_run(run)
        await store.end_run(ended(run, f"answer {seq}"))
        assert (await store.head("o", "t", None)).last_seq == seq
    assert len(await texts(store)) == 38


async def test_what_is_put_twice_is_stored_once(store: Store) -> None:
    run = started()
    for _ in range(2):
        await store.start_run(run)
        await (await store.end_run(ended(run)))
    await (await store.end_run(ended(run, "something else")))
    assert await texts(store) == ["Hi", "Hello"]


@pytest.mark.parametrize(("poison", "kept"), [("a\0b", b"a\\u0000b"), ("a\ud800b", b"a\\ud800b")])
async def test_a_unit_that_the_database_refuses_is_set_aside_and_the_others_go_on(
    store: Store, poison: str, kept: bytes
) -> None:
    runs = [started(f"t{number}", message=poison if number == 5 else "Hi") for number in range(12)]
    futures = [store.start_run(run) for run in runs]
    async with asyncio.timeout(10):
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [Unstorable if number == 5 else type(None) for number in range(12)]
    letters = await store.fetch("SELECT thread, error, writes FROM dead_letters")
    assert [letter["thread"] for letter in letters] == ["o/t5"]
    assert kept in letters[0]["writes"]
    writes = json.loads(letters[0]["writes"])
    assert [name for name, _ in writes] == ["put_thread", "start_run", "put_item"]
    assert writes[1][1]["run_id"] == "run t5 1", "the row by fields"
    assert len(await store.fetch("SELECT 1 FROM threads")) == 11


async def test_a_unit_that_is_refused_after_its_caller_has_left_does_not_end_the_writer(store: Store) -> None:
    [first, *_] = start_writes(started(message="a\0b"))
    left = asyncio.create_task(store.write("t", [first]))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait({left})
    async with asyncio.timeout(10):
        await store.start_run(started("t2"))
    assert len(await store.fetch("SELECT 1 FROM dead_letters")) == 1


async def test_a_read_that_is_given_up_leaves_nothing_behind(database_url: str) -> None:
    async with (
        FaultProxy(database_url) as proxy,
        open_store(proxy.dsn, queue_size=10, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store,
    ):
        await store.ping()
        proxy.frozen = True
        read = asyncio.create_task(store.ping())
        await proxy.holding.wait()
        read.cancel()
        await asyncio.wait({read})
        gc.collect()  # an exception that nobody retrieved is reported now, and fails the test
        proxy.frozen = False
        await proxy.reset()


async def test_a_second_run_in_one_place_is_refused_and_changes_nothing(store: Store) -> None:
    first, second = started(run_id="first"), started(run_id="second", message="Me too")
    await store.start_run(first)
    with pytest.raises(Conflict):
        await store.start_run(second)
    with pytest.raises(Conflict):
        await (await store.end_run(ended(second, "Mine")))
    await (await store.end_run(ended(first)))
    assert await texts(store) == ["Hi", "Hello"]


async def test_a_lease_and_its_renewal_are_as_long_as_the_vocabulary_says(store: Store) -> None:
    left = "SELECT extract(epoch FROM leased_until - now())::float8 AS s FROM runs"
    run = started()
    await store.start_run(run)
    for _ in range(2):
        [row] = await store.fetch(left)
        assert LEASE_S - 5 < row["s"] <= LEASE_S
        await store.fetch("UPDATE runs SET leased_until = now()")
        await store.renew_leases([run.run_id])


async def test_a_process_that_slept_through_its_lease_stores_nothing(store: Store) -> None:
    slept = started(run_id="slept")
    await store.start_run(slept)
    head = await store.head("o", "t", None)
    assert (head.running, head.last_seq) == ("slept", 1)
    await store.fetch("UPDATE runs SET leased_until = now() - interval '1 s'")
    head = await store.head("o", "t", None)
    assert head.running is None
    assert [lost.run_id for lost in head.lost] == ["slept"]
    newer = RunStarted("o", "t", "newer", 2, "On", "m", time.time(), lost=[("slept", 3)])
    await store.start_run(newer)
    with pytest.raises(Conflict):
        await (await store.end_run(ended(slept, "Too late")))
    await (await store.end_run(ended(newer, "In time")))
    assert await texts(store) == ["Hi", "On", "In time"]
    history = await Threads(store, "o").history("t")
    assert [run["status"] for run in history.runs] == ["interrupted", "completed"]


async def test_a_full_queue_refuses_a_start(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:  # noqa: SIM117  # it outlives the store
        async with open_store(
            proxy.dsn, queue_size=4, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            proxy.refuse = True
            await proxy.reset()
            runs = [started(f"t{number}") for number in range(2)]
            for run in runs:
                store.start_run(run)
                await asyncio.sleep(0.01)
            with pytest.raises(QueueFull):
                store.start_run(started("one too many"))
            futures = [await store.end_run(ended(run)) for run in runs]
            proxy.refuse = False
            await asyncio.gather(*futures)
            await store.start_run(started("last"))


@pytest.mark.parametrize("fault", ["reset", "freeze"])
async def test_nothing_is_lost_or_doubled_when_the_database_goes_away(database_url: str, fault: str) -> None:
    async with FaultProxy(database_url) as proxy:  # noqa: SIM117  # it outlives the store
        async with open_store(
            proxy.dsn, queue_size=1000, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=20
        ) as store:
            await store.start_run(started("before"))
            if fault == "freeze":
                proxy.frozen = True
            else:
                proxy.refuse = True
                await proxy.reset()
            futures = [store.start_run(started(f"t{number}")) for number in range(100)]
            with pytest.raises(StoreUnavailable):
                await store.head("o", "t5", None)
            with pytest.raises(StoreUnavailable):
                await store.ping()
            assert not any(future.done() for future in futures)
            proxy.frozen = proxy.refuse = False
            await proxy.reset()
            await asyncio.wait_for(asyncio.gather(*futures), 20)
            assert len(await store.fetch("SELECT 1 FROM threads")) == 101
            assert len(await store.fetch("SELECT 1 FROM messages")) == 101


async def test_connections_that_the_network_has_swallowed_are_given_up_for_new_ones(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:  # noqa: SIM117  # it outlives the store
        async with open_store(
            proxy.dsn, queue_size=10, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            await store.start_run(started("before"))
            await store.ping()
            proxy.swallow()
            async with asyncio.timeout(20):
                await store.start_run(started("after"))
                for _ in range(POOL_CONNECTIONS):  # each read gives one up
                    with suppress(StoreUnavailable):
                        await store.ping()
                await store.ping()
            assert len(await store.fetch("SELECT 1 FROM threads")) == 2


async def test_a_commit_whose_answer_was_lost_is_done_once(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:  # noqa: SIM117  # it outlives the store
        async with open_store(
            proxy.dsn, queue_size=1000, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            for seq in (1, 2):
                run = started(seq=seq)
                proxy.lose_answer_to = b"COMMIT"
                await store.start_run(run)
                assert proxy.lose_answer_to is None
                proxy.lose_answer_to = b"COMMIT"
                await (await store.end_run(ended(run)))
            assert await texts(store) == ["Hi", "Hello", "Hi", "Hello"]
            assert await store.fetch("SELECT 1 FROM dead_letters") == []


async def test_what_waits_is_bounded_in_bytes_too(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:  # noqa: SIM117  # it outlives the store
        async with open_store(
            proxy.dsn, queue_size=1000, queue_bytes=100_000, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            await store.start_run(started("before"))
            proxy.frozen = True
            run = started("long")
            store.start_run(run)
            end = await store.end_run(ended(run, "x" * 100_000))
            with pytest.raises(QueueFull):
                store.start_run(started("one too many"))
            proxy.frozen = False
            await end
            await store.start_run(started("after"))


@pytest.mark.parametrize(
    ("fault", "healing"),
    [
        ("ALTER DATABASE {} SET default_transaction_read_only = on", "ALTER DATABASE {} RESET ALL"),
        ("ALTER DATABASE {} CONNECTION LIMIT 0", "ALTER DATABASE {} CONNECTION LIMIT -1"),
    ],
    ids=["read-only", "too many connections"],
)
async def test_a_database_that_takes_no_writes_for_a_while_loses_nothing(
    postgres: str, fault: str, healing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a role that is not the superuser, for whom limits don't hold."""
    admin = await asyncpg.connect(postgres)
    await admin.execute("CREATE ROLE ordinary LOGIN")
    await admin.execute("CREATE DATABASE ordinary OWNER ordinary")
    dsn = postgres.replace("//postgres@/postgres", "//ordinary@/ordinary")
    try:
        async with open_store(dsn, queue_size=1000, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store:
            await store.start_run(started("before"))
            await admin.execute(fault.format("ordinary"))
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ordinary'")
            futures = [store.start_run(started(f"t{number}")) for number in range(100)]
            async with asyncio.timeout(20):
                while not any(record.name == "draftstream.writer" for record in caplog.records):
                    await asyncio.sleep(0.01)
            assert not any(future.done() for future in futures)
            await admin.execute(healing.format("ordinary"))
            await asyncio.wait_for(asyncio.gather(*futures), 20)
            assert len(await store.fetch("SELECT 1 FROM runs")) == 101
            assert await store.fetch("SELECT 1 FROM dead_letters") == []
        went, came = [record.getMessage() for record in caplog.records if record.name == "draftstream.writer"]
        assert went.startswith("the database can't be written to (")
        assert went.endswith("; units that wait: 100")
        assert came == "the database can be written to again"
    finally:
        await admin.execute("DROP DATABASE ordinary WITH (FORCE)")
        await admin.execute("DROP ROLE ordinary")
        await admin.close()


async def test_leaving_empties_the_queue(database_url: str) -> None:
    async with open_store(
        database_url, queue_size=1000, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
    ) as store:
        for number in range(300):
            store.start_run(started(f"t{number}"))
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM runs") == 300
    await connection.close()


async def test_leaving_a_frozen_database_takes_no_longer_than_it_may(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:
        async with asyncio.timeout(15):
            async with open_store(
                proxy.dsn, queue_size=10, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=0.5
            ) as store:
                proxy.frozen = True
                future = store.start_run(started())
        assert not future.done() or future.cancelled()


async def test_statements_of_a_kind_go_together_and_others_keep_their_place() -> None:
    future = asyncio.get_running_loop().create_future()
    units = [Unit(f"o/{name}", start_writes(started(name)), future) for name in "ab"]
    assert [len(rows) for _, rows in statements(units)] == [2, 2, 2]
    rename = Unit("o/t", [RENAME_THREAD("o", "t", "x")], future)
    assert [len(rows) for _, rows in statements([units[0], rename, units[1]])] == [1, 1, 1, 1, 1, 1, 1]


def statements_of(module: ModuleType) -> list[Statement[...]]:
    """Those of its global names and of its groups."""
    values = list(vars(module).values())
    groups = [value for value in values if isinstance(value, tuple | list)]
    return [value for value in [*values, *chain(*groups)] if isinstance(value, Statement)]


WITH_STATEMENTS = (sql_statements, checkpoints, writer, commits, thread_statements, shared_limits)
ALL_STATEMENTS = {statement for module in WITH_STATEMENTS for statement in statements_of(module)}


def test_each_statement_has_a_name_of_its_own_and_a_field_for_each_argument() -> None:
    by_name = {statement.name: statement for statement in ALL_STATEMENTS}
    assert len(by_name) > 20
    assert len(by_name) == len(ALL_STATEMENTS)
    for statement in by_name.values():
        fields = getattr(statement.row_type, "_fields")  # noqa: B009  # of a NamedTuple, as its type can't say
        assert {int(number) for number in re.findall(r"\$(\d+)", statement.sql)} == set(range(1, len(fields) + 1))


def test_only_statements_that_commute_are_batchable() -> None:
    batchable = {statement.name for statement in ALL_STATEMENTS if statement.batchable}
    assert batchable == {
        *("put_thread", "start_run", "end_run", "put_item", "delete_pieces"),
        *("put_blob", "put_checkpoint", "put_task_write", "replace_task_write", "publish_counts"),
    }


async def test_statements_of_one_thread_stay_in_their_order() -> None:
    """Behind another thread's end, a start with its end, and a start that keeps the items of a lost run."""
    future = asyncio.get_running_loop().create_future()
    other, mine = started("other"), started("mine")
    after_lost = replace(started("t", 2), lost=[("lost", 0)])
    units = [
        Unit("o/other", end_writes(ended(other)), future),
        Unit("o/mine", start_writes(mine), future),
        Unit("o/mine", end_writes(ended(mine)), future),
        Unit("o/t", start_writes(after_lost), future),
    ]
    order = [Write(statement, row) for statement, rows in statements(units) for row in rows]
    assert sorted(map(repr, order)) == sorted(repr(write) for unit in units for write in unit.writes)
    for name in ("other", "mine", "t"):
        writes = [write for unit in units if unit.thread == f"o/{name}" for write in unit.writes]
        assert [write for write in order if write in writes] == writes


async def test_the_hot_reads_use_their_indexes(store: Store) -> None:
    for named, arguments in (
        (thread_statements.LIST_THREADS, "'o', 'infinity'::timestamptz, '', 20"),
        (reads.READ_ITEMS_OF, "'o', 't', '{1}'"),
        (thread_statements.READ_RUNS, "'o', 't', 1000, 20"),
        (thread_statements.READ_SIZES, "'o', 't', '{1}'"),
        (reads.READ_HEADS, "'{o}', '{t}', '{o/t}', '{x}'"),
    ):
        values = [value.strip() for value in arguments.split(",")]
        sql = named
        for number, value in reversed(list(enumerate(values, 1))):
            sql = sql.replace(f"${number}", value)
        await store.fetch("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in await store.fetch(f"EXPLAIN {sql}"))
        assert "Index" in plan
        assert "Seq Scan" not in plan, plan
        assert named in (reads.READ_ITEMS_OF, reads.READ_HEADS, thread_statements.READ_SIZES) or "Sort" not in plan, (
            plan
        )


def test_where_a_database_is_shows_no_secret() -> None:
    assert where("postgresql://user:secret@db.example:5433/app?password=x") == "db.example:5433/app"
    assert where("postgresql://postgres@/x?host=/tmp") == "local-socket/x"


async def other_process(store: Store, *thread_ids: str) -> list[RunStarted]:
    """Runs in progress that have said "Hel", of a process whose lease is over."""
    runs = [started(thread_id) for thread_id in thread_ids]
    for run in runs:
        store.start_run(run)
        store.save_progress([RunProgress(run, [(3, Message("Hel", 0))])])
    await asyncio.sleep(0)
    await store.settled("")
    await store.fetch("UPDATE runs SET leased_until = now() - interval '1 s'")
    return runs


async def test_what_a_lost_run_said_is_kept_in_a_batch_with_the_end_of_another(store: Store) -> None:
    _, other = await other_process(store, "t", "u")
    head = await store.head("o", "t", None)
    assert [lost.items[0]["content"] for lost in head.lost] == ["Hel"]
    await store.end_run(ended(other))
    await store.start_run(replace(started(seq=2), lost=[(lost.run_id, lost.position) for lost in head.lost]))
    assert await texts(store) == ["Hi", "Hel", "Hi"]
    assert await store.fetch("SELECT 1 FROM pieces") == []


async def test_a_run_that_goes_on_from_a_lost_one_is_refused_when_that_one_ends_after_all(store: Store) -> None:
    [late] = await other_process(store, "t")
    head = await store.head("o", "t", None)
    await (await store.end_run(replace(ended(late), checkpoint_id="c")))
    newer = replace(started(seq=2), lost=[(lost.run_id, lost.position) for lost in head.lost])
    start = store.start_run(newer)
    end = await store.end_run(ended(newer, "knows only Hel"))
    with pytest.raises(Conflict):
        await start
    with pytest.raises(Conflict):
        await end
    assert await texts(store) == ["Hi", "Hello"]
    assert (await store.head("o", "t", None)).last_seq == 1
    await store.start_run(started(seq=2, run_id="next"))


async def test_a_run_that_goes_on_from_a_lost_one_is_refused_when_that_one_has_said_more(store: Store) -> None:
    [late] = await other_process(store, "t")
    head = await store.head("o", "t", None)
    assert [lost.position for lost in head.lost] == [3]
    store.save_progress([RunProgress(late, [(5, Message("lo", 0))])])
    newer = replace(started(seq=2), lost=[(lost.run_id, lost.position) for lost in head.lost])
    with pytest.raises(Conflict):
        await store.start_run(newer)
    head = await store.head("o", "t", None)
    assert [lost.items[0]["content"] for lost in head.lost] == ["Hello"]
    again = replace(started(seq=2, run_id="again"), lost=[(lost.run_id, lost.position) for lost in head.lost])
    await store.start_run(again)
    store.save_progress([RunProgress(late, [(6, Message("!", 0))])])
    await store.settled("")
    assert await texts(store) == ["Hi", "Hello", "Hi"], "and nothing more comes of it"
    assert await store.fetch("SELECT 1 FROM pieces") == []


async def test_a_change_that_takes_long_is_committed_alone_and_given_up_in_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must neither be sent again for ever nor fail the units beside it."""
    monkeypatch.setattr(commits, "COMMIT_BUDGET_S", 1.0)
    await (await store.end_run(ended(await begun(store))))
    await store.fetch(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$"
    )
    await store.fetch("CREATE TRIGGER slow AFTER DELETE ON threads FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    deletion = asyncio.create_task(store.delete_thread("o", "t"))
    await asyncio.sleep(0)
    beside = store.start_run(started("u"))
    await deletion
    await beside
    assert await texts(store) == []
    monkeypatch.setattr(store_room, "CHANGE_BUDGET_S", 1.0)
    deletion = asyncio.create_task(store.delete_thread("o", "nobody's"))
    await asyncio.sleep(0)
    await store.start_run(started("v"))
    await deletion  # there is no such thread, so nothing is slow
    await (await store.end_run(ended(await begun(store))))
    with pytest.raises(StoreUnavailable):
        await store.delete_thread("o", "t")
    assert await texts(store) == ["Hi", "Hello"]
    assert await texts(store, "v") == ["Hi"]


async def begun(store: Store) -> RunStarted:
    run = started()
    await store.start_run(run)
    return run
