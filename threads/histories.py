"""An owner's threads, as a person reads them: the list and the search, the history and its branches."""

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Literal, NamedTuple, TypedDict, TypeVar, cast

import orjson

from chat import DOC_ID, Document, Usage, graph_thread_id
from chat.refusals import InvalidRequest, NotFound, UnknownCheckpoint
from store import FOREVER, Row, Store, StoredItem, item_of
from threads.search import marked, pattern
from threads.statements import (
    LIST_THREADS,
    READ_DOCUMENT,
    READ_LINE,
    READ_RUNS,
    READ_SEQ,
    READ_SIZES,
    READ_STATES,
    READ_THREAD,
    READ_TIP,
    READ_VERSIONS,
    SEARCH_THREADS,
)

HISTORY_BYTES = 4 * 2**20  # of a page of a history, but for its last run
RUN_BYTES = 1024  # of a run beside its texts
RUNS_A_LOOK = 500  # whose sizes are read at once
READ_BYTES = 256 * 2**10  # of the texts that one statement reads, but for its last run
ALL = 2**62  # more than the seq of any run


class ThreadSummary(TypedDict):
    thread_id: str
    title: str
    created_at: datetime
    updated_at: datetime


class Place(NamedTuple):
    """The place of a thread in the list, which is newest first."""

    created_at: datetime
    thread_id: str


class Match(TypedDict):
    """The passage of an item that has the words of a search; `marks` are the words, as [start, end) in code points."""

    run_id: str
    item: int
    type: str
    passage: str
    marks: list[tuple[int, int]]


class FoundThread(ThreadSummary):
    match: Match | None  # None where only the title has the words


S = TypeVar("S", bound=ThreadSummary)


class RunError(TypedDict):
    content: str
    code: str
    retryable: bool


class ThreadRun(TypedDict):
    """A run of a thread. `error` and `usage` are as its last event had them."""

    run_id: str
    parent_run_id: str | None  # the run that it goes on from; None: a conversation begins with it
    seq: int
    status: str
    reason: str | None
    error: RunError | None
    usage: Usage | None
    model: str
    checkpoint_id: str | None
    started_at: datetime
    ended_at: datetime | None


class Outline(ThreadSummary):
    """A thread without its items. Its runs make a tree; the next message goes on from `head_run_id`."""

    head_run_id: str
    runs: list[ThreadRun]


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Whole runs of a thread, oldest first. `messages` reads their messages and documents, a part at a time.

    `next_before`: the run before which the next page ends; None at the thread's beginning.
    """

    thread: ThreadSummary
    head_run_id: str
    runs: list[ThreadRun]
    messages: AsyncIterator[StoredItem]
    next_before: str | None


class LastMessage(TypedDict):
    role: str
    content: str  # its first 240 characters


class State(TypedDict):
    """The state that a run left: a chat may start from it."""

    checkpoint_id: str
    parent_checkpoint_id: str | None  # the state that the run started from; None: the conversation began with it
    run_id: str
    created_at: datetime
    step: int | None  # as LangGraph counts them; None where its checkpoint was pruned
    last_message: LastMessage


class Branch(NamedTuple):
    """A conversation from its beginning to the run `run_id`."""

    thread_id: str
    title: str  # of the thread
    run_id: str
    in_progress: bool
    begun_by: str | None  # as in RunStarted


class Version(TypedDict):
    """A version of a document, without its text."""

    doc_id: str
    title: str
    version: int
    complete: bool


class StoredVersion(Document):
    """A version of a document, with its place in the thread: a StoredItem that is a document."""

    run_id: str
    item: int
    role: Literal["assistant"]
    type: Literal["doc"]
    created_at: datetime


class UnknownRun(InvalidRequest):
    def __init__(self) -> None:
        super().__init__([{"pointer": "/before", "detail": "is not a run of this thread"}])


class ThreadGone(NotFound):
    """The thread was deleted while it was read."""

    def __init__(self) -> None:
        super().__init__("thread")


class Threads:
    """The threads of one owner. Each read raises NotFound for a thread that the owner does not have.

    A read of one thread waits for the writes of the thread that are still queued. All raise StoreUnavailable.
    """

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner

    # The list

    async def page(self, limit: int, before: Place | None) -> tuple[list[ThreadSummary], Place | None]:
        """A page of the threads, newest first, and the place where the next page starts."""
        rows = await self._read(LIST_THREADS, self._owner, *(before or (FOREVER, "")), limit + 1)
        return _page([_summary(row) for row in rows], limit)

    async def search(self, words: str, limit: int, before: Place | None) -> tuple[list[FoundThread], Place | None]:
        """The same of the threads whose title or items have the words; as in a web search: "a phrase", or, -not."""
        place = before or (FOREVER, "")
        mark = secrets.token_hex()  # a text that no item has
        asked = (self._owner, *place, limit + 1, words, pattern(words), mark)
        rows = await self._store.search(self._owner, SEARCH_THREADS, *asked)
        return _page([_found(row, words) for row in rows], limit)

    # One thread

    async def summary(self, thread_id: str) -> ThreadSummary:
        return _summary(await self._thread(thread_id))

    async def history(self, thread_id: str, limit: int | None = None, before: str | None = None) -> HistoryPage:
        """The newest runs before the run `before`, at most `limit`, and as many as fit into HISTORY_BYTES.

        Raises UnknownRun. Reading the messages raises ThreadGone.
        """
        row = await self._thread(thread_id)
        end = ALL if before is None else await self._seq(thread_id, before)
        most = min(limit or ALL, HISTORY_BYTES // RUN_BYTES + 1)
        found = await self._read(READ_RUNS, self._owner, thread_id, end, most + 1)
        sizes = await self._sizes(thread_id, [each["seq"] for each in found])
        page = found[: min(most, fitting([size for _, size in sizes], HISTORY_BYTES))][::-1]
        return HistoryPage(
            _summary(row),
            row["head_run_id"],
            [_run(each) for each in page],
            self._items(thread_id, [each["seq"] for each in page]),
            page[0]["run_id"] if len(found) > len(page) else None,
        )

    async def outline(self, thread_id: str) -> Outline:
        row = await self._thread(thread_id)
        runs = await self._read(READ_RUNS, self._owner, thread_id, ALL, None)
        return {**_summary(row), "head_run_id": row["head_run_id"], "runs": [_run(each) for each in runs[::-1]]}

    async def states(self, thread_id: str) -> list[State]:
        """The thread's states in all its branches, newest first."""
        thread = graph_thread_id(self._owner, thread_id)
        await self._store.settled(thread)
        rows = await self._read(READ_STATES, self._owner, thread_id, thread)
        if not rows:
            raise NotFound("thread")
        reached: dict[str | None, str | None] = {
            None: None
        }  # by run: the state that it left, or the last one before it
        states: list[State] = []
        for row in rows:
            before, left = reached.get(row["parent_run_id"]), row["checkpoint_id"]
            reached[row["run_id"]] = left or before
            if left is not None:
                states.append(_state(row, before))
        return states[::-1]

    async def everything(self, outline: Outline) -> AsyncIterator[StoredItem]:
        """Every item of all branches in order, read a page at a time. Raises ThreadGone."""
        async for item in self._items(outline["thread_id"], [run["seq"] for run in outline["runs"]]):
            yield item

    # One branch

    async def branch(self, thread_id: str, checkpoint_id: str | None) -> Branch:
        """The branch that leads to the state, or else to the thread's head. Raises UnknownCheckpoint."""
        await self._store.settled(graph_thread_id(self._owner, thread_id))
        rows = await self._read(READ_TIP, self._owner, thread_id, checkpoint_id)
        if not rows:
            raise NotFound("thread")
        [row] = rows
        if row["run_id"] is None:
            raise UnknownCheckpoint
        return Branch(thread_id, row["title"], row["run_id"], row["in_progress"], row["begun_by"])

    async def transcript(self, branch: Branch) -> AsyncIterator[StoredItem]:
        """Every item of a branch in order, read a page at a time. Raises ThreadGone."""
        line = await self._read(READ_LINE, branch.run_id)
        async for item in self._items(branch.thread_id, [row["seq"] for row in line]):
            yield item

    async def versions(self, branch: Branch) -> list[Version]:
        """Every version of every document in the branch, oldest first."""
        rows = await self._read(READ_VERSIONS, self._owner, branch.thread_id, branch.run_id)
        return [_version(row) for row in rows]

    async def document(self, branch: Branch, doc_id: str, version: int | None = None) -> StoredVersion:
        """A version of a document in the branch, the newest if None. Raises NotFound."""
        rows = []
        if DOC_ID.fullmatch(doc_id):
            asked = (self._owner, branch.thread_id, branch.run_id, doc_id, version)
            rows = await self._read(READ_DOCUMENT, *asked)
        if not rows:
            raise NotFound("document" if version is None else "version of a document")
        return cast("StoredVersion", item_of(rows[0]))

    async def _read(self, sql: str, *arguments: object) -> list[Row]:
        return await self._store.read(self._owner, sql, *arguments)

    async def _thread(self, thread_id: str) -> Row:
        await self._store.settled(graph_thread_id(self._owner, thread_id))
        rows = await self._read(READ_THREAD, self._owner, thread_id)
        if not rows:
            raise NotFound("thread")
        return rows[0]

    async def _seq(self, thread_id: str, run_id: str) -> int:
        rows = await self._read(READ_SEQ, self._owner, thread_id, run_id)
        if not rows:
            raise UnknownRun
        seq: int = rows[0]["seq"]
        return seq

    async def _items(self, thread_id: str, seqs: Sequence[int]) -> AsyncIterator[StoredItem]:
        """The items of these runs in order. Runs are read together as far as they fit into READ_BYTES."""
        for first in range(0, len(seqs), RUNS_A_LOOK):
            sizes = await self._sizes(thread_id, seqs[first : first + RUNS_A_LOOK])
            while sizes:
                count = fitting([size for _, size in sizes], READ_BYTES)
                part, sizes = sizes[:count], sizes[count:]
                items = await self._store.items(self._owner, thread_id, [seq for seq, _ in part])
                if not items:  # each run has a message at least
                    raise ThreadGone
                for item in items:
                    yield item

    async def _sizes(self, thread_id: str, seqs: Sequence[int]) -> list[tuple[int, int]]:
        """The runs in the same order, each with the bytes of its texts."""
        rows = await self._read(READ_SIZES, self._owner, thread_id, seqs)
        sizes = {row["seq"]: row["bytes"] for row in rows}
        return [(seq, sizes.get(seq, 0)) for seq in seqs]


# ---------------------------------------------------------------------------------------------------------------
# Rows


def _version(row: Row) -> Version:
    return {
        "doc_id": row["doc_id"],
        "title": row["title"],
        "version": row["version"],
        "complete": row["complete"],
    }


def _state(row: Row, before: str | None) -> State:
    return {
        "checkpoint_id": row["checkpoint_id"],
        "parent_checkpoint_id": before,
        "run_id": row["run_id"],
        "created_at": row["created_at"],
        "step": row["step"],
        "last_message": {"role": row["role"], "content": row["content"]},
    }


def _summary(row: Row) -> ThreadSummary:
    return {
        "thread_id": row["thread_id"],
        "title": row["title"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def _found(row: Row, words: str) -> FoundThread:
    match: Match | None = None
    if row["run_id"] is not None:
        passage = row["passage"]
        match = {
            "run_id": row["run_id"],
            "item": row["item"],
            "type": row["type"],
            "passage": passage,
            "marks": marked(passage, words),
        }
    return {**_summary(row), "match": match}


def _page(threads: list[S], limit: int) -> tuple[list[S], Place | None]:
    """Of one thread more than a page has: the page, and the place where the next one starts."""
    last = threads[limit - 1] if len(threads) > limit else None
    return threads[:limit], Place(last["created_at"], last["thread_id"]) if last else None


def fitting(sizes: Sequence[int], limit: int) -> int:
    """How many runs from the first one on have `limit` bytes together, by the sizes of their texts; at least one."""
    together = accumulate(size + RUN_BYTES for size in sizes)
    return max(sum(1 for size in together if size <= limit), min(len(sizes), 1))


def _run(row: Row) -> ThreadRun:
    run = dict(row)
    for column in ("error", "usage"):
        run[column] = None if run[column] is None else orjson.loads(run[column])
    return cast("ThreadRun", run)
