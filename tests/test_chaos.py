"""Random schedules of the faults that one machine can show, and a checker that holds the clients' log against the
stored state. A seed gives the same schedule again: `CHAOS_SEEDS=17 make chaos` tries 17 of them, `CHAOS_SEED=4` the fourth.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import history
import pytest
from conftest import Service, rows
from fault_database import FaultDatabase
from fault_proxy import FaultProxy
from history import Attempt, Client, History, Kept, read_kept, report, scribe, violations
from openai_server import OpenAIServer

Start = Callable[..., Service]
SEEDS = (
    [int(os.environ["CHAOS_SEED"])] if "CHAOS_SEED" in os.environ else range(int(os.environ.get("CHAOS_SEEDS", "3")))
)
CLIENTS = 6
FAULTS_S = 10.0
START_S = 4.0  # of a process, about


@pytest.fixture(scope="module")
def totals() -> Iterator[Counter[str]]:
    totals: Counter[str] = Counter()
    yield totals
    print("\nchaos:", ", ".join(f"{count} {name}" for name, count in totals.items()))


# ---------------------------------------------------------------------------------------------------------------
# The schedule


@dataclass(frozen=True)
class Fault:
    """From `at` on for `lasts` seconds."""

    at: float
    lasts: float
    kind: str
    replica: int

    def __str__(self) -> str:
        where = f" of replica {self.replica}" if self.kind in ("kill", "stop") else ""
        return f"{self.at:6.2f} + {self.lasts:4.2f} s  {self.kind}{where}"


LONGEST_S = {"kill": 1.0, "stop": 6.0, "reset": 0.0, "refuse": 2.0, "freeze": 4.0, "delay": 2.0, "crash": 1.5}


def schedule(random: Random, replicas: int) -> list[Fault]:
    """Faults may overlap; one thing is never hit again by a fault of the same kind while that lasts."""
    faults: list[Fault] = []
    busy: dict[tuple[str, int], float] = {}
    at = 1.0
    while at < FAULTS_S:
        kind = random.choices(list(LONGEST_S), (6, 2, 4, 2, 2, 2, 3))[0]
        replica = random.randrange(replicas)
        lasts = random.uniform(0.1, 1.0) ** 2 * LONGEST_S[kind]
        place = ("process", replica) if kind in ("kill", "stop") else (kind, 0)
        if busy.get(place, 0.0) <= at:
            faults.append(Fault(at, lasts, kind, replica))
            busy[place] = at + lasts + (START_S if kind == "kill" else 0.5)
        at += random.uniform(0.1, 1.6)
    return faults


class Nemesis:
    """Carries out the schedule, and heals."""

    def __init__(self, services: list[Service], proxy: FaultProxy, database: FaultDatabase) -> None:
        self._services = services
        self._proxy = proxy
        self._database = database

    def begin(self, fault: Fault) -> None:
        service = self._services[fault.replica]
        match fault.kind:
            case "kill":
                service.kill()
            case "stop":
                service.process.send_signal(signal.SIGSTOP)
            case "reset":
                self._proxy.cut()
            case "refuse":
                self._proxy.refuse = True
                self._proxy.cut()
            case "freeze":
                self._proxy.frozen = True
            case "delay":
                self._proxy.delay_s = 0.1
            case "crash":
                self._database.crash()

    def end(self, fault: Fault) -> None:
        service = self._services[fault.replica]
        match fault.kind:
            case "kill":
                service.start()
            case "stop":
                service.process.send_signal(signal.SIGCONT)
            case "refuse":
                self._proxy.refuse = False
            case "freeze":
                self._proxy.frozen = False
            case "delay":
                self._proxy.delay_s = 0.0
            case "crash":
                self._database.start()

    def carry_out(self, faults: list[Fault], history: History) -> None:
        steps = [(fault.at, self.begin, fault, "begins") for fault in faults]
        steps += [(fault.at + fault.lasts, self.end, fault, "ends") for fault in faults]
        for at, act, fault, what in sorted(steps, key=lambda step: step[0]):
            time.sleep(max(0.0, at - history.now()))
            act(fault)
            history.faults.append((history.now(), f"{fault.kind} {fault.replica} {what}"))

    def heal(self) -> None:
        for service in self._services:
            if service.process.poll() is not None:
                service.start()  # it may have been started while there was no database
        for service in self._services:
            service.wait_until_ready()


# ---------------------------------------------------------------------------------------------------------------
# The test


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_doubled_or_forked_under_random_faults(
    service: Start, openai: OpenAIServer, fault_database: FaultDatabase, totals: Counter[str], seed: int
) -> None:
    random = Random(seed)
    replicas = random.choice((1, 2, 2))
    faults = schedule(random, replicas)
    print(f"\nseed {seed}, {replicas} replicas:", *faults, sep="\n  ")
    openai.default = (scribe(),)
    dsn = fault_database.new(f"seed_{seed}")
    with FaultProxy.on_a_thread(dsn) as proxy:
        services = [service(openai=openai, DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="2") for _ in range(replicas)]
        nemesis = Nemesis(services, proxy, fault_database)
        urls = [running.url for running in services]
        log = History()
        clients = [Client(f"seed {seed}, client {number}", urls, log, seed) for number in range(CLIENTS)]
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as threads:
            conversations = [threads.submit(client.converse, stop) for client in clients]
            try:
                nemesis.carry_out(faults, log)
                nemesis.heal()
                healed = log.now()
            finally:
                stop.set()
            for conversation in conversations:
                conversation.result()
        wait_until_quiet(dsn)
        kept = read_kept(dsn, urls)
        found = violations(log, kept, openai)
        figures(log, kept, found, healed, totals)
        assert not found, report(found, log, kept)
        for running in services:
            assert running.stop() == 0, running.log


def wait_until_quiet(dsn: str) -> None:
    """Until no process has a run in progress: those that were killed leave theirs `running`, with a lease that ends."""
    deadline = time.monotonic() + 30
    while rows(dsn, "SELECT 1 FROM runs WHERE status = 'running' AND leased_until > now()"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def figures(log: History, kept: Kept, found: list[history.Violation], healed: float, totals: Counter[str]) -> None:
    acknowledged = sorted(attempt.ended for attempt in log.attempts if attempt.outcome == "ok")
    first = {word: sum(word in violation.what for violation in found) for word in ("LOST", "DOUBLED", "FORKED")}
    ended = [at for at, what in log.faults if what.endswith("ends")]
    recovery = sorted(next(time_ for time_ in acknowledged if time_ > at) - at for at in ended)
    totals.update(
        {"schedules": 1, "faults": len(log.faults) // 2, "turns": len(log.turns()), "acknowledged": len(acknowledged)}
    )
    totals.update({word.lower(): count for word, count in first.items()})
    print(
        f"{len(log.turns())} turns, {len(acknowledged)} acknowledged, "
        + ", ".join(f"{count} {word.lower()}" for word, count in first.items()),
        f"the next acknowledgement after a fault's end: {recovery[len(recovery) // 2]:.2f} s median, {recovery[-1]:.2f} s at most",
        f"after healing, all threads went on within {max(attempt.ended for attempt in log.attempts) - healed:.2f} s",
        "how attempts ended: " + str(dict(Counter(attempt.why for attempt in log.attempts))),
        "how runs are stored: " + str(dict(Counter(row["status"] for _, row in kept.runs().values()))),
        sep="\n",
    )


DAMAGE = {
    "I6": "DELETE FROM checkpoints WHERE thread_id = 'anonymous/damaged' RETURNING 1",
    "I9": "UPDATE messages SET content = 'not what was seen' WHERE run_id = '{cut}' AND item = 0 RETURNING 1",
    "I4": "UPDATE messages SET content = 'an earlier turn' WHERE thread_id = 'damaged' AND seq = 1 RETURNING 1",
    "I2": "UPDATE runs SET idempotency_key = 'refused' WHERE run_id = '{run}' RETURNING 1",
    "I3": "INSERT INTO messages SELECT owner, thread_id, seq, -2, run_id, role, type, content, complete, "
    "doc_id, title, version, created_at FROM messages WHERE run_id = '{run}' AND item = -1 RETURNING 1",
    "I1": "DELETE FROM messages WHERE run_id = '{run}' AND item >= 0 RETURNING 1",
}


def test_the_checker_sees_what_is_damaged(service: Start, openai: OpenAIServer, fault_database: FaultDatabase) -> None:
    openai.default = (scribe(lambda _: 0.01),)
    dsn = fault_database.new("damaged")
    urls = [service(openai=openai, DATABASE_URL=dsn).url]
    log = History()
    client = Client("client", urls, log, 0)
    client.calm, client.thread = True, "damaged"
    _, run, cut = client.take_turn(), client.take_turn(), client.take_turn()
    assert violations(log, read_kept(dsn, urls), openai) == []
    cut.outcome, cut.why = "info", "cut"  # as if the client had not seen the end
    log.attempts.append(Attempt("refused", "never begun", "damaged", 0, log.now(), outcome="fail", why="refused: 503"))

    def found() -> Counter[str]:
        return Counter(violation.invariant for violation in violations(log, read_kept(dsn, urls), openai))

    assert found() == Counter()
    openai.refusals.append("no")
    openai.requests.append(openai.requests[0])
    before = found()
    assert before == Counter(I5=1, I7=1)
    for invariant, sql in DAMAGE.items():
        assert rows(dsn, sql.format(run=run.run_id, cut=cut.run_id))
        after = found()
        assert after[invariant] > before[invariant], invariant
        before = after
