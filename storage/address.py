"""What a DSN says, and what of it a message may show: hosts, ports and the database, without user and password.

asyncpg's parser reads the DSN. It guesses where a password has an unencoded @, / or #, and takes a part of the password
for the host, the port or the database. So a DSN that can be read in two ways is neither shown nor used.
"""

import inspect
import os
import re
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from asyncpg import connect_utils

# At most one @, behind the user and the password. One / behind the hosts, no #.
DSN_FORM = re.compile(
    r"[a-z]+://(?P<user>[^@/?#\x00-\x1f]*@)?(?P<hosts>[^@/?#\x00-\x1f]*)(/[^@/?#\x00-\x1f]*)?(?P<query>\?[^@#\x00-\x1f]*)?"
)
HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:(?P<port>\d{1,5}))?")
UNKNOWN = "DATABASE_URL"


class UnreadableAddress(Exception):
    """The DSN can be read in two ways, or in none. The text shows nothing of it."""

    def __init__(self) -> None:
        super().__init__(
            "DATABASE_URL can't be read: it must be a postgresql:// URL with ports from 1 to 65535, and with "
            "@ / ? # and : of a user or a password percent-encoded (%40 for @)"
        )


def check_readable(dsn: str) -> None:
    """Raises UnreadableAddress."""
    if _parts(dsn) is None:
        raise UnreadableAddress


def where(dsn: str) -> str:
    if _parts(dsn) is None:
        return UNKNOWN
    parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]  # noqa: SLF001  # there is no public one, and the version is pinned
    # Without a look at certificates and password files.
    given = {"dsn": dsn, "ssl": False, "passfile": f"{os.devnull}/none"}
    try:
        addresses, parameters = parse(**dict.fromkeys(inspect.signature(parse).parameters) | given)
    except Exception:  # noqa: BLE001  # whatever the parser raises, its text has parts of the DSN
        return UNKNOWN
    hosts = [f"[{it[0]}]:{it[1]}" if ":" in it[0] else f"{it[0]}:{it[1]}" for it in addresses if isinstance(it, tuple)]
    return f"{','.join(hosts) or 'local-socket'}/{parameters.database}"


def passwords_of(dsn: str) -> list[str]:
    """The passwords as they are sent, which may stand in a text that does not have the DSN."""
    parts = _parts(dsn)
    if parts is None:
        return []
    query = parse_qs((parts["query"] or "").removeprefix("?"))
    named = [value for name in ("password", "sslpassword") for value in query.get(name, ())]
    return [unquote((parts["user"] or "").removesuffix("@").partition(":")[2]), *named]


def _parts(dsn: str) -> re.Match[str] | None:
    """The one rule of what can be read in one way only."""
    parts = DSN_FORM.fullmatch(dsn)
    if parts is None:
        return None
    for host in parts["hosts"].split(","):
        place = HOST_AND_PORT.fullmatch(host)
        if place is None or not 0 < int(place["port"] or 1) < 2**16:
            return None
    try:
        urlsplit(dsn)
    except ValueError:  # for brackets and for some characters of Unicode
        return None
    return parts


def why_not(error: Exception) -> str:
    """An error's type, and its text if that is the server's or the system's: the parser's has parts of the DSN."""
    from_server = isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None
    is_safe = from_server or isinstance(error, OSError | asyncpg.TargetServerAttributeNotMatched)
    lines = str(error).splitlines() if is_safe else []
    return ": ".join([type(error).__name__, *lines[:1]])
