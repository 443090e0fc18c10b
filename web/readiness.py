"""Readiness: whether the service can take chats and save their turns, and the reasons if it can't."""

import asyncio
import logging
from typing import NoReturn

from runs.registry import Runs
from store import Store, StoreUnavailable
from telemetry.supervision import Supervisor
from web.admission import Admission

log = logging.getLogger("draftstream.readiness")

CHECK_S = 0.5
# Writes that fail for a shorter time are retries, as after a restart of the database.
FAILED_WRITES_S = 0.5


class Readiness:
    """The reasons on request. `run` checks them all the time, for the log and the metrics."""

    def __init__(self, store: Store, runs: Runs, admission: Admission, supervisor: Supervisor) -> None:
        self._store = store
        self._runs = runs
        self._admission = admission
        self._supervisor = supervisor
        self._checks = 0
        self._newest = 0  # the number of the check that `_was_ready` comes from
        self._was_ready: bool | None = None

    @property
    def is_ready(self) -> bool:
        """By the last check; a loop may have failed since, and it may be the one that checks."""
        return bool(self._was_ready) and not self._supervisor.down

    async def run(self) -> NoReturn:
        while True:
            await self.reasons()
            await asyncio.sleep(CHECK_S)

    async def reasons(self) -> list[str]:
        """Why the service is not ready now; empty if it is."""
        self._checks += 1
        number = self._checks
        database = await self._database()
        reasons = [
            *(["shutting_down"] if self._runs.draining else []),
            *(["too_many_runs"] if self._runs.full else []),
            *(["run_log_full"] if self._runs.log_full else []),
            *(["write_queue_full"] if self._store.full else []),
            *(["descriptors_short"] if self._admission.is_short else []),
            *(["memory_short"] if self._admission.is_memory_short else []),
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
        """The service ends, whether or not a check has noticed it."""
        self._note(["shutting_down"])

    def _note(self, reasons: list[str]) -> None:
        is_ready = not reasons
        if is_ready and not self._was_ready:
            log.info("ready")
        elif not is_ready and self._was_ready is not False:
            log.warning("not ready: %s", ",".join(reasons))
        self._was_ready = is_ready
