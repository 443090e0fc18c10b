"""What a DSN says, and what of it a message may show: hosts, ports and the database, without user and password.

asyncpg's parser reads the DSN, after `dsn_options.py` has taken its options apart. The parser guesses where a password
has an unencoded @, / or #, and takes a part of the password for the host, the port or the database. So a DSN that can
be read in two ways is neither shown nor used.
"""

import inspect
import os
import re
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import asyncpg
from asyncpg import connect_utils

from storage.dsn_options import (
    CONNECT_BUDGET_S,
    LEAST_CONNECT_S,
    Options,
    UnusableAddress,
    read_options,
    unknown_option,
)

# At most one @, behind the user and the password. One / behind the hosts, no #. SQLAlchemy names a driver after a +.
DSN_FORM = re.compile(
    r"(?P<scheme>postgres(ql)?)(\+[a-z0-9_]+)?://(?P<user>[^@/?#\x00-\x1f]*@)?(?P<hosts>[^@/?#\x00-\x1f]*)"
    r"(?P<path>/[^@/?#\x00-\x1f]*)?(\?(?P<query>[^@#\x00-\x1f]*))?"
)
HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:(?P<port>\d{1,5}))?")
ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
PLACES = ("host", "port", "user", "dbname", "database", "service")  # options that say where the database is
UNKNOWN = "DATABASE_URL"

NO_AUTHORITY = (
    "sslmode=verify-full or verify-ca in DATABASE_URL needs the server's authority: add sslrootcert=system (with "
    "verify-full), or sslrootcert=PATH for one of the database's own"
)

Place = str | tuple[str, int]  # a socket's path, or a host and a port


class UnreadableAddress(UnusableAddress):
    """The DSN can be read in two ways, or in none. The text shows nothing of it."""

    def __init__(self) -> None:
        super().__init__(
            "DATABASE_URL can't be read: it must be a postgresql:// URL with ports from 1 to 65535. In a user or a "
            "password each character but A-Z a-z 0-9 - . _ ~ must be percent-encoded (%40 for @)"
        )


@dataclass(frozen=True, slots=True)
class Address:
    """A DSN that was read."""

    dsn: str  # with the options that asyncpg knows
    options: Options
    where: str  # for messages
    places: tuple[Place, ...]

    @property
    def connect_s(self) -> float:
        """How long one attempt may take at one host."""
        return self.options.connect_s or max(CONNECT_BUDGET_S / len(self.places), LEAST_CONNECT_S)

    def tls(self) -> ssl.SSLContext | None:
        """The context for the system's certificate authorities; None where asyncpg makes its own.

        Reads the files that the DSN names. Raises UnusableAddress.
        """
        for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
            if name in self.options.passed:
                _check_file(name, self.options.passed[name])
        # asyncpg takes no word for the system's authorities. Its context for another mode has everything else.
        dsn = self.dsn.replace("sslmode=verify-full", "sslmode=prefer") if self.options.trusts_system else self.dsn
        try:
            context = _parsed(dsn).ssl
        except (OSError, ValueError, asyncpg.InterfaceError) as error:
            passed = self.options.passed
            if "sslrootcert" not in passed and passed.get("sslmode") in ("verify-ca", "verify-full"):
                raise UnusableAddress(NO_AUTHORITY) from None
            raise UnusableAddress(f"the TLS options of DATABASE_URL can't be used ({why_not(error)})") from None
        if not self.options.trusts_system or not isinstance(context, ssl.SSLContext):
            return None
        context.load_default_certs()
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        return context


def read_address(dsn: str) -> Address:
    """Reads no file. Raises UnusableAddress."""
    parts = _parts(dsn)
    if parts is None:
        raise UnreadableAddress
    options = read_options(_query(parts))
    whole = f"{parts['scheme']}://{parts['user'] or ''}{parts['hosts']}{parts['path'] or ''}"
    try:
        addresses, parameters = _parse(_with_options(whole, options.passed, PLACES), look=False)
    except Exception:  # noqa: BLE001  # whatever the parser raises, its text has parts of the DSN
        raise UnreadableAddress from None
    hosts = [f"[{it[0]}]:{it[1]}" if ":" in it[0] else f"{it[0]}:{it[1]}" for it in addresses if isinstance(it, tuple)]
    where = f"{','.join(hosts) or 'local-socket'}/{parameters.database}"
    if len(hosts) > 1:
        options.passed.setdefault("target_session_attrs", "read-write")  # the service writes
    return Address(_with_options(whole, options.passed), options, where, tuple(addresses))


def _with_options(dsn: str, options: Mapping[str, str], names: Collection[str] | None = None) -> str:
    """`names`: only these."""
    query = [f"{name}={quote(value, safe='')}" for name, value in options.items() if names is None or name in names]
    return "?".join([dsn, *["&".join(query)] * bool(query)])


def where(dsn: str) -> str:
    try:
        return read_address(dsn).where
    except UnusableAddress:
        return UNKNOWN


def passwords_of(dsn: str) -> list[str]:
    """The passwords as they are sent, which may stand in a text that does not have the DSN."""
    parts = _parts(dsn)
    if parts is None:
        return []
    named = [unquote(value) for name, value in _pairs(parts) if name in ("password", "sslpassword")]
    return [unquote((parts["user"] or "").removesuffix("@").partition(":")[2]), *named]


def _parts(dsn: str) -> re.Match[str] | None:
    """The one rule of what can be read in one way only."""
    parts = DSN_FORM.fullmatch(dsn)
    if parts is None or not _is_encoded(dsn):
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


def _is_encoded(text: str) -> bool:
    """Whether each % begins an escape, and the escapes are UTF-8. libpq refuses the first, too."""
    try:
        return ESCAPES.fullmatch(text) is not None and unquote(text, errors="strict") is not None
    except UnicodeDecodeError:
        return False


def _pairs(parts: re.Match[str]) -> list[tuple[str, str]]:
    """The options as they stand there. A + is a +, as in libpq."""
    pairs = [pair.partition("=") for pair in (parts["query"] or "").split("&") if pair]
    return [(name, value) for name, _, value in pairs]


def _query(parts: re.Match[str]) -> list[tuple[str, str]]:
    if any("=" not in pair for pair in (parts["query"] or "").split("&") if pair):
        raise UnusableAddress(unknown_option(""))
    return [(unquote(name), unquote(value)) for name, value in _pairs(parts)]


def _parse(dsn: str, *, look: bool) -> tuple[list[Place], Any]:
    """`look`: at certificates and password files."""
    parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]  # noqa: SLF001  # there is no public one, and the version is pinned
    given = {"dsn": dsn} | ({} if look else {"ssl": False, "passfile": f"{os.devnull}/none"})
    return parse(**dict.fromkeys(inspect.signature(parse).parameters) | given)  # type: ignore[no-any-return]  # it has no types


def _parsed(dsn: str) -> Any:  # noqa: ANN401  # asyncpg's own parameters, which have no types
    return _parse(dsn, look=True)[1]


def _check_file(name: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123  # as asyncpg opens it
            pass
    except OSError as error:
        raise UnusableAddress(f"{name} in DATABASE_URL names a file that can't be read ({error.strerror})") from None


def why_not(error: Exception) -> str:
    """An error's type, and its text if that is the server's or the system's: the parser's has parts of the DSN."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None:
        return f"{type(error).__name__}: {sentence(error)}"
    is_safe = isinstance(error, OSError | asyncpg.TargetServerAttributeNotMatched)
    lines = str(error).splitlines() if is_safe else []
    return ": ".join([type(error).__name__, *lines[:1]])


def sentence(error: asyncpg.PostgresError) -> str:
    """The server's own message and hint. Its detail may have values of rows."""
    lines = [
        line for text in (error.args[0] if error.args else "", error.hint) for line in str(text or "").splitlines()[:1]
    ]
    return ". Hint: ".join(lines)
