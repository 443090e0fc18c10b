"""The offline model: a chat model that needs no key and no network, for a first run, a front end and the tests.

It drafts a non-disclosure agreement from a small clause library (`clauses.toml`), through the tools and deltas that a
real model uses. It is deterministic: the same messages get the same reply. It acts only on a message that it understood
whole (`sentences.py`), and reads the terms of an agreement from its text (`agreement.py`).
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from chat import Finished
from drafting.deltas import Hear, ToolCallDelta
from drafting.offline.agreement import (
    NotAsDrafted,
    Terms,
    amended,
    edits_between,
    library,
    place_of,
    placeholders,
    places_changed,
    read,
    render,
    retitled,
    title_of,
)
from drafting.offline.changes import Refused, changes_between, details_of, listed, requested
from drafting.offline.replay import Version, answer_of, before_undo, text_of, versions_in
from drafting.offline.sentences import Understood, understand
from drafting.offline.vocabulary import Draft, Help, Request, Restore, SetLaw, Undo
from drafting.tools import EDIT, WRITE

PAUSE_S = 0.006  # between two pieces: a brisk model's pace
PIECE_CHARS = 24  # of a tool call's arguments
CHARS_A_TOKEN = 4  # for the usage figures
QUOTED_CHARS = 120  # of a part that was not understood


@dataclass(frozen=True, slots=True)
class Plan:
    """A reply: its text and, at most, one tool call."""

    text: str
    tool: str = ""
    arguments: Mapping[str, Any] | None = None


def plan(messages: Sequence[BaseMessage]) -> Plan:
    """The reply to the thread's last message."""
    versions = versions_in(messages)
    if messages and isinstance(messages[-1], ToolMessage):
        return Plan(_closing(messages, versions))
    understood = understand(text_of(messages[-1])) if messages else Understood()
    reply = _reply(understood, versions)
    if any(isinstance(message, AIMessage) for message in messages):
        return reply
    return Plan(f"{library()['replies']['offline']}\n\n{reply.text}", reply.tool, reply.arguments)


def _reply(understood: Understood, versions: Sequence[Version]) -> Plan:
    replies = library()["replies"]
    abilities = str(replies["abilities"]).strip()
    if understood.not_understood or understood.reasons:
        return Plan(f"{_misunderstanding(understood)}\n\n{abilities}")
    requests = [request for request in understood.requests if request != Help()]
    if not requests:
        return Plan(abilities)
    try:
        if requests[0] == Draft():
            return _draft(requests[1:], versions)
        return _change(requests, versions) if versions else Plan(replies["no_document"])
    except Refused as refused:
        return Plan(replies["refused"].format(reason=refused))


def _misunderstanding(understood: Understood) -> str:
    """Which part was not understood, and why."""
    replies = library()["replies"]
    parts = understood.not_understood
    said = []
    if understood.is_question:
        said.append(replies["question"])
    elif parts:
        quoted = [f"“{part if len(part) <= QUOTED_CHARS else part[:QUOTED_CHARS] + '…'}”" for part in parts[:3]]
        said.append(replies["not_understood"].format(parts=listed(quoted)))
    said += [replies["refused"].format(reason=reason) for reason in understood.reasons]
    if not understood.is_question:
        hints = [each for each in library()["hint"] if re.search(each["pattern"], "\n".join(parts), re.IGNORECASE)]
        said += [hint["text"] for hint in hints]
    return " ".join(said)


# ---------------------------------------------------------------------------------------------------------------
# The document


def _draft(requests: Sequence[Request], versions: Sequence[Version]) -> Plan:
    if any(isinstance(request, Draft | Restore | Undo) for request in requests):
        raise Refused("first")
    terms, _ = requested(Terms(), requests)
    kind = "mutual non-disclosure agreement" if terms.mutual else "one-way non-disclosure agreement"
    text = library()["replies"]["drafting"].format(kind=kind, details=details_of(terms))
    title = title_of(mutual=terms.mutual, among={version.title for version in versions})
    return Plan(text, WRITE, {"title": title, "content": render(terms)})


def _change(requests: Sequence[Request], versions: Sequence[Version]) -> Plan:
    """Change the document of the newest version."""
    replies = library()["replies"]
    newest = versions[-1]
    base, phrases = newest, []
    if isinstance(requests[0], Restore | Undo):
        base = _version_before(requests[0], [version for version in versions if version.doc_id == newest.doc_id])
        phrases.append(f"bring back the text of version {base.number}")
        requests = requests[1:]
    if any(isinstance(request, Draft | Restore | Undo) for request in requests):
        raise Refused("first" if Draft() in requests else "back")
    content, title = base.content, base.title
    if requests:
        content, title, changes = _amended(base, requests)
        phrases += changes
    if (content, title) == (newest.content, newest.title):
        nothing = replies["nothing_to_change" if requests else "same_text"]
        return Plan(nothing.format(version=newest.number, title=newest.title))
    text = replies["changing"].format(changes=listed(phrases))
    edits = edits_between(newest.content, content)
    if edits is None:
        return Plan(text, WRITE, {"title": title, "doc_id": newest.doc_id, "content": content})
    renaming = {} if title == newest.title else {"title": title}
    return Plan(text, EDIT, {"doc_id": newest.doc_id, "edits": edits, **renaming})


def _version_before(request: Restore | Undo, versions: Sequence[Version]) -> Version:
    """The version to go back to, among those of the document. Raises Refused."""
    newest = versions[-1]
    if isinstance(request, Undo):
        found = before_undo(versions)
    elif request.version is None:
        found = versions[-1 - request.back] if len(versions) > request.back else None
    else:
        found = next((version for version in versions if version.number == request.version), None)
        if found is None:
            numbers = listed([str(version.number) for version in versions])
            raise Refused("no_version", version=request.version, title=newest.title, versions=numbers)
    if found is None:
        raise Refused("nothing_to_undo", title=newest.title)
    return found


def _amended(base: Version, requests: Sequence[Request]) -> tuple[str, str, list[str]]:
    """The text and the title after the requests, and what they change. Raises Refused."""
    reading = read(base.content)
    if reading is None:
        raise Refused("not_mine", title=base.title)
    terms, fields = requested(reading.terms, requests)
    if unread := sorted(fields & reading.unread):
        raise Refused("not_as_drafted", place=place_of(unread[0]))
    try:
        content = amended(base.content, reading, terms)
    except NotAsDrafted as error:
        raise Refused("not_as_drafted", place=error.place) from None
    return content, retitled(base.title, mutual=terms.mutual), changes_between(reading.terms, terms)


# ---------------------------------------------------------------------------------------------------------------
# After the tool's answer


def _closing(messages: Sequence[BaseMessage], versions: Sequence[Version]) -> str:
    replies = library()["replies"]
    result = answer_of(messages[-1])
    if "doc_id" not in result or not versions:
        return str(replies["failed"]).format(error=result.get("error", "the tool gave no answer."))
    newest = versions[-1]
    earlier = [version for version in versions[:-1] if version.doc_id == newest.doc_id]
    closing = _changed(newest, earlier) if earlier else _drafted(newest)
    said = [message for message in messages if isinstance(message, AIMessage)]
    reviewed = any(replies["review"] in text_of(message) for message in said)
    return closing if reviewed else f"{closing} {replies['review']}"


def _drafted(version: Version) -> str:
    replies = library()["replies"]
    named = any(isinstance(request, SetLaw) for request in understand(version.said).requests)
    law = "" if named else replies["assumed"].format(law=library()["governing_law"])
    left = placeholders(version.content)
    return str(replies["drafted" if left else "complete"]).format(law=law, placeholders=", ".join(left))


def _changed(newest: Version, earlier: Sequence[Version]) -> str:
    replies = library()["replies"]
    same = next((version for version in earlier if version.content == newest.content), None)
    values = {"version": newest.number, "title": newest.title}
    if same:
        return str(replies["restored"]).format(source=same.number, **values)
    places = listed(places_changed(earlier[-1].content, newest.content))
    left = replies["left"].format(count=len(placeholders(newest.content)))
    return f"{replies['changed'].format(places=places, **values)} {left}"


# ---------------------------------------------------------------------------------------------------------------
# The model


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
        characters = sum(len(text_of(message)) for message in messages)
        usage = {"input_tokens": characters // CHARS_A_TOKEN, "output_tokens": said // CHARS_A_TOKEN}
        return Finished("tool_calls" if calls else "stop", usage)  # type: ignore[arg-type]  # a Usage


def _call_deltas(call_id: str, tool: str, arguments: str) -> Iterator[ToolCallDelta]:
    yield ToolCallDelta(0, call_id, tool, "")
    for start in range(0, len(arguments), PIECE_CHARS):
        yield ToolCallDelta(0, "", "", arguments[start : start + PIECE_CHARS])
