"""The service under load, a primary and a real synchronous standby that goes away and comes back."""

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

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


# Whatever a database sets: it waits for nobody, hides warnings, and ends statements soon. Each alone, and without a
# real standby: test_acknowledgements.py.
SETTINGS = ("synchronous_commit = off", "client_min_messages = error", "statement_timeout = 100")
FAULTS = {
    "nobody cancels": (GHOST, None),
    "an operator cancels each wait": (STANDBY, "pg_cancel_backend"),
    "an operator ends each process that waits": (STANDBY, "pg_terminate_backend"),
}


@dataclass(frozen=True)
class Case:
    primary: Primary
    standby: Standby
    running: Service
    load: Load

    def goes_on(self) -> None:
        now = time.monotonic()
        until(lambda: len(self.load.acknowledged_since(now)) > 5)

    def endures(self, name: str, function: str | None) -> None:
        """Nothing is acknowledged from the moment the standby is gone. `name`: the one that commits wait for."""
        self.standby.stop()
        self.primary.wait_for(name)
        gone = time.monotonic()
        with operator(self.primary.dsn, function) as waits:
            until(lambda: len(self.load.ended_since(gone)) > CLIENTS and sum(waits) > 10)
            until(lambda: reasons(self.running.url) == ["writes_failing"])
        assert self.load.acknowledged_since(gone) == []
        assert max(waits) <= 4, "the writer's, one that it has given up, and one of the search"

    def recovers(self) -> None:
        self.primary.wait_for(STANDBY)
        self.standby.start()
        self.goes_on()
        until(lambda: reasons(self.running.url) == [])


def stored(dsn: str) -> list[str]:
    return sorted(row["run_id"] for row in rows(dsn, "SELECT run_id FROM runs WHERE status = 'completed'"))


def test_nothing_is_acknowledged_that_a_failover_would_lose(service: Start, postgres: str) -> None:
    """The standby goes away and comes back, the service is killed once, and in the end the primary is lost."""
    with pair() as (primary, standby):
        dsn = primary.new("replicated")
        for setting in SETTINGS:
            rows(primary.dsn, f"ALTER DATABASE replicated SET {setting}")
        primary.wait_for(STANDBY)
        running = service(DATABASE_URL=dsn, SAVE_TIMEOUT_S="0.5")
        case = Case(primary, standby, running, Load(running.url))
        with case.load.going():
            case.goes_on()
            for fault in FAULTS.values():
                case.endures(*fault)
                case.recovers()
        turns = [turn for turn in case.load.turns if turn.stream.status == 200]
        assert all(turn.stream.last["type"] == "end" for turn in turns)
        assert running.stop() == 0, running.log
        runs = stored(dsn)
        until(lambda: stored(standby.dsn("replicated")) == runs)
        assert {turn.stream.run_id for turn in turns} <= set(runs), "all of them, acknowledged or not"
        assert len(runs) == len(set(runs))
        assert {row["count"] for row in rows(dsn, "SELECT count(*) FROM messages GROUP BY run_id")} == {2}

        running.start()
        running.wait_until_ready()
        case = Case(primary, standby, running, Load(running.url, is_killed=True))
        with case.load.going():
            case.goes_on()
            case.endures(STANDBY, "pg_cancel_backend")
            running.kill()
            running.start()
            case.recovers()
        running.kill()
        primary.crash()
        standby.promote()
        acknowledged = {turn.stream.run_id for turn in [*turns, *case.load.turns] if turn.acknowledged}
        assert len(acknowledged) > 30
        assert acknowledged <= set(stored(standby.dsn("replicated")))
        primary.start()
