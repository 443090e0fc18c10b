"""What a person reads of threads: the list and the search, a history with its branches, the states to go on from."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict, TypeVar

import asyncpg
import orjson

from chat import NotFound, UnknownCheckpoint, graph_thread_id
from storage.reads import (
    LIST_THREADS,
    READ_DOCUMENT,
    READ_ITEMS,
    READ_ITEMS_OF,
    READ_LINE,
    READ_RUNS,
    READ_STATES,
    READ_THREAD,
    READ_TIP,
    READ_VERSIONS,
    SEARCH_THREADS,
    item_of,
)
from store import FOREVER, Store
from threads.search import marked, pattern

RUNS_A_PAGE = 50  # of some items each


class ThreadSummary(TypedDict):
    thread_id: str
    title: str
    created_at: datetime
    updated_at: datetime


Place = tuple[datetime, str]
"""In the list of threads, newest first: when a thread was created, and its id."""


class Match(TypedDict):
    """Where a search found its words: a passage of an item, and in it the words, as [start, end) in code points."""

    run_id: str
    item: int
    type: str
    passage: str
    marks: list[tuple[int, int]]


class FoundThread(ThreadSummary):
    match: Match | None  # None where only the title has the words


S = TypeVar("S", bound=ThreadSummary)


class History(ThreadSummary):
    """A thread with every message and document in order, and the runs that made them.

    A run goes on from its `parent_run_id`, so the runs make a tree; the next message goes on from `head_run_id`.
    """

    head_run_id: str
    messages: list[dict[str, object]]
    runs: list[dict[str, object]]


class LastMessage(TypedDict):
    role: str
    content: str  # its first 240 characters


class State(TypedDict):
    """What a run left: a chat may start from it. `parent_checkpoint_id` is the state that the run started from."""

    checkpoint_id: str
    parent_checkpoint_id: str | None  # None: the conversation began with it
    run_id: str
    created_at: datetime
    step: int | None  # as LangGraph counts them; None where its checkpoint was pruned
    last_message: LastMessage


@dataclass(frozen=True, slots=True)
class Branch:
    """The way of a conversation from its beginning to the run `run_id`."""

    owner: str
    thread_id: str
    run_id: str
    in_progress: bool


# ---------------------------------------------------------------------------------------------------------------
# Reading


async def threads(
    store: Store, owner: str, limit: int, before: Place | None
) -> tuple[list[ThreadSummary], Place | None]:
    """A page of the owner's threads, newest first, and the place where the next one starts."""
    rows = await store.fetch(LIST_THREADS, owner, *(before or (FOREVER, "")), limit + 1)
    return _page([_summary(row) for row in rows], limit)


async def search(
    store: Store, owner: str, words: str, limit: int, before: Place | None
) -> tuple[list[FoundThread], Place | None]:
    """The same of the threads whose title or items have the words; as in a web search: "a phrase", or, -not."""
    rows = await store.fetch(SEARCH_THREADS, owner, *(before or (FOREVER, "")), limit + 1, words, pattern(words))
    return _page([_found(row, words) for row in rows], limit)


async def thread(store: Store, owner: str, thread_id: str) -> ThreadSummary | None:
    """None for one that the owner does not have."""
    await store.settled(graph_thread_id(owner, thread_id))
    rows = await store.fetch(READ_THREAD, owner, thread_id)
    return _summary(rows[0]) if rows else None


async def history(store: Store, owner: str, thread_id: str) -> History | None:
    """The thread and everything said in it; None for one that the owner does not have."""
    await store.settled(graph_thread_id(owner, thread_id))
    threads = await store.fetch(READ_THREAD, owner, thread_id)
    if not threads:
        return None
    items = await store.fetch(READ_ITEMS, owner, thread_id)
    runs = await store.fetch(READ_RUNS, owner, thread_id)
    return {
        **_summary(threads[0]),
        "head_run_id": threads[0]["head_run_id"],
        "messages": [item_of(row) for row in items],
        "runs": [_run(row) for row in runs],
    }


async def branch(store: Store, owner: str, thread_id: str, checkpoint_id: str | None) -> Branch | None:
    """The branch that leads to the state, or else to the thread's head; None for a thread that the owner does not have.

    Raises UnknownCheckpoint.
    """
    await store.settled(graph_thread_id(owner, thread_id))
    rows = await store.fetch(READ_TIP, owner, thread_id, checkpoint_id)
    if not rows:
        return None
    [row] = rows
    if row["run_id"] is None:
        raise UnknownCheckpoint
    return Branch(owner, thread_id, row["run_id"], row["in_progress"])


async def states(store: Store, owner: str, thread_id: str) -> list[State] | None:
    """The thread's states in all its branches, newest first; None for one that the owner does not have."""
    thread = graph_thread_id(owner, thread_id)
    await store.settled(thread)
    rows = await store.fetch(READ_STATES, owner, thread_id, thread)
    reached: dict[str | None, str | None] = {None: None}  # by run: the state that was left by it, or last before it
    states: list[State] = []
    for row in rows:
        before, left = reached.get(row["parent_run_id"]), row["checkpoint_id"]
        reached[row["run_id"]] = left or before
        if left is not None:
            states.append(_state(row, before))
    return states[::-1] if rows else None


class Version(TypedDict):
    """A version of a document of one branch."""

    doc_id: str
    title: str
    version: int
    complete: bool


class ThreadGone(NotFound):
    """The thread was deleted while it was read."""

    def __init__(self) -> None:
        super().__init__("thread")


async def transcript(store: Store, branch: Branch) -> AsyncIterator[dict[str, object]]:
    """Every item of a branch in order, read a page at a time. Raises ThreadGone."""
    line = await store.fetch(READ_LINE, branch.run_id)
    async for item in _pages(store, branch.owner, branch.thread_id, [row["seq"] for row in line]):
        yield item


async def everything(store: Store, owner: str, thread_id: str) -> AsyncIterator[dict[str, object]]:
    """Every item of all branches in order, read a page at a time. Raises ThreadGone."""
    runs = await store.fetch(READ_RUNS, owner, thread_id)
    async for item in _pages(store, owner, thread_id, [row["seq"] for row in runs]):
        yield item


async def _pages(store: Store, owner: str, thread_id: str, seqs: Sequence[int]) -> AsyncIterator[dict[str, object]]:
    for first in range(0, len(seqs), RUNS_A_PAGE):
        rows = await store.fetch(READ_ITEMS_OF, owner, thread_id, seqs[first : first + RUNS_A_PAGE])
        if not rows:  # each run has a message at least
            raise ThreadGone
        for row in rows:
            yield item_of(row)


async def versions(store: Store, branch: Branch) -> list[Version]:
    """Every version of every document in the branch, in the order of their making."""
    rows = await store.fetch(READ_VERSIONS, branch.owner, branch.thread_id, branch.run_id)
    return [_version(row) for row in rows]


async def document(store: Store, branch: Branch, doc_id: str, version: int | None = None) -> dict[str, object] | None:
    """A version of a document in the branch, the newest if None; None if there is none."""
    rows = await store.fetch(READ_DOCUMENT, branch.owner, branch.thread_id, branch.run_id, doc_id, version)
    return item_of(rows[0]) if rows else None


async def outline(store: Store, owner: str, thread_id: str) -> dict[str, object] | None:
    """A thread without what was said in it."""
    rows = await store.fetch(READ_THREAD, owner, thread_id)
    if not rows:
        return None
    runs = await store.fetch(READ_RUNS, owner, thread_id)
    return {**_summary(rows[0]), "head_run_id": rows[0]["head_run_id"], "runs": [_run(row) for row in runs]}


def _version(row: asyncpg.Record) -> Version:
    return {
        "doc_id": row["doc_id"],
        "title": row["title"],
        "version": row["version"],
        "complete": row["complete"],
    }


def _state(row: asyncpg.Record, before: str | None) -> State:
    return {
        "checkpoint_id": row["checkpoint_id"],
        "parent_checkpoint_id": before,
        "run_id": row["run_id"],
        "created_at": row["created_at"],
        "step": row["step"],
        "last_message": {"role": row["role"], "content": row["content"]},
    }


def _summary(row: asyncpg.Record) -> ThreadSummary:
    return {
        "thread_id": row["thread_id"],
        "title": row["title"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def _found(row: asyncpg.Record, words: str) -> FoundThread:
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
    return threads[:limit], (last["created_at"], last["thread_id"]) if last else None


def _run(row: asyncpg.Record) -> dict[str, object]:
    run = dict(row)
    for column in ("error", "usage"):
        run[column] = None if run[column] is None else orjson.loads(run[column])
    return run
