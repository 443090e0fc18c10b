"""The right to pass through a folder for one group alone, by an entry in the folder's access control list.

Root's home is closed to everybody. The embedded PostgreSQL, which can't run as root, must reach its programs and its
data there. `chmod o+x` would let every user of the machine pass.
"""

import errno
import os
import stat
import struct
from pathlib import Path

LIST = "system.posix_acl_access"
HEADER, ENTRY = struct.Struct("<I"), struct.Struct("<HHI")  # include/uapi/linux/posix_acl_xattr.h
VERSION = 2
OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 2**32 - 1  # the id of an entry that needs none
PASS = 1

Entries = dict[tuple[int, int], int]
"""The rights of each (kind, id)."""


def may_pass(folder: Path, user: int, group: int) -> bool:
    """Whether a user with this one group may pass, by the folder's mode."""
    status = folder.stat()
    if status.st_uid == user:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == group:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def let_pass(folder: Path, group: int) -> None:
    """Raises OSError where the file system has no such lists, or an entry would give rights to others."""
    entries = _read(folder)
    if not entries.setdefault((MASK, NOBODY), entries[OWNING_GROUP, NOBODY] | PASS) & PASS:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    entries[GROUP, group] = PASS
    _write(folder, entries)


def end_passage(folder: Path, group: int) -> None:
    """The folder is as it was before `let_pass`."""
    entries = _read(folder)
    if entries.pop((GROUP, group), None) is None:
        return
    if not any(kind in (USER, GROUP) for kind, _ in entries):
        del entries[MASK, NOBODY]
    _write(folder, entries)


def _read(folder: Path) -> Entries:
    try:
        data = os.getxattr(folder, LIST)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        mode = folder.stat().st_mode
        kinds = (OWNER, OWNING_GROUP, OTHER)
        return {(kind, NOBODY): mode >> shift & 7 for kind, shift in zip(kinds, (6, 3, 0), strict=True)}
    return {(kind, holder): rights for kind, rights, holder in ENTRY.iter_unpack(data[HEADER.size :])}


def _write(folder: Path, entries: Entries) -> None:
    """A list of the three kinds that a mode has is kept as a mode by the kernel."""
    packed = [ENTRY.pack(kind, rights, holder) for (kind, holder), rights in sorted(entries.items())]
    os.setxattr(folder, LIST, HEADER.pack(VERSION) + b"".join(packed))
