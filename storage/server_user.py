"""The user that the embedded PostgreSQL runs as, and the users that may connect to it.

PostgreSQL refuses to run as root. Under root each server has a user id of its own, which no account has: no other
program runs with it, and `nobody` or a daemon's user can't reach the data. An ordinary user's server runs as that user.

A connection needs no password. The kernel tells the server which user has opened the socket, and the server lets in
root and the owner of the data.
"""

import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Between the ids that distributions give to accounts and those of systemd's dynamic users; below 65536, so that a
# container with the usual range of ids has them too.
FIRST_ID, LAST_ID = 60_578, 61_183
SHARED_USER = "nobody"  # other programs run as this user, too

ACCESS = """# Written by the service at each start.
local all all {}
"""
USERS = """# Written by the service at each start: the users that connect, as any role.
{}
"""


@dataclass(frozen=True, slots=True)
class Account:
    user: int
    group: int

    def __iter__(self) -> Iterator[int]:
        return iter((self.user, self.group))


def account_for(folder: Path) -> Account:
    """An id that no account has; the same for the same folder."""
    ids = range(FIRST_ID, LAST_ID + 1)
    start = int.from_bytes(hashlib.sha256(os.fsencode(folder)).digest()[:8])
    for place in range(len(ids)):
        number = ids[(start + place) % len(ids)]
        if not _has_name(number):
            return Account(number, number)
    raise OSError(f"each user id from {FIRST_ID} to {LAST_ID} belongs to an account")


def _has_name(number: int) -> bool:
    for read in (pwd.getpwuid, grp.getgrgid):
        with suppress(KeyError):
            read(number)
            return True
    return False


def owner_of(path: Path) -> Account:
    status = path.stat()
    return Account(status.st_uid, status.st_gid)


def is_shared(account: Account) -> bool:
    """An account whose files are not this server's alone: an earlier version ran the server as `nobody`."""
    return account.user in (0, initialising_user())


def initialising_user() -> int:
    """The user that initdb runs as under root, as it refuses an id without an account."""
    with suppress(KeyError):
        return pwd.getpwnam(SHARED_USER).pw_uid
    named = [account.pw_uid for account in pwd.getpwall() if account.pw_uid != 0]
    if not named:
        raise OSError("this machine has no account but root's, and initdb needs one")
    return max(named)


def give(folder: Path, account: Account) -> None:
    """The folder, and all that is in it. Raises OSError for a file that has a second name elsewhere."""
    for place, _, files in os.walk(folder):
        for path in (Path(place), *(Path(place) / file for file in files)):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                raise OSError(f"{path} has a second name, which may be another program's file")
            os.chown(path, *account, follow_symlinks=False)


def write_access(data: Path, owner: Account) -> bool:
    """Root, the owner of the data and the service's user may connect, as any role: they own the data anyway.

    Gives True if a server must read the files again.
    """
    names = []
    for number in sorted({0, owner.user, os.geteuid()}):
        with suppress(KeyError):
            names.append(pwd.getpwuid(number).pw_name)
    users = "\n".join(f'draftstream "{name}" all' for name in names)
    # The server can't look up a user without a name. Then the modes of its folders are the guard.
    is_known = owner.user != os.geteuid() or _has_name(os.geteuid())
    texts = {
        "pg_ident.conf": USERS.format(users),
        "pg_hba.conf": ACCESS.format("peer map=draftstream" if is_known else "trust"),
    }
    changed = False
    for name, text in texts.items():
        path = data / name
        if path.is_symlink() or not path.exists() or path.read_text("utf-8", "replace") != text:
            _replace(path, text, owner)
            changed = True
    return changed


def _replace(path: Path, text: str, owner: Account) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as written:
        written.write(text)
        written.flush()
        os.fsync(file)
        if os.geteuid() == 0:
            os.fchown(file, *owner)
    new.replace(path)
