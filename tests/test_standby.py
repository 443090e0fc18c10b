"""The service under load, a primary and a real synchronous standby that goes away and comes back."""

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import requests
from conftest import Service, folder_for_all, rows
from sse_client import Stream, chat
from standby import GHOST, STANDBY, WAITING, Primary, Standby

Start = Callable[..., Service]
CLIENTS = 6
NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Turn:
    began: float
    stream: Stream

    @property
    def acknowledged(self) -> bool:
        return self.stream.status == 200 and self.stream.last.get("saved") is True


class Load:
    """Clients that send one message after the other, each in a new thread."""

    def __init__(self, url: str, *, is_killed: bool = False) -> None:
        self._url = url
        self._is_killed = is_killed  # the service, so that streams break off
        self._stop = threading.Event()
        self.turns: list[Turn] = []

    def _send(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self.turns.append(Turn(began, chat(self._url, f"Hello {next(NUMBERS)}")))
            except (AssertionError, OSError, http.client.HTTPException):
                if not self._is_killed:
                    raise
                time.sleep(0.05)

    @contextmanager
    def going(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as threads:
            clients = [threads.submit(self._send) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                self._stop.set()
        for client in clients:
            client.result()

    def ended_since(self, moment: float) -> list[Turn]:
        """The turns that began since then and had their last event."""
        return [turn for turn in self.turns if turn.began > moment and turn.stream.status == 200]

    def acknowledged_since(self, moment: float) -> list[Turn]:
        return [turn for turn in self.ended_since(moment) if turn.acknowledged]


@contextmanager
def pair() -> Iterator[tuple[Primary, Standby]]:
    with folder_for_all("primary-") as folder, folder_for_all("standby-") as other:
        primary = Primary(folder)
        standby = Standby(primary, other)
        try:
            standby.start()
            yield primary, standby
        finally:
            standby.stop()
            primary.leave()


@pytest.fixture(scope="module")
def servers(postgres: str) -> Iterator[tuple[Primary, Standby]]:
    with pair() as servers:
        yield servers


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def operator(dsn: str, function: str | None) -> Iterator[list[int]]:
    """Calls the function for every process that waits for a standby, ten times a second. Gives how many waits it saw."""
    seen: list[int] = []
    stop = threading.Event()

    def act() -> None:
        while not stop.wait(0.1):
            found = rows(dsn, f"SELECT pid, {function or 'abs'}(pid) FROM ({WAITING}) AS waiting")
            seen.append(len(found))

    with ThreadPoolExecutor(1) as thread:
        acting = thread.submit(act)
        try:
            yield seen
        finally:
            stop.set()
    acting.result()


def reasons(url: str) -> object:
    answer = requests.get(f"{url}/readyz", timeout=10)
    return answer.json().get("reasons", [])


FAULTS = {
    "nobody cancels": (None, ""),
    "an operator cancels each wait": ("pg_cancel_backend", ""),
    "an operator ends each process that waits": ("pg_terminate_backend", ""),
    "the database has a statement_timeout": (None, "statement_timeout = 100"),
    "the database hides warnings, and waits for nobody": ("pg_cancel_backend", "client_min_messages = error"),
    "a standby of that name never was": ("pg_cancel_backend", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_acknowledged_while_no_standby_has_it(
    service: Start, servers: tuple[Primary, Standby], fault: str
) -> None:
    primary, standby = servers
    function, setting = FAULTS[fault]
    name = f"replicated_{next(NUMBERS)}"
    dsn = primary.new(name)
    if setting:
        rows(primary.dsn, f"ALTER DATABASE {name} SET {setting}")
    primary.wait_for(STANDBY)
    running = service(DATABASE_URL=dsn, SAVE_TIMEOUT_S="1")
    load = Load(running.url)
    with load.going():
        acknowledges(load)
        if fault == "a standby of that name never was":
            primary.wait_for(GHOST)
        else:
            standby.stop()
        gone = time.monotonic()
        with operator(primary.dsn, function) as waits:
            until(lambda: len(load.ended_since(gone)) > 20 and sum(waits) > 20)
            until(lambda: reasons(running.url) == ["writes_failing"])
            assert load.acknowledged_since(gone) == []
            assert max(waits) <= 4, "the writer's, one that it has given up, and one of the search"
        primary.wait_for(STANDBY)
        if fault != "a standby of that name never was":
            standby.start()
        acknowledges(load)
        until(lambda: reasons(running.url) == [])
    turns = [turn for turn in load.turns if turn.stream.status == 200]
    assert all(turn.stream.last["type"] == "end" for turn in turns)
    assert running.stop() == 0, running.log
    until(lambda: stored(standby.dsn(name)) == stored(dsn))
    runs = stored(dsn)
    assert {turn.stream.run_id for turn in turns} <= set(runs), "what was not acknowledged was kept and written, too"
    assert len(runs) == len(set(runs))
    assert {row["count"] for row in rows(dsn, "SELECT count(*) FROM messages GROUP BY run_id")} == {2}


def stored(dsn: str) -> list[str]:
    return sorted(row["run_id"] for row in rows(dsn, "SELECT run_id FROM runs WHERE status = 'completed'"))


def acknowledges(load: Load) -> None:
    now = time.monotonic()
    until(lambda: len(load.acknowledged_since(now)) > 10)


def waits_in_vain(load: Load, since: float, waits: list[int], waited: int) -> bool:
    return len(load.ended_since(since)) > 10 and sum(waits) > waited + 10


def test_everything_acknowledged_survives_the_loss_of_the_primary(service: Start, postgres: str) -> None:
    """While the standby comes and goes, an operator cancels the waits, and the service is killed once."""
    with pair() as (primary, standby):
        dsn = primary.new("lost")
        primary.wait_for(STANDBY)
        running = service(DATABASE_URL=dsn, SAVE_TIMEOUT_S="1")
        load = Load(running.url, is_killed=True)
        with load.going(), operator(primary.dsn, "pg_cancel_backend") as waits:
            for ends in ("is killed", "goes on"):
                acknowledges(load)
                standby.stop()
                gone, waited = time.monotonic(), sum(waits)
                until(partial(waits_in_vain, load, gone, waits, waited))
                assert load.acknowledged_since(gone) == []
                if ends == "is killed":
                    running.kill()
                    running.start()
                standby.start()
            acknowledges(load)
        running.kill()
        primary.crash()
        standby.promote()
        there = set(stored(standby.dsn("lost")))
        acknowledged = {turn.stream.run_id for turn in load.acknowledged_since(0)}
        assert len(acknowledged) > 30
        assert acknowledged <= there
        primary.start()
