"""Admission: whether the descriptors and the memory that are left allow more work.

A run needs two descriptors: its client's connection, which is open when the request arrives, and the model's. RESERVED
of them are for the database, the journal, processes and names; nothing here takes those. The last few of
the others are headroom for clients that are refused, and for answers that are soon over. So a client is told 503
`overloaded`, and is never cut, and a run that has begun finds a descriptor for its model.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from chat.refusals import Overloaded
from telemetry.resources import Descriptors, Memory

log = logging.getLogger("draftstream.admission")

Load = Literal["none", "short", "long"]
"""The work behind a route. `none`: always answered. `long`: a stream, or work with descriptors of its own."""

RESERVED = 48  # 8 connections for reads and a cancel request for each, the writer's two, workers, names, files
RESERVED_PART = 4  # and at most this part of the limit
HEADROOM = 64
HEADROOM_PART = 16
RUN_BYTES = 2**18  # memory that a run takes: its graph, its client's buffers, its log
MESSAGE_COPIES = 8  # of its message: in the body, the state, the model's request, the rows, each encoded and decoded
REQUEST_BYTES = 2**16
PROMISE_S = 5.0
RESERVED_BYTES = 2**25  # for the writer, threads and the collector
RESERVED_BYTES_PART = 8  # and at most this part of the limit
LOG_BYTES = 2**28
CLOSE = ("connection", "close")  # a client that was refused, and waits with its connection, would hold a place


class OutOfResources(Overloaded):
    """Descriptors or memory of the process are short."""

    def __init__(self) -> None:
        super().__init__()
        self.headers = [CLOSE]


class Admission:
    """Counts what is left at each question: that costs microseconds."""

    def __init__(self, descriptors: Descriptors, memory: Memory) -> None:
        self._descriptors = descriptors
        self._memory = memory
        self._promised: deque[tuple[float, int]] = deque()  # memory of work that has just begun, and until when
        self._runs: Callable[[], int] = lambda: 0
        self._model_connections = 0
        self._close_idle: Callable[[], int] = lambda: 0
        smallest = memory.smallest
        self._reserve = min(RESERVED_BYTES, smallest.limit // RESERVED_BYTES_PART) if smallest is not None else 0
        limit = descriptors.limit
        self._places = limit - min(RESERVED, limit // RESERVED_PART)
        self._headroom = min(HEADROOM, limit // HEADROOM_PART)

    def __repr__(self) -> str:
        return f"<Admission {self.connections_left} of {self._descriptors.limit} descriptors left>"

    def watch(self, *, runs: Callable[[], int], close_idle: Callable[[], int]) -> None:
        """`runs`: those in progress that need a connection to the model.

        `close_idle` closes the connections that wait between two requests, and gives their number.
        """
        self._runs = runs
        self._close_idle = close_idle

    def connected(self) -> None:
        """A client's connection was accepted."""
        self._descriptors.opened()

    @contextmanager
    def model_connection(self) -> Iterator[None]:
        """While a reply of the model arrives."""
        self._model_connections += 1
        try:
            yield
        finally:
            self._model_connections -= 1

    def warn_of_few(self, max_runs: int, descriptors_a_run: int) -> None:
        """At the start."""
        runs = max(0, self._left - self._headroom) // descriptors_a_run
        if runs < max_runs:
            text = "%d descriptors (ulimit -n) are enough for about %d runs at once, and not for MAX_RUNS=%d"
            log.warning(text, self._descriptors.limit, runs, max_runs)

    @property
    def _left(self) -> int:
        """Less the descriptors that runs need for their model, and have not opened yet."""
        return self._places - self._descriptors.used - max(0, self._runs() - self._model_connections)

    @property
    def connections_left(self) -> int:
        """How many more clients may connect now."""
        return self._left

    @property
    def is_scarce(self) -> bool:
        """Whether connections that wait between two requests should be closed."""
        return self._left < 2 * self._headroom

    @property
    def is_short(self) -> bool:
        """Whether there are no descriptors for another run or stream."""
        return self._left <= self._headroom

    def check_run(self, chars: int) -> None:
        """Of a message of that length. Raises Overloaded. Nothing is awaited between this and the run's claim."""
        if self.is_short:
            raise OutOfResources
        self._promise(RUN_BYTES + chars * MESSAGE_COPIES)

    # Memory

    @property
    def log_bytes(self) -> int:
        """For the logs of runs, where RUN_LOG_BYTES does not say it."""
        smallest = self._memory.smallest
        return LOG_BYTES if smallest is None else min(LOG_BYTES, smallest.limit // 4)

    @property
    def is_memory_short(self) -> bool:
        return not self._fits(RUN_BYTES)

    def _fits(self, size: int) -> bool:
        left = self._memory.left
        if left is None:
            return True
        now = time.monotonic()
        while self._promised and self._promised[0][0] < now:
            self._promised.popleft()
        return left - self._reserve - sum(promised for _, promised in self._promised) >= size

    def _promise(self, size: int) -> None:
        """Work of this size begins. A reading of the memory shows it after some time. Raises Overloaded."""
        if not self._fits(size):
            self._memory.relieve()
            if not self._fits(size):
                raise OutOfResources
        if self._memory.limits:
            self._promised.append((time.monotonic() + PROMISE_S, size))

    async def check(self, load: Load, body_bytes: int) -> None:
        """Before a request's body is read. Raises Overloaded."""
        if load == "none":
            return
        self._promise(REQUEST_BYTES + body_bytes)
        if not self.is_scarce:
            return
        closed = self._close_idle()
        if load == "short" or not self.is_short:
            return
        if closed:
            await asyncio.sleep(0)  # the loop closes them in its next pass
            await asyncio.sleep(0)
        if self.is_short:
            raise OutOfResources
