"""markdown-it, set up for legal documents, with its amplifiers bounded before anything is built.

No text makes more than a few tokens for each of its characters, and none of it is left out:

- A row with fewer cells than the head is filled up with empty ones, as many in all as the table has characters. The
  rows behind them are text. markdown-it would fill up 65,536 cells.
- Cells beyond the head's last column belong to the last cell. markdown-it would drop them.
- Quotations and lists below DEEPEST are text. markdown-it would drop what is below its own limit.

Inline text is not parsed here, but by `inline`, when a block is made of it: the tokens of one paragraph are in memory,
and not those of all.
"""

from collections.abc import Callable
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.common.utils import mdTrim
from markdown_it.parser_block import RuleFuncBlockType
from markdown_it.rules_block import StateBlock, blockquote, list_block
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_block.table import table as markdown_table
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

DEEPEST = 18  # levels, of which a quotation is one and a list is two. markdown-it stops at 20.
TABLE = "table"  # the type of the one token of a table; its `meta` has `rows` and `aligned`

Count = Callable[[int], None]
"""Is told how many tokens or cells are about to be made, and raises if they are too many."""


class Tokens(list[Token]):
    """Tokens that are counted as they are made."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def append(self, token: Token) -> None:
        self._count(1)
        super().append(token)


def parse(text: str, count: Count) -> list[Token]:
    """The tokens of the blocks; the content of an `inline` one is still to be given to `inline`."""
    state = StateCore(text, _parser(), {"count": count})
    state.tokens = Tokens(count)
    _parser().core.process(state)
    return state.tokens


def inline(text: str, count: Count) -> list[Token]:
    """The tokens of a paragraph's text."""
    return _parser().inline.parse(text, _parser(), {}, Tokens(count))


@cache
def _parser() -> MarkdownIt:
    # Nothing of a document is HTML, a link's definition or a setext heading: a line above "---" is a line to sign on.
    # A line that is indented by four spaces is no program, but a clause of a clause.
    parser = MarkdownIt("commonmark").enable("table")
    parser.disable(["html_block", "html_inline", "reference", "lheading", "code", "inline", "text_join"])
    block = parser.block.ruler
    block.at("table", _table, {"alt": ["paragraph", "reference"]})
    block.at("blockquote", _down_to_deepest(blockquote), {"alt": ["paragraph", "reference", "blockquote", "list"]})
    block.at("list", _down_to_deepest(list_block), {"alt": ["paragraph", "reference", "blockquote"]})
    return parser


def _down_to_deepest(rule: RuleFuncBlockType) -> RuleFuncBlockType:
    def bounded(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001  # markdown-it's form
        return state.level < DEEPEST and rule(state, start, end, silent)

    return bounded


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001  # markdown-it's form
    if not markdown_table(state, start, end, True):  # whether a head begins here
        return False
    if silent:
        return True
    parent, state.parentType = state.parentType, "table"
    ends = state.md.block.ruler.getRules("blockquote")  # as in markdown-it
    head = _cells(getLine(state, start))
    rows, filled_up = [head], 0
    characters = len(getLine(state, start)) + len(getLine(state, start + 1))
    state.env["count"](len(head))
    line = start + 2
    while line < end and state.sCount[line] >= state.blkIndent and not state.is_code_block(line):
        text = getLine(state, line)
        if not mdTrim(text) or any(rule(state, line, end, True) for rule in ends):  # likewise
            break
        cells = _cells(text)
        characters += len(text)
        filled_up += max(len(head) - len(cells), 0)
        if filled_up > characters:
            break
        state.env["count"](len(head))
        rows.append(_as_wide(cells, len(head)))
        line += 1
    state.parentType = parent
    token = state.push(TABLE, "table", 0)
    token.map = [start, line]
    token.meta = {"rows": rows, "aligned": [_aligned(cell) for cell in _cells(getLine(state, start + 1))]}
    state.line = line
    return True


def _cells(line: str) -> list[str]:
    cells = escapedSplit(mdTrim(line))
    if cells and not cells[0]:
        cells = cells[1:]
    if cells and not cells[-1]:
        cells = cells[:-1]
    return [mdTrim(cell) for cell in cells]


def _as_wide(cells: list[str], columns: int) -> list[str]:
    more = " | ".join(cell for cell in cells[columns:] if cell)
    row = [*cells[:columns], *[""] * (columns - len(cells))]
    return [*row[:-1], " | ".join((row[-1], more))] if more else row


def _aligned(rule: str) -> str:
    if not rule.endswith(":"):
        return "left"
    return "center" if rule.startswith(":") else "right"
