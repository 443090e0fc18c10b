"""A unit: writes that stand or fall together. And a batch of units: the order of its statements."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chat import Conflict, RunFailure
from storage.sql import Statement, Write

TEXTS = (str, bytes)  # a tuple, as isinstance takes several times as long with a union


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Writes of one thread, committed together. `saved` resolves then, or fails with Unstorable or Conflict.

    `after` is `saved` of the unit before this one: if that was refused with Conflict, this unit is refused, too. A unit
    with a budget of its own, in seconds, may take long: it is committed alone, in one attempt, or refused with GivenUp.
    """

    thread: str
    writes: Sequence[Write]
    saved: asyncio.Future[None]
    after: asyncio.Future[None] | None = None
    budget_s: float | None = None

    @property
    def void(self) -> bool:
        before = self.after
        return before is not None and before.done() and isinstance(before.exception(), Conflict)

    @property
    def bytes(self) -> int:
        """The size of its texts and blobs, about."""
        return sum(_bytes(value) for _, row in self.writes for value in row)

    def refuse(self, failure: RunFailure) -> None:
        """Fail `saved`, unless its waiter has cancelled it."""
        if not self.saved.done():
            self.saved.set_exception(failure)

    def __repr__(self) -> str:
        return f"<Unit of {self.thread}, {len(self.writes)} writes, {'saved' if self.saved.done() else 'waiting'}>"


def _bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_bytes, value))
    return len(value) if isinstance(value, TEXTS) else 0


def statements(units: Sequence[Unit]) -> Iterator[tuple[Statement[...], list[NamedTuple]]]:
    """The batch's statements with their rows, in an order that keeps each thread's own.

    The rows of a batchable statement go together, past the statements of other threads. They stay in place among those
    of their own thread: a run's start comes before its end, and pieces are kept before they are deleted. A statement
    that is not batchable keeps its place among all.
    """
    batches: list[tuple[Statement[...], list[NamedTuple]]] = []
    reached: dict[str, int] = {}  # by thread: the last of the batches that has a row of it
    for unit in units:
        for statement, row in unit.writes:
            if not statement.batchable:
                yield from batches
                yield statement, [row]
                batches, reached = [], {}
                continue
            first = reached.get(unit.thread, 0)
            places = range(first, len(batches))
            place = next((place for place in places if batches[place][0] is statement), len(batches))
            if place == len(batches):
                batches.append((statement, []))
            batches[place][1].append(row)
            reached[unit.thread] = place
    yield from batches


def without_void(units: Sequence[Unit]) -> Sequence[Unit]:
    """The units without those whose unit before was refused; they are refused, too."""
    for unit in units:
        if unit.void:
            unit.refuse(Conflict())
    return [unit for unit in units if not unit.void]


def in_one_attempt(units: Sequence[Unit]) -> Sequence[Unit]:
    """The first units. A unit with a budget of its own goes alone."""
    alone = next((place for place, unit in enumerate(units) if unit.budget_s is not None), len(units))
    return units[: max(alone, 1)]
