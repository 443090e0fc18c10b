"""How much an owner may copy by forks: one at a time, and a number of bytes an hour.

A fork copies a whole conversation for one small request, so it is the cheapest way to fill a disk. The limit is on
without any setting, and holds for callers without a key, too: the disk is the same.

The bytes are known when a fork has ended. So the last fork of the hour may exceed the limit, and no other one is in
progress then. A fork that failed or was given up has written, too: it counts by its duration. Everything is counted by
process, in memory.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from access.limits import HOUR_S, Quota, Used
from access.places import LimitExceeded, Places, jitter

FORKS_AT_ONCE = 1
FAILED_BYTES_A_S = 10_000_000  # written by a fork that fails; one that goes well copies about 30 MB a second
OWNERS = 1000  # whose forks of the last hour are remembered; far more than fork in an hour


@dataclass(slots=True)
class Fork:
    """`copied`: its bytes, when they are known."""

    copied: int | None = None


class Forks:
    """`clock` gives seconds since the epoch."""

    def __init__(self, bytes_an_hour: int, clock: Callable[[], float] = time.time) -> None:
        self._quota = Quota("forks", "bytes", bytes_an_hour, HOUR_S)
        self._places = Places("forks", "forks in progress", FORKS_AT_ONCE)
        self._used: dict[str, Used] = {}
        self._clock = clock

    @contextmanager
    def one(self, owner: str) -> Iterator[Fork]:
        """A fork of this owner. Raises LimitExceeded before it."""
        self._check(owner)
        with self._places.taken(owner):
            fork, began = Fork(), self._clock()
            try:
                yield fork
            finally:
                now = self._clock()
                copied = fork.copied
                self._count(owner, round((now - began) * FAILED_BYTES_A_S) if copied is None else copied, now)

    def _check(self, owner: str) -> None:
        quota, now = self._quota, self._clock()
        used = self._used.get(owner, Used())
        if used.total(quota, now) >= quota.units:
            detail = f"You have copied {quota.units} bytes and more by forks in the last hour."
            raise LimitExceeded(quota.name, detail, used.until_below(quota.units, quota, now) + jitter())

    def _count(self, owner: str, units: int, now: float) -> None:
        used = self._used.pop(owner, None) or Used()
        used.add(self._quota.slot(now), max(units, 1))
        self._used[owner] = used  # behind all others
        while len(self._used) > OWNERS:
            del self._used[next(iter(self._used))]
