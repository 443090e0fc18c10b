"""The documents of a thread, and how much of them its model has been shown. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chat import Document
from drafting.context.passages import changed
from drafting.context.tokens import tokens_of
from drafting.tools import WRITE

CHANGED_SHARE = 0.4  # of a document, in tokens; with more changes the whole is due
CHANGED_TOKENS = 4_000  # with fewer it never is
ROOM_SHARE = 0.75  # of a request; beyond it only the document that was used last is shown


@dataclass(slots=True)
class Shelf:
    """A document that the thread has."""

    newest: Document
    complete: Document | None  # the newest version that is complete
    changed_at: int  # a place in the history
    used_at: int  # likewise: when it was last changed, or the user named it
    tokens: int  # of the texts that the model must see
    is_shown: bool = True
    changed_tokens: int = 0  # of the passages that edits have added behind the whole text

    @property
    def texts(self) -> list[Document]:
        """Also the text before one that broke off, as that may be meant to replace it."""
        before = [] if self.complete is None or self.complete is self.newest else [self.complete]
        return [*before, self.newest]


class Shelves:
    """`are_stale`: a text that is shown is not the document's any more, or one that is not shown is wanted."""

    def __init__(self) -> None:
        self.are_stale = False
        self._known = 0
        self._unclaimed: dict[tuple[str, int], Document] = {}  # versions that no call is known to have made
        self._shelves: dict[str, Shelf] = {}

    @property
    def shown(self) -> list[Shelf]:
        """Those that change often come last, as a prefix cache ends at the first change."""
        shown = (shelf for shelf in self._shelves.values() if shelf.is_shown)
        return sorted(shown, key=lambda shelf: shelf.changed_at)

    @property
    def hidden(self) -> list[Shelf]:
        return [shelf for shelf in self._shelves.values() if not shelf.is_shown]

    @property
    def longest(self) -> Shelf | None:
        return max(self.shown, key=lambda shelf: shelf.tokens, default=None)

    def know(self, documents: Sequence[Document]) -> None:
        """All versions that the thread has."""
        for document in documents[self._known :]:
            self._unclaimed[document["doc_id"], document["version"]] = document
        self._known = len(documents)

    def claim(self, answer: Mapping[str, Any], tool: str, arguments: Mapping[str, Any], at: int) -> Document | None:
        """The version that a call has made. The answer does not name one that broke off, or whose run was lost.

        Earlier versions of it that no call has made are older than this one, so they come first.
        """
        place = (answer.get("doc_id"), answer.get("version"))
        text = arguments.get("content") if tool == WRITE else None
        for key, document in self._unclaimed.items():
            if key == place or (text and document["content"] == text and "doc_id" not in answer):
                earlier = [each for each in self._unclaimed if each[0] == key[0] and each[1] < key[1]]
                self._put_left_out(earlier, at)
                return self._unclaimed.pop(key)
        return None

    def claim_rest(self, place: int) -> None:
        self._put_left_out(list(self._unclaimed), place)

    def _put_left_out(self, keys: Sequence[tuple[str, int]], place: int) -> None:
        """Of a turn that is left out, for one. What broke off there is left out, too."""
        for key in keys:
            document = self._unclaimed.pop(key)
            if document["complete"]:
                self.put(document, place)
                self.are_stale = True

    def put(self, document: Document, place: int) -> None:
        """A new version, whose text the call has."""
        tokens = tokens_of(document["content"])
        complete = document if document["complete"] else None
        shelf = self._shelves.get(document["doc_id"])
        if shelf is None:
            self._shelves[document["doc_id"]] = Shelf(document, complete, place, place, tokens)
            return
        # Behind a text that broke off the one before stays valid; any other text is replaced.
        self.are_stale |= complete is not None or len(shelf.texts) > 1 or not shelf.is_shown
        shelf.newest, shelf.complete = document, complete or shelf.complete
        shelf.tokens = sum(tokens_of(text["content"]) for text in shelf.texts)
        shelf.changed_at = shelf.used_at = place

    def edit(self, document: Document, place: int) -> list[str]:
        """A new version that an edit has made. Gives the passages that it changed, as they now stand."""
        shelf = self._shelves.get(document["doc_id"])
        if shelf is None:
            self.put(document, place)
            self.are_stale = True
            return []
        passages = changed(shelf.newest["content"], document["content"])
        changed_tokens = shelf.changed_tokens + sum(map(tokens_of, passages))
        was_stale = self.are_stale
        is_replaced = len(shelf.texts) > 1 or not shelf.is_shown
        self.put(document, place)
        shelf.changed_tokens = changed_tokens
        due = changed_tokens > max(CHANGED_SHARE * shelf.tokens, CHANGED_TOKENS)
        self.are_stale = was_stale or is_replaced or due
        return passages

    def hear(self, words: str, place: int) -> None:
        """A message of the user, which may name documents."""
        words = words.casefold()
        for shelf in self._shelves.values():
            if shelf.newest["title"].casefold() in words:
                shelf.used_at = place
                self.are_stale |= not shelf.is_shown

    def show_again(self, taken: int, budget: int) -> None:
        """Show those that were used last, as they now stand: as many as there is room for, and always one."""
        used = sorted(self._shelves.values(), key=lambda shelf: shelf.used_at, reverse=True)
        for shelf in used:
            shelf.is_shown = shelf is used[0] or taken + shelf.tokens <= ROOM_SHARE * budget
            shelf.changed_tokens = 0
            taken += shelf.tokens * shelf.is_shown
        self.are_stale = False
