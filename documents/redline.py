"""Two versions of a document as one, with each word marked as kept, inserted or deleted. Pure.

A paragraph that changed is matched with its new form, so that its changes show as words. Equal paragraphs are anchors;
their numbers may differ, as a new clause renumbers all that follow. Between two anchors, paragraphs with most of their
words in common, in order, belong together. A paragraph that moved is deleted and inserted. Accepting all changes gives
the blocks of the new version, rejecting all changes gives the old blocks.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Generic, TypedDict, TypeVar

from documents.alignment import Effort, common
from documents.markdown import Block, Kind, Mark, Room, Span, blocks

EFFORT = 2_000_000  # steps, which is about a second; two versions of 300 KB with most in common take a tenth of them
ALIKE = 0.4  # of the letters of both are shared; two unrelated clauses of an agreement share 0.1, and seldom 0.3
WITHIN = 0.8  # or of the letters of the shorter one, which has then become a part of the other

# A word stands between spaces and punctuation. It may have points and apostrophes inside, as 1,000.50 and e.g have.
# In scripts without spaces each character is one. With its brackets it is a token: (30), [name], (a).
# A hidden character (hidden.py) is a letter, so that its change is a change of a word.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PUNCTUATION = (
    r"!-/:-@\[-`{-~\u00a1-\u00ac\u00ae-\u00bf\u2010-\u2027\u2030-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"
)
_SPACES = r" \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_LETTERS = rf"[^\n{_SPACES}{_PUNCTUATION}{_ALONE}]+"
WORD = re.compile(rf"{_LETTERS}(?:[.,'’]{_LETTERS})*|[{_ALONE}]")
TOKEN = re.compile(rf"{WORD.pattern}|[(\[]{_LETTERS}[)\]]|\n|[{_SPACES}]+|(.)\1*")

Spans = tuple[Span, ...]
Row = tuple[Spans, ...]
Token = tuple[str, bool, bool, bool]  # its text, and whether that is bold, italic, code
T = TypeVar("T")


def redline(old: str, new: str, room: Room | None = None) -> list[Block]:
    """Both versions, given as Markdown, in one list of blocks with marks. Raises TooManyParts.

    A block that is inserted or deleted whole has the mark itself, and so have its spans. A row of a table is inserted
    or deleted if all its spans are. Each of its cells then has a span: an empty cell has one without text.
    """
    effort = Effort(EFFORT)
    marked: list[Block] = []
    for before, after in _pairs(_parts(blocks(old, room)), _parts(blocks(new, room)), effort):
        if before is not None and after is not None:
            marked.append(_merged(before, after, effort))
        elif before is not None:
            marked.append(_whole(before, "deleted"))
        elif after is not None:
            marked.append(_whole(after, "inserted"))
    return marked


class SpanJson(TypedDict):
    text: str
    mark: Mark
    bold: bool
    italic: bool
    code: bool


class RowJson(TypedDict):
    mark: Mark
    cells: list[list[SpanJson]]


class BlockJson(TypedDict):
    kind: Kind
    mark: Mark
    level: int
    number: str
    old_number: str  # another one only where the number changed
    spans: list[SpanJson]
    rows: list[RowJson]


def block_json(block: Block) -> BlockJson:
    return {
        "kind": block.kind,
        "mark": block.mark,
        "level": block.level,
        "number": block.number,
        "old_number": block.number if block.old_number is None else block.old_number,
        "spans": _spans_json(block.spans),
        "rows": [{"mark": mark_of(row), "cells": [_spans_json(cell) for cell in row]} for row in block.rows],
    }


def _spans_json(spans: Spans) -> list[SpanJson]:
    return [
        {"text": span.text, "mark": span.mark, "bold": span.bold, "italic": span.italic, "code": span.code}
        for span in spans
        if span.text
    ]


def mark_of(row: Row) -> Mark:
    """Whether a row of a table is inserted or deleted whole."""
    marks = {span.mark for cell in row for span in cell} if all(row) else set()
    return marks.pop() if len(marks) == 1 else "kept"


def count_words(marked: Iterable[Block], mark: Mark) -> int:
    """How many words have that mark."""
    return sum(
        len(WORD.findall(span.text)) for block in marked for text in block.texts for span in text if span.mark == mark
    )


# ---------------------------------------------------------------------------------------------------------------
# Which paragraphs belong together, and which rows of a table


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """A block or a row, as it is matched: with its equal, or else with one of the same shape and like words."""

    of: T
    equal: Hashable
    shape: Hashable
    words: list[str]


def _parts(whole: Iterable[Block]) -> list[Part[Block]]:
    return [
        Part(
            block,
            (block.kind, block.level, block.spans, block.rows, block.aligned),
            (block.kind, block.level, block.aligned),
            WORD.findall(_text(block.spans)) + [word for row in block.rows for word in _words(row)],
        )
        for block in whole
    ]


def _row_parts(rows: Iterable[Row]) -> list[Part[Row]]:
    return [Part(row, row, len(row), _words(row)) for row in rows]


def _text(spans: Iterable[Span]) -> str:
    return "".join(span.text for span in spans)


def _words(row: Row) -> list[str]:
    return [word for cell in row for word in WORD.findall(_text(cell))]


def _pairs(before: list[Part[T]], after: list[Part[T]], effort: Effort) -> Iterator[tuple[T | None, T | None]]:
    """Both sides in order: pairs that belong together, and deleted or inserted parts with None on the other side."""
    equal = common([part.equal for part in before], [part.equal for part in after], effort)
    i = j = 0
    for i_end, j_end in [*equal, (len(before), len(after))]:
        akin = [(i + x, j + y) for x, y in _akin(before[i:i_end], after[j:j_end], effort)]
        for x, y in [*akin, (i_end, j_end)]:
            yield from ((part.of, None) for part in before[i:x])
            yield from ((None, part.of) for part in after[j:y])
            if x < len(before) and y < len(after):
                yield before[x].of, after[y].of
            i, j = x + 1, y + 1


def _akin(before: Sequence[Part[T]], after: Sequence[Part[T]], effort: Effort) -> list[tuple[int, int]]:
    """The places of parts that differ and belong together, rising on both sides; the most alike are matched first."""
    if not before or not after:
        return []
    old, new = (
        [(number, word) for number, part in enumerate(parts) for word in part.words] for parts in (before, after)
    )
    shared: Counter[tuple[int, int]] = Counter()
    for i, j in common([word for _, word in old], [word for _, word in new], effort):
        shared[old[i][0], new[j][0]] += len(old[i][1])
    sizes, new_sizes = ([sum(map(len, part.words)) for part in parts] for parts in (before, after))
    share = {
        (i, j): 2 * letters / (sizes[i] + new_sizes[j])
        for (i, j), letters in shared.items()
        if before[i].shape == after[j].shape
        and letters >= min(WITHIN * min(sizes[i], new_sizes[j]), ALIKE * (sizes[i] + new_sizes[j]) / 2)
    }
    # The places of the words rise on both sides. So the places of parts rise too, if none is taken twice.
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for i, j in sorted(share, key=lambda place: (-share[place], place)):
        if i not in chosen and j not in taken:
            chosen[i] = j
            taken.add(j)
    return sorted(chosen.items())


# ---------------------------------------------------------------------------------------------------------------
# Changes in a pair


def _whole(block: Block, mark: Mark) -> Block:
    spans = tuple(replace(span, mark=mark) for span in block.spans)
    return replace(block, mark=mark, spans=spans, rows=tuple(_whole_row(row, mark) for row in block.rows))


def _whole_row(row: Row, mark: Mark) -> Row:
    return tuple(tuple(replace(span, mark=mark) for span in cell or (Span(""),)) for cell in row)


def _merged(before: Block, after: Block, effort: Effort) -> Block:
    old_number = before.number if before.number != after.number else None
    return replace(
        after,
        old_number=old_number,
        spans=_spans(before.spans, after.spans, effort),
        rows=tuple(_rows(before.rows, after.rows, effort)),
    )


def _rows(before: Sequence[Row], after: Sequence[Row], effort: Effort) -> Iterator[Row]:
    for old, new in _pairs(_row_parts(before), _row_parts(after), effort):
        if old is not None and new is not None:
            row = tuple(_spans(*cells, effort) for cells in zip(old, new, strict=True))
            if old == new or any(span.mark == "kept" for cell in row for span in cell):
                yield row
                continue
        if old is not None:
            yield _whole_row(old, "deleted")
        if new is not None:
            yield _whole_row(new, "inserted")


def _tokens(spans: Spans) -> list[Token]:
    return [(token.group(), span.bold, span.italic, span.code) for span in spans for token in TOKEN.finditer(span.text)]


@dataclass(slots=True)
class Change:
    """Deleted tokens and the inserted tokens in their place, after tokens that were kept."""

    kept: list[Token]
    deleted: list[Token]
    inserted: list[Token]
    letters_deleted: int = field(init=False)
    letters_inserted: int = field(init=False)

    def __post_init__(self) -> None:
        self.letters_deleted, self.letters_inserted = _letters(self.deleted), _letters(self.inserted)

    @property
    def longest(self) -> int:
        return max(self.letters_deleted, self.letters_inserted)

    def join(self, following: "Change") -> None:
        """Take the next change and the kept tokens before it. Its own letters are many, and are not counted again."""
        between = _letters(following.kept)
        self.deleted += following.kept + following.deleted
        self.inserted += following.kept + following.inserted
        self.letters_deleted += between + following.letters_deleted
        self.letters_inserted += between + following.letters_inserted


def _spans(before: Spans, after: Spans, effort: Effort) -> Spans:
    """The spans of one text that was changed into another, marked."""
    if before == after:
        return after
    old, new = _tokens(before), _tokens(after)
    marked: list[tuple[Mark, Token]] = []
    for change in _readable(_changes(old, new, common(old, new, effort))):
        marked += [("kept", token) for token in change.kept]
        marked += [("deleted", token) for token in change.deleted]
        marked += [("inserted", token) for token in change.inserted]
    return tuple(
        Span("".join(text for _, (text, *_) in tokens), bold, italic, code, mark)
        for (mark, bold, italic, code), tokens in groupby(marked, lambda token: (token[0], *token[1][1:]))
    )


def _changes(old: list[Token], new: list[Token], places: list[tuple[int, int]]) -> Iterator[Change]:
    """The last of them may change nothing."""
    i = j = 0
    kept: list[Token] = []
    for x, y in [*places, (len(old), len(new))]:
        if x > i or y > j:
            yield Change(kept, old[i:x], new[j:y])
            kept = []
        kept += old[x : x + 1]
        i, j = x + 1, y + 1
    yield Change(kept, [], [])


def _readable(changes: Iterable[Change]) -> list[Change]:
    """The same with fewer, longer changes where a mere comma or a short word between two of them was kept."""
    joined: list[Change] = []
    for change in changes:
        if joined and _scrap(change.kept, joined[-1], change):
            joined[-1].join(change)
        else:
            joined.append(change)
    return joined


def _scrap(kept: list[Token], before: Change, after: Change) -> bool:
    """Whether the kept tokens between two changes are better read as a part of the changes."""
    one_sided = not (before.deleted or after.deleted) or not (before.inserted or after.inserted)
    at_the_end = not (after.deleted or after.inserted)
    if one_sided or at_the_end or any(text == "\n" for text, *_ in kept):
        return False
    words = [text for text, *_ in kept if WORD.search(text)]
    return len(words) <= 1 and all(len(word) < min(before.longest, after.longest) for word in words)


def _letters(tokens: Iterable[Token]) -> int:
    return sum(len(text) for text, *_ in tokens)
