"""The descriptors and the memory of this process: their limits, and how much of them is used now.

A reading costs microseconds. A process without a memory limit measures no memory.
"""

import ctypes
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

PAGE = resource.getpagesize()
MOST_DESCRIPTORS = 2**20  # more is never needed, and some libraries loop over all numbers below the limit
OWN_DESCRIPTORS = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
LISTING_S = 0.01  # the age of a listing of the descriptors, where the system does not count them itself
MEASURE_S = 0.005  # the age of a reading of the memory
RELIEF_S = 1.0  # the pause between two attempts to give memory back
NO_LIMIT = 2**60  # version 1 of cgroups has a huge number for "none"
CGROUPS = Path("/sys/fs/cgroup")
M_ARENA_MAX = -8  # of mallopt(3)
ARENAS = 2  # each reserves 64 MiB of address space
STACK_BYTES = 2**21  # of a thread, in place of 8 MiB of address space


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one; gives the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, wanted = (MOST_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    wanted = min(wanted, MOST_DESCRIPTORS)
    if soft < wanted:
        with suppress(OSError, ValueError):  # some systems allow less than their hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


class Descriptors:
    """The open descriptors of this process."""

    def __init__(self) -> None:
        self.limit = raise_descriptor_limit()
        self._listed_at = 0.0
        self._listed = 0

    @property
    def used(self) -> int:
        """Linux 6.2 and later counts them; elsewhere a listing is kept for LISTING_S."""
        with suppress(OSError):
            if sys.platform == "linux" and (count := os.stat(OWN_DESCRIPTORS).st_size):  # noqa: PTH116  # a Path takes three times as long
                return count
        if time.monotonic() - self._listed_at > LISTING_S:
            try:
                self._listed = sum(1 for _ in Path(OWN_DESCRIPTORS).iterdir())
            except OSError:  # not one is left for the listing itself
                self._listed = self.limit
            self._listed_at = time.monotonic()
        return self._listed

    def opened(self) -> None:
        """One was opened since the last listing."""
        self._listed += 1


class MemoryLimit:
    """A limit of the process's memory: its name, its bytes, and how many of them are used."""

    def __init__(self, name: str, limit: int, read: Callable[[], int]) -> None:
        self.name = name
        self.limit = limit
        self.read = read

    def __repr__(self) -> str:
        return f"<MemoryLimit {self.name}: {self.limit} bytes>"


class Memory:
    """The room that is left below the memory limits. Without a limit nothing is read."""

    def __init__(self, limits: Sequence[MemoryLimit] | None = None) -> None:
        self.limits = memory_limits() if limits is None else limits
        self._read_at = -MEASURE_S
        self._left = 0
        self._relieved_at = 0.0

    @property
    def smallest(self) -> MemoryLimit | None:
        return min(self.limits, key=lambda limit: limit.limit, default=None)

    @property
    def left(self) -> int | None:
        """The bytes that are left below the nearest limit. None without a limit."""
        if not self.limits:
            return None
        now = time.monotonic()
        if now - self._read_at > MEASURE_S:
            self._left = min(limit.limit - limit.read() for limit in self.limits)
            self._read_at = now
        return self._left

    def relieve(self) -> None:
        """Give memory that is not used back to the system, at most once in RELIEF_S: a collection takes 0.1 s."""
        if self.limits and time.monotonic() - self._relieved_at > RELIEF_S:
            gc.collect()
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            self._relieved_at = time.monotonic()
            self._read_at = -MEASURE_S


def bound_address_space() -> None:
    """Where the address space has a limit: smaller stacks for the threads to come, and fewer arenas of malloc."""
    if _rlimits("RLIMIT_AS"):
        threading.stack_size(STACK_BYTES)
        with suppress(OSError, AttributeError):  # another libc than glibc
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def memory_limits() -> Sequence[MemoryLimit]:
    """The limits that hold for this process: of its address space, its data, and its control group."""
    statm = {"RLIMIT_AS": 0, "RLIMIT_DATA": 5}  # the columns of /proc/self/statm
    found = [MemoryLimit(name, limit, _column(statm[name])) for name, limit in _rlimits(*statm)]
    with suppress(OSError, ValueError):
        found += _cgroup_limits(Path("/proc/self/cgroup").read_text().splitlines())
    return found


def _rlimits(*names: str) -> list[tuple[str, int]]:
    if sys.platform != "linux":
        return []
    limits = [(name, resource.getrlimit(getattr(resource, name))[0]) for name in names]
    return [(name, limit) for name, limit in limits if limit != resource.RLIM_INFINITY]


def _column(number: int) -> Callable[[], int]:
    file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    return lambda: int(os.pread(file, 200, 0).split()[number]) * PAGE


def _cgroup_limits(lines: Sequence[str], root: Path = CGROUPS) -> list[MemoryLimit]:
    """Of the process's group, and of those above it."""
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", b"inactive_file ")
            top = root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file ")
            top = root / "memory"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder == top.parent:
                break
            with suppress(OSError, ValueError):  # ValueError: "max"
                limit = int((folder / names[0]).read_text())
                if limit < NO_LIMIT:
                    found.append(MemoryLimit(f"{folder / names[0]}", limit, _usage(folder, *names[1:])))
    return found


def _usage(folder: Path, current: str, reclaimable: bytes) -> Callable[[], int]:
    """The group's memory, without the files in its cache that the kernel would drop."""
    usage, stat = (os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in (current, "memory.stat"))

    def read() -> int:
        _, found, rest = os.pread(stat, 16384, 0).partition(reclaimable)
        cached = int(rest.split(b"\n", 1)[0]) if found else 0
        return int(os.pread(usage, 40, 0)) - cached

    return read
