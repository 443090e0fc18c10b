"""The handlers of downloads: a thread, a document, or a comparison of two of its versions, as a file."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from documents import files
from documents.redline_page import HEADER_POLICY
from documents.worker import Kind
from threads.histories import Branch, StoredVersion
from web import fields
from web.asgi import COMMON_HEADERS, JSON, Headers, Response
from web.fields import DiffFormat, ExportFormat
from web.file_names import disposition
from web.file_workers import too_large
from web.service import Call

Chunks = AsyncIterator[bytes]

MARKDOWN = "text/markdown; charset=utf-8"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = "text/html; charset=utf-8"
CHUNK_BYTES = 65536


async def get_export(call: Call) -> None:
    asked = fields.export_query(call.request.query())
    media_type, thread_as, document_as = EXPORTS[asked.format]
    async with call.service.files.lasting(call.request, call.response):
        branch = await call.threads.branch(call.thread_id, asked.checkpoint_id)
        if asked.document is None:
            name, chunks = disposition(branch.title, asked.format), thread_as(call, branch)
        else:
            document = await call.threads.document(branch, asked.document, asked.version)
            version = f"v{document['version']}"
            name, chunks = disposition(document["title"], asked.format, version), document_as(call, document)
        await send(call.response, media_type, [name], chunks)


async def get_diff(call: Call) -> None:
    asked = fields.diff_query(call.request.query())
    media_type, kind = REDLINES[asked.format]
    threads, doc_id = call.threads, call.ids["doc_id"]
    async with call.service.files.lasting(call.request, call.response):
        branch = await threads.branch(call.thread_id, asked.checkpoint_id)
        new = await threads.document(branch, doc_id, asked.new_version)
        old = await threads.document(branch, doc_id, asked.old_version or new["version"] - 1)
        headers = [disposition(new["title"], asked.format, f"v{old['version']}-v{new['version']}")]
        if asked.format == "html":  # a page to read, not a file to keep
            headers = [("content-security-policy", HEADER_POLICY), ("referrer-policy", "no-referrer")]
        await send(call.response, media_type, headers, made(call, kind, old, new))


# ---------------------------------------------------------------------------------------------------------------
# The formats


async def thread_as_markdown(call: Call, branch: Branch) -> Chunks:
    newest = await newest_versions(call, branch)
    yield files.markdown_head(branch.title)
    async for item in call.threads.transcript(branch):
        yield files.markdown_item(item, newest)


async def thread_as_json(call: Call, branch: Branch) -> Chunks:
    outline = await call.threads.outline(branch.thread_id)
    yield files.json_head(outline)
    separator = b""
    async for item in call.threads.everything(outline):
        yield separator + files.as_json(item)
        separator = files.JSON_SEPARATOR
    yield files.JSON_END


async def thread_as_docx(call: Call, branch: Branch) -> Chunks:
    async with call.service.files.place(call.owner):  # before the conversation takes memory
        conversation = files.Conversation(branch.title, await newest_versions(call, branch))
        try:
            async for item in call.threads.transcript(branch):
                conversation.add(item)
        except files.TooLarge as limit:
            raise too_large(str(limit)) from None
        parts = conversation.title, conversation.newest, conversation.items
        file = await call.service.files.make("conversation_as_docx", *parts)
    yield file


async def newest_versions(call: Call, branch: Branch) -> files.Newest:
    return {version["doc_id"]: version["version"] for version in await call.threads.versions(branch)}


async def document_as_markdown(_: Call, document: StoredVersion) -> Chunks:
    yield document["content"].encode()


async def document_as_json(_: Call, document: StoredVersion) -> Chunks:
    yield files.as_json(document)


def document_as_docx(call: Call, document: StoredVersion) -> Chunks:
    return made(call, "document_as_docx", document)


class Export(NamedTuple):
    """A format of exports, and how a thread and a document become a file of it."""

    media_type: str
    thread: Callable[[Call, Branch], Chunks]
    document: Callable[[Call, StoredVersion], Chunks]


EXPORTS: Mapping[ExportFormat, Export] = {
    "md": Export(MARKDOWN, thread_as_markdown, document_as_markdown),
    "json": Export(JSON, thread_as_json, document_as_json),
    "docx": Export(DOCX, thread_as_docx, document_as_docx),
}


class Redline(NamedTuple):
    """A format of comparisons, and the kind of file that an old and a new version become."""

    media_type: str
    kind: Kind


REDLINES: Mapping[DiffFormat, Redline] = {
    "html": Redline(HTML, "redline_as_html"),
    "json": Redline(JSON, "redline_as_json"),
    "docx": Redline(DOCX, "redline_as_docx"),
}


# ---------------------------------------------------------------------------------------------------------------
# Sending


async def made(call: Call, kind: Kind, *versions: files.Version) -> Chunks:
    """A file in one chunk, made by a process beside this one."""
    async with call.service.files.place(call.owner):
        file = await call.service.files.make(kind, *versions)
    yield file


async def send(response: Response, media_type: str, headers: Headers, chunks: Chunks) -> None:
    """Send a file as it is made; one that is small, or has one chunk, with its length.

    The answer begins when CHUNK_BYTES are there. Until then the file may still be refused.
    """
    waiting = bytearray()
    async for chunk in chunks:
        if len(waiting) >= CHUNK_BYTES:
            if not response.started:
                await response.start(200, [("content-type", media_type), *COMMON_HEADERS, *headers])
            await response.write(bytes(waiting))
            waiting.clear()
        waiting += chunk
    if response.started:
        await response.end(bytes(waiting))
    else:
        await response.whole(200, media_type, bytes(waiting), headers)
