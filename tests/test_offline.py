"""The offline model: it really drafts, changes what was asked and nothing else, and never fails."""

import asyncio
import re
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from test_sentences import REQUESTS

from chat import Document, Finished
from drafting.context.normal_form import LOST_ANSWER
from drafting.deltas import ModelDelta
from drafting.editing.versions import Documents
from drafting.offline.agreement import PERPETUAL, Terms, form, places_changed, read, render
from drafting.offline.lengths import Length
from drafting.offline.model import OfflineModel, plan
from drafting.offline.sentences import understand
from drafting.offline.vocabulary import Help, NameParty, Rename, SetLaw
from drafting.reply import Reply
from drafting.tools import TOOLS

TWO_YEARS = Length(years=2)
NEW_YORK, TEXAS = "the State of New York, USA", "the State of Texas, USA"
ALL_TERMS = [
    Terms(),
    Terms(mutual=True),
    Terms(term=TWO_YEARS, survival=PERPETUAL),
    Terms(
        mutual=True,
        term=PERPETUAL,
        survival=Length(months=18),
        law="England and Wales",
        first="Acme Inc.",
        second="Beta",
    ),
]


async def deltas(messages: Sequence[BaseMessage]) -> tuple[list[ModelDelta], Finished]:
    heard: list[ModelDelta] = []
    finished = await OfflineModel(pause_s=0).reply(messages, TOOLS, heard.extend)
    return heard, finished


class Thread:
    """A conversation with the model, its tool calls carried out as the agent does."""

    def __init__(self, *messages: str) -> None:
        self.messages: list[BaseMessage] = [SystemMessage("You draft.")]
        self.documents: list[Document] = []
        for message in messages:
            self.say(message)

    @property
    def versions(self) -> list[str]:
        return [document["content"] for document in self.documents]

    @property
    def newest(self) -> Document:
        return self.documents[-1]

    def say(self, text: str) -> str:
        self.messages.append(HumanMessage(text))
        said = ""
        while True:
            reply = Reply(Documents(self.documents), 0, lambda _: None)
            heard, _ = asyncio.run(deltas(self.messages))
            reply.feed(heard)
            reply.close(finished=True)
            calls = [{"id": call.call_id, "name": call.name, "args": call.arguments} for call in reply.calls]
            self.messages.append(AIMessage(reply.text, tool_calls=calls))
            said += reply.text
            if not reply.calls:
                return said
            self.messages += [ToolMessage(call.answer, tool_call_id=call.call_id) for call in reply.calls]
            self.documents += reply.new_documents


def changed(before: str, after: str) -> list[str]:
    pairs = zip(before.split("\n\n"), after.split("\n\n"), strict=True)
    return [new for old, new in pairs if old != new]


# ---------------------------------------------------------------------------------------------------------------
# The conversation


def test_the_seed_conversation() -> None:
    thread = Thread()
    first = thread.say("Draft an NDA")
    assert "offline" in first
    assert "lawyer" in first
    assert "?" not in first, "it asks nothing"
    assert "Effective Date, Disclosing Party Name, type of entity" in first, "the placeholders are listed"
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
    titles = [(document["doc_id"], document["version"], document["title"]) for document in thread.documents]
    mutual = "Mutual Non-Disclosure Agreement"
    assert titles == [("d1", 1, "Non-Disclosure Agreement"), ("d1", 2, mutual), ("d1", 3, mutual)]


# After "Draft an NDA": a message, and the terms of the newest version.
CHANGES = {
    "Change the governing law to California instead of Delaware": Terms(law="the State of California, USA"),
    "Change the law to New York. Also make it mutual and add a 5 year term.": Terms(
        mutual=True, term=Length(years=5), law=NEW_YORK
    ),
    "under the laws of England and Wales please": Terms(law="England and Wales"),
    "It should be governed by Texas law": Terms(law=TEXAS),
    "Set the survival period to 5 years": Terms(survival=Length(years=5)),
    "term: 1.5 years": Terms(term=Length(months=18)),
    "make it 3 years and 6 months": Terms(term=Length(years=3, months=6)),
    "Add a 3 year term, then extend the term by one year (from 3)": Terms(term=Length(years=4)),
    "make the term perpetual": Terms(term=PERPETUAL),
    "rename the first party to Acme Corp.": Terms(first="Acme Corp."),
    "the parties are Acme Inc. and “Johnson and Johnson”": Terms(first="Acme Inc.", second="Johnson and Johnson"),
    "Make it mutual and rename the second party to Beta LLC": Terms(mutual=True, second="Beta LLC"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_change_is_what_was_asked_for_and_one_version(message: str) -> None:
    thread = Thread("Draft an NDA")
    assert "Nothing else was changed" in thread.say(message)
    assert thread.versions == [render(Terms()), render(CHANGES[message])]


@pytest.mark.parametrize(
    ("message", "terms"),
    [
        ("Draft an NDA", Terms()),
        ("NDA", Terms()),
        ("please write me a mutual Non-Disclosure Agreement", Terms(mutual=True)),
        ("Draft a mutual NDA with a 3-year term", Terms(mutual=True, term=Length(years=3))),
        (
            "Draft an NDA between Acme Inc. and Beta for 18 months, governed by the laws of New York",
            Terms(term=Length(months=18), law=NEW_YORK, first="Acme Inc.", second="Beta"),
        ),
    ],
)
def test_a_draft_is_what_was_asked_for(message: str, terms: Terms) -> None:
    assert Thread(message).versions == [render(terms)]


def test_the_law_is_told_as_assumed_only_where_nobody_named_it() -> None:
    assert "I assumed the law of the State of Delaware" in Thread().say("Draft an NDA")
    assert "assumed" not in Thread().say("Draft an NDA under Delaware law")


def test_the_order_does_not_matter() -> None:
    orders = (["Make it mutual", "Add a two-year term"], ["Add 2 year term", "please make this a mutual agreement"])
    ends = [Thread("I need a non-disclosure agreement", *order).versions[-1] for order in orders]
    assert ends[0] == ends[1] == render(Terms(mutual=True, term=TWO_YEARS))


def test_a_change_and_its_opposite_give_the_first_text_again() -> None:
    thread = Thread("Draft an NDA", "Make it mutual", "make it not mutual", "add a 2-year term", "remove the term")
    one, _, three, _, five = thread.versions
    assert one == three == five
    assert thread.newest["title"] == "Non-Disclosure Agreement"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (["Hello"], "Make it mutual"),
        (["What can you do?"], "Make it mutual"),
        (["Entwirf mir einen Mietvertrag"], "Ich verstehe nur Englisch"),
        (["Draft a lease"], "non-disclosure agreements only"),
        (["Make it mutual"], "no document"),
        (["Draft an NDA", "What does the law of New York say about NDAs?"], "can't answer questions"),
        (["Draft an NDA", "Make it mutual and cook dinner"], "“cook dinner”"),
        (["Draft an NDA", "Change the law to Narnia"], "I know these laws"),
        (["Draft an NDA", "Add 0-year term"], "longer than nothing"),
        (["Draft an NDA", "delete clause 8"], "can't add, delete or rewrite clauses"),
        (["Draft an NDA", "add a non-solicitation clause"], "can't add, delete or rewrite clauses"),
        (["Draft an NDA", "rename the first party to my landlord"], "capital letters or in quotation marks"),
        (["Draft a mutual NDA", "Make it mutual"], "already says so"),
        (["Draft an NDA", "change the law to Texas instead of Ohio"], "is that of the State of Delaware, USA and not"),
        (["Draft an NDA", "change the term from 3 to 5 years"], "not fixed and not three (3) years"),
        (["Draft an NDA", "extend the term by one year"], "not a fixed period"),
        (["Draft an NDA with a 1-year term", "shorten the term by 12 months"], "longer than nothing"),
        (["Draft an NDA", "make it mutual and make it one-way"], "two different things"),
        (["Draft an NDA", "the parties are Acme and Acme"], "one name"),
        (["Draft an NDA", "rename Acme to Beta"], "No party is named Acme"),
        (["Draft a mutual NDA", "rename the disclosing party to Acme"], "the first or the second party"),
        (["Draft an NDA", "make it mutual and draft another NDA"], "one document at a time"),
        (["Draft an NDA", "make it mutual and undo that"], "must come first"),
        (["Draft an NDA", "go back to version 3"], "There are: 1."),
        (["Draft an NDA", "go back to version 1"], "has that text already"),
        (["Draft an NDA", "undo that"], "no earlier version"),
    ],
)
def test_whatever_it_can_not_do_changes_nothing_and_is_told(messages: list[str], words: str) -> None:
    thread = Thread(*messages[:-1])
    before = list(thread.documents)
    assert words in thread.say(messages[-1])
    assert thread.documents == before


def test_a_second_undo_goes_further_back_and_does_not_bring_back_what_the_first_undid() -> None:
    thread = Thread("Draft an NDA", "Make it mutual", "Add 2-year term")
    assert "has the text of version 2" in thread.say("undo that")
    assert "has the text of version 1" in thread.say("undo")
    assert "no earlier version" in thread.say("undo")
    one, two, _, four, five = thread.versions
    assert (four, five) == (two, one)
    assert [document["title"] for document in thread.documents[3:]] == [
        *("Mutual Non-Disclosure Agreement", "Non-Disclosure Agreement"),
    ]
    thread.say("Add 5-year term")
    thread.say("undo that")
    assert thread.versions[-1] == one


def test_an_earlier_version_comes_back_as_a_new_one_and_can_be_changed_in_the_same_message() -> None:
    thread = Thread("Draft an NDA", "Make it mutual", "Add 2-year term", "go back to version 1")
    assert thread.newest["version"] == 4
    assert thread.versions[3] == thread.versions[0]
    thread.say("Restore version 2 and add a 5-year term")
    assert thread.versions[-1] == render(Terms(mutual=True, term=Length(years=5)))
    assert (thread.newest["version"], thread.newest["title"]) == (5, "Mutual Non-Disclosure Agreement")


def test_another_draft_is_a_document_of_its_own() -> None:
    thread = Thread(
        "Draft an NDA", "Make it mutual", "Draft another NDA", "Add 2-year term", "Make it mutual", "NDA please"
    )
    assert [(each["doc_id"], each["version"], each["title"]) for each in thread.documents] == [
        ("d1", 1, "Non-Disclosure Agreement"),
        ("d1", 2, "Mutual Non-Disclosure Agreement"),
        ("d2", 1, "Non-Disclosure Agreement (2)"),
        ("d2", 2, "Non-Disclosure Agreement (2)"),
        ("d2", 3, "Mutual Non-Disclosure Agreement (2)"),
        ("d3", 1, "Non-Disclosure Agreement (3)"),
    ]


def test_the_words_of_a_person_in_the_document_stay() -> None:
    """A document that a person has edited elsewhere is changed; one whose clause reads otherwise is not."""
    content = (
        render(Terms())
        .replace("## 8. Remedies", "## 8. Our Remedies")
        .replace("thirty (30) days, return", "a week, return")
    )
    call = {"id": "c1", "name": "write_document", "args": {"title": "Acme NDA", "content": content}}
    answer = ToolMessage('{"doc_id":"d1","title":"Acme NDA","version":1}', tool_call_id="c1")
    thread = Thread()
    thread.messages += [HumanMessage("Draft an NDA"), AIMessage("", tool_calls=[call]), answer, AIMessage("Done.")]
    thread.documents.append({"doc_id": "d1", "title": "Acme NDA", "version": 1, "content": content, "complete": True})
    thread.say("Make it mutual")
    assert "Our Remedies" in thread.versions[1]
    assert len(changed(content, thread.versions[1])) == 8
    assert thread.newest["title"] == "Acme NDA", "a title that somebody chose"
    thread.messages[2].tool_calls[0]["args"]["content"] = content.replace("takes effect", "begins")  # type: ignore[attr-defined]
    assert "clause 9.1, but it does not read as in my library" in thread.say("Add 2-year term")
    assert "version 3" in thread.say("Change the law to Texas")


def test_a_document_of_another_model_is_not_touched() -> None:
    call = {
        "id": "c1",
        "name": "write_document",
        "args": {"title": "Lease", "content": "# Lease\n\n1. The rent is due."},
    }
    messages: list[BaseMessage] = [HumanMessage("Draft a lease"), AIMessage("", tool_calls=[call])]
    messages.append(ToolMessage('{"doc_id":"d1","title":"Lease","version":1}', tool_call_id="c1"))
    reply = plan([*messages, AIMessage("Done."), HumanMessage("Make it mutual")])
    assert "not an agreement of mine" in reply.text
    assert not reply.tool


def test_the_document_of_a_run_that_was_lost_is_known() -> None:
    content = render(Terms())
    call = {"id": "c1", "name": "write_document", "args": {"title": "Non-Disclosure Agreement", "content": content}}
    lost = [HumanMessage("Draft an NDA"), AIMessage("", tool_calls=[call]), ToolMessage(LOST_ANSWER, tool_call_id="c1")]
    reply = plan([*lost, HumanMessage("Make it mutual")])
    assert (reply.tool, (reply.arguments or {})["doc_id"]) == ("edit_document", "d1")


def test_a_failed_tool_is_told_plainly_and_not_tried_again() -> None:
    call = {"id": "c1", "name": "write_document", "args": {"title": "NDA", "content": ""}}
    messages = [HumanMessage("Draft an NDA"), AIMessage("", tool_calls=[call])]
    reply = plan([*messages, ToolMessage('{"error":"No room."}', tool_call_id="c1")])
    assert "No room." in reply.text
    assert reply.tool == ""


# ---------------------------------------------------------------------------------------------------------------
# Properties of a conversation

UNDERSTOOD = [message for message, requests in REQUESTS.items() if requests and requests != (Help(),)]
HARMLESS = [
    "What does this mean?",
    "Make it mutual and cook dinner",
    "Change the law to Narnia",
    "zxqv",
    "delete clause 8",
]
WORD = re.compile(r"\w+")
OF_THE_FORM = {word for terms in ALL_TERMS for word in WORD.findall(render(terms))}


def names_of(message: str) -> set[str]:
    """The words that a message may bring into a contract: of laws and of parties, and the lengths in our own words."""
    words: set[str] = set()
    for request in understand(message).requests:
        match request:
            case SetLaw(law):
                words |= set(WORD.findall(law))
            case NameParty(_, name) | Rename(_, name):
                words |= set(WORD.findall(name))
    return words


NUMBERS = {word for count in range(1, 1000) for word in WORD.findall(str(Length(days=count)))}
UNITS = {"year", "years", "month", "months", "week", "weeks", "day", "days", "and"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*UNDERSTOOD, *HARMLESS]), min_size=1, max_size=6))
def test_no_word_of_a_request_stands_in_the_contract_but_its_names(messages: list[str]) -> None:
    thread = Thread("Draft an NDA")
    allowed = OF_THE_FORM | NUMBERS | UNITS
    for message in messages:
        allowed |= names_of(message)
        thread.say(message)
    for content in thread.versions:
        assert set(WORD.findall(content)) <= allowed
        assert read(content) is not None, "every version is an agreement of the form"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*UNDERSTOOD, *HARMLESS]), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_what_a_reply_says_is_what_differs(messages: list[str], random: Random) -> None:
    thread = Thread(
        random.choice(["Draft an NDA", "Draft a mutual NDA between Acme Inc. and Beta LLC with a 3-year term"])
    )
    for message in messages:
        before = list(thread.documents)
        said = thread.say(message)
        made = thread.documents[len(before) :]
        assert len(made) == ("Done: " in said or "The draft is ready" in said)
        assert (not made) == bool(re.search(r"Nothing was changed|change nothing|already", said)), said
        if not made:
            continue
        earlier = [document for document in before if document["doc_id"] == made[0]["doc_id"]]
        assert bool(earlier) == ("Done: " in said)
        if restored := re.search(r"has the text of version (\d+)", said):
            texts = {document["version"]: document["content"] for document in earlier}
            assert made[0]["content"] == texts[int(restored[1])]
        elif earlier:
            told = re.search(r"It changed (.+?)\. Nothing else", said)
            assert told
            named = re.findall(r"the heading|the introduction|the signatures|clause \d+\.\d+", told[1])
            assert named == places_that_differ(earlier[-1]["content"], made[0]["content"])


def places_that_differ(before: str, after: str) -> list[str]:
    """The differences of two agreements, by the paragraphs of the form and not by the service's own comparison."""
    pairs = zip(form(), before.split("\n\n"), after.split("\n\n"), strict=True)
    return list(dict.fromkeys(paragraph.place for paragraph, old, new in pairs if old.strip() != new.strip()))


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


# ---------------------------------------------------------------------------------------------------------------
# The document


@pytest.mark.parametrize("terms", ALL_TERMS)
def test_a_document_is_read_as_it_was_written(terms: Terms) -> None:
    reading = read(render(terms))
    assert reading is not None
    assert reading.terms == terms
    assert not reading.unread
    assert len(reading.found) == len(form())


@pytest.mark.parametrize("terms", ALL_TERMS)
def test_a_document_is_whole(terms: Terms) -> None:
    text = render(terms)
    assert "{" not in text
    assert "}" not in text
    clauses = re.findall(r"^## (\d+)\. ", text, re.MULTILINE)
    assert clauses == [str(number) for number in range(1, len(clauses) + 1)]
    parts = re.findall(r"^(\d+)\.(\d+) ", text, re.MULTILINE)
    assert [clause for clause, part in parts if part == "1"] == clauses
    numbers = {*clauses, *(f"{clause}.{part}" for clause, part in parts)}
    references = re.findall(r"Clause (\d+(?:\.\d+)?)", text)
    assert len(references) == 3
    assert set(references) <= numbers


PLACEHOLDERS = {
    *("Effective Date", "Disclosing Party Name", "Receiving Party Name", "First Party Name", "Second Party Name"),
    *("type of entity", "jurisdiction", "address", "e-mail address", "name", "title", "date"),
    "description of the purpose, for example: evaluating a potential business relationship between the Parties",
    "survival period, for example: three (3) years",
}


@pytest.mark.parametrize("terms", ALL_TERMS)
def test_every_bracket_is_a_placeholder(terms: Terms) -> None:
    text = render(terms)
    found = re.findall(r"\[([^\[\]]*)\]", text)
    assert text.count("[") == text.count("]") == len(found)
    assert set(found) <= PLACEHOLDERS


@pytest.mark.parametrize("terms", ALL_TERMS)
def test_every_term_that_is_used_is_defined_once_and_every_defined_term_is_used(terms: Terms) -> None:
    text = render(terms)
    defined = re.findall(r"“\*\*([^*]+)\*\*”", text)
    assert len(defined) == len(set(defined)) >= 9
    body = re.sub(r"“\*\*[^*]+\*\*”|\*\*[^*]+\*\*|\[[^\]]*\]|^#.*$|^[A-Z][a-z]+: .*$", "", text, flags=re.MULTILINE)
    body = body.replace(terms.law or "the State of Delaware, USA", "")
    for name in defined:
        assert re.search(rf"\b{name}\b", body), name
    for name in sorted(defined, key=len, reverse=True):
        body = re.sub(rf"(?:(?:Mutual )?Non-Disclosure )?\b{name}\b", "", body)
    capitals = re.findall(r"(?<=[a-z,;] )[A-Z]\w+", body)
    assert set(capitals) == {"Clause"}, "a capital letter inside of a sentence is that of a defined term"


def test_a_definition_is_not_made_of_itself() -> None:
    """In both kinds of agreement a term's definition uses no term whose definition uses it."""
    for terms in ALL_TERMS:
        sentences = [each for each in re.split(r"\n\n|(?<=\.) ", render(terms)) if "“**" in each]
        uses: dict[str, set[str]] = {}
        for sentence in sentences:
            names = re.findall(r"“\*\*([^*]+)\*\*”", sentence)
            rest = re.sub(r"“\*\*[^*]+\*\*”", "", sentence)
            for name in names:
                uses[name] = {
                    each for each in ("Confidential Information", "Disclosing Party", "Receiving Party") if each in rest
                }
        assert not uses["Disclosing Party"] & {"Confidential Information"}
        assert "Confidential Information" not in uses["Confidential Information"]


def test_a_change_of_a_place_is_named_by_the_comparison() -> None:
    before, after = render(Terms()), render(Terms(mutual=True, law=TEXAS))
    assert places_changed(before, after) == places_that_differ(before, after)
