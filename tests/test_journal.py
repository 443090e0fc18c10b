"""The journal: turns that the database could not take are there after the next start, once and in their place."""

import asyncio
import fcntl
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import asyncpg
import ormsgpack
import pytest
from conftest import Service, rows
from fault_proxy import FaultProxy
from openai_server import OpenAIServer, finish, stall, text, tool
from sse_client import Stream, chat, request
from test_faults import wait_for
from test_service import graph_state, history
from test_store import ended, started

from chat import Error, RunStatus
from storage.checkpoints import PUT_BLOB
from storage.journal import HEADER, Contents, Journal, JournalError, orphan
from storage.recovery import JournaledTurn, replay

Start = Callable[..., Service]


# ---------------------------------------------------------------------------------------------------------------
# The file


def write(folder: Path, *records: bytes) -> bytes:
    """A journal's file with the records, left by a process that is gone."""

    async def append() -> None:
        journal = Journal(folder)
        for number, record in enumerate(records):
            await journal.append(str(number), record)
        journal.close()

    asyncio.run(append())
    [path] = folder.glob("*.journal")
    return path.read_bytes()


def test_any_tail_of_a_file_may_be_torn(tmp_path: Path) -> None:
    records = [b"one", b"DSJ1 two" * 20, b"three"]
    data = write(tmp_path, *records)
    ends = [sum(HEADER.size + len(record) for record in records[:count]) for count in range(4)]
    for cut in range(len(data)):
        contents = Contents.read(data[:cut])
        whole = sum(cut >= end for end in ends[1:])
        assert (contents.records, contents.damaged) == (records[:whole], [])
        assert contents.torn == cut - ends[whole]
    assert Contents.read(data + bytes(500)).torn == 500, "zeros, as a file system leaves them after a crash"


def test_a_flipped_bit_costs_one_record_and_no_other(tmp_path: Path) -> None:
    records = [bytes(random.Random(seed).randbytes(40)) + b"DSJ1" for seed in range(3)]
    data = write(tmp_path, *records)
    second = range(HEADER.size + len(records[0]), 2 * (HEADER.size + len(records[0])))
    for place in second:
        for bit in (1, 128):
            flipped = bytearray(data)
            flipped[place] ^= bit
            contents = Contents.read(bytes(flipped))
            assert contents.records == [records[0], records[2]]
            assert b"".join(contents.damaged) == flipped[second.start : second.stop]
            assert contents.torn == 0


async def settled(folder: Path) -> None:
    journal = Journal(folder)
    await asyncio.gather(*(journal.append(str(number), b"x" * 1000) for number in range(20)))
    assert journal.unsettled == {str(number) for number in range(20)}
    assert len(Contents.read(next(folder.glob("*.journal")).read_bytes()).records) == 20
    for number in range(20):
        journal.settle(str(number))
    await journal.append("last", b"y")
    assert Contents.read(next(folder.glob("*.journal")).read_bytes()).records == [b"y"]
    journal.settle("last")
    journal.close()


def test_a_settled_turn_leaves_no_file_in_the_journal(tmp_path: Path) -> None:
    asyncio.run(settled(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_to_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="can't be kept in"):
        Journal(tmp_path / "file" / "journal")


# ---------------------------------------------------------------------------------------------------------------
# Back into the database


def turn_of(run_id: str, seq: int = 1, answer: str = "Hello", thread_id: str = "t") -> JournaledTurn:
    return JournaledTurn(ended(started(thread_id, seq, f"question {run_id}", run_id), answer), [])


def put_back(database_url: str, folder: Path, *turns: JournaledTurn) -> None:
    if turns:
        write(folder, *(turn.encode() for turn in turns))

    async def work() -> None:
        connection = await asyncpg.connect(database_url)
        await replay(connection, folder)
        await connection.close()

    asyncio.run(work())


def said(database_url: str) -> list[tuple[int, str, str]]:
    sql = "SELECT seq, run_id, content FROM messages WHERE thread_id = 't' ORDER BY seq, item"
    return [tuple(row) for row in rows(database_url, sql)]


def test_a_turn_is_written_down_whole() -> None:
    end = ended(replace(started(run_id="r"), lost=[("r0", 3)]))
    for turn in (
        JournaledTurn(end, [PUT_BLOB("t", "", "messages", "1", "msgpack", b"\xff\0")]),
        JournaledTurn(type(end)(end.started, RunStatus.FAILED, [], None, Error("x", "y", True), None, None, 1.5), []),
    ):
        assert JournaledTurn.decode(turn.encode()) == turn


def test_turns_come_back_in_their_order_and_only_once(database_url: str, tmp_path: Path) -> None:
    turns = [turn_of(f"r{seq}", seq) for seq in (1, 2, 3)]
    for _ in range(2):
        put_back(database_url, tmp_path, *turns)
        assert list(tmp_path.iterdir()) == []
        assert said(database_url) == [
            place for seq in (1, 2, 3) for place in ((seq, f"r{seq}", f"question r{seq}"), (seq, f"r{seq}", "Hello"))
        ]


def test_a_turn_whose_thread_has_moved_on_becomes_a_branch(database_url: str, tmp_path: Path) -> None:
    put_back(database_url, tmp_path, turn_of("theirs", 1))
    for _ in range(2):
        put_back(database_url, tmp_path, turn_of("ours", 1, "Ours"))
    assert [place for place in said(database_url) if place[2] in ("Hello", "Ours")] == [
        (1, "theirs", "Hello"),
        (2, "ours", "Ours"),
    ]


def test_an_acknowledged_turn_that_was_taken_for_interrupted_is_kept_whole(database_url: str, tmp_path: Path) -> None:
    """Its start was saved, its end journaled; then its lease ran out, and another process went on."""
    put_back(database_url, tmp_path, turn_of("ours", 1, "Half"))
    rows(database_url, "ALTER TABLE runs DISABLE TRIGGER run_ends_once")
    rows(database_url, "UPDATE runs SET status = 'interrupted', idempotency_key = 'k'")
    rows(database_url, "ALTER TABLE runs ENABLE TRIGGER run_ends_once")
    put_back(database_url, tmp_path, turn_of("theirs", 2))
    for _ in range(2):
        put_back(database_url, tmp_path, turn_of("ours", 1, "The whole of it"))
    answers = [(seq, content) for seq, _, content in said(database_url) if "question" not in content]
    assert answers == [(1, "Half"), (2, "Hello"), (3, "The whole of it")]
    assert [row["status"] for row in rows(database_url, "SELECT status FROM runs ORDER BY seq")] == [
        "interrupted",
        "completed",
        "completed",
    ]


def test_what_can_not_be_read_or_stored_is_set_aside_and_the_rest_goes_on(database_url: str, tmp_path: Path) -> None:
    data = write(
        tmp_path, b"no turn", turn_of("r1").encode(), turn_of("bad", thread_id="b", answer="a\0b").encode(), b"damaged"
    )
    [path] = tmp_path.glob("*.journal")
    path.write_bytes(data[:-1] + b"!" + data[:10])
    put_back(database_url, tmp_path)
    assert [run_id for _, run_id, _ in said(database_url)] == ["r1", "r1"]
    assert list(tmp_path.glob("*.journal")) == []
    aside = next(tmp_path.glob("*.damaged")).read_bytes()
    assert b"damage!" in aside
    assert b"no turn" in aside
    assert b"a\0b" in aside


PUT_BLOB_THEN = """INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING"""
PUT_CHECKPOINT_THEN = """INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
VALUES ($1, $2, $3, $4, $5::jsonb, $6::jsonb)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO UPDATE SET
    checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata"""
PUT_TASK_WRITE_THEN = """INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO NOTHING"""
REPLACE_TASK_WRITE_THEN = PUT_TASK_WRITE_THEN.replace(
    "DO NOTHING", "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"
)


def record_of_0_1_0(*checkpoints: tuple[str, tuple[object, ...]]) -> bytes:
    """A record as version 0.1.0 wrote it: SQL, and the arguments in their order."""
    return ormsgpack.packb({"ended": turn_of("r1").ended, "checkpoints": list(checkpoints)})


def test_a_record_of_the_first_version_is_put_back(database_url: str, tmp_path: Path) -> None:
    state = ("o/t", "", "c2")
    record = record_of_0_1_0(
        (PUT_BLOB_THEN, ("o/t", "", "messages", "1", "msgpack", b"\xff\0")),
        (PUT_CHECKPOINT_THEN, (*state, "c1", '{"id": "c2"}', "{}")),
        (PUT_TASK_WRITE_THEN, (*state, "task", "path", 0, "messages", "msgpack", b"\x01")),
        (REPLACE_TASK_WRITE_THEN, (*state, "task", "path", 0, "messages", "msgpack", b"\x02")),
    )
    write(tmp_path, record)
    put_back(database_url, tmp_path)
    assert said(database_url) == [(1, "r1", "question r1"), (1, "r1", "Hello")]
    assert [tuple(row) for row in rows(database_url, "SELECT channel, blob FROM checkpoint_blobs")] == [
        ("messages", b"\xff\0")
    ]
    sql = "SELECT checkpoint_id, parent_checkpoint_id, checkpoint::text FROM checkpoints"
    assert [tuple(row) for row in rows(database_url, sql)] == [("c2", "c1", '{"id": "c2"}')]
    sql = "SELECT checkpoint_id, task_path, idx, blob FROM checkpoint_writes"
    assert [tuple(row) for row in rows(database_url, sql)] == [("c2", "path", 0, b"\x02")]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "record",
    [
        record_of_0_1_0(("DELETE FROM threads", ())),
        ormsgpack.packb({"ended": turn_of("r1").ended, "checkpoints": [("forget_everything", {"thread": "o/t"})]}),
    ],
    ids=["SQL", "name"],
)
def test_a_statement_that_is_none_of_ours_is_not_executed(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, record: bytes
) -> None:
    put_back(database_url, tmp_path, turn_of("before", thread_id="b"))
    write(tmp_path, record)
    put_back(database_url, tmp_path)
    assert said(database_url) == []
    assert len(rows(database_url, "SELECT 1 FROM threads")) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [record]
    [error] = [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert ".journal: a turn can't be put back: this version knows no statement" in error
    assert caplog.records[-1].getMessage().endswith("1 records set aside, as they can't be put back")


ENDED = turn_of("r1").ended
EVIL = "DROP TABLE threads; --"
BLOB = {"thread": "o/t", "namespace": "", "channel": "messages", "version": "1", "type": "empty", "blob": b""}


@pytest.mark.parametrize(
    "checkpoints",
    [
        [(EVIL, {})],
        [(EVIL, [])],
        [("add_key", {"key_id": "k", "secret_hash": b"", "owner": "o"})],  # of ours, but none that is journaled
        [("put_blob", BLOB | {"evil": EVIL})],
        [("put_blob", {"sql": EVIL, **BLOB})],
        [("put_blob", {})],
        [("put_blob", [EVIL])],
        [("put_blob; " + EVIL, BLOB)],
        [(["put_blob"], BLOB)],
        [(b"put_blob", BLOB)],
        [(None, None)],
        [("__class__", BLOB)],
        ["put_blob"],
        {"put_blob": BLOB},
        EVIL,
    ],
    ids=str,
)
def test_a_hostile_record_executes_nothing_and_is_set_aside(
    database_url: str, tmp_path: Path, checkpoints: object
) -> None:
    put_back(database_url, tmp_path, turn_of("before", thread_id="b"))
    record = ormsgpack.packb({"ended": ENDED, "checkpoints": checkpoints})
    write(tmp_path, record)
    put_back(database_url, tmp_path)
    assert said(database_url) == []
    assert [row["thread_id"] for row in rows(database_url, "SELECT thread_id FROM threads")] == ["b"]
    assert rows(database_url, "SELECT 1 FROM access_keys UNION ALL SELECT 1 FROM checkpoint_blobs") == []
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [record]


def modes(folder: Path) -> dict[str, int]:
    """The rights of everybody else in a folder and all below it."""
    return {
        str(path.relative_to(folder)): path.lstat().st_mode & 0o077
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
    }


def test_a_journal_and_all_beside_it_is_for_its_user_alone(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "journal"
    before = os.umask(0)
    try:
        write(folder, turn_of("r1").encode(), b"no turn at all")
        damaged = bytearray(write(tmp_path / "other", b"the clause"))
        damaged[-1] ^= 1
        (folder / "x.journal").write_bytes(damaged)
        put_back(database_url, folder)
    finally:
        os.umask(before)
    assert sum(path.suffix == ".damaged" for path in folder.iterdir()) == 2
    assert set(modes(folder).values()) == {0}


def test_what_an_earlier_version_left_open_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    folder.chmod(0o755)
    left = folder / "a.damaged"
    left.write_bytes(b"the clause")
    left.chmod(0o644)
    with caplog.at_level("INFO", "draftstream"):
        write(folder, b"x")
    assert set(modes(folder).values()) == {0}
    assert left.read_bytes() == b"the clause"
    assert caplog.messages == [f"{folder} is closed to other users now"]


@pytest.mark.parametrize("mode", [0o1777, 0o777])
def test_a_folder_that_others_use_too_stays_as_it_is(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(mode)
    data = write(tmp_path, b"the clause")
    assert data
    assert tmp_path.stat().st_mode & 0o7777 == mode
    assert {rights for name, rights in modes(tmp_path).items() if name != "."} == {0}
    assert caplog.messages == [f"other users may list {tmp_path}; give the service a folder of its own"]


def test_a_link_in_the_place_of_a_file_that_is_set_aside_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    folder = tmp_path / "journal"
    data = bytearray(write(folder, b"the clause"))
    [path] = folder.glob("*.journal")
    data[-1] ^= 1
    path.write_bytes(data)
    path.with_suffix(".damaged").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"), orphan(path):
        pass
    assert not target.exists()
    assert path.exists(), "the record is kept"


def test_the_journal_of_a_process_that_lives_is_left_alone(database_url: str, tmp_path: Path) -> None:
    write(tmp_path, turn_of("r1").encode())
    [path] = tmp_path.glob("*.journal")
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        put_back(database_url, tmp_path)
    assert said(database_url) == []
    put_back(database_url, tmp_path)
    assert len(said(database_url)) == 2


# ---------------------------------------------------------------------------------------------------------------
# The service


def first_turn(running: Service, proxy: FaultProxy) -> Stream:
    """A turn on a new thread while nothing passes to the database."""
    proxy.frozen = True
    return chat(running.url, "Draft an NDA")


@pytest.fixture
def journaling(service: Start, proxy: FaultProxy, tmp_path: Path, openai: OpenAIServer) -> Callable[[], Service]:
    draft = {"title": "NDA", "content": "# NDA 😀"}

    def start() -> Service:
        openai.reply(text("Here "), tool("write_document", draft), finish("tool_calls"))
        return service(openai=openai, DATABASE_URL=proxy.dsn, JOURNAL_DIR=str(tmp_path / "journal"))

    return start


def test_a_turn_is_acknowledged_by_the_journal_and_survives_kill_9(
    journaling: Callable[[], Service], proxy: FaultProxy, database_url: str, openai: OpenAIServer, tmp_path: Path
) -> None:
    running = journaling()
    stream = first_turn(running, proxy)
    assert (stream.last["saved"], stream.last["journaled"]) == (False, True)
    running.kill()
    proxy.cut()
    proxy.frozen = False
    assert rows(database_url, "SELECT 1 FROM runs") == []
    running.restart()
    thread_id = stream.events[0]["thread_id"]
    stored = history(running, thread_id)
    assert [item["content"] for item in stored["messages"]] == ["Draft an NDA", "Here ", "# NDA 😀", "OK."]
    again = request("GET", f"{running.url}/api/runs/{stream.run_id}/events")
    assert (again.items, again.last["saved"], "journaled" in again.last) == (stream.items, True, False)
    assert [document["content"] for document in graph_state(database_url, thread_id)["documents"]] == ["# NDA 😀"]
    assert chat(running.url, "On", thread_id=thread_id).last["saved"] is True
    assert [message["role"] for message in openai.requests[-1].body["messages"]] == [
        *("system", "user", "assistant", "tool", "assistant", "user")
    ]
    assert openai.refusals == []
    assert not list((tmp_path / "journal").glob("*.damaged"))


def test_a_shutdown_while_the_database_is_frozen_loses_nothing_and_ends_in_time(
    journaling: Callable[[], Service], proxy: FaultProxy, database_url: str, openai: OpenAIServer
) -> None:
    openai.reply(text("So far"), stall())
    running = journaling()
    running.env["DRAIN_TIMEOUT_S"] = "1"
    running.restart()
    proxy.frozen = True
    with ThreadPoolExecutor(1) as threads:
        cut = threads.submit(chat, running.url, "Draft an NDA")
        wait_for(lambda: openai.requests)
        begun = time.monotonic()
        assert running.stop() == 0
        took_s = time.monotonic() - begun
        assert cut.result().last["code"] == "shutting_down"
    assert took_s < 1 + 5 + 20, "the grace and five seconds, and a machine that may be slow"
    proxy.cut()
    proxy.frozen = False
    running.restart()
    stored = history(running, cut.result().events[0]["thread_id"])
    assert [(item["content"], item["complete"]) for item in stored["messages"]] == [
        ("Draft an NDA", True),
        ("So far", False),
    ]
    assert stored["runs"][0]["status"] == "cancelled"


def test_without_a_journal_the_exit_code_and_the_log_say_what_was_lost(
    service: Start, proxy: FaultProxy, openai: OpenAIServer
) -> None:
    running = service(openai=openai, DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="0.5", DRAIN_TIMEOUT_S="1")
    proxy.frozen = True
    for _ in range(3):
        end = chat(running.url, "Hi").last
        assert (end["saved"], "journaled" in end) == (False, False)
    assert running.stop() == 4
    assert "3 turns were not saved; none of them had been acknowledged" in running.log


def test_what_the_database_takes_in_time_is_not_kept_in_the_journal(
    journaling: Callable[[], Service], proxy: FaultProxy, database_url: str, tmp_path: Path
) -> None:
    running = journaling()
    assert first_turn(running, proxy).last["journaled"] is True
    proxy.cut()
    proxy.frozen = False
    wait_for(lambda: rows(database_url, "SELECT 1 FROM runs WHERE status = 'completed'"))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert list((tmp_path / "journal").iterdir()) == []
