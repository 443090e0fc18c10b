"""The size of the log: old frames are merged, old runs leave memory, and the text stays the same."""

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runs import Records, a_run, later, outcome, read, registry, saying, text, waits

from chat import ChatRequest, Doc, Emit, End, Message, Outcome, StopCause, StoredRun, Turn
from runs.log import MERGED_CHARS
from runs.registry import RUN_BYTES, Runs, TooManyRuns
from runs.run import MOST_CHARS, Cursor, Run

pytestmark = pytest.mark.anyio


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=30), st.booleans()), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
    st.data(),
)
async def test_merged_frames_lose_no_text_for_any_reader_at_any_place(
    texts: list[tuple[str, bool]], early: list[int], data: st.DataObject
) -> None:
    """Small numbers, so that much is merged. Readers come at any time, read on at any time, and from any place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runs.log.MERGED", 3)
        patch.setattr("runs.log.MERGE_AT", 5)
        patch.setattr("runs.log.MERGED_CHARS", 40)
        patch.setattr("runs.log.FRAMES_A_READ", 4)
        run = a_run([])
        said, item, kept = "", 0, ""
        readers: list[tuple[int, Cursor, list[bytes]]] = []
        for number, (content, new_item) in enumerate(texts):
            if number in early:
                after = data.draw(st.integers(0, len(said)))
                readers.append((after, follow(run, after), []))
            item += new_item
            run.emit([Doc(content, item, f"d{item}", f"Title {item}", 2) if item % 3 else Message(content, item)])
            said += content
            if data.draw(st.booleans()):
                kept += "".join(run_of.whole().content[max(run_of.kept - run_of.begin, 0) :] for run_of in run.items)
                assert "".join(each.unkept().content for each in run.items) in said
                run.mark_kept()
            for _, cursor, frames in readers:
                if data.draw(st.booleans()) and cursor._next < run.log.place:
                    frames.append(await anext(cursor))
        kept += "".join(each.unkept().content for each in run.items)
        run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
        late = (0, data.draw(st.integers(0, len(said))), len(said), len(said) + 7)
        readers += [(after, follow(run, after), []) for after in late]
        for after, cursor, frames in readers:
            frames += [more async for more in cursor]
            assert text_of(frames) == said[after:]
            assert_titles_are_told_once(frames)
            assert b"".join(frames).endswith(b"}\n\n")
            assert b"".join(frames).count(b":end\n") == 1
    assert kept == said
    assert "".join(each.record(complete=True)["content"] for each in run.items) == said


def follow(run: Run, after: int | None) -> Cursor:
    return run.follow(after, heartbeat_s=60, write_now=later)


def events_of(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in b"".join(frames).split(b"\n") if line.startswith(b"data: ")]


def text_of(frames: list[bytes]) -> str:
    return "".join(event.get("content", "") for event in events_of(frames))


def assert_titles_are_told_once(frames: list[bytes]) -> None:
    """In the first frame of a document in this stream, wherever it began; each frame has the document's id."""
    named = set()
    for event in events_of(frames):
        if event["type"] == "doc":
            number = event["item"]
            told = {} if number in named else {"title": f"Title {number}", "version": 2}
            assert event == {"type": "doc", "content": event["content"], "item": number, "doc_id": f"d{number}"} | told
            named.add(number)


async def test_a_reader_inside_of_a_merged_frame_gets_the_rest_of_it() -> None:
    run = a_run([Message("abc", 0) for _ in range(400)])
    assert len(run.log) < 200
    for after in range(0, 1200, 7):
        cursor = follow(run, after)
        assert text_of([await anext(cursor)]) == ("abc" * 400)[after:]
        cursor.close()


async def test_a_piece_without_text_is_not_read_again_and_again() -> None:
    run = a_run([Message("a", 0)])
    cursor = follow(run, None)
    seen = [await anext(cursor)]
    for content in ("", "b", ""):
        run.emit([Message(content, 0), Message("", 1)])
    run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
    seen += [frames async for frames in cursor]
    assert text_of(seen) == "ab"
    assert b"".join(seen).count(b"data: ") == 4


async def test_a_token_of_a_long_reply_takes_little_memory_and_the_log_knows_how_much() -> None:
    tracemalloc.start()
    try:
        run = a_run([Message(f" w{number}", 0) for number in range(200)])
        before, size = tracemalloc.get_traced_memory()[0], run.log.size
        for number in range(20_000):
            run.emit([Message(f" w{number}", 0)])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < 40 * 20_000
    assert taken / 2 < run.log.size - size < 2 * taken


def stored_run(run: Run) -> StoredRun:
    items = [item.record(complete=True) for item in run.items]
    return StoredRun(run.run_id, run.thread_id, "scripted", None, items, End("stop", True, None, None))


async def test_the_oldest_ended_runs_leave_memory_first_and_are_read_from_the_database() -> None:
    records = Records()
    async with registry(says_much, records, log_bytes=5 * RUN_BYTES) as runs:
        ended = [await ended_run(runs, records) for _ in range(8)]
        assert not runs.log_full
        here = [runs.get("o", run.run_id) is not None for run in ended]
        assert here == sorted(here), "the oldest are gone, and the newest are here"
        assert here.count(True) == 3, "and one more has its place"
        again = await runs.find("o", ended[0].run_id)
        assert again is not None
        assert text(await read(follow(again, None))) == text(await read(follow(ended[0], None)))


async def says_much(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
    """A log of a little more than RUN_BYTES."""
    for _ in range(30):
        emit([Message("x" * MERGED_CHARS, 0)])
    return outcome()


async def ended_run(runs: Runs, records: Records) -> Run:
    run = await runs.start("o", ChatRequest("Hi"))
    await read(follow(run, None))
    records.stored[run.run_id] = stored_run(run)
    return run


async def test_runs_in_progress_are_not_cut_and_others_are_refused_until_they_have_ended() -> None:
    async with registry(waits, Records(), log_bytes=3 * RUN_BYTES, max_runs=100) as runs:
        running = [await runs.start("o", ChatRequest("Hi")) for _ in range(3)]
        with pytest.raises(TooManyRuns):
            await runs.start("o", ChatRequest("Hi"))
        assert runs.log_full
        for run in running:
            await saying(run)
            assert not run.stopping.done()
            run.stop(StopCause.USER)
            await read(follow(run, None))
        assert not runs.log_full
        again = await runs.start("o", ChatRequest("Hi"))
        again.stop(StopCause.USER)


async def test_runs_that_are_not_stored_or_have_readers_stay_in_memory() -> None:
    records = Records(saves=False)
    async with registry(says_much, records, log_bytes=4 * RUN_BYTES) as runs:
        unsaved = [await ended_run(runs, records) for _ in range(3)]
        with pytest.raises(TooManyRuns):
            await runs.start("o", ChatRequest("Hi"))
        assert [runs.get("o", run.run_id) for run in unsaved] == unsaved
        for run in unsaved:
            run.stored = True
        reader = follow(unsaved[0], None)
        records.saves = True
        await ended_run(runs, records)
        assert [runs.get("o", run.run_id) is not None for run in unsaved] == [True, False, True]
        reader.close()


async def test_a_run_that_writes_without_end_is_ended_and_keeps_what_it_has() -> None:
    async def endless(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        for _ in range(2 * MOST_CHARS // 100_000):
            if not stopping.done():
                emit([Message("x" * 100_000, 0)])
        return outcome("cancelled", unfinished=[0])

    async with registry(endless) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(follow(run, None))
    assert (events[-1][1]["code"], events[-1][1]["retryable"]) == ("run_too_long", False)
    assert MOST_CHARS < len(text(events)) <= MOST_CHARS + 100_000
