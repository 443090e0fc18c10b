"""The database that the service starts on: whether it can be used at all, and the version of its schema.

`schema.sql` makes the whole schema in an empty database. `migrations/NNN_*.sql` lead there from each earlier version;
version NNN is the schema after that file. A start on its own version reads one row and its rights on the tables. It
locks nothing and changes nothing.

A migration is one transaction, and one process migrates at a time. Writers queue behind a migration that waits for a
table. So it waits LOCK_TIMEOUT_S at most, then releases its locks and retries. A migration file begins with one LOCK
TABLE of all the tables that it changes, so that it can't wait again in the middle of its work.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from storage.address import sentence, why_not
from storage.closing import close, within
from storage.connections import Database, connect, is_lasting
from storage.faults import DATABASE_FAULTS, StoreUnavailable

log = logging.getLogger("draftstream.database")

SCHEMA = Path(__file__).parent.parent / "schema.sql"
MIGRATIONS = {int(path.name[:3]): path for path in sorted((Path(__file__).parent / "migrations").glob("*.sql"))}
VERSION = max(MIGRATIONS)
"""The version of the schema that this service uses."""

VERSION_BUDGET_S = 10.0  # all replicas may start at once
MIGRATION_LOCK = 0x6472616674  # "draft": an advisory lock, which the services from before versions take, too
LOCK_TIMEOUT_S = 0.5  # below COMMIT_BUDGET_S of a writer, and below PostgreSQL's deadlock_timeout of 1 s
RETRY_S = (0.5, 1.0, 2.0, 5.0)  # pauses between the attempts, in which writers pass; the last one repeats
TABLES_BUDGET_S = 60.0  # how long a migration tries to lock its tables
TURN_S = 0.2  # pause between checks whether another process has finished the migration

LEAST_VERSION = 15_00_00
READ_SERVER = """SELECT current_setting('server_version_num')::int AS version,
    current_setting('server_version') AS version_text, version() AS product,
    current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only')::bool AS is_read_only, current_schema()::text AS schema"""
READ_VERSION = "SELECT version FROM draftstream_schema"
HAS_VERSION = "SELECT to_regclass('draftstream_schema') IS NOT NULL"
READ_COLUMNS = """SELECT c.relname AS name, c.relkind = 'r' AS is_table, array_agg(a.attname::text) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = current_schema() AND c.relname = ANY($1) GROUP BY c.oid ORDER BY c.relname"""

# Of the tables that the service writes. to_regclass is NULL for a table that is not there, and then no row comes.
READ_MISSING_RIGHTS = """SELECT name, array_agg(right_ ORDER BY nr) AS rights
FROM unnest($1::text[]) name, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) WITH ORDINALITY AS needed(right_, nr)
WHERE NOT has_table_privilege(to_regclass(name), right_) GROUP BY name ORDER BY name"""

# A table without a version is ours if it has these columns. Columns that version 1 or 2 may add to it are left out.
BEFORE_VERSIONS = {
    "threads": "owner thread_id title last_seq created_at updated_at",
    "runs": "run_id owner thread_id seq status reason error usage model checkpoint_id idempotency_key fingerprint"
    " leased_until started_at ended_at",
    "messages": "owner thread_id seq item run_id role type content complete doc_id title version created_at",
    "pieces": "run_id position owner thread_id seq item type content doc_id title version",
    "deleted_runs": "run_id deleted_at",
    "dead_letters": "id thread error writes created_at",
    "limit_counts": "owner name slot process used updated_at expires_at",
    "access_keys": "key_id secret_hash owner name scopes created_at expires_at revoked_at",
    "stream_tokens": "hash owner scopes key_id expires_at redeemed_at run_id",
    "checkpoints": "thread_id checkpoint_ns checkpoint_id parent_checkpoint_id type checkpoint metadata",
    "checkpoint_blobs": "thread_id checkpoint_ns channel version type blob",
    "checkpoint_writes": "thread_id checkpoint_ns checkpoint_id task_id idx channel type blob",
    "checkpoint_migrations": "v",
}


class SchemaError(Exception):
    """This service can't use or can't migrate the schema of the database; the text is one line that says why."""


class ForeignSchema(SchemaError):
    """The schema is another service's, or newer than this service."""


# ---------------------------------------------------------------------------------------------------------------
# The server


@asynccontextmanager
async def open_connection(database: Database, wait_s: float, *, migrates: bool) -> AsyncIterator[asyncpg.Connection]:
    """One connection to a database with this service's schema. Raises SchemaError, and what `connect` raises."""
    async with first_connection(database, wait_s) as connection:
        await check_schema(connection, migrates=migrates)
        yield connection


@asynccontextmanager
async def first_connection(database: Database, wait_s: float) -> AsyncIterator[asyncpg.Connection]:
    """One connection to a database that the service can use. Raises StoreUnavailable and UnusableAddress."""
    connection = await connect(database, wait_s)
    try:
        await _check_server(connection, database)
        yield connection
    except DATABASE_FAULTS as error:
        raise StoreUnavailable(f"the database at {database.where} {_fate(error)}") from error
    finally:
        await close(connection)


async def _check_server(connection: asyncpg.Connection, database: Database) -> None:
    """Raises StoreUnavailable for what no waiting changes."""
    [server] = await within(VERSION_BUDGET_S, connection, connection.fetch(READ_SERVER))
    fault = None
    if server["version"] < LEAST_VERSION:
        # CockroachDB, for one, says that it is PostgreSQL 13 where it is asked for the number.
        name = server["product"] if "PostgreSQL" not in server["product"] else f"PostgreSQL {server['version_text']}"
        fault = f"is {name}: the service needs PostgreSQL {LEAST_VERSION // 10_000} or newer"
    elif server["encoding"] != "UTF8":
        fault = (
            f"stores text as {server['encoding']}, which can't hold every character: give the service a database that "
            "was made with ENCODING 'UTF8' TEMPLATE template0"
        )
    elif server["is_standby"]:
        fault = (
            "is a standby, which can't be written to: name the primary in DATABASE_URL, or all hosts (a:5432,b:5432)"
        )
    elif server["is_read_only"]:
        fault = "can't be written to: default_transaction_read_only is on, for the role, the database or the server"
    elif (schema := database.address.options.schema) is not None and server["schema"] not in (schema, None):
        fault = (
            f"uses the schema {server['schema']}, not the one that DATABASE_URL names: a pooler may have dropped the "
            "setting; run ALTER ROLE … SET search_path instead"
        )
    if fault is not None:
        raise StoreUnavailable(f"the database at {database.where} {fault}")


def _fate(error: Exception) -> str:
    """What became of a connection that was made."""
    if isinstance(error, asyncpg.PostgresError) and is_lasting(error):
        return f"refuses this service: {sentence(error)}"
    if isinstance(error, TimeoutError):
        return "did not answer in time (TimeoutError)"
    return f"went away ({why_not(error)})"


# ---------------------------------------------------------------------------------------------------------------
# The schema's version


@dataclass(frozen=True, slots=True)
class Shape:
    """The version of a database; 0: tables of ours without a version; None: no tables of ours."""

    version: int | None

    @property
    def steps(self) -> Sequence[Path]:
        """The files that lead from here to this service's version."""
        version = self.version
        return [SCHEMA] if version is None else [path for number, path in MIGRATIONS.items() if number > version]

    def __str__(self) -> str:
        match self.version:
            case None:
                return "no schema yet"
            case 0:
                return "a schema from before versions"
        return f"version {self.version} of the schema"


async def read_shape(connection: asyncpg.Connection) -> Shape:
    """One SELECT, if the database has a version. Raises SchemaError."""
    try:
        return await _versioned(connection)
    except asyncpg.UndefinedTableError:
        return await _unversioned(connection)


async def _versioned(connection: asyncpg.Connection) -> Shape:
    try:
        rows = await connection.fetch(READ_VERSION)
    except asyncpg.UndefinedColumnError:
        raise ForeignSchema(_foreign("draftstream_schema", "has no column version")) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(f"the service's role can't use the database: {error}") from None
    version = rows[0]["version"] if rows else None
    if not isinstance(version, int):
        raise ForeignSchema(_foreign("draftstream_schema", "has no version in it"))
    if version > VERSION:
        raise ForeignSchema(
            f"the database has version {version} of the schema, which is newer than this service's, {VERSION}: "
            "start the newer service, or restore a backup from before its migration"
        )
    return Shape(version)


async def _unversioned(connection: asyncpg.Connection) -> Shape:
    tables = await connection.fetch(READ_COLUMNS, list(BEFORE_VERSIONS))
    for table in tables:
        if not table["is_table"]:
            raise ForeignSchema(_foreign(table["name"], "is no table"))
        missing = [column for column in BEFORE_VERSIONS[table["name"]].split() if column not in table["columns"]]
        if missing:
            raise ForeignSchema(_foreign(table["name"], f"has no column {missing[0]}"))
    return Shape(0 if tables else None)


def _foreign(name: str, fault: str) -> str:
    return f"{name} in the database is not this service's, as it {fault}: give the service a database of its own"


# ---------------------------------------------------------------------------------------------------------------
# Migrating


async def check_schema(connection: asyncpg.Connection, *, migrates: bool) -> None:
    """Return if the schema is at this service's version, after a migration if need be. Raises SchemaError."""
    shape = await within(VERSION_BUDGET_S, connection, read_shape(connection))
    if not shape.steps:
        return
    if not migrates:
        raise SchemaError(f"the database has {shape}, and MIGRATE_AT_START is 0: run python -m storage migrate")
    await migrate(connection)


async def check_rights(connection: asyncpg.Connection) -> None:
    """Raises SchemaError: without a right on a table turns could not be saved, and each would be lost after its end."""
    written = [name for name in BEFORE_VERSIONS if name != "checkpoint_migrations"]
    missing = await within(VERSION_BUDGET_S, connection, connection.fetch(READ_MISSING_RIGHTS, written))
    if missing:
        tables = f"the table {missing[0]['name']}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        rights = ", ".join(missing[0]["rights"])
        raise SchemaError(
            f"the service's role can't use the database: it lacks {rights} on {tables}; run, as their owner, "
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA … TO the role"
        )


async def migrate(connection: asyncpg.Connection) -> Sequence[Path]:
    """Migrate the schema to this service's version. Returns the files that it applied. Raises SchemaError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TABLES_BUDGET_S
    pauses = itertools.chain(RETRY_S, itertools.repeat(RETRY_S[-1]))
    waits_for_turn = False
    while True:
        try:
            steps = await _attempt(connection)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            pause = next(pauses)
            if loop.time() + pause > deadline:
                raise SchemaError(
                    f"the schema can't be migrated: another transaction has held its tables for {TABLES_BUDGET_S:.0f} "
                    "seconds; end it (the oldest xact_start in pg_stat_activity), and run python -m storage migrate"
                ) from None
            log.warning("schema: the migration waits for another transaction; the next attempt is in %s s", pause)
            await asyncio.sleep(pause)
            continue
        except asyncpg.PostgresError as error:
            if _is_away(error):
                raise
            raise SchemaError(f"the schema can't be migrated: {_reason(error)}") from error
        if steps is not None:
            for step in steps:
                log.info("schema: applied %s", step.name)
            return steps
        if not waits_for_turn:
            log.info("another process migrates the schema; this one waits for it")
        waits_for_turn = True
        await asyncio.sleep(TURN_S)


async def _attempt(connection: asyncpg.Connection) -> Sequence[Path] | None:
    """All steps in one transaction; None if another process is at it."""
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; SET LOCAL statement_timeout = 0")
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", MIGRATION_LOCK):
            return None
        has_version = await connection.fetchval(HAS_VERSION)
        shape = await (_versioned(connection) if has_version else _unversioned(connection))
        for step in shape.steps:
            await connection.execute(step.read_text("utf-8"))
        return shape.steps


def _is_away(error: asyncpg.PostgresError) -> bool:
    """Whether the server fails, not the migration: SQLSTATE classes 08 (connection), 53 (resources), 57 (operator)."""
    return (error.sqlstate or "")[:2] in ("08", "53", "57")


def _reason(error: asyncpg.PostgresError) -> str:
    reason = str(error).splitlines()[0]
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return f"{reason}; run python -m storage migrate as the role that owns the tables, or may create them"
    return reason
