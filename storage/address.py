"""Where a database is, in the words of a message: hosts, ports and name, without user and password.

asyncpg's own parser reads the DSN. A DSN in which it could take a part of a password for one of these is not shown.
"""

import inspect
import os
import re

import asyncpg
from asyncpg import connect_utils

# As in settings.py, which refuses any other form.
DSN_FORM = re.compile(
    r"[a-z]+://(?P<user>[^@/?#\x00-\x1f]*@)?(?P<hosts>[^@/?#\x00-\x1f]*)(/[^@/?#\x00-\x1f]*)?(?P<query>\?[^@#\x00-\x1f]*)?"
)
UNKNOWN = "the address of DATABASE_URL"


def where(dsn: str) -> str:
    if not DSN_FORM.fullmatch(dsn):
        return UNKNOWN
    parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]  # noqa: SLF001  # there is no public one, and the version is pinned
    # Without a look at certificates and password files.
    given = {"dsn": dsn, "ssl": False, "passfile": f"{os.devnull}/none"}
    try:
        addresses, parameters = parse(**dict.fromkeys(inspect.signature(parse).parameters) | given)
    except Exception:  # noqa: BLE001  # whatever the parser raises, its text has parts of the DSN
        return UNKNOWN
    hosts = [f"[{it[0]}]:{it[1]}" if ":" in it[0] else f"{it[0]}:{it[1]}" for it in addresses if isinstance(it, tuple)]
    return f"{','.join(hosts) or 'a local socket'}/{parameters.database}"


def why_not(error: Exception) -> str:
    """An error's type, and its text if that is the server's or the system's: the parser's has parts of the DSN."""
    from_server = isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None
    is_safe = from_server or isinstance(error, OSError | asyncpg.TargetServerAttributeNotMatched)
    lines = str(error).splitlines() if is_safe else []
    return ": ".join([type(error).__name__, *lines[:1]])
