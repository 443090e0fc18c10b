"""The cost of a token, a turn, a stream and a row for the server, beside two yardsticks: the template and the floor.

    make bench                                    everything, several times; writes bench/RESULTS.md
    python bench/hot_path.py --quick              everything, once and shorter
    python bench/hot_path.py --load 1 --server ours   one load on one server, to profile it

The server has a core to itself. The load, the provider and PostgreSQL share the other, and their CPU is not counted. The
servers take turns within each run, so that other work of the machine slows all of them alike.
"""

import argparse
import asyncio
import gc
import math
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
import stored_bytes
import uvloop
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from load import Incomplete, Stream, complete, run_streams

from agent import SYSTEM
from drafting.deltas import ModelDelta
from drafting.provider.openai_model import OpenAIModel
from drafting.tools import TOOLS
from storage.checkpoints import PUT_BLOB
from storage.connections import Database
from storage.database import migrate
from storage.embedded import embedded_postgres
from storage.sql import Write
from storage.writer import Writer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("RESULTS.md")
APPS = {"ours": "asgi_app:app", "template": "template:app", "floor": "floor:app"}
PROVIDER = "provider"  # asked without a server between: the model's own pace
PACKAGES = ("uvicorn", "uvloop", "httptools", "aiohttp", "openai", "langchain-openai", "langgraph", "asyncpg", "orjson")
YARDSTICK_PACKAGES = ("fastapi", "starlette", "langgraph-checkpoint-postgres", "psycopg")
RUNS = 3
WARM_UP_TURNS = 20
QUIET_STREAMS = 1000
CHECKPOINT_BYTES = 8192
Figures = dict[str, float]


# ---------------------------------------------------------------------------------------------------------------
# The machine and the processes


@dataclass(frozen=True)
class Cores:
    server: int
    load: int

    @classmethod
    def of_this_machine(cls) -> "Cores":
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            sys.exit("The benchmark needs two cores: one for the server, one for the load.")
        return cls(*cores[:2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A server as a process of its own, once it accepts connections."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    dsn: str = ""

    @property
    def cpu_s(self) -> float:
        """The CPU of the whole process so far: the sum in /proc/PID/stat, which counts hundredths exactly."""
        return time.clock_gettime(~self.process.pid << 3 | 2)  # its CPU clock, as clock_getcpuclockid(3) names it

    @property
    def memory_bytes(self) -> int:
        """Its resident memory."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.findall(r"^Rss: +(\d+) kB", rollup, re.MULTILINE)[0]) * 1024


@contextmanager
def started(name: str, command: Sequence[str], port: int, env: dict[str, str], dsn: str = "") -> Iterator[Process]:
    process = subprocess.Popen(command, cwd=ROOT, env={**env, "PATH": os.environ["PATH"]})
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            sys.exit(f"The {name} does not start.")
        yield Process(name, port, process, dsn)
    finally:
        process.send_signal(signal.SIGKILL)  # nothing of it is needed any more
        process.wait()


@dataclass
class Bench:
    """The parts that every load uses."""

    cores: Cores
    postgres: str  # the server's DSN
    provider: Process
    folder: Path
    quick: bool

    @asynccontextmanager
    async def server(self, name: str) -> AsyncIterator[Process]:
        """A fresh server with a fresh database, warmed up."""
        if name == PROVIDER:
            yield self.provider
            return
        dsn = await stored_bytes.database(self.postgres, f"bench_{uuid.uuid4().hex}")
        port = free_port()
        uvicorn = [sys.executable, "-m", "uvicorn", APPS[name], "--port", str(port), "--log-level", "warning"]
        command = ["taskset", "-c", str(self.cores.server), *uvicorn, "--ws", "none", "--no-access-log"]
        env = {
            "PYTHONPATH": str(Path(__file__).parent),
            "DATABASE_URL": dsn,
            "DATA_DIR": str(self.folder / str(port)),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.provider.port}/v1",
            "OPENAI_API_KEY": "sk-bench",
            "OPENAI_MODEL": "bench",
        }
        with started(name, command, port, env, dsn) as server:
            complete(await run_streams(port, "tokens=50", WARM_UP_TURNS), 50)
            print(f"{name}: process {server.process.pid}, warmed up", file=sys.stderr)
            yield server


@contextmanager
def undisturbed() -> Iterator[None]:
    """The load's own garbage collection would show in the gaps."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def percentile_99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


# ---------------------------------------------------------------------------------------------------------------
# The loads


async def paced(bench: Bench, server: Process, *, streams: int) -> Figures:
    """Streams of 50 tokens/s: the CPU of the whole of them, from the first request to the last end, and the gaps."""
    tokens = 150 if bench.quick else 500
    with undisturbed():
        before = server.cpu_s
        done = await run_streams(server.port, f"tokens={tokens}&rate=50", streams, spread_s=1.0)
        used = server.cpu_s - before
    said = complete(done, tokens)
    gaps = [gap for one in said for gap in one.gaps]
    return {"cpu": used / streams / tokens * 1e6, "gap": percentile_99(gaps) * 1e3}


async def forty(bench: Bench, server: Process) -> Figures:
    return await paced(bench, server, streams=40)


async def hundred(bench: Bench, server: Process) -> Figures:
    return await paced(bench, server, streams=100)


async def flat_out(bench: Bench, server: Process) -> Figures:
    tokens = 3000
    before = server.cpu_s
    complete(await run_streams(server.port, f"tokens={tokens}", 4), tokens)
    return {"cpu": (server.cpu_s - before) / 4 / tokens * 1e6}


async def new_threads(bench: Bench, server: Process) -> Figures:
    return await turns_at_once(server, [None] * 200)


async def second_turns(bench: Bench, server: Process) -> Figures:
    threads = [str(uuid.uuid4()) for _ in range(200)]
    await turns_at_once(server, threads)
    return await turns_at_once(server, threads)


async def turns_at_once(server: Process, threads: Sequence[str | None]) -> Figures:
    """A one-token turn on each thread: the CPU until all is saved, and the time until it has begun."""
    connection = await asyncpg.connect(server.dsn)
    try:
        due = await connection.fetchval("SELECT count(*) FROM messages") + 2 * len(threads)  # the user's, the reply
        with undisturbed():
            before = server.cpu_s
            done = await run_streams(server.port, "tokens=1", len(threads), thread_ids=threads)
            deadline = time.monotonic() + 10
            while (saved := await connection.fetchval("SELECT count(*) FROM messages")) < due:
                if time.monotonic() > deadline:
                    raise Incomplete(f"{due - saved} messages were not saved")
                await asyncio.sleep(0.01)
            used = server.cpu_s - before
    finally:
        await connection.close()
    said = complete(done, 1)
    if server.name == "ours" and not all(one.saved for one in said):
        raise Incomplete("an end does not say that its turn is saved")
    return {"cpu": used / len(threads) * 1e3, "start": percentile_99([one.start_s for one in said]) * 1e3}


async def quiet(bench: Bench, server: Process) -> Figures:
    """Streams that have had a token and fall silent: the memory of each."""
    streams = QUIET_STREAMS // 10 if bench.quick else QUIET_STREAMS
    before = server.memory_bytes
    opened: list[Stream] = []
    for _ in range(0, streams, 50):
        opened += [await Stream({"message": "hold&tokens=1"}).open(server.port) for _ in range(50)]
        await all_have_begun(opened)
    await asyncio.sleep(2)
    grown = server.memory_bytes - before
    for stream in opened:
        stream.done.cancel()
        stream.transport.abort()
    return {"memory": grown / streams / 1024}


async def all_have_begun(streams: Sequence[Stream]) -> None:
    deadline = time.monotonic() + 60
    while not all(b" the" in b"".join(stream.reads) for stream in streams):
        if time.monotonic() > deadline:
            raise Incomplete("a quiet stream has no token")
        await asyncio.sleep(0.05)


async def long_thread(bench: Bench, server: Process) -> Figures:
    """From the message to the model's request: after 200 turns with documents and after 2.

    Less the cost of the prompt itself: to build, encode and send it from messages in memory, on the same core.
    """
    turns = 40 if bench.quick else 200
    samples = 5 if bench.quick else 15
    long = str(uuid.uuid4())
    short = [str(uuid.uuid4()) for _ in range(samples)]
    for _ in range(turns):
        await one_turn(server, long, "document=6000&tokens=20")
    for thread in [*short, *short]:
        await one_turn(server, thread, "document=6000&tokens=20")
    times: dict[str, list[float]] = {"long": [], "short": []}
    for thread in short:  # each of them once, as it has 3 turns then
        times["short"].append(request_delay(await one_turn(server, thread, "stamp&tokens=1")))
        times["long"].append(request_delay(await one_turn(server, long, "stamp&tokens=1")))
    figures = {name: median(delays) * 1e3 for name, delays in times.items()}
    figures["long_prompt"] = await prompt_cost(bench, turns) * 1e3
    figures["short_prompt"] = await prompt_cost(bench, 2) * 1e3
    figures["beyond_long"] = figures["long"] - figures["long_prompt"]
    figures["beyond_short"] = figures["short"] - figures["short_prompt"]
    return figures


async def one_turn(server: Process, thread: str, wish: str) -> Stream:
    [stream] = await run_streams(server.port, wish, 1, thread_ids=[thread])
    if not stream.said().ended:
        raise Incomplete(f"a turn of the long thread: {stream.reads[-1]!r}")
    return stream


def request_delay(stream: Stream) -> float:
    """From the request of ours to that of the model, which its first token tells."""
    stamp = re.findall(r"\d{10,}", stream.said().text)[0]
    return int(stamp) / 1e9 - stream.asked


async def prompt_cost(bench: Bench, turns: int) -> float:
    os.sched_setaffinity(0, {bench.cores.server})
    model = OpenAIModel("bench", api_key="sk-bench", base_url=f"http://127.0.0.1:{bench.provider.port}/v1")
    history = [message for turn in range(turns) for message in turn_messages(turn)]
    asking = HumanMessage("stamp&tokens=1")
    costs = []
    try:
        for _ in range(15):
            before = time.monotonic()
            messages: list[BaseMessage] = [SYSTEM, *history, asking]
            heard: list[ModelDelta] = []
            await model.reply(messages, TOOLS, heard.extend)
            stamp = next(re.findall(r"\d+", delta)[0] for delta in heard if isinstance(delta, str))
            costs.append(int(stamp) / 1e9 - before)
    finally:
        await model.aclose()
        os.sched_setaffinity(0, {bench.cores.load})
    return median(costs)


def turn_messages(turn: int) -> Iterator[HumanMessage | AIMessage | ToolMessage]:
    """The rows that a turn with a document leaves in a thread."""
    content = " the parties agree that" * 260
    call = {"id": f"call_{turn:032}", "name": "write_document", "args": {"title": "Agreement", "content": content}}
    answer = '{"doc_id":"d1","title":"Agreement","version":1}'
    yield HumanMessage("document=6000&tokens=20")
    yield AIMessage("", tool_calls=[call])
    yield ToolMessage(answer, tool_call_id=call["id"], name="write_document")
    yield AIMessage(" the" * 20)


async def writer(bench: Bench, _: Process) -> Figures:
    """Rows with checkpoints of 8 KB on one connection: through the writer, and with an `execute` for each."""
    rows = 1000 if bench.quick else 4000
    dsn = await stored_bytes.database(bench.postgres, f"bench_{uuid.uuid4().hex}")
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    blob = os.urandom(CHECKPOINT_BYTES)  # can't be compressed
    os.sched_setaffinity(0, {bench.cores.server})
    try:
        began = time.perf_counter()
        for number in range(rows // 4):
            statement, row = blob_write("one", number, blob)
            await connection.execute(statement.sql, *row)
        alone = rows // 4 / (time.perf_counter() - began)
        queue = Writer(Database(dsn), rows + 1)
        writing = asyncio.create_task(queue.run())
        await (await queue.put("warm", [blob_write("warm", 0, blob)])).saved
        began = time.perf_counter()
        units = [await queue.put(f"t{number}", [blob_write("many", number, blob)]) for number in range(rows)]
        await asyncio.gather(*(unit.saved for unit in units))
        together = rows / (time.perf_counter() - began)
        await queue.close()
        await writing
    finally:
        os.sched_setaffinity(0, {bench.cores.load})
        await connection.close()
    return {"together": together, "alone": alone}


def blob_write(thread: str, number: int, blob: bytes) -> Write:
    return PUT_BLOB(thread, "", "messages", f"{number:032}", "msgpack", blob)


# ---------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Load:
    numbers: Sequence[int]  # of the goals that it measures
    run: Callable[[Bench, Process], Awaitable[Figures]]
    servers: Sequence[str]
    fresh: bool = False  # each server is started for it
    once: bool = False  # it takes its own median

    @property
    def name(self) -> str:
        return self.run.__name__


LOADS = (
    Load([1], forty, ["ours", "template", "floor"]),
    Load([2], hundred, ["ours", "template", "floor", PROVIDER]),
    Load([3], flat_out, ["ours", "template", "floor"]),
    Load([4, 5], new_threads, ["ours", "template"]),
    Load([4, 5], second_turns, ["ours", "template"]),
    Load([6], quiet, ["ours", "template"], fresh=True),
    Load([7], long_thread, ["ours"], fresh=True, once=True),
    Load([8], writer, [PROVIDER], once=True),
)

Key = tuple[str, str, str]  # load, server, metric


@dataclass(frozen=True)
class Row:
    """A figure of ours beside a yardstick's. `goal` bounds their ratio, from below where more is better."""

    number: int
    measure: str
    unit: str
    ours: Key
    yardstick: str
    other: Key | float
    goal: float | None = None
    more_is_better: bool = False


def beside(number: int, measure: str, unit: str, load: str, metric: str, yardstick: str, goal: float | None) -> Row:
    """The same load and metric of another server."""
    return Row(number, measure, unit, (load, "ours", metric), yardstick, (load, yardstick, metric), goal)


ROWS = (
    beside(1, "40 streams of 50 tokens/s: CPU a token", "µs", "forty", "cpu", "template", 1 / 6),
    beside(1, "40 streams of 50 tokens/s: CPU a token", "µs", "forty", "cpu", "floor", 1.5),
    beside(2, "100 streams of 50 tokens/s: CPU a token", "µs", "hundred", "cpu", "floor", 1.3),
    beside(2, "100 streams of 50 tokens/s: CPU a token", "µs", "hundred", "cpu", "template", None),
    beside(2, "… gap between tokens, p99", "ms", "hundred", "gap", PROVIDER, 1.1),
    beside(2, "… gap between tokens, p99", "ms", "hundred", "gap", "floor", None),
    beside(2, "… gap between tokens, p99", "ms", "hundred", "gap", "template", None),
    beside(3, "4 streams, 3,000 tokens, flat out: CPU a token", "µs", "flat_out", "cpu", "template", 1 / 40),
    beside(3, "4 streams, 3,000 tokens, flat out: CPU a token", "µs", "flat_out", "cpu", "floor", None),
    beside(4, "200 one-token turns at once: CPU a turn", "ms", "new_threads", "cpu", "template", 1 / 4),
    beside(4, "… on threads that have a turn", "ms", "second_turns", "cpu", "template", 1 / 4),
    beside(5, "200 one-token turns at once: time to `start`, p99", "ms", "new_threads", "start", "template", 1 / 4),
    beside(5, "… on threads that have a turn", "ms", "second_turns", "start", "template", 1 / 4),
    beside(6, "quiet streams: memory a stream", "KiB", "quiet", "memory", "template", 1.0),
    Row(6, "quiet streams: memory a stream", "KiB", ("quiet", "ours", "memory"), "48 KiB", 48.0, 1.0),
    Row(
        number=7,
        measure="message to model request after 200 turns, beyond the prompt's own cost",
        unit="ms",
        ours=("long_thread", "ours", "beyond_long"),
        yardstick="after 2 turns",
        other=("long_thread", "ours", "beyond_short"),
        goal=1.3,
    ),
    Row(
        number=7,
        measure="… with the prompt's own cost",
        unit="ms",
        ours=("long_thread", "ours", "long"),
        yardstick="after 2 turns",
        other=("long_thread", "ours", "short"),
    ),
    Row(
        number=8,
        measure="the writer, one connection: rows of 8 KB a second",
        unit="rows/s",
        ours=("writer", PROVIDER, "together"),
        yardstick="one `execute` a row",
        other=("writer", PROVIDER, "alone"),
        goal=5.0,
        more_is_better=True,
    ),
)


@dataclass
class Measured:
    figures: defaultdict[Key, list[float]]
    incomplete: set[tuple[str, str]]  # load and server: a stream or a row was missing, so there is no figure

    def median(self, key: Key | float) -> float | None:
        """None if it was not measured, NaN if it was incomplete."""
        if isinstance(key, float):
            return key
        if key[:2] in self.incomplete:
            return math.nan
        return median(self.figures[key]) if key in self.figures else None


def table(measured: Measured) -> Iterator[str]:
    """Markdown; the rows whose figures there are."""
    yield "| | measure | ours | yardstick | | ratio | goal | met |"
    yield "|---|---|---:|---|---:|---:|---:|---|"
    for row in ROWS:
        ours, other = measured.median(row.ours), measured.median(row.other)
        if ours is None or other is None:
            continue
        ratio = ours / other
        goal = met = "–"
        if row.goal is not None:
            goal = f"{'≥' if row.more_is_better else '≤'} {row.goal:.3g}"
            met = "yes" if (ratio >= row.goal if row.more_is_better else ratio <= row.goal) else "**no**"
        value, against = (shown(figure, row.unit) for figure in (ours, other))
        yield f"| {row.number} | {row.measure} | {value} | {row.yardstick} | {against} | {ratio:.3g} | {goal} | {met} |"


def shown(figure: float, unit: str) -> str:
    if math.isnan(figure):
        return "incomplete"
    return f"{figure:,.0f} {unit}" if figure >= 100 else f"{figure:.3g} {unit}"


def machine() -> Iterator[str]:
    info = Path("/proc/cpuinfo").read_text()
    model = re.findall(r"^model name\s*: (.*)$", info, re.MULTILINE)
    yield f"- {os.cpu_count()} cores, {model[0] if model else platform.machine()}, Linux {platform.release()}"
    yield f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield "- the template: " + ", ".join(f"{name} {version(name)}" for name in YARDSTICK_PACKAGES)


HEADING = f"""# Costs

`make bench` writes this page. CPU is the CPU of the server's whole process over whole streams, with their start, their end
and the database calls. The server has one core. The load, the provider and PostgreSQL share the other, and their CPU is not
counted. Figures are medians of {RUNS} runs, in which the servers take turns. The *template* is `bench/template.py`. The
*floor* is `bench/floor.py`, which relays the provider's bytes and does nothing else. *provider* is the load that asks the
provider directly.
"""


REST = """# Long threads

`python bench/context.py` measures this by hand. 300 turns about a contract of 60 KB, written anew 60 times and edited 120
times, over the wire, with a server that counts tokens by a rule of its own and refuses a request that is too long. *With its
answer* is the longest request together with the document behind it. *Prefix* is the share of tokens that a prefix cache would
have had from the requests before. The CPU is that of the agent and its client, the median of the first and last 50 turns.

| context | good turns | refused | tokens a request | most | with its answer | prefix | CPU a turn, first | last |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 32,000 | 300 of 300 | 0 | 16,064 | 17,281 | 29,920 | 88.0% | 10.8 ms | 14.8 ms |
| 128,000 | 300 of 300 | 0 | 41,604 | 63,041 | 75,668 | 87.6% | 12.8 ms | 25.3 ms |

# Where the rest goes

This is the cost that remains where a goal is not met. It was taken apart at 100 streams and 200 turns on a machine as above,
with `perf record -e cpu-clock`, py-spy, `strace -c` and tracemalloc on the process of `--load N --server ours`.

- **A token** costs the same system calls as the floor's: one read and one write (`tests/test_costs.py` holds that). It takes
  one pass of the event loop, the floor's takes two: the way from the model's bytes to the reader's socket is one call. In a
  loop of its own that call takes 3.8 µs, of which 1.7 decode the chunk and 0.6 write the frame. Among a hundred streams it
  takes three to four times that, because each token finds the caches filled by others. The kernel's part grows the same way:
  at 40 streams the floor spends 9 µs in Python and 21 in the kernel, the service 19 and 27. The start and the end of a turn
  are 6 to 10 µs of a token, at 500 tokens a turn: a turn takes 3 to 5 ms if turns come one by one, and less than 2 ms if
  many come together and share commits.
- **A turn** is one third LangGraph (its loop, its runner, its callbacks). One quarter is the model's call, mostly the way in
  which OpenAI's client sends a request. One seventh is the HTTP request, and one eighth the writer and asyncpg.
- **The time to `start`** of 200 requests that come together is the time of all of them in a row on one core, about 0.15 ms
  each. The next step of a run waits until the others have their `start`.
- **A quiet stream** is a graph that waits in the middle of a node. LangGraph, langchain-core and their asyncio tasks and
  queues take 40 KiB of its memory, the connection to the provider (aiohttp, httpx2) 14, uvicorn 9, our own modules 16. So
  the goal could only be met if no graph ran while the model writes.
- **The writer** sends 64 rows in one `executemany`. Larger batches are no faster. Single rows wait mostly for the disk's
  fsync: on a fast disk the ratio was 3.4 to 4.9, on a slow one 6 to 9.
"""


# ---------------------------------------------------------------------------------------------------------------
# Running it


async def measure(bench: Bench, loads: Sequence[Load], names: Sequence[str], runs: int) -> Measured:
    result = Measured(defaultdict(list), set())

    async def note(load: Load, server: Process) -> None:
        try:
            measured = await load.run(bench, server)
        except Incomplete as error:
            print(f"{load.name} {server.name}: {error}", file=sys.stderr)
            result.incomplete.add((load.name, server.name))
            return
        for metric, figure in measured.items():
            result.figures[load.name, server.name, metric].append(figure)
            print(f"{load.name} {server.name} {metric}: {figure:.4g}", file=sys.stderr)

    async with AsyncExitStack() as stack:
        lasting = [name for name in names if any(name in load.servers and not load.fresh for load in loads)]
        servers = {name: await stack.enter_async_context(bench.server(name)) for name in lasting}
        for number in range(runs):
            for load in loads:
                for name in (name for name in names if name in load.servers):
                    if load.fresh and not (load.once and number):
                        async with bench.server(name) as server:
                            await note(load, server)
                    elif not (load.once and number):
                        await note(load, servers[name])
    return result


async def main() -> None:
    arguments = argparse.ArgumentParser(description="Measure the hot path; see the module's docstring.")
    arguments.add_argument("--quick", action="store_true", help="one run, and shorter")
    arguments.add_argument("--load", type=int, choices=range(1, 9), help="this one alone")
    arguments.add_argument("--server", choices=APPS, help="this one alone")
    arguments.add_argument("--runs", type=int, help=f"so many instead of {RUNS}")
    options = arguments.parse_args()
    whole = not (options.quick or options.load or options.server)
    loads = [load for load in LOADS if options.load in (None, *load.numbers)]
    names = [*APPS, PROVIDER] if options.server is None else [options.server, PROVIDER]
    cores = Cores.of_this_machine()
    os.sched_setaffinity(0, {cores.load})  # the processes it starts inherit that
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        postgres = await stack.enter_async_context(embedded_postgres(folder))
        port = free_port()
        command = [sys.executable, str(Path(__file__).with_name("provider.py")), str(port)]
        provider = stack.enter_context(started(PROVIDER, command, port, {}))
        bench = Bench(cores, postgres, provider, folder, options.quick)
        measured = await measure(bench, loads, names, options.runs or (1 if options.quick else RUNS))
        lines = list(table(measured))
        print(*lines, sep="\n")
        if whole:
            stored: list[str] = []
            stored_bytes.show(await stored_bytes.compare(postgres), stored.append)
            print(*stored, sep="\n")
            parts = [*machine(), "", *lines, "", "# Bytes stored", "", "```", *stored, "```"]
            RESULTS.write_text(f"{HEADING}\n{chr(10).join(parts)}\n\n{REST}")


if __name__ == "__main__":
    uvloop.run(main())
