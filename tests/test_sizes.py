"""The rule of sizes (documents/markdown.py): parts, text and work grow with a text as a straight line, and none is lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_alignment import lines_run
from test_manuscript import said

from documents.markdown import PARTS_A_CHARACTER, Block, Room, TooManyParts, blocks

TEXT_A_CHARACTER = 16  # an emoji in a link's address is twelve characters of percent-encoding, and a number is added

# What markdown-it or a reader of its tokens might make much of, each to be repeated.
AMPLIFIERS = (
    "[", "![", "[a](", "[a](b) ", "[a](<b", "](", "<http://a", "<http://a.b>", "<a@b.c>", "*a ", "**a", "_a_ ", "***a*b_",
    "*", "__", "`", "``a`b", "&", "&amp;", "&#1", "&#x1F600;", "\\", "\\\n", "<", "<!--", "<a>", "!", "a", "a\n", "a  \n",
    "a.\n1.1 b", "and\n(a) b\n", "> ", ">a\n", "> a\n\n", "- ", "- a\n", "- a\n  - b\n", "1. a\n", "1. ", "# a\n", "#", "```\n",
    "---\n", "___\n", "|", "|a|b\n", "a|b\n-|-\n", "|a|\n|-|\n", "\n", " \n", "\t- a\n", "[a]: b\n", "[a]:\n", "😀", "[a](<😀>) ",
    ">" * 30 + "a\n", "- " * 30 + "a\n", "1. " * 30 + "a\n", "* > " * 12 + "a\n",
)  # fmt: skip


def table(columns: int, rows: int) -> str:
    return "|" + "a|" * columns + "\n|" + "-|" * columns + "\n" + "b\n" * rows + "\n"


def parts(found: list[Block]) -> int:
    return sum(1 + sum(map(len, block.rows)) + sum(map(len, block.texts)) for block in found)


def check(text: str) -> None:
    found = blocks(text)
    assert parts(found) <= PARTS_A_CHARACTER * (len(text) + 1)
    assert len(said(found)) <= TEXT_A_CHARACTER * (len(text) + 1)


def work_of(text: str) -> int:
    """In lines of Python, the parser's and ours."""
    return lines_run(lambda: blocks(text), (".py",))


@pytest.mark.parametrize("amplifier", AMPLIFIERS)
def test_whatever_is_repeated_makes_no_more_of_it_than_there_is(amplifier: str) -> None:
    once, twice = (amplifier * (size // len(amplifier)) for size in (1500, 3000))
    check(once)
    work = work_of(once)
    assert work_of(twice) < 2.5 * work + 2000
    assert work < 1000 * (len(once) + 100), "each bracket is looked behind once for each level of nesting"


@given(st.lists(st.tuples(st.sampled_from(AMPLIFIERS), st.integers(1, 12)), max_size=12))
def test_so_it_is_for_what_is_put_together(pieces: list[tuple[str, int]]) -> None:
    check("".join(piece * times for piece, times in pieces))


@pytest.mark.parametrize(("columns", "rows"), [(250, 250), (1000, 40), (3, 2000), (2, 5), (40, 1)])
def test_a_table_has_no_more_cells_than_characters_and_its_last_rows_are_text(columns: int, rows: int) -> None:
    text = table(columns, rows)
    found = blocks(text)
    cells = sum(len(row) for block in found for row in block.rows)
    assert cells <= 2 * len(text)
    assert said(found).count("a") == columns
    assert said(found).count("b") == rows
    assert work_of(text * 2) < 2.5 * work_of(text)


def test_an_ordinary_table_with_short_rows_is_a_table() -> None:
    head = "| Item | Price | Tax | Sum | Note |\n|---|---|---|---|---|\n"
    [found] = blocks(f"{head}| Apples |\n| Nuts | 5 |\n|\n| Pears |")
    assert [len(row) for row in found.rows] == [5] * 5


def test_cells_beyond_the_last_column_are_text_of_its_cell() -> None:
    [found] = blocks("| A | B |\n|---|---|\n| 1 | 2 | 3 | | the fee |\n| 4 | 5 | |")
    assert [["".join(span.text for span in cell) for cell in row] for row in found.rows] == [
        ["A", "B"], ["1", "2 | 3 | the fee"], ["4", "5"]
    ]  # fmt: skip


@pytest.mark.parametrize("mark", ["> ", "- ", "1. ", "* > ", "> - "])
def test_no_depth_hides_a_text(mark: str) -> None:
    for depth in range(1, 60):
        assert said(blocks(mark * depth + "hidden")).endswith("hidden")


@given(st.text(st.sampled_from("ab >-*|1.\n"), max_size=80))
def test_no_letter_of_a_table_or_of_a_deep_quotation_is_lost(text: str) -> None:
    assert re.findall("[ab]", said(blocks(text))) == re.findall("[ab]", text)


@pytest.mark.parametrize("text", ["a\n\n" * 50, "- a\n" * 50, "a|b\n-|-\n" + "c|d\n" * 50, "*a* " * 50])
def test_the_parts_are_counted_before_they_are_all_made(text: str) -> None:
    with pytest.raises(TooManyParts):
        blocks(text, Room(40))
    room = Room(10_000)
    found = blocks(text, room)
    assert room.parts == 10_000 - parts(found)


def test_the_parser_makes_no_more_tokens_than_there_is_room_for() -> None:
    """It would otherwise make all of them, before there is the first part."""
    counted: list[int] = []

    class Counting(Room):
        def count_tokens(self, tokens: int) -> None:
            counted.append(tokens)
            super().count_tokens(tokens)

    with pytest.raises(TooManyParts):
        blocks("- a\n" * 100_000, Counting(100))
    assert sum(counted) < 1100
