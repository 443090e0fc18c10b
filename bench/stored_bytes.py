"""Bytes in the database for a thread of 100 turns, each a new version of a 6 KB document, and the time to load it.

Compares LangGraph's official saver with `add_messages` (the usual way), with fewer checkpoints and with
DeltaChannel, and our checkpointer with DeltaChannel at several snapshot frequencies. Run: `make bench`.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph, add_messages

from agent import SNAPSHOT_FREQUENCY, append
from storage.embedded import embedded_postgres
from store import open_store
from threads.checkpointer import Checkpointer

TURNS = 100
DOCUMENT_BYTES = 6000
WORDS = Path(__file__).resolve().parent.parent.joinpath("drafting/offline/clauses.toml").read_text().split()
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
SIZE = " + ".join(f"(SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {table} t)" for table in TABLES)
ON_DISK = " + ".join(f"pg_total_relation_size('{table}')" for table in TABLES)  # with indexes and free space

Durability = Literal["async", "exit"]


@dataclass
class Case:
    name: str
    state: Any
    ours: bool
    durability: Durability


def add_documents(before: list[Any], new: list[Any]) -> list[Any]:
    return [*before, *new]


class Plain(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    documents: Annotated[list[dict[str, Any]], add_documents]


def delta(frequency: int) -> Any:
    channel = DeltaChannel(append, list, snapshot_frequency=frequency)
    fields: dict[str, Any] = {"messages": Annotated[list, channel], "documents": Annotated[list, channel]}
    return TypedDict(f"Delta{frequency}", fields)  # type: ignore[operator]  # made at run time, one a frequency


CASES = [
    Case("official, add_messages", Plain, ours=False, durability="async"),
    Case("official, add_messages, one checkpoint a turn", Plain, ours=False, durability="exit"),
    Case("official, DeltaChannel(200), one a turn", delta(200), ours=False, durability="exit"),
    *(
        Case(f"ours, DeltaChannel({n}), one a turn{' (chosen)' * (n == SNAPSHOT_FREQUENCY)}", delta(n), True, "exit")
        for n in (50, 200, 1000)
    ),
]


def build(state: type, saver: BaseCheckpointSaver[Any]) -> Any:
    """The service's shape: agent → tools → agent, one document a turn."""
    choices = random.Random(7)

    def agent(values: Any) -> dict[str, Any]:
        if isinstance(values["messages"][-1], ToolMessage):
            return {"messages": [AIMessage("Done: the new version is ready. Please fill in what stands in brackets.")]}
        content = " ".join(choices.choices(WORDS, k=DOCUMENT_BYTES // 7))[:DOCUMENT_BYTES]
        call = {
            "id": f"c{len(values['messages'])}",
            "name": "write_document",
            "args": {"title": "NDA", "content": content},
        }
        return {"messages": [AIMessage("I will draft it.", tool_calls=[call])]}

    def tools(values: Any) -> dict[str, Any]:
        call = values["messages"][-1].tool_calls[0]
        document = {"doc_id": "d1", "title": "NDA", "version": len(values["documents"]) + 1, "complete": True}
        answer = ToolMessage('{"doc_id":"d1"}', tool_call_id=call["id"])
        return {"messages": [answer], "documents": [{**document, "content": call["args"]["content"]}]}

    def route(values: Any) -> str:
        return "tools" if values["messages"][-1].tool_calls else END

    graph: Any = StateGraph(state)  # its state is made at run time
    graph.add_node("agent", agent)
    graph.add_node("tools", tools)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", route, ["tools", END])
    graph.add_edge("tools", "agent")
    return graph.compile(checkpointer=saver)


@dataclass
class Figures:
    half: int  # bytes of the rows after half of the turns
    whole: int  # and after all of them
    on_disk: int
    load: float  # seconds to load the last state, best of 5


async def measure(case: Case, dsn: str) -> Figures:
    async with open_store(dsn, queue_size=1000, queue_bytes=2**20, connect_timeout_s=10, drain_timeout_s=10) as store:
        if case.ours:
            return await converse(case, Checkpointer(store), dsn)
        async with AsyncPostgresSaver.from_conn_string(dsn) as saver:
            await saver.setup()
            return await converse(case, saver, dsn)


async def converse(case: Case, saver: BaseCheckpointSaver[Any], dsn: str) -> Figures:
    config = {"configurable": {"thread_id": "bench/t"}}
    graph = build(case.state, saver)
    half = 0
    for turn in range(TURNS):
        message = {"messages": [HumanMessage(f"Please change the term to {turn} months.")], "documents": []}
        await graph.ainvoke(message, config, durability=case.durability)
        if turn == TURNS // 2 - 1:
            half = await size(dsn, SIZE)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        state = await graph.aget_state(config)
        best = min(best, time.perf_counter() - began)
    assert len(state.values["documents"]) == TURNS
    return Figures(half, await size(dsn, SIZE), await size(dsn, ON_DISK), best)


async def size(dsn: str, expression: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(f"SELECT {expression}"))
    finally:
        await connection.close()


async def database(server: str, name: str) -> str:
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return server.replace("@/postgres", f"@/{name}")


def show(rows: Sequence[tuple[str, Figures]], write: Callable[[str], object]) -> None:
    base = rows[0][1]
    said = TURNS * DOCUMENT_BYTES
    header = f"{'bytes':>12} {'x text':>7} {'2nd/1st half':>13} {'of base':>8} {'on disk':>12} {'of base':>8}"
    write(f"{'':52} {header} {'load':>8} {'of base':>8}")
    for name, it in rows:
        growth = (it.whole - it.half) / it.half
        figures = f"{it.whole:>12,} {it.whole / said:>7.1f} {growth:>13.2f} {it.whole / base.whole:>8.3f}"
        disk = f"{it.on_disk:>12,} {it.on_disk / base.on_disk:>8.3f}"
        write(f"{name:52} {figures} {disk} {it.load * 1000:>5.1f} ms {it.load / base.load:>8.2f}")


async def compare(server: str) -> list[tuple[str, Figures]]:
    """Every case, each in a database of its own on the server."""
    rows = []
    for number, case in enumerate(CASES):
        dsn = await database(server, f"case_{number}")
        rows.append((case.name, await measure(case, dsn)))
    return rows


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        async with embedded_postgres(Path(folder)) as server:
            show(await compare(server), print)


if __name__ == "__main__":
    asyncio.run(main())
