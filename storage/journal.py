"""The journal: records on a durable volume, for the time in which the database can't take them.

Each process has one file, and holds it locked. A file that can be locked is an orphan: its process is gone. A record is
durable once `append` has returned. This module does not interpret the bytes of a record; recovery.py does.
"""

import asyncio
import fcntl
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage.private import close_file, opener, private_folder

log = logging.getLogger("draftstream.journal")

# Before each record: a mark by which the next record is found, the record's length and CRC, and the CRC of these.
HEADER = struct.Struct("<4sIII")
MARK = b"DSJ1"


class JournalError(RuntimeError):
    """The journal's folder can't be used; the message is one line."""


class Journal:
    """The file of this process. A record is settled when the database has it, too; it is needed until then."""

    def __init__(self, folder: Path) -> None:
        """Raises JournalError."""
        self._path = folder / f"{uuid.uuid4()}.journal"
        try:
            private_folder(folder)
            for left in folder.glob("*.damaged"):
                close_file(left)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _sync_folder(folder)
        except OSError as error:
            raise JournalError(f"the journal can't be kept in {folder} ({error.strerror})") from error
        self._size = 0
        self._one_at_a_time = asyncio.Lock()
        self.unsettled: set[str] = set()

    def __repr__(self) -> str:
        return f"<Journal {self._path.name}, {len(self.unsettled)} records unsettled>"

    async def append(self, key: str, record: bytes) -> None:
        """Raises OSError; then the record is not in the file."""
        header = struct.pack("<4sII", MARK, len(record), zlib.crc32(record))
        framed = header + struct.pack("<I", zlib.crc32(header)) + record
        async with self._one_at_a_time:
            await asyncio.to_thread(self._write, framed)
            self.unsettled.add(key)

    def _write(self, framed: bytes) -> None:
        if not self.unsettled:
            self._size = 0  # every record in it is settled
        try:
            os.ftruncate(self._file, self._size)
            written = 0
            while written < len(framed):
                written += os.pwrite(self._file, framed[written:], self._size + written)
            os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(framed)

    def settle(self, key: str) -> None:
        self.unsettled.discard(key)

    def close(self) -> None:
        """Unsettled records stay for the next start."""
        if not self.unsettled:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class Contents:
    """A journal's file: its whole records in order, its damaged bytes, and the length of a torn tail."""

    records: list[bytes]
    damaged: list[bytes]
    torn: int

    @classmethod
    def read(cls, data: bytes) -> "Contents":
        """The process died while it appended the record of a torn tail, which was never acknowledged."""
        records: list[bytes] = []
        damaged: list[bytes] = []
        place = 0
        while place < len(data):
            head = data[place : place + HEADER.size]
            if len(head) < HEADER.size or not any(data[place:]):
                return cls(records, damaged, len(data) - place)
            mark, length, checksum, head_checksum = HEADER.unpack(head)
            end = place + HEADER.size + length
            known = mark == MARK and zlib.crc32(head[:-4]) == head_checksum
            if known and end > len(data):
                return cls(records, damaged, len(data) - place)
            record = data[place + HEADER.size : end]
            if known and zlib.crc32(record) == checksum:
                records.append(record)
            else:
                if not known:
                    found = data.find(MARK, place + 1)
                    end = found if found >= 0 else len(data)
                damaged.append(data[place:end])
            place = end
        return cls(records, damaged, 0)


@contextmanager
def orphan(path: Path) -> Iterator[Contents | None]:
    """The contents of a journal, held locked; None if its process is alive. Leaving without an error removes the file.

    Damaged bytes are set aside in a file beside it.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        contents = Contents.read(file.read())
        if contents.torn:
            log.warning("%s: cut a torn tail of %d bytes, which was never acknowledged", path.name, contents.torn)
        if contents.damaged:
            aside = path.with_suffix(".damaged")
            with open(aside, "wb", opener=opener) as file_aside:  # Path.open takes no opener
                file_aside.write(b"".join(contents.damaged))
            log.error("%s: %d damaged records are set aside in %s", path.name, len(contents.damaged), aside.name)
        yield contents
        path.unlink(missing_ok=True)


def orphans(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


def _sync_folder(folder: Path) -> None:
    """Make the file's name durable, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
