"""The runs that have ended and are still in memory, for clients whose connection broke near the end."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runs.run import Run

LINGER_S = 60.0
LINGERING_RUNS = 1000


@dataclass(slots=True)
class Lingering:
    """One of them. Its size is fixed."""

    run: Run
    size: int
    timer: asyncio.TimerHandle


class EndedRuns:
    """`forget` is called with each run that leaves memory, before it is gone from here."""

    def __init__(self, forget: Callable[[Run], None]) -> None:
        self._forget = forget
        self._runs: dict[str, Lingering] = {}  # oldest first
        self.size = 0  # of their logs, in bytes

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter([lingering.run for lingering in self._runs.values()])

    def add(self, run: Run) -> None:
        timer = asyncio.get_running_loop().call_later(LINGER_S, self.drop, run)
        self._runs[run.run_id] = Lingering(run, run.log.size, timer)
        self.size += run.log.size
        while len(self._runs) > LINGERING_RUNS:
            self.drop(next(iter(self._runs.values())).run)

    def drop(self, run: Run) -> None:
        lingering = self._runs.pop(run.run_id)
        lingering.timer.cancel()
        self.size -= lingering.size
        self._forget(run)

    def shrink(self, size: int) -> None:
        """Drop the oldest until the others have this size, as far as that is possible.

        A run that is not in the database can be read nowhere else, and one that has readers stays in memory anyway.
        """
        for run in self:
            if self.size <= size:
                return
            if run.stored and not run.readers:
                self.drop(run)
