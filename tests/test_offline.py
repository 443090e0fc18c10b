"""The offline model: it really drafts, changes only the asked terms, and never fails."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from chat import Finished
from drafting.deltas import ModelDelta
from drafting.offline import Deal, OfflineModel, length, plan, render
from drafting.reply import Reply
from drafting.tools import TOOLS
from drafting.versions import Documents

DEALS = [
    Deal(),
    Deal(mutual=True),
    Deal(term="two (2) years"),
    Deal(mutual=True, term="18 months", law="England and Wales", parties=("Acme Inc.", "Beta LLC")),
]


async def deltas(messages: list[BaseMessage]) -> tuple[list[ModelDelta], Finished]:
    heard: list[ModelDelta] = []
    finished = await OfflineModel(pause_s=0).reply(messages, TOOLS, heard.extend)
    return heard, finished


class Thread:
    """A conversation with the model, its tool calls carried out as the agent does."""

    def __init__(self) -> None:
        self.messages: list[BaseMessage] = [SystemMessage("You draft.")]
        self.documents = Documents([])
        self.versions: list[str] = []

    def say(self, text: str) -> str:
        self.messages.append(HumanMessage(text))
        said = ""
        while True:
            reply = Reply(self.documents, 0, lambda _: None)
            heard, _ = asyncio.run(deltas(self.messages))
            reply.feed(heard)
            reply.close(finished=True)
            calls = [{"id": call.call_id, "name": call.name, "args": call.arguments} for call in reply.calls]
            self.messages.append(AIMessage(reply.text, tool_calls=calls))
            said += reply.text
            if not reply.calls:
                return said
            self.messages += [ToolMessage(call.answer, tool_call_id=call.call_id) for call in reply.calls]
            self.versions += [document["content"] for document in reply.new_documents]


def changed(before: str, after: str) -> list[str]:
    pairs = zip(before.split("\n\n"), after.split("\n\n"), strict=True)
    return [new for old, new in pairs if old != new]


def test_the_seed_conversation() -> None:
    thread = Thread()
    first = thread.say("Draft an NDA")
    assert "offline" in first
    assert "lawyer" in first
    assert "?" not in first, "it asks nothing"
    assert "lawyer" not in thread.say("Make it mutual") + thread.say("Add 2-year term"), "said once"
    one, two, three = thread.versions
    assert "Mutual" not in one
    assert len(changed(one, two)) == 8
    assert changed(two, three) == [
        (
            "9.1 This Agreement takes effect on the Effective Date and continues for a term of two (2) years, unless "
            "either Party ends it earlier by giving the other thirty (30) days’ written notice."
        )
    ]


def test_the_order_does_not_matter() -> None:
    orders = (["Make it mutual", "Add a two-year term"], ["Add 2 year term", "please make this a mutual agreement"])
    ends = []
    for order in orders:
        thread = Thread()
        thread.say("I need a non-disclosure agreement")
        for message in order:
            thread.say(message)
        ends.append(thread.versions[-1])
    assert ends[0] == ends[1] == render(Deal(mutual=True, term="two (2) years"))


@pytest.mark.parametrize(
    ("message", "deal"),
    [
        ("Draft an NDA", Deal()),
        ("Draft a mutual NDA", Deal(mutual=True)),
        ("please write me a Non-Disclosure Agreement", Deal()),
        ("Draft a mutual NDA with a 3-year term", Deal(mutual=True, term="three (3) years")),
        ("Draft an NDA between Acme Inc. and Beta LLC", Deal(parties=("Acme Inc.", "Beta LLC"))),
        (
            "Draft an NDA between Acme and Beta for 18 months",
            Deal(term="eighteen (18) months", parties=("Acme", "Beta")),
        ),
        ("Draft an NDA governed by the laws of New York", Deal(law="New York")),
    ],
)
def test_a_draft_is_what_was_asked_for(message: str, deal: Deal) -> None:
    thread = Thread()
    thread.say(message)
    assert thread.versions == [render(deal)]


@pytest.mark.parametrize(
    ("message", "deal"),
    [
        ("make the term five years", Deal(term="five (5) years")),
        ("Add a 2-year term", Deal(term="two (2) years")),
        ("It should be reciprocal", Deal(mutual=True)),
        ("Change the governing law to England and Wales", Deal(law="England and Wales")),
    ],
)
def test_a_change_is_what_was_asked_for(message: str, deal: Deal) -> None:
    thread = Thread()
    thread.say("Draft an NDA")
    thread.say(message)
    assert thread.versions[-1] == render(deal)


@pytest.mark.parametrize(
    "message", ["Hello", "What can you do?", "Entwirf mir einen Mietvertrag", "?", "Draft a lease"]
)
def test_anything_else_is_answered_with_what_it_can_do(message: str) -> None:
    thread = Thread()
    assert "Make it mutual" in thread.say(message)
    assert thread.versions == []


def test_a_change_without_a_document_and_a_change_that_is_none() -> None:
    thread = Thread()
    assert "no document" in thread.say("Make it mutual")
    thread.say("Draft a mutual NDA")
    assert "already says so" in thread.say("Make it mutual")
    assert len(thread.versions) == 1


def test_a_failed_tool_is_told_plainly_and_not_tried_again() -> None:
    call = {"id": "c1", "name": "write_document", "args": {"title": "NDA", "content": ""}}
    messages = [HumanMessage("Draft an NDA"), AIMessage("", tool_calls=[call])]
    reply = plan([*messages, ToolMessage('{"error":"No room."}', tool_call_id="c1")])
    assert "No room." in reply.text
    assert reply.tool == ""


@pytest.mark.parametrize("deal", DEALS)
def test_a_document_is_whole(deal: Deal) -> None:
    text = render(deal)
    assert "{" not in text
    assert "}" not in text
    clauses = [int(number) for number in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)]
    assert clauses == list(range(1, len(clauses) + 1))
    assert all(int(number) in clauses for number in re.findall(r"Clause (\d+)", text))
    defined = set(re.findall(r"“\*\*([^*]+)\*\*”", text))
    assert {"Agreement", "Effective Date", "Confidential Information", "Purpose", "Representatives"} <= defined
    assert {"Disclosing Party", "Receiving Party", "Party", "Parties"} <= defined
    assert ("[" in text) == ("]" in text)


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        ("2", "year", "two (2) years"),
        ("one", "Year", "one (1) year"),
        ("18", "months", "eighteen (18) months"),
        ("30", "month", "30 months"),
    ],
)
def test_lengths_as_contracts_write_them(number: str, unit: str, text: str) -> None:
    assert length(number, unit.removesuffix("s")) == text


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_whatever_is_said_gets_an_answer(texts: list[str]) -> None:
    messages: list[BaseMessage] = []
    for text in texts:
        messages += [HumanMessage(text), AIMessage("x")]
    heard, finished = asyncio.run(deltas(messages[:-1]))
    assert heard
    assert finished.reason == "stop"


def test_the_same_messages_get_the_same_reply() -> None:
    messages: list[BaseMessage] = [HumanMessage("Draft an NDA")]
    assert asyncio.run(deltas(messages)) == asyncio.run(deltas(messages))
