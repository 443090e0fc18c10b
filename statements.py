"""Every statement of the store on the tables of `schema.sql`, and the rows that it takes.

What writes is idempotent: sent twice, it has been done once.
"""

import orjson

from chat import USER_ITEM, Doc, Item, RunEnded, RunProgress, RunStarted, title_from
from writer import Write

# ---------------------------------------------------------------------------------------------------------------
# A run's life

PUT_THREAD = """INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
VALUES ($1, $2, $3, $4, to_timestamp($5::float8), to_timestamp($5::float8))
ON CONFLICT (owner, thread_id) DO UPDATE SET
    last_seq = GREATEST(threads.last_seq, EXCLUDED.last_seq),
    updated_at = GREATEST(threads.updated_at, EXCLUDED.updated_at)"""

# The run's row is the claim on its thread: a second one for the same place in the thread is refused. A run whose
# process has not renewed its lease for ten seconds is over, and its thread is free.
START_RUN = """INSERT INTO runs
    (run_id, owner, thread_id, seq, status, model, started_at, idempotency_key, fingerprint, leased_until)
VALUES ($1, $2, $3, $4, 'running', $5, to_timestamp($6::float8), $7, $8, now() + interval '10 s')
ON CONFLICT (run_id) DO NOTHING"""
RENEW_LEASES = """UPDATE runs SET leased_until = now() + interval '10 s'
WHERE run_id = ANY($1) AND status = 'running'"""

PUT_PIECE = """INSERT INTO pieces
    (run_id, position, owner, thread_id, seq, item, type, content, doc_id, title, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (run_id, position) DO NOTHING"""

DELETE_PIECES = "DELETE FROM pieces WHERE run_id = $1"

# The items of runs in progress, and of those whose process ended, out of their pieces.
ITEMS_OF_PIECES = """SELECT owner, thread_id, seq, item, run_id, 'assistant' AS role, type,
    string_agg(content, '' ORDER BY position) AS content, false AS complete, doc_id, title, version, now() AS created_at
FROM {} GROUP BY owner, thread_id, seq, item, run_id, type, doc_id, title, version"""

# The thread has moved on from a run whose process ended: what was saved of it becomes its items. One statement, as the
# writer may put the deletions of a batch before its insertions.
KEEP_PIECES = f"""WITH gone AS (DELETE FROM pieces WHERE run_id = $1 RETURNING *)
INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
    doc_id, title, version, created_at)
{ITEMS_OF_PIECES.format("gone")}
ON CONFLICT (owner, thread_id, seq, item) DO NOTHING"""  # noqa: S608  # our own text
# If it came to its end after all, since the thread was looked up, this is refused (see run_ends_once): the run that
# wants to go on does not know that end.
INTERRUPT_RUN = """UPDATE runs SET status = 'interrupted'
WHERE run_id = $1 AND (status = 'running' OR checkpoint_id IS NOT NULL)"""

# The whole row, so that it stands even if the run's start was set aside; a run ends once.
END_RUN = """INSERT INTO runs (run_id, owner, thread_id, seq, status, model, started_at,
    reason, error, usage, checkpoint_id, ended_at)
VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::float8), $8, $9::jsonb, $10::jsonb, $11, to_timestamp($12::float8))
ON CONFLICT (run_id) DO UPDATE SET
    status = EXCLUDED.status, reason = EXCLUDED.reason, error = EXCLUDED.error, usage = EXCLUDED.usage,
    checkpoint_id = EXCLUDED.checkpoint_id, ended_at = EXCLUDED.ended_at
WHERE runs.status <> EXCLUDED.status"""

PUT_ITEM = """INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete,
    doc_id, title, version, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, to_timestamp($13::float8))
ON CONFLICT (owner, thread_id, seq, item) DO NOTHING"""

# ---------------------------------------------------------------------------------------------------------------
# Reading

# Newest first from a place in that order; the place is the last row of the page before.
LIST_THREADS = """SELECT thread_id, title, created_at, updated_at FROM threads
WHERE owner = $1 AND (created_at, thread_id) < ($2, $3)
ORDER BY created_at DESC, thread_id DESC LIMIT $4"""

READ_THREAD = "SELECT thread_id, title, created_at, updated_at FROM threads WHERE owner = $1 AND thread_id = $2"

READ_RUNS = """SELECT run_id, seq, status, reason, error::text, usage::text, model, checkpoint_id, started_at, ended_at
FROM runs WHERE owner = $1 AND thread_id = $2 ORDER BY seq"""

READ_ITEMS = f"""SELECT run_id, item, role, type, content, complete, doc_id, title, version, created_at
FROM (
    SELECT owner, thread_id, seq, item, run_id, role, type, content, complete, doc_id, title, version, created_at
    FROM messages WHERE owner = $1 AND thread_id = $2
  UNION ALL
    {ITEMS_OF_PIECES.format("pieces WHERE owner = $1 AND thread_id = $2")}
) AS items ORDER BY seq, item"""  # noqa: S608  # our own text

# The thread's runs after the last one that left a state, if there are any.
READ_LOST = """SELECT run_id FROM runs WHERE owner = $1 AND thread_id = $2
AND seq > (SELECT coalesce(max(seq), 0) FROM runs
    WHERE owner = $1 AND thread_id = $2 AND checkpoint_id IS NOT NULL)
ORDER BY seq"""

READ_RUN = """SELECT run_id, thread_id, model, status, reason, error::text, usage::text, checkpoint_id, fingerprint,
    status = 'running' AND leased_until > now() AS in_progress
FROM runs WHERE owner = $1 AND """
READ_RUN_BY_ID = READ_RUN + "run_id = $2"
READ_RUN_BY_KEY = READ_RUN + "idempotency_key = $2"

# What must be known of a thread before a run of it may start: one look at two primary keys.
READ_HEAD = """SELECT
    (SELECT last_seq FROM threads WHERE owner = $1 AND thread_id = $2) AS last_seq,
    (SELECT checkpoint_id IS NULL FROM runs
        WHERE owner = $1 AND thread_id = $2 ORDER BY seq DESC LIMIT 1) AS lost,
    (SELECT run_id FROM runs WHERE owner = $1 AND thread_id = $2 AND status = 'running' AND leased_until > now()
        ORDER BY seq DESC LIMIT 1) AS running,
    EXISTS (SELECT 1 FROM checkpoints
        WHERE thread_id = $3 AND checkpoint_ns = '' AND checkpoint_id = $4) AS has_checkpoint"""


# Where a run of the journal belongs: how far its thread is, what is known of the run and of its branch.
READ_PLACE = """SELECT
    (SELECT coalesce(max(seq), 0) FROM runs WHERE owner = $1 AND thread_id = $2) AS last_seq,
    (SELECT status FROM runs WHERE run_id = $3) AS status,
    EXISTS (SELECT 1 FROM runs WHERE run_id = $4) AS branched,
    EXISTS (SELECT 1 FROM runs WHERE owner = $1 AND idempotency_key = $5 AND run_id <> $3) AS key_is_taken"""


# ---------------------------------------------------------------------------------------------------------------
# The rows of a run's life


def start_writes(run: RunStarted) -> list[Write]:
    """The rows of a run's start: its thread, the run, the user's message."""
    message: Item = {"item": USER_ITEM, "role": "user", "type": "message", "content": run.message, "complete": True}
    row = (
        *(run.run_id, run.owner, run.thread_id, run.seq, run.model, run.started_at),
        *(run.idempotency_key, run.fingerprint),
    )
    return [
        (PUT_THREAD, (run.owner, run.thread_id, title_from(run.message), run.seq, run.started_at)),
        (START_RUN, row),
        _item_write(run, message, run.started_at),
        *((sql, (lost,)) for lost in run.lost for sql in (KEEP_PIECES, INTERRUPT_RUN)),
    ]


def end_writes(end: RunEnded) -> list[Write]:
    """The rows of a run's end: what it said, and how it ended."""
    run = end.started
    error = None
    if end.error is not None:
        error = {"content": end.error.content, "code": end.error.code, "retryable": end.error.retryable}
    row = (
        *(run.run_id, run.owner, run.thread_id, run.seq, end.status.value, run.model, run.started_at),
        *(end.reason, _json(error), _json(end.usage), end.checkpoint_id, end.ended_at),
    )
    items = [_item_write(run, item, end.ended_at) for item in end.items]
    return [(END_RUN, row), *items, (DELETE_PIECES, (run.run_id,))]


def progress_writes(progress: RunProgress) -> list[Write]:
    """The rows of what a run in progress has said since the last time."""
    run = progress.started
    writes: list[Write] = []
    for position, piece in progress.pieces:
        place = (run.run_id, position, run.owner, run.thread_id, run.seq, piece.item)
        if isinstance(piece, Doc):
            writes.append((PUT_PIECE, (*place, "doc", piece.content, piece.doc_id, piece.title, piece.version)))
        else:
            writes.append((PUT_PIECE, (*place, "message", piece.content, None, None, None)))
    return writes


def _item_write(run: RunStarted, item: Item, created_at: float) -> Write:
    row = (
        *(run.owner, run.thread_id, run.seq, item["item"], run.run_id, item["role"], item["type"], item["content"]),
        *(item["complete"], item.get("doc_id"), item.get("title"), item.get("version"), created_at),
    )
    return PUT_ITEM, row


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
