"""The options of a DSN: libpq's, those of other clients, and what becomes of each.

An option is honoured, by asyncpg or here. Or it is ignored for a reason, which the log tells once. Or it is refused,
because it asks for a protection that can't be kept, or because nobody knows it. asyncpg would send an unknown option to
the server as a setting.

Names follow libpq, of PostgreSQL 18. Options of other clients are those that hosted databases and frameworks give to
copy: Prisma, Supabase, node-postgres, postgres.js, SQLAlchemy, Rails, pgx, JDBC.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

CONNECT_BUDGET_S = 15.0  # a serverless database that wakes takes 0.5 to 10 s
LEAST_CONNECT_S = 2.0  # libpq's least, too

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
YES = ("true", "1", "on", "yes", "")
NO = ("false", "0", "off", "no")

# Taken as they are: asyncpg's own names, and settings that a server takes when a connection begins.
PASSED = """host port user password dbname database passfile service sslcert sslkey sslcrl sslpassword sslnegotiation
ssl_min_protocol_version ssl_max_protocol_version krbsrvname gsslib
application_name options search_path statement_timeout lock_timeout idle_in_transaction_session_timeout timezone role"""

IGNORED = {
    "the service limits each statement itself, and replaces a connection that does not answer": """keepalives
        keepalives_idle keepalives_interval keepalives_count tcp_user_timeout socket_timeout command_timeout timeout
        query_timeout""",
    "the service has a pool of its own, of ten connections at most": """connection_limit pool_timeout pool pool_size
        max_overflow max min idle_timeout max_lifetime max_idle_connection_lifetime max_connection_lifetime conn_max_age
        pool_max_conns pool_min_conns pool_max_conn_lifetime pool_max_conn_idle_time pool_health_check_period
        reaping_frequency checkout_timeout""",
    "the service always uses UTF-8": "client_encoding encoding charset",
    "it is for another client": """supa workaround uselibpqcompat binary_parameters prepared_statement_name_func
        async_fallback""",
    "TLS has no compression any more": "sslcompression",
    "the host's name is always sent": "sslsni",
    "SSLKEYLOGFILE in the environment does it": "sslkeylogfile",
}
WHY_IGNORED = {name: why for why, names in IGNORED.items() for name in names.split()}
# What an option asks for if it has this value happens anyway, or is the default.
AS_IT_IS = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("disable", "prefer"),
    "gssdelegation": ("0",),
    "sslcertmode": ("allow",),
    "replication": NO,
    "min_protocol_version": ("3.0",),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "load_balance_hosts": ("disable",),
    "pgbouncer": NO,
    "prepare": YES,
    "prepared_statements": YES,
    "default_query_exec_mode": ("cache_statement", "cache_describe", "describe_exec"),
    "sslaccept": ("accept_invalid_certs",),
}
NO_GSS = "the service has no GSS encryption: use TLS (sslmode=verify-full)"
REFUSED = {
    "gssencmode": NO_GSS,
    "gssdelegation": "the service delegates no credentials",
    "require_auth": "the service can't restrict how the server lets it in: use sslmode=verify-full, and remove it",
    "requirepeer": "the service can't check who owns a socket",
    "sslcertmode": "the service sends a certificate if sslcert names one, and not otherwise: remove it",
    "sslcrldir": "name one file with sslcrl",
    "sslidentity": "name the client's certificate and key with sslcert and sslkey",
    "hostaddr": "write the address in the place of the host",
    "replication": "the service needs an ordinary connection",
    "min_protocol_version": "the service speaks version 3.0 of the protocol",
    "max_protocol_version": "the service speaks version 3.0 of the protocol",
    "scram_client_key": "the service needs the password itself",
    "scram_server_key": "the service needs the password itself",
    "servicefile": "name the file with PGSERVICEFILE in the environment",
}
PROTECTIONS = "TLS with sslmode=verify-full and sslrootcert (the path of the server's CA, or system) protects as well"


class UnusableAddress(Exception):
    """DATABASE_URL can't be used; the text is one line, and shows nothing of a value."""


@dataclass(slots=True)
class Options:
    """What the options of a DSN come to."""

    passed: dict[str, str] = field(default_factory=dict)  # to asyncpg
    notes: list[str] = field(default_factory=list)  # for the log
    connect_s: float | None = None
    is_pooled: bool = False
    balances: bool = False
    trusts_system: bool = False  # the system's certificate authorities
    is_strict: bool = False
    binds: bool = False
    schema: str | None = None


def read_options(given: Iterable[tuple[str, str]]) -> Options:
    """Raises UnusableAddress."""
    options = Options()
    values: dict[str, str] = {}
    for name, value in given:
        # SQLAlchemy names several hosts so.
        values[name] = f"{values[name]},{value}" if name in ("host", "port") and name in values else value
    hidden = "password" in values or "sslpassword" in values  # with a bare & in it, its rest looks like an option
    ignored: dict[str, list[str]] = {}
    for name, value in values.items():
        if name in PASSED.split():
            if value:
                options.passed[name] = value
        elif value in AS_IT_IS.get(name, ()):
            pass
        elif name in READ:
            READ[name](options, value)
        elif name in WHY_IGNORED:
            ignored.setdefault(WHY_IGNORED[name], []).append(name)
        elif name in REFUSED:
            raise UnusableAddress(f"DATABASE_URL has the option {name}, which can't be kept: {REFUSED[name]}")
        else:
            raise UnusableAddress(unknown_option("" if hidden else name))
    options.notes += [f"{', '.join(names)} in DATABASE_URL: ignored, as {why}" for why, names in ignored.items()]
    _settle_tls(options)
    return options


def unknown_option(name: str) -> str:
    shown = (
        f"the option {name}, which is" if name.replace("_", "").isalnum() and name.isascii() else "an option that is"
    )
    return (
        f"DATABASE_URL has {shown} not known: remove it. A setting of the server is written options=-c%20NAME%3DVALUE, "
        "and an & in a password %26"
    )


# ---------------------------------------------------------------------------------------------------------------
# Options with a meaning of their own


def _connect_timeout(options: Options, value: str) -> None:
    try:
        seconds = float(value or 0)
    except ValueError:
        raise UnusableAddress("connect_timeout in DATABASE_URL must be a number of seconds") from None
    if 0 < seconds < float("inf"):  # libpq: 0 and less are no limit, which no start could wait out
        options.connect_s = max(seconds, LEAST_CONNECT_S)


def _pooled(options: Options, _: str) -> None:
    options.is_pooled = True


def _cache_size(options: Options, value: str) -> None:
    options.is_pooled = options.is_pooled or value == "0"


def _balance(options: Options, value: str) -> None:
    if value != "random":
        raise UnusableAddress("load_balance_hosts in DATABASE_URL must be random or disable")
    options.balances = True


def _schema(options: Options, value: str) -> None:
    options.schema = value or None
    if value and value != "public":  # which is searched anyway, and poolers refuse the setting
        options.passed.setdefault("search_path", value)


def _fallback_name(options: Options, value: str) -> None:
    options.passed.setdefault("application_name", value)


def _ssl_mode(options: Options, value: str) -> None:
    mode = "require" if value == "no-verify" else value  # node-postgres has that word for libpq's require
    if mode and mode not in SSL_MODES:
        raise UnusableAddress(f"sslmode in DATABASE_URL must be one of {', '.join(SSL_MODES)}")
    if mode:
        options.passed["sslmode"] = mode


def _ssl(options: Options, value: str) -> None:
    """libpq reads JDBC's ssl=true as sslmode=require. SQLAlchemy has modes here. A given sslmode stays."""
    mode = "require" if value in YES else "disable" if value in NO else value
    if mode not in (*SSL_MODES, "no-verify"):
        raise UnusableAddress(f"ssl in DATABASE_URL must be true, false or one of {', '.join(SSL_MODES)}")
    if "sslmode" not in options.passed:
        _ssl_mode(options, mode)


def _ssl_accept(options: Options, value: str) -> None:
    """Prisma's word. The default trusts any certificate, as sslmode=require does."""
    if value != "strict":
        raise UnusableAddress("sslaccept in DATABASE_URL must be strict or accept_invalid_certs")
    options.is_strict = True


def _root_cert(options: Options, value: str) -> None:
    options.trusts_system = value == "system"
    if value and value != "system":
        options.passed["sslrootcert"] = value


def _target(options: Options, value: str) -> None:
    if value in ("standby", "read-only", "prefer-standby"):
        raise UnusableAddress(
            f"target_session_attrs={value} in DATABASE_URL leads to a server that can't be written to: use read-write"
        )
    if value not in ("any", "read-write", "primary", ""):
        raise UnusableAddress("target_session_attrs in DATABASE_URL must be read-write, primary or any")
    if value:
        options.passed["target_session_attrs"] = value


def _channel_binding(options: Options, value: str) -> None:
    if value != "require":
        raise UnusableAddress("channel_binding in DATABASE_URL must be require, prefer or disable")
    options.binds = True


READ: dict[str, Callable[[Options, str], None]] = {
    "connect_timeout": _connect_timeout,
    "pgbouncer": _pooled,
    "prepare": _pooled,
    "prepared_statements": _pooled,
    "default_query_exec_mode": _pooled,
    "statement_cache_size": _cache_size,
    "prepared_statement_cache_size": _cache_size,
    "statement_cache_capacity": _cache_size,
    "load_balance_hosts": _balance,
    "schema": _schema,
    "fallback_application_name": _fallback_name,
    "channel_binding": _channel_binding,
    "sslmode": _ssl_mode,
    "ssl": _ssl,
    "sslaccept": _ssl_accept,
    "sslrootcert": _root_cert,
    "target_session_attrs": _target,
}


def _settle_tls(options: Options) -> None:
    """libpq's rules for options that depend on each other. Raises UnusableAddress."""
    if options.is_strict:
        options.passed["sslmode"] = "verify-full"
        options.trusts_system = "sslrootcert" not in options.passed
    mode = options.passed.get("sslmode")
    if options.trusts_system:
        if mode not in (None, "verify-full"):
            raise UnusableAddress(
                f"sslmode={mode} in DATABASE_URL is weaker than sslrootcert=system asks for: write sslmode=verify-full"
            )
        if "sslcrl" in options.passed:
            raise UnusableAddress("sslcrl in DATABASE_URL needs a path in sslrootcert, not system")
        mode = options.passed["sslmode"] = "verify-full"
    if not options.binds:
        return
    if mode == "disable":
        raise UnusableAddress("channel_binding=require in DATABASE_URL needs TLS, and sslmode=disable turns it off")
    if mode in (None, "allow", "prefer"):
        options.passed["sslmode"] = "require"
    note = "channel_binding=require in DATABASE_URL is not kept, as the PostgreSQL driver has no channel binding. "
    options.notes.append(note + ("The server's certificate is verified" if mode == "verify-full" else PROTECTIONS))
