"""Reads of one kind that are asked for at about the same time, as one query: so that a burst costs a few queries."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from storage.sql import Row

QUERIES_AT_ONCE = 2  # so that a burst is batched behind them, and one slow query does not hold up the next

Asked = tuple[tuple[object, ...], asyncio.Future[Row]]


class BatchedReads:
    """A query by columns: `fetch(sql, *columns)` takes one list for each argument, and gives one row for each read, in
    order. `close` waits for the queries under way.
    """

    def __init__(self, fetch: Callable[..., Awaitable[Sequence[Row]]], sql: str) -> None:
        self._fetch = fetch
        self._sql = sql
        self._asked: list[Asked] = []
        self._queries: set[asyncio.Task[None]] = set()

    async def read(self, *arguments: object) -> Row:
        """The row of these arguments. Raises the errors of `fetch`."""
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._asked.append((arguments, answer))
        if len(self._queries) < QUERIES_AT_ONCE:
            query = asyncio.create_task(self._query(), name="batched read")
            self._queries.add(query)
            query.add_done_callback(self._queries.discard)
        return await answer

    async def _query(self) -> None:
        await asyncio.sleep(0)  # reads of the same pass of the loop are batched
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                rows = await self._fetch(
                    self._sql, *map(list, zip(*(arguments for arguments, _ in asked), strict=True))
                )
            except Exception as error:  # noqa: BLE001  # whatever it is, it is for the callers of `read`
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), row in zip(asked, rows, strict=True):
                    if not answer.done():
                        answer.set_result(row)

    async def close(self) -> None:
        if self._queries:
            await asyncio.wait(self._queries)
