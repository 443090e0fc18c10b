"""The handlers of downloads: a conversation or a document as a file."""

import re
import unicodedata
from collections.abc import AsyncIterator, Awaitable
from urllib.parse import quote

from chat import Refusal
from documents import files as export
from documents.redline_page import HEADER_POLICY
from web import fields
from web.asgi import Response
from web.service import Call

MEDIA_TYPES = {
    "md": "text/markdown; charset=utf-8",
    "json": "application/json",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "html": "text/html; charset=utf-8",
}
TITLE_BYTES = 150  # in a file's name, of which most file systems take 255 bytes
CHUNK_BYTES = 65536
# Characters that some file system refuses, and those that reverse the direction of text, which can hide an extension.
NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u200e\u200f\u202a-\u202e\u2066-\u2069]+')


async def get_export(call: Call) -> None:
    asked = fields.export_query(call.request.query())
    kind = asked.format
    threads, response = call.threads, call.response
    branch = await threads.branch(call.thread_id, asked.checkpoint_id)
    if asked.document is not None:
        document = await threads.document(branch, asked.document, asked.version)
        await send_document(response, kind, document)
    elif kind == "json":
        outline = await threads.outline(call.thread_id)
        await send_chunks(response, kind, branch.title, export.thread_as_json(outline, threads.everything(outline)))
    else:
        items = threads.transcript(branch)
        newest = export.newest_versions(await threads.versions(branch))
        if kind == "docx":
            content = await within_docx(export.thread_as_docx(branch.title, items, newest))
            await response.whole(200, MEDIA_TYPES[kind], content, [disposition(branch.title, kind)])
        else:
            await send_chunks(response, kind, branch.title, export.thread_as_markdown(branch.title, items, newest))


async def get_diff(call: Call) -> None:
    asked = fields.diff_query(call.request.query())
    kind = asked.format
    threads = call.threads
    branch = await threads.branch(call.thread_id, asked.checkpoint_id)
    new = await threads.document(branch, call.ids["doc_id"], asked.new_version)
    old = await threads.document(branch, call.ids["doc_id"], asked.old_version or new["version"] - 1)
    content = await within_docx(export.redline_as(kind, old, new))
    headers = [disposition(new["title"], kind, f"v{old['version']}-v{new['version']}")]
    if kind == "html":  # a page to read, not a file to keep
        headers = [("content-security-policy", HEADER_POLICY), ("referrer-policy", "no-referrer")]
    await call.response.whole(200, MEDIA_TYPES[kind], content, headers)


# ---------------------------------------------------------------------------------------------------------------
# Sending


async def within_docx(content: Awaitable[bytes]) -> bytes:
    """The DOCX. Raises Refusal for a text that is too large for one."""
    try:
        return await content
    except export.TooLargeForDocx:
        detail = "This is too much text for a DOCX; export it as md or json, or export a single document."
        raise Refusal("too_large_for_docx", detail) from None


async def send_document(response: Response, kind: str, document: export.Row) -> None:
    named = disposition(document["title"], kind, f"v{document['version']}")
    if kind == "docx":
        content = await within_docx(export.document_as_docx(document))
        await response.whole(200, MEDIA_TYPES[kind], content, [named])
    elif kind == "json":
        await response.json(200, document, [named])
    else:
        await response.whole(200, MEDIA_TYPES[kind], document["content"].encode(), [named])


async def send_chunks(response: Response, kind: str, title: str, chunks: AsyncIterator[bytes]) -> None:
    """Send chunks as they are made. The first one is made before the answer begins, as making it may raise Refusal."""
    waiting = bytearray(await anext(chunks))
    headers = [("content-type", MEDIA_TYPES[kind]), disposition(title, kind)]
    await response.start(200, [*headers, ("cache-control", "no-store"), ("x-content-type-options", "nosniff")])
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= CHUNK_BYTES:
            await response.write(bytes(waiting))
            waiting.clear()
    await response.end(bytes(waiting))


def disposition(title: str, extension: str, version: str = "") -> tuple[str, str]:
    """The header that names the file (RFC 6266): in Unicode, and in ASCII for clients that don't read Unicode."""
    words = " ".join(NOT_IN_FILE_NAMES.sub(" ", title).split())
    name = words.encode()[:TITLE_BYTES].decode(errors="ignore").strip(" .") or "thread"
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = " ".join(plain.replace("%", " ").split()).strip(" .") or "thread"
    end = f" {version}.{extension}" if version else f".{extension}"
    return (
        "content-disposition",
        f"attachment; filename=\"{plain}{end}\"; filename*=UTF-8''{quote(name + end, safe='')}",
    )
