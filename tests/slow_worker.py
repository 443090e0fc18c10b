"""A worker whose job does what the title of its document says, so that a test knows when it runs and when it ends."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from documents import worker


def wait(folder: str) -> None:
    Path(folder, f"begun {os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)


def spin(_: str) -> None:
    while True:
        pass


def eat(_: str) -> bytes:
    eaten = [bytearray(2**24) for _ in range(1000)]
    return bytes(len(eaten))


def fail(text: str) -> None:
    raise ValueError(text)


def look(_: str) -> bytes:
    """The environment, the open files and the niceness."""
    links = sorted(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists())
    return repr((dict(os.environ), links, os.nice(0))).encode()


DEEDS: dict[str, Callable[[str], bytes | None]] = {
    "wait": wait,
    "sleep": lambda _: time.sleep(3600),
    "spin": spin,
    "eat": eat,
    "die": lambda _: os.kill(os.getpid(), 9),
    "raise": fail,
    "look": look,
    "large": lambda _: bytes(worker.FILE_BYTES + 1),
}


def make(version: dict[str, Any]) -> bytes:
    deed, _, text = version["title"].partition(" ")
    return (DEEDS[deed](text) if deed in DEEDS else None) or f"made by {os.getpid()}".encode()


def main(cpu_s: float) -> None:
    kinds: dict[worker.Kind, Callable[..., bytes]] = {"document_as_docx": make}
    worker.KINDS = kinds
    worker.main(cpu_s)
