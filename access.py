"""Who may call: API keys, JWTs of an identity provider, and the one-use tokens of an EventSource.

`python -m access add|list|revoke` manages the keys.

While there is neither a key nor an identity provider, the service is open: who sends nothing is ANONYMOUS. What is sent
is always checked. The first key closes the service within POLL_S, and as keys are revoked but never deleted, nothing
opens it again. Every answer comes from the database or is at most CACHE_S old, so a revoked key dies within that time;
only while the database is away does a key that was seen to be good go on for OUTAGE_S, so that new chats go on, too.
A stream that has begun is not ended by the end of its caller's key.

An owner is a key's as the operator named it, or "jwt:" and the `sub` of a JWT. So the two can't meet by accident; a key
that is made for the owner "jwt:…" is that person's on purpose, and one for "anonymous" takes over what was made while
the service was open.
"""

import argparse
import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import asyncpg

from embedded import EmbeddedPostgresError, embedded_postgres
from identity import Identity, InvalidToken, Provider, key_from_pem, open_jwks_provider
from settings import Settings, SettingsError
from store import Store, StoreUnavailable, UnsavedTurns, open_store

log = logging.getLogger("draftstream.access")

Scope = Literal["chat", "read", "admin"]
SCOPES: Sequence[Scope] = ("chat", "read", "admin")
DEFAULT_SCOPES: Sequence[Scope] = ("chat", "read")  # of a new key, and of a JWT without a `scope`

KEY = re.compile(r"ds_([0-9a-f]{12})_([0-9a-f]{64})")
BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)  # RFC 6750, section 2.1
NO_HASH = bytes(32)  # what a secret is compared with where there is no such key
OWNER_CHARS = 255

CACHE_S = 5.0
POLL_S = 5.0
OUTAGE_S = 600.0
CACHED_KEYS = 10_000
STREAM_TOKEN_S = 60.0
RESUME_S = 60.0  # a token may resume its run for RUN_TIMEOUT_S and this

Fetch = Callable[..., Awaitable[Sequence[asyncpg.Record]]]
"""Runs one statement, within a second. Raises StoreUnavailable."""


class Unauthorized(Exception):
    """No caller: nothing was sent, or (`sent`) what was sent is not, or no longer, good. It does not say which."""

    def __init__(self, *, sent: bool = True) -> None:
        super().__init__()
        self.sent = sent


class Forbidden(Exception):
    """The caller is known, and may not do this: it takes `scope`."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.scope = scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what it may do."""

    owner: str
    scopes: frozenset[str]
    expires_at: float | None = None  # of the key or the JWT, in seconds since the epoch
    key_id: str | None = None
    stream_token: bytes | None = field(default=None, repr=False)  # the hash of one that was redeemed for this request

    def need(self, scope: Scope) -> None:
        """Raises Forbidden. `admin` may do everything with what is its owner's."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(scope)


ANONYMOUS = Caller("anonymous", frozenset(SCOPES))

# ---------------------------------------------------------------------------------------------------------------
# The statements. Tokens are written on the pool and not through the writer: a redemption needs its answer, and neither
# should take a place in the queue from what people have said.

IS_CLOSED = "SELECT EXISTS (SELECT FROM access_keys) AS closed"

READ_KEY = """SELECT secret_hash, owner, scopes, extract(epoch FROM expires_at)::float8 AS expires_at,
    revoked_at IS NULL AND coalesce(expires_at > now(), true) AS is_good
FROM access_keys WHERE key_id = $1"""

ADD_KEY = """INSERT INTO access_keys (key_id, secret_hash, owner, name, scopes, expires_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key_id) DO NOTHING"""

LIST_KEYS = """SELECT key_id, owner, name, scopes, created_at, expires_at, CASE
    WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'good' END AS state
FROM access_keys ORDER BY created_at, key_id"""

REVOKE_KEY = "UPDATE access_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1"

# With it go some old ones: those that another process is just deleting are left to it.
ADD_TOKEN = """WITH old AS (DELETE FROM stream_tokens WHERE hash IN (
    SELECT hash FROM stream_tokens WHERE expires_at < now() ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED))
INSERT INTO stream_tokens (hash, owner, scopes, key_id, expires_at)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))"""  # noqa: S105  # a statement

# Not EXISTS, which beside an OR reads the whole table.
KEY_IS_GOOD = """(t.key_id IS NULL OR (SELECT k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true)
    FROM access_keys k WHERE k.key_id = t.key_id))"""

# One use: of two that come at once, the second waits for the first one's commit, and then finds it redeemed.
REDEEM_TOKEN = f"""UPDATE stream_tokens t SET redeemed_at = now(), expires_at = now() + make_interval(secs => $2)
WHERE hash = $1 AND redeemed_at IS NULL AND expires_at > now() AND {KEY_IS_GOOD}
RETURNING owner, scopes, key_id"""  # noqa: S608  # our own text

BIND_TOKEN = "UPDATE stream_tokens SET run_id = $2 WHERE hash = $1"  # noqa: S105  # a statement

RESUME_TOKEN = f"""SELECT owner, scopes, key_id FROM stream_tokens t
WHERE hash = $1 AND run_id = $2 AND expires_at > now() AND {KEY_IS_GOOD}"""  # noqa: S608  # our own text


# ---------------------------------------------------------------------------------------------------------------
# Callers


@dataclass(slots=True)
class KnownKey:
    """A key that the database found good at `checked_at`, as the loop's clock has it."""

    caller: Caller
    checked_at: float
    fresh_until: float


class Access:
    """Finds the caller of a request. See the module's docstring for what holds when."""

    def __init__(self, fetch: Fetch, *, provider: Provider | None, closed: bool, resume_s: float) -> None:
        self._fetch = fetch
        self._provider = provider
        self._closed = closed
        self._resume_s = resume_s
        self._known: dict[bytes, KnownKey] = {}  # by the hash of the whole key: so a wrong one never finds a good one
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Access {'open' if self.is_open else 'closed'}, {len(self._known)} keys known>"

    @property
    def is_open(self) -> bool:
        return not self._closed and self._provider is None

    async def caller(
        self, authorization: str | None, access_token: str | None = None, seen_run: str | None = None
    ) -> Caller:
        """The caller, by the `Authorization` header or, where a route takes one, by a stream token.

        `seen_run` is the run of which the client has seen an event: a token that started it may resume it.
        Raises Unauthorized, StoreUnavailable, ProviderUnavailable.
        """
        if access_token is not None:
            return await self._by_stream_token(access_token, seen_run)
        scheme, _, _ = (authorization or "").partition(" ")
        if authorization is None or (self.is_open and scheme.lower() != "bearer"):  # an open one behind Basic
            if self.is_open:
                return ANONYMOUS
            raise Unauthorized(sent=False)
        bearer = BEARER.fullmatch(authorization)
        if bearer is None:
            raise Unauthorized
        if (key := KEY.fullmatch(bearer[1])) is not None:
            return await self._by_key(*key.groups())
        return await self._by_jwt(bearer[1])

    async def _by_key(self, key_id: str, secret: str) -> Caller:
        whole = hashlib.sha256(f"{key_id} {secret}".encode()).digest()
        now = self._loop.time()
        known = self._known.get(whole)
        if known is not None and now < known.fresh_until and not _is_over(known.caller):
            return known.caller
        try:
            rows = await self._fetch(READ_KEY, key_id)
        except StoreUnavailable:
            if known is None or now > known.checked_at + OUTAGE_S or _is_over(known.caller):
                raise
            known.fresh_until = self._loop.time() + CACHE_S
            return known.caller
        self._closed = self._closed or bool(rows)
        row = rows[0] if rows else None
        matches = hmac.compare_digest(row["secret_hash"] if row else NO_HASH, _hash(secret))
        self._known.pop(whole, None)
        if row is None or not matches or not row["is_good"]:
            raise Unauthorized
        caller = Caller(row["owner"], frozenset(row["scopes"]), row["expires_at"], key_id)
        while len(self._known) >= CACHED_KEYS:
            del self._known[next(iter(self._known))]
        self._known[whole] = KnownKey(caller, now, now + CACHE_S)
        return caller

    async def _by_jwt(self, token: str) -> Caller:
        if self._provider is None:
            raise Unauthorized
        try:
            identity = await self._provider.identify(token)
        except InvalidToken:
            raise Unauthorized from None
        return Caller(f"jwt:{identity.subject}", _scopes_of(identity), identity.expires_at)

    # Stream tokens

    async def new_stream_token(self, caller: Caller) -> tuple[str, float]:
        """A token for one stream of this caller, and its life in seconds. Raises StoreUnavailable."""
        life_s = STREAM_TOKEN_S
        if caller.expires_at is not None:
            life_s = max(0.0, min(life_s, caller.expires_at - time.time()))
        token = f"st_{secrets.token_hex(32)}"
        await self._fetch(ADD_TOKEN, _hash(token), caller.owner, sorted(caller.scopes), caller.key_id, life_s)
        return token, life_s

    async def _by_stream_token(self, token: str, seen_run: str | None) -> Caller:
        token_hash = _hash(token)
        resumed = None
        rows = await self._fetch(REDEEM_TOKEN, token_hash, self._resume_s)
        if not rows and seen_run is not None:
            rows = await self._fetch(RESUME_TOKEN, token_hash, seen_run)
            resumed = seen_run
        if not rows:
            raise Unauthorized
        [row] = rows
        if row["owner"] == ANONYMOUS.owner and row["key_id"] is None and not self.is_open:
            raise Unauthorized  # from before the service was closed
        scopes, key_id = frozenset(row["scopes"]), row["key_id"]
        return Caller(row["owner"], scopes, key_id=key_id, stream_token=None if resumed else token_hash)

    async def bind(self, caller: Caller, run_id: str) -> None:
        """The stream token of this request, if it came with one, may resume this run from now on."""
        if caller.stream_token is None:
            return
        try:
            await self._fetch(BIND_TOKEN, caller.stream_token, run_id)
        except StoreUnavailable:
            log.warning("run %s can't be resumed with its stream token", run_id)

    # The first key

    async def watch_for_the_first_key(self) -> None:
        """Return once the service is closed. What the database can't be asked stays as it is."""
        while not self._closed:
            await asyncio.sleep(POLL_S)
            try:
                self._closed = await _is_closed(self._fetch)
            except StoreUnavailable:
                continue
        log.info("access: closed, as there is an API key now")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _is_over(caller: Caller) -> bool:
    return caller.expires_at is not None and caller.expires_at <= time.time()


def _scopes_of(identity: Identity) -> frozenset[str]:
    scopes = DEFAULT_SCOPES if identity.scope is None else identity.scope.split(" ")
    return frozenset(scopes) & frozenset(SCOPES)


async def _is_closed(fetch: Fetch) -> bool:
    [row] = await fetch(IS_CLOSED)
    return bool(row["closed"])


@asynccontextmanager
async def open_access(settings: Settings, fetch: Fetch, *, only_loopback: bool) -> AsyncIterator[Access]:
    """`only_loopback`: nobody but this machine can reach the service.

    Raises SettingsError where it would be open to others and ALLOW_ANONYMOUS does not say so, StoreUnavailable.
    """
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_provider(settings))
        closed = await _is_closed(fetch)
        resume_s = settings.run_timeout_s + RESUME_S
        access = Access(fetch, provider=provider, closed=closed, resume_s=resume_s)
        if not access.is_open:
            if provider is None:
                log.info("access: API keys")
            else:
                log.info("access: API keys, and JWTs of %s", provider.issuer)
        elif only_loopback or settings.allow_anonymous:
            log.warning(
                "access: OPEN, everyone who reaches this address may do everything (python -m access add --owner NAME)"
            )
        else:
            raise SettingsError(
                "it would be open to everyone who can reach its address; add a key (python -m access add --owner "
                "NAME), configure JWT_JWKS_URL, listen on 127.0.0.1, or set ALLOW_ANONYMOUS=1"
            )
        if access.is_open:
            watching = asyncio.create_task(access.watch_for_the_first_key(), name="first key")
            stack.push_async_callback(_cancelled, watching)
        yield access


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


@asynccontextmanager
async def open_provider(settings: Settings) -> AsyncIterator[Provider | None]:
    issuer, audience = settings.jwt_issuer, settings.jwt_audience
    if issuer is None or audience is None:  # settings has all of it or none
        yield None
    elif settings.jwt_jwks_url is not None:
        async with open_jwks_provider(settings.jwt_jwks_url, issuer, audience) as provider:
            yield provider
    else:
        try:
            key = key_from_pem(settings.jwt_public_key or "")
        except ValueError:
            what = "a public key in PEM (RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519), or the path of one"
            raise SettingsError(f"JWT_PUBLIC_KEY must be {what}") from None
        yield Provider(issuer, audience, [key])


# ---------------------------------------------------------------------------------------------------------------
# python -m access


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m access", description="Manage the API keys of the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a key, and show it once, on the standard output")
    add.add_argument("--owner", required=True, type=_owner, help="whose threads it is for")
    add.add_argument("--name", default="", type=_printable, help="what it is for, for people to read")
    add.add_argument(
        "--scopes", default=list(DEFAULT_SCOPES), type=_scopes, help="some of chat,read,admin (default: chat,read)"
    )
    add.add_argument("--expires", type=_end_date, help="the last day it is good on, or an ISO 8601 time; UTC")
    commands.add_parser("list", help="list the keys; none is shown")
    revoke = commands.add_parser("revoke", help="end a key; for good")
    revoke.add_argument("key_id", help="as list has it")
    arguments = parser.parse_args()
    try:
        asyncio.run(_carry_out(arguments))
    except (SettingsError, StoreUnavailable, UnsavedTurns, EmbeddedPostgresError, TimeoutError) as error:
        sys.exit(f"{parser.prog}: {error or 'the database does not answer'}")


def _printable(text: str) -> str:
    if not text.isprintable() or len(text) > OWNER_CHARS:
        raise argparse.ArgumentTypeError(f"must be up to {OWNER_CHARS} printable characters")
    return text


def _owner(text: str) -> str:
    if not text or text != text.strip():
        raise argparse.ArgumentTypeError("must not be empty, nor begin or end with a space")
    return _printable(text)


def _scopes(text: str) -> list[str]:
    scopes = text.replace(",", " ").split()
    if not scopes or not set(scopes) <= set(SCOPES):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(SCOPES)}")
    return sorted(set(scopes))


def _end_date(text: str) -> datetime:
    try:
        end = datetime.fromisoformat(text)
        if len(text) <= len("2027-12-31"):  # a day, also as 20271231
            end += timedelta(days=1)
        end = end.astimezone(UTC) if end.tzinfo else end.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the latter behind the calendar's last day
        what = "must be like 2027-12-31 or 2027-12-31T12:00:00Z, and before 9999-12-31"
        raise argparse.ArgumentTypeError(what) from None
    if end <= datetime.now(UTC):
        raise argparse.ArgumentTypeError("must not be in the past")
    return end


async def _carry_out(arguments: argparse.Namespace) -> None:
    settings = Settings.from_env(os.environ)
    async with AsyncExitStack() as stack:
        dsn = settings.database_url
        if dsn is None:
            dsn = await stack.enter_async_context(embedded_postgres(settings.data_dir))
        store = await stack.enter_async_context(
            open_store(dsn, queue_size=1, queue_bytes=2**16, connect_timeout_s=5, drain_timeout_s=5)
        )
        match arguments.command:
            case "add":
                await _add(store, arguments)
            case "revoke":
                await _revoke(store, arguments.key_id)
            case _:
                await _list(store)


async def _add(store: Store, arguments: argparse.Namespace) -> None:
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    row = (key_id, _hash(secret), arguments.owner, arguments.name, arguments.scopes, arguments.expires)
    async with asyncio.timeout(10):
        await store.write("access_keys", [(ADD_KEY, row)])
    end = f", until {_utc(arguments.expires)}" if arguments.expires else ""
    _tell(f"The key {key_id} of {arguments.owner} ({', '.join(arguments.scopes)}{end}). It is not shown again:")
    print(f"ds_{key_id}_{secret}")  # noqa: T201  # what the command is for


async def _revoke(store: Store, key_id: str) -> None:
    if not any(row["key_id"] == key_id for row in await store.fetch(LIST_KEYS)):
        sys.exit(f"There is no key {key_id}; see python -m access list.")
    async with asyncio.timeout(10):
        await store.write("access_keys", [(REVOKE_KEY, (key_id,))])
    _tell(f"The key {key_id} is revoked; a service that has just seen it refuses it within {CACHE_S:.0f} seconds.")


async def _list(store: Store) -> None:
    rows = [("KEY", "STATE", "SCOPES", "CREATED", "EXPIRES", "OWNER", "NAME")]
    for key in await store.fetch(LIST_KEYS):
        end = _utc(key["expires_at"]) if key["expires_at"] else "-"
        scopes = ",".join(key["scopes"])
        rows.append(
            (key["key_id"], key["state"], scopes, f"{key['created_at']:%Y-%m-%d}", end, key["owner"], key["name"])
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  # the standard output is for the key alone


if __name__ == "__main__":
    main()
