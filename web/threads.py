"""The handlers of threads: list and search them, read one, name it, delete one or the old ones."""

from access.callers import Caller
from threads.histories import Threads
from web import fields
from web.asgi import Request, Response
from web.service import Service


async def get_threads(service: Service, request: Request, response: Response, caller: Caller) -> None:
    asked = fields.threads_query(request.query())
    threads = Threads(service.store, caller.owner)
    page: dict[str, object]
    if asked.words is not None:
        found, place = await threads.search(asked.words, asked.limit, asked.before)
        page = {"threads": found, "next_cursor": place and fields.cursor_of(place)}
    else:
        newest, place = await threads.page(asked.limit, asked.before)
        page = {"threads": newest, "next_cursor": place and fields.cursor_of(place)}
    await response.json(200, page)


async def delete_old_threads(service: Service, request: Request, response: Response, caller: Caller) -> None:
    before = fields.old_threads_query(request.query())
    await response.json(200, {"deleted": await service.retention.delete_old(caller.owner, before)})


async def get_thread(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    await response.json(200, await Threads(service.store, caller.owner).history(thread_id))


async def patch_thread(service: Service, request: Request, response: Response, caller: Caller, thread_id: str) -> None:
    title = fields.new_title(await request.json(service.settings.max_body_bytes))
    threads = Threads(service.store, caller.owner)
    await threads.summary(thread_id)
    await service.store.rename_thread(caller.owner, thread_id, title)
    await response.json(200, await threads.summary(thread_id))


async def delete_thread(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    await Threads(service.store, caller.owner).summary(thread_id)
    await service.retention.delete(caller.owner, thread_id)
    await response.whole(204, None, b"")
