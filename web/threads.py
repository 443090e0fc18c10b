"""The handlers of threads: list, search, read, rename and delete them."""

from collections.abc import AsyncIterator

import orjson

from threads.histories import HistoryPage
from web import fields
from web.asgi import JSON
from web.downloads import send
from web.service import Call


async def get_threads(call: Call) -> None:
    asked = fields.threads_query(call.request.query())
    page: dict[str, object]
    if asked.words is not None:
        search = call.threads.search(asked.words, asked.limit, asked.before)
        found, place = await call.request.while_connected(search)
        page = {"threads": found, "next_cursor": place and fields.cursor_of(place)}
    else:
        newest, place = await call.threads.page(asked.limit, asked.before)
        page = {"threads": newest, "next_cursor": place and fields.cursor_of(place)}
    await call.response.json(200, page)


async def delete_old_threads(call: Call) -> None:
    before = fields.old_threads_query(call.request.query())
    try:
        deleted = await call.service.retention.delete_old(call.owner, before)
    finally:
        call.service.per_owner.stored_bytes.forget(call.owner)
    await call.response.json(200, {"deleted": deleted})


async def get_thread(call: Call) -> None:
    asked = fields.history_query(call.request.query())
    page = await call.threads.history(call.thread_id, asked.limit, asked.before)
    await send(call.response, JSON, [], history_as_json(page))


async def history_as_json(page: HistoryPage) -> AsyncIterator[bytes]:
    yield orjson.dumps({**page.thread, "head_run_id": page.head_run_id})[:-1] + b',"messages":['
    separator = b""
    async for item in page.messages:
        yield separator + orjson.dumps(item)
        separator = b","
    yield b"]," + orjson.dumps({"runs": page.runs, "next_before": page.next_before})[1:]


async def patch_thread(call: Call) -> None:
    title = fields.new_title(await call.json())
    await call.threads.summary(call.thread_id)
    await call.service.store.rename_thread(call.owner, call.thread_id, title)
    # With this title, whoever renames the thread at the same time: the caller may lack `read`.
    await call.response.json(200, {**await call.threads.summary(call.thread_id), "title": title})


async def delete_thread(call: Call) -> None:
    await call.threads.summary(call.thread_id)
    await call.service.retention.delete(call.owner, call.thread_id)
    call.service.per_owner.stored_bytes.forget(call.owner)
    await call.response.whole(204, None, b"")
