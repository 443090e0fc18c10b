"""The two tools with which a model writes and changes documents, and the arguments that models really send. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drafting.editing.edits import Edit
from drafting.text import storable

WRITE, EDIT = "write_document", "edit_document"
TOOLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": WRITE,
            "description": "Write a complete document in Markdown. A title that is in use already, or a doc_id, "
            "makes a new version of that document. The user sees the text while you write it: do not repeat it in your "
            "reply.",
            "parameters": {
                "type": "object",
                "properties": {
                    "title": {"type": "string", "description": "The document's title."},
                    "doc_id": {
                        "type": "string",
                        "description": "Only to rewrite a document under a new title: its id, before the content.",
                    },
                    "content": {"type": "string", "description": "The whole document, in Markdown."},
                },
                "required": ["title", "content"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": EDIT,
            "description": "Change passages of a document's newest version, or its title; makes a new version. "
            "Prefer it to writing the document anew when most of it stays.",
            "parameters": {
                "type": "object",
                "properties": {
                    "doc_id": {"type": "string", "description": "The document's id, as a tool's answer gave it."},
                    "title": {"type": "string", "description": "A new title, if it is to change."},
                    "edits": {
                        "type": "array",
                        "description": "All of them mean the version before this call, and none may overlap another.",
                        "items": {
                            "type": "object",
                            "properties": {
                                "find": {
                                    "type": "string",
                                    "description": "The exact text to replace, long enough to stand only once.",
                                },
                                "replace": {"type": "string", "description": "What takes its place."},
                            },
                            "required": ["find", "replace"],
                            "additionalProperties": False,
                        },
                    },
                },
                "required": ["doc_id"],
                "additionalProperties": False,
            },
        },
    },
)


class ToolError(ValueError):
    """A tool call that can't be carried out. Its text goes back to the model."""


@dataclass(frozen=True, slots=True)
class EditCall:
    """The arguments of `edit_document`. `doc_id` is as the model gave it: perhaps the title of a document."""

    doc_id: str | None
    title: str | None
    edits: tuple[Edit, ...]
    version: int | None = None  # of the document, that a model may name, although the tool does not ask for it

    def arguments(self, doc_id: str) -> dict[str, Any]:
        """As the tool asks for them, for the document that was meant."""
        edits = [{"find": edit.find, "replace": edit.replace} for edit in self.edits]
        title = {"title": self.title} if self.title else {}
        return {"doc_id": doc_id, **title, **({"edits": edits} if edits else {})}


# Other names that models give to a field, from the tools that they were trained on. Case and "_" don't matter.
DOC_ID = ("docid", "documentid", "id", "document", "doc")
TITLE = ("title", "newtitle")
VERSION = ("version", "baseversion", "docversion")
EDITS = ("edits", "edit", "changes", "replacements")
FIND = ("find", "old", "oldstring", "oldstr", "oldtext", "search")
REPLACE = ("replace", "new", "newstring", "newstr", "newtext", "replacement", "replacewith")
EXPECTED = (
    'edit_document needs a doc_id and a list of edits, each with find and replace, or a new title: {"doc_id": "d1", '
    '"edits": [{"find": "the old words", "replace": "the new words"}]}. Nothing was changed.'
)


def edit_call(arguments: str) -> EditCall:
    """The arguments of `edit_document`. Raises ToolError."""
    fields = _decoded(arguments)
    if not isinstance(fields, Mapping):
        raise ToolError(f"The arguments are not valid JSON of an object. {EXPECTED}")
    edits = _decoded(_field(fields, EDITS))
    if edits is None and _field(fields, FIND) is not None:
        edits = fields  # the only edit, without a list
    if isinstance(edits, Mapping):
        edits = [edits]
    doc_id, title, version = _text(_field(fields, DOC_ID)), _text(_field(fields, TITLE)), _field(fields, VERSION)
    if not isinstance(edits, list | None) or not (edits or title):
        raise ToolError(EXPECTED)
    pairs = tuple(_edit(number, _decoded(edit)) for number, edit in enumerate(edits or (), 1))
    return EditCall(doc_id, title, pairs, version if isinstance(version, int) else None)


def _edit(number: int, fields: object) -> Edit:
    texts = [_field(fields, names) for names in (FIND, REPLACE)] if isinstance(fields, Mapping) else [None]
    find, replace = (storable(text) if isinstance(text, str) else None for text in (*texts, None)[:2])
    if find is None or replace is None:
        raise ToolError(f"Edit {number}: each edit needs the texts find and replace. {EXPECTED}")
    return Edit(find, replace)


def _text(value: object) -> str | None:
    """A name that a field has; None for an empty one."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int):
        return storable(str(value))
    raise ToolError(EXPECTED)


def _field(fields: Mapping[str, object], names: Sequence[str]) -> object:
    """The value of the field that has one of these names."""
    values = [value for name, value in fields.items() if name.replace("_", "").lower() in names and value is not None]
    if any(value != values[0] for value in values):
        raise ToolError(f"{names[0]} stands twice, with two values. {EXPECTED}")
    return values[0] if values else None


def _decoded(value: object) -> object:
    """The value of a text that holds JSON, as some models send it; any other value as it is."""
    for _ in range(2):  # the arguments are a text by rule, and some models encode them once more
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value, strict=False, object_pairs_hook=_once)
        except ToolError:  # of _once
            raise
        except (ValueError, RecursionError):
            break
    return value


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ToolError(f"A field stands twice in the arguments. {EXPECTED}")
    return fields
