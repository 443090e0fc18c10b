"""Blocks to a Word file, with `python-docx`: real headings, numbering, tables and page numbers, and marks as tracked
changes that can be accepted or rejected.

Word numbers the clauses where it would show their numbers as they are written (numbering.py). Elsewhere the number is
text, and so it is in a file with marks, where Word would count the deleted clauses, too.
"""

import io
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from docx import Document
from docx.document import Document as DocumentObject
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.oxml.table import CT_Tbl
from docx.shared import Cm, Emu, Length, Pt, RGBColor
from docx.styles.style import ParagraphStyle
from docx.table import Table
from docx.text.paragraph import Paragraph
from docx.text.run import Run

from documents.direction import RIGHT_TO_LEFT, goes_left, set_sizes_of_complex_scripts, turn, turn_table
from documents.hidden import shown
from documents.markdown import Block, Mark, Span
from documents.numbering import STEP_CM, Counted, Numbering, levels_of, numbered_by_word

if TYPE_CHECKING:
    from docx.oxml.text.paragraph import CT_P

FONT = "Times New Roman"
CODE_FONT = "Courier New"
BLACK = RGBColor(0, 0, 0)
NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
ALIGNMENTS = {"center": WD_ALIGN_PARAGRAPH.CENTER, "right": WD_ALIGN_PARAGRAPH.RIGHT}
TRACKED = {"inserted": "w:ins", "deleted": "w:del"}


def write_docx(
    title: str, blocks: Iterable[Block], *, author: str = "Draftstream", at: datetime | None = None
) -> bytes:
    """The file. `at` is the time of the file and of each change in it; now, if None."""
    return _Writer(title, list(blocks), author, at or datetime.now(UTC)).write()


class _Writer:
    def __init__(self, title: str, blocks: Sequence[Block], author: str, at: datetime) -> None:
        self._blocks = blocks
        self._author = author
        self._at = at.astimezone(UTC)
        self._change_ids = count(1)
        self._document: DocumentObject = Document()
        _set_styles(self._document)
        _set_page(self._document)
        _set_mode(self._document)
        properties = self._document.core_properties
        properties.title, properties.author, properties.last_modified_by = _storable(title)[:255], author, author
        properties.created = properties.modified = self._at.replace(tzinfo=None)
        properties.comments = ""
        [section] = self._document.sections
        self._end = section._sectPr  # noqa: SLF001  # the body's last element
        self._width = Emu((section.page_width or 0) - (section.left_margin or 0) - (section.right_margin or 0))
        self._levels = levels_of(blocks)
        self._numbering = Numbering(self._document, self._levels)
        if any(RIGHT_TO_LEFT.search(span.text) for block in blocks for text in block.texts for span in text):
            set_sizes_of_complex_scripts(self._document)
        self._style_ids = {style.name: style.style_id for style in self._document.styles}

    def write(self) -> bytes:
        marked = any(block.is_changed for block in self._blocks)
        numbers = numbered_by_word(self._blocks, self._levels, marked=marked)
        above: Paragraph | None = None
        for block, numbered in zip(self._blocks, numbers, strict=True):
            if above is not None and _is_form(block):
                above.paragraph_format.keep_with_next = True  # whose signature it is
            above = self._add(block, numbered)
        file = io.BytesIO()
        self._document.save(file)
        return file.getvalue()

    def _add(self, block: Block, numbered: Counted | None) -> Paragraph | None:
        if block.kind == "table":
            self._add_table(block)
            return None
        paragraph = self._add_paragraph()
        # By its id: python-docx searches all styles for a name, which would be three quarters of the work.
        paragraph._p.style = self._style_ids[_style_of(block)]  # noqa: SLF001  # see above
        if numbered is not None:
            self._numbering.number(paragraph, numbered)
        elif block.number or block.old_number:
            self._add_number(paragraph, block)
        elif block.kind == "item":
            _hang(paragraph, block.level)  # the bullet is the style's
        elif block.level and block.kind == "paragraph":
            paragraph.paragraph_format.left_indent = Cm(STEP_CM * block.level)
        if block.kind == "rule":
            _draw_rule(paragraph)
        self._add_spans(paragraph, block.spans)
        if goes_left(block.spans):
            turn(paragraph)
        if _is_form(block):
            paragraph.paragraph_format.keep_together = True
        if block.kind == "paragraph" and block.spans and all(span.bold for span in block.spans):
            paragraph.paragraph_format.keep_with_next = True  # it leads the next paragraphs, as a heading does
        self._mark_paragraph(paragraph, block.mark)
        return paragraph

    def _add_paragraph(self) -> Paragraph:
        """At the end. python-docx's own way would search all paragraphs that are there already, as for a table."""
        element = cast("CT_P", OxmlElement("w:p"))
        self._end.addprevious(element)
        return Paragraph(element, self._document._body)  # noqa: SLF001  # see above

    def _add_number(self, paragraph: Paragraph, block: Block) -> None:
        """The number as text, in front of a tab; a changed one as a change."""
        indent = _hang(paragraph, 0 if block.kind == "heading" else block.level)
        paragraph.paragraph_format.tab_stops.add_tab_stop(indent)
        if block.old_number is not None and block.mark == "kept":
            changes = [Span(block.old_number, mark="deleted"), Span(block.number, mark="inserted")]
            only = changes[0].mark if not block.number else changes[1].mark if not block.old_number else "kept"
            self._add_spans(paragraph, [*(span for span in changes if span.text), Span("\t", mark=only)])
        else:
            self._add_spans(paragraph, [Span(block.number + "\t", mark=block.mark)])

    def _add_spans(self, paragraph: Paragraph, spans: Iterable[Span]) -> None:
        for span in spans:
            run = paragraph.add_run()
            run.bold, run.italic = span.bold or None, span.italic or None
            if span.code:
                run.font.name = CODE_FONT
            for number, part in enumerate(_storable(span.text).split("\n")):
                if number:
                    run.add_break()
                run.add_text(part)
            if span.mark != "kept":
                self._track(run, span.mark)

    def _track(self, run: Run, mark: Mark) -> None:
        """Put the run into a tracked change."""
        element = run._r  # noqa: SLF001  # python-docx has no tracked changes
        if mark == "deleted":
            for text in element.findall(qn("w:t")):
                text.tag = qn("w:delText")
        change = self._change(mark)
        element.addprevious(change)
        change.append(element)

    def _change(self, mark: Mark) -> Any:  # noqa: ANN401  # lxml's elements have no useful type
        change = OxmlElement(TRACKED[mark])
        change.set(qn("w:id"), str(next(self._change_ids)))
        change.set(qn("w:author"), self._author)
        change.set(qn("w:date"), self._at.strftime("%Y-%m-%dT%H:%M:%SZ"))
        return change

    def _mark_paragraph(self, paragraph: Paragraph, mark: Mark) -> None:
        """Its end is inserted or deleted too, so that nothing is left of the paragraph."""
        if mark == "kept":
            return
        properties = paragraph._p.get_or_add_pPr()  # noqa: SLF001  # python-docx has no tracked changes
        run_properties = OxmlElement("w:rPr")
        run_properties.append(self._change(mark))
        properties.append(run_properties)

    def _add_table(self, block: Block) -> None:
        columns = max((len(row) for row in block.rows), default=0)
        if not columns:
            return
        element = CT_Tbl.new_tbl(0, columns, self._width)
        element.tblStyle_val = self._style_ids["Table Grid"]
        self._end.addprevious(element)
        table = Table(element, self._document._body)  # noqa: SLF001  # see _add_paragraph
        from_the_right = goes_left(span for text in block.texts for span in text)
        for number, row in enumerate(block.rows):
            added = table.add_row()  # type: ignore[no-untyped-call]  # of python-docx
            for cell, spans, align in zip(added.cells, row, block.aligned or ("left",) * columns, strict=False):
                bold = [Span(span.text, bold=True, mark=span.mark) for span in spans] if number == 0 else spans
                paragraph = cell.paragraphs[0]
                self._add_spans(paragraph, bold)
                if goes_left(bold, by_itself=from_the_right):
                    turn(paragraph)
                paragraph.alignment = ALIGNMENTS.get(align)
                paragraph.paragraph_format.space_before = paragraph.paragraph_format.space_after = Pt(3)
            properties = added._tr.get_or_add_trPr()  # noqa: SLF001  # python-docx has no such properties
            properties.append(OxmlElement("w:cantSplit"))
            if number == 0:
                properties.append(OxmlElement("w:tblHeader"))
            marks = {span.mark for cell in row for span in cell}
            if len(marks) == 1 and marks != {"kept"}:
                properties.append(self._change(marks.pop()))
        if from_the_right:
            turn_table(table)
        below = self._add_paragraph()  # as two tables would else be one
        below.paragraph_format.space_after = Pt(0)
        self._mark_paragraph(below, block.mark)


# ---------------------------------------------------------------------------------------------------------------
# How it looks


def _hang(paragraph: Paragraph, level: int) -> Length:
    """Indent the paragraph with its number hanging; gives the place where the text begins."""
    indent = Cm(STEP_CM * (level + 1))
    paragraph.paragraph_format.left_indent = indent
    paragraph.paragraph_format.first_line_indent = -Cm(STEP_CM)
    return indent


def _style_of(block: Block) -> str:
    match block.kind:
        case "title":
            return "Title"
        case "heading":
            return f"Heading {min(block.level, 6)}"
        case "item" if not block.number:
            return ("List Bullet", "List Bullet 2", "List Bullet 3")[min(block.level, 2)]
        case "code":
            return "No Spacing"
    return "Normal"


def _set_styles(document: DocumentObject) -> None:
    sizes = {"Normal": 11, "Title": 16, "Heading 1": 12, **{f"Heading {level}": 11 for level in range(2, 7)}}
    bullets = {"List Bullet": 11, "List Bullet 2": 11, "List Bullet 3": 11, "No Spacing": 10, "Footer": 9}
    for name, size in (sizes | bullets).items():
        style = document.styles[name]
        if not isinstance(style, ParagraphStyle):
            continue
        style.font.name, style.font.size, style.font.color.rgb = FONT, Pt(size), BLACK
        fonts = style.element.get_or_add_rPr().get_or_add_rFonts()
        for script in ("w:asciiTheme", "w:hAnsiTheme", "w:eastAsiaTheme", "w:cstheme"):
            fonts.attrib.pop(qn(script), None)  # a theme's font would win
        for script in ("w:hAnsi", "w:cs"):
            fonts.set(qn(script), FONT)
        style.paragraph_format.space_after = Pt(8)
        style.paragraph_format.line_spacing = 1.1
        if name.startswith("Heading"):
            style.font.bold, style.font.italic = True, False
            style.paragraph_format.space_before = Pt(12)
            style.paragraph_format.keep_with_next = True
    title = document.styles["Title"]
    if isinstance(title, ParagraphStyle):
        title.font.bold = True
        title.paragraph_format.alignment = WD_ALIGN_PARAGRAPH.CENTER
        title.paragraph_format.space_after = Pt(18)
        border = title.element.get_or_add_pPr().find(qn("w:pBdr"))
        if border is not None:
            border.getparent().remove(border)


def _set_page(document: DocumentObject) -> None:
    section = document.sections[0]
    section.left_margin = section.right_margin = section.top_margin = section.bottom_margin = Cm(2.5)
    footer = section.footer.paragraphs[0]
    footer.alignment = WD_ALIGN_PARAGRAPH.CENTER
    for text, code in (("Page ", "PAGE"), (" of ", "NUMPAGES")):
        footer.add_run(text)
        _add_field(footer, code)


def _set_mode(document: DocumentObject) -> None:
    """Of Word 2013 and later: the template's, of 2010, shows as "Compatibility Mode"."""
    settings = document.settings.element
    [mode] = settings.xpath("w:compat/w:compatSetting[@w:name='compatibilityMode']")
    mode.set(qn("w:val"), "15")
    settings.find(qn("w:zoom")).set(qn("w:percent"), "100")  # without which it is not valid


def _add_field(paragraph: Paragraph, code: str) -> None:
    """A number that Word computes."""
    run = paragraph.add_run()
    for kind in ("begin", None, "separate", "end"):
        if kind is None:
            element = OxmlElement("w:instrText")
            element.text = code
        else:
            element = OxmlElement("w:fldChar")
            element.set(qn("w:fldCharType"), kind)
        run._r.append(element)  # noqa: SLF001  # python-docx has no fields


def _draw_rule(paragraph: Paragraph) -> None:
    border = OxmlElement("w:pBdr")
    line = OxmlElement("w:bottom")
    for name, value in (("val", "single"), ("sz", "4"), ("space", "1"), ("color", "808080")):
        line.set(qn(f"w:{name}"), value)
    border.append(line)
    paragraph._p.get_or_add_pPr().append(border)  # noqa: SLF001  # python-docx has no borders


def _storable(text: str) -> str:
    return NOT_IN_XML.sub("", shown(text))


def _is_form(block: Block) -> bool:
    """Lines that are to be filled in, as in a block of signatures: they stay on one page."""
    return block.kind == "paragraph" and any("\n" in span.text for span in block.spans)
