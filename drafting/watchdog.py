"""A limit on silence: it ends a block when no sign of life has come for too long, or when it is stopped."""

import asyncio
from types import TracebackType
from typing import Self

CHECKS = 20  # in the time of an idle limit: so a silence ends at most a twentieth of the limit late


class Watchdog:
    """Ends its block with a TimeoutError: `first_s` after the start, `idle_s` after the last `beat`, or at `stop`.

    A beat neither reads the clock nor moves a timer, as one comes with each token: a check now and then sees it.
    """

    __slots__ = ("_beaten", "_block", "_check_s", "_deadline", "_idle_s", "_loop", "_over", "_timer")

    def __init__(self, *, first_s: float, idle_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._block = asyncio.timeout(None)
        self._idle_s = idle_s
        self._check_s = idle_s / CHECKS
        self._deadline = self._loop.time() + first_s
        self._beaten = False
        self._over = False

    async def __aenter__(self) -> Self:
        await self._block.__aenter__()
        self._check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self._timer.cancel()
        await self._block.__aexit__(kind, error, traceback)

    def beat(self) -> None:
        """A sign of life: from now on `idle_s` counts."""
        self._beaten = True

    def stop(self, _: object = None) -> None:
        """End the block now; a beat does not put that off. Its form is that of a future's callback."""
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._block.reschedule(self._loop.time())

    def _check(self) -> None:
        now = self._loop.time()
        if self._beaten:
            self._beaten = False
            self._deadline = now + self._idle_s
        if now < self._deadline:
            self._timer = self._loop.call_at(min(self._deadline, now + self._check_s), self._check)
        else:
            self.stop()
