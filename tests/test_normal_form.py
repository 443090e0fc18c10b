"""The messages of a request: random histories, made by real turns of the agent, against every strict provider."""

import asyncio
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from conftest import run
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from openai_server import check_messages
from strict_providers import FAMILIES, FILTERED, FILTERS, FORBIDDEN, Wire

from agent import SYSTEM, Agent
from chat import Finished, Item, LostRun, Piece, StopCause, Turn
from drafting.context.give_back import Demands
from drafting.context.normal_form import (
    BEGINNING,
    EARLIER_LEFT_OUT,
    GO_ON,
    INTERRUPTED,
    LEFT_OUT,
    LOST_ANSWER,
    NOTE,
    normal_form,
    without_refused,
)
from drafting.deltas import Hear, ModelDelta, ModelError, Opaque, ToolCallDelta
from drafting.provider.openai_model import OpenAIModel
from drafting.tools import TOOLS

FAULTS = (
    *("none", "empty", "blank", "before the first word", "in the middle", "behind an answer", "in a call"),
    *("rejected", "filtered", "filtered reply", "cancelled", "cancelled in a call", "lost", "not JSON", "odd name"),
)
LEAVES_OUT = {"filtered", "filtered reply", "rejected"}
IDS = ("own", "none", "one for all", "mistral")


@dataclass(frozen=True)
class Step:
    """A turn: its provider, what goes wrong in it, its calls, and how many turns before it it branches off."""

    family: str
    fault: str = "none"
    calls: int = 1
    ids: str = "own"
    thinks: bool = True
    back: int = 0


@cache
def model_of(family: str) -> OpenAIModel:
    return OpenAIModel(f"{family}-1", api_key=None, base_url=f"http://{family}.example/v1")


@dataclass
class Provider:
    """A model of a family: it refuses by the family's rules, and replies by the script of the turn."""

    family: str
    step: Step = field(default_factory=lambda: Step("openai"))
    accepted: list[tuple[list[str], list[Wire]]] = field(default_factory=list)  # what it had learnt, and the messages
    asked: list[Sequence[BaseMessage]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    replies: int = 0  # in this turn
    numbers: Any = field(default_factory=itertools.count)
    model: OpenAIModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = model_of(self.family)
        self.model._demands = Demands()

    @property
    def name(self) -> str:
        return self.family

    def receive(self, messages: Sequence[BaseMessage]) -> None:
        """Take a request as `OpenAIModel` sends it, and once more for each field that the refusal is about."""
        self.asked.append(messages)
        while True:
            payload, opaque = self.model.payload(messages, {"tools": list(TOOLS)})
            check_messages([{name: sent[name] for name in sent.keys() - opaque} for sent in payload["messages"]])
            refusal = FAMILIES[self.family](payload)
            if refusal is None:
                demands = self.model._demands
                self.accepted.append(([*demands.required, *demands.refused], payload["messages"]))
                return
            if self.model._demands.learn(refusal, opaque) is None:
                self.refusals.append(refusal)
                code = "content_filter" if refusal == FILTERED else "model_rejected"
                raise ModelError(code, refusal, retryable=False)

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        self.receive(messages)
        self.replies += 1
        await asyncio.sleep(0)
        return await self._say(hear)

    async def _say(self, hear: Hear) -> Finished:
        """The reply by the script. A fault of the turn strikes in its first reply, or in the one behind an answer."""
        fault, is_first = self.step.fault, self.replies == 1
        if fault in CODES_AT_ONCE or (fault == "behind an answer" and not is_first):
            raise ModelError(CODES_AT_ONCE.get(fault, "model_unavailable"), "no", retryable=True)
        if fault in TEXTS and is_first:
            hear(TEXTS[fault])
            return Finished("content_filter" if fault == "filtered reply" else "stop")
        hear([f"Reply {next(self.numbers)} \n"])
        if is_first and self.step.calls:
            hear(self._calls())
        if "cancelled" in fault:
            await asyncio.Event().wait()
        if fault in ("in the middle", "in a call"):
            raise ModelError("model_disconnected", "no", retryable=True)
        return Finished("tool_calls" if is_first and self.step.calls else "stop")

    def _calls(self) -> list[ModelDelta]:
        fault, deltas = self.step.fault, list[ModelDelta]()
        number = next(self.numbers)
        if self.step.thinks or self.family in ALWAYS_THINKS:
            deltas += [Opaque(None, fields, self.model._source) for fields in THOUGHTS.get(self.family, ())]
        for index in range(self.step.calls):
            arguments = json.dumps({"title": f"T{index}", "content": f"Text {number} {index}", "odd": float("nan")})
            arguments = arguments[:-9] if "in a call" in fault else "{oops" if fault == "not JSON" else arguments
            name = {"odd name": "9 tools!"}.get(fault, "write_document" if index % 2 == 0 else "write")
            ids = {
                "own": f"call_{number}.{index}",
                "none": "",
                "one for all": "call_0",
                "mistral": f"m{number:07}{index}",
            }
            call_id = ids[self.step.ids]
            if index == 0 and self.family == "litellm_gemini":
                call_id = f"call_{number}__thought__c2lnbmVk"
            deltas.append(ToolCallDelta(index, call_id, name, arguments))
            if index == 0 and self.family == "gemini3":
                google = {"google": {"thought_signature": f"signed {number}"}}
                deltas.append(Opaque(0, {"extra_content": google}, self.model._source))
            if "__thought__" in call_id:
                deltas.append(Opaque(0, {"id": call_id}, self.model._source))
        return deltas


CODES_AT_ONCE = {"before the first word": "model_unavailable", "rejected": "model_rejected"}
TEXTS: Mapping[str, Sequence[ModelDelta]] = {"empty": [], "blank": [" \n"], "filtered reply": [f"Well, {FORBIDDEN}"]}
THOUGHTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "deepseek_thinking": ({"reasoning_content": "I should "}, {"reasoning_content": "write."}),
    "deepseek_v4": ({"reasoning_content": "I should write."},),
    "deepseek_r1": ({"reasoning_content": "I should write."},),
    "kimi": ({"reasoning_content": "I should write."},),
    "groq": ({"reasoning": "I should write."},),
    "openrouter": (
        {"reasoning": "Hm. ", "reasoning_details": [{"type": "reasoning.text", "text": "Hm. ", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "So.", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.text", "signature": "signed Hm. So.", "index": 0}]},
    ),
    "claude_thinking": (
        {"reasoning_content": "Hm. ", "thinking_blocks": [{"type": "thinking", "thinking": "Hm. ", "signature": ""}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "signed Hm. "}]},
    ),
}
ALWAYS_THINKS = {"openrouter", "claude_thinking"}  # their blocks can't be made up for a model that did not think


class Thread:
    """Real turns of real agents, one provider after the other, on one thread."""

    def __init__(self) -> None:
        self.saver = InMemorySaver(serde=JsonPlusSerializer(allowed_json_modules=None, allowed_msgpack_modules=None))
        self.providers: dict[str, Provider] = {}
        self.states: list[str | None] = [None]
        self.lost: list[LostRun] = []

    async def newest(self) -> str:
        newest = await self.saver.aget_tuple({"configurable": {"thread_id": "o/t"}})
        assert newest is not None
        return str(newest.checkpoint["id"])

    async def state(self) -> list[AnyMessage]:
        if not self.providers:
            return []
        state = await self.agent(next(iter(self.providers.values()))).state("o", "t")
        return [*state["messages"]]

    def agent(self, provider: Provider) -> Agent:
        return Agent(provider, self.saver, remember=lambda *_: None, first_token_timeout_s=60, idle_timeout_s=60)

    async def take(self, number: int, step: Step) -> None:
        run_id = str(uuid.uuid4())
        is_refused = step.fault == "filtered" and step.family in FILTERS
        message = f"{FORBIDDEN if is_refused else 'Message'} {number}"
        if step.fault == "lost":
            self.lost.append(LostRun(run_id, message, lost_items(step.calls)))
            return
        provider = self.providers.setdefault(step.family, Provider(step.family))
        provider.step, provider.replies = step, 0
        if step.back:
            for each in self.providers.values():
                each.accepted.clear()
        accepted = len(provider.accepted)
        before = self.states[max(0, len(self.states) - 1 - step.back)]
        stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()

        def emit(pieces: Sequence[Piece]) -> None:
            if "cancelled" in step.fault and not stopping.done():
                stopping.set_result(StopCause.USER)

        branches = step.back > 0
        turn = Turn("o", "t", run_id, message, before, () if branches else self.lost, branches=branches)
        self.lost = []
        outcome = await self.agent(provider)(turn, emit, stopping)
        self.states.append(await self.newest())
        if is_refused:
            assert outcome.error is not None
            # The message is sent once more, without the earlier turns.
            assert provider.refusals in ([outcome.error.content], 2 * [outcome.error.content])
            provider.refusals.clear()
        assert provider.refusals == []
        if step.fault in LEAVES_OUT:
            del provider.accepted[accepted:]


def lost_items(calls: int) -> list[Item]:
    said: Item = {"item": 0, "role": "assistant", "type": "message", "content": "Half a ", "complete": False}
    doc: Item = {"item": 1, "role": "assistant", "type": "doc", "content": "Text", "complete": False}
    return [said, doc | {"doc_id": "d1", "title": "T0", "version": 1}][: calls + 1] if calls else []


steps = st.builds(
    Step,
    family=st.sampled_from(sorted(FAMILIES)),
    fault=st.sampled_from(FAULTS),
    calls=st.integers(0, 2),
    ids=st.sampled_from(IDS),
    thinks=st.booleans(),
    back=st.sampled_from([0, 0, 0, 1, 2]),
)


@given(st.lists(steps, min_size=1, max_size=7))
@settings(max_examples=40)
def test_whatever_a_thread_went_through_no_provider_refuses_its_next_message(script: Sequence[Step]) -> None:
    async def play() -> None:
        thread = Thread()
        for number, step in enumerate(script):
            await thread.take(number, step)
        state = await thread.state()
        for family in FAMILIES:
            asked = [SYSTEM, *without_refused(state), HumanMessage("Hi", id=str(uuid.uuid4()))]
            provider = thread.providers.setdefault(family, Provider(family))
            provider.receive(asked)
            for (learnt, earlier), (learnt_later, later) in itertools.pairwise(provider.accepted):
                assert learnt != learnt_later or later[: len(earlier)] == earlier

    run(play())


def test_a_change_of_the_provider_in_a_turn_takes_the_calls_of_the_other() -> None:
    """As a fallback does: the calls have no signature and no reasoning of the model that goes on."""

    async def play() -> None:
        thread = Thread()
        await thread.take(0, Step("mistral"))
        [request] = [asked for asked in thread.providers["mistral"].asked if isinstance(asked[-1], ToolMessage)]
        for family in sorted(FAMILIES.keys() - ALWAYS_THINKS - {"litellm_gemini"}):
            Provider(family).receive(request)

    run(play())


# ---------------------------------------------------------------------------------------------------------------
# Any list of messages

OPAQUE_FAMILIES = {"gemini3", "litellm_gemini", "deepseek_thinking", "deepseek_v4", "kimi", *ALWAYS_THINKS}
texts = st.sampled_from(["", " ", "\n\n", "text", "text \n", "  text"])
ids = st.sampled_from(["", "a", "b", "toolu_01:x", "functions.f:0"])
arguments = st.dictionaries(st.text(max_size=3), st.floats() | st.lists(st.floats()) | st.text(max_size=3), max_size=2)
calls = st.builds(
    lambda call_id, name, args: {"id": call_id or None, "name": name, "args": args},
    ids,
    st.sampled_from(["write_document", "", "a tool", "9x", "x" * 65]),
    arguments,
)
any_message: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(HumanMessage, texts),
    st.builds(lambda text: HumanMessage(text, additional_kwargs={NOTE: True}), texts),
    st.builds(SystemMessage, texts),
    st.builds(lambda text, made: AIMessage(text, tool_calls=made), texts, st.lists(calls, max_size=3)),
    st.builds(lambda text, call_id: ToolMessage(text, tool_call_id=call_id), texts, ids),
)


@given(st.lists(any_message, max_size=9))
@settings(max_examples=200)
def test_any_messages_have_a_form_that_every_provider_takes(messages: Sequence[AnyMessage]) -> None:
    form = normal_form([SYSTEM, *messages])
    payload, opaque = model_of("openai").payload([SYSTEM, *messages], {"tools": list(TOOLS)})
    assert opaque == set()
    check_messages(payload["messages"])
    for family in FAMILIES.keys() - OPAQUE_FAMILIES:
        assert FAMILIES[family](payload) is None, family
    assert normal_form(form) == form
    said = [message.content for message in messages if isinstance(message, HumanMessage) and message.text.strip()]
    assert all(any(text in (sent["content"] or "") for sent in payload["messages"]) for text in said)


def answered(*ids: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"id": call_id, "name": "f", "args": {}} for call_id in ids])


def answer(text: str, call_id: str) -> ToolMessage:
    return ToolMessage(text, tool_call_id=call_id)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([answered("a")], [LOST_ANSWER]),
        ([answered("a", "b"), answer("B", "b")], [LOST_ANSWER, "B"]),
        ([answered("a"), HumanMessage("x"), answer("late", "a")], [LOST_ANSWER]),
        ([answer("orphan", "z"), HumanMessage("x")], []),
        ([answered("a"), answer("1", "a"), answered("a"), answer("2", "a")], ["1", "2"]),
        ([answered("a", "a"), answer("1", "a"), answer("2", "a")], ["1", "2"]),
        ([answered("a"), answer(" ", "a")], ["{}"]),
    ],
)
def test_every_call_has_its_answer_right_behind_it(history: list[AnyMessage], expected: list[str]) -> None:
    form = normal_form([HumanMessage("x"), *history])
    assert [message.content for message in form if isinstance(message, ToolMessage)] == expected
    waiting: list[str] = []
    for message in form:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id == waiting.pop(0)
        else:
            assert waiting == []
        if isinstance(message, AIMessage):
            waiting = [call["id"] or "" for call in message.tool_calls]


user, said = HumanMessage, AIMessage


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a"), user("b")], ["a", INTERRUPTED, "b"]),
        ([user("a"), said(" \n"), user("b")], ["a", INTERRUPTED, "b"]),
        ([user("a"), answered("c"), answer("1", "c"), user("b")], ["a", "", "1", INTERRUPTED, "b"]),
        ([user("a"), said("b\n"), said("c"), user("d")], ["a", "b\n\nc", "d"]),
        ([said("a"), user("b")], [BEGINNING, "a", "b"]),
        ([user("a"), said("b")], ["a", "b", GO_ON]),
        ([], [GO_ON]),
        ([user("note", additional_kwargs={NOTE: True}), user("a")], ["note\n\na"]),
        ([user("a"), SystemMessage("note"), user("b")], ["a", INTERRUPTED, "note\n\nb"]),
        ([SystemMessage("a"), SystemMessage("b"), user("c")], ["a\n\nb", "c"]),
    ],
)
def test_roles_alternate(messages: Sequence[AnyMessage], expected: Sequence[str]) -> None:
    assert [message.content for message in normal_form(messages)] == expected


def test_a_turn_that_was_refused_is_left_out_whole() -> None:
    refused = AIMessage("Half", response_metadata={"refused": "content_filter"})
    history: list[AnyMessage] = [user("a"), said("b"), user("c"), answered("x"), answer("1", "x"), refused, user("d")]
    assert [message.content for message in without_refused(history)] == ["a", "b", LEFT_OUT, "d"]
    assert without_refused(history[:2]) == history[:2]


# ---------------------------------------------------------------------------------------------------------------
# A message of an earlier turn that a filter refuses, after a change of provider


class Filter:
    """Takes everything but FORBIDDEN, and writes a document when it is asked to draft."""

    name = "filter"

    def __init__(self) -> None:
        self.filters = False
        self.asked: list[Sequence[BaseMessage]] = []

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        self.asked.append(messages)
        if self.filters and any(FORBIDDEN in str(message.content) for message in messages[1:]):
            raise ModelError("content_filter", "The model's provider refused the content.", retryable=False)
        if "draft" in str(messages[-1].content):
            hear([ToolCallDelta(0, "c1", "write_document", json.dumps({"title": "NDA", "content": "# NDA of Acme"}))])
            return Finished("tool_calls")
        hear(["Done."])
        return Finished("stop")


@pytest.mark.anyio
@pytest.mark.parametrize("context_tokens", [None, {"filter": 8000}])
async def test_a_thread_goes_on_though_a_filter_refuses_an_earlier_message(
    context_tokens: Mapping[str, int] | None,
) -> None:
    model, saver = Filter(), InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    agent = Agent(
        model,
        saver,
        remember=lambda *_: None,
        first_token_timeout_s=5,
        idle_timeout_s=5,
        context_tokens=context_tokens,
    )

    async def say(message: str) -> tuple[str | None, int]:
        """The code of the error, and how often the model was asked."""
        model.asked.clear()
        turn = Turn("o", "t", str(uuid.uuid4()), message)
        outcome = await agent(turn, lambda _: None, asyncio.get_running_loop().create_future())
        return outcome.error.code if outcome.error is not None else None, len(model.asked)

    assert await say(f"{FORBIDDEN}: draft an NDA") == (None, 2)
    assert await say("Thanks") == (None, 1)
    model.filters = True
    assert await say("What have you written?") == (None, 2)
    if context_tokens is not None:
        assert "# NDA of Acme" in str(model.asked[-1]), "the document stays"
    assert await say("Shorter, please") == (None, 1), "what is left out stays out"
    asked = [str(message.content) for message in model.asked[-1]]
    assert EARLIER_LEFT_OUT in str(asked)
    assert "What have you written?" in str(asked)
    assert await say(f"And {FORBIDDEN}") == ("content_filter", 2), "its own message is refused"
    assert await say("Sorry, and now?") == (None, 1)
    asked = [str(message.content) for message in model.asked[-1]]
    assert "Shorter, please" in str(asked)
    assert LEFT_OUT in str(asked)
