"""The offline model: a chat model that needs no key and no network, for a first run, a front end and the tests.

It drafts a non-disclosure agreement from a small clause library (`clauses.toml`), through the tools and deltas that a
real model uses. It is deterministic: the same messages get the same reply.
"""

import asyncio
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from chat import Finished
from drafting.deltas import Hear, ToolCallDelta

PAUSE_S = 0.006  # between two pieces: a brisk model's pace
PIECE_CHARS = 24  # of a tool call's arguments
CHARS_A_TOKEN = 4  # for the usage figures

NUMBERS = (  # by value
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
AGREEMENT = r"\b(nda|non-?disclosure|confidentiality)\b"
DRAFT = re.compile(rf"\b(draft|write|create|prepare|generate|make|need|want)\b.*{AGREEMENT}", re.IGNORECASE | re.DOTALL)
ANEW = re.compile(rf"\b(a|an|another|new)\b[\w\s-]*{AGREEMENT}", re.IGNORECASE)
MUTUAL = re.compile(r"\b(mutual|two-way|bilateral|reciprocal|both (ways|parties|sides))\b", re.IGNORECASE)
ONE_WAY = re.compile(r"\b(one-way|unilateral)\b", re.IGNORECASE)
TERM = re.compile(rf"\b(\d{{1,3}}|{'|'.join(NUMBERS[1:])})[\s-]*(year|month)s?\b", re.IGNORECASE)
LAW = re.compile(
    r"\b(?:govern(?:ing|ed)(?: law)?|laws?|jurisdiction)\b.*?\b(?:to|of|by|under)\s+"
    r"(?:the )?(?:laws? of )?((?:the )?[A-Z][\w .,-]*\w)",
    re.DOTALL,
)
BETWEEN = re.compile(
    r"\bbetween\s+(.{2,80}?)\s+and\s+(.{2,80}?)(?=[,;.]?\s+(?:with|under|for|governed)\b|[.;]?\s*$)", re.IGNORECASE
)


@cache
def library() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name("clauses.toml").read_text("utf-8"))


# ---------------------------------------------------------------------------------------------------------------
# The document


@dataclass(frozen=True, slots=True)
class Deal:
    """The terms of the agreement."""

    mutual: bool = False
    term: str | None = None  # such as "two (2) years"
    law: str | None = None
    parties: tuple[str, str] | None = None

    @classmethod
    def of(cls, text: str, before: "Deal") -> "Deal":
        """The deal `before`, as changed by the message."""
        deal = before
        if MUTUAL.search(text):
            deal = replace(deal, mutual=True)
        elif ONE_WAY.search(text):
            deal = replace(deal, mutual=False)
        if term := TERM.search(text):
            deal = replace(deal, term=length(term[1], term[2]))
        if law := LAW.search(text):
            deal = replace(deal, law=law[1])
        if between := BETWEEN.search(text):
            deal = replace(deal, parties=(between[1], between[2]))
        return deal

    def changes_from(self, before: "Deal") -> list[str]:
        """The differences from `before`, as phrases of a sentence."""
        words = []
        if self.mutual != before.mutual:
            words.append("make the obligations mutual" if self.mutual else "make the agreement one-way")
        if self.term != before.term:
            words.append(f"give the agreement a term of {self.term}")
        if self.law != before.law:
            words.append(f"change the governing law to {self.law}")
        if self.parties != before.parties:
            words.append("name the parties")
        return words


def length(number: str, unit: str) -> str:
    """In the form that contracts use: "two (2) years"."""
    count = int(number) if number.isdigit() else NUMBERS.index(number.lower())
    words = f"{NUMBERS[count]} ({count})" if count < len(NUMBERS) else str(count)
    return f"{words} {unit.lower()}{'' if count == 1 else 's'}"


def render(deal: Deal) -> str:
    """The whole agreement, in Markdown."""
    clauses = library()
    kind = "mutual" if deal.mutual else "one_way"
    first, second = deal.parties or clauses["parties"][kind]
    term = clauses["term"]["fixed"].replace("{length}", deal.term) if deal.term else clauses["term"]["open"]
    law = deal.law or clauses["governing_law"]
    paragraphs = [clauses["heading"][kind], *(paragraph[kind] for paragraph in clauses["preamble"])]
    for number, clause in enumerate(clauses["clause"], 1):
        paragraphs.append(f"## {number}. {clause['heading']}")
        paragraphs += [f"{number}.{part} {text}" for part, text in enumerate(clause["paragraphs"], 1)]
    paragraphs += [paragraph[kind] for paragraph in clauses["closing"]]
    values = {"first": first, "second": second, "term": term, "law": law}
    values |= {f"ref:{clause['heading']}": str(number) for number, clause in enumerate(clauses["clause"], 1)}
    return re.sub(r"\{([^{}]+)\}", lambda name: values[name[1]], "\n\n".join(paragraphs)) + "\n"


def edits_between(before: str, after: str) -> list[dict[str, str]] | None:
    """The paragraphs to replace. None if the change is not of this kind: each of them must occur exactly once."""
    old, new = before.split("\n\n"), after.split("\n\n")
    if len(old) != len(new):
        return None
    edits = [{"find": was, "replace": becomes} for was, becomes in zip(old, new, strict=True) if was != becomes]
    return edits if all(before.count(edit["find"]) == 1 for edit in edits) else None


# ---------------------------------------------------------------------------------------------------------------
# The conversation


@dataclass(frozen=True, slots=True)
class Memory:
    """The result of the thread's messages: the deal that the user asked for, and the newest version of the document."""

    deal: Deal
    doc_id: str | None
    content: str
    version: int


def recall(messages: Sequence[BaseMessage]) -> Memory:
    """Replay the user's messages and the tool calls that succeeded."""
    memory = Memory(Deal(), None, "", 0)
    asked = memory.deal
    answers = {m.tool_call_id: _answer(m) for m in messages if isinstance(m, ToolMessage)}
    for message in messages:
        if isinstance(message, HumanMessage):
            text = _text(message)
            asked = Deal.of(text, Deal() if _drafts_anew(text, memory) else memory.deal)
        elif isinstance(message, AIMessage):
            for call in message.tool_calls:
                answer = answers.get(call["id"] or "", {})
                if "doc_id" in answer:
                    content = _apply(memory.content, call["name"], call["args"])
                    memory = Memory(asked, str(answer["doc_id"]), content, int(str(answer.get("version", 0))))
    return memory


def _apply(content: str, tool: str, arguments: Mapping[str, Any]) -> str:
    if tool == "write_document":
        return str(arguments.get("content", ""))
    for edit in arguments.get("edits", ()):
        content = content.replace(str(edit.get("find", "")), str(edit.get("replace", "")), 1)
    return content


def _drafts_anew(text: str, memory: Memory) -> bool:
    return DRAFT.search(text) is not None and (memory.doc_id is None or ANEW.search(text) is not None)


def _answer(message: BaseMessage) -> dict[str, object]:
    try:
        answer = json.loads(_text(message))
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _text(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else " ".join(map(str, message.content))


# ---------------------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True, slots=True)
class Plan:
    """A reply: its text and, at most, one tool call."""

    text: str
    tool: str = ""
    arguments: Mapping[str, Any] | None = None


def plan(messages: Sequence[BaseMessage]) -> Plan:
    """The reply to the thread's last message."""
    replies = library()["replies"]
    memory = recall(messages)
    if messages and isinstance(messages[-1], ToolMessage):
        return Plan(_closing(messages, memory))
    greeting = "" if any(isinstance(message, AIMessage) for message in messages) else replies["offline"] + "\n\n"
    asked = _text(messages[-1]) if messages else ""
    if _drafts_anew(asked, memory):
        deal = Deal.of(asked, Deal())
        kind = "mutual non-disclosure agreement" if deal.mutual else "one-way non-disclosure agreement"
        arguments = {"title": library()["document_title"], "content": render(deal)}
        return Plan(greeting + replies["drafting"].format(kind=kind), "write_document", arguments)
    deal = Deal.of(asked, memory.deal)
    changes = deal.changes_from(memory.deal)
    if memory.doc_id is None:
        return Plan(greeting + (replies["no_document"] if changes else replies["abilities"].strip()))
    if not changes:
        known = MUTUAL.search(asked) or ONE_WAY.search(asked) or TERM.search(asked) or LAW.search(asked)
        return Plan(greeting + (replies["nothing_to_change"] if known else replies["abilities"].strip()))
    text = greeting + replies["changing"].format(changes=" and ".join(changes))
    edits = edits_between(memory.content, render(deal)) if memory.content == render(memory.deal) else None
    if edits is None:
        return Plan(text, "write_document", {"title": library()["document_title"], "content": render(deal)})
    return Plan(text, "edit_document", {"doc_id": memory.doc_id, "edits": edits})


def _closing(messages: Sequence[BaseMessage], memory: Memory) -> str:
    """The text after a tool's answer."""
    replies = library()["replies"]
    result = _answer(messages[-1])
    if "doc_id" not in result:
        return str(replies["failed"]).format(error=result.get("error", "the tool gave no answer."))
    said = [message for message in messages if isinstance(message, AIMessage)]
    if said and said[-1].tool_calls[0]["name"] == "write_document":
        closing = replies["drafted"].format(law=memory.deal.law or library()["governing_law"])
    else:
        closing = replies["changed"].format(version=memory.version)
    reviewed = any(replies["review"] in _text(message) for message in said)
    return closing if reviewed else f"{closing} {replies['review']}"


class OfflineModel:
    """Sends the reply of `plan` in pieces, as a real model would."""

    name = "offline"

    def __init__(self, pause_s: float = PAUSE_S) -> None:
        self._pause_s = pause_s

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        reply = plan(messages)
        for piece in re.findall(r"\s*\S+|\s+$", reply.text):
            hear([piece])
            await asyncio.sleep(self._pause_s)
        calls = bool(reply.tool and tools and may_call)
        said = len(reply.text)
        if calls:
            arguments = json.dumps(reply.arguments, ensure_ascii=False)
            said += len(arguments)
            for delta in _call_deltas(f"call_offline_{len(messages)}", reply.tool, arguments):
                hear([delta])
                await asyncio.sleep(self._pause_s)
        read = sum(len(_text(message)) for message in messages)
        usage = {"input_tokens": read // CHARS_A_TOKEN, "output_tokens": said // CHARS_A_TOKEN}
        return Finished("tool_calls" if calls else "stop", usage)  # type: ignore[arg-type]  # a Usage


def _call_deltas(call_id: str, tool: str, arguments: str) -> Iterator[ToolCallDelta]:
    yield ToolCallDelta(0, call_id, tool, "")
    for start in range(0, len(arguments), PIECE_CHARS):
        yield ToolCallDelta(0, "", "", arguments[start : start + PIECE_CHARS])
