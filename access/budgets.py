"""Budgets: how much of something each owner may use in a sliding window, counted in this process alone.

They are on without any setting, so they write and read nothing. With P processes an owner has P times the budget.
"""

import time
from collections.abc import Callable

from access.limits import Quota, Used

OWNERS = 1000  # whose use is remembered, those who used something last; far more than are active in a window


class Budget:
    """What `quota` allows for each owner. `used_up`: the text of the refusal. `clock`: in seconds of any origin."""

    def __init__(self, quota: Quota, used_up: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = quota
        self._used_up = used_up
        self._clock = clock
        self._used: dict[str, Used] = {}

    def __repr__(self) -> str:
        return f"<Budget {self._quota.name}, {len(self._used)} owners>"

    def check(self, owner: str) -> None:
        """Raises LimitExceeded if nothing is left."""
        self._used.get(owner, Used()).check(self._quota, self._clock(), self._used_up)

    def count(self, owner: str, units: int) -> None:
        """Also above the budget, as some uses are known only afterwards."""
        used = self._used.pop(owner, None) or Used()
        used.add(self._quota.slot(self._clock()), units)
        self._used[owner] = used
        while len(self._used) > OWNERS:
            del self._used[next(iter(self._used))]

    def take(self, owner: str) -> None:
        """Use one unit. Raises LimitExceeded."""
        self.check(owner)
        self.count(owner, 1)
