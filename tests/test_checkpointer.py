"""LangGraph's checkpointer on our tables: its own conformance suite, the official saver as a partner, and the strictness."""

import asyncio
import pickle
import random
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agent import append
from chat import STORED_LAST
from store import Store
from threads.checkpointer import Checkpointer, StatesAtHand

pytestmark = pytest.mark.anyio

FORGED = "test_checkpointer.Forged"


class Forged:
    """An object that stored bytes must never bring to life."""

    made = 0

    def __init__(self, *_: object) -> None:
        Forged.made += 1

    def __reduce__(self) -> Any:
        return Forged, ()


# Writes and blobs that no checkpoint uses, and parents that are not there.
ORPHANS = """SELECT 'writes' FROM checkpoint_writes WHERE (thread_id, checkpoint_id) NOT IN (
    SELECT thread_id, checkpoint_id FROM checkpoints)
UNION ALL SELECT 'blob' FROM checkpoint_blobs WHERE (thread_id, channel, version) NOT IN (
    SELECT thread_id, v.key, v.value FROM checkpoints, jsonb_each_text(checkpoint -> 'channel_versions') AS v)
UNION ALL SELECT 'parent' FROM checkpoints WHERE (thread_id, parent_checkpoint_id) NOT IN (
    SELECT thread_id, checkpoint_id FROM checkpoints)"""


class State(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(append, list, snapshot_frequency=5)]
    documents: Annotated[list[dict[str, Any]], DeltaChannel(append, list, snapshot_frequency=5)]


def answer(state: State) -> dict[str, Any]:
    number = len(state["messages"])
    documents = [{"content": f"text {number} \u2028 😀"}] if number % 3 == 1 else []
    return {"messages": [AIMessage(f"answer {number}")], "documents": documents}


def graph(saver: BaseCheckpointSaver[Any]) -> "CompiledStateGraph[State, None, State, State]":
    builder = StateGraph(State)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def at(thread: str, checkpoint_id: str | None = None) -> RunnableConfig:
    config: RunnableConfig = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    if checkpoint_id:
        config["configurable"]["checkpoint_id"] = checkpoint_id
    return config


async def turn(saver: BaseCheckpointSaver[Any], config: RunnableConfig, text: str) -> list[str]:
    message: Any = {"messages": [HumanMessage(text)], "documents": []}
    state = await graph(saver).ainvoke(message, config, durability="exit")
    return [str(message.content) for message in state["messages"]]


async def ids(saver: BaseCheckpointSaver[Any], thread: str) -> list[str]:
    return [entry.config["configurable"]["checkpoint_id"] async for entry in saver.alist(at(thread))]


async def test_all_eight_capabilities_of_langgraphs_conformance_suite_pass(store: Store) -> None:
    async def factory() -> AsyncIterator[Checkpointer]:
        yield Checkpointer(store)

    report = await validate(checkpointer_test("Draftstream")(factory))
    assert len(report.results) == 8
    assert {name: result.failures for name, result in report.results.items() if not result.passed} == {}


@pytest.mark.parametrize("ours_first", [True, False])
async def test_the_official_saver_and_ours_go_on_with_each_others_threads(
    store: Store, database_url: str, *, ours_first: bool
) -> None:
    async with AsyncPostgresSaver.from_conn_string(database_url) as official:
        await official.setup()
        savers: list[BaseCheckpointSaver[Any]] = [Checkpointer(store), official]
        first, second = savers if ours_first else reversed(savers)
        for number in range(4):
            await turn(first, at("o/t"), f"first {number}")
        for number in range(4):
            await turn(second, at("o/t"), f"second {number}")
        texts = await turn(first, at("o/t"), "first again")
        assert [text for text in texts if "answer" not in text] == [
            *(f"first {number}" for number in range(4)),
            *(f"second {number}" for number in range(4)),
            "first again",
        ]
        earlier = (await ids(first, "o/t"))[3]
        branch = await turn(second, at("o/t", earlier), "branch")
        assert branch[-2] == "branch"
        assert await turn(first, at("o/t"), "on the branch") == [*branch, "on the branch", f"answer {len(branch) + 1}"]
        states = [(await graph(saver).aget_state(at("o/t"))).values for saver in savers]
        assert states[0] == states[1]
        assert await ids(first, "o/t") == await ids(second, "o/t")


async def test_the_way_back_of_delta_channels_is_that_of_the_base_class(checkpointer: Checkpointer) -> None:
    seed = random.randrange(10**6)
    choices = random.Random(seed)  # no secret
    known: list[str | None] = [None]
    for number in range(14):
        await turn(checkpointer, at("o/t", choices.choice(known)), f"turn {number}")
        known = [None, *await ids(checkpointer, "o/t")]
    channels = ["messages", "documents", "never"]
    for checkpoint_id in known:
        config = at("o/t", checkpoint_id)
        ours = await checkpointer.aget_delta_channel_history(config=config, channels=channels)
        base = await BaseCheckpointSaver.aget_delta_channel_history(checkpointer, config=config, channels=channels)
        assert ours == base, f"seed {seed}, {checkpoint_id}"


async def test_pruning_keeps_what_the_newest_state_is_rebuilt_from(checkpointer: Checkpointer, store: Store) -> None:
    seed = random.randrange(10**6)
    choices = random.Random(seed)  # no secret
    known: list[str | None] = [None]
    for number in range(20):
        texts = await turn(checkpointer, at("o/t", choices.choice([None, *known])), f"turn {number}")
        known = [None, *await ids(checkpointer, "o/t")]
    await turn(checkpointer, at("o/other"), "turn")
    before = (await graph(checkpointer).aget_state(at("o/t"))).values
    await checkpointer.aprune(["o/t"])
    assert 1 <= len(await ids(checkpointer, "o/t")) < len(known) - 1, seed
    assert (await graph(checkpointer).aget_state(at("o/t"))).values == before, seed
    assert await store.fetch(ORPHANS) == []
    left = await ids(checkpointer, "o/t")
    await checkpointer.aprune(["o/t"])
    assert await ids(checkpointer, "o/t") == left
    assert (await turn(checkpointer, at("o/t"), "on"))[:-2] == texts
    await checkpointer.aprune(["o/t"], strategy="delete")
    assert await ids(checkpointer, "o/t") == []
    assert len(await ids(checkpointer, "o/other")) == 2


async def test_values_that_jsonb_would_change_come_back_as_they_were(checkpointer: Checkpointer) -> None:
    values = {
        "a": "nul \0",
        "b": "\\u0000",
        "c": 1e18,
        "d": float("inf"),
        "e": 2**60,
        "f": None,
        "g": True,
        "h": 7,
        "i": "é",
    }
    checkpoint = empty_checkpoint() | {"channel_values": values, "channel_versions": dict.fromkeys(values, "1")}
    metadata: Any = {"source": "input", "step": -1, "note": "a\0\0b \\u0000 \\\0", "parents": {}}
    versions: Any = dict.fromkeys(values, "1")
    config = await checkpointer.aput(at("o/t"), checkpoint, metadata, versions)
    stored = await checkpointer.aget_tuple(config)
    assert stored
    assert {name: (type(value), value) for name, value in stored.checkpoint["channel_values"].items()} == {
        name: (type(value), value) for name, value in values.items()
    }
    assert stored.metadata == metadata | {"note": "ab \\u0000 \\"}


async def test_a_copy_is_whole_and_goes_its_own_way(checkpointer: Checkpointer) -> None:
    for number in range(7):
        texts = await turn(checkpointer, at("o/t"), f"turn {number}")
    await checkpointer.acopy_thread("o/t", "o/copy")
    assert (await turn(checkpointer, at("o/copy"), "mine"))[:-2] == texts
    assert await turn(checkpointer, at("o/t"), "yours") == [*texts, "yours", f"answer {len(texts) + 1}"]


async def test_stored_bytes_make_only_harmless_types(checkpointer: Checkpointer, store: Store) -> None:
    await turn(checkpointer, at("o/t"), "turn")
    forged = ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(("test_checkpointer", "Forged", (), {}))))
    await store.fetch("UPDATE checkpoint_writes SET blob = $1, type = 'msgpack'", forged)
    await checkpointer.aget_delta_channel_history(config=at("o/t"), channels=["messages"])
    await store.fetch("UPDATE checkpoint_writes SET blob = $1, type = 'pickle'", pickle.dumps(Forged()))
    made = Forged.made
    with pytest.raises(NotImplementedError):
        await checkpointer.aget_delta_channel_history(config=at("o/t"), channels=["messages"])
    assert Forged.made == made


async def test_a_message_comes_back_as_it_was_stored(checkpointer: Checkpointer) -> None:
    hostile = '"quotes" \\ \n\r\t 😀 \u2028 \u202e </script> e\u0301'
    assert (await turn(checkpointer, at("o/t"), hostile))[0] == hostile
    state = await graph(checkpointer).aget_state(at("o/t"))
    assert state.values["messages"][0] == HumanMessage(hostile, id=state.values["messages"][0].id)


async def test_threads_at_once_do_not_meet(checkpointer: Checkpointer) -> None:
    async def converse(name: str) -> list[str]:
        for number in range(5):
            texts = await turn(checkpointer, at(f"o/{name}"), f"{name} {number}")
        return [text for text in texts if "answer" not in text]

    conversations = await asyncio.gather(*(converse(f"t{number}") for number in range(10)))
    assert conversations == [[f"t{number} {index}" for index in range(5)] for number in range(10)]


def wanted(thread: str, checkpoint_id: str) -> RunnableConfig:
    """As the agent asks for a thread's newest state."""
    return {"configurable": {"thread_id": thread, STORED_LAST: checkpoint_id}}


async def test_a_state_at_hand_is_the_one_that_is_stored(checkpointer: Checkpointer, store: Store) -> None:
    """Of two threads, one is kept at hand and one is read for each turn: they remember and store the same."""
    newest = None
    for number in range(13):  # some snapshots' worth
        for thread in ("o/kept", "o/read"):
            config = wanted(thread, newest) if newest and thread == "o/kept" else at(thread)
            message: Any = {"messages": [HumanMessage(f"turn {number}", id=str(number))], "documents": []}
            values = await graph(checkpointer).ainvoke(message, config, durability="exit")
            kept = checkpointer.remember(thread, values, 10)
            assert [kept] == (await ids(checkpointer, thread))[:1]
            if thread == "o/kept":
                newest, said = kept, values["messages"]
        assert newest is not None
        at_hand = await checkpointer.aget_tuple(wanted("o/kept", newest))
        assert at_hand is not None
        assert at_hand.checkpoint["channel_values"]["messages"].value == said
    states = [(await graph(checkpointer).aget_state(at(thread))).values for thread in ("o/kept", "o/read")]
    assert states[0]["documents"] == states[1]["documents"]
    texts = [[message.content for message in state["messages"]] for state in states]
    assert texts[0] == texts[1]
    kinds = [
        await store.fetch(
            "SELECT channel, type, count(*) FROM checkpoint_writes WHERE thread_id = $1 GROUP BY 1, 2 "
            "UNION ALL SELECT channel, type, count(*) FROM checkpoint_blobs WHERE thread_id = $1 GROUP BY 1, 2 "
            "ORDER BY 1, 2, 3",
            thread,
        )
        for thread in ("o/kept", "o/read")
    ]
    assert kinds[0] == kinds[1]


async def test_a_state_at_hand_is_not_taken_for_a_newer_one(checkpointer: Checkpointer, store: Store) -> None:
    await turn(checkpointer, at("o/t"), "one")
    first = checkpointer.remember("o/t", {}, 10)
    await turn(Checkpointer(store), at("o/t"), "two")  # in another process
    second = (await ids(checkpointer, "o/t"))[0]
    assert second != first
    found = await checkpointer.aget_tuple(wanted("o/t", second))
    assert found is not None
    assert found.checkpoint["id"] == second
    assert await turn(checkpointer, wanted("o/t", second), "three") == [
        "one",
        "answer 1",
        "two",
        "answer 3",
        "three",
        "answer 5",
    ]
    checkpointer.remember("o/t", {}, 10)
    assert checkpointer.remember("o/t", {}, 10) is None, "nothing was put since"


async def test_so_many_states_are_at_hand_as_have_room() -> None:
    states = StatesAtHand(100)
    for number in range(5):
        states.put(f"t{number}", state(f"c{number}"), 40)
    assert [states.get(f"t{number}", f"c{number}") is not None for number in range(5)] == [False] * 3 + [True] * 2
    states.put("t4", state("c5"), 101)
    assert states.get("t4", "c5") is None
    states.put("t6", state("c6"), 100)
    assert states.get("t6", "c6") is not None


def state(checkpoint_id: str) -> CheckpointTuple:
    checkpoint = empty_checkpoint()
    checkpoint["id"] = checkpoint_id
    return CheckpointTuple(at("t", checkpoint_id), checkpoint, {})
