"""The graph with a scripted model: stops, silences, a history that was broken off."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from langchain_core.messages import BaseMessage

from agent import Agent, append
from chat import Finished, Message, Outcome, Piece, StopCause, Turn
from drafting.deltas import Hear, ModelDelta, ToolCallDelta
from threads.checkpointer import Checkpointer

pytestmark = pytest.mark.anyio


class Scripted:
    """Says its replies one after the other, each up to its Finished; None is a silence."""

    name = "scripted"

    def __init__(self, *replies: Sequence[ModelDelta | Finished | None]) -> None:
        self.replies = list(replies)
        self.sent: list[list[BaseMessage]] = []

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        self.sent.append(list(messages))
        for delta in self.replies.pop(0):
            await asyncio.sleep(0)
            if isinstance(delta, Finished):
                return delta
            if delta is None:
                await asyncio.Event().wait()
            else:
                hear([delta])
        raise AssertionError("the reply has no end")


async def turn(model: Scripted, saver: Checkpointer, *, stop_at: str | None = None) -> tuple[Outcome, list[Piece]]:
    agent = Agent(model, saver, remember=saver.remember, first_token_timeout_s=0.6, idle_timeout_s=0.3)
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
    pieces: list[Piece] = []

    def emit(together: Sequence[Piece]) -> None:
        pieces.extend(together)
        if together[-1].content == stop_at:
            stopping.set_result(StopCause.USER)

    # A run_id of its own: LangGraph takes one that it has seen for a resumption.
    return await agent(Turn("o", "t", str(uuid.uuid4()), "Hi"), emit, stopping), pieces


async def test_a_stop_ends_a_silence_at_once_and_keeps_what_was_said(checkpointer: Checkpointer) -> None:
    model = Scripted(["So far", None], ["On.", Finished("stop")])
    outcome, pieces = await turn(model, checkpointer, stop_at="So far")
    assert (outcome.reason, outcome.error, set(outcome.unfinished)) == ("cancelled", None, {0})
    assert pieces == [Message("So far", 0)]
    outcome, _ = await turn(model, checkpointer)
    assert (outcome.reason, outcome.error) == ("stop", None)
    assert [message.content for message in model.sent[1][1:]] == ["Hi", "So far", "Hi"]


async def test_what_arrives_right_behind_a_stop_does_not_put_it_off(checkpointer: Checkpointer) -> None:
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()

    class Talkative(Scripted):
        async def reply(
            self,
            messages: Sequence[BaseMessage],
            tools: Sequence[Mapping[str, Any]],
            hear: Hear,
            *,
            may_call: bool = True,
        ) -> Finished:
            stopping.add_done_callback(lambda _: hear(["too late"]))  # behind the agent's own, in the same pass
            stopping.set_result(StopCause.USER)
            return await super().reply(messages, tools, hear, may_call=may_call)

    agent = Agent(
        Talkative([None]), checkpointer, remember=checkpointer.remember, first_token_timeout_s=60, idle_timeout_s=60
    )
    async with asyncio.timeout(10):
        outcome = await agent(Turn("o", "t", str(uuid.uuid4()), "Hi"), lambda _: None, stopping)
    assert outcome.reason == "cancelled"


async def test_a_stop_between_the_calls_of_a_model_ends_the_turn(checkpointer: Checkpointer) -> None:
    write = ToolCallDelta(0, "c", "write_document", '{"title":"NDA","content":"text"}')
    model = Scripted([write, Finished("tool_calls")])
    outcome, _ = await turn(model, checkpointer, stop_at="text")
    assert outcome.reason == "cancelled"
    assert len(model.sent) == 1


async def test_a_model_that_falls_silent_is_given_up(checkpointer: Checkpointer) -> None:
    outcome, pieces = await turn(Scripted(["Half", None]), checkpointer)
    assert outcome.error is not None
    assert outcome.error.code == "model_idle_timeout"
    assert pieces == [Message("Half", 0)]


async def test_a_model_that_goes_on_may_take_longer_than_its_first_token(checkpointer: Checkpointer) -> None:
    class Steady(Scripted):
        async def reply(
            self,
            messages: Sequence[BaseMessage],
            tools: Sequence[Mapping[str, Any]],
            hear: Hear,
            *,
            may_call: bool = True,
        ) -> Finished:
            loop = asyncio.get_running_loop()
            twice = loop.time() + 2 * limit_s
            while loop.time() < twice:
                hear(["x"])
                await asyncio.sleep(limit_s / 10)
            return Finished("stop")

    limit_s = 0.1
    agent = Agent(
        Steady(), checkpointer, remember=checkpointer.remember, first_token_timeout_s=limit_s, idle_timeout_s=60
    )
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
    outcome = await agent(Turn("o", "t", str(uuid.uuid4()), "Hi"), lambda _: None, stopping)
    assert (outcome.reason, outcome.error) == ("stop", None)


async def test_a_model_that_does_not_begin_is_given_up(checkpointer: Checkpointer) -> None:
    outcome, pieces = await turn(Scripted([None]), checkpointer)
    assert outcome.error is not None
    assert (outcome.error.code, pieces) == ("model_first_token_timeout", [])


async def test_after_a_chunk_of_reasoning_the_idle_limit_counts(checkpointer: Checkpointer) -> None:
    class Reasoning(Scripted):
        async def reply(
            self,
            messages: Sequence[BaseMessage],
            tools: Sequence[Mapping[str, Any]],
            hear: Hear,
            *,
            may_call: bool = True,
        ) -> Finished:
            hear([])
            return await super().reply(messages, tools, hear, may_call=may_call)

    agent = Agent(
        Reasoning([None]), checkpointer, remember=checkpointer.remember, first_token_timeout_s=600, idle_timeout_s=0.3
    )
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(60):
        outcome = await agent(Turn("o", "t", str(uuid.uuid4()), "Hi"), lambda _: None, stopping)
    assert outcome.error is not None
    assert outcome.error.code == "model_first_token_timeout", "it has reasoned, but not begun to answer"


async def test_usage_adds_up_over_the_calls_of_a_turn(checkpointer: Checkpointer) -> None:
    call = ToolCallDelta(0, "c", "nothing", "{}")
    usage = {"input_tokens": 5, "output_tokens": 2}
    finished = Finished("tool_calls", usage)  # type: ignore[arg-type]  # a Usage
    outcome, _ = await turn(Scripted([call, finished], ["x", Finished("stop", finished.usage)]), checkpointer)
    assert outcome.usage == {"input_tokens": 10, "output_tokens": 4}
    [newest, *_] = [state async for state in checkpointer.alist({"configurable": {"thread_id": "o/t"}})]
    assert outcome.checkpoint_id == newest.checkpoint["id"]


def test_the_reducer_is_associative_over_batches() -> None:
    assert append(append([1], [[2], [3]]), [[4]]) == append([1], [[2], [3], [4]]) == [1, 2, 3, 4]
