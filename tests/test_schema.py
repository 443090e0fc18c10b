"""The schema's versions: how a database gets to this service's, what a start does to it, and which one is refused."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import asyncpg
import pytest
import requests
from conftest import ROOT, WORKER, Service, execute, free_port, in_database, rows, run
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from openai_server import OpenAIServer, finish, tool
from sse_client import Stream, request
from sse_client import chat as send_chat
from test_access import until
from test_checkpointer import at, ids, turn

from storage import database
from storage.commits import COMMIT_BUDGET_S
from storage.database import BEFORE_VERSIONS, MIGRATIONS, SCHEMA, VERSION, check_schema, read_shape
from storage.embedded import _binaries
from store import SchemaError, StoreUnavailable, open_store
from threads.checkpointer import Checkpointer

pytestmark = pytest.mark.anyio
NUMBERS = count(1)
ROLE = f"ordinary_{WORKER}"

MakeDatabase = Callable[..., str]
Start = Callable[..., Service]

FIRST = MIGRATIONS[1].read_text()
"""Makes the schema of the services that kept no version, in an empty database, too."""
OLD_DATABASE = (ROOT / "tests/before_versions.sql").read_text()
KEY = {"Authorization": "Bearer ds_6237b0bee378_7c9e67cf1e7d5bb521aa11d1fc853c79d7003087d6bd75e8283f8e49c8ff52f5"}
"""The one that the old database knows."""
NEWER = f"UPDATE draftstream_schema SET version = {VERSION + 1}"


@pytest.fixture
def new_database(postgres: str) -> Iterator[MakeDatabase]:
    """Make a database and run these scripts in it; gives its DSN."""
    names: list[str] = []

    def make(*scripts: str) -> str:
        names.append(f"schema_{WORKER}_{next(NUMBERS)}")
        run(execute(postgres, f"DROP DATABASE IF EXISTS {names[-1]}"))
        run(execute(postgres, f"CREATE DATABASE {names[-1]}"))
        dsn = in_database(postgres, names[-1])
        for script in scripts:
            run(execute(dsn, script))
        return dsn

    yield make
    for name in names:
        run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def start(dsn: str, *, migrate_at_start: bool = True) -> None:
    """Open a store, and leave it."""
    async with open_store(
        dsn,
        queue_size=10,
        queue_bytes=2**20,
        connect_timeout_s=5,
        drain_timeout_s=5,
        migrate_at_start=migrate_at_start,
    ) as store:
        await store.ping()


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in caplog.text:
            await asyncio.sleep(0.01)


async def version(dsn: str) -> int | None:
    async with connected(dsn) as connection:
        return (await read_shape(connection)).version


def schema_of(dsn: str) -> list[str]:
    """The lines of `pg_dump -s`."""
    done = subprocess.run([_binaries() / "pg_dump", "-s", "--no-owner", "-d", dsn], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith((r"\restrict", r"\unrestrict"))]
    assert len(lines) > 500
    return lines


def command(dsn: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": dsn} | settings
    line = [sys.executable, "-m", "storage", *arguments]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------------------------------------------------------
# The ways to this service's version


def test_each_migration_has_the_next_number_and_the_whole_schema_has_the_last() -> None:
    assert list(MIGRATIONS) == list(range(1, VERSION + 1))
    assert f"INSERT INTO draftstream_schema (version) VALUES ({VERSION});" in SCHEMA.read_text()
    assert not re.search(r"(TABLE|INDEX) IF NOT EXISTS|OR REPLACE", SCHEMA.read_text())


def test_a_migrated_database_has_the_same_schema_as_a_new_one(new_database: MakeDatabase) -> None:
    new, old, first = new_database(), new_database(OLD_DATABASE), new_database(FIRST)
    assert schema_of(old) == schema_of(first) != schema_of(new_database(SCHEMA.read_text()))
    second = new_database(MIGRATIONS[1].read_text(), MIGRATIONS[2].read_text())
    assert run(version(second)) == 2
    for dsn in (new, old, first, second):
        run(start(dsn))
        assert run(version(dsn)) == VERSION
    assert schema_of(old) == schema_of(first) == schema_of(second) == schema_of(new)


def test_a_database_from_before_branches_and_search_gets_there_too(new_database: MakeDatabase) -> None:
    """Its columns come in another order."""
    old = new_database(
        OLD_DATABASE,
        """ALTER TABLE threads DROP COLUMN head_run_id; ALTER TABLE runs DROP COLUMN parent_run_id;
        ALTER TABLE messages DROP COLUMN words; DROP TRIGGER run_has_its_place ON runs; DROP FUNCTION fork_thread;
        DROP TABLE limit_counts, deleted_runs, stream_tokens, access_keys""",
    )
    run(start(old))
    new = new_database(SCHEMA.read_text())
    assert sorted(line.rstrip(",") for line in schema_of(old)) == sorted(line.rstrip(",") for line in schema_of(new))
    parents = "SELECT r.seq, p.seq AS parent FROM runs r LEFT JOIN runs p ON p.run_id = r.parent_run_id"
    assert [tuple(row) for row in rows(old, f"{parents} WHERE r.thread_id = 'intake' ORDER BY r.seq")] == [
        (1, None),
        (2, 1),
        (3, 2),
    ]


def test_an_old_database_goes_on(new_database: MakeDatabase, service: Start) -> None:
    """Chats in old threads, their branches and forks, search, redline, exports, keys, and a run that was cut."""
    old = new_database(OLD_DATABASE)
    running = service(DATABASE_URL=old)
    threads = f"{running.url}/api/threads"

    def chat(message: str, thread_id: str, **more: str) -> Stream:
        stream = send_chat(running.url, message, headers=KEY, thread_id=thread_id, **more)
        assert (stream.last["reason"], stream.last["saved"]) == ("stop", True)
        return stream

    def get(path: str) -> requests.Response:
        answer = requests.get(f"{threads}{path}", headers=KEY, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer

    assert requests.get(threads, timeout=10).status_code == 401, "the database has a key"
    first, second, branch = get("/intake/checkpoints").json()["checkpoints"][::-1]
    diff = get("/intake/documents/d1/diff?from=1&to=2&format=json").json()
    assert "two (2) years" in str(diff)
    made = [item for item in chat("Change the term to 3 years", "intake").items.values() if item["type"] == "doc"]
    assert [item["version"] for item in made] == [3], "after version 2 of the branch"
    assert "three (3) years" in made[0]["content"]
    chat("Add 2-year term", "intake", checkpoint_id=second["checkpoint_id"])
    chat("Make it mutual", "copy")
    again = {"Idempotency-Key": "once", **KEY}
    assert send_chat(running.url, "Who are you?", headers=again, thread_id="keyed").last["saved"] is True
    assert [run["seq"] for run in rows(old, "SELECT seq FROM runs WHERE thread_id = 'keyed'")] == [1]

    assert [item["content"] for item in get("/cut").json()["messages"]] == ["Go on for long", "So far, so good"]
    chat("And then?", "cut")
    assert [(run["status"]) for run in get("/cut").json()["runs"]] == ["interrupted", "completed"]

    found = get("?q=mutual").json()["threads"]
    assert {thread["thread_id"] for thread in found} >= {"intake"}
    assert "Non-Disclosure" in get("/intake/export?format=md").text
    assert get("/intake/export?format=docx").content.startswith(b"PK")
    forked = {"checkpoint_id": branch["checkpoint_id"], "thread_id": "forked"}
    assert requests.post(f"{threads}/intake/fork", json=forked, headers=KEY, timeout=10).status_code == 201
    chat("Make it mutual", "forked")
    assert first["parent_checkpoint_id"] is None
    assert rows(old, "SELECT 1 FROM dead_letters") == []


@pytest.mark.parametrize("scripts", [(), (OLD_DATABASE,)], ids=["empty", "old"])
def test_replicas_that_start_at_once_all_come_up(
    new_database: MakeDatabase, tmp_path: Path, scripts: Sequence[str]
) -> None:
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": new_database(*scripts)}
    replicas = [Service(env | {"PYTHONUNBUFFERED": "1"}, tmp_path / f"replica-{number}") for number in range(3)]
    for replica in replicas:
        replica.wait_until_ready()
        assert "Traceback" not in replica.log
    for replica in replicas:
        assert replica.stop() == 0
    applied = [line for replica in replicas for line in replica.log.splitlines() if "schema: applied" in line]
    assert len(applied) == (VERSION if scripts else 1), "each step once"
    assert run(version(env["DATABASE_URL"])) == VERSION


def test_migrations_by_the_command_at_once(new_database: MakeDatabase) -> None:
    old = new_database(OLD_DATABASE)
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: command(old, "migrate"), range(3)))
    assert [(one.returncode, one.stdout) for one in done] == [(0, done[0].stdout)] * 3
    assert "".join(one.stderr for one in done).count("schema: applied") == VERSION


async def test_a_migration_that_fails_changes_nothing(
    new_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.sql"
    broken.write_text("DROP TABLE deleted_runs; SELECT no_such_column FROM runs;")
    old = new_database(OLD_DATABASE)
    before = schema_of(old)
    monkeypatch.setitem(database.MIGRATIONS, VERSION + 1, broken)
    with pytest.raises(SchemaError) as failure:
        await start(old)
    assert str(failure.value) == 'the schema can\'t be migrated: column "no_such_column" does not exist'
    assert schema_of(old) == before


async def test_a_service_from_before_versions_refuses_a_migrated_database(new_database: MakeDatabase) -> None:
    """It would put its own functions in the place of ours: it applies that text at each start."""
    async with connected(new_database(SCHEMA.read_text())) as connection:
        with pytest.raises(asyncpg.InvalidFunctionDefinitionError):
            await connection.execute(FIRST)


# ---------------------------------------------------------------------------------------------------------------
# LangGraph's own tables


@pytest.mark.parametrize("migrations", [4, 9], ids=["from an early version of it", "from the present one"])
async def test_the_tables_of_langgraphs_own_saver_are_taken_over(new_database: MakeDatabase, migrations: int) -> None:
    dsn = new_database()
    async with AsyncPostgresSaver.from_conn_string(dsn) as official:
        await official.setup()
        if migrations == 9:
            await turn(official, at("o/t"), "before")
        else:  # as that version left them
            await execute(
                dsn,
                """DELETE FROM checkpoint_migrations WHERE v > 3; ALTER TABLE checkpoint_writes DROP COLUMN task_path;
                ALTER TABLE checkpoint_blobs ALTER COLUMN blob SET NOT NULL""",
            )
        async with open_store(dsn, queue_size=100, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5) as store:
            assert await version(dsn) == VERSION
            texts = await turn(Checkpointer(store), at("o/t"), "after")
            assert texts[-2] == "after"
            assert ("before" in texts) == (migrations == 9)
            await official.setup()
            assert (await turn(official, at("o/t"), "again"))[:-2] == texts
            assert await ids(official, "o/t") == await ids(Checkpointer(store), "o/t")


# ---------------------------------------------------------------------------------------------------------------
# Locks

HOLD_RUNS = """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at)
VALUES ($1, 'o', $1, 1, 'running', 'm', now())"""


async def test_a_start_that_changes_nothing_is_one_select(database_url: str) -> None:
    queries: list[str] = []
    async with connected(database_url) as connection:
        connection.add_query_logger(lambda record: queries.append(record.query))
        await check_schema(connection, migrates=True)
    assert queries == ["SELECT version FROM draftstream_schema"]


async def test_a_start_that_changes_nothing_waits_for_no_lock_and_runs_no_ddl(database_url: str) -> None:
    async with connected(database_url) as holder:
        await holder.execute(
            """CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'that is DDL: %', tg_tag; END $$;
            CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()"""
        )
        with pytest.raises(asyncpg.RaiseError, match="that is DDL"):
            await holder.execute("CREATE TABLE x (y int)")
        tables = await holder.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert len(tables) > 10
        async with holder.transaction():
            for table in tables:
                mode = "EXCLUSIVE" if table["tablename"] == "draftstream_schema" else "ACCESS EXCLUSIVE"
                await holder.execute(f"LOCK TABLE {table['tablename']} IN {mode} MODE")
            await asyncio.wait_for(start(database_url), 5)


@pytest.mark.parametrize("scripts", [(SCHEMA.read_text(),), (OLD_DATABASE,)], ids=["current", "old"])
async def test_a_start_beside_an_open_transaction_blocks_no_writer(
    new_database: MakeDatabase, scripts: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A migration waits for its end, in attempts so short that no writer gives up."""
    dsn = new_database(*scripts)
    async with connected(dsn) as holder, connected(dsn) as writer:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(HOLD_RUNS, "held")
        starting = asyncio.create_task(start(dsn))
        attempts = 0 if scripts[0] == SCHEMA.read_text() else 2
        longest, number = 0.0, 0
        loop = asyncio.get_running_loop()
        while number < 100 or caplog.text.count("waits for another transaction") < attempts:
            began = loop.time()
            await asyncio.wait_for(writer.execute(HOLD_RUNS, str(number)), 10)
            longest = max(longest, loop.time() - began)
            number += 1
            await asyncio.sleep(0.01)
        assert longest < COMMIT_BUDGET_S
        assert starting.done() == (attempts == 0)
        await transaction.commit()
        await asyncio.wait_for(starting, 20)
    assert await version(dsn) == VERSION


async def test_a_migration_gives_up_when_its_tables_are_held_for_long(
    new_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TABLES_BUDGET_S", 1.0)
    dsn = new_database(OLD_DATABASE)
    async with connected(dsn) as holder, holder.transaction():
        await holder.execute(HOLD_RUNS, "held")
        with pytest.raises(SchemaError, match="another transaction has held its tables for 1 seconds") as failure:
            await start(dsn)
    assert "\n" not in str(failure.value)
    assert await version(dsn) == 0


async def test_a_process_waits_for_another_one_that_migrates(
    new_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dsn = new_database(OLD_DATABASE)
    async with connected(dsn) as other:
        async with other.transaction():
            await other.execute(f"SELECT pg_advisory_xact_lock({database.MIGRATION_LOCK})")
            starting = asyncio.create_task(start(dsn))
            await logged(caplog, "another process migrates")
            assert await version(dsn) == 0
        await asyncio.wait_for(starting, 20)
    assert await version(dsn) == VERSION


# ---------------------------------------------------------------------------------------------------------------
# What is refused


def refusal(dsn: str, **settings: str) -> str:
    """The one line with which the service refuses to start."""
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": dsn, "PORT": str(free_port())} | settings
    line = [sys.executable, "asgi_app.py"]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    [said] = [text for text in done.stderr.splitlines() if "Draftstream can't start" in text]
    return said.partition("Draftstream can't start: ")[2]


def test_a_newer_schema_is_refused(new_database: MakeDatabase) -> None:
    dsn = new_database(SCHEMA.read_text(), NEWER)
    said = refusal(dsn)
    assert said.startswith(f"the database has version {VERSION + 1} of the schema, which is newer than this service's")
    for subcommand in ("status", "migrate"):
        done = command(dsn, subcommand)
        assert (done.returncode, done.stderr) == (4, f"python -m storage: {said}\n")


def test_without_migrations_at_the_start_an_earlier_schema_is_refused(new_database: MakeDatabase) -> None:
    old = new_database(OLD_DATABASE)
    said = refusal(old, MIGRATE_AT_START="0")
    assert said == (
        "the database has a schema from before versions, and MIGRATE_AT_START is 0: run python -m storage migrate"
    )
    empty = new_database()
    with pytest.raises(SchemaError, match=r"no schema yet.*python -m storage migrate"):
        run(start(empty, migrate_at_start=False))
    for dsn in (old, empty):
        assert command(dsn, "migrate").returncode == 0
        run(start(dsn, migrate_at_start=False))


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("CREATE TABLE messages (id int, body text)", "messages in the database is not this service's, as it has no"),
        ("CREATE TABLE threads (thread_id text)", "threads in the database is not this service's, as it has no column"),
        ("CREATE VIEW runs AS SELECT 1 AS run_id", "runs in the database is not this service's, as it is no table"),
        (f"{FIRST}; DROP TABLE runs; CREATE TABLE runs (run_id text)", "runs in the database is not this service's"),
        ("CREATE TABLE draftstream_schema (id int)", "draftstream_schema in the database is not this service's"),
        ("CREATE TABLE draftstream_schema AS SELECT 'x' AS version", "draftstream_schema in the database is not"),
        (f"{SCHEMA.read_text()}; DELETE FROM draftstream_schema", "draftstream_schema in the database is not"),
        ("CREATE FUNCTION fork_lock(a text, b text) RETURNS int LANGUAGE sql AS 'SELECT 1'", "the schema can't be"),
    ],
)
async def test_a_foreign_schema_is_refused_and_left_as_it_is(
    new_database: MakeDatabase, script: str, line: str
) -> None:
    dsn = new_database(script)
    tables = "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    before = rows(dsn, tables)
    with pytest.raises(SchemaError) as failure:
        await start(dsn)
    assert str(failure.value).startswith(line)
    assert "\n" not in str(failure.value)
    assert rows(dsn, tables) == before


def test_the_columns_that_make_a_table_ours_are_those_of_the_first_version(new_database: MakeDatabase) -> None:
    columns = """SELECT relname, string_agg(attname, ' ' ORDER BY attnum) AS columns FROM pg_class c
        JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        AND attnum > 0 AND attname NOT IN ('head_run_id', 'parent_run_id', 'words', 'task_path') GROUP BY relname"""
    found = {row["relname"]: row["columns"] for row in rows(new_database(FIRST), columns)}
    assert found == BEFORE_VERSIONS
    assert set(re.findall(r"'(\w+)'", FIRST.partition("IN (")[2].partition(")")[0])) == BEFORE_VERSIONS.keys()


@pytest.fixture
def ordinary_role(postgres: str, new_database: MakeDatabase) -> Iterator[Callable[..., str]]:
    """A database with a role that may read and write its tables and not create any; gives that role's DSN."""

    def make(*scripts: str) -> str:
        dsn = new_database(*scripts)
        made.append(dsn)
        run(execute(dsn, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}"))
        return dsn.replace("//postgres@", f"//{ROLE}@")

    made: list[str] = []
    run(execute(postgres, f"DROP ROLE IF EXISTS {ROLE}; CREATE ROLE {ROLE} LOGIN"))
    yield make
    for dsn in made:
        run(execute(dsn, f"DROP OWNED BY {ROLE}"))
    run(execute(postgres, f"DROP ROLE {ROLE}"))


def test_a_role_that_may_not_create_starts_when_nothing_is_to_be_created(
    ordinary_role: Callable[..., str], service: Start
) -> None:
    running = service(DATABASE_URL=ordinary_role(SCHEMA.read_text()))
    first = send_chat(running.url, "Draft an NDA", thread_id="t")
    assert first.last["saved"] is True
    forked = {"checkpoint_id": first.last["checkpoint_id"], "thread_id": "u"}
    assert requests.post(f"{running.url}/api/threads/t/fork", json=forked, timeout=10).status_code == 201
    until(lambda: bool(request("GET", f"{running.url}/api/threads?q=agreement").problem["threads"]))
    assert requests.delete(f"{running.url}/api/threads/t", timeout=10).status_code == 204


@pytest.mark.parametrize(
    ("scripts", "line"),
    [
        ((), "permission denied for schema public"),
        ((FIRST,), "permission denied for schema public"),
        ((FIRST, f"GRANT CREATE ON SCHEMA public TO {ROLE}"), "must be owner of table threads"),
    ],
    ids=["empty", "old", "not the tables' owner"],
)
async def test_a_role_that_may_not_create_is_refused_when_something_is_to_be_created(
    ordinary_role: Callable[..., str], scripts: Sequence[str], line: str
) -> None:
    with pytest.raises(SchemaError) as failure:
        await start(ordinary_role(*scripts))
    assert line in str(failure.value)
    assert "python -m storage migrate" in str(failure.value)
    assert "\n" not in str(failure.value)


async def test_a_role_that_may_not_read_is_refused(
    new_database: MakeDatabase, ordinary_role: Callable[..., str]
) -> None:
    dsn = ordinary_role(SCHEMA.read_text())
    await execute(dsn.replace(f"//{ROLE}@", "//postgres@"), f"REVOKE ALL ON draftstream_schema FROM {ROLE}")
    with pytest.raises(SchemaError, match="permission denied for table draftstream_schema"):
        await start(dsn)


async def test_a_database_that_goes_away_is_no_fault_of_its_schema(
    new_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dsn = new_database(OLD_DATABASE)
    async with connected(dsn) as other, other.transaction():
        await other.execute(f"SELECT pg_advisory_xact_lock({database.MIGRATION_LOCK})")
        starting = asyncio.create_task(start(dsn))
        await logged(caplog, "another process migrates")
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with pytest.raises(StoreUnavailable, match="went away"):
            await starting


# ---------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_shows_and_migrates(new_database: MakeDatabase) -> None:
    dsn = new_database(OLD_DATABASE)
    steps = ", ".join(path.name for path in MIGRATIONS.values())
    place = dsn.partition("@")[2].partition("?")[0]
    told = command(dsn, "status")
    assert (told.returncode, told.stdout.splitlines(), told.stderr) == (
        3,
        [
            f"database at local-socket{place}: a schema from before versions",
            f"this service: version {VERSION} of the schema",
            f"to be applied: {steps}",
        ],
        "",
    )
    assert run(version(dsn)) == 0, "it changes nothing"
    done = command(dsn, "migrate")
    assert (done.returncode, done.stdout) == (
        0,
        f"database at local-socket{place}: version {VERSION} of the schema\n",
    )
    assert [line.split()[-1] for line in done.stderr.splitlines()] == steps.split(", ")
    assert (command(dsn, "migrate").returncode, command(dsn, "status").returncode) == (0, 0)
    assert command(dsn, "status").stdout.endswith("to be applied: nothing\n")


def test_the_command_makes_the_schema_of_the_embedded_database() -> None:
    with tempfile.TemporaryDirectory(prefix="storage-") as folder:  # not among pytest's, as other sessions close these
        Path(folder).chmod(0o755)
        data = {"DATA_DIR": f"{folder}/data"}
        place = f"embedded PostgreSQL in {folder}/data/postgres"
        none = command("", "status", **data)
        assert (none.returncode, none.stdout.splitlines()[0]) == (3, f"{place}: none yet")
        assert not Path(f"{folder}/data").exists(), "status makes no database"
        done = command("", "migrate", **data)
        assert (done.returncode, done.stderr) == (0, "schema: applied schema.sql\n")
        assert done.stdout == f"{place}: version {VERSION} of the schema\n"
        assert command("", "status", **data).returncode == 0


def test_old_threads_go_on_with_a_strict_provider_and_a_small_context(
    new_database: MakeDatabase, service: Start, openai: OpenAIServer
) -> None:
    """The offline model wrote them, and one was cut by the end of its process. Their ids and roles are not Mistral's."""
    openai.family = "mistral"
    running = service(openai=openai, DATABASE_URL=new_database(OLD_DATABASE), MODEL_CONTEXT_TOKENS="6000")
    find = "“**Representatives**” means, with respect to a Party, its affiliates"
    for thread, version in (("intake", 3), ("copy", 2)):
        edits = {"edits": [{"find": find, "replace": f"{find} (as amended)"}]}
        openai.reply(tool("edit_document", edits), finish("tool_calls"))
        stream = send_chat(running.url, "Amend it", thread_id=thread, headers=KEY)
        document, said = stream.items.values()
        assert (document["version"], said["content"], stream.last["reason"]) == (version, "OK.", "stop")
        assert f"{find} (as amended)" in document["content"]
    for thread in ("keyed", "cut"):
        assert send_chat(running.url, "Go on", thread_id=thread, headers=KEY).last["reason"] == "stop"
    states = requests.get(f"{running.url}/api/threads/intake/checkpoints", headers=KEY, timeout=30).json()[
        "checkpoints"
    ]
    oldest = states[-1]["checkpoint_id"]
    branch = send_chat(running.url, "Go on", thread_id="intake", checkpoint_id=oldest, headers=KEY)
    assert branch.last["reason"] == "stop"
    assert openai.refusals == []


@pytest.mark.parametrize(
    ("dsn", "line"),
    [
        ("mysql://user:secret@x/y", "DATABASE_URL must be a postgresql:// URL"),
        ("postgresql://user:12/34secret@127.0.0.1:1/x", "DATABASE_URL can't be read"),
        ("postgresql://user:secret@127.0.0.1:1/x", "can't use the database at 127.0.0.1:1/x"),
    ],
)
def test_the_command_says_in_one_line_why_it_can_do_nothing(dsn: str, line: str) -> None:
    done = command(dsn, "status")
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith(f"python -m storage: {line}")
    assert "secret" not in said


def test_the_help_has_each_exit_code() -> None:
    told = command("", "--help").stdout
    assert [line.split()[0] for line in told.partition("exit codes:")[2].splitlines() if line] == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
