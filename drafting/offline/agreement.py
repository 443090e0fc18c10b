"""The offline model's agreement: its form (`clauses.toml`) filled in for the terms, and read back from a text. Pure.

The terms of an agreement stand in its text and nowhere else. A change reads them there and replaces the paragraphs that
depend on it, so whatever a person has written elsewhere in the document stays.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, Literal

from drafting.offline.lengths import Length, written_length

PERPETUAL: Literal["perpetual"] = "perpetual"
Period = Length | Literal["perpetual"]

SLOT = re.compile(r"\{([^{}]+)\}")
PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\]")


@cache
def library() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name("clauses.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Terms:
    """What one agreement of the form has and another has not. None is the form's own choice, or its placeholder."""

    mutual: bool = False
    term: Period | None = None
    survival: Period | None = None
    law: str | None = None
    first: str | None = None  # the name of the first party, which is the one that discloses if only one does
    second: str | None = None


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of the form, with its slots. `place` names it in a reply."""

    place: str
    one_way: str
    mutual: str

    def text(self, *, mutual: bool) -> str:
        return self.mutual if mutual else self.one_way

    @property
    def slots(self) -> set[str]:
        return {*SLOT.findall(self.one_way), *SLOT.findall(self.mutual)}


@cache
def form() -> tuple[Paragraph, ...]:
    """The paragraphs of the agreement, in order, with their numbers and references."""
    clauses = library()
    paragraphs = [Paragraph("the heading", *_kinds(clauses["heading"]))]
    paragraphs += [Paragraph("the introduction", *_kinds(paragraph)) for paragraph in clauses["preamble"]]
    for number, clause in enumerate(clauses["clause"], 1):
        heading = f"## {number}. {clause['heading']}"
        paragraphs.append(Paragraph(f"the heading of clause {number}", heading, heading))
        for part, paragraph in enumerate(clause["paragraphs"], 1):
            one_way, mutual = (f"{number}.{part} {text}" for text in _kinds(paragraph))
            paragraphs.append(Paragraph(f"clause {number}.{part}", one_way, mutual))
    for closing in clauses["closing"]:
        of_both_kinds = zip(*(text.split("\n\n") for text in _kinds(closing)), strict=True)
        paragraphs += [Paragraph("the signatures", one_way, mutual) for one_way, mutual in of_both_kinds]
    numbers = {clause["heading"]: str(number) for number, clause in enumerate(clauses["clause"], 1)}

    def with_references(text: str) -> str:
        return re.sub(r"\{ref:([^{}]+)\}", lambda reference: numbers[reference[1]], text)

    return tuple(
        Paragraph(each.place, with_references(each.one_way), with_references(each.mutual)) for each in paragraphs
    )


def _kinds(paragraph: str | Mapping[str, str]) -> tuple[str, str]:
    """The text in a one-way and in a mutual agreement."""
    return (paragraph, paragraph) if isinstance(paragraph, str) else (paragraph["one_way"], paragraph["mutual"])


# ---------------------------------------------------------------------------------------------------------------
# From terms to text


def render(terms: Terms) -> str:
    """The whole agreement, in Markdown."""
    return "\n\n".join(_filled(paragraph, terms) for paragraph in form()) + "\n"


def _filled(paragraph: Paragraph, terms: Terms) -> str:
    values = _values(terms)
    return SLOT.sub(lambda slot: values[slot[1]], paragraph.text(mutual=terms.mutual))


def _values(terms: Terms) -> dict[str, str]:
    first, second = names_of(terms)
    return {
        "first": first,
        "second": second,
        "law": terms.law or library()["governing_law"],
        "term": _period_text("term", terms.term),
        "survival": _period_text("survival", terms.survival),
    }


def names_of(terms: Terms) -> tuple[str, str]:
    """The names of the parties, or their placeholders."""
    first, second = _unnamed(mutual=terms.mutual)
    return terms.first or first, terms.second or second


def _unnamed(*, mutual: bool) -> tuple[str, str]:
    first, second = library()["parties"]["mutual" if mutual else "one_way"]
    return first, second


def _period_text(slot: str, period: Period | None) -> str:
    texts = library()[slot]
    if period is None:
        return str(texts["open"])
    return str(texts["perpetual"] if period == PERPETUAL else texts["fixed"].replace("{length}", str(period)))


def title_of(*, mutual: bool, among: AbstractSet[str]) -> str:
    """The title of a new document, which no other one has or can get: "… Agreement", then "… Agreement (2)"."""
    number = 1
    while among & {_title(number, mutual=False), _title(number, mutual=True)}:
        number += 1
    return _title(number, mutual=mutual)


def retitled(title: str, *, mutual: bool) -> str:
    """The title after a change to the other kind. A title that somebody has chosen stays."""
    numbered = re.search(r" \((\d{1,4})\)$", title)
    number = int(numbered[1]) if numbered else 1
    mine = (_title(number, mutual=False), _title(number, mutual=True))
    return mine[mutual] if title in mine else title


def _title(number: int, *, mutual: bool) -> str:
    heading: str = library()["heading"]["mutual" if mutual else "one_way"].removeprefix("# ")
    return heading if number == 1 else f"{heading} ({number})"


def placeholders(content: str) -> list[str]:
    """The names of the placeholders that are still to be filled in, each once, in their order."""
    return list(dict.fromkeys(text.partition(", for example")[0] for text in PLACEHOLDER.findall(content)))


# ---------------------------------------------------------------------------------------------------------------
# From text to terms


@dataclass(frozen=True, slots=True)
class Reading:
    """A document read as an agreement of the form.

    `unread` names the fields of the terms that the document does not tell, as those paragraphs are written otherwise.
    `found` tells which paragraph of the document is which of the form's.
    """

    terms: Terms
    unread: frozenset[str]
    found: Mapping[int, int]


def read(content: str) -> Reading | None:
    """None if the document is no agreement of this form."""
    paragraphs = content.removesuffix("\n").split("\n\n")
    kinds: set[bool] = set()
    found: dict[int, int] = {}
    told: dict[str, set[str]] = {}
    begin = 0
    for index, paragraph in enumerate(form()):
        for place in range(begin, len(paragraphs)):
            values, of_kinds = _match(paragraph, paragraphs[place])
            if of_kinds:
                found[index], begin = place, place + 1
                if len(of_kinds) == 1:
                    kinds |= of_kinds
                for slot, value in values.items():
                    told.setdefault(slot, set()).add(value)
                break
    if len(kinds) != 1:
        return None
    mutual = kinds.pop()
    values = {slot: next(iter(texts)) for slot, texts in told.items() if len(texts) == 1}
    return _reading(mutual=mutual, values=values, found=found)


def _match(paragraph: Paragraph, text: str) -> tuple[dict[str, str], set[bool]]:
    """The values of the slots, and the kinds of agreement in which the paragraph reads so."""
    values: dict[str, str] = {}
    kinds: set[bool] = set()
    for mutual in (False, True):
        if match := _pattern(paragraph.text(mutual=mutual)).fullmatch(text):
            values, kinds = match.groupdict(), kinds | {mutual}
    return values, kinds


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """A paragraph of the form as a pattern: each slot is a group, and reads the same wherever it stands again."""
    parts, seen = [], set()
    for place, part in enumerate(SLOT.split(text)):
        if place % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            parts.append(f"(?P<{part}>[^\\n]+?)")
    return re.compile("".join(parts))


def _reading(*, mutual: bool, values: Mapping[str, str], found: Mapping[int, int]) -> Reading:
    unread = {"first", "second", "law", "term", "survival"} - values.keys()
    first, second = _unnamed(mutual=mutual)
    own = {"first": first, "second": second, "law": library()["governing_law"]}
    fields: dict[str, Any] = {name: values.get(name) for name in own}
    fields = {name: None if value == own[name] else value for name, value in fields.items()}
    for slot in {"term", "survival"} - unread:
        period = _period(slot, values[slot])
        if period == "":
            unread.add(slot)
        else:
            fields[slot] = period
    return Reading(Terms(mutual=mutual, **fields), frozenset(unread), found)


def _period(slot: str, text: str) -> Period | Literal[""] | None:
    """The period that a slot's text tells; "" if it is none of the form's texts."""
    texts = library()[slot]
    if text == texts["open"]:
        return None
    if text == texts["perpetual"]:
        return PERPETUAL
    before, _, behind = texts["fixed"].partition("{length}")
    if not (text.startswith(before) and text.endswith(behind)):
        return ""
    return written_length(text[len(before) : len(text) - len(behind)]) or ""


# ---------------------------------------------------------------------------------------------------------------
# Changes


class NotAsDrafted(ValueError):
    """A paragraph that would have to change is not as the form has it."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def amended(content: str, reading: Reading, after: Terms) -> str:
    """The document with the terms `after`: the paragraphs that differ in them are replaced. Raises NotAsDrafted."""
    changed = {name for name in Terms.__slots__ if getattr(after, name) != getattr(reading.terms, name)}
    paragraphs = content.removesuffix("\n").split("\n\n")
    for index, paragraph in enumerate(form()):
        if not (paragraph.slots & changed or _filled(paragraph, reading.terms) != _filled(paragraph, after)):
            continue
        if index not in reading.found or paragraph.slots & reading.unread:
            raise NotAsDrafted(paragraph.place)
        paragraphs[reading.found[index]] = _filled(paragraph, after)
    return "\n\n".join(paragraphs) + ("\n" if content.endswith("\n") else "")


def place_of(field: str) -> str:
    """The paragraph that tells a field of the terms."""
    return next(paragraph.place for paragraph in form() if field in paragraph.slots)


def edits_between(before: str, after: str) -> list[dict[str, str]] | None:
    """The passages to replace, each of them whole paragraphs that stand once. None if there is no such list."""
    old, new = before.split("\n\n"), after.split("\n\n")
    edits = []
    for tag, start, end, new_start, new_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        if tag != "replace":
            return None
        behind = 0  # a paragraph that stands twice, such as a name alone, is found by the one behind it
        while before.count("\n\n".join(old[start : end + behind])) > 1 and not behind and old[end : end + 1]:
            behind = 1
        find = "\n\n".join(old[start : end + behind])
        if before.count(find) != 1:
            return None
        edits.append({"find": find, "replace": "\n\n".join([*new[new_start:new_end], *old[end : end + behind]])})
    return edits


def places_changed(before: str, after: str) -> Sequence[str]:
    """The names of the places where two versions differ, in the order of the document."""
    old, new = before.removesuffix("\n").split("\n\n"), after.removesuffix("\n").split("\n\n")
    names = _names_of(new)
    places = []
    for tag, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            places += names[start : max(end, start + 1)]
    return list(dict.fromkeys(places))


def _names_of(paragraphs: Sequence[str]) -> list[str]:
    """The name of each paragraph: the number of a clause, or the part of the document in which it stands."""
    names = []
    part = "the introduction"
    for place, text in enumerate(paragraphs):
        number = re.match(r"(?:## )?(\d+(?:\.\d+)?)", text)
        if place == 0 and text.startswith("# "):
            names.append("the heading")
        elif number:
            names.append(f"clause {number[1]}")
            part = "the signatures"
        else:
            names.append(part)
    return names
