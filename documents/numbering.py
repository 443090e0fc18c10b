"""Numbers that Word counts itself: 1. / 1.1 / (a) / (i), or with 1.1.1, and from 1. again in a schedule.

A number is left to Word only where Word would show it as it is written. Elsewhere the number is text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from docx.document import Document as DocumentObject
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.oxml.numbering import CT_Num
from docx.shared import Cm
from docx.text.paragraph import Paragraph

from documents.markdown import Block

STEP_CM = 1.0  # a level's indent, in which its number stands
# Word's kinds of number, as far as they are used here.
SIGNS = {
    "decimal": [str(number) for number in range(1, 1000)],
    "lowerLetter": list("abcdefghijklmnopqrstuvwxyz"),
    "lowerRoman": ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii", "xiv", "xv"],
}
PASSED_OVER = 1000  # of a level with a deeper one in its place: whether Word counts it, programs don't agree upon
Levels = tuple[tuple[str, str], ...]
# Word's own names of the kinds of number, outermost first: 1.  1.1  (a)  (i), or 1.  1.1  1.1.1  (a)  (i)
LETTERED: Levels = (("decimal", "%1."), ("decimal", "%1.%2"), ("lowerLetter", "(%3)"), ("lowerRoman", "(%4)"))
DECIMAL: Levels = (*LETTERED[:2], ("decimal", "%1.%2.%3"), ("lowerLetter", "(%4)"), ("lowerRoman", "(%5)"))
LISTED: Levels = tuple(("decimal", f"%{level}.") for level in range(1, 5))
CLAUSES, ITEMS = 90, 91  # ids of the two abstract numberings, which the template does not use


@dataclass(frozen=True, slots=True)
class Counted:
    """How Word numbers a paragraph: as a level of a list, which goes on or begins here, at `start`."""

    kind: int  # the abstract numbering
    list_id: int
    level: int
    start: int | None


def levels_of(blocks: Iterable[Block]) -> Levels:
    """How the clauses are numbered below 1.1: with letters, unless there is a 1.1.1"""
    deepest = max((_decimals(block.number) for block in blocks), default=0)
    return DECIMAL if deepest > 2 else LETTERED


def _decimals(number: str) -> int:
    """How many numbers it is made of: 0 for (a), 2 for 1.1"""
    return 0 if not number or number.startswith("(") else number.rstrip(".").count(".") + 1


class _Counter:
    """The numbers that Word would show next, by level."""

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._counts = [0] * len(levels)

    def takes(self, level: int, number: str) -> bool:
        """Whether it would show this number here; then it is counted."""
        if self._shown(level) != number:
            return False
        above = (count or PASSED_OVER for count in self._counts[:level])
        self._counts = [*above, self._counts[level] + 1, *[0] * (len(self._levels) - level - 1)]
        return True

    def _shown(self, level: int) -> str | None:
        counts = [*self._counts[:level], self._counts[level] + 1]
        kinds = [kind for kind, _ in self._levels[: level + 1]]
        if any(kind == "decimal" and not number for kind, number in zip(kinds, counts, strict=True)):
            return None  # a clause outside of a numbered one
        shown = self._levels[level][1]
        for place, (kind, number) in enumerate(zip(kinds, counts, strict=True), 1):
            sign = SIGNS[kind][number - 1 : number]
            if f"%{place}" in shown and not sign:
                return None
            shown = shown.replace(f"%{place}", "".join(sign))
        return shown


def numbered_by_word(blocks: Sequence[Block], levels: Levels, *, marked: bool) -> Iterator[Counted | None]:
    list_ids = count(1)
    counter, clauses = _Counter(levels), next(list_ids)
    open_lists: dict[int, tuple[int, int]] = {}  # by level: the list's id, and its last number
    for block in blocks:
        if block.kind != "item":
            open_lists.clear()
        level = _level_of(block, levels)
        if marked or not block.number:
            yield None
        elif block.kind == "item" and block.level < len(LISTED):
            number = int(block.number.rstrip("."))
            list_id, last = open_lists.get(block.level, (0, 0))
            begins = not list_id or number != last + 1
            list_id = next(list_ids) if begins else list_id
            open_lists = {depth: each for depth, each in open_lists.items() if depth < block.level}
            open_lists[block.level] = list_id, number
            yield Counted(ITEMS, list_id, block.level, number if begins else None)
        elif level is None:
            yield None
        else:
            begins = level == 0 and block.number == "1."
            if begins:
                counter, clauses = _Counter(levels), next(list_ids)
            taken = counter.takes(level, block.number)
            yield Counted(CLAUSES, clauses, level, 1 if begins else None) if taken else None


def _level_of(block: Block, levels: Levels) -> int | None:
    if block.kind == "heading":
        level = max(_decimals(block.number) - 1, 0)
    elif block.kind == "clause":
        level = block.level + 1
    else:
        return None
    return level if level < len(levels) else None


class Numbering:
    """The file's own numbering: clauses in one, and each list in one that begins where it begins."""

    def __init__(self, document: DocumentObject, levels: Levels) -> None:
        self._root = document.part.numbering_part.element
        for abstract_id, each in ((CLAUSES, levels), (ITEMS, LISTED)):
            first = self._root.find(qn("w:num"))
            abstract = _abstract_numbering(abstract_id, each)
            self._root.append(abstract) if first is None else first.addprevious(abstract)
        self._ids = count(max((num.numId for num in self._root.num_lst), default=0) + 1)
        self._lists: dict[int, int] = {}

    def number(self, paragraph: Paragraph, counted: Counted) -> None:
        if counted.start is not None:
            # Not by the root's own way, which looks for a free id among all.
            number = CT_Num.new(next(self._ids), counted.kind)  # type: ignore[no-untyped-call]  # of python-docx
            number.add_lvlOverride(ilvl=counted.level).add_startOverride(counted.start)
            self._root.append(number)
            self._lists[counted.list_id] = number.numId
        properties = paragraph._p.get_or_add_pPr().get_or_add_numPr()  # noqa: SLF001  # not in python-docx's own words
        properties.get_or_add_ilvl().val = counted.level
        properties.get_or_add_numId().val = self._lists[counted.list_id]


def _abstract_numbering(abstract_id: int, levels: Levels) -> Any:  # noqa: ANN401  # of lxml
    abstract = OxmlElement("w:abstractNum")
    abstract.set(qn("w:abstractNumId"), str(abstract_id))
    _child(abstract, "w:multiLevelType", "multilevel")
    for level, (kind, text) in enumerate(levels):
        element = OxmlElement("w:lvl")
        element.set(qn("w:ilvl"), str(level))
        _child(element, "w:start", "1")
        _child(element, "w:numFmt", kind)
        _child(element, "w:lvlText", text)
        _child(element, "w:lvlJc", "left")
        indent = OxmlElement("w:ind")
        depth = max(level, 1) if abstract_id == CLAUSES else level + 1  # 1. and 1.1 stand one below the other
        indent.set(qn("w:left"), str(round(Cm(STEP_CM * depth).twips)))
        indent.set(qn("w:hanging"), str(round(Cm(STEP_CM).twips)))
        properties = OxmlElement("w:pPr")
        properties.append(indent)
        element.append(properties)
        abstract.append(element)
    return abstract


def _child(parent: Any, name: str, value: str) -> None:  # noqa: ANN401  # of lxml
    element = OxmlElement(name)
    element.set(qn("w:val"), value)
    parent.append(element)
