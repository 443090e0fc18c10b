"""What an owner may have at once in this process: places that are taken, and given back whatever happens.

They protect what only a process has, as its file descriptors and its connections to the database. So they are counted
by process: with P processes an owner may have P times as many. Nothing here is written or read anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from chat.refusals import LimitExceeded


class Places:
    """`at_once` places for each owner; None: as many as they like. `what` completes "You have 3 …, which is as many".

    `everyone` is the owner that stands for all callers without a key, if its places are not limited.
    """

    def __init__(self, name: str, what: str, at_once: int | None, everyone: str | None = None) -> None:
        self.name = name
        self.at_once = at_once
        self._what = what
        self._everyone = everyone
        self._taken: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Places {self.name}, {sum(self._taken.values())} taken by {len(self._taken)} owners>"

    @contextmanager
    def taken(self, owner: str) -> Iterator[None]:
        """Have a place while the block lasts. Raises LimitExceeded before it."""
        before = self._taken.get(owner, 0)
        if self.at_once is not None and owner != self._everyone and before >= self.at_once:
            detail = f"You have {before} {self._what}, which is as many as you may have at once."
            raise LimitExceeded(self.name, detail)
        self._taken[owner] = before + 1
        try:
            yield
        finally:
            self._give_back(owner)

    def _give_back(self, owner: str) -> None:
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
