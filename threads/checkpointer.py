"""LangGraph's checkpointer on the store, in the table layout of `langgraph-checkpoint-postgres`: each of the two can
read the other's checkpoints. It puts through the writer and reads on the pool, in one round trip a read.

Deserialisation is strict: stored bytes make only the types of the serializer's own short list, which are harmless.
Deliberately not here: the synchronous methods; the service has one event loop and no thread to block.
"""

import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import orjson
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    copy_checkpoint,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from chat import STORED_LAST
from store import PUT_BLOB, PUT_CHECKPOINT, PUT_TASK_WRITE, REPLACE_TASK_WRITE, Row, Store, Write
from threads.statements import (
    COPY_STATES,
    DELETE_CHECKPOINTS_OF_RUNS,
    DELETE_STATES,
    DELETE_TASK_WRITES_OF_RUNS,
    DELETE_UNUSED_BLOBS,
    NEWEST_ID,
    PRUNE,
    READ_DELTAS,
    READ_TUPLES,
    RUNS_CHECKPOINTS,
)

BYTES_AT_HAND = 2**25  # of the states that are kept in memory, about and all together
STATE_BYTES = 8000  # of one beside its messages
# A NUL in JSON: its escape, after an even number of backslashes.
NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class StatesAtHand:
    """The newest states of the threads that were used last, each whole, up to a number of bytes in all.

    A state never changes under its id, so one at hand is right if the database has its id.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._states: dict[str, tuple[CheckpointTuple, int]] = {}  # by thread, the one used last at the end

    def get(self, thread: str, checkpoint_id: str | None) -> CheckpointTuple | None:
        """A copy of the state, as LangGraph changes the one that it is given."""
        state, _ = self._states.get(thread, (None, 0))
        if state is None or state.checkpoint["id"] != checkpoint_id:
            return None
        metadata: CheckpointMetadata = state.metadata.copy()
        return state._replace(checkpoint=copy_checkpoint(state.checkpoint), metadata=metadata)

    def put(self, thread: str, state: CheckpointTuple, size: int) -> None:
        self.forget(thread)
        self._states[thread] = state, size
        self._free -= size
        while self._free < 0:
            self.forget(next(iter(self._states)))

    def forget(self, thread: str) -> None:
        _, size = self._states.pop(thread, (None, 0))
        self._free += size


class Checkpointer(BaseCheckpointSaver[str]):
    """Raises StoreUnavailable when the database can't be read."""

    def __init__(self, store: Store) -> None:
        super().__init__(
            serde=JsonPlusSerializer(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None)
        )
        self._store = store
        self._put_last: dict[str, CheckpointTuple] = {}  # by thread in a run, the checkpoint that was put last
        self._at_hand = StatesAtHand(BYTES_AT_HAND)

    def remember(self, thread: str, values: Mapping[str, Any], size: int) -> str | None:
        """The id of the checkpoint that the thread's run has put last, if it has put one.

        The checkpoint is kept in memory with `values`, the values of its delta channels (about `size` bytes), so that
        the thread's next run need not read it.
        """
        state = self._put_last.pop(thread, None)
        if state is None:
            return None
        snapshots = {channel: _DeltaSnapshot(value) for channel, value in values.items()}
        state.checkpoint["channel_values"] = state.checkpoint["channel_values"] | snapshots
        self._at_hand.put(thread, state, size + STATE_BYTES)
        return state.checkpoint["id"]

    def forget(self, thread: str) -> None:
        """The thread was deleted."""
        self._at_hand.forget(thread)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """As the official saver counts: the number, and a random part by which branches differ."""
        number = 0 if current is None else int(current.split(".")[0])
        return f"{number + 1:032}.{random.random():016}"  # noqa: S311  # no secret

    # Writing

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread, namespace = _place(config)
        inline: dict[str, Any] = {}
        writes: list[Write] = []
        for channel, value in checkpoint["channel_values"].items():
            if _fits_jsonb(value):
                inline[channel] = value
                continue
            if isinstance(value, _DeltaSnapshot):
                inline[channel] = True  # the official saver's mark that there is a blob
            if channel in new_versions:
                kind, blob = self.serde.dumps_typed(value)
                writes.append(PUT_BLOB(thread, namespace, channel, str(new_versions[channel]), kind, blob))
        stored = {**checkpoint, "channel_values": inline}
        shown = get_serializable_checkpoint_metadata(config, metadata)
        parent = get_checkpoint_id(config)
        writes.append(PUT_CHECKPOINT(thread, namespace, checkpoint["id"], parent, _json(stored), _json(shown)))
        config = _config(thread, namespace, checkpoint["id"])
        if not namespace:
            parent_config = _config(thread, namespace, parent) if parent else None
            self._put_last[thread] = CheckpointTuple(config, checkpoint, shown, parent_config, [])
        await self._store.write(thread, writes)
        return config

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        thread, namespace = _place(config)
        checkpoint_id = config["configurable"]["checkpoint_id"]
        fixed = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        put = REPLACE_TASK_WRITE if fixed else PUT_TASK_WRITE
        ours: list[Write] = []
        for place, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, place)
            kind, blob = self.serde.dumps_typed(value)
            ours.append(put(thread, namespace, checkpoint_id, task_id, task_path, index, channel, kind, blob))
        if ours:
            await self._store.write(thread, ours)

    async def adelete_thread(self, thread_id: str) -> None:
        self.forget(thread_id)
        await self._store.write(thread_id, [delete(thread_id) for delete in DELETE_STATES])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Breaks a thread whose newer runs build on these by deltas; meant for the runs at a thread's end."""
        for row in await self._store.fetch(RUNS_CHECKPOINTS, list(run_ids)):
            thread = row["thread_id"]
            ids = list(run_ids)
            writes = [DELETE_TASK_WRITES_OF_RUNS(thread, ids), DELETE_CHECKPOINTS_OF_RUNS(thread, ids)]
            await self._store.write(thread, [*writes, DELETE_UNUSED_BLOBS(thread)])

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._store.settled(source_thread_id)
        await self._store.write(target_thread_id, [copy(source_thread_id, target_thread_id) for copy in COPY_STATES])

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keeps, of delta channels, the ancestors that the newest state is rebuilt from."""
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"unknown strategy {strategy!r}")
        for thread in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread)
            else:
                await self._store.write(thread, [prune(thread) for prune in PRUNE])

    # Reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread, namespace = _place(config)
        if self._store.is_new(thread):
            return None  # so that a new thread chats without the database
        if not namespace and (state := self._at_hand.get(thread, config["configurable"].get(STORED_LAST))) is not None:
            return state
        where, arguments = " WHERE c.thread_id = $1 AND c.checkpoint_ns = $2", [thread, namespace]
        if checkpoint_id := get_checkpoint_id(config):
            where, arguments = where + " AND c.checkpoint_id = $3", [*arguments, checkpoint_id]
        await self._store.settled(thread)
        rows = await self._store.fetch(f"{READ_TUPLES}{where} ORDER BY c.checkpoint_id DESC LIMIT 1", *arguments)
        return self._tuple(rows[0]) if rows else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        conditions: list[str] = []
        arguments: list[object] = []

        def add(condition: str, argument: object) -> None:
            arguments.append(argument)
            conditions.append(condition.format(f"${len(arguments)}"))

        if config is not None:
            configurable = config["configurable"]
            await self._store.settled(configurable["thread_id"])
            add("c.thread_id = {}", configurable["thread_id"])
            if (namespace := configurable.get("checkpoint_ns")) is not None:
                add("c.checkpoint_ns = {}", namespace)
            if checkpoint_id := get_checkpoint_id(config):
                add("c.checkpoint_id = {}", checkpoint_id)
        if filter:
            add("c.metadata @> {}::jsonb", _json(filter))
        if before is not None:
            add("c.checkpoint_id < {}", get_checkpoint_id(before))
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"{READ_TUPLES}{where} ORDER BY c.checkpoint_id DESC"
        if limit is not None:
            arguments.append(limit)
            sql += f" LIMIT ${len(arguments)}"
        for row in await self._store.fetch(sql, *arguments):
            yield self._tuple(row)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        histories: dict[str, DeltaChannelHistory] = {channel: {"writes": []} for channel in channels}
        thread, namespace = _place(config)
        await self._store.settled(thread)
        checkpoint_id = get_checkpoint_id(config)
        if not checkpoint_id:
            newest = await self._store.fetch(NEWEST_ID, thread, namespace)
            if not newest:
                return histories
            checkpoint_id = newest[0]["checkpoint_id"]
        for row in await self._store.fetch(READ_DELTAS, thread, namespace, checkpoint_id, list(channels)):
            history = histories[row["channel"]]
            if row["stored"]:
                seed = row["seed_type"] is not None
                history["seed"] = self._load(row["seed_type"], row["seed"]) if seed else orjson.loads(row["inline"])
            writes: list[PendingWrite] = [
                (task_id, row["channel"], self._load(kind, blob)) for task_id, kind, blob in row["writes"] or ()
            ]
            history["writes"] += writes
        return histories

    def _tuple(self, row: Row) -> CheckpointTuple:
        thread, namespace, parent = row["thread_id"], row["checkpoint_ns"], row["parent_checkpoint_id"]
        checkpoint = orjson.loads(row["checkpoint"])
        values = checkpoint.get("channel_values") or {}
        values |= {channel: self._load(kind, blob) for channel, kind, blob in row["blobs"] or () if kind != "empty"}
        return CheckpointTuple(
            config=_config(thread, namespace, row["checkpoint_id"]),
            checkpoint=cast("Checkpoint", checkpoint | {"channel_values": values}),
            metadata=orjson.loads(row["metadata"]),
            parent_config=_config(thread, namespace, parent) if parent else None,
            pending_writes=[
                (task_id, channel, self._load(kind, blob)) for task_id, channel, kind, blob in row["writes"] or ()
            ],
        )

    def _load(self, kind: str, blob: bytes) -> Any:  # noqa: ANN401  # whatever the graph stored
        return self.serde.loads_typed((kind, blob))


def _place(config: RunnableConfig) -> tuple[str, str]:
    configurable = config["configurable"]
    return configurable["thread_id"], configurable.get("checkpoint_ns", "")


def _config(thread: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}


def _fits_jsonb(value: object) -> bool:
    """Whether it comes back as it was; of floats some would be integers then. The official saver reads either place."""
    if isinstance(value, str):
        return "\0" not in value
    return value is None or isinstance(value, int)


def _json(value: object) -> str:
    """For a jsonb column, which refuses NUL in any string."""
    text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    return NUL.sub(r"\1", text) if "u0000" in text else text
