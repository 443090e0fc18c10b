"""The service with more paths, for its asyncio tasks and its counts of work so far, and a short time-out for a body."""

import asyncio
import sys
from collections import Counter
from collections.abc import MutableMapping, Sequence
from types import CodeType, FrameType
from typing import Any

import asyncpg

from access.keys import HAS_KEYS
from asgi_app import app as service
from drafting.provider.tap import Tap
from storage.clock import READ_CLOCK
from storage.commits import Committer
from storage.reader import Reader
from storage.units import Unit
from threads.statements import FIND_WORDS
from web import asgi
from web.asgi import ConnectionScope, Receive, Response, Send

asgi.BODY_TIMEOUT_S = 0.5
BESIDE = (FIND_WORDS, "SELECT owner, count(*)", READ_CLOCK, HAS_KEYS)  # reads beside the requests

done: Counter[str] = Counter()
fetch = Reader.fetch
commit = Committer.commit  # every statement of the writer goes through it


async def counted_fetch(self: Reader, sql: str, *arguments: object) -> list[asyncpg.Record]:
    done["reads"] += not sql.startswith(BESIDE)
    return await fetch(self, sql, *arguments)


async def counted_commit(self: Committer, units: Sequence[Unit]) -> None:
    done["rows"] += sum(len(unit.writes) for unit in units)
    done["units"] += len(units)
    await commit(self, units)


Reader.fetch = counted_fetch  # type: ignore[method-assign]
Committer.commit = counted_commit  # type: ignore[method-assign]


class Counted:
    """The server's own cycle of a request, as far as the service looks at it, with its sends counted."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.transport = getattr(send, "__self__").transport  # noqa: B009  # a bound method, as the type can't say

    async def send(self, message: MutableMapping[str, Any]) -> None:
        done["sends"] += 1
        done["sends within the model's arrival"] += within(Tap.data_received.__code__)
        await self._send(message)


def within(code: CodeType) -> bool:
    """Whether the function is on the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


async def app(scope: ConnectionScope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["path"] == "/tasks":
        await Response(send).json(200, sorted(task.get_name() for task in asyncio.all_tasks()))
    elif scope["type"] == "http" and scope["path"] == "/done":
        await Response(send).json(200, done)
    else:
        await service(scope, receive, Counted(send).send if scope["type"] == "http" else send)
