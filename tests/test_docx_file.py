"""Word files, opened again by python-docx and by LibreOffice."""

import io
import subprocess
import time
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import required
from docx import Document
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.oxml.ns import qn
from lxml import etree  # type: ignore[import-untyped]  # its stubs are another package's

from documents.markdown import Block, Span, blocks
from documents.word import write_docx
from drafting.offline.agreement import Terms, render
from drafting.offline.lengths import Length

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
DRAFT = """# Lease

Between **A** and *B*:

## 1. Term

1.1 One year.

1.2 Longer:

(a) if asked; and

(b) if agreed:

(i) in writing.

## 2. Rent

2.1 Each month.

## 4. Out of order

4.1 Text.

1. one
2. two

- bullet

| Item | Fee |
|---|---|
| Flat | **100** |

By: ____________
Name: [Name]
"""


def opened(found: Sequence[Block], title: str = "Lease") -> Any:
    return Document(io.BytesIO(write_docx(title, found, at=AT)))


def pdf_text(content: bytes, folder: Path) -> str:
    """As LibreOffice sets it: a page after the other, with the numbers that it counts."""
    file = folder / "file.docx"
    file.write_bytes(content)
    profile = f"-env:UserInstallation=file://{folder}/profile"
    subprocess.run(
        [required("soffice"), profile, "--headless", "--convert-to", "pdf", "--outdir", folder, file],
        check=True,
        capture_output=True,
        timeout=120,
    )
    text = subprocess.run(
        [required("pdftotext"), "-layout", folder / "file.pdf", "-"], check=True, capture_output=True, timeout=60
    )
    return text.stdout.decode()


def test_headings_clauses_and_tables_are_what_word_calls_so() -> None:
    document = opened(blocks(DRAFT))
    styles = {paragraph.text: paragraph.style.name for paragraph in document.paragraphs}
    assert styles["Lease"] == "Title"
    assert styles["Term"] == styles["Rent"] == "Heading 1"
    assert styles["bullet"] == "List Bullet"
    [table] = document.tables
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["Item", "Fee"], ["Flat", "100"]]
    assert table.rows[0]._tr.trPr.find(qn("w:tblHeader")) is not None
    bold = [run.text for paragraph in document.paragraphs for run in paragraph.runs if run.bold]
    assert bold == ["A"]
    properties = document.core_properties
    assert (properties.title, properties.author) == ("Lease", "Draftstream")
    assert properties.created.replace(tzinfo=UTC) == AT
    footer = etree.tostring(document.sections[0].footer._element).decode()
    assert "PAGE" in footer
    assert "NUMPAGES" in footer


def test_word_counts_what_it_counts_as_written_and_the_rest_is_text() -> None:
    document = opened(blocks(DRAFT))
    counted = {paragraph.text for paragraph in document.paragraphs if paragraph._p.pPr.numPr is not None}
    assert {"Term", "One year.", "if asked; and", "in writing.", "Rent", "Each month.", "one", "two"} <= counted
    written = [paragraph.text for paragraph in document.paragraphs if paragraph.text.startswith("4")]
    assert written == ["4.\tOut of order", "4.1\tText."]


def test_libreoffice_shows_the_numbers_as_they_were_written(tmp_path: Path) -> None:
    text = " ".join(pdf_text(write_docx("Lease", blocks(DRAFT), at=AT), tmp_path).split())
    for part in (
        "1. Term 1.1 One year. 1.2 Longer: (a) if asked; and (b) if agreed: (i) in writing. 2. Rent 2.1 Each month.",
        "4. Out of order 4.1 Text. 1. one 2. two",
        "Item Fee Flat 100",
        "By: ____________ Name: [Name]",
        "Page 1 of 1",
    ):
        assert part in text


NESTED = """# Services

## 1. Services

### 1.1 Scope

1.1.1 As follows:

(a) one; and

(b) two.

1.1.2 And:

(i) roman.

(a) After it.

### 1.2 Changes

1.2.1 In writing.

(a) directly

1. one
   1. inner
      1. innermost
      2. next
   - bullet

# Schedule

## 1. Fees

### 1.1 Rates

1.1.1 By the hour.
"""


def test_clauses_of_three_numbers_and_a_schedule_that_begins_anew_are_counted_by_word(tmp_path: Path) -> None:
    found = blocks(NESTED)
    counted = [paragraph.text for paragraph in opened(found).paragraphs if paragraph._p.pPr.numPr is not None]
    assert {"Services", "Scope", "As follows:", "one; and", "two.", "roman.", "In writing."} < set(counted)
    assert {"Fees", "Rates", "By the hour."} < set(counted)
    assert "After it." not in counted, "whether a level that was passed over counts is not the same in all programs"
    text = " ".join(pdf_text(write_docx("Services", found, at=AT), tmp_path).split())
    for part in (
        "1. Services 1.1 Scope 1.1.1 As follows: (a) one; and (b) two. 1.1.2 And: (i) roman. (a) After it.",
        "1.2 Changes 1.2.1 In writing. (a) directly 1. one 1. inner 1. innermost 2. next",
        "Schedule 1. Fees 1.1 Rates 1.1.1 By the hour.",
    ):
        assert part in text


def test_a_file_is_of_todays_word_and_what_belongs_together_stays_on_a_page() -> None:
    document = opened(blocks("**Acme**\n\nBy: ______\nName: [name]\n\n| A | B |\n|:-:|--:|\n| x | 1 |\n\n- a\n  - b"))
    [mode] = document.settings.element.xpath("w:compat/w:compatSetting[@w:name='compatibilityMode']")
    assert mode.get(qn("w:val")) == "15", "an older one shows as Compatibility Mode"
    party, form = document.paragraphs[:2]
    assert party.paragraph_format.keep_with_next
    assert form.paragraph_format.keep_together
    rows = document.tables[0].rows
    assert all(row._tr.trPr.find(qn("w:cantSplit")) is not None for row in rows)
    assert [cell.paragraphs[0].alignment for cell in rows[1].cells] == [
        WD_ALIGN_PARAGRAPH.CENTER,
        WD_ALIGN_PARAGRAPH.RIGHT,
    ]
    indents = [paragraph.paragraph_format.left_indent.cm for paragraph in document.paragraphs[-2:]]
    assert indents == pytest.approx([1, 2], abs=0.01)


def test_a_real_document_of_some_pages_opens_in_libreoffice(tmp_path: Path) -> None:
    draft = render(Terms(mutual=True, term=Length(years=2)))
    text = pdf_text(write_docx("Mutual NDA", blocks(draft), at=AT), tmp_path)
    assert "Page 2 of " in text
    assert "2.1" in text
    assert text.count("Confidential Information") > 10


def test_marks_are_tracked_changes() -> None:
    found = [
        Block("heading", (Span("Term"),), 1, "1."),
        Block("clause", (Span("One "), Span("year", mark="deleted"), Span("two years", mark="inserted")), 0, "1.1"),
        Block("clause", (Span("Gone.", mark="deleted"),), 0, "1.2", mark="deleted"),
        Block("clause", (Span("New.", bold=True, mark="inserted"),), 0, "1.2", mark="inserted"),
        Block("clause", (Span("Kept."),), 0, "1.3", old_number="1.4"),
        Block(
            "table", rows=(((Span("A"),), (Span("B"),)), ((Span("x", mark="inserted"),), (Span("y", mark="inserted"),)))
        ),
    ]
    content = write_docx("t", found, author="Ann", at=AT)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        body = etree.fromstring(file.read("word/document.xml"))
    changes = [*body.iter(qn("w:ins")), *body.iter(qn("w:del"))]
    ids = [change.get(qn("w:id")) for change in changes]
    assert len(ids) == len(set(ids)) > 8
    assert {change.get(qn("w:author")) for change in changes} == {"Ann"}
    assert {change.get(qn("w:date")) for change in changes} == {"2026-11-24T09:30:00Z"}
    assert texts(body, accept=True) == ["1.\tTerm", "1.1\tOne two years", "1.2\tNew.", "1.3\tKept.", "A", "B", "x", "y"]
    assert texts(body, accept=False) == ["1.\tTerm", "1.1\tOne year", "1.2\tGone.", "1.4\tKept.", "A", "B"]
    assert Document(io.BytesIO(content)).core_properties.author == "Ann"


def texts(body: Any, *, accept: bool) -> list[str]:
    """The paragraphs that are left when all changes are accepted, or rejected."""
    gone = "w:del" if accept else "w:ins"
    said = []
    for paragraph in body.iter(qn("w:p")):
        row = next(paragraph.iterancestors(qn("w:tr")), None)
        if row is not None and row.find(f"{qn('w:trPr')}/{qn(gone)}") is not None:
            continue
        if paragraph.find(f"{qn('w:pPr')}/{qn('w:rPr')}/{qn(gone)}") is not None:
            continue
        text = ""
        for node in paragraph.iter(qn("w:t"), qn("w:delText"), qn("w:tab")):
            changed = next(node.iterancestors(qn(gone)), None) is not None
            if not changed and next(node.iterancestors(qn("w:pPr")), None) is None:
                text += "\t" if node.tag == qn("w:tab") else node.text or ""
            assert (node.tag == qn("w:delText")) == (next(node.iterancestors(qn("w:del")), None) is not None) or (
                node.tag == qn("w:tab")
            )
        if text:
            said.append(text)
    return said


def test_eight_times_the_text_takes_about_eight_times_as_long() -> None:
    some = blocks("1. one\n\ntext\n\n| A | B |\n|---|---|\n| x | y |\n" * 150)

    def took_s(found: Sequence[Block]) -> float:
        before = time.thread_time()  # of this thread alone, however busy the machine is
        write_docx("t", found, at=AT)
        return time.thread_time() - before

    took_s(some)
    assert took_s(some * 8) < 12 * took_s(some), "each list, paragraph and table is added without a look at the others"


def test_what_xml_can_not_hold_is_shown_by_its_number() -> None:
    document = opened([Block("paragraph", (Span("a\x0bb\x07c\ufffe😀"),))], title="t\x01itle")
    assert (document.paragraphs[0].text, document.core_properties.title) == (
        "a⟦U+000B⟧b⟦U+0007⟧c⟦U+FFFE⟧😀",
        "t⟦U+0001⟧itle",
    )
