"""Turns in the journal: the form of their records, and their way back into the database at the next start.

A turn is put in its place once, however often that is tried. If its thread has moved on meanwhile, the turn becomes a
branch of the thread. Then the thread's head stays, nothing is overwritten, and neither branch remembers the other. A
turn whose thread was deleted is left out.

The journals are deleted after one last commit, for which a synchronous standby is waited. If that is not confirmed they
stay for the next start, which finds their turns and only has them confirmed.
"""

import hashlib
import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import asyncpg
import ormsgpack

from chat import Error, RunEnded, RunStarted, RunStatus
from storage.checkpoints import (
    COPY_CHECKPOINT,
    JOURNALED,
    PUT_BLOB,
    PUT_CHECKPOINT,
    PUT_TASK_WRITE,
    REPLACE_TASK_WRITE,
    CheckpointRow,
    TaskWriteRow,
)
from storage.closing import within
from storage.commits import real_write, transaction
from storage.faults import CONFLICTS, Unconfirmed, is_refused_content
from storage.journal import orphan, orphans
from storage.private import opener
from storage.reads import READ_PLACE
from storage.sql import Statement, Write
from storage.statements import end_writes, start_writes

log = logging.getLogger("draftstream.recovery")

ANY_LENGTH = 2**62  # code points
CONFIRM_BUDGET_S = 5.0  # for a standby that is there; a start doesn't wait for one that is not
ATTEMPTS = 10  # an attempt fails when another process begins a run of the same thread
Outcome = Literal["put back", "were there already", "put back as branches", "were deleted", "set aside"]
LOG_LINES: Mapping[Outcome, str] = {
    "put back": "%s: %d turns put back",
    "were there already": "%s: %d turns were there already",
    "put back as branches": "%s: %d turns put back as branches of threads that had moved on",
    "were deleted": "%s: %d turns of threads that were deleted since",
    "set aside": "%s: %d records set aside, as they can't be put back",
}
BRANCHES = uuid.UUID("0f3c1a52-7d0c-4f0b-9d55-6f7f0f7b6a3e")  # the id of a branch is made of its run's, by this


# A record of version 0.1.0 holds a statement as SQL, and its row as a list. This names the statements by the SHA-256 of
# that SQL.
STATEMENTS_BY_SQL: Mapping[str, Statement[...]] = {
    "1d8d1c45440667e1360202da7d28bdd542b3911905ed396ff719ae24e6f607ba": PUT_BLOB,
    "c0dd7c47653b9238ecb33117e414fc898999e8d6f32cbe885388c4afc209cff6": PUT_CHECKPOINT,
    "da40012994fd3f0fa0ebaec18101e7c42301396e3ebf1811be0b602cfaca8dd7": PUT_TASK_WRITE,
    "61dd503a460a15f1fc66d05d78110b61040d08910cb04616499b5f8d91a0ad12": REPLACE_TASK_WRITE,
}


class UnknownStatement(ValueError):
    """A record names a statement that this version does not know, or holds SQL. It must not be executed."""

    def __init__(self, statement: object) -> None:
        super().__init__(f"this version knows no statement {str(statement)[:60]!r}")


@dataclass(frozen=True, slots=True)
class JournaledTurn:
    """A run from its start to its end, and the checkpoints that it left."""

    ended: RunEnded
    checkpoints: list[Write]

    def encode(self) -> bytes:
        """Statements by name and rows by field, so that a later version can read it."""
        return ormsgpack.packb({"ended": self.ended, "checkpoints": [write.named for write in self.checkpoints]})

    @classmethod
    def decode(cls, record: bytes) -> "JournaledTurn":
        """Raises UnknownStatement; ValueError, TypeError or KeyError for a record that is no turn."""
        fields: dict[str, Any] = ormsgpack.unpackb(record)
        ended = fields["ended"]
        lost = [(run_id, known) for run_id, known in ended["started"]["lost"]]
        return cls(
            RunEnded(
                **ended
                | {
                    "started": RunStarted(**ended["started"] | {"lost": lost}),
                    "status": RunStatus(ended["status"]),
                    "error": Error(**ended["error"]) if ended["error"] else None,
                }
            ),
            [_write_of(statement, row) for statement, row in fields["checkpoints"]],
        )


def _write_of(name: str, row: dict[str, Any] | list[Any]) -> Write:
    if isinstance(row, list):
        statement = STATEMENTS_BY_SQL.get(hashlib.sha256(name.encode()).hexdigest())
        if statement is not None:
            return statement(*row)
    elif (statement := JOURNALED.get(name)) is not None:
        return statement(**row)
    raise UnknownStatement(name)


async def replay(connection: asyncpg.Connection, folder: Path) -> None:
    """Put back the turns of every journal in the folder whose process is gone.

    Raises the database's error when it goes away; then the journals stay.
    """
    try:
        with ExitStack() as held:
            found = [(path, contents) for path in orphans(folder) if (contents := held.enter_context(orphan(path)))]
            for path, contents in found:
                outcomes = Counter([await _replay_record(connection, record, path) for record in contents.records])
                for outcome, count in outcomes.items():
                    log.warning(LOG_LINES[outcome], path.name, count)
            if found:
                await within(CONFIRM_BUDGET_S, connection, _confirm(connection))
    except (Unconfirmed, TimeoutError):
        log.warning("no standby has confirmed the turns that were put back; their journals stay for the next start")


async def _confirm(connection: asyncpg.Connection) -> None:
    async with transaction(connection, CONFIRM_BUDGET_S):
        for statement, row in real_write():
            await connection.execute(statement.sql, *row)


async def _replay_record(connection: asyncpg.Connection, record: bytes, path: Path) -> Outcome:
    try:
        return await _put_back(connection, JournaledTurn.decode(record))
    except (ValueError, TypeError, KeyError, asyncpg.PostgresError) as error:
        if isinstance(error, asyncpg.PostgresError) and not is_refused_content(error):
            raise
        if isinstance(error, UnknownStatement):
            log.error("%s: a turn can't be put back: %s", path.name, error)
        with open(path.with_suffix(".damaged"), "ab", opener=opener) as aside:  # noqa: ASYNC230  # a start, before anything else
            aside.write(record)
        return "set aside"


async def _put_back(connection: asyncpg.Connection, turn: JournaledTurn) -> Outcome:
    for _ in range(ATTEMPTS - 1):
        try:
            return await _attempt(connection, turn)
        except CONFLICTS:
            continue
    return await _attempt(connection, turn)


async def _attempt(connection: asyncpg.Connection, turn: JournaledTurn) -> Outcome:
    run = turn.ended.started
    branch_id = str(uuid.uuid5(BRANCHES, run.run_id))
    async with connection.transaction():
        # `replay` has all of them confirmed together.
        await connection.execute("SET LOCAL synchronous_commit = local; SET LOCAL statement_timeout = 0")
        [place] = await connection.fetch(
            READ_PLACE, run.owner, run.thread_id, run.run_id, branch_id, run.idempotency_key
        )
        if place["deleted"]:
            return "were deleted"
        status = place["status"]
        if status not in (None, RunStatus.RUNNING, RunStatus.INTERRUPTED) or place["branched"]:
            return "were there already"
        moved_on = place["last_seq"] != (run.seq if status else run.seq - 1) or status == RunStatus.INTERRUPTED
        if moved_on:
            run = replace(run, seq=place["last_seq"] + 1, run_id=branch_id if status else run.run_id)
        if place["key_is_taken"]:
            run = replace(run, idempotency_key=None, fingerprint=None)
        # The turn was acknowledged after the runs that it goes on from, however much was saved of them since.
        run = replace(run, lost=[(run_id, ANY_LENGTH) for run_id, _ in run.lost])
        writes = [
            *start_writes(run, leads=not moved_on),
            *end_writes(replace(turn.ended, started=run)),
            *(on_their_own(turn.checkpoints, branch_id) if moved_on else turn.checkpoints),
        ]
        for statement, row in writes:
            await connection.execute(statement.sql, *row)
    return "put back as branches" if moved_on else "put back"


def on_their_own(checkpoints: Sequence[Write], branch_id: str) -> list[Write]:
    """The writes of a turn that becomes a branch, on a copy of the state that it started from.

    LangGraph stores the values that a turn adds with the state that the turn started from. Every other turn that went
    on from this state would read them. So the turn gets a copy of the state, with an id that sorts beside it.
    """
    put = {row.checkpoint_id for _, row in checkpoints if isinstance(row, CheckpointRow)}
    copies: dict[str | None, str] = {}
    writes: list[Write] = []
    for _, row in checkpoints:
        if isinstance(row, TaskWriteRow) and row.checkpoint_id not in put and row.checkpoint_id not in copies:
            copy_id = f"{row.checkpoint_id[:-12]}{branch_id[-12:]}"
            copies[row.checkpoint_id] = copy_id
            writes.append(COPY_CHECKPOINT(row.thread, row.namespace, row.checkpoint_id, copy_id))
    for statement, row in checkpoints:
        if isinstance(row, TaskWriteRow):
            row = row._replace(checkpoint_id=copies.get(row.checkpoint_id, row.checkpoint_id))  # noqa: PLW2901
        elif isinstance(row, CheckpointRow):
            parent = copies.get(row.parent_checkpoint_id, row.parent_checkpoint_id)
            row = row._replace(parent_checkpoint_id=parent)  # noqa: PLW2901
        writes.append(Write(statement, row))
    return writes
