"""Work in the database that nobody waits for any more ends there, too, whatever gave it up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import asyncpg
import pytest
from fault_proxy import FaultProxy
from test_store import started

from storage.closing import Closing, within
from storage.connections import Database
from storage.database import open_connection
from storage.faults import StatementTooSlow, StoreUnavailable, WaitsForLock
from storage.pool import LOCK_LIMIT_S, POOL_CONNECTIONS, SET_LIMITS, STATEMENT_LIMIT_S, ReadPool, open_pool
from store import open_store

pytestmark = pytest.mark.anyio

SLEEP = "SELECT pg_sleep(60)"
SEARCH = "SELECT count(*) FROM generate_series(1, 1000000000) AS n WHERE n::text ~ '(a|b)+c'"
LOCKED = "SELECT count(*) FROM threads"
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
AT_WORK = f"SELECT count(*) {OTHERS} AND state = 'active'"
BACKENDS = f"SELECT count(*) {OTHERS} AND backend_type = 'client backend'"


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[ReadPool]:
    async with open_pool(Database(database_url)) as pool:
        yield pool


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.01)


async def idle(admin: asyncpg.Connection) -> bool:
    count: int = await admin.fetchval(AT_WORK)
    return count == 0


async def at_work(admin: asyncpg.Connection, least: int = 1) -> bool:
    count: int = await admin.fetchval(AT_WORK)
    return count >= least


@asynccontextmanager
async def locked_tables(database_url: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE threads, runs, messages")
        yield
    await connection.close()


async def by_the_server(pool: ReadPool, sql: str) -> None:
    with pytest.raises(StoreUnavailable):
        await pool.fetch(sql)


async def by_our_own_limit(pool: ReadPool, sql: str) -> None:
    """As behind a pooler, where the server has no limit."""

    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
        await connection.fetch(sql)

    with pytest.raises(StoreUnavailable):
        await pool.run(0.2, work)


async def by_its_caller(pool: ReadPool, sql: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.fetch(sql)


async def in_a_transaction(pool: ReadPool, sql: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            await connection.fetch(sql)

    with pytest.raises(StoreUnavailable):
        await pool.run(0.2, work)


@pytest.mark.parametrize("given_up", [by_the_server, by_our_own_limit, by_its_caller, in_a_transaction])
@pytest.mark.parametrize("sql", [SLEEP, SEARCH, LOCKED])
async def test_a_read_that_is_given_up_ends_at_the_server(
    pool: ReadPool,
    admin: asyncpg.Connection,
    database_url: str,
    given_up: Callable[[ReadPool, str], Awaitable[None]],
    sql: str,
) -> None:
    most = 0
    async with locked_tables(database_url):
        reads = asyncio.gather(*(given_up(pool, sql) for _ in range(3 * POOL_CONNECTIONS)), return_exceptions=True)
        while not reads.done():
            most = max(most, await admin.fetchval(BACKENDS))
            await asyncio.sleep(0.01)
        for failure in await reads:
            assert failure is None or isinstance(failure, StoreUnavailable)
        await until(partial(idle, admin))
    assert most <= POOL_CONNECTIONS + 3  # and the one with the locks, and some that are just closing
    assert (await pool.fetch("SELECT 1 AS one"))[0]["one"] == 1


async def test_a_read_that_the_server_ended_leaves_the_connection_usable(pool: ReadPool) -> None:
    [before] = await pool.fetch("SELECT pg_backend_pid()")
    with pytest.raises(StatementTooSlow, match="QueryCanceledError") as failure:
        await pool.fetch(SLEEP)
    assert failure.value.detail == StatementTooSlow.TEXT
    assert await pool.fetch("SELECT pg_backend_pid()") == [before]


async def test_a_read_that_waits_for_a_lock_says_so(pool: ReadPool, database_url: str) -> None:
    async with locked_tables(database_url):
        with pytest.raises(WaitsForLock):
            await pool.fetch(LOCKED)


@pytest.mark.parametrize(
    ("of_role", "expected"), [("0", "900ms"), ("1h", "900ms"), ("901ms", "900ms"), ("900ms", "900ms"), ("50ms", "50ms")]
)
async def test_the_smaller_limit_of_a_role_is_kept(database_url: str, of_role: str, expected: str) -> None:
    async with open_pool(Database(f"{database_url}&statement_timeout={of_role}")) as pool:
        [row] = await pool.fetch("SHOW statement_timeout")
        assert row["statement_timeout"] == expected


async def test_no_limit_is_set_in_the_session_of_a_pooler(admin: asyncpg.Connection) -> None:
    await admin.execute(SET_LIMITS.format(900, 700, admin.get_server_pid() + 1))
    assert await admin.fetchval("SHOW statement_timeout") == await admin.fetchval("SHOW lock_timeout") == "0"
    await admin.execute(SET_LIMITS.format(900, 700, admin.get_server_pid()))
    assert await admin.fetchval("SHOW statement_timeout") == "900ms"
    assert LOCK_LIMIT_S < STATEMENT_LIMIT_S


@pytest.mark.parametrize("first", ["SELECT 1 / 0 -- {} {} {}", "SELECT pg_sleep(60) -- {} {} {}"])
async def test_a_connection_whose_first_statement_fails_is_closed(
    database_url: str, admin: asyncpg.Connection, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.pool.SET_LIMITS", first)
    async with open_pool(Database(database_url)) as pool:
        with pytest.raises(StoreUnavailable):
            await pool.fetch("SELECT 1")
        await until(lambda: none_but(admin))


async def none_but(admin: asyncpg.Connection) -> bool:
    count: int = await admin.fetchval(BACKENDS)
    return count == 0


async def test_a_cancel_request_meets_no_later_statement(database_url: str, admin: asyncpg.Connection) -> None:
    """One connection after the other is given up, while others use the pool."""
    async with open_pool(Database(database_url)) as pool:
        giving_up = [asyncio.create_task(by_its_caller(pool, SLEEP)) for _ in range(40)]
        while not all(task.done() for task in giving_up):
            [row] = await pool.fetch("SELECT count(pg_sleep(0.001)) AS n FROM generate_series(1, 5)")
            assert row["n"] == 5
        await until(partial(idle, admin))


async def test_the_batches_that_the_writer_gives_up_do_not_pile_up(
    database_url: str, admin: asyncpg.Connection
) -> None:
    async with open_store(
        database_url, queue_size=10, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
    ) as store:
        async with locked_tables(database_url):
            saved = store.start_run(started())
            tried: set[int] = set()
            await until(partial(_one_after_another, tried, admin))
        await saved


async def _one_after_another(tried: set[int], admin: asyncpg.Connection) -> bool:
    """Whether the only process at work is a later one than the first. It is never the only one if the first goes on."""
    found = {row["pid"] for row in await admin.fetch(f"SELECT pid {OTHERS} AND state = 'active'")}
    later = bool(tried) and len(found) == 1 and not found <= tried
    if not tried:
        tried |= found
    return later


async def test_a_start_that_is_stopped_in_a_migration_leaves_no_statement_at_work(
    database_url: str, admin: asyncpg.Connection
) -> None:
    async def start() -> None:
        async with open_connection(Database(database_url), 5, migrates=True) as connection:
            await connection.execute(SLEEP)

    starting = asyncio.create_task(start())
    await until(partial(at_work, admin))
    starting.cancel()
    await asyncio.wait({starting})
    await until(partial(idle, admin))
    assert await admin.fetchval(BACKENDS) == 0


async def test_an_end_waits_for_the_connections_that_are_given_up(database_url: str, admin: asyncpg.Connection) -> None:
    closing = Closing()
    connection = await asyncpg.connect(database_url)
    with pytest.raises(TimeoutError):
        await within(0.1, connection, connection.execute(SLEEP), closing)
    assert connection in closing
    await closing.wait()
    assert connection.is_closed()
    with suppress(asyncpg.InterfaceError):
        closing.add(connection)
        await closing.wait()
    assert await idle(admin)


async def test_a_transaction_on_a_frozen_network_is_given_up_in_time(database_url: str) -> None:
    """Its rollback waits for the answer to the cancel request, which never comes."""
    async with FaultProxy(database_url) as proxy:
        connection, closing = await asyncpg.connect(proxy.dsn), Closing()

        async def work() -> None:
            async with connection.transaction():
                proxy.frozen = True
                await connection.execute(SLEEP)

        with pytest.raises(TimeoutError):
            await within(0.1, connection, work(), closing)
        async with asyncio.timeout(20):
            await closing.wait()
        assert connection.is_closed()
        proxy.frozen = False
        await proxy.reset()
