"""The handlers of threads: list and search them, read one, name it, delete one or the old ones."""

import base64
import binascii
import re
from datetime import UTC, datetime

from access.callers import Caller
from chat import CONTROL_CHARACTER, SURROGATE, InvalidRequest
from threads.histories import Place, Threads
from threads.search import QUERY_CHARS
from web.asgi import Request, Response
from web.service import Service

THREADS_A_PAGE = 20
TITLE_CHARS = 200
# RFC 3339; the + of its zone may be a space, as a URL has it in which it was not escaped.
TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?)([Zz]|[+ -]\d\d:\d\d)", re.ASCII)


def parameters(request: Request, *names: str) -> dict[str, str]:
    query = request.query()
    for name in query:
        if name not in names:
            raise InvalidRequest.of(name, "is not a known parameter")
    return query


def line(field: str, value: object, longest: int) -> str:
    """A line of text that a person wrote, without the space around it."""
    if not isinstance(value, str):
        raise InvalidRequest.of(field, "must be a string")
    text = value.strip()
    if not 1 <= len(text) <= longest:
        raise InvalidRequest.of(field, f"must have 1 to {longest} characters")
    if CONTROL_CHARACTER.search(text) or re.search(r"[\t\r\n]", text):
        raise InvalidRequest.of(field, "must not contain control characters")
    if SURROGATE.search(text):
        raise InvalidRequest.of(field, "must not contain unpaired surrogates")
    return text


async def get_threads(service: Service, request: Request, response: Response, caller: Caller) -> None:
    query = parameters(request, "limit", "cursor", "q")
    limit = query.get("limit", str(THREADS_A_PAGE))
    if not re.fullmatch(r"[1-9][0-9]?|100", limit):
        raise InvalidRequest.of("limit", "must be a whole number from 1 to 100")
    before = read_cursor(query["cursor"]) if "cursor" in query else None
    threads = Threads(service.store, caller.owner)
    if "q" in query:
        words = line("q", query["q"], QUERY_CHARS)
        found, place = await threads.search(words, int(limit), before)
        await response.json(200, {"threads": found, "next_cursor": place and write_cursor(*place)})
        return
    page, place = await threads.page(int(limit), before)
    await response.json(200, {"threads": page, "next_cursor": place and write_cursor(*place)})


async def delete_old_threads(service: Service, request: Request, response: Response, caller: Caller) -> None:
    query = parameters(request, "before")
    if "before" not in query:
        raise InvalidRequest.of("before", "is required")
    try:
        before = read_time(query["before"])
    except (ValueError, OverflowError):
        detail = "must be a time as RFC 3339 has it: 2026-11-24T09:30:00Z"
        raise InvalidRequest.of("before", detail) from None
    await response.json(200, {"deleted": await service.retention.delete_old(caller.owner, before)})


def read_time(text: str) -> datetime:
    """Raises ValueError, and OverflowError for the last of a time that UTC's calendar does not have."""
    if (match := TIME.fullmatch(text)) is None:
        raise ValueError(text)
    local, zone = match.groups()
    return datetime.fromisoformat(local.upper() + zone.upper().replace(" ", "+")).astimezone(UTC)


def write_cursor(created_at: datetime, thread_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {thread_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> Place:
    try:
        time, _, thread_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        created_at = datetime.fromisoformat(time)
        if created_at.tzinfo is None or "\0" in thread_id:
            raise ValueError(time)
        return Place(created_at.astimezone(UTC), thread_id)
    except (binascii.Error, ValueError, OverflowError):  # the last of a time that UTC's calendar does not have
        raise InvalidRequest.of("cursor", "must be the next_cursor of a page before") from None


async def get_thread(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    await response.json(200, await Threads(service.store, caller.owner).history(thread_id))


async def patch_thread(service: Service, request: Request, response: Response, caller: Caller, thread_id: str) -> None:
    fields = await request.json(service.settings.max_body_bytes)
    if not isinstance(fields, dict):
        raise InvalidRequest([{"pointer": "", "detail": "must be a JSON object"}])
    for name in fields:
        if name != "title":
            raise InvalidRequest.of(name.replace("~", "~0").replace("/", "~1"), "is not a known field")
    if "title" not in fields:
        raise InvalidRequest.of("title", "is required")
    title = line("title", fields["title"], TITLE_CHARS)
    threads = Threads(service.store, caller.owner)
    await threads.summary(thread_id)
    await service.store.rename_thread(caller.owner, thread_id, title)
    await response.json(200, await threads.summary(thread_id))


async def delete_thread(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    await Threads(service.store, caller.owner).summary(thread_id)
    await service.retention.delete(caller.owner, thread_id)
    await response.whole(204, None, b"")
