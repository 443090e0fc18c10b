"""The changes of threads (renames, deletions) that wait for their commit, so many for each owner.

They stand in the same queue as the turns. Without a bound one owner's renames could fill it, and the turns of all
others would be refused. A change counts until it is committed, also where its caller waits no longer.
"""

import asyncio
from collections import Counter

from chat.refusals import LimitExceeded

CHANGES_AT_ONCE = 8  # an eighth of a batch of the writer (BATCH_UNITS)


class PendingChanges:
    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()

    def check(self, owner: str) -> None:
        """Raises LimitExceeded. Call `add` with no await in between."""
        if self._waiting[owner] >= CHANGES_AT_ONCE:
            detail = f"{CHANGES_AT_ONCE} of your renames and deletions wait for the database; send this after them."
            raise LimitExceeded("changes", detail)

    def add(self, owner: str, saved: asyncio.Future[None]) -> None:
        self._waiting[owner] += 1
        saved.add_done_callback(lambda _: self._settle(owner))

    def _settle(self, owner: str) -> None:
        self._waiting[owner] -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]
