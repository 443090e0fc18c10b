"""The part of a history that a model is sent: threads of any length, documents in full once, a prefix that stays."""

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.utils import convert_to_openai_messages
from long_thread import ASKED_FIRST, SAID, TITLE, PrefixCache, Script, contract, missing, times_in_full, tokens
from openai_server import check_messages

from agent import Agent
from chat import Document, Finished, Outcome, Piece, StopCause, Turn
from drafting.context.layout import LIMITS, Layout
from drafting.context.lost_runs import remembered
from drafting.context.normal_form import normal_form
from drafting.context.passages import changed
from drafting.context.shelves import CHANGED_SHARE, CHANGED_TOKENS
from drafting.context.tokens import UNKNOWN_MODEL_TOKENS, context_of, message_tokens, tokens_of
from drafting.deltas import Hear, ModelError, ToolCallDelta
from drafting.editing.versions import Documents
from drafting.reply import Reply
from threads.checkpointer import Checkpointer

ALL = 10**9


# ---------------------------------------------------------------------------------------------------------------
# The histories


class History:
    """A thread's state, as the graph makes it."""

    def __init__(self) -> None:
        self.messages: list[AnyMessage] = []
        self.documents: list[Document] = []

    def ask(self, words: str = "Go on.") -> "History":
        self.messages.append(HumanMessage(words))
        return self

    def say(self, words: str = SAID, metadata: Mapping[str, Any] | None = None) -> "History":
        self.messages.append(AIMessage(words, response_metadata=dict(metadata or {})))
        return self

    def call(self, *calls: tuple[str, Any], cut: int | None = None) -> "History":
        """The model calls tools in one reply; `cut`: it breaks off behind so many characters of the last call."""
        reply = Reply(Documents(self.documents), 0, lambda _: None)
        for place, (name, arguments) in enumerate(calls):
            is_cut = cut is not None and place == len(calls) - 1
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            call_id = f"c{len(self.messages)}x{place}"
            reply.feed([ToolCallDelta(place, call_id, name, text[:cut] if is_cut else text)])
        reply.close(finished=cut is None)
        made = [{"id": call.call_id, "name": call.name, "args": call.arguments} for call in reply.calls]
        self.messages.append(AIMessage("", tool_calls=made))
        self.messages += [ToolMessage(call.answer, tool_call_id=call.call_id, name=call.name) for call in reply.calls]
        self.documents += reply.new_documents
        return self

    def write(self, content: str, title: str = TITLE, cut: int | None = None) -> "History":
        return self.call(("write_document", {"title": title, "content": content}), cut=cut)

    def edit(self, find: str, replace: str, doc_id: str = "d1") -> "History":
        return self.call(("edit_document", {"doc_id": doc_id, "edits": [{"find": find, "replace": replace}]}))

    def lose(self, content: str, title: str = TITLE) -> "History":
        """A run whose process died: the next turn remembers it."""
        doc_id, version = Documents(self.documents).place(title)
        item: Any = {"item": 0, "type": "doc", "doc_id": doc_id, "title": title, "version": version}
        item |= {"content": content, "complete": True}
        lost: Any = type("Lost", (), {"message": "Draft it.", "run_id": str(uuid.uuid4()), "items": [item]})
        messages, documents = remembered([lost])
        self.messages += messages
        self.documents += documents
        return self

    def layout(self, window: int = UNKNOWN_MODEL_TOKENS, *, fixed: int = 0) -> Layout:
        layout = Layout("m", window, fixed)
        layout.take(self.messages, self.documents, ALL)
        return layout

    def sent(self, window: int = UNKNOWN_MODEL_TOKENS) -> list[dict[str, Any]]:
        return wire(self.layout(window).messages)


def wire(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = convert_to_openai_messages(normal_form(messages))
    if sent:
        check_messages(sent)
    return sent


def text_of(messages: Sequence[dict[str, Any]]) -> str:
    return json.dumps(messages, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------------------
# A thread of any length


class Strict:
    """A provider with a context of so many tokens, its answer among them. It checks that the model knows the thread."""

    name = "strict"

    def __init__(self, script: Script, window: int) -> None:
        self.script = script
        self.window = window
        self.turn = 0
        self.cache = PrefixCache()
        self.refused: list[int] = []
        self.may_cut: list[int] = []  # the turns in which a document did not fit behind its request

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        sent = convert_to_openai_messages(list(messages))
        check_messages(sent)
        request = json.dumps({"tools": tools, "messages": sent}, ensure_ascii=False)
        count = tokens(request.replace("\\n", "\n"))
        if count > self.window:
            self.refused.append(self.turn)
            raise ModelError("model_context", "too long", retryable=False)
        self.cache.read(request, count)
        assert ASKED_FIRST in request
        assert missing(sent, self.script.current) == []
        assert times_in_full(sent) <= 1
        call = None if sent[-1]["role"] == "tool" else self.script.call(self.turn)
        if call is None:
            hear([SAID])
            return Finished("stop")
        if count + tokens(call[1]) > self.window:
            self.may_cut.append(self.turn)
        hear([ToolCallDelta(0, f"c{self.turn}", *call)])
        return Finished("tool_calls")


async def carry_out(
    agent: Agent, message: str, last: str | None = None, thread: str = "t"
) -> tuple[Outcome, list[Piece]]:
    """`last`: the checkpoint of the turn before; the state is at hand then."""
    stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
    pieces: list[Piece] = []
    return await agent(
        Turn("o", thread, str(uuid.uuid4()), message, checkpoint_id=last), pieces.extend, stopping
    ), pieces


def agent_on(model: Any, saver: Checkpointer, context_tokens: int) -> Agent:
    return Agent(
        model,
        saver,
        remember=saver.remember,
        first_token_timeout_s=60,
        idle_timeout_s=60,
        context_tokens={model.name: context_tokens},
    )


@pytest.mark.anyio
async def test_three_hundred_turns_with_sixty_rewrites_fit_into_a_small_context(checkpointer: Checkpointer) -> None:
    model = Strict(Script(chars=20_000), 14_000)  # bench/context.py has 60 KB and 32,000 tokens
    agent = agent_on(model, checkpointer, model.window)
    last = None
    for model.turn in range(1, 301):
        outcome, _ = await carry_out(agent, model.script.message(model.turn), last)
        last = outcome.checkpoint_id
        assert (outcome.reason, outcome.error) == ("stop", None), model.turn
    assert model.script.version == 180
    assert (model.refused, model.may_cut) == ([], [])
    assert model.cache.share >= 0.8
    state = await agent.state("o", "t")
    assert len(state["documents"]) == 180, "nothing of the state is left out"


def test_a_short_history_is_sent_as_it_is() -> None:
    history = History().ask(ASKED_FIRST).write("# NDA\n\n1. The term is one year.").say("Done.").ask("Thanks.")
    assert history.layout().messages == history.messages


def test_each_request_begins_with_the_one_before() -> None:
    history = History()
    requests = [history.ask(ASKED_FIRST).layout().messages]
    requests.append(history.write(contract(1, 3000)).layout().messages)
    for turn in range(20):
        requests.append(history.say().ask(f"Turn {turn}").layout().messages)
        requests.append(history.edit(f"{turn + 1}. ", f"{turn + 1}.  ").layout().messages)
    for before, after in pairwise(requests):
        assert after[: len(before)] == before


def test_the_answer_to_an_edit_has_the_passages_as_they_now_stand() -> None:
    history = (
        History().ask().write("# NDA\n\n1. The term is one year.\n\n2. The law is X.").edit("one year", "two years")
    )
    *_, answer = history.sent()
    assert json.loads(answer["content"])["changed_passages"] == ["1. The term is two years."]


def test_a_document_written_anew_stands_at_the_head_and_its_old_text_nowhere() -> None:
    old, new = contract(1, 3000), contract(2, 3000)
    sent = History().ask(ASKED_FIRST).write(old).say().ask("Anew, please.").write(new).sent()
    assert missing(sent, new) == []
    assert times_in_full(sent) == 1
    assert new in sent[0]["content"]
    assert 'version="2"' in sent[0]["content"]
    assert [message["role"] for message in sent] == [
        *("user", "assistant"),
        *("user", "assistant", "tool", "assistant"),
        *("user", "assistant", "tool"),
    ]
    answers = [json.loads(message["content"]) for message in sent if message["role"] == "tool"]
    assert [(answer["version"], answer["left_out"]) for answer in answers] == [
        (1, f"{len(old):,} characters"),
        (2, f"{len(new):,} characters"),
    ]


def test_a_call_that_lacks_its_text_like_an_old_one_is_refused() -> None:
    """So a model that imitates what it sees of its old calls writes no note into a contract."""
    history = History().ask().write("# A\n\n1. one").ask().edit("one", "two").ask().write("# A\n\n1. three").ask()
    calls = [call for message in history.sent() for call in message.get("tool_calls", ())]
    assert len(calls) == 3
    imitated = History().ask().write("# A\n\n1. one")
    for call in calls:
        imitated.call((call["function"]["name"], call["function"]["arguments"]))
    assert len(imitated.documents) == 1
    assert all("error" in str(message.content) for message in imitated.messages[4::2])


def test_a_document_that_edits_have_much_changed_is_shown_whole_again() -> None:
    text = contract(1, 60_000)
    history = History().ask(ASKED_FIRST).write(text)
    limit = max(CHANGED_SHARE * tokens_of(text), CHANGED_TOKENS)
    edited = 0
    for line in text.splitlines()[2::2]:
        history.say().ask().edit(line, f"{line[:-1]}, amended.")
        edited += tokens_of(line)
        sent = history.sent()
        assert missing(sent, history.documents[-1]["content"]) == []
        if history.documents[-1]["content"] in sent[0]["content"]:
            break
    assert 0.9 * limit < edited < 1.1 * limit
    assert times_in_full(sent) == 1
    assert "changed_passages" not in text_of(sent)


def test_both_texts_are_shown_when_the_newest_broke_off() -> None:
    old, new = contract(1, 3000), contract(2, 3000)
    history = History().ask(ASKED_FIRST).write(old).ask().write(new, cut=2000).ask()
    half = history.documents[-1]["content"]
    assert not history.documents[-1]["complete"]
    assert missing(history.sent(), old) == missing(history.sent(), half) == []
    whole = history.write(contract(3, 3000)).sent()
    assert missing(whole, history.documents[-1]["content"]) == []
    assert times_in_full(whole) == 1


def test_documents_of_a_lost_run_are_shown() -> None:
    text, newer = contract(1, 3000), contract(2, 3000)
    history = History().lose(text).ask()
    assert missing(history.sent(), text) == []
    sent = history.lose(newer).ask().sent()
    assert missing(sent, newer) == []
    assert times_in_full(sent) == 1


def test_a_version_that_no_call_has_made_is_shown() -> None:
    history = History().ask()
    history.documents.append(Documents([]).add("d1", TITLE, 1, contract(1, 3000), complete=True))
    assert missing(history.sent(), contract(1, 3000)) == []


@pytest.mark.parametrize("is_edited", [False, True])
def test_a_version_of_a_turn_that_is_left_out_does_not_stand_for_a_newer_one(is_edited: bool) -> None:  # noqa: FBT001
    first, refused, third = (contract(seed, 3000) for seed in (1, 2, 3))
    history = History().ask().write(first).say().ask("Refused.").write(refused)
    del history.messages[-2:]  # as the turn is left out of a request, and its document is still the thread's
    if is_edited:
        line = refused.splitlines()[2]
        history.say().ask().edit(line, "2. The parties agree.").say()
        third = refused.replace(line, "2. The parties agree.")
    else:
        history.say().ask().write(third).say()
    sent = history.ask("And now?").sent()
    assert missing(sent, third) == []
    assert 'version=\\"3\\"' in text_of(sent)
    assert 'version=\\"2\\"' not in text_of(sent)


def test_the_note_keeps_the_users_words_and_names_the_versions() -> None:
    history = History().ask(ASKED_FIRST).write(contract(1, 3000)).say()
    for turn in range(40):
        history.ask(f"Wish {turn}.").say("word " * 200)
    sent = history.ask("And now?").sent(window=8000)
    note = sent[0]["content"]
    assert f"1. {ASKED_FIRST}\n(led to version 1 of d1)" in note
    assert "2. Wish 0.\n" in note
    assert "word word" not in note
    assert sent[-1]["content"] == "And now?"
    words = text_of(sent)
    assert all(f"Wish {turn}." in words for turn in range(40))


def test_a_note_that_is_too_long_keeps_the_first_message_and_says_what_it_left_out() -> None:
    history = History().ask(ASKED_FIRST).say()
    for turn in range(2, 300):
        history.ask(f"Message number {turn}, with some words about the notice period.").say("word " * 100)
    layout = history.ask("And now?").layout(window=4000)
    note = str(layout.messages[0].content)
    assert layout.tokens <= layout.budget
    assert note.index(f"1. {ASKED_FIRST}") < note.index("[Messages 2 to ")
    assert "Message number 3," not in note


def test_a_very_long_message_keeps_its_beginning_and_its_end_in_the_note() -> None:
    history = History().ask("BEGIN " + "word " * 5000 + "END").say()
    for _ in range(30):
        history.ask("Go on.").say("word " * 100)
    note = str(history.layout(window=8000).messages[0].content)
    assert "BEGIN" in note
    assert "END" in note
    assert "characters are left out here]" in note


def test_of_documents_without_room_the_one_that_was_used_last_is_shown() -> None:
    lease, msa = contract(1, 20_000), contract(2, 20_000)
    history = History().ask("Draft a lease.").write(lease, title="Lease").say()
    history.ask("Draft an agreement.").write(msa).say().ask("And now?")
    sent = history.sent(window=10_000)
    assert missing(sent, msa) == []
    assert missing(sent, lease) != []
    assert "Not shown, because there is no room: version 1 of d1, “Lease”, 2" in sent[0]["content"]
    sent = history.say().ask("What does the lease say?").sent(window=10_000)
    assert missing(sent, lease) == []
    assert missing(sent, msa) != []


def test_a_document_is_never_shown_in_part() -> None:
    layout = History().ask().write(contract(1, 60_000)).layout(window=8000)
    assert layout.misfit is not None
    assert f"The document “{TITLE}” (60," in layout.misfit
    assert "This message is longer than the model can read" in str(History().ask("word " * 9000).layout(8000).misfit)
    assert History().ask().write(contract(1, 20_000)).layout(window=8000).misfit is None, "it fits, with little room"


# ---------------------------------------------------------------------------------------------------------------
# Any history


LINES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map("\n\n".join)
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(["Go on.", "What of d2?", "Look at A.", "word " * 300])),
    st.tuples(st.just("say"), st.sampled_from([SAID, "word " * 200])),
    st.tuples(st.just("write"), st.sampled_from(["A", "B"]), LINES, st.sampled_from([None, None, 40])),
    st.tuples(st.just("edit"), st.sampled_from(["d1", "d2"]), st.sampled_from("abcdefgh"), LINES),
    st.tuples(st.just("lose"), st.sampled_from(["A", "B"]), LINES),
)


def take_step(history: History, step: tuple[Any, ...]) -> None:
    match step:
        case ("ask", words):
            history.ask(words)
        case ("say", words):
            history.say(words)
        case ("write", title, lines, cut):
            history.write(f"# {TITLE}\n" + lines.replace("\n", f" {'x' * 300}\n"), title, cut)
        case ("edit", doc_id, find, replace):
            history.edit(f"\n{find}", f"\n{replace}", doc_id)
        case ("lose", title, lines):
            history.lose(f"# {TITLE}\n{lines}", title)


@given(st.lists(STEPS, max_size=40), st.sampled_from([4000, 6000, 128_000]))
def test_whatever_the_history_the_model_knows_the_documents_and_the_layout_is_one(
    steps: list[tuple[Any, ...]], window: int
) -> None:
    history = History().ask(ASKED_FIRST)
    growing = Layout("m", window, 0)
    for step in [*steps, ("ask", "And now?")]:
        take_step(history, step)
        growing.take(history.messages, history.documents, ALL)
        anew = Layout("m", window, 0)
        while anew.take(history.messages, history.documents, 3):
            pass
        assert growing.messages == anew.messages
        assert growing.tokens == sum(map(message_tokens, growing.messages))
        sent = wire(growing.messages)
        assert ASKED_FIRST in text_of(sent)
        newest = {document["doc_id"]: document for document in history.documents}
        for document in newest.values() if window == 128_000 else history.documents[-1:]:
            assert missing(sent, document["content"]) == [], document
        if window == 128_000:
            assert growing.misfit is None
            assert growing.tokens <= growing.budget


@given(LINES, LINES)
def test_what_is_not_a_changed_passage_stood_in_the_text_before(before: str, after: str) -> None:
    passages = changed(before, after)
    lines = {line for passage in passages for line in passage.splitlines()}
    assert set(after.splitlines()) <= lines | set(before.splitlines()) | {""}
    assert lines <= set(after.splitlines())
    assert (passages == []) == (before == after)


# ---------------------------------------------------------------------------------------------------------------
# The provider says that it is too long


class Refusing(Strict):
    """Refuses what is longer, and says a word before it does so in the turns of `late`."""

    late: Sequence[int] = ()

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        if self.turn in self.late:
            hear(["So"])
        return await super().reply(messages, tools, hear, may_call=may_call)


@pytest.mark.anyio
async def test_a_refused_request_is_sent_again_shorter_and_the_thread_keeps_to_that(
    checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture
) -> None:
    model = Refusing(Script(chars=3000), 4000)
    last = None
    refused = []
    for model.turn in range(1, 60):
        agent = agent_on(model, checkpointer, 128_000)  # a new one each time has no layout at hand
        outcome, _ = await carry_out(agent, model.script.message(model.turn), last)
        assert (outcome.reason, outcome.error) == ("stop", None)
        last = outcome.checkpoint_id
        if model.turn in model.refused:
            refused.append(model.turn)
    assert len(model.refused) == len(refused) == 1, "one request was too long, and what came later was not"
    assert "was too long for strict; it is sent again with" in caplog.text


@pytest.mark.anyio
async def test_a_request_is_not_sent_again_when_the_reader_has_seen_something(checkpointer: Checkpointer) -> None:
    model = Refusing(Script(chars=3000), 4000)
    model.late = range(2, 60)
    agent = agent_on(model, checkpointer, 128_000)
    last, code = None, ""
    for model.turn in range(1, 60):
        outcome, _ = await carry_out(agent, model.script.message(model.turn), last)
        last = outcome.checkpoint_id
        if outcome.error is not None:
            code = outcome.error.code
            break
    assert (code, len(model.refused)) == ("model_context", 1)


@pytest.mark.anyio
async def test_a_request_that_can_not_be_shortened_is_not_sent_again(checkpointer: Checkpointer) -> None:
    model = Refusing(Script(chars=3000), 10)
    outcome, _ = await carry_out(agent_on(model, checkpointer, 128_000), "Hi")
    assert outcome.error is not None
    assert (outcome.error.code, len(model.refused)) == ("model_context", 1)


@pytest.mark.anyio
async def test_a_text_longer_than_the_context_is_not_sent_at_all(checkpointer: Checkpointer) -> None:
    model = Refusing(Script(chars=3000), 10**6)
    outcome, _ = await carry_out(agent_on(model, checkpointer, 4000), "word " * 10_000)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("model_context", False)
    assert "longer than the model can read at once (about 4,000 tokens)" in outcome.error.content
    assert model.cache.requests == []


def test_a_limit_counts_for_the_model_that_said_it() -> None:
    for name, is_bound in (("m", True), ("other", False)):
        history = History().ask().say("word " * 300).ask().say("word " * 300).ask()
        history.say(metadata={LIMITS: {"model": name, "limits": [300]}}).ask()
        assert (history.layout().budget == 300) == is_bound
        assert ("word word" not in text_of(history.sent())) == is_bound


# ---------------------------------------------------------------------------------------------------------------
# Tokens


ENGLISH = (
    "Each party shall keep the other party's confidential information in confidence for two (2) years after termination "
    "of this Agreement."
)
GERMAN = (
    "Änderungen und Ergänzungen dieses Vertrages bedürfen zu ihrer Wirksamkeit der Schriftform; dies gilt auch für die "
    "Aufhebung dieses Schriftformerfordernisses."
)
CHINESE = "第一条 保密义务。接收方应对披露方披露的保密信息予以严格保密,未经披露方事先书面同意,不得向任何第三方披露。本协议自双方"
RUSSIAN = (
    "1. Предмет договора. Исполнитель обязуется оказать Заказчику консультационные услуги, указанные в Приложении № 1, а "
    "Заказчик обязуется оплатить эти услуги. Стороны обязую"
)
TABLE = (
    "| Item | Price | Date |\n| --- | ---: | --- |\n| A-1 | 1,234.50 | 2026-11-28 |\n| A-2 | 9,876.00 | 2027-01-15 |\n\n"
    "[Company Name], [Add"
)


@pytest.mark.parametrize(
    ("text", "o200k", "llama3"),  # counted with these tokenizers
    [(ENGLISH, 24, 24), (GERMAN, 34, 41), (CHINESE, 49, 55), (RUSSIAN, 47, 53), (TABLE, 61, 61)],
)
def test_tokens_are_hardly_ever_estimated_too_low(text: str, o200k: int, llama3: int) -> None:
    assert 0.85 * max(o200k, llama3) <= tokens_of(text) <= 2.2 * llama3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-5.1", 272_000),
        ("openai/gpt-4o-mini", 128_000),
        ("gpt-4", 8192),
        ("gpt-4.1-nano", 1_047_576),
        ("o3-mini", 200_000),
        ("anthropic/claude-sonnet-4.5", 200_000),
        ("us.anthropic.claude-opus-4-1-v1:0", 200_000),
        ("models/gemini-3-pro-preview", 1_048_576),
        ("meta-llama/Llama-3.1-70B-Instruct", 131_072),
        ("llama3:8b", 8192),
        ("mistralai/Mistral-7B-Instruct-v0.3", 32_768),
        ("mistral-large-latest", 128_000),
        ("deepseek-reasoner", 128_000),
        ("Qwen/Qwen2.5-72B-Instruct", 32_768),
        ("my-deployment", UNKNOWN_MODEL_TOKENS),
    ],
)
def test_the_context_of_a_model_follows_from_its_name(name: str, expected: int) -> None:
    assert context_of(name) == expected
