"""The versions of a thread's documents: a document written anew, passages of one changed, a title changed. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from chat import Document
from drafting.editing.edits import Base, Change, EditError, changed
from drafting.editing.nearest import last_words
from drafting.text import storable
from drafting.tools import EditCall, ToolError

DOCUMENT_TITLE_CHARS = 200
UNCHANGED = "Nothing was changed."


def as_title(text: str) -> str:
    """On one line, and not too long."""
    return storable(" ".join(text.split())[:DOCUMENT_TITLE_CHARS]) or "Untitled"


class Documents:
    """The versions of a thread's documents, from the model's call until its reply is over.

    A model that changes a document in several calls of one reply has not seen the answers. So all edits of a reply mean
    the newest version that the model saw or wrote whole, as those of one call do.
    """

    def __init__(self, versions: Sequence[Document]) -> None:
        self._newest: dict[str, Document] = {}  # of each document, the last made at the end
        self._last: dict[str, int] = {}  # the highest number of each document's versions
        self._edited: dict[str, tuple[Document, list[Change]]] = {}  # the version that edits mean, and their changes
        for version in versions:
            self._add(version)

    def place(self, title: str, named: str | None = None) -> tuple[str, int]:
        """The id and the version of the next text with this title, or of the document that is named."""
        document = self.named(named) if named else None
        if document is None:
            document = next((each for each in reversed(self._newest.values()) if each["title"] == title), None)
        return self._next(document) if document else (f"d{len(self._newest) + 1}", 1)

    def named(self, name: str) -> Document | None:
        """The newest version of the document with this id, or of the only one with this title."""
        if name in self._newest:
            return self._newest[name]
        name = as_title(name).casefold()
        found = [
            each for each in self._newest.values() if name in (each["doc_id"].casefold(), each["title"].casefold())
        ]
        return found[0] if len(found) == 1 else None

    def add(self, doc_id: str, title: str, version: int, content: str, *, complete: bool) -> Document:
        """Add a version that was written whole."""
        document = _document(doc_id, version, title, content, complete=complete)
        self._edited.pop(doc_id, None)
        self._add(document)
        return document

    def edit(self, call: EditCall) -> Document:
        """Add a version with the passages and the title changed. Raises ToolError, and then changes nothing."""
        newest = self._meant(call)
        doc_id = newest["doc_id"]
        base, earlier = self._edited.get(doc_id, (newest, []))
        if call.version not in (None, base["version"], newest["version"]):
            raise ToolError(
                f"Version {call.version} of {doc_id} is not the newest: that is {newest['version']}. Edits mean the "
                f"newest version. Take find from its text, and leave version out. {UNCHANGED}"
            )
        try:
            changes = [*earlier, *Base(base["content"]).changes(call.edits)]
            content = changed(base["content"], changes)
        except EditError as error:
            raise ToolError(f"{error}\n{_broken_off(base)}{UNCHANGED}") from None
        names_it = call.doc_id is None and call.title and self.named(call.title)  # then it is no new title
        title = as_title(call.title) if call.title and not names_it else newest["title"]
        if not content.strip():
            raise ToolError(f"That would leave an empty document. {UNCHANGED}")
        if (content, title) == (newest["content"], newest["title"]):
            raise ToolError(f"{doc_id} reads so already, under this title. {UNCHANGED}")
        end = len(base["content"].rstrip())
        complete = base["complete"] or any(change.end >= end for change in changes)
        document = _document(*self._next(newest), title, content, complete=complete)
        self._edited[doc_id] = base, [replace(change, name="one of an earlier call") for change in changes]
        self._add(document)
        return document

    def _meant(self, call: EditCall) -> Document:
        """The document that a call means: the one that it names, or the only one. Raises ToolError."""
        name = call.doc_id or call.title or ""
        document = self.named(name) if name else None
        if document is None and not call.doc_id and len(self._newest) == 1:
            [document] = self._newest.values()
        if document is not None:
            return document
        if not self._newest:
            raise ToolError(
                f"There is no document {name!r}; there are: none. Write it with write_document. {UNCHANGED}"
            )
        known = ", ".join(f"{each['doc_id']} ({each['title']})" for each in self._newest.values())
        raise ToolError(f"There is no document {name!r}; there are: {known}. Name one of them by its id. {UNCHANGED}")

    def _next(self, document: Document) -> tuple[str, int]:
        return document["doc_id"], self._last[document["doc_id"]] + 1

    def _add(self, document: Document) -> None:
        doc_id = document["doc_id"]
        self._newest.pop(doc_id, None)
        self._newest[doc_id] = document
        self._last[doc_id] = max(document["version"], self._last.get(doc_id, 0))


def _document(doc_id: str, version: int, title: str, content: str, *, complete: bool) -> Document:
    return {"doc_id": doc_id, "title": title, "version": version, "content": content, "complete": complete}


def _broken_off(base: Document) -> str:
    return "" if base["complete"] else f"{how_to_go_on(base)}\n"


def how_to_go_on(document: Document) -> str:
    """For a version that broke off."""
    return (
        f"Version {document['version']} of {document['doc_id']} broke off. It ends with this text:\n"
        f"{last_words(document['content'])}\n"
        "To go on, call edit_document: find this text, and replace it with the same text and the rest of the document."
    )
