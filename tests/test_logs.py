"""Log lines: they have the events, and never the content."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import asyncpg
import orjson
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from chat import RunStatus
from drafting.deltas import ModelError
from store import Store
from telemetry.logs import HIDDEN as SECRET
from telemetry.logs import Lines, Style, kind

CANARY = "canary of a message"
KEY = "sk-canary-key"
QUOTED_KEY = 'canary-with-"quotes"'
DSN = "postgresql://user:canary-password@db.example/drafts"
STYLES: tuple[Style, ...] = ("text", "json")


def line(
    template: str,
    *args: object,
    logger: str = "draftstream.runs",
    style: Style = "text",
    content: bool = False,
    error: BaseException | None = None,
    fields: dict[str, object] | None = None,
) -> str:
    trace = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.getLogger(logger).makeRecord(
        logger, logging.INFO, "runs.py", 12, template, args, trace, extra={"fields": fields} if fields else None
    )
    return Lines(style, content=content, secrets=(KEY, QUOTED_KEY, DSN, "")).format(record)


def test_a_line_says_what_happened() -> None:
    assert (
        line("run %s: %s after %.1f s", "5f3c-1", RunStatus.FAILED, 2.25) == "INFO:     run 5f3c-1: failed after 2.2 s"
    )
    assert line("in %s, %s", Path("/data/x"), None) == "INFO:     in /data/x, None"
    assert line("in %s, %s", Path("/my data/ä"), Path("/x\ny")) == "INFO:     in /my data/ä, '/x\\ny'"
    assert line("no arguments: 100 %") == "INFO:     no arguments: 100 %"
    assert line("Uvicorn running on %s://%s:%d", "http", "::1", 80, logger="uvicorn.error").endswith("http://::1:80")


def test_json_is_an_object_a_line() -> None:
    text = line("run ended", style="json", fields={"run_id": "r", "seconds": 1.5, "trace_id": None, "saved": True})
    assert "\n" not in text
    fields = orjson.loads(text)
    assert fields.pop("time").endswith("+00:00")
    assert fields == {
        "level": "INFO",
        "logger": "draftstream.runs",
        "message": "run ended",
        "run_id": "r",
        "seconds": 1.5,
        "trace_id": None,
        "saved": True,
    }
    assert line("run ended", fields={"run_id": "r", "trace_id": None}) == "INFO:     run ended run_id=r"


def test_a_line_of_fields_can_be_taken_apart_again() -> None:
    fields: dict[str, object] = {"a": "one", "b": ConnectionRefusedError(111, CANARY), "c": "two\nlines", "d": 1.5}
    assert line("x", fields=fields) == 'INFO:     x a=one b="ConnectionRefusedError 111" c="[9 characters]" d=1.5'
    assert line("x", fields=fields, content=True).splitlines() == [
        'INFO:     x a=one b="[Errno 111] canary of a message" c="two\\nlines" d=1.5'
    ]


HIDDEN: list[tuple[str, tuple[Any, ...], str]] = [
    ("got %s", (CANARY,), "got [19 characters]"),
    ("got %r", (CANARY,), "got '[19 characters]'"),
    ("got %s", (CANARY.encode(),), "got [bytes]"),
    ("got %s", ({"message": CANARY},), "got [dict]"),
    ("got %(message)s", ({"message": CANARY},), "got %(message)s (its arguments do not fit)"),
    ("got %d", (CANARY,), "got %d (its arguments do not fit)"),
    ("got %s", (ValueError(CANARY),), "got ValueError"),
    ("with %s", (KEY,), "with [secret]"),
    ("with %s", (f"Bearer:{KEY}",), "with Bearer:[secret]"),
    ("at %s", (DSN,), "at postgresql://db.example/drafts"),
    ("at %s", ("postgresql://other:canary@db/x?password=canary",), "at postgresql://db/x?…"),
    ('"%s %s"', ("GET", "/chat?message=canary+of+a+message"), '"GET /chat?…"'),
    (f"first line\n{CANARY}", (), "first line"),
    (f"with {KEY}", (), "with [secret]"),
    ("with %s", (QUOTED_KEY,), "with [secret]"),
    ("got %s", ("x" * 201,), "got [201 characters]"),
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("template", "args", "expected"), HIDDEN)
def test_what_was_said_is_not_shown(template: str, args: tuple[Any, ...], expected: str, style: Style) -> None:
    shown = line(template, *args, style=style)
    assert "canary" not in shown
    assert (orjson.loads(shown)["message"] if style == "json" else shown.removeprefix("INFO:     ")) == expected


@pytest.mark.parametrize("style", STYLES)
def test_of_an_exception_only_its_kind_and_its_way_are_shown(style: Style) -> None:
    try:
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            raise ModelError("model_auth", CANARY, retryable=False) from error
    except ModelError as error:
        shown = line("run %s failed", "r", error=error, style=style)
    assert "canary" not in shown
    assert shown.index("ValueError") < shown.index("which led to:") < shown.index("ModelError")
    assert "test_logs.py" in shown
    assert f"in {test_of_an_exception_only_its_kind_and_its_way_are_shown.__name__}" in shown
    assert ("\n" in shown) == (style == "text")


@pytest.mark.parametrize("style", STYLES)
def test_other_packages_say_where_and_nothing_more(style: Style) -> None:
    shown = line("Request options: %s", {"messages": [CANARY]}, logger="openai._base_client", style=style)
    assert "canary" not in shown
    assert "Request" not in shown
    assert "a record of openai._base_client, line 12" in shown


@pytest.mark.parametrize("style", STYLES)
@given(st.text(min_size=1).filter(lambda text: not text.isascii() or not text.isprintable() or " " in text))
def test_no_text_that_is_not_one_word_comes_through(style: Style, said: str) -> None:
    shown = line("got %s and %s", said, ValueError(said), style=style, fields={"field": said})
    assert shown.isascii()
    assert len(shown.splitlines()) == 1
    assert f"[{len(said)} characters]" in shown


def test_log_content_shows_it_and_still_no_secret() -> None:
    shown = line("got %s", CANARY, content=True, error=ValueError(f"{CANARY} {KEY}"))
    assert shown.count(CANARY) == 2
    assert KEY not in shown
    assert line("Request: %s", CANARY, logger="openai", content=True).endswith(CANARY)


@pytest.mark.anyio
async def test_a_kind_tells_faults_apart(store: Store, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await connection.execute("INSERT INTO dead_letters (thread) VALUES ('canary')")
    await connection.close()
    assert "canary" in str(refused.value)
    assert kind(refused.value) == "NotNullViolationError 23502"
    assert kind(ConnectionRefusedError(111, CANARY)) == "ConnectionRefusedError 111"


def test_a_whole_process_logs_through_it() -> None:
    script = """import asyncio, logging, openai; from telemetry import logs
logging.getLogger("openai").info("before: the canary's own handler")
logs.set_up("DEBUG", "json", content=False, secrets=["sk-canary-key"])
logging.getLogger("draftstream.x").debug("at %s", "work")
logging.getLogger("openai._base_client").debug("Request options: canary")
logging.getLogger("httpx").warning("canary")
logging.getLogger("quiet").info("canary")
async def main():
    async def fail():
        raise ValueError("canary")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
asyncio.run(main())
"""
    answer = subprocess.run(
        [sys.executable, "-c", script.replace("before: the canary's", "before: the")],
        cwd=ROOT,
        env={"OPENAI_LOG": "debug"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "canary" not in answer.stderr
    lines = [orjson.loads(text) for text in answer.stderr.splitlines() if text.startswith("{")]
    assert [fields["message"] for fields in lines] == [
        "at work",
        "a record of openai._base_client, line 5",
        "a record of httpx, line 6",
        "Task exception was never retrieved",
    ]
    assert lines[-1]["exception"].endswith("ValueError")


UNCAUGHT = {
    "a thread": ("threading.Thread(target=fail, name='tracer').start()", "the thread tracer failed", "KeyError"),
    "a pool's thread with words in its name": (
        "threading.Thread(target=fail, name='canary (of a message)').start()",
        "the thread [",
        "KeyError",
    ),
    "a thread that exits": ("threading.Thread(target=sys.exit, args=['canary']).start()", None, None),
    "the main thread": ("fail()", "the process failed", "KeyError"),
    "a cause": ("raise RuntimeError('canary') from ValueError('canary')", "the process failed", "RuntimeError"),
    "a group with notes": ("noted()", "the process failed", "ExceptionGroup"),
    "Ctrl-C": ("raise KeyboardInterrupt('canary')", "interrupted", None),
    "a finalizer": ("Finalized(); gc.collect()", "an exception was ignored in a function", "KeyError"),
    "a callback of the loop": ("asyncio.run(called_back())", "Exception in callback fail", "KeyError"),
    "a task": ("asyncio.run(forgotten())", "Task exception was never retrieved", "KeyError"),
    "a task of uvloop": ("uvloop.run(forgotten())", "Task exception was never retrieved", "KeyError"),
    "a callback of uvloop": ("uvloop.run(called_back())", "Exception in callback ", "KeyError"),
    "a warning": ("warnings.warn('canary', ResourceWarning)", "ResourceWarning in ", None),
    "a coroutine that nobody awaited": ("forgotten(); gc.collect()", "RuntimeWarning in ", None),
    "a line that does not fit": ("logging.getLogger('draftstream').error('%d of %d', 'canary')", "do not fit", None),
    "a logger that passes nothing on": ("alone('canary')", "a record of alone", None),
    "a package's own handler": ("handled('canary')", "a record of handled", None),
    "an exception without a text": ("raise Untold", "the process failed", "Untold"),
}
PREPARED = """import asyncio, gc, logging, sys, threading, uvloop, warnings
from telemetry import logs
warnings.simplefilter("always")
own = logging.getLogger("handled"); own.addHandler(logging.StreamHandler()); own.propagate = False
logs.set_up("DEBUG", STYLE, content=False, secrets=[])
def fail(*_):
    raise KeyError("canary of a message")
class Finalized:
    def __del__(self):
        fail()
class Untold(Exception):
    def __str__(self):
        raise ValueError("canary")
def noted():
    error = ValueError("canary"); error.add_note("canary")
    raise ExceptionGroup("canary", [error])
async def called_back():
    asyncio.get_running_loop().call_soon(fail, "canary of an argument")
    await asyncio.sleep(0.01)
async def forgotten():
    task = asyncio.create_task(asyncio.to_thread(fail)); await asyncio.wait([task]); del task; gc.collect()
def alone(text):
    logger = logging.getLogger("alone"); logger.propagate = False; logger.error(text)
def handled(text):
    own.error(text)
"""


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", UNCAUGHT)
def test_what_nobody_caught_is_a_line_of_the_log_without_its_text(case: str, style: Style) -> None:
    script, message, exception = UNCAUGHT[case]
    answer = subprocess.run(
        [sys.executable, "-c", f"{PREPARED.replace('STYLE', repr(style))}{script}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "canary" not in answer.stderr + answer.stdout
    if message is None:
        assert answer.stderr == ""
        return
    if style == "json":
        lines = [orjson.loads(text) for text in answer.stderr.splitlines()]
        assert any(message in fields["message"] for fields in lines), answer.stderr
        assert exception is None or any(fields.get("exception", "").endswith(exception) for fields in lines)
    else:
        assert message in answer.stderr
        assert exception is None or f"\n{exception}\n" in answer.stderr


def test_with_log_content_an_uncaught_exception_shows_its_text_and_no_secret() -> None:
    script = """import threading; from telemetry import logs
logs.set_up("INFO", "text", content=True, secrets=["sk-canary-key"])
def fail(): raise KeyError("the text, and sk-canary-key")
threading.Thread(target=fail).start()
"""
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "KeyError: 'the text, and [secret]'" in answer.stderr


def test_a_stream_that_is_closed_takes_no_line_and_stops_nothing() -> None:
    script = """import logging, os, sys; from telemetry import logs
logs.set_up("INFO", "text", content=False, secrets=[])
os.close(2)
logging.getLogger("draftstream").error("at %s", "canary")
print("went on")
"""
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "went on\n"


@pytest.mark.parametrize("secret", ["x", "key", "no", "1234567"])
def test_a_short_secret_takes_no_words_out_of_the_log(secret: str) -> None:
    text = f"a key of {secret}"
    assert (
        Lines("text", content=False, secrets=(secret,)).format(
            logging.makeLogRecord({"name": "draftstream", "msg": text, "levelname": "INFO"})
        )
        == f"INFO:     {text}"
    )


@given(st.text(min_size=8, max_size=30))
def test_a_secret_is_hidden_however_it_is_escaped(secret: str) -> None:
    forms = [secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]]
    forms += [json.dumps(quote(secret))[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]]
    for formatter in (Lines(style, content=True, secrets=(secret,)) for style in STYLES):
        for form in forms:
            record = logging.makeLogRecord({"name": "x", "msg": f"<{form}>", "levelname": "INFO"})
            shown = formatter.format(record)
            assert SECRET in shown, (form, shown)
