"""The statements that put the agent's checkpoints, each with its row.

A run's checkpoints are journaled with its end, so recovery must know these statements, too. The other statements on
these tables stand with the checkpointer.
"""

from collections.abc import Mapping
from typing import NamedTuple

from storage.sql import Statement


class BlobRow(NamedTuple):
    thread: str
    namespace: str
    channel: str
    version: str
    type: str
    blob: bytes


PUT_BLOB = Statement(
    "put_blob",
    BlobRow,
    """INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING""",
    batchable=True,
)


class CheckpointRow(NamedTuple):
    thread: str
    namespace: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    checkpoint: str
    metadata: str


PUT_CHECKPOINT = Statement(
    "put_checkpoint",
    CheckpointRow,
    """INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
VALUES ($1, $2, $3, $4, $5::jsonb, $6::jsonb)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO UPDATE SET
    checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata""",
    batchable=True,
)


class TaskWriteRow(NamedTuple):
    """A value that a task wrote to a channel, stored with the checkpoint that the task started from."""

    thread: str
    namespace: str
    checkpoint_id: str
    task_id: str
    task_path: str
    idx: int
    channel: str
    type: str
    blob: bytes


_PUT_TASK_WRITE = """INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) """
PUT_TASK_WRITE = Statement("put_task_write", TaskWriteRow, _PUT_TASK_WRITE + "DO NOTHING", batchable=True)
# Errors, interrupts and their like have a fixed place, and the newest counts.
REPLACE_TASK_WRITE = Statement(
    "replace_task_write",
    TaskWriteRow,
    _PUT_TASK_WRITE + "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob",
    batchable=True,
)


class CheckpointCopyRow(NamedTuple):
    thread: str
    namespace: str
    checkpoint_id: str
    copy_id: str


COPY_CHECKPOINT = Statement(
    "copy_checkpoint",
    CheckpointCopyRow,
    """INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
SELECT thread_id, checkpoint_ns, $4, parent_checkpoint_id, type,
    jsonb_set(checkpoint, '{id}', to_jsonb($4::text)), metadata
FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = $2 AND checkpoint_id = $3
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO NOTHING""",
)

JOURNALED: Mapping[str, Statement[...]] = {
    statement.name: statement for statement in (PUT_BLOB, PUT_CHECKPOINT, PUT_TASK_WRITE, REPLACE_TASK_WRITE)
}
"""The statements that a record of the journal may name."""
