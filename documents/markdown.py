"""A document's Markdown as the paragraphs of a legal document: titles, headings, numbered clauses, tables. Pure.

All formats of an export, and the comparison of two versions, are made of these blocks.

The rule of sizes: a text makes at most PARTS_A_CHARACTER parts (blocks, cells of tables, spans) for each of its
characters, none of its words is lost by that, and the work grows with the text as a straight line. commonmark.py
bounds the parser. `Room` bounds the parts in all, while they are made.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from documents.hidden import SWAPPED

if TYPE_CHECKING:
    from markdown_it.token import Token

Mark = Literal["kept", "inserted", "deleted"]
Align = Literal["left", "center", "right"]
Kind = Literal["title", "heading", "paragraph", "clause", "item", "table", "code", "rule"]

# The numbers of clauses: 1.  1.2  1.2.3  (a)  (iv)  (1)
_DECIMAL = r"\d{1,3}(?:\.\d{1,3})*\.?"
_BRACKETED = r"\((?:[a-z]{1,2}|[ivxl]{1,5}|[A-Z]|\d{1,2})\)"
NUMBER = re.compile(rf"({_DECIMAL}|{_BRACKETED})(?:\s+|$)")
ROMAN = re.compile(r"\([ivx]+\)")
# Where a clause begins on the line below another one, without an empty line between them: that one has come to its end,
# so that the number is not one of the words of a sentence that goes on ("as in Clause\n1.2").
NEXT_CLAUSE = re.compile(
    rf"(?<=[.:;*])[^\S\n]*\\?\n\s*(?=\**{_DECIMAL}\**\s)"
    rf"|(?:(?<=[.:;,*])|(?<=\band)|(?<=\bor))[^\S\n]*\\?\n\s*(?=\**{_BRACKETED}\**\s)"
)
PARTS_A_CHARACTER = 4
TOKENS_A_PART = 10  # of the parser's, for each part that there is room for; an item of a list has seven
BLANK_TO_FILL = "__"  # in a line that is to be signed or filled in, which keeps its own line


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text in one style; "\\n" in it is a line's end inside the paragraph."""

    text: str
    bold: bool = False
    italic: bool = False
    code: bool = False
    mark: Mark = "kept"


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph of a document, or a table.

    `level`: a heading's, 1 to 6 below the title, or the depth of a clause or an item from 0. A paragraph's is the
    number of list items around it. `number` is as written, "" without one. `rows` belong to a table, and the first one
    is its head: a row is its cells, a cell its spans. `aligned` has the alignment of each column. `mark` is that of the
    whole paragraph, and `old_number` the number that a changed one had before.
    """

    kind: Kind
    spans: tuple[Span, ...] = ()
    level: int = 0
    number: str = ""
    rows: tuple[tuple[tuple[Span, ...], ...], ...] = ()
    mark: Mark = "kept"
    old_number: str | None = None
    aligned: tuple[Align, ...] = ()

    @property
    def texts(self) -> tuple[tuple[Span, ...], ...]:
        """Its own text and the text of each cell."""
        return (self.spans, *(cell for row in self.rows for cell in row))

    @property
    def is_changed(self) -> bool:
        return (
            self.mark != "kept"
            or self.old_number is not None
            or any(span.mark != "kept" for text in self.texts for span in text)
        )


class TooManyParts(Exception):
    """A text, or several that go into one file, would make more parts than there is room for."""


class Room:
    """How many more parts may be made. Raises TooManyParts."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._tokens = parts * TOKENS_A_PART

    def take(self, block: Block) -> None:
        self.parts -= 1 + sum(map(len, block.rows)) + sum(map(len, block.texts))
        if self.parts < 0:
            raise TooManyParts

    def count_tokens(self, tokens: int) -> None:
        """The parser's, which it makes before there is a block of them."""
        self._tokens -= tokens
        if self._tokens < 0:
            raise TooManyParts


def blocks(markdown: str, room: Room | None = None) -> list[Block]:
    """The document's blocks, in order. Raises TooManyParts."""
    room = room or Room(PARTS_A_CHARACTER * (len(markdown) + 1))
    swapped = markdown.translate(SWAPPED)
    found = []
    for block in _Reader(room.count_tokens).blocks(swapped):
        room.take(block)
        found.append(block if swapped == markdown else _swapped_back(block))
    return found


def _swapped_back(block: Block) -> Block:
    def back(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(replace(span, text=span.text.translate(SWAPPED)) for span in spans)

    return replace(block, spans=back(block.spans), rows=tuple(tuple(map(back, row)) for row in block.rows))


class _Reader:
    def __init__(self, count: Callable[[int], None]) -> None:
        # Imported here, as a service that nobody asks for a file does not need it to start.
        from documents import commonmark  # noqa: PLC0415  # see above

        self._commonmark = commonmark
        self._count = count

    def blocks(self, markdown: str) -> Iterator[Block]:
        lists = _Lists()
        clauses = _Clauses()
        tokens = self._commonmark.parse(markdown, self._count)
        for place, token in enumerate(tokens):
            match token.type:
                case "heading_open":
                    yield from clauses.heading(int(token.tag[1:]), self._spans(tokens[place + 1].content))
                case "paragraph_open":
                    for line in NEXT_CLAUSE.split(tokens[place + 1].content):
                        spans = self._spans(line)
                        if (item := lists.item(spans)) is not None:
                            yield item
                        elif spans:
                            yield clauses.paragraph(spans, lists.depth)
                case "fence":
                    yield from _code(token.content.rstrip("\n"))
                case "hr":
                    yield _rule(token.markup)
                case self._commonmark.TABLE:
                    rows = tuple(tuple(self._spans(cell) for cell in row) for row in token.meta["rows"])
                    yield Block("table", rows=rows, aligned=tuple(token.meta["aligned"]))
                case _:
                    lists.follow(token)

    def _spans(self, content: str) -> tuple[Span, ...]:
        """The text by style."""
        # A line that is to be filled in keeps its own line, and so do the lines above and below it.
        text = _Text("\n" if BLANK_TO_FILL in content else " ")
        for token in self._commonmark.inline(content, self._count):
            text.take(token)
        return text.spans()


class _Lists:
    """The lists that are open at a place of the document, outermost first."""

    def __init__(self) -> None:
        self._next: list[int | None] = []  # the number of each one's next item; None for bullets
        self._begun = False  # an item has begun, and nothing has been taken as its first paragraph

    @property
    def depth(self) -> int:
        return len(self._next)

    def follow(self, token: "Token") -> None:
        match token.type:
            case "bullet_list_open":
                self._next.append(None)
            case "ordered_list_open":
                self._next.append(int(token.attrGet("start") or 1))
            case "bullet_list_close" | "ordered_list_close":
                self._next.pop()
            case "list_item_open":
                self._begun = True

    def item(self, spans: tuple[Span, ...]) -> Block | None:
        """The paragraph as the first one of an item, which has the item's number; None elsewhere."""
        if not self._begun or not self._next:
            return None
        self._begun = False
        number = self._next[-1]
        if number is None:
            return Block("item", spans, self.depth - 1)
        self._next[-1] = number + 1
        return Block("item", spans, self.depth - 1, f"{number}.")


class _Clauses:
    """Paragraphs that begin with a number. "(i)" is a letter behind "(h)", and the first roman number elsewhere.

    Letters stand one level below the decimal number before them, roman numbers two.
    """

    def __init__(self) -> None:
        self._last = ""
        self._decimal = 0  # the level of the decimal number before

    def heading(self, level: int, spans: tuple[Span, ...]) -> Iterator[Block]:
        """None without text."""
        if spans:
            number, rest = _number(spans) if level > 1 else ("", spans)
            self._decimal = _depth(number)
            yield Block("heading", rest, level - 1, number) if level > 1 else Block("title", spans)

    def paragraph(self, spans: tuple[Span, ...], lists: int) -> Block:
        number, rest = _number(spans)
        if not number or not rest:
            return Block("paragraph", spans, lists)
        last, self._last = self._last, number
        if number[0] != "(":
            self._decimal = _depth(number)
            return Block("clause", rest, self._decimal, number)
        letter = len(number) == len(last) == len("(i)") and ord(number[1]) == ord(last[1]) + 1
        return Block("clause", rest, self._decimal + (2 if ROMAN.fullmatch(number) and not letter else 1), number)


def _depth(number: str) -> int:
    """The level of a decimal number: 0 for 1. and 1.1, 1 for 1.1.1"""
    return max(number.rstrip(".").count(".") - 1, 0)


def _number(spans: tuple[Span, ...]) -> tuple[str, tuple[Span, ...]]:
    """The number that the text begins with, and the rest of it."""
    first = spans[0] if spans else Span("")
    match = NUMBER.match(first.text)
    whole = match is not None and match.end() == len(first.text)
    if match is None or first.code or (whole and not first.text.endswith(" ") and not _spaced(spans)):
        return "", spans
    rest = first.text[match.end() :]
    following = spans[1:]
    if not rest and following:
        following = (_with_text(following[0], following[0].text.lstrip()), *following[1:])
    return match[1], ((_with_text(first, rest), *following) if rest else following)


def _spaced(spans: tuple[Span, ...]) -> bool:
    return len(spans) > 1 and spans[1].text[:1].isspace()


def _with_text(span: Span, text: str) -> Span:
    return Span(text, span.bold, span.italic, span.code)


def _code(text: str) -> Iterator[Block]:
    if text:
        yield Block("code", (Span(text, code=True),))


def _rule(markup: str) -> Block:
    """A rule; of underscores, a line to sign on, for which the parser counts one more than there are."""
    return Block("paragraph", (Span(markup[1:]),)) if markup.startswith("_") else Block("rule")


class _Text:
    """Spans out of the tokens of a paragraph; neighbours of one style become one span."""

    def __init__(self, line_end: str) -> None:
        self._pieces: list[str] = []
        self._styles: list[tuple[int, tuple[bool, bool, bool]]] = []  # the first piece of each span; its style
        self._line_end = line_end  # of a line that ends without a mark
        self._bold = self._italic = 0
        self._link = ""

    def take(self, token: "Token") -> None:
        match token.type:
            case "text" | "text_special" | "image":
                self._add(token.content)
            case "code_inline":
                self._add(token.content, code=True)
            case "softbreak":
                self._add(self._line_end)
            case "hardbreak":
                self._add("\n")
            case "strong_open" | "strong_close":
                self._bold += token.nesting
            case "em_open" | "em_close":
                self._italic += token.nesting
            case "link_open":
                self._link = str(token.attrGet("href") or "")
            case "link_close" if self._link and not self._ends_with(self._link):
                self._add(f" ({self._link})")

    def spans(self) -> tuple[Span, ...]:
        ends = [*(start for start, _ in self._styles), len(self._pieces)][1:]
        return tuple(
            Span("".join(self._pieces[start:end]), *style)
            for (start, style), end in zip(self._styles, ends, strict=True)
        )

    def _add(self, text: str, *, code: bool = False) -> None:
        style = bool(self._bold), bool(self._italic), code
        if text:
            if not self._styles or self._styles[-1][1] != style:
                self._styles.append((len(self._pieces), style))
            self._pieces.append(text)

    def _ends_with(self, link: str) -> bool:
        missing, last = len(link), []
        for piece in reversed(self._pieces):
            last.append(piece)
            missing -= len(piece)
            if missing <= 0:
                break
        return "".join(reversed(last)).endswith(link)
