"""A document's Markdown as blocks: whatever a model writes, no text is lost, and a clause has its number."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from documents.markdown import Block, Span, blocks
from drafting.offline.agreement import Terms, render
from drafting.offline.lengths import Length


def plain(*texts: str) -> tuple[Span, ...]:
    return tuple(Span(text) for text in texts)


def test_a_legal_document() -> None:
    assert blocks(
        "# Lease\n\nBetween **A** and *B*:\n\n## 1. Term\n\n1.1 One `year`.\n\n(a) first;\n\n(h) eighth;\n\n(i) ninth.\n\n"
        "1.2 Then:\n\n(i) roman.\n\n2.1.1 Deep.\n"
    ) == [
        Block("title", plain("Lease")),
        Block("paragraph", (Span("Between "), Span("A", bold=True), Span(" and "), Span("B", italic=True), Span(":"))),
        Block("heading", plain("Term"), 1, "1."),
        Block("clause", (Span("One "), Span("year", code=True), Span(".")), 0, "1.1"),
        Block("clause", plain("first;"), 1, "(a)"),
        Block("clause", plain("eighth;"), 1, "(h)"),
        Block("clause", plain("ninth."), 1, "(i)"),
        Block("clause", plain("Then:"), 0, "1.2"),
        Block("clause", plain("roman."), 2, "(i)"),
        Block("clause", plain("Deep."), 1, "2.1.1"),
    ]


def test_lists_tables_code_and_rules() -> None:
    assert blocks(
        "3. c\n4. d\n   - e\n\n   f\n\n| A | B |\n|---|--:|\n| **x** | |\n\n```\ncode\n```\n\n---\n\nEnd"
    ) == [
        Block("item", plain("c"), 0, "3."),
        Block("item", plain("d"), 0, "4."),
        Block("item", plain("e"), 1),
        Block("paragraph", plain("f"), 1),
        Block("table", rows=((plain("A"), plain("B")), ((Span("x", bold=True),), ())), aligned=("left", "right")),
        Block("code", (Span("code", code=True),)),
        Block("rule"),
        Block("paragraph", plain("End")),
    ]


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("one\ntwo", "one two"),
        ("one  \ntwo", "one\ntwo"),
        ("one\\\ntwo", "one\ntwo"),
        ("By: ____\nName: [Name]\nTitle:", "By: ____\nName: [Name]\nTitle:"),
        ("__________", "__________"),
        ("[Company Name] pays", "[Company Name] pays"),
        ("[Company](https://a.example)", "Company (https://a.example)"),
        ("<script>alert(1)</script> & <b>", "<script>alert(1)</script> & <b>"),
        ("(each a Party)", "(each a Party)"),
        ("1990 was a year", "1990 was a year"),
        ("*[a]: b", "*[a]: b"),
        ("Signed\n---", "Signed"),
    ],
)
def test_a_paragraph_keeps_its_text(markdown: str, text: str) -> None:
    first = blocks(markdown)[0]
    assert first.kind == "paragraph"
    assert "".join(span.text for span in first.spans) == text


def test_a_number_in_bold_is_a_number() -> None:
    assert blocks("**1.1** The Term") == [Block("clause", plain("The Term"), 0, "1.1")]
    assert blocks("**1.1 Term.** One year") == [
        Block("clause", (Span("Term.", bold=True), Span(" One year")), 0, "1.1")
    ]


def outline(markdown: str) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, block.number) for block in blocks(markdown)]


@pytest.mark.parametrize(
    ("markdown", "numbers"),
    [
        ("It means:\n(a) one;\n(b) two; and\n(c) three.", ["", "(a)", "(b)", "(c)"]),
        ("1.1 One.\n1.2 Two:\n    (a) set in,\n    (b) set in.\n2. Three.", ["1.1", "1.2", "(a)", "(b)", "2."]),
        ("**1. Fees**\n**1.1** The Client pays.  \n**1.2** Soon.\\\n1.3 Then.", ["1.", "1.1", "1.2", "1.3"]),
        ("1. First:\n   1.1 in it;\n   (a) in that.", ["1.", "1.1", "(a)"]),
        ("1.1 Two:\n\n    (a) set in by four spaces;\n\n\t(b) or a tab.", ["1.1", "(a)", "(b)"]),
        ("1.1 As Clause\n1.2 and Clauses 1.3,\n1.4 and the year\n2030 say, in paragraph\n(a) above", ["1.1"]),
        ("```\nIt means;\n(a) one\n```", [""]),
    ],
)
def test_a_clause_needs_no_empty_line_above_it(markdown: str, numbers: list[str]) -> None:
    assert [block.number for block in blocks(markdown)] == numbers
    assert words(said(blocks(markdown))) == words(markdown)


def test_letters_stand_below_the_number_before_them() -> None:
    assert outline("1.1.1 Deep:\n\n(a) a\n\n(i) i\n\n## 2. Next\n\n(a) a\n\n(u) u\n\n(v) v\n\n(iv) iv\n\n(v) v") == [
        ("clause", 1, "1.1.1"),
        ("clause", 2, "(a)"),
        ("clause", 3, "(i)"),
        ("heading", 1, "2."),
        ("clause", 1, "(a)"),
        ("clause", 1, "(u)"),
        ("clause", 1, "(v)"),
        ("clause", 2, "(iv)"),
        ("clause", 2, "(v)"),
    ]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def said(found: list[Block]) -> str:
    return " ".join(
        " ".join(
            (block.number, *("".join(span.text for span in spans) for spans in (block.spans, *sum(block.rows, ()))))
        )
        for block in found
    )


def test_the_whole_of_a_real_document_is_there() -> None:
    for deal in (Terms(), Terms(mutual=True, term=Length(years=2), law="Texas")):
        draft = render(deal)
        found = blocks(draft)
        assert words(said(found)) == words(draft)
        assert {block.kind for block in found} == {"title", "heading", "clause", "paragraph"}
        assert [block.number for block in found if block.kind == "heading"] == [f"{n}." for n in range(1, 11 + 1)][
            : sum(block.kind == "heading" for block in found)
        ]


@given(st.text(st.sampled_from("ab. ()*_#->\n\\[]<&"), max_size=60))
def test_no_letter_is_lost_or_made_up(markdown: str) -> None:
    found = blocks(markdown)
    if "](" not in markdown:  # a link whose text is its address has it once
        assert re.findall("[ab]", said(found)) == re.findall("[ab]", markdown)
    assert all(block.kind in {"table", "rule"} or block.spans for block in found)


@given(st.text(max_size=200))
def test_any_text_is_read_as_markdown_without_an_error(markdown: str) -> None:
    blocks(markdown)
