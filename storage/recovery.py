"""Turns in the journal: how one is written down, and how it comes back into the database at the next start.

Each is put where it belongs, once, however often that is tried. Where its thread has moved on meanwhile it becomes a
branch of it, and the thread's head stays where it is; nothing is overwritten, and neither remembers what the other
said. One that was deleted with its thread stays away.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import asyncpg
import ormsgpack

from chat import Error, RunEnded, RunStarted, RunStatus
from storage.journal import orphan, orphans
from storage.statements import READ_PLACE, end_writes, start_writes
from storage.writer import CONFLICTS, Write, is_refused_content

log = logging.getLogger("draftstream.recovery")

WHATEVER = 2**62  # code points
ATTEMPTS = 10  # each lost to another run of the same thread, on another process
Outcome = Literal["put back", "were there already", "put back as branches", "were deleted"]
TOLD: Mapping[str, str] = {
    "put back": "%s: %d turns put back",
    "were there already": "%s: %d turns were there already",
    "put back as branches": "%s: %d turns put back as branches of threads that had moved on",
    "were deleted": "%s: %d turns of threads that were deleted since",
    "set aside": "%s: %d records set aside, as they can't be put back",
}
BRANCHES = uuid.UUID("0f3c1a52-7d0c-4f0b-9d55-6f7f0f7b6a3e")  # names a branch after its run

PUT_DELTA, PUT_CHECKPOINT = "INSERT INTO checkpoint_writes", "INSERT INTO checkpoints"  # how the statements begin
COPY_CHECKPOINT = """INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
SELECT thread_id, checkpoint_ns, $4, parent_checkpoint_id, type,
    jsonb_set(checkpoint, '{id}', to_jsonb($4::text)), metadata
FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = $2 AND checkpoint_id = $3
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO NOTHING"""


@dataclass(frozen=True, slots=True)
class Turn:
    """A run from its start to its end, and the checkpoints that it left."""

    ended: RunEnded
    checkpoints: list[Write]

    def encode(self) -> bytes:
        return ormsgpack.packb({"ended": self.ended, "checkpoints": self.checkpoints})

    @classmethod
    def decode(cls, record: bytes) -> "Turn":
        """Raises ValueError, TypeError or KeyError for what is no turn."""
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
            [(sql, tuple(arguments)) for sql, arguments in fields["checkpoints"]],
        )


async def replay(connection: asyncpg.Connection, folder: Path) -> None:
    """Put back the turns of every journal in the folder whose process is gone.

    Raises what the database raises when it goes away; then the rest stays where it is.
    """
    for path in orphans(folder):
        with orphan(path) as contents:
            if contents is None:
                continue
            outcomes: Counter[str] = Counter()
            for record in contents.records:
                try:
                    outcomes[await _put_back(connection, Turn.decode(record))] += 1
                except (ValueError, TypeError, KeyError, asyncpg.PostgresError) as error:
                    if isinstance(error, asyncpg.PostgresError) and not is_refused_content(error):
                        raise
                    outcomes["set aside"] += 1
                    with path.with_suffix(".damaged").open("ab") as aside:
                        aside.write(record)
            for outcome, count in outcomes.items():
                log.warning(TOLD[outcome], path.name, count)


async def _put_back(connection: asyncpg.Connection, turn: Turn) -> Outcome:
    for _ in range(ATTEMPTS - 1):
        try:
            return await _attempt(connection, turn)
        except CONFLICTS:
            continue
    return await _attempt(connection, turn)


async def _attempt(connection: asyncpg.Connection, turn: Turn) -> Outcome:
    run = turn.ended.started
    branch_id = str(uuid.uuid5(BRANCHES, run.run_id))
    async with connection.transaction():
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
        # What it went on from is as it was when it was acknowledged, whatever was saved of that since.
        run = replace(run, lost=[(run_id, WHATEVER) for run_id, _ in run.lost])
        writes = [
            *start_writes(run, leads=not moved_on),
            *end_writes(replace(turn.ended, started=run)),
            *(on_their_own(turn.checkpoints, branch_id) if moved_on else turn.checkpoints),
        ]
        for sql, arguments in writes:
            await connection.execute(sql, *arguments)
    return "put back as branches" if moved_on else "put back"


def on_their_own(checkpoints: Sequence[Write], branch_id: str) -> list[Write]:
    """The writes of a turn, less what they share with a turn that went on from the same state.

    LangGraph stores what a turn adds with the state that it started from, where all that went on from there would read
    it. So the turn gets a copy of that state for its own, with an id that sorts beside it.
    """
    put = {row[2] for sql, row in checkpoints if sql.startswith(PUT_CHECKPOINT)}
    copies: dict[object, str] = {}
    writes: list[Write] = []
    for sql, row in checkpoints:
        if sql.startswith(PUT_DELTA) and row[2] not in put and row[2] not in copies:
            copies[row[2]] = f"{str(row[2])[:-12]}{branch_id[-12:]}"
            writes.append((COPY_CHECKPOINT, (*row[:3], copies[row[2]])))
    for sql, row in checkpoints:
        if sql.startswith(PUT_DELTA):
            writes.append((sql, (*row[:2], copies.get(row[2], row[2]), *row[3:])))
        elif sql.startswith(PUT_CHECKPOINT):
            writes.append((sql, (*row[:3], copies.get(row[3], row[3]), *row[4:])))
        else:
            writes.append((sql, row))
    return writes
