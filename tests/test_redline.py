"""The redline: to accept it is the new version, to reject it the old one; and it shows changes as a lawyer would mark them."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_alignment import lines_run

from documents.markdown import Block, Mark, blocks
from documents.redline import EFFORT, Spans, block_json, count_words, mark_of, redline
from documents.redline_page import page

# ---------------------------------------------------------------------------------------------------------------
# Both versions can be had from it


def taken(marked: Iterable[Block], gone: Mark) -> list[Block]:
    """All changes accepted (without the deleted text) or rejected (without the inserted text)."""
    return [without(block, gone) for block in marked if block.mark != gone]


def without(block: Block, gone: Mark) -> Block:
    number = block.old_number if gone == "inserted" and block.old_number is not None else block.number
    rows = tuple(tuple(left(cell, gone) for cell in row) for row in block.rows if mark_of(row) != gone)
    return replace(block, mark="kept", number=number, old_number=None, spans=left(block.spans, gone), rows=rows)


def left(spans: Spans, gone: Mark) -> Spans:
    kept = (replace(span, mark="kept") for span in spans if span.mark != gone and span.text)
    runs = groupby(kept, lambda span: replace(span, text=""))
    return tuple(replace(style, text="".join(span.text for span in run)) for style, run in runs)


def check(old: str, new: str) -> list[Block]:
    marked = redline(old, new)
    assert taken(marked, "deleted") == blocks(new)
    assert taken(marked, "inserted") == blocks(old)
    for block in marked:
        cells = [block.spans, *(cell for row in block.rows for cell in row)]
        if block.mark != "kept":
            assert {span.mark for cell in cells for span in cell} <= {block.mark}
            assert all(mark_of(row) == block.mark for row in block.rows)
    return marked


SAMPLE = [
    "the",
    "Party",
    "shall",
    "pay",
    "$1,000.50",
    "(30)",
    "**days**",
    "*and*",
    "`x`",
    "Seller’s",
    ",",
    ".",
    "term",
    "乙方",
]
words = st.lists(st.sampled_from(SAMPLE), max_size=12)
lines = words.map(" ".join)
paragraphs = st.one_of(
    lines,
    st.builds(
        "{} {}".format,
        st.sampled_from(["#", "##", "###", "## 1.", "## 2.", "1.1", "1.2", "(a)", "(b)", "-", "1.", ">"]),
        lines,
    ),
    st.lists(lines, min_size=2, max_size=3).map("  \n".join),
    st.lists(st.tuples(words, words), min_size=1, max_size=5).map(
        lambda rows: "\n".join(
            f"| {' '.join(a)} | {' '.join(b)} |" + ("" if number else "\n|---|---|")
            for number, (a, b) in enumerate(rows)
        )
    ),
    st.sampled_from(["---", "```\ncode\nof two lines\n```", "Signature: ______\nName: [name]\nDate: [date]"]),
)
documents = st.lists(paragraphs, max_size=8).map("\n\n".join)


@given(documents, documents)
def test_to_accept_it_is_the_new_version_and_to_reject_it_the_old_one(old: str, new: str) -> None:
    check(old, new)


@given(
    st.text(alphabet="ab \n#|-*_`(1.)[]>\\<&乙\u0301", max_size=80),
    st.text(alphabet="ab \n#|-*_`(1.)[]>\\<&乙\u0301", max_size=80),
)
@example("| a |\n|---|\n| |", "| a |\n|---|\n| b |")
@example("| a | b |\n|---|---|\n| long words | |", "| a | b |\n|---|---|\n| | long words |")
@example("# T", "## T")
def test_so_it_is_for_any_text(old: str, new: str) -> None:
    check(old, new)


@given(documents, st.data())
def test_so_it_is_for_what_was_edited_a_little(old: str, data: st.DataObject) -> None:
    pieces = re.split(r"( )", old)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(pieces)))
        pieces[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([["other"], ["a", " ", "b"], [], ["\n\n"]])
        )
    check(old, "".join(pieces))


@given(documents)
def test_the_same_version_has_no_marks(text: str) -> None:
    assert redline(text, text) == blocks(text)


# ---------------------------------------------------------------------------------------------------------------
# The marks


def shown(spans: Spans) -> str:
    form = {"kept": "{}", "inserted": "{{+{}+}}", "deleted": "[-{}-]"}
    return "".join(form[span.mark].format(span.text) for span in spans)


def lines_of(old: str, new: str) -> list[str]:
    return [
        {"kept": "", "inserted": "+ ", "deleted": "- "}[block.mark] + shown(block.spans) for block in check(old, new)
    ]


@pytest.mark.parametrize(
    ("old", "new", "marked"),
    [
        ("The Seller shall pay.", "The Buyer shall pay.", "The [-Seller-]{+Buyer+} shall pay."),
        ("The Party.", "The Party and its agents.", "The Party{+ and its agents+}."),
        ("pay $1,000.50 now", "pay $1,000.75 now", "pay $[-1,000.50-]{+1,000.75+} now"),
        ("within thirty (30) days", "within sixty (60) days", "within [-thirty (30)-]{+sixty (60)+} days"),
        ("as of [Effective Date] here", "as of 1 May 2027 here", "as of [-[Effective Date]-]{+1 May 2027+} here"),
        ("the Seller’s duty ends", "the Buyer’s duty ends", "the [-Seller’s-]{+Buyer’s+} duty ends"),
        # A comma alone between two changes is read as a part of them; the word of a kept phrase is not.
        ("if A, B and Cees do", "if X, Y and Cees do", "if [-A, B-]{+X, Y+} and Cees do"),
        ("the Receiving Party may act", "the Disclosing Party must act", "the [-Receiving-]{+Disclosing+} Party [-may-]{+must+} act"),
        ("甲方应当在三十日内付款。", "甲方应当在六十日内付款。", "甲方应当在[-三-]{+六+}十日内付款。"),
        ("a word in **bold** type", "a word in bold type", "a word in [-bold-]{+bold+} type"),
        ("Name: [name]  \nTitle: [title]", "Name: Jo  \nTitle: CEO", "Name: [-[name]-]{+Jo+}\nTitle: [-[title]-]{+CEO+}"),
    ],
)  # fmt: skip
def test_changes_are_marked_by_words(old: str, new: str, marked: str) -> None:
    assert lines_of(old, new) == [marked]


def test_a_new_clause_is_inserted_and_the_others_only_change_their_number() -> None:
    old = "## 1. Purpose\n\nAs agreed.\n\n## 2. Term\n\nTwo years.\n\n## 3. Law\n\nDelaware."
    new = "## 1. Purpose\n\nAs agreed.\n\n## 2. Notices\n\nIn writing.\n\n## 3. Term\n\nTwo years.\n\n## 4. Law\n\nDelaware."
    marked = check(old, new)
    assert [(block.old_number, block.number, block.mark) for block in marked if block.number] == [
        (None, "1.", "kept"),
        (None, "2.", "inserted"),
        ("2.", "3.", "kept"),
        ("3.", "4.", "kept"),
    ]
    assert (count_words(marked, "inserted"), count_words(marked, "deleted")) == (3, 0)


def test_of_a_paragraph_of_which_little_stayed_both_are_shown_whole() -> None:
    old = "The Receiving Party shall keep the information in confidence."
    new = "This Agreement is governed by the laws of the State of Delaware."
    assert lines_of(old, new) == [f"- [-{old}-]", f"+ {{+{new}+}}"]


def test_a_paragraph_that_became_a_part_of_another_shows_what_came_or_went() -> None:
    old, more = (
        "(each a Party and together the Parties).",
        "Each Party is the Disclosing Party for what it discloses, and the other the Receiving Party.",
    )
    assert lines_of(old, f"{old} {more}") == [f"{old}{{+ {more}+}}"]
    assert lines_of(f"{old} {more}", old) == [f"{old}[- {more}-]"]


def test_what_moved_is_deleted_and_inserted() -> None:
    first, second, third = (
        f"The {name} paragraph is about {name} things alone." for name in ("first", "second", "third")
    )
    old, new = f"{first}\n\n{second}\n\n{third}", f"{third}\n\n{first}\n\n{second}"
    assert lines_of(old, new) == [f"+ {{+{third}+}}", first, second, f"- [-{third}-]"]


def test_each_of_many_like_paragraphs_goes_with_its_own() -> None:
    def version(word: str) -> str:
        return "\n\n".join(f"Milestone {n}: the {word} pays {n}00 on the first day of month {n}." for n in range(60))

    marked = check(version("Seller"), version("Buyer"))
    assert [shown(block.spans).count("[-Seller-]{+Buyer+}") for block in marked] == [1] * 60


def test_rows_and_cells_of_a_table() -> None:
    head = "| Item | Price |\n|---|---|\n"
    [table] = check(
        f"{head}| Apples | 10 |\n| Nuts | 5 |\n| Pears | |", f"{head}| Apples | 12 |\n| Pears | |\n| Plums | |"
    )
    assert [(mark_of(row), [shown(cell) for cell in row]) for row in table.rows] == [
        ("kept", ["Item", "Price"]),
        ("kept", ["Apples", "[-10-]{+12+}"]),
        ("deleted", ["[-Nuts-]", "[-5-]"]),
        ("kept", ["Pears", ""]),
        ("inserted", ["{+Plums+}", "{++}"]),
    ]
    assert block_json(table)["rows"][4] == {
        "mark": "inserted",
        "cells": [[{"text": "Plums", "mark": "inserted", "bold": False, "italic": False, "code": False}], []],
    }


# ---------------------------------------------------------------------------------------------------------------
# The effort


COMMON_WORDS = ("the", "of", "and", "to")


def long_document(word: Callable[[int], str]) -> str:
    """100 paragraphs of 60 words."""
    return "\n\n".join(" ".join(word(60 * n + i) for i in range(60)) for n in range(100))


def test_many_changes_that_are_read_as_one_are_joined_in_a_straight_line() -> None:
    def work(size: int) -> int:
        before = "[a](b) " * size
        return lines_run(lambda: redline(before, before[::2]), ("redline.py",))

    assert work(2000) < 2.5 * work(1000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda n: f"a{n}", lambda n: f"b{n}"),
        (lambda n: f"a{n}", lambda n: f"a{5999 - n}"),
        (lambda n: COMMON_WORDS[n * n % 4], lambda n: COMMON_WORDS[n * n * n % 7 % 4]),
        (lambda n: "ab"[n % 2], lambda n: "bac"[n % 3]),
        (lambda n: "aab"[n % 3], lambda n: "aba"[n % 3] if n % 97 else "c"),
        (lambda n: "x" if n * n % 7 < 3 else "y", lambda n: "y" if n * n % 11 < 5 else "x"),
    ],
    ids=["nothing in common", "reversed", "four words", "by turns", "nearly by turns", "two words"],
)
def test_versions_with_little_in_common_take_no_more_than_their_effort(
    old: Callable[[int], str], new: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = long_document(old), long_document(new)
    monkeypatch.setattr("documents.redline.EFFORT", 20_000)
    assert lines_run(lambda: redline(before, after)) < 20 * (20_000 + 12_000)  # the effort, and twice 6,000 words
    assert EFFORT <= 2_000_000
    check(before, after)


# ---------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_has_each_change_and_escapes_all_text() -> None:
    hostile = "</style><script>alert(1)</script> & <b>x</b>"
    old, new = f"# T\n\n{hostile}\n\n1.1 The Seller pays.", '# T\n\n"quoted" & `<i>`\n\n1.2 The Buyer pays.'
    text = page(hostile, "version 1 to version 2", redline(old, new), [hostile])
    assert text.count("<script") == 0
    assert text.count("</style>") == 1
    assert "<b>" not in text
    assert "<del>1.1</del><ins>1.2</ins> </span>The <del>Seller</del><ins>Buyer</ins> pays." in text
    assert "<ins>&quot;quoted&quot; &amp; <code>&lt;i&gt;</code></ins>" in text


def test_the_page_counts_words_and_says_when_nothing_changed() -> None:
    assert "<ins>3 words inserted</ins>, <del>1 word deleted</del>" in page(
        "T", "v", redline("The Party is one.", "The Party is two or three.")
    )
    assert "no change" in page("T", "v", redline("one", "one"))
