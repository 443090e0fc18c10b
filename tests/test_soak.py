"""A soak: clients that come, leave, cancel and come back while the database crashes again and again. In the end the
process may hold nothing of theirs. `SOAK_S=3600 make soak` takes an hour.

Memory is judged on its plateau. The service runs with small caches (soaked_app.py), so that they are full after the
warm-up, a third of the time. From then on a turn may leave nothing, and the line through the rest has no slope.
"""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from conftest import ROOT, Service
from fault_database import FaultDatabase
from fault_proxy import FaultProxy
from history import Client, History, read_kept, report, scribe, violations
from openai_server import OpenAIServer
from test_chaos import wait_until_quiet

Start = Callable[..., Service]
SOAK_S = float(os.environ.get("SOAK_S", "15"))
CLIENTS = 8
CRASH_EVERY_S = 5.0
SETTLE_S = 30.0  # until idle connections to the model are closed
SLOW = re.compile(r"Executing (.*?) took ([0-9.]+) seconds")

WARM_UP = 1 / 3  # of the points in time
# The allocator keeps memory that it once had: in a short soak its own warm-up is all that is seen.
GROWTH_A_TURN = 100_000 if SOAK_S < 60 else 5_000


class Process:
    """The resources of the service's process."""

    def __init__(self, service: Service) -> None:
        self._url = service.url
        self._folder = Path("/proc") / str(service.process.pid)

    @property
    def memory(self) -> int:
        return int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def files(self) -> Counter[str]:
        """Open file descriptors, by kind."""
        targets = (self._target(entry) for entry in (self._folder / "fd").iterdir())
        return Counter(target.partition(":")[0] for target in targets if target)

    @staticmethod
    def _target(entry: Path) -> str:
        try:
            return str(entry.readlink())
        except OSError:
            return ""  # closed since

    @property
    def tasks(self) -> Counter[str]:
        """By their names, without the numbers."""
        names: list[str] = requests.get(f"{self._url}/tasks", timeout=10).json()
        return Counter(re.sub(r"[0-9a-f-]{8,}|[0-9]+", "", name).strip() for name in names)


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through the points by least squares, in y a unit of x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def test_clients_that_are_gone_leave_nothing_behind(
    service: Start, openai: OpenAIServer, fault_database: FaultDatabase
) -> None:
    openai.default = (scribe(),)
    dsn = fault_database.new("soak")
    with FaultProxy.on_a_thread(dsn) as proxy:
        debug = {
            "PYTHONASYNCIODEBUG": "1",
            "PYTHONPATH": str(ROOT / "tests"),
            "PYTHONWARNINGS": "always::ResourceWarning",
        }
        running = service(openai=openai, app="soaked_app:app", DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="2", **debug)
        process = Process(running)
        files, tasks = process.files, process.tasks
        log = History()
        memory: list[tuple[float, float]] = []  # by the turns so far
        clients = [Client(f"client {number}", [running.url], log, number) for number in range(CLIENTS)]
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as threads:
            conversations = [threads.submit(client.converse, stop) for client in clients]
            try:
                crash_at = CRASH_EVERY_S / 2
                while log.now() < SOAK_S:
                    if log.now() > crash_at:
                        fault_database.crash()
                        fault_database.start()
                        crash_at = log.now() + CRASH_EVERY_S
                    memory.append((sum(client.turns for client in clients), process.memory))
                    time.sleep(0.2)
            finally:
                stop.set()
            for conversation in conversations:
                conversation.result()
        wait_until_quiet(dsn)
        kept = read_kept(dsn, [running.url])
        found = violations(log, kept, openai)
        plateau = memory[int(len(memory) * WARM_UP) :]
        growth = slope(plateau)
        slow = Counter(
            re.sub(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]+|\d+", "…", what)[:150] for what, _ in SLOW.findall(running.log)
        )
        print(
            f"\nsoak: {SOAK_S:.0f} s, {len(log.turns())} turns, "
            f"{sum(attempt.outcome == 'ok' for attempt in log.attempts)} acknowledged, {len(found)} violations",
            f"memory: {memory[0][1] / 1e6:.0f} MB at first, {plateau[0][1] / 1e6:.0f} MB after the warm-up, "
            f"{memory[-1][1] / 1e6:.0f} MB at last: {growth / 1e3:.1f} KB a turn on the plateau",
            f"slow callbacks: {sum(slow.values())}, longest {max((float(took) for _, took in SLOW.findall(running.log)), default=0):.2f} s",
            *(f"  {count} × {what}" for what, count in slow.most_common(5)),
            sep="\n",
        )
        assert not found, report(found, log, kept)
        assert growth < GROWTH_A_TURN
        proxy.cut()  # the pool's connections do not count
        deadline = time.monotonic() + SETTLE_S
        while process.tasks != tasks or abs((process.files - files).total() - (files - process.files).total()) > 2:
            assert time.monotonic() < deadline, f"{process.tasks} were {tasks}; {process.files} were {files}"
            time.sleep(0.2)
        print(
            f"tasks and files are as before after {time.monotonic() - deadline + SETTLE_S:.1f} s: {tasks.total()}, {files.total()}"
        )
        assert running.stop() == 0, running.log
