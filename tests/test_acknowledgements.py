"""What an acknowledgement rests on: a COMMIT for which a synchronous standby was waited."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import ROOT, folder_for_all
from fault_proxy import FaultProxy
from pooler import Pooler
from standby import GHOST, WAITING, Primary
from test_store import ended, started, texts

import store as store_room
from chat import End
from storage import commits, recovery
from storage.address import Address
from storage.checkpoints import PUT_BLOB
from storage.commits import begin, commit, real_write, transaction
from storage.faults import NotConfirmed, Unconfirmed
from storage.journal import Journal
from storage.recovery import JournaledTurn
from storage.writer import Unstorable
from store import Store, open_store

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def primary(postgres: str) -> Iterator[Primary]:
    with folder_for_all("primary-") as folder:
        primary = Primary(folder)
        yield primary
        primary.leave()


@pytest.fixture
def dsn(primary: Primary) -> Iterator[str]:
    """A database whose commits wait for nobody, until the test says so."""
    yield primary.new(f"acknowledged_{next(NUMBERS)}")
    primary.wait_for("")


@asynccontextmanager
async def opened(dsn: str, journal_dir: Path | None = None) -> AsyncIterator[Store]:
    options = {"queue_size": 100, "queue_bytes": 2**20, "connect_timeout_s": 5, "drain_timeout_s": 5}
    async with open_store(dsn, journal_dir=journal_dir, **options) as store:  # type: ignore[arg-type]
        yield store


class Operator:
    """Reads, and ends the waits of others. Nothing that it does waits for a standby, or is ended for being idle."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.ended: set[int] = set()

    async def waiting(self) -> list[int]:
        return [row["pid"] for row in await self.pool.fetch(WAITING)]

    async def end_waits(self, how: str = "pg_cancel_backend") -> None:
        for pid in await self.waiting():
            await self.pool.fetchval(f"SELECT {how}($1)", pid)
            self.ended.add(pid)

    async def keep_ending_waits(self, how: str = "pg_cancel_backend", every_s: float = 0.02) -> None:
        while True:
            await self.end_waits(how)
            await asyncio.sleep(every_s)

    async def count(self, table: str) -> int:
        return int(await self.pool.fetchval(f"SELECT count(*) FROM {table}"))


@asynccontextmanager
async def operating(dsn: str) -> AsyncIterator[Operator]:
    settings = {"synchronous_commit": "local", "idle_session_timeout": "0"}
    async with asyncpg.create_pool(dsn, min_size=1, max_size=3, server_settings=settings) as pool:
        yield Operator(pool)


@asynccontextmanager
async def ending_waits(operator: Operator, how: str = "pg_cancel_backend") -> AsyncIterator[None]:
    task = asyncio.create_task(operator.keep_ending_waits(how))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while True:
            met = condition()
            if await met if asyncio.iscoroutine(met) else met:
                return
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------
# The writer


@pytest.mark.parametrize(
    "setting",
    [
        "work_mem = '4MB'",
        "client_min_messages = error",
        "synchronous_commit = off",
        "synchronous_commit = local",
        "synchronous_commit = remote_apply",
        "statement_timeout = 50",
        "transaction_timeout = 200",
        "idle_in_transaction_session_timeout = 100",
        "idle_session_timeout = 100",
    ],
)
async def test_a_commit_whose_wait_was_cancelled_is_not_acknowledged_whatever_the_database_sets(
    primary: Primary, dsn: str, setting: str
) -> None:
    async with operating(dsn) as operator:
        name = dsn.partition("@/")[2].partition("?")[0]
        await operator.pool.execute(f"ALTER DATABASE {name} SET {setting}")
        async with opened(dsn) as store:
            primary.wait_for(GHOST)
            run = started()
            futures = [store.start_run(run), await store.end_run(ended(run))]
            cancels = 0

            async def cancelled_often() -> bool:
                nonlocal cancels
                cancels += len(await operator.waiting())
                return cancels > 5 and await operator.count("messages") == 2

            async with ending_waits(operator):
                await until(cancelled_often)
                assert not any(future.done() for future in futures), "it is visible, and on one machine only"
            primary.wait_for("")
            await asyncio.wait_for(asyncio.gather(*futures), 20)
            assert await texts(store) == ["Hi", "Hello"]


@pytest.mark.parametrize("kind", ["a turn", "rows that are there already"])
@pytest.mark.parametrize("fault", ["the server process is ended", "we give up"])
async def test_a_batch_that_is_sent_again_waits_for_the_standby_though_its_rows_are_there(
    primary: Primary, dsn: str, fault: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "we give up":
        monkeypatch.setattr(commits, "COMMIT_BUDGET_S", 0.5)
    async with operating(dsn) as operator, opened(dsn) as store:
        await store.ping()
        primary.wait_for(GHOST)
        if kind == "a turn":
            table, saved = "runs", store.start_run(started())
        else:
            blob = PUT_BLOB("o/t", "", "channel", "1", "bytes", b"value")
            table, saved = "checkpoint_blobs", asyncio.ensure_future(store.write("o/t", [blob]))
        await until(operator.waiting)
        [first] = await operator.waiting()
        if fault != "we give up":
            await operator.end_waits("pg_terminate_backend")

        async def waits_again() -> bool:
            return await operator.count(table) == 1 and bool(set(await operator.waiting()) - {first})

        await until(waits_again)
        assert not saved.done()
        primary.wait_for("")
        await asyncio.wait_for(saved, 20)
        assert await operator.count(table) == 1


async def test_a_pooler_that_changes_its_server_acknowledges_nothing_that_the_new_one_lacks(
    primary: Primary, dsn: str
) -> None:
    """The wait is cancelled, the standby takes over without the rows, and the connection to the pooler stays."""
    new = primary.new(f"acknowledged_{next(NUMBERS)}")
    async with operating(dsn) as operator, Pooler(dsn, new) as pooler, opened(pooler.dsn) as store:
        primary.wait_for(GHOST)
        saved = store.start_run(started())
        async with ending_waits(operator):
            await until(lambda: operator.count("runs"))
            await until(lambda: store.writes_failing_s > 0)
            pooler.switches = True
            assert not saved.done()
        primary.wait_for("")
        await asyncio.wait_for(saved, 20)
    async with operating(new) as operator:
        assert await operator.count("runs") == 1


async def test_leases_are_renewed_while_no_standby_confirms_anything(primary: Primary, dsn: str) -> None:
    async with operating(dsn) as operator, opened(dsn) as store:
        await store.start_run(started())
        primary.wait_for(GHOST)
        stuck = store.start_run(started("other"))
        await until(operator.waiting)
        before = await operator.pool.fetchval("SELECT leased_until FROM runs")
        await asyncio.wait_for(store.renew_leases(["run t 1"]), 20)
        assert await operator.pool.fetchval("SELECT leased_until FROM runs WHERE run_id = 'run t 1'") > before
        assert not stuck.done()
        primary.wait_for("")
        await asyncio.wait_for(stuck, 20)


async def test_connections_that_are_given_up_leave_no_waiting_process(
    primary: Primary, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(commits, "COMMIT_BUDGET_S", 0.3)
    async with operating(dsn) as operator, opened(dsn) as store:
        await store.ping()
        primary.wait_for(GHOST)
        futures = [store.start_run(started(f"t{number}")) for number in range(10)]
        seen: set[int] = set()
        most = 0

        async def given_up_often() -> bool:
            nonlocal most
            waiting = await operator.waiting()
            seen.update(waiting)
            most = max(most, len(waiting))
            return len(seen) > 10

        await until(given_up_often)
        assert most <= 2
        assert store.writes_failing_s > 0.5
        assert not any(future.done() for future in futures)
        primary.wait_for("")
        await asyncio.wait_for(asyncio.gather(*futures), 20)
        assert store.writes_failing_s == 0
        assert await operator.waiting() == []
        assert await operator.count("runs") == 10
    assert [record.getMessage() for record in caplog.records if record.name == "draftstream.writer"] == [
        "a commit is not confirmed, so no turn is acknowledged (COMMIT without an answer: TimeoutError); units that wait: 10",
        "the database can be written to again",
    ]


async def test_a_change_that_no_standby_confirms_is_neither_acknowledged_nor_said_to_be_undone(
    primary: Primary, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the database does not answer afterwards, when a change that was not sent yet is given up."""
    monkeypatch.setattr(commits, "COMMIT_BUDGET_S", 0.2)
    monkeypatch.setattr(Address, "connect_s", 0.2)
    monkeypatch.setattr(store_room, "CHANGE_WAIT_S", 1.0)
    connect, timeouts = asyncpg.connect, []

    async def counting(*arguments: Any, **options: Any) -> asyncpg.Connection:
        try:
            return await connect(*arguments, **options)
        except TimeoutError as timeout:
            timeouts.append(timeout)
            raise

    async with operating(dsn) as operator, FaultProxy(dsn) as proxy, opened(proxy.dsn) as store:
        run = started()
        store.start_run(run)
        await (await store.end_run(ended(run)))
        primary.wait_for(GHOST)
        with pytest.raises(NotConfirmed):
            await store.delete_thread("o", "t")
        assert await operator.count("threads") == 0, "it is done, and on one machine only"
        assert store.waiting == 1
        monkeypatch.setattr(asyncpg, "connect", counting)
        proxy.frozen = True
        await until(lambda: len(timeouts) > 1)
        assert store.waiting == 1
        proxy.frozen = False
        primary.wait_for("")
        await until(lambda: store.waiting == 0)
    assert "gave up" not in caplog.text


async def test_a_turn_that_is_set_aside_twice_is_there_once(primary: Primary, dsn: str) -> None:
    async with operating(dsn) as operator, opened(dsn) as store:
        primary.wait_for(GHOST)
        async with ending_waits(operator):
            refused = store.start_run(started(message="no \0"))
            await until(lambda: len(operator.ended) > 3 or store.writes_failing_s > 1)
            assert not refused.done()
        primary.wait_for("")
        with pytest.raises(Unstorable):
            await asyncio.wait_for(refused, 20)
        assert await operator.count("dead_letters") == 1


async def test_warnings_of_statements_change_nothing_and_one_of_a_commit_costs_another_commit(
    primary: Primary, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(dsn) as store:
        await store.fetch(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE WARNING 'of a trigger'; RAISE NOTICE 'no matter'; RETURN NULL; END $$"
        )
        await store.fetch("CREATE TRIGGER warn AFTER INSERT ON messages FOR EACH ROW EXECUTE FUNCTION warn()")
        await store.start_run(started("a"))
        assert "not confirmed" not in caplog.text
        await store.fetch("DROP TRIGGER warn ON messages")
        await store.fetch(
            "CREATE CONSTRAINT TRIGGER warn AFTER INSERT OR UPDATE ON threads DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION warn()"
        )
        await asyncio.wait_for(store.start_run(started("b")), 20)
        assert (
            caplog.text.count(
                "a commit is not confirmed, so no turn is acknowledged (COMMIT with warning 01000: of a trigger)"
            )
            == 1
        )


async def test_a_commit_that_ends_in_a_rollback_is_none(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await begin(connection, 1.0)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await connection.execute("SELECT 1 / 0")
    [outcome] = await asyncio.gather(commit(connection), return_exceptions=True)
    await connection.close()
    assert isinstance(outcome, Unconfirmed)
    assert not outcome.committed


async def test_the_settings_of_a_transaction_end_with_it(database_url: str) -> None:
    names = ("statement_timeout", "client_min_messages", "synchronous_commit")
    given = {"statement_timeout": "7s", "client_min_messages": "error", "synchronous_commit": "off"}
    connection = await asyncpg.connect(database_url, server_settings=given)
    async with transaction(connection, 3.0):
        inside = [await connection.fetchval(f"SHOW {name}") for name in names]
    assert inside == ["3s", "warning", "on"]
    assert {name: await connection.fetchval(f"SHOW {name}") for name in names} == given
    await connection.close()


async def test_a_real_write_leaves_nothing(store: Store) -> None:
    await store.write("", list(real_write()))
    assert await store.fetch("SELECT 1 FROM deleted_runs") == []


# ---------------------------------------------------------------------------------------------------------------
# Others that acknowledge


async def test_a_stored_run_is_acknowledged_only_after_a_commit_that_was_waited_for(primary: Primary, dsn: str) -> None:
    """Its rows may be those of a writer that is gone, and whose wait was cancelled."""
    async with operating(dsn) as operator, opened(dsn) as other:
        async with opened(dsn) as store:
            run = started()
            primary.wait_for(GHOST)
            store.start_run(run)
            saved = await store.end_run(ended(run))
            async with ending_waits(operator):
                await until(lambda: operator.count("messages WHERE role = 'assistant'"))
            found = await other.run("o", run.run_id)
            assert found is not None
            assert found.last == End(
                "stop", saved=False, checkpoint_id=None, usage={"input_tokens": 1, "output_tokens": 2}
            )
            assert not saved.done()
            primary.wait_for("")
            await asyncio.wait_for(saved, 20)
        found = await other.run("o", run.run_id)
        assert found is not None
        assert isinstance(found.last, End)
        assert found.last.saved


async def test_a_fork_whose_wait_was_cancelled_is_not_acknowledged(primary: Primary, dsn: str) -> None:
    async with operating(dsn) as operator, opened(dsn) as store:
        run = started()
        store.start_run(run)
        await (await store.end_run(ended(run)))
        primary.wait_for(GHOST)
        async with ending_waits(operator):
            with pytest.raises(NotConfirmed):
                await store.fork_thread("o", "t", run.run_id, "copy")
        assert await operator.count("threads") == 2


async def test_a_journal_stays_until_a_standby_has_its_turns(
    primary: Primary, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recovery, "CONFIRM_BUDGET_S", 0.5)
    journal = Journal(tmp_path)
    run = started()
    await journal.append("key", JournaledTurn(ended(run), []).encode())
    journal.close()
    primary.wait_for(GHOST)
    for line in ("1 turns put back", "1 turns were there already"):
        with suppress(store_room.UnsavedTurns):
            async with opened(dsn, tmp_path) as store:
                assert await texts(store) == ["Hi", "Hello"]
        assert line in caplog.text
        assert len(list(tmp_path.glob("*.journal"))) == 1
    assert caplog.text.count("their journals stay for the next start") == 2
    primary.wait_for("")
    async with opened(dsn, tmp_path) as store:
        assert await texts(store) == ["Hi", "Hello"]
    assert list(tmp_path.glob("*.journal")) == []


async def test_the_command_that_revokes_a_key_says_if_no_standby_has_that(primary: Primary, dsn: str) -> None:
    """At a failover to a standby that lacks it, the key would be good again."""
    async with operating(dsn) as operator:
        _, added = await access(dsn, "add", "--owner", "alice")
        key_id = added.split("_")[-2]
        primary.wait_for(GHOST)
        async with ending_waits(operator):
            code, said = await access(dsn, "revoke", key_id)
        assert code == 1
        assert "no standby has confirmed it" in said
        primary.wait_for("")
        code, said = await access(dsn, "revoke", key_id)
        assert code == 0
        assert "is revoked" in said


async def access(dsn: str, *arguments: str) -> tuple[int | None, str]:
    """The exit code, and all that the command wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "access", *arguments),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()
