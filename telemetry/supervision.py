"""The supervisor of background loops: it logs a loop that fails, and starts it again.

A loop is a coroutine function without arguments. If it returns, it has ended as intended. If it raises, it has failed;
so has a loop in which something else than its owner raised a CancelledError. A failure is logged with its traceback,
the part counts as down, and the loop is called again after a back-off. The part is up again once the loop has gone on
for STEADY_S.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from chat import Loop

log = logging.getLogger("draftstream.supervision")

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # the last is less than a lease, which one of the loops renews
STEADY_S = 5.0  # the loops do something at least once in this time, so a fault that stays shows again within it
GIVE_UP_S = 60.0  # a vital part that has been down for so long is not mended by another start in this process


class GaveUp(Exception):
    """A vital loop kept failing, so the process ended; no turn was lost."""


class Supervisor:
    """`give_up` ends the process as SIGTERM does. It is called once, when a vital loop stays down.

    Leaving the block then raises GaveUp, unless another exception is on its way.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._give_up = give_up
        self._closing = asyncio.Event()
        self._down: dict[str, float] = {}  # since when, by the loop's clock
        self._gave_up_on: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._gave_up_on is not None:
            raise GaveUp(f"the {self._gave_up_on} loop kept failing; no turn is lost")

    @property
    def down(self) -> list[str]:
        """The parts whose loop has failed, and has not gone on for STEADY_S since."""
        return list(self._down)

    @asynccontextmanager
    async def running(self, name: str, loop: Loop) -> AsyncIterator[None]:
        """Own the loop's task while the block lasts."""
        task = asyncio.create_task(self.keep(name, loop), name=name)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def keep(self, name: str, loop: Loop) -> None:
        """Call the loop until it returns, or this is cancelled."""
        await self._keep(name, loop, vital=False)

    async def keep_vital(self, name: str, loop: Loop) -> None:
        """As `keep`; the process ends when the loop keeps failing."""
        await self._keep(name, loop, vital=True)

    async def _keep(self, name: str, loop: Loop, *, vital: bool) -> None:
        clock = asyncio.get_running_loop()
        failures = 0
        while True:
            last_start = self._closing.is_set()
            steady = clock.call_later(STEADY_S, self._down.pop, name, None)
            try:
                await loop()
            except (Exception, asyncio.CancelledError) as error:
                asked_to_end = _is_cancelled()
                if asked_to_end and isinstance(error, asyncio.CancelledError):
                    raise
                failures = failures + 1 if name in self._down else 1
                since = self._down.setdefault(name, clock.time())
                log.error("the %s loop failed (%s)", name, error, exc_info=error)
                if asked_to_end or last_start:
                    return
            else:
                self._down.pop(name, None)
                return
            finally:
                steady.cancel()
            if vital and clock.time() - since > GIVE_UP_S and self._gave_up_on is None:
                log.critical("the %s loop stays down; the service ends", name)
                self._gave_up_on = name
                self._give_up()
            with suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]):
                    await self._closing.wait()
            log.warning("starting the %s loop again", name)

    def close(self) -> None:
        """The shutdown has begun: a loop that is down, or fails from now on, is started once more and at once."""
        self._closing.set()


def _is_cancelled() -> bool:
    """Whether the task's owner has cancelled it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
