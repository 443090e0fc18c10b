"""How much an owner may copy by forks: one at a time, and a number of bytes an hour.

A fork copies a whole conversation for one small request, so it is the cheapest way to fill a disk. The limit is on
without any setting, and holds for callers without a key, too: the disk is the same.

The bytes are known when a fork has ended. So the last fork of the hour may exceed the limit, and no other one is in
progress then. A fork that failed or was given up has written, too: it counts by its duration.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from access.budgets import Budget
from access.limits import HOUR_S, Quota
from access.places import Places

FORKS_AT_ONCE = 1
FAILED_BYTES_A_S = 10_000_000  # written by a fork that fails; one that goes well copies about 30 MB a second


@dataclass(slots=True)
class Fork:
    """`copied`: its bytes, when they are known."""

    copied: int | None = None


class Forks:
    """`clock`: in seconds of any origin."""

    def __init__(self, bytes_an_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        used_up = f"You have copied {bytes_an_hour} bytes and more by forks in the last hour."
        self._budget = Budget(Quota("forks", "bytes", bytes_an_hour, HOUR_S), used_up, clock)
        self._places = Places("forks", "forks in progress", FORKS_AT_ONCE)
        self._clock = clock

    @contextmanager
    def one(self, owner: str) -> Iterator[Fork]:
        """A fork of this owner. Raises LimitExceeded before it."""
        self._budget.check(owner)
        with self._places.taken(owner):
            fork, began = Fork(), self._clock()
            try:
                yield fork
            finally:
                units = fork.copied
                if units is None:
                    units = round((self._clock() - began) * FAILED_BYTES_A_S)
                self._budget.count(owner, max(units, 1))
