"""The edits of one call, found in one text and carried out at once. Pure.

Every `find` means the text as the model saw it, so the order of edits can't matter, and two edits conflict only where
they overlap. A find that stands once, character for character, is taken. Else quotes, dashes and spaces may differ
(`folding`), if the passage stands once then. There the words that find and replacement have in common, at their
beginning and their end, keep the document's own characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from drafting.editing.folding import TOKEN, Folded, folded
from drafting.editing.nearest import Words, around, shown

MOST_FAULTS = 5  # of a call, that its answer describes
MOST_PLACES = 5  # of one text, that its answer shows


@dataclass(frozen=True, slots=True)
class Edit:
    find: str
    replace: str


@dataclass(frozen=True, slots=True)
class Change:
    """A passage of the text, from `start` to before `end`, that becomes `text`. `name` is for an error."""

    start: int
    end: int
    text: str
    name: str


class EditError(ValueError):
    """The edits can't be carried out. Its text says why, shows the text of the document, and names a next step."""


class Base:
    """The text that edits mean. What a search needs is made of it when a search needs it, and once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def folded(self) -> Folded:
        return Folded(self.text)

    @cached_property
    def words(self) -> Words:
        return Words(self.text)

    def changes(self, edits: Sequence[Edit]) -> list[Change]:
        """The change that each edit means. Raises EditError for all faults together."""
        changes: list[Change] = []
        faults: list[str] = []
        for number, edit in enumerate(edits, 1):
            try:
                changes.append(self._change(edit, f"edit {number}"))
            except EditError as fault:
                faults.append(f"Edit {number}: {fault}")
            if len(faults) == MOST_FAULTS:
                break
        if faults:
            raise EditError("\n".join(faults))
        return changes

    def _change(self, edit: Edit, name: str) -> Change:
        if not edit.find:
            raise EditError(
                "find is empty. To add text, find the words that it follows, and replace them with the same words and "
                "the new text."
            )
        if edit.find == edit.replace:
            raise EditError("find and replace are the same, so it changes nothing. Leave it out, or correct it.")
        places = _places(self.text, edit.find)
        if len(places) == 1:
            return Change(places[0], places[0] + len(edit.find), edit.replace, name)
        if not places:
            edit = _without_outer_blanks(edit)
            find = folded(edit.find)
            places = _places(self.folded.text, find) if find else []
            if len(places) == 1:
                return self._folded_change(edit, places[0], len(find), name)
            places = [self.folded.place(at) for at in places]
        if places:
            raise EditError(_ambiguous(self.text, edit.find, places))
        raise EditError(
            f"the text to find does not stand in the document. {self.words.nearest(edit.find)} Copy find from the "
            "document, character for character; a few words that stand once are enough."
        )

    def _folded_change(self, edit: Edit, at: int, length: int, name: str) -> Change:
        find, replace = (TOKEN.findall(text) for text in (edit.find, edit.replace))
        head = _common(find, replace)
        tail = _common(find[head:][::-1], replace[head:][::-1])
        start, end = self.folded.place(at), self.folded.place(at + length)
        kept = self.folded.place(at + len(folded("".join(find[:head]))))
        kept_from = self.folded.place(at + length - len(folded("".join(find[len(find) - tail :]))))
        new = "".join(replace[head : len(replace) - tail])
        return Change(start, end, self.text[start:kept] + new + self.text[kept_from:end], name)


def changed(text: str, changes: Sequence[Change]) -> str:
    """The text with all changes made. Raises EditError if two of them overlap; two that touch do not."""
    ordered = sorted(changes, key=lambda change: (change.start, change.end))
    for one, other in pairwise(ordered):
        if other.start < one.end:
            raise EditError(
                f"Two edits overlap, {one.name} and {other.name}. Both take in this text:\n"
                f"{shown(text, other.start, min(one.end, other.end))}\nJoin them to one edit, or quote less."
            )
    pieces: list[str] = []
    done = 0
    for change in ordered:
        pieces += (text[done : change.start], change.text)
        done = change.end
    return "".join((*pieces, text[done:]))


def _places(text: str, find: str) -> list[int]:
    """Where it stands, as far as MOST_PLACES and one more."""
    places: list[int] = []
    at = text.find(find)
    while at >= 0 and len(places) <= MOST_PLACES:
        places.append(at)
        at = text.find(find, at + len(find))
    return places


def _ambiguous(text: str, find: str, places: Sequence[int]) -> str:
    often = f"{len(places)} times" if len(places) <= MOST_PLACES else f"more than {MOST_PLACES} times"
    each = "\n".join(f"({n}) {around(text, at, at + len(find))}" for n, at in enumerate(places[:MOST_PLACES], 1))
    return (
        f"the text to find stands {often} in the document; it must stand once. With the words around it:\n{each}\n"
        "Take some of these words into find, so that it means one place."
    )


def _without_outer_blanks(edit: Edit) -> Edit:
    """Without the blanks at the beginning and the end that find and replacement have alike: the text may lack them."""
    find, replace = edit.find, edit.replace
    head = len(find) - len(find.lstrip())
    if replace.startswith(find[:head]) and len(replace) - len(replace.lstrip()) == head:
        find, replace = find[head:], replace[head:]
    tail = len(find) - len(find.rstrip())
    if tail and replace.endswith(find[-tail:]) and len(replace) - len(replace.rstrip()) == tail:
        find, replace = find[:-tail], replace[:-tail]
    return Edit(find, replace)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words at the beginning are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
