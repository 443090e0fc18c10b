"""The limit on silence, alone, on a loop whose clock stands still while anything is to be done."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable

import pytest

from drafting.watchdog import CHECKS, Watchdog

FIRST_S, IDLE_S = 30.0, 60.0
LATE_S = IDLE_S / CHECKS


class FakeClock(asyncio.SelectorEventLoop):
    """Time passes where the loop would sleep, and takes none."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        return self.now


class _Skipping(selectors.DefaultSelector):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is to be done any more, ever"
        self._clock.now += max(timeout, 0)
        return super().select(0)


def lasted(block: Callable[[Watchdog], Awaitable[None]], *, first_s: float = FIRST_S, idle_s: float = IDLE_S) -> float:
    """How long the block went on until the watchdog ended it."""

    async def watched() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with Watchdog(first_s=first_s, idle_s=idle_s) as watchdog:
                await block(watchdog)
        assert len(asyncio.all_tasks()) == 1
        return asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=FakeClock) as runner:
        return runner.run(watched())


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("first_s", [1.0, FIRST_S, 600.0])
def test_without_a_beat_the_first_limit_counts(first_s: float) -> None:
    async def silence(_: Watchdog) -> None:
        await forever()

    assert lasted(silence, first_s=first_s) == pytest.approx(first_s)


@pytest.mark.parametrize("first_s", [FIRST_S, 600.0], ids=["a shorter first limit", "a longer first limit"])
def test_after_a_beat_the_idle_limit_counts(first_s: float) -> None:
    async def one_beat(watchdog: Watchdog) -> None:
        await asyncio.sleep(FIRST_S - 1)
        watchdog.beat()
        await forever()

    silence_s = lasted(one_beat, first_s=first_s) - (FIRST_S - 1)
    assert IDLE_S <= silence_s <= IDLE_S + LATE_S


def test_steady_beats_keep_the_block_alive_and_silence_counts_from_the_last() -> None:
    async def steady(watchdog: Watchdog) -> None:
        for _ in range(100):
            await asyncio.sleep(IDLE_S - 1)
            watchdog.beat()
        await forever()

    silence_s = lasted(steady, first_s=IDLE_S) - 100 * (IDLE_S - 1)
    assert IDLE_S <= silence_s <= IDLE_S + LATE_S


def test_a_stop_ends_the_block_at_once_whatever_beats_come_behind_it() -> None:
    async def stopped(watchdog: Watchdog) -> None:
        asyncio.get_running_loop().call_later(5, watchdog.stop)
        for _ in range(3):  # twice is once
            asyncio.get_running_loop().call_later(5, watchdog.stop)
            asyncio.get_running_loop().call_later(5, watchdog.beat)
        await forever()

    assert lasted(stopped) == pytest.approx(5)


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    async def watched() -> float:
        async with Watchdog(first_s=FIRST_S, idle_s=IDLE_S) as watchdog:
            watchdog.beat()
        watchdog.stop()  # too late to mean anything
        await asyncio.sleep(3 * IDLE_S)
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=FakeClock) as runner:
        assert runner.run(watched()) == pytest.approx(1000 + 3 * IDLE_S)


def test_a_cancellation_from_outside_stays_one() -> None:
    async def watched() -> None:
        async with Watchdog(first_s=FIRST_S, idle_s=IDLE_S):
            await forever()

    async def cancelled() -> bool:
        task = asyncio.create_task(watched())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    with asyncio.Runner(loop_factory=FakeClock) as runner:
        assert runner.run(cancelled())
