"""A conversation or a document as a file: Markdown, JSON or DOCX. Rows come in, chunks of the file go out.

A conversation is one branch, as a person sees it: who said what, and each document whole at its newest version, where
that was written; the versions before it are named. JSON has all branches and all versions. Markdown and JSON are made
as they are sent, so a very long thread costs little memory; a DOCX is a zip file that is made whole, and has a limit.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from documents.redline import block_json, count_words, redline
from documents.redline_page import page

if TYPE_CHECKING:
    from documents.markdown import Block

DOCX_CHARS = 1_000_000  # some hundred pages, and some seconds of work
FORMAT = "draftstream-thread/1"  # what the JSON is
AT_ONCE = asyncio.Semaphore(2)  # so many DOCX files are made at a time, beside the streams

Row = Mapping[str, Any]
"""An item as `histories` gives it."""


class TooLargeForDocx(Exception):
    """There is more text than goes into a DOCX here; the other formats have no limit."""


def newest_versions(versions: Sequence[Row]) -> dict[str, int]:
    """Of each document its newest version."""
    return {version["doc_id"]: version["version"] for version in versions}


# ---------------------------------------------------------------------------------------------------------------
# JSON


async def thread_as_json(outline: Row, items: AsyncIterator[Row]) -> AsyncIterator[bytes]:
    """`outline` is the thread with its runs; the items of all its branches follow as `messages`."""
    head = orjson.dumps({"format": FORMAT, **outline})
    yield head[:-1] + b',"messages":['
    separator = b""
    async for item in items:
        yield separator + orjson.dumps(item)
        separator = b",\n"
    yield b"]}\n"


# ---------------------------------------------------------------------------------------------------------------
# Markdown


async def thread_as_markdown(title: str, items: AsyncIterator[Row], newest: Mapping[str, int]) -> AsyncIterator[bytes]:
    yield f"# {title}\n".encode()
    async for item in items:
        yield f"\n{''.join(_markdown(item, newest))}".encode()


def _markdown(item: Row, newest: Mapping[str, int]) -> Iterable[str]:
    if item["type"] == "doc":
        if is_replaced(item, newest):
            yield f"*{named(item)}: replaced by a later version below.*\n"
            return
        yield f"---\n\n*{named(item)}*\n\n{item['content'].rstrip()}\n\n---\n"
        return
    if item["role"] == "user":
        # As a quotation, so that what a person wrote can't be taken for the reply, whatever it looks like.
        yield f"**{spoken(item)}**\n\n"
        yield "".join(f"> {line}\n" if line else ">\n" for line in item["content"].splitlines())
        return
    yield f"**{spoken(item)}**\n\n{item['content'].rstrip()}\n"
    if not item["complete"]:
        yield "\n*(broke off here)*\n"


def is_replaced(item: Row, newest: Mapping[str, int]) -> bool:
    return bool(item["version"] < newest.get(item["doc_id"], item["version"]))


def named(item: Row) -> str:
    """A document's title and version, and whether it is whole."""
    return f"{item['title']}, version {item['version']}{'' if item['complete'] else ' (incomplete)'}"


def spoken(item: Row) -> str:
    """Who said it, and when."""
    at: datetime = item["created_at"]
    return f"{'User' if item['role'] == 'user' else 'Draftstream'}, {at:%d %B %Y, %H:%M} UTC"


# ---------------------------------------------------------------------------------------------------------------
# DOCX


async def thread_as_docx(title: str, items: AsyncIterator[Row], newest: Mapping[str, int]) -> bytes:
    """Raises TooLargeForDocx."""
    said: list[Row] = []
    size = 0
    async for item in items:
        said.append(item)
        size += len(item["content"])
        if size > DOCX_CHARS:
            raise TooLargeForDocx
    async with AT_ONCE:
        return await asyncio.to_thread(_conversation_docx, title, said, newest)


async def document_as_docx(item: Row) -> bytes:
    """One version of a document. Raises TooLargeForDocx."""
    if len(item["content"]) > DOCX_CHARS:
        raise TooLargeForDocx
    async with AT_ONCE:
        return await asyncio.to_thread(_document_docx, item)


# They are imported where they are used, as few processes make a DOCX, and a start would take a third longer.


def _conversation_docx(title: str, items: Sequence[Row], newest: Mapping[str, int]) -> bytes:
    from documents.markdown import Block, Span  # noqa: PLC0415  # see above
    from documents.word import write_docx  # noqa: PLC0415  # see above

    blocks = [Block("title", (Span(title),))]
    for item in items:
        if item["type"] == "doc":
            replaced = is_replaced(item, newest)
            note = f"{named(item)}{': replaced by a later version below' if replaced else ''}"
            blocks.append(Block("paragraph", (Span(note, italic=True),)))
            if not replaced:
                blocks += [Block("rule"), *_blocks(item["content"]), Block("rule")]
            continue
        blocks.append(Block("paragraph", (Span(spoken(item), bold=True),)))
        if item["role"] == "user":  # set in and as it was written, so that it can't be taken for a document
            lines = (line for line in item["content"].splitlines() if line.strip())
            blocks += [Block("paragraph", (Span(line),), 1) for line in lines]
            continue
        blocks += _blocks(item["content"])
        if not item["complete"]:
            blocks.append(Block("paragraph", (Span("(broke off here)", italic=True),)))
    return write_docx(title, blocks)


def _document_docx(item: Row) -> bytes:
    from documents.markdown import Block, Span  # noqa: PLC0415  # see above
    from documents.word import write_docx  # noqa: PLC0415  # see above

    note = [] if item["complete"] else [Block("paragraph", (Span(f"{named(item)}: it broke off", italic=True),))]
    return write_docx(item["title"], [*note, *_blocks(item["content"])], at=item["created_at"])


def _blocks(markdown: str) -> "list[Block]":
    from documents.markdown import blocks  # noqa: PLC0415  # see above

    return blocks(markdown)


# ---------------------------------------------------------------------------------------------------------------
# What changed


async def redline_as(kind: str, old: Row, new: Row) -> bytes:
    """Two versions of a document as one, with what changed marked: html, json or docx. Raises TooLargeForDocx."""
    if kind == "docx" and len(old["content"]) + len(new["content"]) > DOCX_CHARS:
        raise TooLargeForDocx
    async with AT_ONCE:
        return await asyncio.to_thread(_REDLINES[kind], old, new)


def _redline_page(old: Row, new: Row) -> bytes:
    notes = [f"Version {one['version']} is incomplete: it broke off." for one in (old, new) if not one["complete"]]
    versions = f"version {old['version']} to version {new['version']}"
    return page(new["title"], versions, redline(old["content"], new["content"]), notes).encode()


def _redline_json(old: Row, new: Row) -> bytes:
    marked = redline(old["content"], new["content"])
    described = ("version", "title", "complete", "created_at")
    return orjson.dumps(
        {
            "doc_id": new["doc_id"],
            "from": {name: old[name] for name in described},
            "to": {name: new[name] for name in described},
            "words": {mark: count_words(marked, mark) for mark in ("inserted", "deleted")},
            "blocks": [block_json(block) for block in marked],
        }
    )


def _redline_docx(old: Row, new: Row) -> bytes:
    """With tracked changes, each of the time at which the new version was written."""
    from documents.word import write_docx  # noqa: PLC0415  # see above

    return write_docx(new["title"], redline(old["content"], new["content"]), at=new["created_at"])


_REDLINES = {"html": _redline_page, "json": _redline_json, "docx": _redline_docx}
