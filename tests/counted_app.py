"""The service with one path more, which tells its asyncio tasks, and with little patience for a slow body."""

import asyncio

import asgi
from asgi import Receive, Response, Scope, Send
from asgi_app import app as service

asgi.BODY_TIMEOUT_S = 0.5


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["path"] == "/tasks":
        await Response(send).json(200, sorted(task.get_name() for task in asyncio.all_tasks()))
    else:
        await service(scope, receive, send)
