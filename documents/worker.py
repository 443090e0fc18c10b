"""A process that makes files: jobs come in at its standard input, files go out at its standard output.

A job is a frame (eight bytes of length, then JSON) with the name of a file's kind and its arguments. The answer is one
byte when the job begins, one byte that says how it went, and a frame. The process reads all the time, in a thread of
its own. So it ends at once when its parent closes the pipe or dies, also in the middle of a job. Its memory and the
processor time of a job are limited by the system. It imports nothing but this folder, and gets no environment.
"""

import os
import queue
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from documents import files

Kind = Literal["conversation_as_docx", "document_as_docx", "redline_as_docx", "redline_as_html", "redline_as_json"]

KINDS: Mapping[Kind, Callable[..., bytes]] = {
    "conversation_as_docx": files.conversation_as_docx,
    "document_as_docx": files.document_as_docx,
    "redline_as_docx": files.redline_as_docx,
    "redline_as_html": files.redline_as_html,
    "redline_as_json": files.redline_as_json,
}

LENGTH_BYTES = 8
MEMORY_BYTES = 512 * 2**20  # of addresses. The largest files that files.PARTS allows take half of it.
FILE_BYTES = 64 * 2**20  # more than the largest redline, which the service holds in its memory
NICE = 5  # a quarter of the processor where the streams need it

BEGUN = b"b"
MADE, TOO_LARGE, TOO_COMPLEX, FAILED = b"m", b"l", b"c", b"f"


def frame(content: bytes) -> bytes:
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def job(kind: Kind, *arguments: object) -> bytes:
    return frame(orjson.dumps([kind, arguments]))


def answer(content: bytes) -> tuple[bytes, bytes]:
    """How a job went, and the file or else the reason."""
    kind, arguments = orjson.loads(content)
    try:
        made = KINDS[kind](*map(_with_times, arguments))
    except files.TooLarge as limit:
        return TOO_LARGE, str(limit).encode()
    except (MemoryError, RecursionError):
        return TOO_COMPLEX, b"needs too much memory"
    except Exception as error:  # noqa: BLE001  # whatever it is, the service logs it
        return FAILED, _told(error).encode()
    return (MADE, made) if len(made) <= FILE_BYTES else (TOO_LARGE, f"makes more than {FILE_BYTES:,} bytes".encode())


def _with_times(value: Any) -> Any:  # noqa: ANN401  # any JSON
    """JSON has no times."""
    if isinstance(value, list):
        return [_with_times(each) for each in value]
    if isinstance(value, dict) and isinstance(value.get("created_at"), str):
        return value | {"created_at": datetime.fromisoformat(value["created_at"])}
    return value


def _told(error: Exception) -> str:
    """The error's type and its place, in one word that the log shows; its text may have text of a document."""
    places = traceback.extract_tb(error.__traceback__)[:-4:-1]
    return "@".join((type(error).__name__, *(f"{Path(place.filename).name}:{place.lineno}" for place in places)))


def main(cpu_s: float) -> None:
    jobs, out = sys.stdin.buffer, sys.stdout.buffer
    os.nice(NICE)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs, waiting), daemon=True).start()
    while True:
        content = waiting.get()
        out.write(BEGUN)
        out.flush()
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + cpu_s) + 1)
        how, made = answer(content)
        out.write(how + frame(made))
        out.flush()


def _read(jobs: BinaryIO, waiting: "queue.SimpleQueue[bytes]") -> None:
    while True:
        length = jobs.read(LENGTH_BYTES)
        content = jobs.read(int.from_bytes(length, "big"))
        if len(length) < LENGTH_BYTES:
            os._exit(0)  # nobody waits for the job in hand any more
        waiting.put(content)


def _limit(what: int, value: int) -> None:
    """The soft limit; the processor time of the next job needs a higher one."""
    with suppress(OSError, ValueError):  # a system that does not know it, or has a lower one already
        resource.setrlimit(what, (value, resource.getrlimit(what)[1]))
