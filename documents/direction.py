"""Scripts that go from right to left, in a Word file: Word takes the direction of a paragraph, of each run and of a
table from marks in the file, not from their letters.
"""

import re
from collections.abc import Iterable
from unicodedata import bidirectional

from docx.document import Document as DocumentObject
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.styles.style import ParagraphStyle
from docx.table import Table
from docx.text.paragraph import Paragraph

from documents.markdown import Span

RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001eeff]")
# What stands behind the mark in a paragraph's properties, which the format has in this order.
BEHIND_BIDI = (
    "w:adjustRightInd", "w:snapToGrid", "w:spacing", "w:ind", "w:contextualSpacing", "w:mirrorIndents",
    "w:suppressOverlap", "w:jc", "w:textDirection", "w:textAlignment", "w:textboxTightWrap", "w:outlineLvl", "w:divId",
    "w:cnfStyle", "w:rPr", "w:sectPr", "w:pPrChange",
)  # fmt: skip


def goes_left(spans: Iterable[Span], *, by_itself: bool = False) -> bool:
    """Whether the first letter that has a direction goes from right to left. `by_itself`: where there is none."""
    return next((kind != "L" for kind in map(_direction, spans) if kind), by_itself)


def _direction(span: Span) -> str:
    """That of the first letter with one, or ""."""
    if span.text.isascii():
        return "L" if any(map(str.isalpha, span.text)) else ""
    return next((kind for kind in map(bidirectional, span.text) if kind in {"L", "R", "AL"}), "")


def turn(paragraph: Paragraph) -> None:
    """Let the paragraph go from right to left, with its runs but those of other letters alone."""
    properties = paragraph._p.get_or_add_pPr()  # noqa: SLF001  # python-docx has no direction of paragraphs
    properties.insert_element_before(OxmlElement("w:bidi"), *BEHIND_BIDI)
    for run in paragraph.runs:
        if RIGHT_TO_LEFT.search(run.text) or not any(map(str.isalpha, run.text)):
            run.font.rtl = True
            run.font.cs_bold, run.font.cs_italic = run.bold, run.italic


def turn_table(table: Table) -> None:
    """Let the first column be the right one."""
    properties = table._tbl.tblPr  # noqa: SLF001  # likewise
    behind = ("w:tblStyleRowBandSize", "w:tblStyleColBandSize", "w:tblW", "w:jc", "w:tblCellSpacing", "w:tblInd")
    more = ("w:tblBorders", "w:shd", "w:tblLayout", "w:tblCellMar", "w:tblLook", "w:tblCaption", "w:tblDescription")
    properties.insert_element_before(OxmlElement("w:bidiVisual"), *behind, *more)


def set_sizes_of_complex_scripts(document: DocumentObject) -> None:
    """As those of other scripts: Word keeps a size, and bold type, of its own for each."""
    for style in document.styles:
        if not isinstance(style, ParagraphStyle) or style.font.size is None:
            continue
        if style.font.bold:
            style.font.cs_bold = True
        properties = style.element.get_or_add_rPr()
        for old in properties.findall(qn("w:szCs")):
            properties.remove(old)
        size = OxmlElement("w:szCs")
        size.set(qn("w:val"), properties.find(qn("w:sz")).get(qn("w:val")))
        properties.find(qn("w:sz")).addnext(size)
