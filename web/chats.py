"""The handlers of chats and runs: start a run, follow it, resume its stream, cancel it; and tokens for browsers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from access.credentials import Unauthorized
from chat import ChatRequest, StopCause, StreamMode
from chat.refusals import NotFound
from runs.run import Cursor, Run
from runs.sse import MEDIA_TYPE, EventId
from web import fields
from web.asgi import SAFE_TO_READ, Disconnected, Headers
from web.service import Call


async def get_chat(call: Call) -> None:
    query = call.request.query()
    if (last_event_id := last_event_id_of(call)) is not None:
        await resume(call, last_event_id, fields.stream_mode(query))
        return
    query.pop("access_token", None)
    # The body is ignored, but a request that breaks off before its end starts no run.
    await call.request.body(call.service.settings.max_body_bytes)
    chat = chat_of(call, query, query.pop("idempotency_key", None))
    await start_chat(call, chat, by_get=True)


async def post_chat(call: Call) -> None:
    chat = chat_of(call, await call.json(), call.request.headers.get("idempotency-key"))
    if (last_event_id := last_event_id_of(call)) is not None:
        await resume(call, last_event_id, chat.stream)
        return
    await start_chat(call, chat)


def last_event_id_of(call: Call) -> str | None:
    """None for an empty one: it names no run. Clients that keep the last id in a string send it before the first."""
    return call.request.headers.get("last-event-id") or None


def chat_of(call: Call, values: object, idempotency_key: str | None) -> ChatRequest:
    settings = call.service.settings
    return fields.chat_request(
        values,
        max_message_chars=settings.max_message_chars,
        idempotency_key=idempotency_key,
    )


async def start_chat(call: Call, chat: ChatRequest, *, by_get: bool = False) -> None:
    caller = call.caller
    run = await call.service.runs.start(
        call.owner, chat, begun_by=caller.credential, reads=caller.reads_runs_of, by_get=by_get
    )
    await stream(call, run, after=None, mode=chat.stream, cancel_on_disconnect=chat.on_disconnect == "cancel")


async def resume(call: Call, last_event_id: str, mode: StreamMode) -> None:
    """Answer a request that names its run, whatever its verb: go on with the run, or stop the client with 204.

    The message never runs twice.
    """
    seen = EventId.parse(last_event_id)
    run = None
    if seen is not None and seen.after is not None:
        run = await call.service.runs.find(call.owner, seen.run_id, call.caller.reads_runs_of)
    if seen is None or run is None:
        await call.response.whole(204, None, b"")
        return
    await stream(call, run, after=seen.after, mode=mode)


async def get_run_events(call: Call) -> None:
    """A caller without `read` is told the same of another's run as of no run: that it needs `read`."""
    query, run_id = call.request.query(), call.ids["run_id"]
    token = call.caller.stream_token
    if token is not None and token.resumes not in (None, run_id):
        raise Unauthorized
    query.pop("access_token", None)
    fields.events_names(query)
    run = await call.service.runs.find(call.owner, run_id, call.caller.reads_runs_of)
    if run is None:
        call.caller.need("read")
        raise NotFound("run")
    asked = fields.events_query(query, last_event_id_of(call), run_id)
    if asked.has_all:
        await call.response.whole(204, None, b"")
        return
    await stream(call, run, after=asked.after, mode=asked.stream)


async def cancel_run(call: Call) -> None:
    run = call.service.runs.get(call.owner, call.ids["run_id"])
    if run is None:
        raise NotFound("run")
    run.stop(StopCause.USER)
    await call.response.json(202, {"run_id": run.run_id})


async def stream(
    call: Call, run: Run, *, after: int | None, mode: StreamMode, cancel_on_disconnect: bool = False
) -> None:
    """Send the run's frames until its end, or until the client leaves. The run goes on without readers."""
    response = call.response
    cursor = run.follow(
        after,
        mode=mode,
        heartbeat_s=call.service.settings.heartbeat_s,
        write_now=response.write_now,
    )

    def cut() -> None:  # as another reader with the same stream token takes its place
        nonlocal cancel_on_disconnect
        cancel_on_disconnect = False
        cursor.close()
        response.abort()

    def leave() -> None:
        cursor.close()
        if cancel_on_disconnect:
            run.stop(StopCause.USER)

    leaving = asyncio.create_task(call.request.disconnected(), name=f"reader of {run.run_id}")
    leaving.add_done_callback(lambda disconnected: None if disconnected.cancelled() else leave())
    try:
        async with reading_with_token(call, run, cursor, cut):
            await response.start(200, stream_headers(call, run.run_id))
            async for frames in cursor:
                await response.write(frames)
            if not response.is_open:
                raise Disconnected
            await response.end()
    except Disconnected:
        leave()
        raise
    finally:
        cursor.close()
        leaving.cancel()
        await asyncio.wait({leaving})


@asynccontextmanager
async def reading_with_token(call: Call, run: Run, cursor: Cursor, cut: Callable[[], None]) -> AsyncIterator[None]:
    """Keep how far the request's stream token, if it has one, has read."""
    access, token = call.service.access, call.caller.stream_token
    stream = None if token is None else await access.open_stream(token, run.run_id, lambda: cursor.sent, cut)
    has_end = False
    try:
        yield
        has_end = cursor.finished
    finally:
        if stream is not None:
            access.close_stream(stream, finished=has_end)


def stream_headers(call: Call, run_id: str) -> Headers:
    headers = [
        ("content-type", MEDIA_TYPE),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
        *SAFE_TO_READ,
        call.location(f"/api/runs/{run_id}/events"),
        ("referrer-policy", "no-referrer"),
    ]
    if call.request.http_version == "1.1":
        headers.append(("connection", "keep-alive"))
    return headers


async def post_stream_token(call: Call) -> None:
    call.service.per_owner.stream_tokens.take(call.owner)
    token, life_s = await call.service.access.new_stream_token(call.caller)
    await call.response.json(201, {"access_token": token, "expires_in": int(life_s)})
