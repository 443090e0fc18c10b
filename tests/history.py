"""A history of the clients' requests and answers, and the checker that holds it against the stored state.

Clients hold conversations and log every request. Afterwards `violations` compares that log with the tables, the API,
the agent's memory and the requests to the model, by the invariants I1 to I9, which are functions further down.

The model's reply depends on the whole history without containing it: a hash of all the messages of the user before. So
a stored reply proves the history that the model was sent for it. A turn that was lost, doubled or forked shows in every
reply that comes after it. A request has the user's messages in their own words, whatever else of a thread it leaves out.
"""

import asyncio
import hashlib
import http.client
import json
import re
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncpg
import requests
from conftest import run
from openai_server import OpenAIServer, Step, arguments_piece, finish, text, tool
from openai_server import Stream as ModelStream
from sse_client import BrokenOff, Stream, check, frames, take

from agent import Agent
from drafting.offline import OfflineModel
from store import open_store
from threads.checkpointer import Checkpointer

SILENCE_S = 4.0  # a client leaves a stream that says nothing for so long
PATIENCE_S = 30.0  # and gives up a turn after this

# ---------------------------------------------------------------------------------------------------------------
# Turns, in one form for the wire, the graph's state and the tables

MESSAGE = re.compile(r"(?:seed \d+, )?client(?: \d+)?, turn \d+")  # of a client, see Client
Said = tuple[str, str, tuple[str, ...]]
"""A turn: the user's message, all that was replied, the documents."""


def said(messages: Iterable[tuple[str, str, Sequence[str]]]) -> list[Said]:
    """Turns out of messages, each a role, a text and documents; a user's message begins a turn."""
    turns: list[Said] = []
    for role, content, documents in messages:
        if role in ("user", "human"):
            turns.append((content, "", ()))
        elif role in ("assistant", "ai"):
            message, reply, before = turns[-1]
            turns[-1] = (message, reply + content, (*before, *(document for document in documents if document)))
    return turns


def asked_on_the_wire(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The messages of the user, also those that stand in the note of folded turns."""
    texts = [message["content"] for message in messages if message["role"] == "user"]
    return [message for text in texts for message in MESSAGE.findall(text)]


def said_in_rows(items: Sequence[asyncpg.Record]) -> list[Said]:
    return said(
        (item["role"], "", [item["content"]]) if item["type"] == "doc" else (item["role"], item["content"], [])
        for item in items
    )


def said_in_state(state: dict[str, Any]) -> list[Said]:
    return said(
        (
            message.type,
            message.content,
            [call["args"].get("content", "") for call in getattr(message, "tool_calls", [])],
        )
        for message in state.get("messages", [])
    )


# ---------------------------------------------------------------------------------------------------------------
# The model


def answer(asked: Sequence[str]) -> Said:
    """The last turn as the model completes it: a function of all the messages of the user, up to this turn's."""
    message = asked[-1]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    reply = f"turn {len(asked)}, history {digest}. "
    if int(digest[0], 16) % 3:
        return message, reply, ()
    return message, f"{reply}That was a document.", (f"# Ledger {digest}\n\n" + f"Clause {digest} 😀\n\n" * 5,)


def scribe(pace: Callable[[Random], float] = lambda random: random.choice((0.0, 0.005, 0.02, 0.1))) -> Step:
    """Replies as `answer` does, each time at a pace of its own: so many seconds a piece."""

    async def step(stream: ModelStream) -> None:
        messages = stream.request.body["messages"]
        _, reply, documents = answer(asked_on_the_wire(messages))
        pause_s = pace(Random())
        first, mark, closing = reply.partition(". ")
        if messages[-1]["role"] == "tool":
            await text(closing)(stream)
            await finish()(stream)
            return
        for piece in cut(first + mark, 6):
            await text(piece)(stream)
            await asyncio.sleep(pause_s)
        if documents:
            await tool("write_document", "")(stream)
            for piece in cut(json.dumps({"title": "Ledger", "content": documents[0]}), 40):
                await arguments_piece(0, piece)(stream)
                await asyncio.sleep(pause_s)
        await finish("tool_calls" if documents else "stop")(stream)

    return step


def cut(content: str, size: int) -> list[str]:
    return [content[start : start + size] for start in range(0, len(content), size)]


# ---------------------------------------------------------------------------------------------------------------
# Clients, and the log that they keep

Outcome = Literal["ok", "fail", "info"]
"""ok: an `end` with `saved: true`. fail: refused, or ended with an `error`. info: anything else, who knows."""


@dataclass
class Attempt:
    """One request for a turn, and its outcome. Attempts of a turn share its key and its message."""

    key: str
    message: str
    thread: str | None  # as asked for, or as `start` has it
    replica: int
    begun: float
    run_id: str | None = None
    items: dict[int, dict[str, Any]] = field(default_factory=dict)  # as streamed
    last_token: float | None = None
    ended: float = 0.0
    outcome: Outcome = "info"
    why: str = "cut"

    @property
    def over(self) -> bool:
        """The client heard how the turn ended, or left it for good."""
        return self.why.startswith(("end", "error", "left"))

    @property
    def said(self) -> Said:
        items = [self.items[number] for number in sorted(self.items)]
        reply = "".join(item["content"] for item in items if item["type"] == "message")
        return self.message, reply, tuple(item["content"] for item in items if item["type"] == "doc")

    def __str__(self) -> str:
        _, reply, documents = self.said
        run_id = (self.run_id or "?")[:8]
        return (
            f"{self.begun:8.3f} … {self.ended:8.3f} {self.outcome:4} {self.why:24} replica {self.replica} "
            f"run {run_id:8} {self.message!r} -> {len(reply)} {short(reply)}, documents {[short(d) for d in documents]}"
        )


def short(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:8]


class History:
    """The log. Times are in seconds since it began."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.faults: list[tuple[float, str]] = []
        self.stuck: list[str | None] = []  # threads on which a client could not go on in the end
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    def turns(self) -> dict[str, list[Attempt]]:
        """Attempts by their key."""
        turns = defaultdict(list)
        for attempt in self.attempts:
            turns[attempt.key].append(attempt)
        return turns

    def of_thread(self, thread: str) -> list[Attempt]:
        keys = {attempt.key for attempt in self.attempts if attempt.thread == thread}
        return sorted((attempt for attempt in self.attempts if attempt.key in keys), key=lambda attempt: attempt.begun)


class Client:
    """Holds one conversation after the other, and behaves as clients do: it leaves, comes back, cancels, tries again."""

    def __init__(self, name: str, urls: Sequence[str], history: History, seed: int) -> None:
        self.name = name
        self.urls = urls
        self.history = history
        self.random = Random(f"{name} {seed}")
        self.thread: str | None = None
        self.turns = 0
        self.calm = False  # reads every stream to its end

    def converse(self, stop: threading.Event) -> None:
        """Until `stop` is set; then one more turn, which must go through."""
        while not stop.is_set():
            if self.random.random() < 0.15:
                self.thread = None if self.random.random() < 0.5 else str(uuid.uuid4())
            self.take_turn()
        self.calm = True
        deadline = time.monotonic() + PATIENCE_S
        while self.take_turn().outcome != "ok":
            if time.monotonic() > deadline:
                self.history.stuck.append(self.thread)
                return

    def take_turn(self) -> Attempt:
        """Ask until the outcome is known, with one key."""
        self.turns += 1
        key, message, thread = str(uuid.uuid4()), f"{self.name}, turn {self.turns}", self.thread
        deadline = time.monotonic() + PATIENCE_S
        while True:
            attempt = Attempt(key, message, thread, self.random.randrange(len(self.urls)), self.history.now())
            with suppress(OSError, http.client.HTTPException, BrokenOff):  # then nobody knows how it ended
                self._ask(attempt, thread)
            attempt.ended = self.history.now()
            self.thread = attempt.thread
            if attempt.over or time.monotonic() > deadline:
                return attempt
            time.sleep(self.random.uniform(0.05, 0.4))

    def _ask(self, attempt: Attempt, thread: str | None) -> None:
        url = self.urls[attempt.replica]
        body = {"message": attempt.message} | ({"thread_id": thread} if thread else {})
        headers = {"Content-Type": "application/json", "Idempotency-Key": attempt.key}
        plan = "stay" if self.calm else self.random.choices(("stay", "cancel", "come back", "leave"), (80, 6, 8, 6))[0]
        after = self.random.randrange(1, 25)  # events
        with connected(url) as connection:
            connection.connect()
            self.history.attempts.append(attempt)
            connection.request("POST", "/api/chat", json.dumps(body), headers)
            place = self._listen(attempt, connection.getresponse(), None if plan == "stay" else after)
            if place is None:
                return
            if plan == "cancel":
                requests.post(f"{url}/api/runs/{attempt.run_id}/cancel", timeout=SILENCE_S)
        if plan == "leave":
            attempt.why = "left"
            return
        attempt.replica = self.random.randrange(len(self.urls))
        with connected(self.urls[attempt.replica]) as connection:
            path = f"/api/runs/{attempt.run_id}/events"
            connection.request("GET", path, headers={"Last-Event-ID": place})
            self._listen(attempt, connection.getresponse(), None)

    def _listen(self, attempt: Attempt, response: http.client.HTTPResponse, events: int | None) -> str | None:
        """Read to the end, or for so many events; then it gives the id of the last one."""
        stream = Stream(response.status, {name.lower(): value for name, value in response.getheaders()})
        if response.status != 200:
            problem = json.loads(response.read() or b"{}")
            attempt.outcome, attempt.why = "fail", f"refused: {response.status} {problem.get('code')}"
            assert response.status in (404, 409, 503), problem
            if attempt.run_id is not None:
                attempt.outcome = "info"  # the turn had begun
            return None
        resumed = attempt.run_id is not None
        for lines in frames(response):
            take(stream, lines)
            if stream.events:
                self._note(attempt, stream)
            if events is not None and len(stream.events) == events and stream.last["type"] not in ("end", "error"):
                return stream.ids[-1]
        if not stream.events or stream.last["type"] not in ("end", "error"):
            raise BrokenOff
        check(stream, resumed=resumed)
        if stream.last["type"] == "error":
            attempt.outcome, attempt.why = "fail", f"error: {stream.last['code']}"
        else:
            attempt.outcome = "ok" if stream.last["saved"] else "info"
            attempt.why = f"end: {stream.last['reason']}{'' if stream.last['saved'] else ', not saved'}"
        return None

    def _note(self, attempt: Attempt, stream: Stream) -> None:
        event = stream.last
        if attempt.run_id is None:
            attempt.run_id = stream.run_id
        assert attempt.run_id == stream.run_id
        if event["type"] == "start":
            attempt.thread = event["thread_id"]
        elif "item" in event:
            item = attempt.items.setdefault(event["item"], {**event, "content": ""})
            item["content"] += event["content"]
            attempt.last_token = self.history.now()


class connected:  # noqa: N801  # reads as the context manager it is
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SILENCE_S)

    def __enter__(self) -> http.client.HTTPConnection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


# ---------------------------------------------------------------------------------------------------------------
# The stored state


@dataclass
class Thread:
    """A thread as it is stored, read four ways."""

    runs: list[asyncpg.Record]
    items: list[asyncpg.Record]  # of runs that are over
    pieces: list[asyncpg.Record]  # of runs in progress, or whose process died
    state: dict[str, Any]
    api: list[dict[str, Any]]  # as each replica tells it

    def of_run(self, run_id: str) -> list[asyncpg.Record]:
        return [item for item in self.items if item["run_id"] == run_id]

    def said_by(self, run_id: str) -> Said:
        """Empty if nothing of the run is there."""
        return next(iter(said_in_rows(self.of_run(run_id))), ("", "", ()))


@dataclass
class Kept:
    """Everything stored, by thread."""

    threads: dict[str, Thread]
    names: set[str]  # in the table of threads
    dead_letters: list[asyncpg.Record]

    def runs(self) -> dict[str, tuple[Thread, asyncpg.Record]]:
        return {row["run_id"]: (thread, row) for thread in self.threads.values() for row in thread.runs}


def read_kept(database_url: str, urls: Sequence[str]) -> Kept:
    async def read() -> Kept:
        connection = await asyncpg.connect(database_url)
        runs = await connection.fetch("SELECT * FROM runs ORDER BY thread_id, seq")
        items = await connection.fetch("SELECT * FROM messages ORDER BY thread_id, seq, item")
        pieces = await connection.fetch("SELECT * FROM pieces ORDER BY thread_id, seq, position")
        threads = await connection.fetch("SELECT thread_id FROM threads")
        dead_letters = await connection.fetch("SELECT thread, error FROM dead_letters")
        await connection.close()
        kept: dict[str, Thread] = defaultdict(lambda: Thread([], [], [], {}, []))
        for row in runs:
            kept[row["thread_id"]].runs.append(row)
        for row in items:
            kept[row["thread_id"]].items.append(row)
        for row in pieces:
            kept[row["thread_id"]].pieces.append(row)
        async with open_store(
            database_url, queue_size=1, queue_bytes=2**20, connect_timeout_s=5, drain_timeout_s=5
        ) as store:
            saver = Checkpointer(store)
            agent = Agent(OfflineModel(), saver, remember=saver.remember, first_token_timeout_s=1, idle_timeout_s=1)
            for name, thread in kept.items():
                thread.state = dict(await agent.state("anonymous", name))
        return Kept(dict(kept), {row["thread_id"] for row in threads}, dead_letters)

    kept = run(read())
    for name, thread in kept.threads.items():
        thread.api = [requests.get(f"{url}/api/threads/{name}", timeout=10).json() for url in urls]
    return kept


# ---------------------------------------------------------------------------------------------------------------
# The checker


@dataclass(frozen=True)
class Violation:
    invariant: str
    thread: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.what} (thread {self.thread})"


def violations(history: History, kept: Kept, openai: OpenAIServer) -> list[Violation]:
    """Every invariant that does not hold. The service must be quiet: no run in progress, nothing waiting."""
    return [
        *(Violation("STUCK", thread, "its client could not go on") for thread in history.stuck),
        *i1_what_was_acknowledged_is_stored_once_as_it_was_streamed(history, kept),
        *i2_what_failed_is_not_stored_as_complete(history, kept),
        *i3_nothing_is_stored_twice(kept),
        *i4_the_model_was_sent_exactly_the_stored_prefix(kept, openai),
        *i5_the_model_refused_nothing(openai),
        *i6_what_is_read_and_what_is_remembered_agree(kept),
        *i7_the_model_is_asked_once_a_turn(history, kept, openai),
        *i9_a_turn_of_unknown_end_is_stored_whole_or_marked_or_not_at_all(history, kept),
    ]


def i1_what_was_acknowledged_is_stored_once_as_it_was_streamed(history: History, kept: Kept) -> Iterator[Violation]:
    runs = kept.runs()
    for attempt in history.attempts:
        if attempt.outcome != "ok":
            continue
        if attempt.run_id not in runs:
            yield Violation("I1", attempt.thread, f"LOST: run {attempt.run_id} was acknowledged and is not stored")
            continue
        thread, row = runs[attempt.run_id]
        status = "cancelled" if attempt.why == "end: cancelled" else "completed"
        if row["status"] != status:
            yield Violation("I1", attempt.thread, f"run {attempt.run_id} is {row['status']}, told as {status}")
        columns = ("item", "type", "content")
        stored = [{name: item[name] for name in columns} for item in thread.of_run(attempt.run_id) if item["item"] >= 0]
        streamed = [{name: attempt.items[number][name] for name in columns} for number in sorted(attempt.items)]
        if stored != streamed or thread.said_by(attempt.run_id)[0] != attempt.message:
            yield Violation("I1", attempt.thread, f"run {attempt.run_id} is stored otherwise than it was streamed")


def i2_what_failed_is_not_stored_as_complete(history: History, kept: Kept) -> Iterator[Violation]:
    runs = kept.runs()
    keys = {row["idempotency_key"] for _, row in runs.values()}
    for attempt in history.attempts:
        if attempt.why.startswith("error") and attempt.run_id in runs:
            status = runs[attempt.run_id][1]["status"]
            if status == "completed":
                yield Violation(
                    "I2", attempt.thread, f"run {attempt.run_id} was told as {attempt.why}, and is {status}"
                )
    for key, attempts in history.turns().items():
        if key in keys and all(attempt.outcome == "fail" and attempt.run_id is None for attempt in attempts):
            yield Violation("I2", attempts[0].thread, f"{attempts[0].message!r} was refused, and is stored")


def i3_nothing_is_stored_twice(kept: Kept) -> Iterator[Violation]:
    messages = Counter(
        (item["content"]) for thread in kept.threads.values() for item in thread.items if item["item"] < 0
    )
    for message, count in messages.items():
        if count > 1:
            yield Violation("I3", None, f"DOUBLED: {message!r} is stored {count} times")
    for name, thread in kept.threads.items():
        if name not in kept.names:
            yield Violation("I3", name, "there are runs or messages of a thread that is not there")
        for item in thread.items:
            if item["run_id"] not in {row["run_id"] for row in thread.runs}:
                yield Violation("I3", name, f"item {item['item']} is of run {item['run_id']}, which is not there")
        for piece in thread.pieces:
            if {row["run_id"]: row["status"] for row in thread.runs}.get(piece["run_id"]) != "running":
                yield Violation("I3", name, f"pieces are left of run {piece['run_id']}, which has ended")
    for letter in kept.dead_letters:
        yield Violation("I3", letter["thread"], f"a unit was set aside: {letter['error']}")


def i4_the_model_was_sent_exactly_the_stored_prefix(kept: Kept, openai: OpenAIServer) -> Iterator[Violation]:
    for name, thread in kept.threads.items():
        numbers = [row["seq"] for row in thread.runs]
        if numbers != list(range(1, len(numbers) + 1)):
            yield Violation("I4", name, f"its runs are numbered {numbers}")
        before: list[str] = []
        for row in thread.runs:
            stored = thread.said_by(row["run_id"])
            expected = answer([*before, stored[0]])
            if stored != expected and (row["status"] == "completed" or not begins(expected, stored)):
                what = f"FORKED: run {row['run_id']} ({row['status']}) replied to another history than the stored one"
                yield Violation("I4", name, f"{what}: {difference([*before, stored[0]], openai)}")
            before += filter(None, [stored[0]])


def difference(stored: list[str], openai: OpenAIServer) -> str:
    """The place where the model's request for the last of these messages differs from the stored messages."""
    for asked in openai.requests:
        sent = asked_on_the_wire(asked.body["messages"])
        if sent[-1] == stored[-1]:
            for number, (one, other) in enumerate(zip(sent, stored[:-1], strict=False), 1):
                if one != other:
                    return f"message {number} was sent as {one!r} and is stored as {other!r}"
    return "no request tells"


def i5_the_model_refused_nothing(openai: OpenAIServer) -> Iterator[Violation]:
    for refusal in openai.refusals:
        yield Violation("I5", None, f"the model's server refused a request: {refusal}")


def i6_what_is_read_and_what_is_remembered_agree(kept: Kept) -> Iterator[Violation]:
    for name, thread in kept.threads.items():
        # Runs whose process died leave no state; the thread's next turn remembers them.
        with_state = max((row["seq"] for row in thread.runs if row["checkpoint_id"] is not None), default=0)
        items = [item for item in thread.items if item["seq"] <= with_state]
        if said_in_rows(items) != said_in_state(thread.state):
            yield Violation("I6", name, "FORKED: the agent remembers another history than the stored one")
        stored = [document_of(item) for item in items if item["type"] == "doc"]
        if stored != [document_of(document) for document in thread.state.get("documents", [])]:
            yield Violation("I6", name, "the agent remembers other documents than the stored ones")
        for replica, api in enumerate(thread.api):
            told = [(item["run_id"], item["item"], item["content"], item["complete"]) for item in api["messages"]]
            rows = [(item["run_id"], item["item"], item["content"], item["complete"]) for item in thread.items]
            if [row for row in told if row in rows] != rows or (told != rows and not thread.pieces):
                yield Violation("I6", name, f"replica {replica} tells another history than the stored one")
            if len({(run_id, item) for run_id, item, *_ in told}) != len(told):
                yield Violation("I6", name, f"replica {replica} tells an item twice")


def i7_the_model_is_asked_once_a_turn(history: History, kept: Kept, openai: OpenAIServer) -> Iterator[Violation]:
    first, again = Counter[str](), Counter[str]()
    for asked in openai.requests:
        messages = asked.body["messages"]
        message = asked_on_the_wire(messages)[-1]
        (again if messages[-1]["role"] == "tool" else first)[message] += 1
    runs = {thread.said_by(run_id)[0]: row for run_id, (thread, row) in kept.runs().items()}
    for attempts in history.turns().values():
        message, thread = attempts[0].message, attempts[0].thread
        # Each run that a client heard of, and each request without an answer, may have asked once.
        started = len({attempt.run_id for attempt in attempts if attempt.run_id is not None})
        unheard = sum(attempt.outcome == "info" and attempt.run_id is None for attempt in attempts)
        if first[message] > started + unheard:
            what = f"BILLED TWICE: {message!r} was asked {first[message]} times in {started} runs, {unheard} unheard of"
            yield Violation("I7", thread, what)
        if again[message] > first[message]:
            yield Violation("I7", thread, f"{message!r}: {again[message]} second requests, {first[message]} first ones")
        if message in runs and runs[message]["status"] == "completed" and not first[message]:
            yield Violation("I7", thread, f"{message!r} was answered and never asked")


def i9_a_turn_of_unknown_end_is_stored_whole_or_marked_or_not_at_all(
    history: History, kept: Kept
) -> Iterator[Violation]:
    runs = kept.runs()
    for attempt in history.attempts:
        if attempt.outcome == "ok" or attempt.run_id not in runs:
            continue
        thread, row = runs[attempt.run_id]
        stored = thread.said_by(attempt.run_id)
        # Of a completed run (its reply is whole, see I4) the client saw a part; of one that was killed it may have
        # seen more than was saved on the way.
        if not begins(stored, attempt.said) and (row["status"] == "completed" or not begins(attempt.said, stored)):
            what = f"run {attempt.run_id} ({row['status']}) is stored otherwise than the client saw it"
            yield Violation("I9", attempt.thread, what)


def begins(whole: Said, part: Said) -> bool:
    """Whether `part` is how `whole` begins: the same message, and as much of the reply and the documents as there is."""
    (message, reply, documents), (same, begun, some) = whole, part
    return (
        message == same
        and reply.startswith(begun)
        and len(some) <= len(documents)
        and all(document.startswith(seen) for document, seen in zip(documents, some, strict=False))
    )


def document_of(row: Any) -> tuple[object, ...]:
    return tuple(row[name] for name in ("doc_id", "title", "version", "content", "complete"))


def report(found: Sequence[Violation], history: History, kept: Kept) -> str:
    """The violations, and of each thread concerned everything that happened to it."""
    lines = [str(violation) for violation in found]
    for name in dict.fromkeys(violation.thread for violation in found if violation.thread):
        lines.append(f"\nThread {name}, as the clients saw it, among the faults:")
        attempts = history.of_thread(name)
        events = [(attempt.begun, str(attempt)) for attempt in attempts]
        if attempts:
            first, last = attempts[0].begun - 1, attempts[-1].ended + 1
            events += [(at, f"{at:8.3f}   {fault}") for at, fault in history.faults if first < at < last]
        lines += [line for _, line in sorted(events)]
        lines.append("as it is stored:")
        thread = kept.threads.get(name)
        for row in thread.runs if thread else []:
            stored = thread.said_by(row["run_id"]) if thread else ("", "", ())
            documents = [short(document) for document in stored[2]]
            lines.append(
                f"  {row['seq']:3} {row['run_id'][:8]} {row['status']:11} {row['error'] or ''} {stored[0]!r} -> "
                f"{len(stored[1])} {short(stored[1])}, documents {documents}"
            )
    return "\n".join(lines)
