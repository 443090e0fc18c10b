"""A redline as a page of its own, to be read in a browser or printed. Pure."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from documents.hidden import pieces, shown
from documents.markdown import Align, Block, Kind, Mark, Span
from documents.redline import Row, Spans, count_words, mark_of

STYLE = """
:root { color-scheme: light dark; --paper: #fffefb; --ground: #f2f0eb; --line: #d8d3c8; --ink: #23211d; --soft: #6a655b;
  --ins: #d9f0dc; --ins-ink: #14532d; --del: #fbdfdb; --del-ink: #8a1f16; }
@media (prefers-color-scheme: dark) { :root { --paper: #1e1f23; --ground: #131417; --line: #3a3d45; --ink: #e6e3dc;
  --soft: #a8a49a; --ins: #1d3a25; --ins-ink: #b5e6bf; --del: #45211d; --del-ink: #f5b5ad; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 1.0625rem/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, "Noto Serif", Georgia, serif; }
header { max-width: 46rem; margin: 0 auto; padding: 1.25rem 1rem; color: var(--soft); box-sizing: border-box;
  font: 0.875rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header p { margin: 0; }
main { max-width: 46rem; margin: 0 auto 2rem; padding: 2.5rem clamp(1.25rem, 6vw, 4rem); background: var(--paper);
  border: 1px solid var(--line); box-sizing: border-box; overflow-wrap: anywhere; white-space: pre-wrap; }
main > * { margin: 0 0 0.9em; position: relative; }
h1 { font-size: 1.6rem; line-height: 1.25; text-align: center; }
h2 { font-size: 1.15rem; line-height: 1.35; padding-top: 0.6em; }
h3, h4, h5, h6 { font-size: 1rem; padding-top: 0.3em; }
ins { background: var(--ins); color: var(--ins-ink); text-decoration: underline; text-underline-offset: 0.15em; }
del { background: var(--del); color: var(--del-ink); text-decoration: line-through; }
ins, del { unicode-bidi: isolate; }
bdi { border: 1px solid currentColor; border-radius: 0.2em; padding: 0 0.1em;
  font: 0.75em ui-monospace, Menlo, Consolas, monospace; text-indent: 0; }
.changed::before { content: ""; position: absolute; inset-inline-start: calc(-1 * clamp(0.6rem, 3vw, 2rem)); top: 0;
  bottom: 0; border-inline-start: 3px solid var(--soft); }
.numbered { padding-inline-start: 2.75rem; text-indent: -2.75rem; }
.numbered > span { display: inline-block; min-width: 2.75rem; text-indent: 0;
  text-align: -webkit-match-parent; text-align: match-parent; }
.in1 { margin-inline-start: 1.75rem; } .in2 { margin-inline-start: 3.5rem; } .in3 { margin-inline-start: 5.25rem; }
.in4 { margin-inline-start: 7rem; }
pre { font: 0.875rem/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; }
table { border-collapse: collapse; width: 100%; }
th, td { border: 1px solid var(--line); padding: 0.35em 0.6em; text-align: start; vertical-align: top; }
.center { text-align: center; } .right { text-align: right; }
hr { border: 0; border-top: 1px solid var(--line); }
hr.inserted { border-top: 3px double var(--ins-ink); } hr.deleted { border-top: 3px dashed var(--del-ink); }
@media print { body { background: none; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { border: 0; max-width: none; } }
"""
# Also for the page as a file; nothing on it could be run or fetched.
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'"
HEADER_POLICY = f"{POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"  # not in a <meta>

TAGS: dict[Kind, str] = {"title": "h1", "paragraph": "p", "clause": "p", "item": "p", "code": "pre"}
MARK_TAGS: dict[Mark, str] = {"inserted": "ins", "deleted": "del"}
NUMBERED = ("clause", "item")
INDENTED = (*NUMBERED, "paragraph")
DEEPEST = 4  # deeper levels have the same indent


def page(title: str, versions: str, blocks: Sequence[Block], notes: Iterable[str] = ()) -> str:
    """The page. `versions` is like "version 1 to version 3". Each note is a line above the text."""
    inserted, deleted = (count_words(blocks, mark) for mark in ("inserted", "deleted"))
    changed = any(block.is_changed for block in blocks)
    said = f"<ins>{_count(inserted)} inserted</ins>, <del>{_count(deleted)} deleted</del>" if changed else "no change"
    lines = [f"<strong>{_text(title)}</strong>", f"{escape(versions)}: {said}", *map(escape, notes)]
    return "".join(
        (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n',
            f"<title>{escape(shown(title))}, {escape(versions)}</title>\n<style>{STYLE}</style>\n",
            f"<header>{''.join(f'<p dir=auto>{line}</p>' for line in lines)}</header>\n<main>",
            *(_block(block) for block in blocks),
            "</main>\n</html>\n",
        )
    )


def _count(words: int) -> str:
    return f"{words:,} word{'' if words == 1 else 's'}"


def _block(block: Block) -> str:
    classes = " ".join(_classes(block))
    start = f' class="{classes}"' if classes else ""
    if block.kind == "rule":
        return f"<hr{start}>"
    start += " dir=auto"  # as its own letters say
    if block.kind == "table":
        return f"<table{start}>{_rows(block)}</table>"
    tag = f"h{min(block.level + 1, 6)}" if block.kind == "heading" else TAGS[block.kind]
    number = _number(block)
    if block.kind in NUMBERED:
        number = f"<span dir=auto>{number}</span>"  # which does not say which way the text goes
    return f"<{tag}{start}>{number}{_spans(block.spans)}</{tag}>"


def _classes(block: Block) -> Iterator[str]:
    if block.is_changed:
        yield "changed"
    if block.kind in NUMBERED:
        yield "numbered"
    if block.level and block.kind in INDENTED:
        yield f"in{min(block.level, DEEPEST)}"
    if block.kind == "rule":
        yield block.mark


def _number(block: Block) -> str:
    number = block.number or ("•" if block.kind == "item" else "")
    if block.old_number is not None:
        return _marked("deleted", escape(block.old_number)) + _marked("inserted", escape(block.number)) + " "
    return _marked(block.mark, escape(number) + " ") if number else ""


def _rows(block: Block) -> str:
    marks = [mark_of(row) for row in block.rows]
    heads = next((number for number, mark in enumerate(marks, 1) if mark != "deleted"), len(marks))
    return "".join(
        f"<tr>{_cells('th' if number < heads else 'td', row, block.aligned)}</tr>"
        for number, row in enumerate(block.rows)
    )


def _cells(tag: str, row: Row, aligned: Sequence[Align]) -> str:
    starts = (f"{tag} class={align}" if align != "left" else tag for align in aligned or ("left",) * len(row))
    return "".join(f"<{start}>{_spans(cell)}</{tag}>" for start, cell in zip(starts, row, strict=True))


def _spans(spans: Spans) -> str:
    return "".join(
        _marked(mark, "".join(_styled(span) for span in run)) for mark, run in groupby(spans, lambda span: span.mark)
    )


def _marked(mark: Mark, text: str) -> str:
    return f"<{MARK_TAGS[mark]}>{text}</{MARK_TAGS[mark]}>" if mark in MARK_TAGS and text else text


def _text(text: str) -> str:
    """With the labels of hidden characters, which stand for themselves whichever way the text goes."""
    return "".join(f"<bdi dir=ltr>{piece}</bdi>" if label else escape(piece) for piece, label in pieces(text))


def _styled(span: Span) -> str:
    text = _text(span.text)
    if span.mark != "kept":
        text = text.replace("\n", "↵\n")  # as nobody sees a mark on the end of a line
    for tag, is_on in (("code", span.code), ("em", span.italic), ("strong", span.bold)):
        text = f"<{tag}>{text}</{tag}>" if is_on else text
    return text
