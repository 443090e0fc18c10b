"""The versions of a thread's documents, made again from the messages of the thread. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from drafting.context.normal_form import LOST_ANSWER
from drafting.editing.versions import Documents
from drafting.offline.sentences import understand
from drafting.offline.vocabulary import Undo
from drafting.tools import WRITE, ToolError, edit_call


@dataclass(frozen=True, slots=True)
class Version:
    """`said` is the user's message that led to it."""

    doc_id: str
    title: str
    number: int
    content: str
    said: str


def versions_in(messages: Sequence[BaseMessage]) -> list[Version]:
    """Every whole version, in the order in which they were made."""
    versions: list[Version] = []
    answers = {m.tool_call_id: answer_of(m) for m in messages if isinstance(m, ToolMessage)}
    said = ""
    for message in messages:
        if isinstance(message, HumanMessage):
            said = text_of(message)
        elif isinstance(message, AIMessage):
            for call in message.tool_calls:
                answer = answers.get(call["id"] or "", {})
                if call["name"] == WRITE and answer == json.loads(LOST_ANSWER):
                    answer = _as_lost(call["args"], versions)
                version = _version(call["name"], call["args"], answer, versions, said)
                versions += [version] if version else []
    return versions


def _as_lost(arguments: Mapping[str, Any], versions: Sequence[Version]) -> dict[str, object]:
    """The answer that a lost call would have got. A run that left no state has left its document all the same."""
    title = str(arguments.get("title", ""))
    same = next((version for version in reversed(versions) if version.title == title), None)
    doc_id = same.doc_id if same else f"d{len({version.doc_id for version in versions}) + 1}"
    number = max((version.number for version in versions if version.doc_id == doc_id), default=0) + 1
    return {"doc_id": doc_id, "title": title, "version": number}


def _version(
    tool: str, arguments: Mapping[str, Any], answer: Mapping[str, object], versions: Sequence[Version], said: str
) -> Version | None:
    if "doc_id" not in answer:
        return None
    doc_id, number = str(answer["doc_id"]), int(str(answer.get("version", 0)))
    before = next((version for version in reversed(versions) if version.doc_id == doc_id), None)
    title = str(answer.get("title") or (before.title if before else ""))
    if tool == WRITE:
        content = str(arguments.get("content", ""))
    elif before is None:
        return None
    else:
        content = _edited(before, arguments)
    return Version(doc_id, title, number, content, said)


def _edited(before: Version, arguments: Mapping[str, Any]) -> str:
    documents = Documents([])
    documents.add(before.doc_id, before.title, before.number, before.content, complete=True)
    try:
        return documents.edit(edit_call(json.dumps(arguments)))["content"]
    except ToolError:
        return before.content


def before_undo(versions: Sequence[Version]) -> Version | None:
    """The version of a document whose text an "undo" brings back. None if there is nothing left to undo.

    A second "undo" goes on from the first one's text, and does not bring back what that has undone.
    """
    stands_for: list[int] = []
    for place, version in enumerate(versions):
        undone = place > 0 and understand(version.said).requests == (Undo(),)
        stands_for.append(max(stands_for[-1] - 1, 0) if undone else place)
    return versions[stands_for[-1] - 1] if versions and stands_for[-1] > 0 else None


def answer_of(message: BaseMessage) -> dict[str, object]:
    """A tool's answer."""
    try:
        answer = json.loads(text_of(message))
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def text_of(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else " ".join(map(str, message.content))
