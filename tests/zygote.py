"""Starts the service by forking a process that has imported it already: else each test would pay a second or two of
imports. The code that runs is the same: uvicorn's own main, in a process of its own that is this one's child.
"""

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36
# Variables that an interpreter or a package reads at its start: such a service must be started anew.
READ_AT_IMPORT = ("PYTHONPATH", "PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "OPENAI_LOG")

# Modules that a service imports at its start, not with asgi_app: they are half of its work until it is ready.
IMPORTED_AT_START = (
    "drafting.provider.openai_model",
    "httpcore2",
    "openai.lib.streaming.chat",
    "openai.resources.chat.completions.completions",
    "truststore",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.auto",
    "uvloop",
)


class Zygote:
    """`fork` is `subprocess.Popen` for `python -m uvicorn …`, without the imports."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def _start(self) -> "subprocess.Popen[str]":
        # A service's parent ends at once; this makes us inherit it, so that we can wait for it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        return subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @staticmethod
    def can(env: Mapping[str, str]) -> bool:
        return not any(env.get(name, "0") != "0" for name in READ_AT_IMPORT)

    def fork(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        process: subprocess.Popen[bytes] = subprocess.Popen.__new__(subprocess.Popen)
        process.__dict__ |= {"args": arguments, "stdin": None, "stdout": None, "stderr": None, "returncode": None}
        process.__dict__ |= {"_child_created": True, "_waitpid_lock": threading.Lock(), "_communication_started": False}
        with self._one_at_a_time:
            self._process = self._process or self._start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(json.dumps([list(arguments), dict(env), str(log)]), file=self._process.stdin, flush=True)
            process.pid = int(self._process.stdout.readline())
        return process

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def serve(arguments: list[str], env: dict[str, str], log: str) -> None:
    import uvicorn

    os.environ.clear()
    os.environ.update(env)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(file, number)
    uvicorn.main(arguments)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    for name in ("asgi_app", *IMPORTED_AT_START):
        importlib.import_module(name)
    # A collection would write to each object, and so copy all the memory that a service shares with this process.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            if (pid := os.fork()) != 0:
                os.write(writing, str(pid).encode())
                os._exit(0)
            os.close(reading)
            os.close(writing)
            serve(*json.loads(line))
            os._exit(1)  # uvicorn's main ends the process itself
        os.waitpid(child, 0)
        print(os.read(reading, 20).decode(), flush=True)
        os.close(reading)
        os.close(writing)


if __name__ == "__main__":
    main()
