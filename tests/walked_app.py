"""The service with two paths more: the calls of its functions in their order, and the stacks on which frames were written."""

import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from asgi_app import app as service
from web.asgi import ConnectionScope, Receive, Response, Send

ROOT = f"{Path(__file__).resolve().parent.parent}/"
MOST_CALLS = 100_000

calls: list[str] = []
stacks: list[list[str]] = []


def name_of(code: CodeType) -> str:
    """`drafting/reply.py:Reply.feed`; a closure by the function that defines it."""
    return f"{code.co_filename.removeprefix(ROOT)}:{code.co_qualname.partition('.<locals>')[0]}"


def on_call(frame: FrameType, event: str, _: Any) -> None:
    if event != "call" or not frame.f_code.co_filename.startswith(ROOT) or "/.venv/" in frame.f_code.co_filename:
        return
    if len(calls) < MOST_CALLS:
        calls.append(name_of(frame.f_code))
    if frame.f_code is Response.write_now.__code__:
        stack = []
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_filename.startswith(ROOT):
                stack.append(name_of(caller.f_code))
            caller = caller.f_back
        stacks.append(stack[::-1])


async def app(scope: ConnectionScope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        sys.setprofile(on_call)
    if scope["type"] == "http" and scope["path"] in ("/calls", "/stacks"):
        await Response(send).json(200, calls if scope["path"] == "/calls" else stacks)
    else:
        await service(scope, receive, send)
