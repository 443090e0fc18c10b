"""The handler of an owner's usage."""

from datetime import UTC, datetime

from threads.usage import usage_of
from web import fields
from web.service import Call


async def get_usage(call: Call) -> None:
    store = call.service.store
    first, last = fields.usage_query(call.request.query(), datetime.fromtimestamp(store.now(), UTC).date())
    items = await usage_of(store, call.owner, first, last)
    await call.response.json(200, {"from": first, "to": last, "items": items})
