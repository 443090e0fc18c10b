"""The handlers of threads: list, search, read, rename and delete them."""

from web import fields
from web.service import Call


async def get_threads(call: Call) -> None:
    asked = fields.threads_query(call.request.query())
    page: dict[str, object]
    if asked.words is not None:
        found, place = await call.threads.search(asked.words, asked.limit, asked.before)
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
    await call.response.json(200, await call.threads.history(call.thread_id))


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
