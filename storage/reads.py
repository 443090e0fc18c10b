"""The statements that run on the pool, and the form of an item that is read."""

from typing import cast

import asyncpg

from chat import StoredItem

# Newest first from a place in that order; the place is the last row of the page before.
LIST_THREADS = """SELECT thread_id, title, created_at, updated_at FROM threads
WHERE owner = $1 AND (created_at, thread_id) < ($2, $3)
ORDER BY created_at DESC, thread_id DESC LIMIT $4"""

# The owner's threads whose title or items have the words, in the same order; with each its newest item that has them: a
# passage of it from about the first of the words on ($6 is their regular expression).
SEARCH_THREADS = """WITH said AS MATERIALIZED (
    SELECT thread_id, max(ARRAY[seq, item]) AS place FROM messages
    WHERE owner = $1 AND words @@ search_query($1, $5)
    GROUP BY thread_id
), named AS MATERIALIZED (
    SELECT thread_id FROM threads WHERE owner = $1 AND search_vector(owner, title) @@ search_query($1, $5)
), page AS (
    SELECT t.*, said.place
    FROM (SELECT thread_id FROM said UNION SELECT thread_id FROM named) AS found
    JOIN threads t ON t.owner = $1 AND t.thread_id = found.thread_id
    LEFT JOIN said ON said.thread_id = found.thread_id
    WHERE (t.created_at, t.thread_id) < ($2, $3)
    ORDER BY t.created_at DESC, t.thread_id DESC LIMIT $4
)
SELECT p.thread_id, p.title, p.created_at, p.updated_at, m.run_id, m.item, m.type,
    substr(m.content, greatest(regexp_instr(left(m.content, 100000), $6, 1, 1, 0, 'i') - 60, 1), 240) AS passage
FROM page p LEFT JOIN messages m ON m.owner = $1 AND m.thread_id = p.thread_id
    AND m.seq = p.place[1] AND m.item = p.place[2]
ORDER BY p.created_at DESC, p.thread_id DESC"""

# An owner's threads that were last updated before $2 and have no run in progress, a few at a time in order of their id.
READ_OLD = """SELECT thread_id FROM threads t
WHERE owner = $1 AND updated_at < $2 AND created_at < $2 AND thread_id > $3 AND NOT EXISTS (
    SELECT FROM runs r WHERE r.owner = t.owner AND r.thread_id = t.thread_id AND in_progress(r))
ORDER BY thread_id LIMIT $4"""

# A walk through all threads in the order of their key: no index needs to be kept up to date for it, whose updates would
# cost each message.
WALK_THREADS = """SELECT owner, thread_id, updated_at < $3 AS old FROM threads
WHERE (owner, thread_id) > ($1, $2) ORDER BY owner, thread_id LIMIT $4"""

READ_THREAD = """SELECT thread_id, title, head_run_id, created_at, updated_at
FROM threads WHERE owner = $1 AND thread_id = $2"""

READ_RUNS = """SELECT run_id, parent_run_id, seq,
    CASE WHEN status = 'running' AND NOT in_progress(r) THEN 'interrupted' ELSE status END AS status,
    reason, error::text, usage::text, model, checkpoint_id, started_at, ended_at
FROM runs r WHERE owner = $1 AND thread_id = $2 ORDER BY seq"""

_ITEMS = """SELECT run_id, item, role, type, content, complete, doc_id, title, version, created_at
FROM thread_items WHERE owner = $1 AND thread_id = $2"""
READ_ITEMS = f"{_ITEMS} ORDER BY seq, item"
READ_ITEMS_OF = f"{_ITEMS} AND seq = ANY($3::bigint[]) ORDER BY seq, item"

# The places of a branch, from where its conversation began to a run.
_LINE = """WITH RECURSIVE line AS (
    SELECT parent_run_id, seq FROM runs WHERE run_id = {}
  UNION ALL
    SELECT r.parent_run_id, r.seq FROM line JOIN runs r ON r.run_id = line.parent_run_id
) SELECT seq FROM line ORDER BY seq"""
READ_LINE = _LINE.format("$1")

# The versions of the documents of the branch that ends with the run $3; and one of them, the newest unless $5 tells.
_ON_BRANCH = f"type = 'doc' AND seq IN ({_LINE.format('$3')})"
READ_VERSIONS = f"""SELECT doc_id, title, version, complete FROM messages
WHERE owner = $1 AND thread_id = $2 AND {_ON_BRANCH} ORDER BY seq, item"""  # noqa: S608  # our own text
READ_DOCUMENT = f"""{_ITEMS} AND {_ON_BRANCH} AND doc_id = $4 AND version = coalesce($5, version)
ORDER BY seq DESC, item DESC LIMIT 1"""

# From the run $1 back to the nearest one that left a state, oldest first; that one comes first, if there is one.
READ_LOST = """WITH RECURSIVE line AS (
    SELECT run_id, parent_run_id, checkpoint_id, seq FROM runs WHERE run_id = $1
  UNION ALL
    SELECT r.run_id, r.parent_run_id, r.checkpoint_id, r.seq
    FROM line JOIN runs r ON r.run_id = line.parent_run_id WHERE line.checkpoint_id IS NULL
) SELECT run_id, checkpoint_id FROM line ORDER BY seq"""

# A thread's runs in order, with the state that each left and the end of what was said then.
READ_STATES = """SELECT r.run_id, r.parent_run_id, r.checkpoint_id, r.ended_at AS created_at,
    (c.metadata ->> 'step')::int AS step, said.role, said.content
FROM runs r
LEFT JOIN checkpoints c ON c.thread_id = $3 AND c.checkpoint_ns = '' AND c.checkpoint_id = r.checkpoint_id
LEFT JOIN LATERAL (
    SELECT m.role, left(m.content, 240) AS content FROM messages m
    WHERE r.checkpoint_id IS NOT NULL AND m.owner = $1 AND m.thread_id = $2 AND m.seq = r.seq AND m.type = 'message'
    ORDER BY m.item DESC LIMIT 1
) AS said ON true
WHERE r.owner = $1 AND r.thread_id = $2 ORDER BY r.seq"""

# The run that a fork goes back to: the one that left the state $3, or else the thread's head.
READ_TIP = """SELECT t.title, r.run_id, in_progress(r) AS in_progress
FROM threads t LEFT JOIN runs r ON r.run_id = CASE WHEN $3::text IS NULL THEN t.head_run_id ELSE (
    SELECT run_id FROM runs WHERE owner = $1 AND thread_id = $2 AND checkpoint_id = $3) END
WHERE t.owner = $1 AND t.thread_id = $2"""

READ_RUN = """SELECT run_id, thread_id, model, status, reason, error::text, usage::text, checkpoint_id, fingerprint,
    in_progress(r) AS in_progress
FROM runs r WHERE owner = $1 AND """
READ_RUN_BY_ID = READ_RUN + "run_id = $2"
READ_RUN_BY_KEY = READ_RUN + "idempotency_key = $2"

# What must be known of threads before a run of each may start, in a few looks at unique indexes: the run in progress,
# which can only be the newest; the run that the new one goes on from, the thread's head or the one that left the state
# in $4; and which state was stored last. One row for each of the threads, empty for one that is not there.
READ_HEADS = """SELECT t.last_seq, parent.run_id AS parent_run_id, parent.checkpoint_id,
    (SELECT run_id FROM runs r WHERE r.owner = asked.owner AND r.thread_id = asked.thread_id AND r.seq = t.last_seq
        AND in_progress(r)) AS running,
    (SELECT c.checkpoint_id FROM checkpoints c WHERE c.thread_id = asked.graph_id AND checkpoint_ns = ''
        ORDER BY c.checkpoint_id DESC LIMIT 1) AS stored_last
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
    WITH ORDINALITY AS asked (owner, thread_id, graph_id, checkpoint_id, place)
LEFT JOIN threads t ON t.owner = asked.owner AND t.thread_id = asked.thread_id
LEFT JOIN runs parent ON parent.run_id = CASE WHEN asked.checkpoint_id IS NULL THEN t.head_run_id ELSE (
    SELECT r.run_id FROM runs r WHERE r.owner = asked.owner AND r.thread_id = asked.thread_id
        AND r.checkpoint_id = asked.checkpoint_id) END
ORDER BY place"""


# Where a run of the journal belongs: how far its thread is, what is known of the run and of its branch, and whether one
# of them was deleted.
READ_PLACE = """SELECT
    (SELECT coalesce(max(seq), 0) FROM runs WHERE owner = $1 AND thread_id = $2) AS last_seq,
    (SELECT status FROM runs WHERE run_id = $3) AS status,
    EXISTS (SELECT 1 FROM runs WHERE run_id = $4) AS branched,
    EXISTS (SELECT 1 FROM deleted_runs WHERE run_id IN ($3, $4)) AS deleted,
    EXISTS (SELECT 1 FROM runs WHERE owner = $1 AND idempotency_key = $5 AND run_id <> $3) AS key_is_taken"""

# ---------------------------------------------------------------------------------------------------------------
# Writing beside the writer

# A new thread $4 out of the history of the thread's run $3.
FORK_THREAD = "SELECT fork_thread($1, $2, $3, $4)"

# The words of items that are not found yet. Processes that do so at once take different ones.
FIND_WORDS = """UPDATE messages m SET words = search_vector(m.owner, coalesce(m.title || ' ', '') || m.content)
FROM (SELECT owner, thread_id, seq, item FROM messages WHERE words IS NULL
    ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS next
WHERE (m.owner, m.thread_id, m.seq, m.item) = (next.owner, next.thread_id, next.seq, next.item)
RETURNING 1"""


def item_of(row: asyncpg.Record) -> StoredItem:
    item = dict(row)
    if item["type"] == "message":
        del item["doc_id"], item["title"], item["version"]
    return cast("StoredItem", item)
