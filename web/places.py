"""Places for work that is done a few at a time, given out fairly: the owners who wait have turns, one place a turn."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


class LineFull(Exception):
    """As many requests as may wait are waiting: of the owner, or else of all."""

    def __init__(self, *, of_owner: bool) -> None:
        super().__init__()
        self.of_owner = of_owner


class FairPlaces:
    """`most`: how many an owner may have at once. `longest`: how many of its requests may wait; `waiting`: of all."""

    def __init__(self, places: int, most: Callable[[str], int], longest: Callable[[str], int], waiting: int) -> None:
        self._free = places
        self._most = most
        self._longest = longest
        self._longest_of_all = waiting
        self._taken: Counter[str] = Counter()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # the owner whose turn is next comes first

    def __repr__(self) -> str:
        return f"<FairPlaces {self._free} free, {self._taken.total()} taken, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @asynccontextmanager
    async def take(self, owner: str) -> AsyncIterator[None]:
        """Have a place in the block, after waiting for it. Raises LineFull."""
        if not self._give(owner):
            await self._wait(owner)
        try:
            yield
        finally:
            self._give_back(owner)

    def _give(self, owner: str) -> bool:
        # Nobody who waits is passed over: where there is a free place, those who wait have all that they may have.
        if not self._free or self._taken[owner] >= self._most(owner):
            return False
        self._free -= 1
        self._taken[owner] += 1
        return True

    async def _wait(self, owner: str) -> None:
        line = self._lines.get(owner, deque())
        if len(line) >= self._longest(owner):
            raise LineFull(of_owner=True)
        if self.waiting >= self._longest_of_all:
            raise LineFull(of_owner=False)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._lines[owner] = line
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave_line(owner, turn)
            else:
                self._give_back(owner)  # it was given at this moment
            raise

    def _leave_line(self, owner: str, turn: "asyncio.Future[None]") -> None:
        line = self._lines.get(owner, deque())
        with suppress(ValueError):  # passed over already, as its turn had come
            line.remove(turn)
        if not line:
            self._lines.pop(owner, None)

    def _give_back(self, owner: str) -> None:
        self._free += 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
        self._call_next()

    def _call_next(self) -> None:
        for owner, line in list(self._lines.items()):
            while line and line[0].cancelled():
                line.popleft()
            called = bool(line) and self._give(owner)
            if called:
                line.popleft().set_result(None)
            if called or not line:
                del self._lines[owner]
                if line:
                    self._lines[owner] = line  # behind the others
