"""A document's Markdown as the paragraphs of a legal document: titles, headings, numbered clauses, tables. Pure.

Every format that a document is exported to, and the comparison of two versions, goes by these blocks.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

Mark = Literal["kept", "inserted", "deleted"]
Align = Literal["left", "center", "right"]
Kind = Literal["title", "heading", "paragraph", "clause", "item", "table", "code", "rule"]

# What stands before a clause: 1.  1.2  1.2.3  (a)  (iv)  (1)
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

    `level`: of a heading, 1 to 6 below the title; of a clause or an item, its depth from 0; of a paragraph, in how many
    items of lists it stands. `number` is as written, "" without one. `rows` are those of a table, the first one its
    head; each is its cells, each cell its spans; `aligned` says how each column is. `mark` is that of the whole
    paragraph, and `old_number` the number that a changed one had before.
    """

    kind: Kind
    spans: tuple[Span, ...] = ()
    level: int = 0
    number: str = ""
    rows: tuple[tuple[tuple[Span, ...], ...], ...] = ()
    mark: Mark = "kept"
    old_number: str | None = None
    aligned: tuple[Align, ...] = ()


def blocks(markdown: str) -> list[Block]:
    """The document's blocks, in order."""
    return list(_blocks(_parser().parse(markdown)))


@cache
def _parser() -> "MarkdownIt":
    # Imported here, as a service that nobody asks for a file does not need it to start.
    from markdown_it import MarkdownIt  # noqa: PLC0415  # see above

    # Nothing of a document is HTML, a link's definition or a setext heading: a line above "---" is a line to sign on.
    # What is set in by four spaces is no program, but a clause of a clause.
    return (
        MarkdownIt("commonmark").enable("table").disable(["html_block", "html_inline", "reference", "lheading", "code"])
    )


def _blocks(tokens: Sequence["Token"]) -> Iterator[Block]:
    lists: list[int | None] = []  # the lists that are open: the number of the next item, None for bullets
    fresh = False  # an item has just begun: its number belongs to what comes next
    clauses = _Clauses()
    place = 0
    while place < len(tokens):
        token = tokens[place]
        match token.type:
            case "bullet_list_open":
                lists.append(None)
            case "ordered_list_open":
                lists.append(int(token.attrGet("start") or 1))
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "list_item_open":
                fresh = True
            case "heading_open":
                if spans := _spans(tokens[place + 1]):
                    yield clauses.heading(int(token.tag[1:]), spans)
                place += 2
            case "paragraph_open":
                for spans in _paragraphs(tokens[place + 1]):
                    if fresh and lists:
                        yield Block("item", spans, len(lists) - 1, _next_number(lists))
                        fresh = False
                    elif spans:
                        yield clauses.paragraph(spans, len(lists))
                place += 2
            case "fence":
                if text := token.content.rstrip("\n"):
                    yield Block("code", (Span(text, code=True),))
            case "hr" if token.markup.startswith("_"):
                yield Block("paragraph", (Span(token.markup[1:]),))  # a line to sign on; the parser counts one more
            case "hr":
                yield Block("rule")
            case "table_open":
                end = next(at for at in range(place, len(tokens)) if tokens[at].type == "table_close")
                yield Block("table", rows=tuple(_rows(tokens[place:end])), aligned=tuple(_aligned(tokens[place:end])))
                place = end
        place += 1


def _next_number(lists: list[int | None]) -> str:
    number = lists[-1]
    if number is None:
        return ""
    lists[-1] = number + 1
    return f"{number}."


class _Clauses:
    """Paragraphs that begin with a number. "(i)" is a letter behind "(h)", and the first roman number elsewhere.

    Letters stand one level below the decimal number before them, roman numbers two.
    """

    def __init__(self) -> None:
        self._last = ""
        self._decimal = 0  # the level of the decimal number before

    def heading(self, level: int, spans: tuple[Span, ...]) -> Block:
        number, rest = _number(spans) if level > 1 else ("", spans)
        self._decimal = _depth(number)
        return Block("heading", rest, level - 1, number) if level > 1 else Block("title", spans)

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


def _rows(tokens: Sequence["Token"]) -> Iterator[tuple[tuple[Span, ...], ...]]:
    row: list[tuple[Span, ...]] = []
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append(_spans(token))
        elif token.type == "tr_close":
            yield tuple(row)


def _aligned(tokens: Sequence["Token"]) -> Iterator[Align]:
    for token in tokens:
        if token.type == "th_open":
            match token.attrGet("style"):
                case "text-align:center":
                    yield "center"
                case "text-align:right":
                    yield "right"
                case _:
                    yield "left"


def _paragraphs(inline: "Token") -> Iterator[tuple[Span, ...]]:
    """A paragraph's spans, or those of the clauses that stand in it line by line."""
    lines = NEXT_CLAUSE.split(inline.content)
    if len(lines) == 1:
        yield _spans(inline)
        return
    for line in lines:
        yield _spans(_parser().parseInline(line)[0])


def _spans(inline: "Token") -> tuple[Span, ...]:
    """An inline token's text by style, neighbours of one style together."""
    spans: list[Span] = []
    bold = italic = 0
    link = ""
    # A line that is to be filled in stands by itself, and so does what is written above and below it.
    form = BLANK_TO_FILL in inline.content

    def add(text: str, *, code: bool = False) -> None:
        style = (bool(bold), bool(italic), code)
        if spans and (spans[-1].bold, spans[-1].italic, spans[-1].code) == style:
            text = spans.pop().text + text
        if text:
            spans.append(Span(text, *style))

    for token in inline.children or ():
        match token.type:
            case "text":
                add(token.content)
            case "code_inline":
                add(token.content, code=True)
            case "softbreak":
                add("\n" if form else " ")
            case "hardbreak":
                add("\n")
            case "strong_open" | "strong_close":
                bold += 1 if token.type == "strong_open" else -1
            case "em_open" | "em_close":
                italic += 1 if token.type == "em_open" else -1
            case "link_open":
                link = str(token.attrGet("href") or "")
            case "link_close":
                add(f" ({link})" if link and not "".join(span.text for span in spans).endswith(link) else "")
            case "image":
                add(token.content)
    return tuple(spans)
