"""A redline as a Word file: to accept its tracked changes gives the new version, to reject them the old one."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from docx import Document
from docx.oxml.ns import qn
from hypothesis import given, settings
from lxml import etree  # type: ignore[import-untyped]  # its stubs are another package's
from test_docx_file import pdf_text, texts
from test_redline import documents

from documents.markdown import Block, Span, blocks
from documents.redline import redline
from documents.word import write_docx
from drafting.offline.agreement import Terms, render
from drafting.offline.lengths import Length

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
OLD = """# Services Agreement

This Agreement is made as of [Effective Date].

## 1. Fees

1.1 The Client shall pay **$1,000.50** within thirty (30) days.

1.2 Late payments bear interest.

(a) at 5 % a year

## 2. Term

This Agreement ends on written notice.

| Milestone | Fee |
|---|---|
| Design | 10 |
| Survey | 20 |
| Build | 30 |

Signature: ______
Name: [name]
"""
NEW = """# Master Services Agreement

This Agreement is made as of 1 May 2027.

## 1. Fees

1.1 The Client shall pay **$1,200.00** within sixty (60) days.

(a) at 4 % a year

## 2. Notices

Notices must be in writing.

## 3. Term

This Agreement ends after two years.

| Milestone | Fee |
|---|---|
| Design | 12 |
| Build | 30 |
| Handover | |

Signature: ______
Name: Jane Doe
"""


def file_of(old: str, new: str) -> bytes:
    return write_docx("Services Agreement", redline(old, new), author="Ann", at=AT)


def body_of(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return etree.fromstring(file.read("word/document.xml"))


def text_of(found: Iterable[Block]) -> list[str]:
    """The text of each paragraph and cell, its number included."""

    def lines() -> Iterator[str]:
        for block in found:
            yield (f"{block.number}\t" if block.number else "") + said(block.spans)
            yield from (said(cell) for row in block.rows for cell in row)

    def said(spans: Iterable[Span]) -> str:
        return "".join(span.text for span in spans).replace("\n", "")  # a line's end is an element without text

    return [line for line in lines() if line]


def check(old: str, new: str) -> None:
    body = body_of(file_of(old, new))
    if blocks(old) == blocks(new):
        return  # nothing is marked, and the numbers are Word's
    assert texts(body, accept=True) == text_of(blocks(new))
    assert texts(body, accept=False) == text_of(blocks(old))


def test_to_accept_all_gives_the_new_version_and_to_reject_all_the_old_one() -> None:
    check(OLD, NEW)
    check(NEW, OLD)
    check(OLD, "")
    check("", NEW)
    check("## Fees\n\n## 2. Term", "## 1. Fees\n\n## Term")


@given(documents, documents)
@settings(max_examples=40, deadline=None)  # each writes a file
def test_so_it_is_for_any_two_documents(old: str, new: str) -> None:
    check(old, new)


def test_each_change_has_an_id_of_its_own_an_author_and_a_date_and_word_libraries_open_it() -> None:
    content = file_of(OLD, NEW)
    changes = [each for tag in ("w:ins", "w:del") for each in body_of(content).iter(qn(tag))]
    ids = [each.get(qn("w:id")) for each in changes]
    assert len(ids) == len(set(ids)) > 20
    assert {(each.get(qn("w:author")), each.get(qn("w:date"))) for each in changes} == {("Ann", "2026-11-24T09:30:00Z")}
    opened = Document(io.BytesIO(content))
    assert opened.core_properties.title == "Services Agreement"
    assert opened.tables[0].cell(0, 0).text == "Milestone"


def test_two_versions_that_are_the_same_have_no_change() -> None:
    body = body_of(file_of(OLD, OLD))
    assert [*body.iter(qn("w:ins")), *body.iter(qn("w:del"))] == []


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (OLD, NEW, ["Master", "[Effective Date]", "1 May 2027", "Late payments bear interest.", "Notices", "Survey"]),
        (
            render(Terms(mutual=False)),
            render(Terms(mutual=True, term=Length(years=2))),
            ["Mutual", "The Disclosing", "two (2) years", "Governing Law and Jurisdiction", "Page 2 of "],
        ),
    ],
    ids=["small", "some pages"],
)
def test_libreoffice_shows_what_was_deleted_and_what_was_inserted(
    old: str, new: str, parts: list[str], tmp_path: Path
) -> None:
    text = " ".join(pdf_text(file_of(old, new), tmp_path).split())
    assert [part for part in parts if part not in text] == []
