"""Characters that nobody sees: which are shown by a label, and which stay because a script or an emoji needs them."""

import io
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import ROOT
from docx import Document
from hypothesis import given
from hypothesis import strategies as st
from test_docx_file import pdf_text
from test_redline import check

from documents import files
from documents.hidden import HIDDEN, KEPT, SPACE_LIKE, shown
from documents.markdown import blocks
from documents.redline import block_json, count_words, redline
from documents.redline_page import page

# Default_Ignorable_Code_Point of Unicode 17 (DerivedCoreProperties.txt).
IGNORABLE = {
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x180B, 0x1810), *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE1000),
}  # fmt: skip
# Of category Cf, and yet to be seen: signs above numbers, and an abbreviation's line.
SEEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}


def hides(code: int) -> bool:
    character = chr(code)
    if character in "\t\n" or code in SEEN:
        return False
    noncharacter = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} or code in IGNORABLE or noncharacter


def test_each_code_point_of_unicode_that_hides_is_shown_by_its_number() -> None:
    for code in range(0x110000):
        alone = shown(chr(code))
        if alone != chr(code):
            assert alone == f"⟦U+{code:04X}⟧"
            # What an older Python does not know yet has no category.
            assert hides(code) or unicodedata.category(chr(code)) == "Cn", hex(code)
        else:
            assert not hides(code), hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "می‌خواهم این قرارداد را می‌پذیریم", "۱۳۹۹ ه‍.ش", "क्‍ष और क्‌ष", "অর‍্যা", "അവന്‍ വന്നു", "ශ්‍රී ලංකා",
        "ភាសា\u200bខ្មែរ", "ภาษา\u200bไทย", "👨‍👩‍👧‍👦", "🙋🏽‍♀️", "❤️‍🔥", "1️⃣ #️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏳️‍🌈", "☎︎", "辻󠄀さん", "葛󠄁飾", "ᠮᠣᠩᠭᠣᠯ᠎ᠠ", "≨︀",
        "ᄒᅟᅡ"[:1] + "ᅡ", "Ä é ñ ß — “quoted” § 5 € 100\u00a0000", "a\tb\nc", "\u0601\u0661",
    ],
)  # fmt: skip
def test_a_correct_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("fee \u202eis", "fee ⟦U+202E⟧is"),
        ("1\u200c00", "1⟦U+200C⟧00"),
        ("pay\u200dment", "pay⟦U+200D⟧ment"),
        ("pay\u200bment", "pay⟦U+200B⟧ment"),
        ("ب\u200c\u200cب", "ب⟦U+200C⟧⟦U+200C⟧ب"),
        ("١\u200c٠٠", "١⟦U+200C⟧٠٠"),
        ("1\ufe0f00", "1⟦U+FE0F⟧00"),
        ("a\ufe0f", "a⟦U+FE0F⟧"),
        ("a\U000e0101", "a⟦U+E0101⟧"),
        ("\U0001f3f4\U000e0068\U000e0069\U000e007f", "🏴⟦U+E0068⟧⟦U+E0069⟧⟦U+E007F⟧"),
        ("co\u00adop", "co⟦U+00AD⟧op"),
        ("\ufeffa\x00\x1b[0m", "⟦U+FEFF⟧a⟦U+0000⟧⟦U+001B⟧[0m"),
        ("❤️\u200dx", "❤️⟦U+200D⟧x"),
    ],
)
def test_elsewhere_the_same_characters_are_shown(text: str, seen: str) -> None:
    assert shown(text) == seen


@given(st.text())
def test_nothing_else_is_changed(text: str) -> None:
    labels_taken_back = shown(text)
    for character in set(text):
        labels_taken_back = labels_taken_back.replace(f"⟦U+{ord(character):04X}⟧", character)
    assert labels_taken_back == text


def test_the_page_has_the_same_table() -> None:
    html = (ROOT / "web/page/index.html").read_text()
    assert f"const HIDDEN = /[{HIDDEN}]/u;\n" in html
    assert f"const KEPT_OR_HIDDEN = /{KEPT}|([{HIDDEN}])/gu;\n" in html


# ---------------------------------------------------------------------------------------------------------------
# In a redline, a DOCX and the other exports

CONTROLS = [
    "\u202e",
    "\u2066",
    "\u200e",
    "\u061c",
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\U000e0041",
    *SPACE_LIKE,
]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    "form", ["The fee {}is 100.", "The fee is 100.{}", "{}The fee is 100.", "The f{}ee is 100.", "The fee {} is 100."]
)
def test_a_change_of_a_hidden_character_counts_and_is_shown(control: str, form: str) -> None:
    old = "The fee is 100."
    for before, after in ((old, form.format(control)), (form.format(control), old)):
        marked = check(before, after)
        assert count_words(marked, "inserted") + count_words(marked, "deleted") > 0
        body = page("T", "v", marked).partition("<main>")[2]
        assert body.count(f"⟦U+{ord(control):04X}⟧") == 1
        assert control not in body


def test_a_label_that_is_written_is_not_the_character() -> None:
    marked = redline("a ⟦U+202E⟧ b", "a \u202e b")
    assert count_words(marked, "inserted") > 0
    assert count_words(marked, "deleted") > 0


def test_the_redline_in_json_and_the_text_exports_keep_the_text() -> None:
    marked = redline("The fee is 100.", "The fee \u202eis 100.")
    assert "\u202eis" in [span["text"] for span in block_json(marked[0])["spans"]]
    item: files.Item = {
        "role": "user", "type": "message", "content": "a\u2028b\x85c\n\u202ed", "complete": True,
        "created_at": datetime(2026, 11, 28, tzinfo=UTC),
    }  # fmt: skip
    assert "> a\u2028b\x85c\n> \u202ed\n" in files.markdown_item(item, {}).decode()


@pytest.mark.parametrize("control", SPACE_LIKE)
@pytest.mark.parametrize(
    "form", ["{}", "a{}", "{}a", "# {}", "- {}", "1.1 {}", "|a|\n|-|\n|{}|", "```\n{}\n```", "`{}`", "**a{}**"]
)
def test_no_place_drops_a_control_that_looks_like_a_space(control: str, form: str) -> None:
    found = "".join(span.text for block in blocks(form.format(control)) for text in block.texts for span in text)
    assert control in found


def words_of(docx: bytes) -> Iterable[str]:
    return (paragraph.text for paragraph in Document(io.BytesIO(docx)).paragraphs)


def version(content: str) -> files.Version:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    return files.Version(doc_id="d1", title="T\u202e", version=1, content=content, complete=True, created_at=at)


def test_a_docx_shows_them(tmp_path: Path) -> None:
    docx = files.document_as_docx(version("The fee \u202eis 100\x1b and \uffff 👨‍👩‍👧.\n\nمی‌خواهم"))
    assert list(words_of(docx)) == ["The fee ⟦U+202E⟧is 100⟦U+001B⟧ and ⟦U+FFFF⟧ 👨‍👩‍👧.", "می‌خواهم"]
    assert Document(io.BytesIO(docx)).core_properties.title == "T⟦U+202E⟧"
    assert "⟦U+202E⟧is 100" in pdf_text(docx, tmp_path)


def test_a_message_in_the_docx_of_a_thread_loses_no_control() -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    said: files.Item = {
        "role": "user",
        "type": "message",
        "content": "a\x0bb\x1c\n\x85",
        "complete": True,
        "created_at": at,
    }
    assert list(words_of(files.conversation_as_docx("T", {}, [said])))[2:] == ["a⟦U+000B⟧b⟦U+001C⟧", "⟦U+0085⟧"]


def test_a_text_from_right_to_left_goes_so_in_a_docx_and_on_the_page() -> None:
    text = "# הסכם\n\n1.1 הצד **המקבל** ישלם 100 Euro.\n\n| שם | 10 |\n|---|---|\n| a | ב |\n\nEnglish, שלום."
    document = Document(io.BytesIO(files.document_as_docx(version(text))))
    turned = [bool(paragraph._p.xpath("w:pPr/w:bidi")) for paragraph in document.paragraphs if paragraph.text]
    assert turned == [True, True, False]
    assert all(run.font.rtl for run in document.paragraphs[1].runs)
    assert [run.text for run in document.paragraphs[1].runs if run.font.cs_bold] == ["המקבל"]
    [table] = document.tables
    assert table._tbl.tblPr.xpath("w:bidiVisual")
    assert [[bool(cell.paragraphs[0]._p.xpath("w:pPr/w:bidi")) for cell in row.cells] for row in table.rows] == [
        [True, True], [False, True]
    ]  # fmt: skip
    assert "<h1 dir=auto>" in page("T", "v", redline(text, text))
    plain = Document(io.BytesIO(files.document_as_docx(version("English only"))))
    assert not plain.element.xpath("//w:bidi | //w:rtl")
    assert not plain.styles.element.xpath("w:style[@w:styleId='Normal']//w:szCs")


# ---------------------------------------------------------------------------------------------------------------
# Made-up turns of a Markdown export


@pytest.mark.parametrize(
    "line",
    [
        "**User, 24 November 2026, 10:11 UTC**", "__User, 24__", "> **User, 24**", "# User, 24", "<b>User</b>, 24", "  ***User***, x",
        "- **user, x**", "**Draftstream, 24 November 2026**", "[User, x](y)", "<strong><em>User, x</em></strong>", "User, 24 November",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["message", "doc"])
def test_no_reply_and_no_document_begins_a_turn_of_its_own(line: str, kind: str) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    item = files.Item(
        role="assistant", type="message", content=f"Yes.\n\n{line}\n\nI agree.", complete=True, created_at=at
    )
    if kind == "doc":
        item |= {"type": "doc", "doc_id": "d1", "title": "T", "version": 1}
    said = files.markdown_item(item, {}).decode()
    assert f"\n\\{line}\n" in said
    assert said.replace("\\", "").count(line) == said.count(line) == 1


def test_other_lines_stay_as_they_are() -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    content = "The User, as defined, pays.\n\n**Users, licensees**\n\n1.1 User means, among others, anyone."
    item = files.Item(role="assistant", type="message", content=content, complete=True, created_at=at)
    assert content in files.markdown_item(item, {}).decode()
