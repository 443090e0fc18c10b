"""The handlers of threads: list them, read one."""

import base64
import binascii
import re
from datetime import UTC, datetime

from access import Caller
from asgi import Request, Response, not_found
from chat import InvalidRequest
from service import Service

THREADS_A_PAGE = 20


async def get_threads(service: Service, request: Request, response: Response, caller: Caller) -> None:
    query = request.query()
    for name in query:
        if name not in ("limit", "cursor"):
            raise InvalidRequest.of(name, "is not a known parameter")
    limit = query.get("limit", str(THREADS_A_PAGE))
    if not re.fullmatch(r"[1-9][0-9]?|100", limit):
        raise InvalidRequest.of("limit", "must be a whole number from 1 to 100")
    before = read_cursor(query["cursor"]) if "cursor" in query else None
    threads, place = await service.store.threads(caller.owner, int(limit), before)
    await response.json(200, {"threads": threads, "next_cursor": place and write_cursor(*place)})


def write_cursor(created_at: datetime, thread_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {thread_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        time, _, thread_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        created_at = datetime.fromisoformat(time)
        if created_at.tzinfo is None or "\0" in thread_id:
            raise ValueError(time)
        return created_at.astimezone(UTC), thread_id
    except (binascii.Error, ValueError, OverflowError):  # the last of a time that UTC's calendar does not have
        raise InvalidRequest.of("cursor", "must be the next_cursor of a page before") from None


async def get_thread(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    history = await service.store.history(caller.owner, thread_id)
    if history is None:
        raise not_found("thread")
    await response.json(200, history)
