"""The schema's versions: how a database gets to this service's, and which one it refuses."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count

import asyncpg
import pytest
from conftest import _execute, _in_database, run

from storage.database import MIGRATIONS, SCHEMA, VERSION, read_shape
from storage.embedded import _binaries
from store import open_store

pytestmark = pytest.mark.anyio
NUMBERS = count(1)

New = Callable[..., str]


@pytest.fixture
def new_database(postgres: str) -> Iterator[New]:
    """Make a database and run these files in it; gives its DSN."""
    names: list[str] = []

    def make(*scripts: str) -> str:
        names.append(f"schema_{next(NUMBERS)}")
        run(_execute(postgres, f"CREATE DATABASE {names[-1]}"))
        dsn = _in_database(postgres, names[-1])
        for script in scripts:
            run(_execute(dsn, script))
        return dsn

    yield make
    for name in names:
        run(_execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


BEFORE_VERSIONS = MIGRATIONS[1].read_text()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def start(dsn: str, *, migrate_at_start: bool = True) -> None:
    async with open_store(
        dsn,
        queue_size=10,
        queue_bytes=2**20,
        connect_timeout_s=5,
        drain_timeout_s=5,
        migrate_at_start=migrate_at_start,
    ) as store:
        await store.fetch("SELECT 1 FROM runs")


def dump_of_schema(dsn: str) -> str:
    done = subprocess.run([_binaries() / "pg_dump", "-s", "-d", dsn], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE)


def test_each_migration_has_the_next_number_and_the_whole_schema_has_the_last() -> None:
    assert list(MIGRATIONS) == list(range(1, VERSION + 1))
    assert f"INSERT INTO draftstream_schema (version) VALUES ({VERSION});" in SCHEMA.read_text()


def test_a_migrated_database_has_the_same_schema_as_a_new_one(new_database: New) -> None:
    new, migrated = new_database(), new_database(BEFORE_VERSIONS)
    for dsn in (new, migrated):
        run(start(dsn))
    assert dump_of_schema(new).count("CREATE FUNCTION") > 5
    assert dump_of_schema(migrated) == dump_of_schema(new)


async def test_replicas_that_start_at_once_make_one_schema(new_database: New) -> None:
    for scripts in ((), (BEFORE_VERSIONS,)):
        dsn = new_database(*scripts)
        await asyncio.gather(*(start(dsn) for _ in range(3)))
        async with connected(dsn) as connection:
            assert (await read_shape(connection)).version == VERSION
