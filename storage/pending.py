"""The turns that have ended and that the database has not got yet, with the journal that keeps them meanwhile."""

import asyncio
import logging

from chat import Conflict
from storage.journal import Journal
from storage.recovery import JournaledTurn

log = logging.getLogger("draftstream.store")


class UnsavedTurns(Exception):
    """So many turns could not be written until the end and are lost; none of them was acknowledged."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} turns were not saved; none of them had been acknowledged")


class PendingTurns:
    """Each turn is added when its run ends, and settled when the writer is done with it."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._turns: dict[str, JournaledTurn] = {}  # by run_id

    @property
    def has_journal(self) -> bool:
        return self._journal is not None

    @property
    def unsaved(self) -> int:
        """How many turns are neither in the database nor in the journal."""
        journaled = self._journal.unsettled if self._journal is not None else set()
        return len(self._turns.keys() - journaled)

    def add(self, turn: JournaledTurn) -> None:
        self._turns[turn.ended.started.run_id] = turn

    def settle(self, run_id: str, saved: asyncio.Future[None]) -> None:
        """The writer is done with the turn: it is stored, or refused."""
        self._turns.pop(run_id, None)
        if self._journal is None or saved.cancelled():
            return
        if isinstance(saved.exception(), Conflict) and run_id in self._journal.unsettled:
            log.error("run %s is in the journal, and its thread has moved on: the next start makes it a branch", run_id)
        else:
            self._journal.settle(run_id)

    async def journal(self, run_id: str) -> bool:
        """Make a turn durable without the database. False if there is no journal, or it can't be written."""
        turn = self._turns.get(run_id)
        if turn is None or self._journal is None:
            return False
        try:
            await self._journal.append(run_id, turn.encode())
        except OSError:
            log.exception("run %s can't be journaled", run_id)
            return False
        if run_id not in self._turns:
            self._journal.settle(run_id)
        return True
