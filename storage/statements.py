"""The statements that write a run's life and change a thread, each with its row."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import orjson

from chat import LEASE_S, Doc, Item, RunEnded, RunProgress, RunStarted
from storage.sql import Statement, Write

FIRST_LINE_CHARS = 80  # of a title that is made of a message
USER_ITEM = -1  # the user's message stands before the run's item 0

# ---------------------------------------------------------------------------------------------------------------
# A run's life


class ThreadRow(NamedTuple):
    owner: str
    thread_id: str
    title: str
    seq: int
    at: float
    head_run_id: str | None


# The run becomes the thread's head, from which the next message goes on, unless `head_run_id` is None.
PUT_THREAD = Statement(
    "put_thread",
    ThreadRow,
    """INSERT INTO threads (owner, thread_id, title, last_seq, head_run_id, created_at, updated_at)
VALUES ($1, $2, $3, $4, $6, to_timestamp($5::float8), to_timestamp($5::float8))
ON CONFLICT (owner, thread_id) DO UPDATE SET
    head_run_id = CASE WHEN EXCLUDED.last_seq > threads.last_seq
        THEN coalesce(EXCLUDED.head_run_id, threads.head_run_id) ELSE threads.head_run_id END,
    last_seq = GREATEST(threads.last_seq, EXCLUDED.last_seq),
    updated_at = GREATEST(threads.updated_at, EXCLUDED.updated_at)""",
    batchable=True,
)


class StartRow(NamedTuple):
    run_id: str
    owner: str
    thread_id: str
    seq: int
    model: str
    started_at: float
    idempotency_key: str | None
    fingerprint: str | None
    parent_run_id: str | None
    begun_by: str | None
    lease_s: float = LEASE_S


# The run's row claims its thread: a second row for the same place in the thread is refused. If the lease is not renewed
# for LEASE_S, the run is over and its thread is free.
START_RUN = Statement(
    "start_run",
    StartRow,
    """INSERT INTO runs
    (run_id, owner, thread_id, seq, status, model, started_at, idempotency_key, fingerprint, parent_run_id,
    begun_by, leased_until)
VALUES ($1, $2, $3, $4, 'running', $5, to_timestamp($6::float8), $7, $8, $9, $10,
    now() + make_interval(secs => $11))
ON CONFLICT (run_id) DO NOTHING""",
    batchable=True,
)


class PiecesRow(NamedTuple):
    """Column by column: one statement takes all pieces of all runs."""

    run_ids: list[str]
    positions: list[int]
    owners: list[str]
    thread_ids: list[str]
    seqs: list[int]
    items: list[int]
    types: list[str]
    contents: list[str]
    doc_ids: list[str | None]
    titles: list[str | None]
    versions: list[int | None]


# Only pieces of runs that are still running are stored: a process that slept through its lease brings them too late.
# The lock makes interrupt_run wait for a piece that is on its way. Not batchable, as the pieces are of many threads:
# they come after the starts and before the ends that were queued around them.
PUT_PIECES = Statement(
    "put_pieces",
    PiecesRow,
    """WITH said AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::int[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::int[])
    AS said (run_id, position, owner, thread_id, seq, item, type, content, doc_id, title, version)
), running AS (
    SELECT run_id FROM runs WHERE run_id = ANY($1) AND status = 'running' FOR SHARE
)
INSERT INTO pieces (run_id, position, owner, thread_id, seq, item, type, content, doc_id, title, version)
SELECT run_id, position, owner, thread_id, seq, item, type, content, doc_id, title, version
FROM said JOIN running USING (run_id)
ON CONFLICT (run_id, position) DO NOTHING""",
)


class RunRow(NamedTuple):
    run_id: str


DELETE_PIECES = Statement("delete_pieces", RunRow, "DELETE FROM pieces WHERE run_id = $1", batchable=True)


class InterruptedRow(NamedTuple):
    run_id: str
    known: int


# The thread moves on from a run whose process ended, and `known` code points of its content were read.
INTERRUPT_RUN = Statement("interrupt_run", InterruptedRow, "SELECT interrupt_run($1, $2)")


class EndRow(NamedTuple):
    run_id: str
    owner: str
    thread_id: str
    seq: int
    status: str
    model: str
    started_at: float
    reason: str | None
    error: str | None
    usage: str | None
    checkpoint_id: str | None
    ended_at: float


# A run ends once. An INSERT of the whole row, as it can be batched; a trigger refuses one that would make a new row.
END_RUN = Statement(
    "end_run",
    EndRow,
    """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at,
    reason, error, usage, checkpoint_id, ended_at)
VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::float8), $8, $9::jsonb, $10::jsonb, $11, to_timestamp($12::float8))
ON CONFLICT (run_id) DO UPDATE SET
    status = EXCLUDED.status, reason = EXCLUDED.reason, error = EXCLUDED.error, usage = EXCLUDED.usage,
    model = EXCLUDED.model, checkpoint_id = EXCLUDED.checkpoint_id, ended_at = EXCLUDED.ended_at
WHERE runs.status <> EXCLUDED.status""",
    batchable=True,
)


class ItemRow(NamedTuple):
    owner: str
    thread_id: str
    seq: int
    item: int
    run_id: str
    role: str
    type: str
    content: str
    complete: bool
    doc_id: str | None
    title: str | None
    version: int | None
    created_at: float


PUT_ITEM = Statement(
    "put_item",
    ItemRow,
    """INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
    doc_id, title, version, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, to_timestamp($13::float8))
ON CONFLICT (owner, thread_id, seq, item) DO NOTHING""",
    batchable=True,
)

# ---------------------------------------------------------------------------------------------------------------
# Changes of a thread


class RenameRow(NamedTuple):
    owner: str
    thread_id: str
    title: str


RENAME_THREAD = Statement(
    "rename_thread",
    RenameRow,
    "UPDATE threads SET title = $3, updated_at = GREATEST(updated_at, now()) WHERE owner = $1 AND thread_id = $2",
)


class DeletionRow(NamedTuple):
    owner: str
    thread_id: str
    before: datetime


# Deletes a thread that was last updated before that time. Refused while the thread has a run in progress.
DELETE_THREAD = Statement("delete_thread", DeletionRow, "SELECT delete_thread($1, $2, $3)")

# ---------------------------------------------------------------------------------------------------------------
# A run's writes


def title_from(message: str) -> str:
    """A thread's title: the first line of its first message, cut at a word."""
    line = " ".join(message.strip().splitlines()[0].split())
    if len(line) <= FIRST_LINE_CHARS:
        return line
    return line[: FIRST_LINE_CHARS - 1].rsplit(" ", 1)[0] + "…"


def start_writes(run: RunStarted, *, leads: bool = True) -> list[Write]:
    """A run's start: its thread, the run, the user's message. `leads`: the run becomes the thread's head."""
    message: Item = {"item": USER_ITEM, "role": "user", "type": "message", "content": run.message, "complete": True}
    head = run.run_id if leads else None
    return [
        PUT_THREAD(run.owner, run.thread_id, title_from(run.message), run.seq, run.started_at, head),
        START_RUN(
            run_id=run.run_id,
            owner=run.owner,
            thread_id=run.thread_id,
            seq=run.seq,
            model=run.model,
            started_at=run.started_at,
            idempotency_key=run.idempotency_key,
            fingerprint=run.fingerprint,
            parent_run_id=run.parent_run_id,
            begun_by=run.begun_by,
        ),
        _item_write(run, message, run.started_at),
        *(INTERRUPT_RUN(run_id, known) for run_id, known in run.lost),
    ]


def end_writes(end: RunEnded) -> list[Write]:
    """A run's end: its row, its items, and the deletion of its pieces."""
    run = end.started
    error = None
    if end.error is not None:
        error = {"content": end.error.content, "code": end.error.code, "retryable": end.error.retryable}
    ended = END_RUN(
        run_id=run.run_id,
        owner=run.owner,
        thread_id=run.thread_id,
        seq=run.seq,
        status=end.status.value,
        model=end.model or run.model,
        started_at=run.started_at,
        reason=end.reason,
        error=_json(error),
        usage=_json(end.usage),
        checkpoint_id=end.checkpoint_id,
        ended_at=end.ended_at,
    )
    items = [_item_write(run, item, end.ended_at) for item in end.items]
    return [ended, *items, DELETE_PIECES(run.run_id)]


def progress_write(progress: Sequence[RunProgress]) -> Write:
    """The new pieces of runs in progress, as one statement."""
    rows: list[tuple[object, ...]] = []
    for said in progress:
        run = said.started
        for position, piece in said.pieces:
            place = (run.run_id, position, run.owner, run.thread_id, run.seq, piece.item)
            if isinstance(piece, Doc):
                rows.append((*place, "doc", piece.content, piece.doc_id, piece.title, piece.version))
            else:
                rows.append((*place, "message", piece.content, None, None, None))
    return Write(PUT_PIECES, PiecesRow._make(map(list, zip(*rows, strict=True))))


def _item_write(run: RunStarted, item: Item, created_at: float) -> Write:
    return PUT_ITEM(
        owner=run.owner,
        thread_id=run.thread_id,
        seq=run.seq,
        item=item["item"],
        run_id=run.run_id,
        role=item["role"],
        type=item["type"],
        content=item["content"],
        complete=item["complete"],
        doc_id=item.get("doc_id"),
        title=item.get("title"),
        version=item.get("version"),
        created_at=created_at,
    )


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
