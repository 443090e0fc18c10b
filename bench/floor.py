"""The floor: the cost of the sockets. A bare ASGI callable that relays the provider's bytes through aiohttp, as they come.

No graph, no memory, no database, and no look into the bytes. It takes the same requests as the service.
"""

import os
from typing import Any

import aiohttp
import orjson

HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    request = {
        "model": os.environ["OPENAI_MODEL"],
        "messages": [{"role": "user", "content": orjson.loads(body)["message"]}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    async with scope["state"]["session"].post("chat/completions", data=orjson.dumps(request)) as response:
        async for data in response.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body"})


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    async with aiohttp.ClientSession(
        base_url=os.environ["OPENAI_BASE_URL"] + "/",
        headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
    ) as scope["state"]["session"]:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
