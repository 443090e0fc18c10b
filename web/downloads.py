"""The handlers of downloads: a thread, a document, or a comparison of two of its versions, as a file."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple, ParamSpec

from chat import Refusal
from documents import files
from documents.redline_page import HEADER_POLICY
from threads.histories import Branch, StoredVersion, Threads
from web import fields
from web.asgi import COMMON_HEADERS, Headers, Response
from web.fields import DiffFormat, ExportFormat
from web.file_names import disposition
from web.service import Call

P = ParamSpec("P")
Chunks = AsyncIterator[bytes]

MARKDOWN = "text/markdown; charset=utf-8"
JSON = "application/json"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = "text/html; charset=utf-8"
CHUNK_BYTES = 65536
FILES_AT_ONCE = asyncio.Semaphore(2)  # in threads beside the streams


async def get_export(call: Call) -> None:
    asked = fields.export_query(call.request.query())
    media_type, thread_as, document_as = EXPORTS[asked.format]
    threads = call.threads
    branch = await threads.branch(call.thread_id, asked.checkpoint_id)
    if asked.document is None:
        name, chunks = disposition(branch.title, asked.format), thread_as(threads, branch)
    else:
        document = await threads.document(branch, asked.document, asked.version)
        version = f"v{document['version']}"
        name, chunks = disposition(document["title"], asked.format, version), document_as(document)
    await send(call.response, media_type, [name], chunks)


async def get_diff(call: Call) -> None:
    asked = fields.diff_query(call.request.query())
    media_type, redline_as = REDLINES[asked.format]
    threads, doc_id = call.threads, call.ids["doc_id"]
    branch = await threads.branch(call.thread_id, asked.checkpoint_id)
    new = await threads.document(branch, doc_id, asked.new_version)
    old = await threads.document(branch, doc_id, asked.old_version or new["version"] - 1)
    headers = [disposition(new["title"], asked.format, f"v{old['version']}-v{new['version']}")]
    if asked.format == "html":  # a page to read, not a file to keep
        headers = [("content-security-policy", HEADER_POLICY), ("referrer-policy", "no-referrer")]
    await send(call.response, media_type, headers, in_a_thread(redline_as, old, new))


# ---------------------------------------------------------------------------------------------------------------
# The formats


async def thread_as_markdown(threads: Threads, branch: Branch) -> Chunks:
    newest = await newest_versions(threads, branch)
    yield files.markdown_head(branch.title)
    async for item in threads.transcript(branch):
        yield files.markdown_item(item, newest)


async def thread_as_json(threads: Threads, branch: Branch) -> Chunks:
    outline = await threads.outline(branch.thread_id)
    yield files.json_head(outline)
    separator = b""
    async for item in threads.everything(outline):
        yield separator + files.as_json(item)
        separator = files.JSON_SEPARATOR
    yield files.JSON_END


async def thread_as_docx(threads: Threads, branch: Branch) -> Chunks:
    conversation = files.Conversation(branch.title, await newest_versions(threads, branch))
    async for item in threads.transcript(branch):
        conversation.add(item)
    async for chunk in in_a_thread(conversation.as_docx):
        yield chunk


async def newest_versions(threads: Threads, branch: Branch) -> files.Newest:
    return {version["doc_id"]: version["version"] for version in await threads.versions(branch)}


async def document_as_markdown(document: StoredVersion) -> Chunks:
    yield document["content"].encode()


async def document_as_json(document: StoredVersion) -> Chunks:
    yield files.as_json(document)


def document_as_docx(document: StoredVersion) -> Chunks:
    return in_a_thread(files.document_as_docx, document)


class Export(NamedTuple):
    """A format of exports, and how a thread and a document become a file of it."""

    media_type: str
    thread: Callable[[Threads, Branch], Chunks]
    document: Callable[[StoredVersion], Chunks]


EXPORTS: Mapping[ExportFormat, Export] = {
    "md": Export(MARKDOWN, thread_as_markdown, document_as_markdown),
    "json": Export(JSON, thread_as_json, document_as_json),
    "docx": Export(DOCX, thread_as_docx, document_as_docx),
}


class Redline(NamedTuple):
    """A format of comparisons, and how an old and a new version become a file of it."""

    media_type: str
    redline: Callable[[files.Version, files.Version], bytes]


REDLINES: Mapping[DiffFormat, Redline] = {
    "html": Redline(HTML, files.redline_as_html),
    "json": Redline(JSON, files.redline_as_json),
    "docx": Redline(DOCX, files.redline_as_docx),
}


# ---------------------------------------------------------------------------------------------------------------
# Sending


async def in_a_thread(make: Callable[P, bytes], *args: P.args, **kwargs: P.kwargs) -> Chunks:
    """A file in one chunk, made beside the streams."""
    async with FILES_AT_ONCE:
        made = await asyncio.to_thread(make, *args, **kwargs)
    yield made


async def send(response: Response, media_type: str, headers: Headers, chunks: Chunks) -> None:
    """Send a file as it is made; one that is small, or has one chunk, with its length.

    The answer begins when CHUNK_BYTES are there. Until then the file may still be refused.
    """
    waiting = bytearray()
    try:
        async for chunk in chunks:
            if len(waiting) >= CHUNK_BYTES:
                if not response.started:
                    await response.start(200, [("content-type", media_type), *COMMON_HEADERS, *headers])
                await response.write(bytes(waiting))
                waiting.clear()
            waiting += chunk
    except files.TooLargeForDocx:
        detail = "This is too much text for a DOCX; export it as md or json, or export a single document."
        raise Refusal("too_large_for_docx", detail) from None
    if response.started:
        await response.end(bytes(waiting))
    else:
        await response.whole(200, media_type, bytes(waiting), headers)
