"""Runs with a scripted agent: the log, cursors into it, one run a thread, stopping, draining."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.limits import Limits
from chat import (
    ChatRequest,
    Doc,
    Emit,
    End,
    EndReason,
    Message,
    Outcome,
    Piece,
    RunEnded,
    RunFailure,
    RunProgress,
    RunStarted,
    RunStatus,
    Start,
    StopCause,
    StoredRun,
    ThreadHead,
    Turn,
)
from chat.refusals import ThreadBusy, UnknownCheckpoint
from drafting.deltas import ModelError
from runs.log import FRAMES_A_READ, MERGED_CHARS
from runs.registry import Draining, Runs, TooManyRuns
from runs.run import Cursor, Run
from runs.turn import RunAgent
from storage.writer import Unstorable
from telemetry.metrics import Telemetry
from telemetry.supervision import Supervisor

pytestmark = pytest.mark.anyio

PIECES: list[Piece] = [
    Message("Hello ", 0),
    Message("😀 world", 0),
    Doc("# N", 1, "d1", "NDA", 1),
    Doc("DA \u2028", 1, "d1", "NDA", 1),
    Message("Bye", 2),
]
TOTAL = sum(len(piece.content) for piece in PIECES)


def outcome(
    reason: EndReason | None = "stop", error: RunFailure | None = None, unfinished: Sequence[int] = ()
) -> Outcome:
    return Outcome(reason=reason, error=error, unfinished=frozenset(unfinished), usage=None, checkpoint_id=None)


class Records:
    """Where a registry's records go in these tests."""

    def __init__(self, *, saves: bool = True) -> None:
        self.started: list[RunStarted] = []
        self.ended: list[RunEnded] = []
        self.saves = saves
        self.progress: list[RunProgress] = []
        self.takes_progress = True
        self.asked = 0  # how often progress came
        self.times: list[float] = []
        self.renewed: list[Sequence[str]] = []
        self.stored: dict[str | None, StoredRun] = {}
        self.heads: dict[str, ThreadHead] = {}

    def _future(self) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        if self.saves:
            future.set_result(None)
        return future

    def start_run(self, run: RunStarted) -> asyncio.Future[None]:
        self.started.append(run)
        return self._future()

    async def end_run(self, run: RunEnded) -> asyncio.Future[None]:
        self.ended.append(run)
        return self._future()

    async def renew_leases(self, run_ids: Sequence[str]) -> None:
        self.renewed.append(run_ids)

    def save_progress(self, progress: Sequence[RunProgress]) -> bool:
        self.asked += 1
        if self.takes_progress:
            self.progress.extend(progress)
        return self.takes_progress

    @property
    def journals(self) -> bool:
        return False

    def now(self) -> float:
        return self.times.pop(0) if self.times else 1_800_000_000.0

    async def journal(self, run_id: str) -> bool:
        return False

    async def run(self, owner: str, run_id: str | None = None, idempotency_key: str | None = None) -> StoredRun | None:
        return self.stored.get(run_id or idempotency_key)

    async def head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead:
        await asyncio.sleep(0)
        if checkpoint_id is not None:
            raise UnknownCheckpoint
        return self.heads.get(thread_id, ThreadHead())


async def no_limit(owner: str) -> None:
    """Of the bytes that an owner may store."""


@asynccontextmanager
async def registry(agent: RunAgent, records: Records | None = None, **settings: float) -> AsyncIterator[Runs]:
    records = records or Records()
    limits = {
        "max_runs": 10,
        "log_bytes": 2**24,
        "run_timeout_s": 60,
        "save_timeout_s": 0.05,
        "drain_timeout_s": 0.05,
    } | settings
    async with Runs(
        agent=agent,
        models=("scripted",),
        store=records,
        limits=Limits(requests_a_minute=None, runs_at_once=None, tokens_a_day=None),
        check_stored_bytes=no_limit,
        telemetry=Telemetry("1.2.3"),
        supervise=Supervisor(pytest.fail).keep,
        **limits,  # type: ignore[arg-type]
    ) as runs:
        yield runs


async def says(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
    for piece in PIECES:
        emit([piece])
        await asyncio.sleep(0)
    return outcome()


async def waits(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
    emit([Message("As far as", 0)])
    await stopping
    return outcome("cancelled", unfinished=[0])


def later(_: bytes) -> bool:
    """A connection that takes nothing at once: all that is read comes out of the iteration."""
    return False


async def read(cursor: Cursor) -> list[tuple[str, dict[str, object]]]:
    body = b"".join([frames async for frames in cursor]).decode()
    assert body.startswith("retry: 2000\n")
    frames = body.removeprefix("retry: 2000\n").split("\n\n")
    assert frames.pop() == ""
    parsed = []
    for frame in frames:
        name, data = frame.split("\n")
        parsed.append((name.removeprefix("id: ").partition(":")[2], json.loads(data.removeprefix("data: "))))
    return parsed


async def saying(run: Run) -> None:
    """Until the agent has said something."""
    while not run.items:
        await asyncio.sleep(0)


def text(events: list[tuple[str, dict[str, object]]]) -> str:
    return "".join(str(event["content"]) for _, event in events if event["type"] in ("message", "doc"))


def a_run(pieces: list[Piece]) -> Run:
    run = Run("o", "t", "00000000-0000-0000-0000-000000000000")
    run.begin(Start("t", run.run_id, "scripted"))
    for piece in pieces:
        run.emit([piece])
    return run


async def test_a_run_says_start_pieces_and_end_with_their_positions() -> None:
    async with registry(says) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert [place for place, _ in events] == ["0", "6", "13", "16", "20", "23", "end"]
    assert events[0][1] == {"type": "start", "thread_id": run.thread_id, "run_id": run.run_id, "model": "scripted"}
    assert events[-1][1]["type"] == "end"
    assert events[-1][1]["saved"] is True


async def test_the_start_is_in_the_log_before_the_agent_has_done_anything() -> None:
    async def never(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        await stopping
        return outcome("cancelled")

    async with registry(never) as runs:
        cursor = (await runs.start("o", ChatRequest("Hi"))).follow(None, heartbeat_s=60, write_now=later)
        assert b'"type":"start"' in await anext(cursor)
        cursor.close()


async def test_any_cut_of_the_stream_can_be_gone_on_from() -> None:
    run = a_run(PIECES)
    whole = "".join(piece.content for piece in PIECES)
    for after in range(TOTAL + 1):
        cursor = run.follow(after, heartbeat_s=60, write_now=later)
        frames = (await anext(cursor)).decode().removeprefix("retry: 2000\n").split("\n\n")[:-1]
        pieces = [json.loads(frame.partition("data: ")[2])["content"] for frame in frames]
        assert "".join(pieces) == whole[after:], "of a run that goes on"
        cursor.close()
    run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
    for after in range(TOTAL + 1):
        events = await read(run.follow(after, heartbeat_s=60, write_now=later))
        assert text(events) == whole[after:], "of a run that has ended"
        assert events[-1][1]["type"] == "end"
        assert all(place == "end" or int(place) > after for place, _ in events)


@pytest.mark.parametrize("after", [None, 0, 3, TOTAL])
async def test_a_reader_that_comes_early_sees_what_one_sees_that_comes_late(after: int | None) -> None:
    async with registry(says) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        early = asyncio.create_task(read(run.follow(after, heartbeat_s=60, write_now=later)))
        while not run.ended:
            await asyncio.sleep(0)
        late = await read(run.follow(after, heartbeat_s=60, write_now=later))
        expected = "".join(piece.content for piece in PIECES)[after or 0 :]
        assert text(late) == expected
        seen = await early
        if after in (None, 0):
            assert seen == late
        else:  # a place that was not there yet: more may come, and never less
            assert text(seen).endswith(expected)
            assert seen[-1] == late[-1]


async def test_items_mode_sends_each_item_once_it_is_whole() -> None:
    go_on = asyncio.Event()

    async def in_two_parts(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        for piece in PIECES[:3]:
            emit([piece])
        await go_on.wait()
        for piece in PIECES[3:]:
            emit([piece])
        return outcome()

    async with registry(in_two_parts) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        cursor = run.follow(None, mode="items", heartbeat_s=60, write_now=later)
        await saying(run)
        first = await anext(cursor)
        assert b'"content":"Hello \xf0\x9f\x98\x80 world"' in first
        assert b"# N" not in first
        go_on.set()
        rest = b"".join([frames async for frames in cursor])
    assert rest.count(b'"type":"doc"') == 1
    assert '"content":"# NDA \u2028"'.encode() in rest
    assert rest.count(b"data: ") == 3


async def test_what_arrives_together_leaves_in_one_write() -> None:
    async def at_once(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        for _ in range(100):
            emit([Message("x", 0)])
        await stopping
        return outcome("cancelled")

    async with registry(at_once) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        cursor = run.follow(None, heartbeat_s=60, write_now=later)
        await saying(run)
        assert (await anext(cursor)).count(b"data: ") == 101
        cursor.close()


async def test_what_comes_while_a_reader_waits_is_written_without_waking_it() -> None:
    written: list[bytes] = []
    takes = True

    def write_now(frames: bytes) -> bool:
        if takes:
            written.append(frames)
        return takes

    run = a_run([])
    cursor = run.follow(None, heartbeat_s=60, write_now=write_now)
    first = await anext(cursor)
    iteration = asyncio.ensure_future(anext(cursor))
    await asyncio.sleep(0)
    run.emit(PIECES[:2])
    run.emit(PIECES[2:3])
    assert [frames.count(b"data: ") for frames in written] == [2, 1]
    await asyncio.sleep(0)
    assert not iteration.done()
    takes = False
    run.emit(PIECES[3:4])
    waited_for = await iteration
    run.emit(PIECES[4:])  # nobody waits: it is there when the iteration comes back
    takes = True
    run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
    rest = [frames async for frames in cursor]
    whole = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert b"".join([first, *written, waited_for, *rest]).count(b"data: ") == len(whole)
    assert b'"type":"end"' in rest[-1]


async def test_what_comes_at_once_while_a_reader_waits_is_written_to_its_last_piece() -> None:
    written: list[bytes] = []

    def write_now(frames: bytes) -> bool:
        written.append(frames)
        return True

    run = a_run([])
    cursor = run.follow(None, heartbeat_s=60, write_now=write_now)
    await anext(cursor)
    iteration = asyncio.ensure_future(anext(cursor))
    await asyncio.sleep(0)
    run.emit([Message("x" * MERGED_CHARS, 0)] * (2 * FRAMES_A_READ + 1))
    async with asyncio.timeout(10):
        written += [await iteration, await anext(cursor)]
    assert b"".join(written).count(b"data: ") == 2 * FRAMES_A_READ + 1
    cursor.close()


async def test_a_reader_whose_connection_raises_holds_up_neither_the_run_nor_the_readers_behind_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[bytes] = []

    def broken(frames: bytes) -> bool:
        tried.append(frames)
        raise OSError("the connection is gone")

    def reader(write_now: Callable[[bytes], bool]) -> Cursor:
        return run.follow(None, heartbeat_s=60, write_now=write_now)

    run = a_run([])
    for write_now in (broken, later, broken):  # in whatever order they are woken
        await anext(reader(write_now))
    cursors = list(run.readers)
    waiting = [asyncio.ensure_future(anext(cursor)) for cursor in cursors]
    await asyncio.sleep(0)
    run.emit(PIECES[:1])
    assert [b"Hello" in frames for frames in await asyncio.gather(*waiting)] == [True] * 3, "by the iteration"
    waiting = [asyncio.ensure_future(anext(cursor)) for cursor in cursors]
    await asyncio.sleep(0)
    run.emit(PIECES[1:2])
    assert [b"world" in frames for frames in await asyncio.gather(*waiting)] == [True] * 3
    assert len(tried) == len(caplog.records) == 2, "once a reader"
    run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
    assert len({b"".join([frames async for frames in cursor]) for cursor in cursors}) == 1


async def test_a_reader_that_waits_for_the_end_ends_with_it() -> None:
    run = a_run([])
    cursor = run.follow(None, heartbeat_s=60, write_now=lambda _: True)
    await anext(cursor)
    end = asyncio.ensure_future(anext(cursor))
    await asyncio.sleep(0)
    run.emit([Message("x", 0)])  # is written while the iteration waits
    run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
    async with asyncio.timeout(10):
        assert (await end).count(b"data: ") == 1
        assert [frames async for frames in cursor] == []


async def test_a_document_that_is_written_for_long_keeps_the_silence_of_items_mode_short() -> None:
    run = a_run(PIECES[:2])
    cursor = run.follow(None, mode="items", heartbeat_s=0.05, write_now=later)
    await anext(cursor)
    beat = asyncio.ensure_future(anext(cursor))
    while not beat.done():
        run.emit([PIECES[1]])  # of the same item, which is not whole yet
        await asyncio.sleep(0.01)
    assert await beat == b":\n\n"
    cursor.close()


async def test_a_silent_run_sends_a_comment() -> None:
    async with registry(waits) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        await saying(run)
        cursor = run.follow(None, heartbeat_s=0.05, write_now=later)
        await anext(cursor)
        assert await anext(cursor) == b":\n\n"
        assert await anext(cursor) == b":\n\n"
        cursor.close()


async def test_items_mode_goes_on_from_any_place() -> None:
    run = a_run(PIECES)
    whole = "".join(piece.content for piece in PIECES)
    for ended in (False, True):
        if ended:
            run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
        there = whole if ended else whole[: run.items[-1].begin]
        for after in range(TOTAL + 1):
            cursor = run.follow(after, mode="items", heartbeat_s=60, write_now=later)
            frames = (await anext(cursor)).decode().removeprefix("retry: 2000\n").split("\n\n")[:-1]
            events = [json.loads(frame.partition("data: ")[2]) for frame in frames]
            assert "".join(event["content"] for event in events if "item" in event) == there[after:]
            assert ("end" in {event["type"] for event in events}) is ended
            cursor.close()


async def test_a_cursor_that_is_closed_from_outside_ends() -> None:
    run = a_run([])
    cursor = run.follow(None, heartbeat_s=60, write_now=later)
    await anext(cursor)
    asyncio.get_running_loop().call_later(0.01, cursor.close)
    assert [frames async for frames in cursor] == []
    assert repr(run).endswith("running, 1 frames, 0 readers>")


async def test_a_thousand_readers_of_one_run_read_the_same() -> None:
    async with registry(says) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        streams = await asyncio.gather(*(read(run.follow(None, heartbeat_s=60, write_now=later)) for _ in range(1000)))
    assert all(stream == streams[0] for stream in streams)


async def test_a_thread_has_one_run_at_a_time() -> None:
    async with registry(waits) as runs:
        first = await runs.start("o", ChatRequest("Hi", "t"))
        with pytest.raises(ThreadBusy) as busy:
            await runs.start("o", ChatRequest("Hi again", "t"))
        assert busy.value.run_id == first.run_id
        await runs.start("someone else", ChatRequest("Hi", "t"))
        first.stop(StopCause.USER)
        await read(first.follow(None, heartbeat_s=60, write_now=later))
        await asyncio.sleep(0)
        await runs.start("o", ChatRequest("Hi again", "t"))


async def test_two_that_come_for_one_thread_at_once_get_one_run() -> None:
    async with registry(waits) as runs:
        results = await asyncio.gather(
            *(runs.start("o", ChatRequest("Hi", "t")) for _ in range(5)), return_exceptions=True
        )
    assert sum(isinstance(result, Run) for result in results) == 1
    assert sum(isinstance(result, ThreadBusy) for result in results) == 4


async def test_a_run_counts_on_from_the_threads_last() -> None:
    records = Records()
    records.heads["t"] = ThreadHead(4)
    async with registry(says, records) as runs:
        await runs.start("o", ChatRequest("Hi", "t"))
        await runs.start("o", ChatRequest("Hi"))
        with pytest.raises(UnknownCheckpoint):
            await runs.start("o", ChatRequest("Hi", "t2", "1f1e7774-6f1f-6390-bffe-2da23c4264ef"))
        await runs.start("o", ChatRequest("Hi", "t2"))
    assert [run.seq for run in records.started] == [5, 1, 1]


async def test_there_are_no_more_runs_than_allowed() -> None:
    async with registry(waits, max_runs=2) as runs:
        await runs.start("o", ChatRequest("Hi"))
        await runs.start("o", ChatRequest("Hi"))
        assert runs.full
        with pytest.raises(TooManyRuns):
            await runs.start("o", ChatRequest("Hi"))


async def test_a_person_stops_a_run_and_it_keeps_what_it_has() -> None:
    records = Records()
    async with registry(waits, records) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        await saying(run)
        run.stop(StopCause.USER)
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert events[-1][1] == {"type": "end", "reason": "cancelled", "saved": True, "checkpoint_id": None, "usage": None}
    [ended] = records.ended
    assert ended.status is RunStatus.CANCELLED
    assert [(item["content"], item["complete"]) for item in ended.items] == [("As far as", False)]


async def test_no_run_ends_before_it_began() -> None:
    """Also if another database, with a clock that is behind, took over meanwhile."""
    records = Records()
    async with registry(says, records) as runs:
        for began, ends, expected in ((100.0, 40.0, 100.0), (100.0, 160.0, 160.0)):
            records.times = [began, ends]
            run = await runs.start("o", ChatRequest("Hi"))
            await read(run.follow(None, heartbeat_s=60, write_now=later))
            assert (records.started[-1].started_at, records.ended[-1].ended_at) == (began, expected)


async def test_a_run_that_takes_too_long_ends_with_an_error() -> None:
    async with registry(waits, run_timeout_s=0.05) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert events[-1][1]["code"] == "run_timeout"
    assert events[-1][0] == "end"


async def test_the_end_waits_for_the_commit_and_says_when_it_did_not_come() -> None:
    records = Records(saves=False)
    async with registry(says, records) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert events[-1][1]["saved"] is False


async def test_a_commit_that_comes_while_the_turn_is_journaled_is_told() -> None:
    class Journaling(Records):
        journals = True
        saved: asyncio.Future[None]

        async def end_run(self, run: RunEnded) -> asyncio.Future[None]:
            self.saved = await super().end_run(run)
            return self.saved

        async def journal(self, run_id: str) -> bool:
            self.saved.set_result(None)
            return True

    async with registry(says, Journaling(saves=False)) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert (events[-1][1]["saved"], events[-1][1]["journaled"]) == (True, True)


@pytest.mark.parametrize("reason", [None, "cancelled"])
async def test_an_agent_that_gives_no_good_reason_has_failed(
    reason: EndReason | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def vague(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        return outcome(reason)  # though nobody has stopped it

    async with registry(vague) as runs:
        run = await runs.start("o", ChatRequest("Hi", thread_id="t"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
        assert runs.busy("o", "t") is None
    assert (events[-1][1]["type"], events[-1][1]["code"]) == ("error", "internal")


async def test_an_error_ends_the_stream_and_what_was_said_is_kept() -> None:
    records = Records()

    async def fails(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        emit([Message("So far", 0)])
        error = ModelError("model_unavailable", "The provider has a fault.", retryable=True)
        return outcome(None, error=error, unfinished=[0])

    async with registry(fails, records) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert events[-1][1] == {
        "type": "error",
        "content": "The provider has a fault.",
        "code": "model_unavailable",
        "retryable": True,
    }
    assert records.ended[0].status is RunStatus.FAILED
    assert records.ended[0].items[0]["complete"] is False


async def test_a_fault_of_ours_shows_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        raise KeyError("postgresql://user:secret@host/db")

    async with registry(breaks) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
    assert events[-1][1]["code"] == "internal"
    assert "secret" not in str(events)
    assert run.run_id in caplog.text


async def test_a_turn_that_the_database_refuses_is_reported_as_the_client_hears_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refusing(Records):
        async def end_run(self, run: RunEnded) -> asyncio.Future[None]:
            saved = asyncio.get_running_loop().create_future()
            saved.set_exception(Unstorable())
            return saved

    caplog.set_level("INFO", "draftstream.run")
    async with registry(says, Refusing()) as runs:
        events = await read((await runs.start("o", ChatRequest("Hi"))).follow(None, heartbeat_s=60, write_now=later))
    assert (events[-1][1]["type"], events[-1][1]["code"]) == ("error", "unstorable")
    [record] = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["status"], fields["reason"], fields["saved"]) == (RunStatus.FAILED, "unstorable", False)
    assert record.levelname == "WARNING"


async def test_what_a_run_says_is_saved_on_the_way_without_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.registry.PROGRESS_S", 0.01)
    records = Records(saves=False)

    async def slowly(turn: Turn, emit: Emit, stopping: "asyncio.Future[StopCause]") -> Outcome:
        for number, piece in enumerate(PIECES):
            records.takes_progress = number not in (1, 2)
            emit([piece])
            asked = records.asked
            while records.asked == asked:
                await asyncio.sleep(0.01)
        return outcome()

    async with registry(slowly, records, save_timeout_s=0.1) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        await read(run.follow(None, heartbeat_s=60, write_now=later))
        saved = len(records.progress)
        await asyncio.sleep(0.05)
        assert len(records.progress) == saved, "nothing comes after the end"
    pieces = [entry for progress in records.progress for entry in progress.pieces]
    assert pieces == [
        (6, Message("Hello ", 0)),
        (13, Message("😀 world", 0)),
        (20, Doc("# NDA \u2028", 1, "d1", "NDA", 1)),
        (23, Message("Bye", 2)),
    ]


async def test_leaving_ends_every_run_and_starts_no_more() -> None:
    async with registry(waits) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        drain = asyncio.create_task(runs.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await runs.start("o", ChatRequest("Hi"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
        await drain
    assert events[-1][1]["code"] == "shutting_down"
    assert repr(runs) == "<Runs 0 in progress, 0 ended, draining>"


async def test_a_run_of_another_owner_is_not_to_be_had() -> None:
    async with registry(waits) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        assert runs.get("o", run.run_id) is run
        assert runs.get("p", run.run_id) is None
        assert runs.get("o", "00000000-0000-0000-0000-000000000000") is None


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=8), st.data())
def test_resuming_anywhere_gives_the_rest_exactly(texts: list[str], data: st.DataObject) -> None:
    async def check() -> None:
        run = a_run([Message(piece, index // 3) for index, piece in enumerate(texts)])
        run.finish(End("stop", saved=True, checkpoint_id=None, usage=None))
        whole = "".join(texts)
        after = data.draw(st.integers(0, len(whole)))
        events = await read(run.follow(after, heartbeat_s=60, write_now=later))
        assert text(events) == whole[after:]
        assert sum(event["type"] == "end" for _, event in events) == 1

    asyncio.run(check())


async def test_a_run_whose_thread_is_looked_up_when_the_service_goes_down_does_not_begin() -> None:
    looked_up = asyncio.Event()

    class Slow(Records):
        async def head(self, owner: str, thread_id: str, checkpoint_id: str | None) -> ThreadHead:
            await looked_up.wait()
            return ThreadHead()

    records = Slow()
    async with registry(says, records) as runs:
        start = asyncio.create_task(runs.start("o", ChatRequest("Hi", thread_id="t")))
        await asyncio.sleep(0)
        await runs.drain()
        looked_up.set()
        with pytest.raises(Draining):
            await start
    assert records.started == []


async def test_a_run_whose_end_can_not_be_saved_ends_for_its_readers_and_frees_its_thread() -> None:
    class Broken(Records):
        async def end_run(self, run: RunEnded) -> asyncio.Future[None]:
            raise LookupError("a fault of ours")

    async with registry(says, Broken()) as runs:
        run = await runs.start("o", ChatRequest("Hi", thread_id="t"))
        events = await read(run.follow(None, heartbeat_s=60, write_now=later))
        assert (events[-1][1]["type"], events[-1][1]["code"]) == ("error", "internal")
        assert runs.busy("o", "t") is None


async def test_progress_is_kept_again_after_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.registry.PROGRESS_S", 0.01)

    class Broken(Records):
        faults = 2

        def save_progress(self, progress: Sequence[RunProgress]) -> bool:
            self.faults -= 1
            if self.faults >= 0:
                raise LookupError("a fault of ours")
            return super().save_progress(progress)

    records = Broken()
    async with registry(waits, records) as runs:
        run = await runs.start("o", ChatRequest("Hi"))
        async with asyncio.timeout(10):
            while not records.progress:
                await asyncio.sleep(0.01)
        run.stop(StopCause.USER)
