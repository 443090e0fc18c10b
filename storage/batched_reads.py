"""Reads of one kind that are asked for at about the same time, as one query: so a crowd costs a few looks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import asyncpg

LOOKS_AT_ONCE = 2  # so that a crowd gathers behind them, and one slow look does not hold up the next

Ask = tuple[tuple[object, ...], asyncio.Future[asyncpg.Record]]


class Gathered:
    """A query by columns: `fetch(sql, *columns)` takes one list for each argument, and gives one row for each ask, in
    order. `close` waits for what was asked.
    """

    def __init__(self, fetch: Callable[..., Awaitable[Sequence[asyncpg.Record]]], sql: str) -> None:
        self._fetch = fetch
        self._sql = sql
        self._asked: list[Ask] = []
        self._looks: set[asyncio.Task[None]] = set()

    async def read(self, *arguments: object) -> asyncpg.Record:
        """The row of these arguments. Raises what `fetch` raises."""
        answer: asyncio.Future[asyncpg.Record] = asyncio.get_running_loop().create_future()
        self._asked.append((arguments, answer))
        if len(self._looks) < LOOKS_AT_ONCE:
            look = asyncio.create_task(self._look(), name="look")
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        return await answer

    async def _look(self) -> None:
        await asyncio.sleep(0)  # those that ask in this pass of the loop come along
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                rows = await self._fetch(
                    self._sql, *map(list, zip(*(arguments for arguments, _ in asked), strict=True))
                )
            except Exception as error:  # noqa: BLE001  # whatever it is, it is for those that asked
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), row in zip(asked, rows, strict=True):
                    if not answer.done():
                        answer.set_result(row)

    async def close(self) -> None:
        if self._looks:
            await asyncio.wait(self._looks)
