"""A turn of a thread, and its messages without the texts of documents. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from chat import Document
from drafting.context.tokens import message_tokens
from drafting.tools import EDIT


@dataclass(slots=True)
class Entry:
    """A message, and the version that each of its calls made. Of an answer it is the version of its call."""

    message: BaseMessage
    made: list[Document | None]


@dataclass(slots=True)
class ThreadTurn:
    """A message of the user, and what followed."""

    entries: list[Entry] = field(default_factory=list)
    tokens: int = 0  # of its messages without texts
    _without_texts: list[BaseMessage] | None = None

    @property
    def words(self) -> str:
        return "\n".join(str(each.message.content) for each in self.entries if isinstance(each.message, HumanMessage))

    @property
    def made(self) -> list[Document]:
        answers = (each for each in self.entries if isinstance(each.message, ToolMessage))
        return [document for answer in answers for document in answer.made if document is not None]

    def without_texts(self, *, is_over: bool) -> list[BaseMessage]:
        """Its messages. While it is not over, the calls that failed keep their texts, as the model has to mend them."""
        if self._without_texts is not None:
            return self._without_texts
        messages = [_without_texts(entry, is_over=is_over) for entry in self.entries]
        self.tokens = sum(map(message_tokens, messages))
        if is_over:
            self._without_texts = messages
        return messages


def _without_texts(entry: Entry, *, is_over: bool) -> BaseMessage:
    """Nothing stands in place of a text, or the model could write the same into a document. A call that lacks its text
    is refused.
    """
    message = entry.message
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = [
            call | {"args": _named(call["name"], call["args"])} if made or is_over else call
            for call, made in zip(message.tool_calls, entry.made, strict=True)
        ]
        return message.model_copy(update={"tool_calls": calls})
    if isinstance(message, ToolMessage) and (made := entry.made[0]) is not None:
        name = {"doc_id": made["doc_id"], "title": made["title"], "version": made["version"]}
        left_out = {"left_out": f"{len(made['content']):,} characters"}
        return message.model_copy(update={"content": answer_of(fields_of(message) | name | left_out)})
    return message


def _named(tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if tool == EDIT:
        return dict(arguments) | {"edits": []}
    return {name: value for name, value in arguments.items() if name != "content"}


def fields_of(answer: ToolMessage) -> dict[str, Any]:
    try:
        fields = orjson.loads(str(answer.content))
    except orjson.JSONDecodeError:
        return {"answer": answer.content}
    return fields if isinstance(fields, dict) else {"answer": fields}


def answer_of(fields: Mapping[str, Any]) -> str:
    return orjson.dumps(fields).decode()
