"""The databases that people have: PostgreSQL 15, TLS, PgBouncer, one that is slow to connect, and some that are no use."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import requests
from conftest import Service, execute, rows, run
from fault_proxy import FaultProxy
from openai_server import OpenAIServer
from real_databases import Postgres15, pgbouncer, postgres_15
from sse_client import chat
from test_giving_up import SLEEP, by_our_own_limit, until
from test_store import started

from storage import database as schema_room
from storage import pool as pool_room
from storage.address import Address
from storage.connections import Database, connect
from storage.database import SchemaError
from storage.dsn_options import UnusableAddress
from storage.faults import NoAnswer, StoreUnavailable
from storage.pool import POOL_CONNECTIONS, open_pool
from store import Store, open_store

pytestmark = pytest.mark.anyio

Start = Callable[..., Service]
NUMBERS = count(1)


@pytest.fixture(scope="module")
def pg15() -> Iterator[Postgres15]:
    with postgres_15() as database:
        run(execute(database.dsn, "CREATE ROLE app LOGIN PASSWORD 'geheim12'"))
        yield database


@pytest.fixture(scope="module")
def pooled(pg15: Postgres15) -> Iterator[int]:
    """The port of a PgBouncer in transaction mode before it."""
    with pgbouncer("127.0.0.1", pg15.port, "transaction") as port:
        yield port


@pytest.fixture
def empty(pg15: Postgres15) -> str:
    """The name of a new, empty database of PostgreSQL 15."""
    name = f"new_{next(NUMBERS)}"
    run(execute(pg15.dsn, f"CREATE DATABASE {name}"))
    return name


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Store]:
    options = {"queue_size": 100, "queue_bytes": 2**20, "connect_timeout_s": 1, "drain_timeout_s": 5}
    async with open_store(dsn, **options) as store:  # type: ignore[arg-type]  # the values fit
        yield store


@pytest.fixture
async def settled() -> AsyncIterator[None]:
    """asyncpg closes a connection with TLS in some passes of the loop. Here the loop goes on until then."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield

    async def is_settled() -> bool:
        return len(list(Path("/proc/self/fd").iterdir())) <= before

    await until(is_settled)


# ---------------------------------------------------------------------------------------------------------------
# A pooler


@pytest.mark.parametrize("mode", ["transaction", "session", "statement"])
async def test_a_pooler_is_found_out_and_the_service_starts_twice(pg15: Postgres15, empty: str, mode: str) -> None:
    """Its first start migrates. A pooler in statement mode has no transactions, and says so itself."""
    with pgbouncer("127.0.0.1", pg15.port, mode, size=4) as port:
        dsn = f"postgresql://postgres@127.0.0.1:{port}/{empty}"
        if mode == "statement":
            with pytest.raises(StoreUnavailable, match="transaction"):
                async with opened(dsn):
                    pass
            return
        for number in range(2):
            async with opened(dsn) as store:
                assert store._reader._pool._database.is_pooled
                await store.start_run(started(f"t{number}"))
                reads = [store.fetch("SELECT pg_sleep(0.01), $1::int AS one", 1) for _ in range(40)]
                assert [row["one"] for [row] in await asyncio.gather(*reads)] == [1] * 40


async def test_the_readers_leave_the_writer_a_connection_where_there_are_few(pg15: Postgres15, empty: str) -> None:
    """Three for the service. They are lost, and the readers are the first to get new ones."""
    run(execute(pg15.dsn, f"CREATE ROLE {empty} LOGIN PASSWORD 'geheim12' CONNECTION LIMIT 3 IN ROLE app"))
    run(execute(pg15.in_database(empty), "GRANT CREATE ON SCHEMA public TO app"))
    dsn = f"postgresql://{empty}:geheim12@127.0.0.1:{pg15.port}/{empty}"
    async with opened(dsn) as store:
        for turn in range(2):
            reads = [store.fetch("SELECT pg_sleep(0.02)") for _ in range(40)]
            await asyncio.gather(*reads, return_exceptions=turn > 0)  # some notice the loss
            async with asyncio.timeout(20):
                await store.start_run(started(f"t{turn}"))
            sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{empty}'"
            run(execute(pg15.dsn, sql))


async def test_twelve_clients_chat_through_a_pooler(
    service: Start, openai: OpenAIServer, pooled: int, empty: str
) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{pooled}/{empty}"
    running = service(openai, DATABASE_URL=dsn)

    def talk(thread: int) -> list[dict[str, Any]]:
        return [chat(running.url, "hello", thread_id=f"t{thread}").last for _ in range(4)]

    with ThreadPoolExecutor(12) as clients:
        last = [event for events in clients.map(talk, range(12)) for event in events]
    assert [event for event in last if event.get("saved") is not True] == []
    assert len(last) == 48
    running.restart()
    assert chat(running.url, "hello", thread_id="t0").last["saved"]
    assert running.log.count("behind a pooler") == 2


async def test_a_read_that_is_given_up_behind_a_pooler_ends_at_the_server(
    pg15: Postgres15, pooled: int, empty: str
) -> None:
    admin = await asyncpg.connect(pg15.dsn)

    async def is_idle() -> bool:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state = 'active'"
        return bool(await admin.fetchval(sql, empty) == 0)

    async with open_pool(Database(f"postgresql://postgres@127.0.0.1:{pooled}/{empty}")) as pool:
        await asyncio.gather(*(by_our_own_limit(pool, SLEEP) for _ in range(4)))
        await until(is_idle)
        assert (await pool.fetch("SELECT 1 AS one"))[0]["one"] == 1
        [limit] = await pool.fetch("SHOW statement_timeout")
        assert limit["statement_timeout"] == "0"  # nobody else's session was changed but by the test
    await admin.close()


async def test_a_pooler_that_hides_is_known_by_the_statements_that_it_breaks(pooled: int, empty: str) -> None:
    """As one that passes the server's process id on."""
    database = Database(f"postgresql://postgres@127.0.0.1:{pooled}/{empty}")
    database.is_pooled = False
    database.found_pooler = lambda: None  # type: ignore[method-assign]
    async with open_pool(database) as pool:
        del database.found_pooler

        async def break_one() -> bool:
            reads = [pool.fetch("SELECT pg_sleep(0.01), $1::int AS one", 1) for _ in range(20)]
            await asyncio.gather(*reads, return_exceptions=True)
            return bool(database.is_pooled)

        await until(break_one)
        await asyncio.gather(*(pool.fetch("SELECT $1::int AS one", 1) for _ in range(40)))


# ---------------------------------------------------------------------------------------------------------------
# A database that takes long to connect


async def test_a_connection_that_takes_longer_than_a_reader_waits_is_there_for_the_next_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_room, "READ_BUDGET_S", 0.3)
    async with FaultProxy(database_url) as proxy:
        proxy.connect_delay_s = 0.6
        async with opened(proxy.dsn) as store:
            await store.start_run(started())
            await proxy.reset()
            before = proxy.connections
            failures = [failure async for failure in failures_of(store.ping)]
            assert any(isinstance(failure, NoAnswer) for failure in failures), "a reader waits no longer than it may"
            await store.start_run(started("another"))
            assert proxy.connections - before <= 3  # the reader's, the writer's, and a cancel request


async def failures_of(read: Callable[[], Awaitable[None]]) -> AsyncIterator[StoreUnavailable]:
    """The failures until the first success."""
    async with asyncio.timeout(20):
        while True:
            try:
                await read()
            except StoreUnavailable as failure:
                yield failure
            else:
                return


async def test_readers_who_all_give_up_leave_no_more_attempts_than_the_pool_has_places(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_room, "READ_BUDGET_S", 0.1)
    async with FaultProxy(database_url) as proxy, open_pool(Database(proxy.dsn)) as pool:
        proxy.connect_delay_s = 0.8
        while proxy.connections < POOL_CONNECTIONS or not pool._connections._idle:
            reads = [pool.fetch("SELECT 1") for _ in range(3 * POOL_CONNECTIONS)]
            await asyncio.gather(*reads, return_exceptions=True)
        assert proxy.connections == POOL_CONNECTIONS


async def test_attempts_that_nobody_waits_for_end_with_the_pool(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:
        async with open_pool(Database(proxy.dsn)) as pool:
            proxy.connect_delay_s = 60
            with pytest.raises(NoAnswer):
                await pool.fetch("SELECT 1")
        assert [task for task in asyncio.all_tasks() if task.get_name() == "connect to the database"] == []


async def test_a_failed_attempt_is_told_once_and_the_next_reader_makes_another(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy, open_pool(Database(proxy.dsn)) as pool:
        proxy.refuse = True
        with pytest.raises(StoreUnavailable):
            await pool.fetch("SELECT 1")
        proxy.refuse = False
        assert (await pool.fetch("SELECT 1 AS one"))[0]["one"] == 1


# ---------------------------------------------------------------------------------------------------------------
# TLS, and several hosts


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=require", ""),
        ("sslmode=require&channel_binding=require&keepalives=1&connect_timeout=10", ""),
        ("ssl=true&gssencmode=disable", ""),
        ("sslmode=verify-full&sslrootcert={authority}", ""),
        ("sslmode=verify-ca&sslrootcert={authority}&channel_binding=require", ""),
        ("sslrootcert=system", "CERTIFICATE_VERIFY_FAILED"),
        ("sslmode=require&sslaccept=strict", "CERTIFICATE_VERIFY_FAILED"),
        ("sslmode=require&sslrootcert=/etc/passwd", "TLS options of DATABASE_URL can't be used"),
        (
            "sslmode=verify-full&sslrootcert=/no/such/file",
            "sslrootcert in DATABASE_URL names a file that can't be read",
        ),
        ("sslmode=verify-full", "needs the server's authority: add sslrootcert=system"),
        ("sslmode=verify-ca", "or sslrootcert=PATH"),
        (
            "sslmode=verify-full&sslrootcert={authority}&ssl_min_protocol_version=TLSv9",
            "TLS options of DATABASE_URL can't be used",
        ),
        ("sslmode=disable", "no pg_hba.conf entry"),
    ],
)
async def test_tls_is_what_the_dsn_asks_for(
    pg15: Postgres15, query: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = f"postgresql://app:geheim12@{pg15.where}?{query.format(authority=pg15.authority)}"
    attempts = counted_attempts(monkeypatch)
    if said:
        with pytest.raises((StoreUnavailable, UnusableAddress)) as refused:
            await connect(Database(dsn), 5)
        assert said in str(refused.value)
        assert "geheim" not in str(refused.value)
        assert len(attempts) <= 1
        return
    connection = await connect(Database(dsn), 5)
    assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await connection.close()


@pytest.mark.usefixtures("settled")
async def test_the_authorities_of_the_system_are_trusted(pg15: Postgres15, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pg15.authority))  # where OpenSSL looks for them
    connection = await connect(Database(f"postgresql://app:geheim12@{pg15.where}?sslrootcert=system"), 5)
    await connection.close()
    elsewhere = pg15.where.replace("127.0.0.1", "localhost")  # which the certificate does not name
    with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await connect(Database(f"postgresql://app:geheim12@{elsewhere}?sslrootcert=system"), 5)


@pytest.mark.usefixtures("settled")
async def test_a_silent_host_does_not_hide_the_next_one(pg15: Postgres15, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Address, "connect_s", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},{pg15.where}"
        database = Database(f"postgresql://postgres@{hosts}")
        attempts = counted_attempts(monkeypatch)
        for expected in (2, 3):  # the host that answered is the first one then
            connection = await connect(database, 0.1)
            await connection.close()
            assert len(attempts) == expected


@pytest.mark.usefixtures("settled")
async def test_of_several_hosts_the_one_that_can_be_written_to_is_taken(
    pg15: Postgres15, postgres: str, database_url: str
) -> None:
    name = urlsplit(database_url).path[1:]
    run(execute(postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    run(execute(pg15.dsn, f"CREATE DATABASE {name}"))
    async with FaultProxy(database_url) as proxy:
        hosts = f"127.0.0.1:{proxy.port},127.0.0.1:{pg15.port}"
        for query in ("", "?target_session_attrs=read-write"):
            connection = await connect(Database(f"postgresql://postgres@{hosts}/{name}{query}"), 5)
            assert connection.get_server_version().major == 15
            await connection.close()
        with pytest.raises(StoreUnavailable, match="None of the hosts match"):
            await connect(
                Database(f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}?target_session_attrs=read-write"), 0
            )


# ---------------------------------------------------------------------------------------------------------------
# Databases that are no use


def counted_attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    real = asyncpg.connect
    attempts: list[object] = []

    async def counting(*arguments: Any, **options: Any) -> asyncpg.Connection:
        attempts.append(options)
        return await real(*arguments, **options)

    monkeypatch.setattr(asyncpg, "connect", counting)
    return attempts


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("making", "user", "said"),
    [
        ("CREATE DATABASE {}", "app:geheim12", "permission denied for schema public"),
        ("CREATE DATABASE {} ENCODING LATIN1 TEMPLATE template0 LOCALE 'C'", "postgres", "stores text as LATIN1"),
        ("CREATE DATABASE {} ENCODING SQL_ASCII TEMPLATE template0 LOCALE 'C'", "postgres", "stores text as SQL_ASCII"),
        (
            "CREATE DATABASE {}; ALTER DATABASE {} SET default_transaction_read_only = on",
            "postgres",
            "default_transaction_read_only is on",
        ),
        ("CREATE DATABASE {} CONNECTION LIMIT 0", "app:geheim12", "too many connections for database"),
        ("CREATE DATABASE {} ALLOW_CONNECTIONS false", "app:geheim12", "is not currently accepting connections"),
        ("SELECT '{}'", "postgres", "does not exist"),
        ("CREATE DATABASE {}", "app:falsch", 'password authentication failed for user "app"'),
        ("CREATE DATABASE {}", "nobody:falsch", "authentication failed"),
    ],
)
async def test_a_database_that_cannot_be_used_is_told_in_its_own_words_at_once(
    pg15: Postgres15, making: str, user: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"useless_{next(NUMBERS)}"
    for statement in making.format(name, name).split("; "):
        run(execute(pg15.dsn, statement))
    attempts = counted_attempts(monkeypatch)
    with pytest.raises((StoreUnavailable, SchemaError)) as refused:
        async with opened(f"postgresql://{user}@127.0.0.1:{pg15.port}/{name}"):
            pass
    assert said in str(refused.value)
    assert "went away" not in str(refused.value)
    assert "\n" not in str(refused.value)
    if "too many" not in said:  # which passes
        assert len(attempts) == 1


async def test_a_right_that_is_missing_on_a_table_is_told_at_the_start(pg15: Postgres15, empty: str) -> None:
    dsn = pg15.in_database(empty)
    async with opened(dsn):
        pass
    run(execute(dsn, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app"))
    run(execute(dsn, "REVOKE INSERT, DELETE ON runs FROM app; REVOKE UPDATE ON threads FROM app"))
    theirs = f"postgresql://app:geheim12@127.0.0.1:{pg15.port}/{empty}"
    with pytest.raises(SchemaError, match="it lacks INSERT, DELETE on the table runs and 1 more; run, as their owner"):
        async with opened(theirs):
            pass
    run(execute(dsn, "GRANT INSERT, DELETE ON runs TO app; GRANT UPDATE ON threads TO app"))
    async with opened(theirs) as store:
        await store.start_run(started())


async def test_a_foreign_table_is_named(pg15: Postgres15, empty: str) -> None:
    run(execute(pg15.in_database(empty), "CREATE TABLE messages (id int, body text)"))
    with pytest.raises(SchemaError, match="messages in the database is not this service's"):
        async with opened(pg15.in_database(empty)):
            pass


async def test_an_old_server_is_refused_with_its_version(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_room, "LEAST_VERSION", 99_00_00)
    with pytest.raises(StoreUnavailable, match=r"is PostgreSQL \d+\.\d.*: the service needs PostgreSQL 99 or newer"):
        async with opened(database_url):
            pass


async def test_a_schema_of_ones_own(pg15: Postgres15, empty: str) -> None:
    dsn = f"{pg15.in_database(empty)}&schema=drafts"
    with pytest.raises(SchemaError, match="no schema has been selected to create in"):
        async with opened(dsn):
            pass
    run(execute(pg15.in_database(empty), "CREATE SCHEMA drafts"))
    async with opened(dsn):
        pass
    [row] = rows(pg15.in_database(empty), "SELECT count(*) FROM pg_tables WHERE schemaname = 'drafts'")
    assert row["count"] > 5


async def test_a_database_that_does_not_answer_is_named_with_the_time_that_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Address, "connect_s", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}/app"
        with pytest.raises(StoreUnavailable, match=f"at {place} .ConnectTimeout: no connection within 0.2 s"):
            await connect(Database(f"postgresql://app:geheim12@{place}"), 0.1)


def test_what_was_ignored_is_told_once_at_the_start(service: Start, pg15: Postgres15, empty: str) -> None:
    query = "&sslmode=prefer&channel_binding=require&keepalives=1&keepalives_idle=30&connection_limit=1"
    running = service(DATABASE_URL=pg15.in_database(empty) + query)
    assert requests.get(f"{running.url}/readyz", timeout=10).status_code == 200
    assert running.log.count("channel_binding=require in DATABASE_URL is not kept") == 1
    assert running.log.count("keepalives, keepalives_idle in DATABASE_URL: ignored") == 1
    assert running.log.count("connection_limit in DATABASE_URL: ignored") == 1
