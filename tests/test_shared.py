"""Connections that readers share, with connections that only say whether they are closed."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from storage import shared
from storage.closing import Closing
from storage.shared import SharedConnections

pytestmark = pytest.mark.anyio


class Made:
    """What a scripted server gives: a connection, or an error, when the test says so."""

    def __init__(self, most: int) -> None:
        self.attempts: list[asyncio.Future[Any]] = []
        self.connections = SharedConnections(self.make, Closing(), most)

    async def make(self) -> asyncpg.Connection:
        attempt: asyncio.Future[asyncpg.Connection] = asyncio.get_running_loop().create_future()
        self.attempts.append(attempt)
        return await attempt

    def take(self) -> asyncio.Task[Any]:
        return asyncio.create_task(self.connections.take())


class Connection:
    closed = False

    def is_closed(self) -> bool:
        return self.closed

    async def close(self, timeout: float) -> None:
        await asyncio.sleep(0)
        self.closed = True

    def terminate(self) -> None:
        self.closed = True


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_reader_gets_the_first_connection_that_is_free_and_needs_not_await_its_own_attempt() -> None:
    made = Made(most=2)
    first = made.take()
    await settle()
    made.attempts[0].set_result(one := Connection())
    assert await first is one
    second = made.take()
    await settle()
    assert len(made.attempts) == 2  # which hangs
    made.connections.give_back(one)
    assert await second is one
    third = made.take()
    made.attempts[1].set_result(two := Connection())
    assert await third is two
    assert len(made.attempts) == 2
    await made.connections.close()
    assert one.closed
    assert two.closed


@pytest.mark.parametrize(("taken", "told"), [(0, True), (1, False)])
async def test_a_failure_is_told_where_nothing_else_is_left_to_wait_for(taken: int, *, told: bool) -> None:
    made = Made(most=3)
    if taken:
        holder = made.take()
        await settle()
        made.attempts.pop().set_result(held := Connection())
        await holder
    readers = [made.take() for _ in range(4)]
    await settle()
    assert len(made.attempts) == 3 - taken
    for attempt in made.attempts:
        attempt.set_exception(asyncpg.TooManyConnectionsError())
    await settle()
    assert [reader.done() for reader in readers] == [told] * 4
    if told:
        for reader in readers:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                await reader
    else:
        for reader in readers:
            made.connections.give_back(held)  # type: ignore[arg-type]  # it is like one
            assert await reader is held
    await made.connections.close()


def leaves_before(reader: asyncio.Task[Any], attempt: asyncio.Future[Any], connection: Connection) -> None:
    reader.cancel()
    attempt.set_result(connection)


def leaves_after(reader: asyncio.Task[Any], attempt: asyncio.Future[Any], connection: Connection) -> None:
    attempt.set_result(connection)
    reader.cancel()


@pytest.mark.parametrize("leaves", [leaves_before, leaves_after])
@pytest.mark.parametrize("passes", range(5))
async def test_no_connection_is_lost_with_a_reader_that_leaves_as_it_comes(
    leaves: Callable[[asyncio.Task[Any], asyncio.Future[Any], Connection], None], passes: int
) -> None:
    made = Made(most=1)
    reader, connection = made.take(), Connection()
    await settle()
    leaves(reader, made.attempts[0], connection)
    for _ in range(passes):
        await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait({reader})
    if not reader.cancelled():
        made.connections.give_back(reader.result())
    assert await made.take() is connection
    assert len(made.attempts) == 1
    await made.connections.close()


async def test_a_connection_that_is_given_up_keeps_its_place_until_it_is_closed() -> None:
    made = Made(most=1)
    for number in range(3):
        reader = made.take()
        await settle()
        assert len(made.attempts) == number + 1
        made.attempts[number].set_result(connection := Connection())
        await reader
        made.connections.renew()
        made.connections.give_back(connection)  # type: ignore[arg-type]  # likewise
        after = made.take()
        await asyncio.sleep(0)
        assert len(made.attempts) == number + 1
        after.cancel()
        await settle()
        assert connection.closed
    await made.connections.close()


async def test_an_unused_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "IDLE_S", 0.01)
    made = Made(most=1)
    reader = made.take()
    await settle()
    made.attempts[0].set_result(connection := Connection())
    made.connections.give_back(await reader)
    async with asyncio.timeout(10):
        while not connection.closed:
            await asyncio.sleep(0.01)
    await made.connections.close()
