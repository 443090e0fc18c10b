"""Readiness: whether the service can take chats and save their turns, and the reasons if not."""

import asyncio
import logging
from typing import NoReturn

from runs.registry import Runs
from store import Store, StoreUnavailable
from telemetry.supervision import Supervisor

log = logging.getLogger("draftstream.readiness")

CHECK_S = 0.5
# Writes that fail for less than this are retried batches, as after a restart of the database.
FAILED_WRITES_S = 0.5


class Readiness:
    """Knows the state also when nobody asks for it: `run` checks it all the time."""

    def __init__(self, store: Store, runs: Runs, supervisor: Supervisor) -> None:
        self._store = store
        self._runs = runs
        self._supervisor = supervisor
        self._checks = 0
        self._newest = 0  # the number of the check that `is_ready` comes from
        self.is_ready = False

    async def run(self) -> NoReturn:
        while True:
            await self.reasons()
            await asyncio.sleep(CHECK_S)

    async def reasons(self) -> list[str]:
        """The reasons why it is not ready, now; none if it is."""
        self._checks += 1
        number = self._checks
        database = await self._database()
        reasons = [
            *(["shutting_down"] if self._runs.draining else []),
            *(["too_many_runs"] if self._runs.full else []),
            *(["write_queue_full"] if self._store.full else []),
            *database,
            *(f"{part}_down" for part in self._supervisor.down),
        ]
        if number > self._newest:  # else a slow check would bring an older state back
            self._newest = number
            self._note(reasons)
        return reasons

    async def _database(self) -> list[str]:
        try:
            await self._store.ping()
        except StoreUnavailable:
            return ["store_unavailable"]
        return ["writes_failing"] if self._store.writes_failing_s > FAILED_WRITES_S else []

    def end(self) -> None:
        """The service goes down, whether or not a check has seen it."""
        self._note(["shutting_down"])

    def _note(self, reasons: list[str]) -> None:
        if self.is_ready and reasons:
            log.warning("not ready: %s", ",".join(reasons))
        elif not self.is_ready and not reasons:
            log.info("ready")
        self.is_ready = not reasons
