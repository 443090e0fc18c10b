"""The statements that only threads/ runs: histories, retention and search, and the agent's checkpoints.

The statements that put a run's checkpoints stand in storage/checkpoints.py, as they are journaled with the run.
"""

from typing import NamedTuple

from store import ITEMS_OF_THREAD, Statement

# ---------------------------------------------------------------------------------------------------------------
# Histories

# The list, newest first. A page begins after the place of the last row of the page before.
LIST_THREADS = """SELECT thread_id, title, created_at, updated_at FROM threads
WHERE owner = $1 AND (created_at, thread_id) < ($2, $3)
ORDER BY created_at DESC, thread_id DESC LIMIT $4"""

# The owner's threads whose title or items have the words, in the same order. Each comes with the newest item that has
# them: a passage that begins shortly before the first match of $6, the regular expression of the words.
#
# The place of that match is the place of the text $7 once the match is replaced by it. `regexp_instr` finds all matches
# before it tells the first: in 60 documents of 100 KB it took 2.4 s, and this 0.04 s. Most matches stand near the
# beginning, so the first 4,000 characters are looked through first: 0.004 s. A match at their very end may be a part of
# a longer word.
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
    substr(m.content, greatest(coalesce(
        nullif(strpos(regexp_replace(left(m.content, 4000), $6 || '(?=.)', $7, 'i'), $7), 0),
        strpos(regexp_replace(left(m.content, 100000), $6, $7, 'i'), $7)
    ) - 60, 1), 240) AS passage
FROM page p LEFT JOIN messages m ON m.owner = $1 AND m.thread_id = p.thread_id
    AND m.seq = p.place[1] AND m.item = p.place[2]
ORDER BY p.created_at DESC, p.thread_id DESC"""

READ_THREAD = """SELECT thread_id, title, head_run_id, created_at, updated_at
FROM threads WHERE owner = $1 AND thread_id = $2"""

# The newest runs before the place $3, newest first.
READ_RUNS = """SELECT run_id, parent_run_id, seq,
    CASE WHEN status = 'running' AND NOT in_progress(r) THEN 'interrupted' ELSE status END AS status,
    reason, error::text, usage::text, model, checkpoint_id, started_at, ended_at
FROM runs r WHERE owner = $1 AND thread_id = $2 AND seq < $3 ORDER BY seq DESC LIMIT $4"""

# The bytes of the texts of runs. PostgreSQL knows the size of a text without reading it.
READ_SIZES = """SELECT seq, sum(octet_length(content)) AS bytes FROM (
    SELECT seq, content FROM messages WHERE owner = $1 AND thread_id = $2 AND seq = ANY($3::bigint[])
    UNION ALL
    SELECT seq, content FROM pieces WHERE owner = $1 AND thread_id = $2 AND seq = ANY($3::bigint[])
) AS said GROUP BY seq ORDER BY seq"""
READ_SEQ = "SELECT seq FROM runs WHERE owner = $1 AND thread_id = $2 AND run_id = $3"

# The places of the runs of a branch, from the beginning of its conversation to a run. LIMIT makes PostgreSQL use the
# index for each run. With a hash join it may read all runs for each, 3 s for 2,000 runs.
_LINE = """WITH RECURSIVE line AS (
    SELECT parent_run_id, seq FROM runs WHERE run_id = {}
  UNION ALL
    SELECT r.parent_run_id, r.seq
    FROM line, LATERAL (SELECT parent_run_id, seq FROM runs WHERE run_id = line.parent_run_id LIMIT 1) AS r
) SELECT seq FROM line ORDER BY seq"""
READ_LINE = _LINE.format("$1")

# The versions of the documents on the branch that ends with the run $3; and one version, the newest if $5 is NULL.
_ON_BRANCH = f"type = 'doc' AND seq IN ({_LINE.format('$3')})"
READ_VERSIONS = f"""SELECT doc_id, title, version, complete FROM messages
WHERE owner = $1 AND thread_id = $2 AND {_ON_BRANCH} ORDER BY seq, item"""  # noqa: S608  # our own text
READ_DOCUMENT = f"""{ITEMS_OF_THREAD} AND {_ON_BRANCH} AND doc_id = $4 AND version = coalesce($5, version)
ORDER BY seq DESC, item DESC LIMIT 1"""

# A thread's runs in order, each with the state that it left and its last message.
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

# The last run of a branch: the run that left the state $3, or the thread's head if $3 is NULL.
READ_TIP = """SELECT t.title, r.run_id, in_progress(r) AS in_progress, r.begun_by
FROM threads t LEFT JOIN runs r ON r.run_id = CASE WHEN $3::text IS NULL THEN t.head_run_id ELSE (
    SELECT run_id FROM runs WHERE owner = $1 AND thread_id = $2 AND checkpoint_id = $3) END
WHERE t.owner = $1 AND t.thread_id = $2"""

# ---------------------------------------------------------------------------------------------------------------
# Retention and search

# A page of an owner's threads that were last updated before $2 and have no run in progress, in the order of their ids.
READ_OLD = """SELECT thread_id FROM threads t
WHERE owner = $1 AND updated_at < $2 AND created_at < $2 AND thread_id > $3 AND NOT EXISTS (
    SELECT FROM runs r WHERE r.owner = t.owner AND r.thread_id = t.thread_id AND in_progress(r))
ORDER BY thread_id LIMIT $4"""

# A page of all threads, in the order of their key. An index by age would make it shorter, and each message would pay
# for it.
WALK_THREADS = """SELECT owner, thread_id, updated_at < $3 AS old FROM threads
WHERE (owner, thread_id) > ($1, $2) ORDER BY owner, thread_id LIMIT $4"""

# The words of items that the search does not know yet. Processes that do so at once take different items.
FIND_WORDS = """UPDATE messages m SET words = search_vector(m.owner, coalesce(m.title || ' ', '') || m.content)
FROM (SELECT owner, thread_id, seq, item FROM messages WHERE words IS NULL
    ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS next
WHERE (m.owner, m.thread_id, m.seq, m.item) = (next.owner, next.thread_id, next.seq, next.item)
RETURNING 1"""

# ---------------------------------------------------------------------------------------------------------------
# Checkpoints

# A checkpoint with its channels' values and with the writes that wait for the next step, in the order of
# `writes_sort_key`. `COLLATE "C"`, as Python sorts those keys by code point.
READ_TUPLES = """SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id,
    c.checkpoint::text, c.metadata::text,
    (SELECT array_agg(row(b.channel, b.type, b.blob))
        FROM jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
        JOIN checkpoint_blobs b ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns
            AND b.channel = v.key AND b.version = v.value) AS blobs,
    (SELECT array_agg(row(w.task_id, w.channel, w.type, w.blob)
            ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx)
        FROM checkpoint_writes w WHERE w.thread_id = c.thread_id AND w.checkpoint_ns = c.checkpoint_ns
            AND w.checkpoint_id = c.checkpoint_id) AS writes
FROM checkpoints c"""

# The history of delta channels: from the checkpoint $3 back to the nearest ancestor that has a value of the channel
# stored, as a blob or as a plain value inline; the writes of all of these, oldest first, and that value.
READ_DELTAS = """WITH RECURSIVE chain AS (
    SELECT w.channel, 0 AS depth, c.checkpoint_id, c.parent_checkpoint_id, NULL::text AS version, NULL::jsonb AS inline,
        false AS stored
    FROM unnest($4::text[]) AS w(channel), checkpoints c
    WHERE c.thread_id = $1 AND c.checkpoint_ns = $2 AND c.checkpoint_id = $3
  UNION ALL
    SELECT chain.channel, chain.depth + 1, c.checkpoint_id, c.parent_checkpoint_id,
        c.checkpoint -> 'channel_versions' ->> chain.channel, c.checkpoint -> 'channel_values' -> chain.channel,
        coalesce(c.checkpoint -> 'channel_values' -> chain.channel, 'null') <> 'null' OR EXISTS (
            SELECT 1 FROM checkpoint_blobs b WHERE b.thread_id = $1 AND b.checkpoint_ns = $2
                AND b.channel = chain.channel AND b.type <> 'empty'
                AND b.version = c.checkpoint -> 'channel_versions' ->> chain.channel)
    FROM chain JOIN checkpoints c
        ON c.thread_id = $1 AND c.checkpoint_ns = $2 AND c.checkpoint_id = chain.parent_checkpoint_id
    WHERE NOT chain.stored
)
SELECT k.channel, k.stored, k.inline::text, b.type AS seed_type, b.blob AS seed,
    (SELECT array_agg(row(w.task_id, w.type, w.blob)
            ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx)
        FROM checkpoint_writes w WHERE w.thread_id = $1 AND w.checkpoint_ns = $2
            AND w.checkpoint_id = k.checkpoint_id AND w.channel = k.channel) AS writes
FROM chain k
LEFT JOIN checkpoint_blobs b ON k.stored AND b.thread_id = $1 AND b.checkpoint_ns = $2
    AND b.channel = k.channel AND b.version = k.version AND b.type <> 'empty'
WHERE k.depth > 0 ORDER BY k.channel, k.depth DESC"""

NEWEST_ID = """SELECT checkpoint_id FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = $2
ORDER BY checkpoint_id DESC LIMIT 1"""


class GraphThreadRow(NamedTuple):
    thread: str


TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
DELETE_STATES = [
    Statement(f"delete_{table}", GraphThreadRow, f"DELETE FROM {table} WHERE thread_id = $1")  # noqa: S608  # our own names
    for table in TABLES
]


class RunsOfThreadRow(NamedTuple):
    thread: str
    run_ids: list[str]


RUNS_CHECKPOINTS = """SELECT DISTINCT thread_id FROM checkpoints WHERE metadata ->> 'run_id' = ANY($1)"""
DELETE_TASK_WRITES_OF_RUNS = Statement(
    "delete_task_writes_of_runs",
    RunsOfThreadRow,
    """DELETE FROM checkpoint_writes w USING checkpoints c
WHERE c.thread_id = $1 AND c.metadata ->> 'run_id' = ANY($2) AND w.thread_id = c.thread_id
    AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id""",
)
DELETE_CHECKPOINTS_OF_RUNS = Statement(
    "delete_checkpoints_of_runs",
    RunsOfThreadRow,
    "DELETE FROM checkpoints WHERE thread_id = $1 AND metadata ->> 'run_id' = ANY($2)",
)


class ThreadCopyRow(NamedTuple):
    source: str
    target: str


# Not batchable: each reads another thread.
COPY_STATES = (
    Statement(
        "copy_blobs",
        ThreadCopyRow,
        """INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
SELECT $2, checkpoint_ns, channel, version, type, blob FROM checkpoint_blobs WHERE thread_id = $1
ON CONFLICT DO NOTHING""",
    ),
    Statement(
        "copy_checkpoints",
        ThreadCopyRow,
        """INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
SELECT $2, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
FROM checkpoints WHERE thread_id = $1 ON CONFLICT DO NOTHING""",
    ),
    Statement(
        "copy_task_writes",
        ThreadCopyRow,
        """INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT $2, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
FROM checkpoint_writes WHERE thread_id = $1 ON CONFLICT DO NOTHING""",
    ),
)

# Kept is the chain of the newest checkpoint of each namespace: see state_chain. One statement, so that kept and deleted
# checkpoints are read from one state of the thread. Writes go with the deleted checkpoints: a run in progress may have
# stored some before their checkpoint.
DELETE_UNKEPT = Statement(
    "delete_unkept_checkpoints",
    GraphThreadRow,
    """WITH heads AS (
    SELECT DISTINCT ON (checkpoint_ns) checkpoint_ns, checkpoint_id
    FROM checkpoints WHERE thread_id = $1 ORDER BY checkpoint_ns, checkpoint_id DESC
),
kept AS (
    SELECT h.checkpoint_ns, chain.checkpoint_id
    FROM heads h, state_chain($1, h.checkpoint_ns, h.checkpoint_id) AS chain
),
deleted AS (
    DELETE FROM checkpoints WHERE thread_id = $1
        AND (checkpoint_ns, checkpoint_id) NOT IN (SELECT checkpoint_ns, checkpoint_id FROM kept)
    RETURNING checkpoint_ns, checkpoint_id
)
DELETE FROM checkpoint_writes w USING deleted d
WHERE w.thread_id = $1 AND w.checkpoint_ns = d.checkpoint_ns AND w.checkpoint_id = d.checkpoint_id""",
)
DELETE_UNUSED_BLOBS = Statement(
    "delete_unused_blobs",
    GraphThreadRow,
    """DELETE FROM checkpoint_blobs
WHERE thread_id = $1 AND (checkpoint_ns, channel, version) NOT IN (
    SELECT c.checkpoint_ns, v.key, v.value
    FROM checkpoints c, jsonb_each_text(c.checkpoint -> 'channel_versions') AS v WHERE c.thread_id = $1)""",
)
FORGET_PARENTS = Statement(
    "forget_parents",
    GraphThreadRow,
    """UPDATE checkpoints c SET parent_checkpoint_id = NULL
WHERE c.thread_id = $1 AND parent_checkpoint_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM checkpoints p WHERE p.thread_id = $1 AND p.checkpoint_ns = c.checkpoint_ns
        AND p.checkpoint_id = c.parent_checkpoint_id)""",
)
PRUNE = (DELETE_UNKEPT, DELETE_UNUSED_BLOBS, FORGET_PARENTS)
