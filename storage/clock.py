"""The database's clock, as this process estimates it: the monotonic clock and an offset.

Times that are stored come from it. The clock of this machine may be wrong, or be set, and `now()` in a statement would
give a turn that waited in the queue or in the journal the time of its commit.

The database was asked for its time between two readings of the monotonic clock, so the offset lies between two bounds.
An estimate within the bounds stays. So it does not jitter, a comparison during which this process was stopped changes
nothing, and a database with another clock, after a failover, is followed at the next comparison.
"""

import time
from collections.abc import Awaitable, Callable, Sequence

from storage.sql import Row

READ_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8 AS now"


class DatabaseClock:
    def __init__(self) -> None:
        self._offset: float | None = None

    def now(self) -> float:
        """Seconds since the epoch. `compare` must have returned once."""
        if self._offset is None:
            raise RuntimeError("the database's clock has not been read yet")
        return time.monotonic() + self._offset

    async def compare(self, fetch: Callable[[str], Awaitable[Sequence[Row]]]) -> None:
        """Read the database's clock. Raises as `fetch` does."""
        asked_at = time.monotonic()
        [row] = await fetch(READ_CLOCK)
        self.compared(asked_at, row["now"], time.monotonic())

    def compared(self, asked_at: float, read: float, answered_at: float) -> None:
        """`read` was the database's time at some moment between the two of the monotonic clock."""
        least, most = read - answered_at, read - asked_at
        middle = (least + most) / 2
        self._offset = middle if self._offset is None else min(max(self._offset, least), most)
