"""The two tools with which a model writes and changes documents, and the versions of a thread's documents. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chat import Document
from drafting.text import storable

WRITE, EDIT = "write_document", "edit_document"
TOOLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": WRITE,
            "description": "Write a complete document in Markdown. A title that is in use already makes a new version "
            "of that document. The user sees the text while you write it: do not repeat it in your reply.",
            "parameters": {
                "type": "object",
                "properties": {
                    "title": {
                        "type": "string",
                        "description": "The document's title; the same for each of its versions.",
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
            "description": "Change passages of a document's newest version; makes a new version. Prefer it to writing "
            "the document anew when most of it stays.",
            "parameters": {
                "type": "object",
                "properties": {
                    "doc_id": {"type": "string", "description": "The document's id, as a tool's answer gave it."},
                    "edits": {
                        "type": "array",
                        "minItems": 1,
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
                "required": ["doc_id", "edits"],
                "additionalProperties": False,
            },
        },
    },
)


class ToolError(ValueError):
    """A tool call that can't be carried out. Its text goes back to the model."""


# ---------------------------------------------------------------------------------------------------------------
# Documents


class Documents:
    """The versions of a thread's documents, in the order in which they were made."""

    def __init__(self, versions: Sequence[Document]) -> None:
        self._versions = list(versions)

    def place(self, title: str) -> tuple[str, int]:
        """The id and version of the next text with this title."""
        for document in reversed(self._versions):
            if document["title"] == title:
                return document["doc_id"], self._next_version(document["doc_id"])
        return f"d{len({document['doc_id'] for document in self._versions}) + 1}", 1

    def add(self, doc_id: str, title: str, version: int, content: str, *, complete: bool) -> Document:
        document: Document = {
            "doc_id": doc_id,
            "title": title,
            "version": version,
            "content": content,
            "complete": complete,
        }
        self._versions.append(document)
        return document

    def edit(self, doc_id: str, edits: Sequence[tuple[str, str]]) -> Document:
        """Add a version with each passage replaced. Raises ToolError, and then changes nothing."""
        newest = next((d for d in reversed(self._versions) if d["doc_id"] == doc_id and d["complete"]), None)
        if newest is None:
            known = ", ".join(sorted({d["doc_id"] for d in self._versions if d["complete"]})) or "none"
            raise ToolError(f"There is no document {doc_id!r}; there are: {known}.")
        content = newest["content"]
        for number, (find, replacement) in enumerate(edits, 1):
            count = content.count(find) if find else 0
            if count != 1:
                often = "does not stand in the document" if count == 0 else f"stands {count} times in the document"
                raise ToolError(
                    f"Edit {number}: the text to find {often}; it must stand exactly once. Nothing was changed."
                )
            content = content.replace(find, replacement)
        if not content:
            raise ToolError("That would leave an empty document. Nothing was changed.")
        return self.add(doc_id, newest["title"], self._next_version(doc_id), content, complete=True)

    def _next_version(self, doc_id: str) -> int:
        return max(document["version"] for document in self._versions if document["doc_id"] == doc_id) + 1


def parse_edits(arguments: str) -> tuple[str, list[tuple[str, str]]]:
    """The arguments of `edit_document`. Raises ToolError."""
    try:
        fields = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        raise ToolError("The arguments are not valid JSON.") from None
    edits = fields.get("edits") if isinstance(fields, dict) else None
    if not isinstance(edits, list) or not edits or not isinstance(fields.get("doc_id"), str):
        raise ToolError("edit_document needs a doc_id and a list of edits, each with find and replace.")
    pairs = []
    for edit in edits:
        find, replacement = (edit.get("find"), edit.get("replace")) if isinstance(edit, dict) else (None, None)
        if not isinstance(find, str) or not isinstance(replacement, str):
            raise ToolError("Each edit needs the texts find and replace.")
        pairs.append((storable(find), storable(replacement)))
    return fields["doc_id"], pairs
