"""The handlers of chats and runs: start one, follow it, come back to it, cancel it; a token for a browser to do so."""

import asyncio

from access.callers import Caller
from chat import NotFound, Refusal, StopCause, StreamMode
from runs.run import Run
from runs.sse import EventId
from web import fields
from web.asgi import Disconnected, Request, Response
from web.service import Service


async def get_chat(service: Service, request: Request, response: Response, caller: Caller) -> None:
    if "prefetch" in request.headers.get("sec-purpose", request.headers.get("purpose", "")):
        raise Refusal("prefetch", "A chat is not started for a prefetch.")
    if (last_event_id := request.headers.get("last-event-id")) is not None:
        await resume(service, request, response, caller, last_event_id)
        return
    query = request.query()
    query.pop("access_token", None)
    await request.body(service.settings.max_body_bytes)  # says nothing; but a request that breaks off starts no run
    await start_chat(service, request, response, caller, query, idempotency_key=query.pop("idempotency_key", None))


async def post_chat(service: Service, request: Request, response: Response, caller: Caller) -> None:
    body = await request.json(service.settings.max_body_bytes)
    await start_chat(service, request, response, caller, body, idempotency_key=request.headers.get("idempotency-key"))


async def start_chat(
    service: Service,
    request: Request,
    response: Response,
    caller: Caller,
    values: object,
    *,
    idempotency_key: str | None,
) -> None:
    if not service.allows(request):
        raise Refusal("bad_origin", "Pages of this origin may not use the service; see CORS_ALLOW_ORIGINS.")
    chat = fields.chat_request(
        values, max_message_chars=service.settings.max_message_chars, idempotency_key=idempotency_key
    )
    run = await service.runs.start(caller.owner, chat)
    cancel = chat.on_disconnect == "cancel"
    await stream(service, request, response, caller, run, after=None, mode=chat.stream, cancel_on_disconnect=cancel)


async def resume(service: Service, request: Request, response: Response, caller: Caller, last_event_id: str) -> None:
    """An EventSource that comes back: go on with its run, or stop it with 204. It never runs the message twice."""
    event_id = EventId.parse(last_event_id)
    run = None
    if event_id is not None and event_id.after is not None:
        run = await service.runs.find(caller.owner, event_id.run_id)
    if event_id is None or event_id.after is None or run is None:
        await response.whole(204, None, b"")
        return
    await stream(
        service, request, response, caller, run, after=event_id.after, mode=fields.stream_mode(request.query())
    )


async def get_run_events(service: Service, request: Request, response: Response, caller: Caller, run_id: str) -> None:
    query = request.query()
    query.pop("access_token", None)
    fields.events_names(query)
    run = await service.runs.find(caller.owner, run_id)
    if run is None:
        raise NotFound("run")
    asked = fields.events_query(query, request.headers.get("last-event-id"), run_id)
    if asked.has_all:
        await response.whole(204, None, b"")
        return
    await stream(service, request, response, caller, run, after=asked.after, mode=asked.stream)


async def cancel_run(service: Service, _: Request, response: Response, caller: Caller, run_id: str) -> None:
    run = service.runs.get(caller.owner, run_id)
    if run is None:
        raise NotFound("run")
    run.stop(StopCause.USER)
    await response.json(202, {"run_id": run_id})


async def stream(
    service: Service,
    request: Request,
    response: Response,
    caller: Caller,
    run: Run,
    *,
    after: int | None,
    mode: StreamMode,
    cancel_on_disconnect: bool = False,
) -> None:
    """Send the run's frames until its end, or until the client leaves. The run goes on without a reader."""

    def leave() -> None:
        cursor.close()
        if cancel_on_disconnect:
            run.stop(StopCause.USER)

    headers = [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
        ("location", f"/api/runs/{run.run_id}/events"),
        ("referrer-policy", "no-referrer"),
        *service.limits.headers(caller.owner),
    ]
    if request.http_version == "1.1":
        headers.append(("connection", "keep-alive"))
    await service.access.bind(caller, run.run_id)
    cursor = run.follow(
        after,
        mode=mode,
        heartbeat_s=service.settings.heartbeat_s,
        on_stuck=response.abort,
        write_now=response.write_now,
    )
    leaving = asyncio.create_task(request.disconnected(), name=f"reader of {run.run_id}")
    leaving.add_done_callback(lambda disconnected: None if disconnected.cancelled() else leave())
    try:
        await response.start(200, headers)
        async for frames in cursor:
            await response.write(frames)
        await response.end()
    except Disconnected:
        leave()
        raise
    finally:
        cursor.close()
        leaving.cancel()
        await asyncio.wait({leaving})


async def post_stream_token(service: Service, _: Request, response: Response, caller: Caller) -> None:
    token, life_s = await service.access.new_stream_token(caller)
    await response.json(201, {"access_token": token, "expires_in": int(life_s)})
