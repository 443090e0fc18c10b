"""The vocabulary of a chat: the request, each event, the states of a run.

Everything else speaks these words. Nothing here does I/O, reads a clock or knows SQL or LangGraph.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NotRequired, TypedDict

# The forms of ids, in bodies, queries and paths alike.
THREAD_ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
RUN_ID = re.compile(r"[0-9a-f-]{36}")
DOC_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
CHECKPOINT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# In the `configurable` of a graph's config: the thread's newest state, for a saver that may have it in memory.
# LangGraph does not store names that begin with two underscores.
STORED_LAST = "__stored_last"
LEASE_S = 10.0  # a run whose process has not renewed its lease for this long is over, and its thread is free


# ---------------------------------------------------------------------------------------------------------------
# The request


StreamMode = Literal["pieces", "items"]
OnDisconnect = Literal["continue", "cancel"]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A message for a thread. Without a `thread_id` the thread is new, and nothing of it is read from the database."""

    message: str
    thread_id: str | None = None
    checkpoint_id: str | None = None
    stream: StreamMode = "pieces"
    on_disconnect: OnDisconnect = "continue"  # whether the run goes on when the client leaves its stream
    model: str | None = None  # None: the default one
    idempotency_key: str | None = None

    @property
    def fingerprint(self) -> str | None:
        """Differs between two requests that share an idempotency key; None without a key."""
        if self.idempotency_key is None:
            return None
        fields = (self.message, self.thread_id, self.checkpoint_id, self.stream, self.on_disconnect)
        named = () if self.model is None else (self.model,)  # without it the fingerprint is that of earlier versions
        return hashlib.sha256(repr(fields + named).encode()).hexdigest()


def graph_thread_id(owner: str, thread_id: str) -> str:
    """The thread's name in LangGraph's tables, which have no owner. It is unambiguous, as a thread_id has no "/"."""
    return f"{owner}/{thread_id}"


# ---------------------------------------------------------------------------------------------------------------
# The events of a run's log


class Usage(TypedDict):
    """Tokens of all the model calls of a run, as the provider counted them.

    The last two are there if the provider reported them, and are part of the first two.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: NotRequired[int]  # read from the provider's prefix cache
    reasoning_tokens: NotRequired[int]


EndReason = Literal["stop", "length", "content_filter", "cancelled"]


@dataclass(frozen=True, slots=True)
class Start:
    thread_id: str
    run_id: str
    model: str


# One of these is made for each token: not frozen, as that would take twice as long.
@dataclass(slots=True)
class Message:
    """A piece of a message of the model. `item` counts the messages and documents of a run from 0."""

    content: str
    item: int


@dataclass(slots=True)
class Doc:
    """A piece of a document's version."""

    content: str
    item: int
    doc_id: str
    title: str
    version: int


@dataclass(frozen=True, slots=True)
class End:
    """`saved`: the whole turn is committed in PostgreSQL. An acknowledgement, not a forecast.

    `journaled`: the database is away, but the turn is durable in the journal.
    """

    reason: EndReason
    saved: bool
    checkpoint_id: str | None
    usage: Usage | None
    journaled: bool = False


@dataclass(frozen=True, slots=True)
class Error:
    """`content` is for a person; `retryable`: the same message may succeed when it is sent again."""

    content: str
    code: str
    retryable: bool


Piece = Message | Doc
Event = Start | Message | Doc | End | Error

Emit = Callable[[Sequence[Piece]], None]
"""Takes the next pieces of a run: all those of one arrival, together."""


# ---------------------------------------------------------------------------------------------------------------
# The end of a model's reply, and the failures of a run


FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reply that the provider has finished."""

    reason: FinishReason
    usage: Usage | None = None
    model: str | None = None  # that answered, if it is not the one that was asked


class RunFailure(Exception):
    """Ends a run with an `error`. `content` is for a person: it has no key, no DSN and no text of the provider."""

    def __init__(self, code: str, content: str, *, retryable: bool) -> None:
        super().__init__(code, content)  # as a Refusal takes them, for a failure that is both
        self.code = code
        self.content = content
        self.retryable = retryable

    def __str__(self) -> str:
        return self.content


class Conflict(RunFailure):
    """Another process has gone on with the thread; nothing of this run is stored in it."""

    def __init__(self) -> None:
        super().__init__(
            "conflict", "Another request has gone on with this thread; please send it again.", retryable=True
        )


# ---------------------------------------------------------------------------------------------------------------
# The states of a run, and its records in the database


class RunStatus(StrEnum):
    """The same words stand in `schema.sql`."""

    RUNNING = "running"  # → any of the others, once
    COMPLETED = "completed"  # the model finished, or the provider cut it (length, content_filter)
    CANCELLED = "cancelled"  # a person, the run's time limit or the shutdown stopped it; it keeps what it has
    FAILED = "failed"  # the model or the service failed; it keeps what it has
    INTERRUPTED = "interrupted"  # its process ended in the middle of it; it keeps the progress that was saved


class StopCause(StrEnum):
    """Why a run is being stopped before its end."""

    USER = "user"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    CONFLICT = "conflict"  # another process has the thread
    LENGTH = "length"  # it has become too long to be kept


class Document(TypedDict):
    """One version of a document. `complete` is False for one that the model did not finish."""

    doc_id: str
    title: str
    version: int
    content: str
    complete: bool


class Item(TypedDict):
    """A whole message or document of a run: a row of `messages`, and an element of the history."""

    item: int
    role: Literal["user", "assistant"]
    type: Literal["message", "doc"]
    content: str
    complete: bool
    doc_id: NotRequired[str]
    title: NotRequired[str]
    version: NotRequired[int]


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run that left no state, as its process ended in the middle of it. The next run adds its items to the state."""

    run_id: str
    message: str
    items: Sequence[Item]

    @property
    def position(self) -> int:
        """The length of the text that was saved of it, in code points."""
        return sum(len(item["content"]) for item in self.items)


@dataclass(frozen=True, slots=True)
class ThreadHead:
    """Read of a thread before a run of it may start: its last run, and the state that the new run starts from.

    `checkpoint_id` is that state; `branches` is true unless it is the state that was stored last. `lost` are the runs
    between that state and the new run.
    """

    last_seq: int = 0  # 0 for a thread that is not there
    parent_run_id: str | None = None
    checkpoint_id: str | None = None
    lost: Sequence[LostRun] = ()
    branches: bool = False
    running: str | None = None  # the run that another process has in progress on it
    running_begun_by: str | None = None  # as in RunStarted


@dataclass(frozen=True, slots=True)
class Turn:
    """The input of an agent: a message, and the state to start from, as in ThreadHead. None is a new thread."""

    owner: str
    thread_id: str
    run_id: str
    message: str
    checkpoint_id: str | None = None
    lost: Sequence[LostRun] = ()
    branches: bool = False
    model: str | None = None  # None: the default one


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an agent's turn. `unfinished`: the items that were cut off. `model`: the one that answered last, if
    it is not the one that was asked.

    `usage` is the provider's report; `estimated_tokens` are those of the calls whose usage it did not report.
    """

    reason: EndReason | None
    error: RunFailure | None
    unfinished: frozenset[int]
    usage: Usage | None
    checkpoint_id: str | None
    estimated_tokens: int = 0
    model: str | None = None

    @property
    def tokens(self) -> int:
        """Of the model, read and written."""
        reported = self.usage["input_tokens"] + self.usage["output_tokens"] if self.usage is not None else 0
        return reported + self.estimated_tokens


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Stored when a run begins, with the user's message. `seq` counts a thread's runs from 1."""

    owner: str
    thread_id: str
    run_id: str
    seq: int
    message: str
    model: str
    started_at: float  # seconds since the epoch
    idempotency_key: str | None = None
    fingerprint: str | None = None
    lost: Sequence[tuple[str, int]] = ()  # the runs before it that left no state, with the position of each
    parent_run_id: str | None = None  # the run that it goes on from
    begun_by: str | None = None  # the credential of the request, see Caller; None while the service is open


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The pieces of a run since its last progress. They are saved so often that a crash loses a second at most."""

    started: RunStarted
    pieces: Sequence[tuple[int, "Piece"]]  # with the position of each


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the database has it, for readers that come after it has left memory."""

    run_id: str
    thread_id: str
    model: str
    fingerprint: str | None
    items: Sequence[Item]
    last: "End | Error | None"  # None: another process has it in progress
    begun_by: str | None = None  # as in RunStarted


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Stored when a run ends, in one transaction with its checkpoint."""

    started: RunStarted
    status: RunStatus
    items: Sequence[Item]
    reason: EndReason | None
    error: Error | None
    usage: Usage | None
    checkpoint_id: str | None
    ended_at: float
    model: str | None = None  # that answered last, if it is not the one of `started`


# ---------------------------------------------------------------------------------------------------------------
# Background loops

Loop = Callable[[], Awaitable[None]]
Supervise = Callable[[str, Loop], Coroutine[None, None, None]]
"""Goes on with the loop of this name when it fails, until it returns; see Supervisor."""


async def unsupervised(_: str, loop: Loop) -> None:
    """The loop alone, for a part outside a service."""
    await loop()
