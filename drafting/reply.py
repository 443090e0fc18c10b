"""One reply of the model while it arrives: pieces for the reader, and the results of its tool calls. Pure.

The model's deltas go in, and pieces for the reader come out at once. When the reply is over, the rest (the text, the
tool calls with their answers, the new versions of documents) goes into the graph's state.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from chat import Doc, Document, Emit, Message, Piece
from drafting.arguments import ArgumentsDecoder, BrokenArguments
from drafting.deltas import ModelDelta, ModelError, Opaque, ToolCallDelta
from drafting.editing.versions import UNCHANGED, Documents, as_title, how_to_go_on
from drafting.provider.opaque import OpaqueFields
from drafting.text import storable
from drafting.tools import EDIT, WRITE, ToolError, edit_call

LATE = "The model went on with a call that was over; please send the message again."
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # OpenAI refuses other names of functions


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the state keeps it, with the answer that the model gets."""

    call_id: str
    name: str
    arguments: dict[str, Any]
    answer: str
    index: int


@dataclass(slots=True, eq=False)
class _Text:
    """A stretch of text between tool calls."""

    waiting: list[str] = field(default_factory=list)
    item: int | None = None


@dataclass(slots=True, eq=False)
class _Call:
    """A tool call while its arguments arrive."""

    index: int
    call_id: str
    name: str
    waiting: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    decoder: ArgumentsDecoder = field(default_factory=ArgumentsDecoder)
    content: list[str] = field(default_factory=list)  # of the document, as far as it was decoded
    held: int = 0  # the number of texts at the end of `content` that wait for the title
    doc: tuple[int, str, str, int] | None = None  # item, doc_id, title, version, from the first piece on
    broken: str | None = None
    kept: dict[str, Any] | None = None  # the arguments for the state, where they are not simply those that came
    over: bool = False  # it was carried out


class Reply:
    """One reply of the model. Its parts, texts and calls, are given out in the order in which they began.

    Deltas of a later part wait while an earlier part is open: the reader gets whole items, never mixed.
    """

    def __init__(self, documents: Documents, first_item: int, emit: Emit) -> None:
        self.text = ""
        self.calls: list[ToolCall] = []
        self.new_documents: list[Document] = []
        self.unfinished: set[int] = set()
        self.next_item = first_item
        self._documents = documents
        self._emit = emit
        self._parts: list[_Text | _Call] = []
        self._texts: list[str] = []
        self._pieces: list[Piece] = []  # of the deltas that are being fed
        self._by_index: dict[int, _Call] = {}
        self._source = ""  # of the opaque fields
        # By the index of the call; None is the reply's own.
        self._opaque: defaultdict[int | None, OpaqueFields] = defaultdict(OpaqueFields)

    @property
    def begun(self) -> bool:
        """The model has said something."""
        return bool(self._texts or self._by_index)

    def feed(self, deltas: Sequence[ModelDelta]) -> None:
        """Take the deltas of one arrival, and emit their pieces together."""
        for delta in deltas:
            if isinstance(delta, ToolCallDelta):
                self._feed_call(delta)
                continue
            if isinstance(delta, Opaque):
                self._opaque[delta.call].add(delta.fields)
                self._source = delta.source
                continue
            self._texts.append(delta)
            part = self._parts[-1] if self._parts else None
            if not isinstance(part, _Text):
                part = _Text()
                self._parts.append(part)
            if part.item is None:
                part.waiting.append(delta)
                self._advance()
            else:  # it is being given out, so no part is before it
                self._pieces.append(Message(delta, part.item))
        self._emit_pieces()

    def _feed_call(self, delta: ToolCallDelta) -> None:
        call = self._by_index.get(delta.index)
        if call is None:
            call = _Call(delta.index, delta.call_id, delta.name)
            self._by_index[delta.index] = call
            self._parts.append(call)
        else:
            call.call_id = call.call_id or delta.call_id
            call.name = delta.name or call.name  # it may have come in pieces
            if call.over and delta.arguments.strip():
                raise ModelError("model_protocol", LATE, retryable=True)
        if delta.arguments:
            call.waiting.append(delta.arguments)
        self._advance()

    def _emit_pieces(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._emit(pieces)

    def close(self, *, finished: bool) -> None:
        """End the reply. `finished`: the model came to its end, so no item is cut off."""
        while self._parts:
            part = self._parts[0]
            self._give_out(part)
            if isinstance(part, _Call):
                self._carry_out(part, finished=finished)
            elif not finished and part.item is not None and len(self._parts) == 1:
                self.unfinished.add(part.item)
            self._parts.pop(0)
        self._emit_pieces()
        self.text = "".join(self._texts)

    def opaque(self) -> dict[str, Any]:
        """`reply` has the opaque fields of the reply, `calls` a list with those of each call, `from` their source.

        Empty if there are none, as with most providers.
        """
        if not self._opaque:
            return {}
        return {
            "from": self._source,
            "reply": self._fields(None),
            "calls": [self._fields(call.index) for call in self.calls],
        }

    def _fields(self, call: int | None) -> dict[str, Any]:
        return _storable_fields(self._opaque[call].whole()) if call in self._opaque else {}

    def _advance(self) -> None:
        while self._parts:
            part = self._parts[0]
            self._give_out(part)
            if len(self._parts) == 1:
                return  # more of it may come: nobody knows yet whether a call is over
            if isinstance(part, _Call):
                if not (part.decoder.complete or part.broken):
                    return
                self._carry_out(part, finished=True)
            self._parts.pop(0)

    def _give_out(self, part: _Text | _Call) -> None:
        if isinstance(part, _Call):
            self._give_out_arguments(part)
            return
        if part.item is None:
            part.item = self._take_item()
        item = part.item
        self._pieces += [Message(text, item) for text in part.waiting]
        part.waiting.clear()

    def _take_item(self) -> int:
        self.next_item += 1
        return self.next_item - 1

    def _give_out_arguments(self, call: _Call) -> None:
        fragments, call.waiting = call.waiting, []
        for fragment in fragments:
            call.arguments.append(fragment)
            if call.broken:
                continue
            content: list[str] = []
            try:
                for name, text in call.decoder.feed(fragment):
                    if name == "content" and call.name == WRITE:
                        content.append(text)
            except BrokenArguments as error:
                call.broken = str(error)
            if content:  # one piece a fragment, however many escapes it has
                call.content.append("".join(content))
                call.held += 1
            if call.held:
                self._give_out_document(call)

    def _give_out_document(self, call: _Call) -> None:
        if call.doc is None:
            place = self._place(call.decoder)
            if place is None:
                return
            call.doc = (self._take_item(), *place)
        item, doc_id, title, version = call.doc
        for piece in call.content[len(call.content) - call.held :]:
            self._pieces.append(Doc(piece, item, doc_id, title, version))
        call.held = 0

    def _place(self, decoder: ArgumentsDecoder) -> tuple[str, str, int] | None:
        """The id, title and version of a document. None while a model that began with the content may name them.

        Without a title, a document that the model named by its id keeps its own.
        """
        title, named = decoder.strings.get("title"), decoder.strings.get("doc_id")
        if title is None:
            document = self._documents.named(named) if named and decoder.complete else None
            if document is None:
                return None
            title = document["title"]
        title = as_title(title)
        doc_id, version = self._documents.place(title, named)
        return doc_id, title, version

    def _carry_out(self, call: _Call, *, finished: bool) -> None:
        """Called when the call's arguments are complete and another part has begun, or no more will come."""
        call.over = True
        try:
            document = self._execute(call, finished=finished)
            answer: dict[str, object] = {name: document[name] for name in ("doc_id", "title", "version")}
            if not document["complete"]:
                answer["complete"] = False
        except ToolError as error:
            answer = {"error": str(error)}
        name = call.name if TOOL_NAME.fullmatch(call.name) else "unknown"
        call_id = call.call_id or f"call_{len(self.calls)}"
        if any(call_id == other.call_id for other in self.calls):  # some providers take the tool's name for an id
            call_id = f"{call_id}_{len(self.calls)}"
        self.calls.append(ToolCall(call_id, name, _kept_arguments(call), orjson.dumps(answer).decode(), call.index))

    def _execute(self, call: _Call, *, finished: bool) -> Document:
        whole = call.decoder.complete and not call.broken
        if call.doc is not None:
            item, doc_id, title, version = call.doc
            document = self._documents.add(doc_id, title, version, "".join(call.content), complete=whole)
            self.new_documents.append(document)
            if not whole:
                self.unfinished.add(item)
                raise ToolError(
                    (f"The arguments are not valid JSON ({call.broken}). " if call.broken else "")
                    + how_to_go_on(document)
                )
            return document
        if not whole and not finished:
            raise ToolError(f"The call broke off before its end. Send it again, or in smaller parts. {UNCHANGED}")
        if not whole and call.name != EDIT:
            raise ToolError(f"The arguments are not valid JSON. {UNCHANGED}")
        if call.name == WRITE:
            raise ToolError(
                f"write_document needs a title and a content, both texts and the content not empty. {UNCHANGED}"
            )
        if call.name != EDIT:
            raise ToolError(f"There is no tool {call.name!r}; there are {WRITE} and {EDIT}. {UNCHANGED}")
        edit = edit_call("".join(call.arguments))
        document = self._documents.edit(edit)
        call.kept = edit.arguments(document["doc_id"])
        self.new_documents.append(document)
        item = self._take_item()
        if not document["complete"]:
            self.unfinished.add(item)
        fields = (document["content"], item, document["doc_id"], document["title"], document["version"])
        self._pieces.append(Doc(*fields))
        return document


def _kept_arguments(call: _Call) -> dict[str, Any]:
    """The arguments for the state. Those of a document are exactly the text that the reader got."""
    if call.doc is not None:
        named = {"doc_id": call.doc[1]} if "doc_id" in call.decoder.strings else {}
        return {"title": call.doc[2], **named, "content": "".join(call.content)}
    if call.kept is not None:
        return call.kept
    try:
        return _storable_fields(json.loads("".join(call.arguments), strict=False))
    except (ValueError, RecursionError):
        return {}


def _storable_fields(fields: object) -> dict[str, Any]:
    """The fields as the state can hold them; none where it can't: beyond 64 bits, or 250 levels deep."""
    try:
        kept = json.loads(storable(json.dumps(fields, ensure_ascii=False)))
        orjson.dumps([[[[kept]]]])  # raises for the values that it can't hold
    except (ValueError, TypeError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
