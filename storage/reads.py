"""The statements that storage/ runs on the pool, and the form of an item that is read."""

from datetime import datetime
from typing import cast

from chat import Item
from storage.sql import Row

ITEMS_OF_THREAD = """SELECT run_id, item, role, type, content, complete, doc_id, title, version, created_at
FROM thread_items WHERE owner = $1 AND thread_id = $2"""
READ_ITEMS_OF = f"{ITEMS_OF_THREAD} AND seq = ANY($3::bigint[]) ORDER BY seq, item"

# From the run $1 back to the nearest run that left a state, oldest first. If no run did, back to the first run.
READ_LOST = """WITH RECURSIVE line AS (
    SELECT run_id, parent_run_id, checkpoint_id, seq FROM runs WHERE run_id = $1
  UNION ALL
    SELECT r.run_id, r.parent_run_id, r.checkpoint_id, r.seq
    FROM line, LATERAL (SELECT * FROM runs WHERE run_id = line.parent_run_id LIMIT 1) AS r
    WHERE line.checkpoint_id IS NULL
) SELECT run_id, seq, checkpoint_id FROM line ORDER BY seq"""

READ_RUN = """SELECT run_id, thread_id, seq, model, status, reason, error::text, usage::text, checkpoint_id,
    fingerprint, begun_by, in_progress(r) AS in_progress,
    current_setting('synchronous_standby_names') <> '' AS is_replicated
FROM runs r WHERE owner = $1 AND """
READ_RUN_BY_ID = READ_RUN + "run_id = $2"
READ_RUN_BY_KEY = READ_RUN + "idempotency_key = $2"

# The heads of threads, by unique indexes alone. Of each thread: the run in progress, which can only be the newest; the
# run that a new run goes on from, which is the head or left the state in $4; and the state that was stored last. Each
# thread that was asked for has one row, which is empty if the thread is not there.
READ_HEADS = """SELECT t.last_seq, parent.run_id AS parent_run_id, parent.checkpoint_id,
    running.run_id AS running, running.begun_by AS running_begun_by,
    (SELECT c.checkpoint_id FROM checkpoints c WHERE c.thread_id = asked.graph_id AND checkpoint_ns = ''
        ORDER BY c.checkpoint_id DESC LIMIT 1) AS stored_last
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
    WITH ORDINALITY AS asked (owner, thread_id, graph_id, checkpoint_id, place)
LEFT JOIN threads t ON t.owner = asked.owner AND t.thread_id = asked.thread_id
LEFT JOIN LATERAL (SELECT r.run_id, r.begun_by FROM runs r
    WHERE r.owner = t.owner AND r.thread_id = t.thread_id AND r.seq = t.last_seq AND in_progress(r)) AS running ON true
LEFT JOIN runs parent ON parent.run_id = CASE WHEN asked.checkpoint_id IS NULL THEN t.head_run_id ELSE (
    SELECT r.run_id FROM runs r WHERE r.owner = asked.owner AND r.thread_id = asked.thread_id
        AND r.checkpoint_id = asked.checkpoint_id) END
ORDER BY place"""


# The place of a journaled run: its thread's last seq, the run's status, and whether its branch is there, one of the two
# was deleted, or another run has its idempotency key.
READ_PLACE = """SELECT
    (SELECT coalesce(max(seq), 0) FROM runs WHERE owner = $1 AND thread_id = $2) AS last_seq,
    (SELECT status FROM runs WHERE run_id = $3) AS status,
    EXISTS (SELECT 1 FROM runs WHERE run_id = $4) AS branched,
    EXISTS (SELECT 1 FROM deleted_runs WHERE run_id IN ($3, $4)) AS deleted,
    EXISTS (SELECT 1 FROM runs WHERE owner = $1 AND idempotency_key = $5 AND run_id <> $3) AS key_is_taken"""

# The bytes of the threads of the owner $1 behind the thread $2, at most $3 threads in the order of their ids; how many
# threads these are, and the last of them. The columns that grow count as they are stored: the size of a compressed
# value is known without reading it. ROW_BYTES are the rest of a row and its places in the indexes.
ROW_BYTES = 250


def _size(table: str, condition: str, *columns: str) -> str:
    sizes = "".join(f" + coalesce(pg_column_size({column}), 0)" for column in columns)
    return f"(SELECT coalesce(sum({ROW_BYTES}{sizes}), 0) FROM {table} x WHERE {condition})"  # noqa: S608  # our own names


_OF_THREAD = "x.owner = t.owner AND x.thread_id = t.thread_id"
_OF_GRAPH = "x.thread_id = t.owner || '/' || t.thread_id"
_SIZES = [
    _size("runs", _OF_THREAD, "x.error"),
    _size("messages", _OF_THREAD, "x.content", "x.words"),
    _size("pieces", _OF_THREAD, "x.content"),
    _size("checkpoints", _OF_GRAPH, "x.checkpoint", "x.metadata"),
    _size("checkpoint_blobs", _OF_GRAPH, "x.blob"),
    _size("checkpoint_writes", _OF_GRAPH, "x.blob"),
]
READ_STORED_BYTES = f"""SELECT coalesce(sum({" + ".join(_SIZES)}), 0)::bigint AS bytes, count(*) AS threads,
    max(t.thread_id) AS last
FROM (SELECT owner, thread_id FROM threads WHERE owner = $1 AND thread_id > $2 ORDER BY thread_id LIMIT $3) AS t"""  # noqa: S608  # our own text

# The same of the thread $2.
READ_THREAD_BYTES = f"""SELECT coalesce(sum({" + ".join(_SIZES)}), 0)::bigint AS bytes
FROM threads t WHERE owner = $1 AND thread_id = $2"""  # noqa: S608  # our own text

# The leases of runs in progress. Not by the writer: leases are renewed while its commits wait for a standby or for a
# place in the queue, and this COMMIT waits for no standby.
RENEW_LEASES = """UPDATE runs SET leased_until = now() + make_interval(secs => $2)
WHERE run_id = ANY($1) AND status = 'running' AND set_config('synchronous_commit', 'local', true) IS NOT NULL"""

# A new thread $4 of the history of the thread's run $3.
FORK_THREAD = "SELECT fork_thread($1, $2, $3, $4)"


class StoredItem(Item):
    """An item as it is read: with its run, and the time at which it was written."""

    run_id: str
    created_at: datetime


def item_of(row: Row) -> StoredItem:
    """The item of a row of ITEMS_OF_THREAD; a message has no fields of a document."""
    item = dict(row)
    if item["type"] == "message":
        del item["doc_id"], item["title"], item["version"]
    return cast("StoredItem", item)
