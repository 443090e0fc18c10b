"""A conversation, a document or a comparison as a file. Pure: items come in, the bytes of a file go out.

A conversation is one branch, as a person sees it: each message with its author, and each document at its newest
version, in the place where that version was written. Earlier versions are named in their places. The JSON of a thread
has all branches and all versions. Markdown and JSON are made item by item, so a very long thread costs little memory.
A DOCX and a comparison are made as a whole, of parsed text, and therefore have two limits: CHARS and PARTS.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Literal, NotRequired, TypedDict

import orjson

from documents.markdown import Block, Room, Span, TooManyParts, blocks
from documents.redline import block_json, count_words, redline
from documents.redline_page import page

CHARS = 1_000_000  # some hundred pages
PARTS = 20_000  # paragraphs, cells and spans: the dearest of them take a third of a millisecond each in a DOCX
LINE_END = re.compile(r"\r\n|\r|\n")  # as in Markdown; str.splitlines() also splits at characters that nobody sees
# In front of the words with which `_spoken` begins, whatever marks or tags stand before or around them.
TURN = re.compile(
    r"(?<![^\r\n])(?=(?:<[^<>\r\n]*>|[^\w\r\n<]|_)*(?:User|Draftstream)(?:<[^<>\r\n]*>|[^\w\r\n<]|_)*,)", re.IGNORECASE
)
JSON_FORMAT = "draftstream-thread/1"

NAMED = Block("paragraph", (Span(""),))  # of the size of the paragraph with an item's name or author

Newest = Mapping[str, int]
"""The newest version of each document of a conversation, by the document's id."""


class Item(TypedDict):
    """A message or a document's version, in its place in a thread."""

    role: Literal["user", "assistant"]
    type: Literal["message", "doc"]
    content: str
    complete: bool
    created_at: datetime
    doc_id: NotRequired[str]
    title: NotRequired[str]
    version: NotRequired[int]


class Version(TypedDict):
    """A version of a document."""

    doc_id: str
    title: str
    version: int
    content: str
    complete: bool
    created_at: datetime


class TooLarge(Exception):
    """The text is above a limit of what a DOCX or a comparison is made of; the argument says which one."""


# ---------------------------------------------------------------------------------------------------------------
# A thread as JSON


JSON_SEPARATOR = b",\n"
JSON_END = b"]}\n"


def json_head(outline: Mapping[str, object]) -> bytes:
    """The thread and its runs. The items of all branches follow, with JSON_SEPARATOR between them, then JSON_END."""
    return orjson.dumps({"format": JSON_FORMAT, **outline})[:-1] + b',"messages":['


def as_json(item: Mapping[str, object]) -> bytes:
    """An item in the JSON of its thread, or a version of a document by itself."""
    return orjson.dumps(item)


# ---------------------------------------------------------------------------------------------------------------
# A conversation as Markdown


def markdown_head(title: str) -> bytes:
    """The conversation's title. `markdown_item` of each item follows."""
    return f"# {title}\n".encode()


def markdown_item(item: Item, newest: Newest) -> bytes:
    return f"\n{_markdown(item, newest)}".encode()


def _markdown(item: Item, newest: Newest) -> str:
    if item["type"] == "doc":
        if _is_replaced(item, newest):
            return f"*{_named(item)}: replaced by a later version below.*\n"
        return f"---\n\n*{_named(item)}*\n\n{_own_words(item)}\n\n---\n"
    said = f"**{_spoken(item)}**\n\n"
    if item["role"] == "user":
        # As a quotation, so that a person's words can't be taken for the reply, whatever they look like.
        return said + "".join(f"> {line}\n" if line else ">\n" for line in LINE_END.split(item["content"]))
    end = "" if item["complete"] else "\n*(broke off here)*\n"
    return f"{said}{_own_words(item)}\n{end}"


def _own_words(item: Item) -> str:
    """A line that looks like the beginning of a turn gets a backslash, so that no reply can make up a turn."""
    return TURN.sub(r"\\", item["content"].rstrip())


def _is_replaced(item: Item, newest: Newest) -> bool:
    return item["version"] < newest.get(item["doc_id"], item["version"])


def _named(item: Item | Version) -> str:
    """A document's title and version, and whether it is whole."""
    return f"{item['title']}, version {item['version']}{'' if item['complete'] else ' (incomplete)'}"


def _spoken(item: Item) -> str:
    """The author and the time."""
    return f"{'User' if item['role'] == 'user' else 'Draftstream'}, {item['created_at']:%d %B %Y, %H:%M} UTC"


# ---------------------------------------------------------------------------------------------------------------
# DOCX. Its writer is imported where it is used: few processes make a DOCX, and a start would take a third longer.


class Conversation:
    """A conversation that is collected for a DOCX."""

    def __init__(self, title: str, newest: Newest) -> None:
        self.title = title
        self.newest = newest
        self.items: list[Item] = []
        self._chars = 0
        self._room = Room(PARTS)

    def add(self, item: Item) -> None:
        """Raises TooLarge. An item takes memory also where it has no text."""
        if item["type"] == "doc" and _is_replaced(item, self.newest):
            item = {**item, "content": ""}  # it is only named, so any number of versions fits
        self._chars += len(item["content"])
        check_chars(self._chars)
        with _limited(self._room) as room:
            room.take(NAMED)
        self.items.append(item)


def conversation_as_docx(title: str, newest: Newest, items: Iterable[Item]) -> bytes:
    """Raises TooLarge, as all that follow."""
    from documents.word import write_docx  # noqa: PLC0415  # see above

    with _limited() as room:
        return write_docx(title, list(_conversation_blocks(title, newest, items, room)))


@contextmanager
def _limited(room: Room | None = None) -> Iterator[Room]:
    """Room for the parts of one file."""
    try:
        yield room or Room(PARTS)
    except TooManyParts:
        raise TooLarge(f"has more than {PARTS:,} paragraphs, table cells and passages of one style") from None


def check_chars(chars: int) -> None:
    """Raises TooLarge."""
    if chars > CHARS:
        raise TooLarge(f"has more than {CHARS:,} characters")


def _conversation_blocks(title: str, newest: Newest, items: Iterable[Item], room: Room) -> Iterator[Block]:
    yield Block("title", (Span(title),))
    for item in items:
        room.take(NAMED)
        if item["type"] == "doc":
            yield from _document_blocks(item, newest, room)
        else:
            yield from _message_blocks(item, room)


def _document_blocks(item: Item, newest: Newest, room: Room) -> Iterator[Block]:
    replaced = _is_replaced(item, newest)
    note = f"{_named(item)}{': replaced by a later version below' if replaced else ''}"
    yield Block("paragraph", (Span(note, italic=True),))
    if not replaced:
        yield from (Block("rule"), *blocks(item["content"], room), Block("rule"))


def _message_blocks(item: Item, room: Room) -> Iterator[Block]:
    yield Block("paragraph", (Span(_spoken(item), bold=True),))
    if item["role"] == "user":  # set in and as it was written, so that it can't be taken for a document
        for line in LINE_END.split(item["content"]):
            if line.strip(" \t"):
                block = Block("paragraph", (Span(line),), 1)
                room.take(block)
                yield block
        return
    yield from blocks(item["content"], room)
    if not item["complete"]:
        yield Block("paragraph", (Span("(broke off here)", italic=True),))


def document_as_docx(version: Version) -> bytes:
    from documents.word import write_docx  # noqa: PLC0415  # see above

    check_chars(len(version["content"]))
    text = f"{_named(version)}: it broke off"
    note = [] if version["complete"] else [Block("paragraph", (Span(text, italic=True),))]
    with _limited() as room:
        return write_docx(version["title"], [*note, *blocks(version["content"], room)], at=version["created_at"])


# ---------------------------------------------------------------------------------------------------------------
# Two versions of a document as one, with the changes marked


def redline_as_html(old: Version, new: Version) -> bytes:
    notes = [f"Version {one['version']} is incomplete: it broke off." for one in (old, new) if not one["complete"]]
    versions = f"version {old['version']} to version {new['version']}"
    return page(new["title"], versions, _redline(old, new), notes).encode()


def redline_as_json(old: Version, new: Version) -> bytes:
    marked = _redline(old, new)
    return orjson.dumps(
        {
            "doc_id": new["doc_id"],
            "from": _described(old),
            "to": _described(new),
            "words": {mark: count_words(marked, mark) for mark in ("inserted", "deleted")},
            "blocks": [block_json(block) for block in marked],
        }
    )


def _redline(old: Version, new: Version) -> list[Block]:
    check_chars(len(old["content"]) + len(new["content"]))
    with _limited() as room:
        marked = redline(old["content"], new["content"], room)
    with _limited() as room:  # a passage that changed word by word is many
        for block in marked:
            room.take(block)
    return marked


def _described(version: Version) -> dict[str, object]:
    return {
        "version": version["version"],
        "title": version["title"],
        "complete": version["complete"],
        "created_at": version["created_at"],
    }


def redline_as_docx(old: Version, new: Version) -> bytes:
    """With tracked changes, each of the time at which the new version was written."""
    from documents.word import write_docx  # noqa: PLC0415  # see above

    return write_docx(new["title"], _redline(old, new), at=new["created_at"])
