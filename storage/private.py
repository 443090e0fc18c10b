"""Files and folders for the service's user alone, whatever the umask is. Those that an earlier version made, and that
others may read, are closed.
"""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger("draftstream.private")

OTHERS = stat.S_IRWXG | stat.S_IRWXO
SHARED = stat.S_ISVTX | stat.S_IWOTH  # a folder such as /tmp


def private_folder(folder: Path) -> None:
    """Make the folder, or close it. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
        _close_folder(folder)


def _close_folder(folder: Path) -> None:
    """Not one that other programs use too: its files are closed, and that is enough."""
    mode = folder.stat().st_mode
    if not mode & OTHERS:
        return
    place = folder.resolve()
    try:
        if mode & SHARED or place in (Path.home(), Path.cwd(), *Path.cwd().parents):
            raise PermissionError
        folder.chmod(stat.S_IMODE(mode) & ~OTHERS)
    except (PermissionError, RuntimeError):  # another user's folder; or the user has no home
        log.warning("other users may list %s; give the service a folder of its own", place)
    else:
        log.info("%s is closed to other users now", place)


def close_file(path: Path) -> None:
    """Raises OSError."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode) and mode & OTHERS:
        path.chmod(stat.S_IMODE(mode) & ~OTHERS)


def opener(path: str, flags: int) -> int:
    """For `open`: makes a file with mode 0600, closes one that is there, and follows no link."""
    file = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if os.fstat(file).st_mode & OTHERS:
        os.fchmod(file, 0o600)
    return file
