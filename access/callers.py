"""The caller of a request, by an API key, by a JWT of an identity provider, or by the one-use token of an EventSource.

While there is neither a key nor an identity provider, the service is open: a request without credentials is
ANONYMOUS's. Credentials that are sent are always checked. The first key closes the service within POLL_S. Keys are
revoked but never deleted, so nothing opens it again.

Every answer comes from the database or is at most CACHE_S old, so a revoked key dies within that time. While the
database is away, a key that was good goes on for OUTAGE_S, so that new chats go on. A stream that has begun goes on
after the end of its caller's key.

The owner is the one that the operator named for the key, or "jwt:" and the `sub` of a JWT. So the two can't meet by
accident. A key for the owner "jwt:…" belongs to that person, and a key for "anonymous" has the threads of the time in
which the service was open.
"""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from access.jwts import Identity, InvalidToken, Provider, open_provider
from access.keys import HAS_KEYS, IS_GOOD, READ_KEYS, ApiKey, command_to_add_a_key, hash_of
from chat import Refusal, Supervise, unsupervised
from settings import Settings, SettingsError
from store import BatchedReads, Row, StoreUnavailable

log = logging.getLogger("draftstream.callers")

Scope = Literal["chat", "read", "admin"]
SCOPES: Sequence[Scope] = ("chat", "read", "admin")
DEFAULT_SCOPES: Sequence[Scope] = ("chat", "read")  # of a new key, and of a JWT without a `scope`

BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)  # RFC 6750, section 2.1
NO_HASH = bytes(32)  # compared with the secret of a key that is not there

CACHE_S = 5.0
POLL_S = 5.0
OUTAGE_S = 600.0
CACHED_KEYS = 10_000
STREAM_TOKEN_S = 60.0
RESUME_S = 60.0  # a token may resume its run for this and RUN_TIMEOUT_S

Fetch = Callable[..., Awaitable[Sequence[Row]]]
"""Runs one statement, within a second. Raises StoreUnavailable."""


class Unauthorized(Refusal):
    """`sent`: there was a credential, but it is not valid. The answer does not say why."""

    def __init__(self, *, sent: bool = True) -> None:
        detail = "This needs a valid API key or token: Authorization: Bearer … The operator of the service issues keys."
        super().__init__("unauthorized", detail, [challenge(error="invalid_token") if sent else challenge()])


class TwoCredentials(Refusal):
    """The request has two credentials, which may be two callers'."""

    def __init__(self) -> None:
        detail = "The request has both an Authorization header and an access_token; send one of them."
        super().__init__("two_credentials", detail, [challenge(error="invalid_request")])


class Forbidden(Refusal):
    """The caller lacks `scope`."""

    def __init__(self, scope: Scope) -> None:
        header = challenge(error="insufficient_scope", scope=scope)
        super().__init__(
            "insufficient_scope",
            f"This needs the scope {scope}; ask the operator for a key that has it.",
            [header],
            scope=scope,
        )


def challenge(**parameters: str) -> tuple[str, str]:
    """The WWW-Authenticate header (RFC 6750, section 3)."""
    named = {"realm": "draftstream", **parameters}
    return "www-authenticate", "Bearer " + ", ".join(f'{name}="{value}"' for name, value in named.items())


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a request's threads, and the scopes of its credentials."""

    owner: str
    scopes: frozenset[str]
    expires_at: float | None = None  # of the key or the JWT, in seconds since the epoch
    key_id: str | None = None
    stream_token: bytes | None = field(default=None, repr=False)  # the hash of the one that this request redeemed

    def need(self, scope: Scope) -> None:
        """Raises Forbidden. `admin` includes all scopes, on its owner's data."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(scope)


ANONYMOUS = Caller("anonymous", frozenset(SCOPES))

# ---------------------------------------------------------------------------------------------------------------
# Stream tokens. They are written on the pool and not through the writer: a redemption needs its answer, and the places
# in the queue are for turns.

# It also deletes some old tokens; those that another process is deleting are left to it.
ADD_TOKEN = """WITH old AS (DELETE FROM stream_tokens WHERE hash IN (
    SELECT hash FROM stream_tokens WHERE expires_at < now() ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED))
INSERT INTO stream_tokens (hash, owner, scopes, key_id, expires_at)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))"""  # noqa: S105  # a statement

# A token dies with the key that it was made with. Not EXISTS, which beside an OR reads the whole table.
KEY_IS_GOOD = f"(t.key_id IS NULL OR (SELECT {IS_GOOD} FROM access_keys k WHERE k.key_id = t.key_id))"  # noqa: S608  # our own text

# One use: of two requests at once, the second waits for the commit of the first, and finds the token redeemed.
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
    """A key that was good in the database at `checked_at`, by the loop's clock."""

    caller: Caller
    checked_at: float
    fresh_until: float


class Access:
    """Finds the caller of a request; the module's docstring has the rules."""

    def __init__(self, fetch: Fetch, *, provider: Provider | None, closed: bool, resume_s: float) -> None:
        self._fetch = fetch
        self._keys = BatchedReads(fetch, READ_KEYS)  # a burst with one key costs one query
        self._provider = provider
        self._closed = closed
        self._resume_s = resume_s
        self._known: dict[bytes, KnownKey] = {}  # by the whole key, so that a wrong secret finds none
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
        Raises Unauthorized, TwoCredentials, StoreUnavailable, ProviderUnavailable.
        """
        if authorization is not None and access_token is not None:
            raise TwoCredentials
        if access_token is not None:
            return await self._by_stream_token(access_token, seen_run)
        scheme, _, _ = (authorization or "").partition(" ")
        if authorization is None or (self.is_open and scheme.lower() != "bearer"):  # maybe a proxy's Basic
            if self.is_open:
                return ANONYMOUS
            raise Unauthorized(sent=False)
        bearer = BEARER.fullmatch(authorization)
        if bearer is None:
            raise Unauthorized
        if (key := ApiKey.parse(bearer[1])) is not None:
            return await self._by_key(key)
        return await self._by_jwt(bearer[1])

    async def _by_key(self, key: ApiKey) -> Caller:
        whole = key.whole_hash
        now = self._loop.time()
        known = self._known.get(whole)
        if known is not None and now < known.fresh_until and not _is_over(known.caller):
            return known.caller
        try:
            row = await self._keys.read(key.key_id)
        except StoreUnavailable:
            if known is None or now > known.checked_at + OUTAGE_S or _is_over(known.caller):
                raise
            known.fresh_until = self._loop.time() + CACHE_S
            return known.caller
        is_there = row["secret_hash"] is not None
        self._closed = self._closed or is_there
        matches = hmac.compare_digest(row["secret_hash"] if is_there else NO_HASH, key.secret_hash)
        self._known.pop(whole, None)
        if not is_there or not matches or not row["is_good"]:
            raise Unauthorized
        caller = Caller(row["owner"], frozenset(row["scopes"]), row["expires_at"], key.key_id)
        while len(self._known) >= CACHED_KEYS:
            del self._known[next(iter(self._known))]
        self._known[whole] = KnownKey(caller, now, now + CACHE_S)
        return caller

    async def close(self) -> None:
        """Wait for the reads that are under way."""
        await self._keys.close()

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
        await self._fetch(ADD_TOKEN, hash_of(token), caller.owner, sorted(caller.scopes), caller.key_id, life_s)
        return token, life_s

    async def _by_stream_token(self, token: str, seen_run: str | None) -> Caller:
        token_hash = hash_of(token)
        resumed = None
        rows = await self._fetch(REDEEM_TOKEN, token_hash, self._resume_s)
        if not rows and seen_run is not None:
            rows = await self._fetch(RESUME_TOKEN, token_hash, seen_run)
            resumed = seen_run
        if not rows:
            raise Unauthorized
        [row] = rows
        if row["owner"] == ANONYMOUS.owner and row["key_id"] is None and not self.is_open:
            raise Unauthorized  # made while the service was open
        scopes, key_id = frozenset(row["scopes"]), row["key_id"]
        return Caller(row["owner"], scopes, key_id=key_id, stream_token=None if resumed else token_hash)

    async def bind(self, caller: Caller, run_id: str) -> None:
        """Let the request's stream token, if it has one, resume this run."""
        if caller.stream_token is None:
            return
        try:
            await self._fetch(BIND_TOKEN, caller.stream_token, run_id)
        except StoreUnavailable:
            log.warning("run %s can't be resumed with its stream token", run_id)

    # The first key

    async def watch_for_the_first_key(self) -> None:
        """Return when the service is closed. While the database is away nothing changes."""
        while not self._closed:
            await asyncio.sleep(POLL_S)
            try:
                self._closed = await _is_closed(self._fetch)
            except StoreUnavailable:
                continue
        log.info("access: closed, as there is an API key now")


def _is_over(caller: Caller) -> bool:
    return caller.expires_at is not None and caller.expires_at <= time.time()


def _scopes_of(identity: Identity) -> frozenset[str]:
    scopes = DEFAULT_SCOPES if identity.scope is None else identity.scope.split(" ")
    return frozenset(scopes) & frozenset(SCOPES)


async def _is_closed(fetch: Fetch) -> bool:
    [row] = await fetch(HAS_KEYS)
    return bool(row["has_keys"])


@asynccontextmanager
async def open_access(
    settings: Settings, fetch: Fetch, supervise: Supervise = unsupervised, *, only_loopback: bool | None
) -> AsyncIterator[Access]:
    """`only_loopback`: nobody but this machine can reach the service; None: that can't be known.

    Raises SettingsError where it would be open to others and ALLOW_ANONYMOUS does not say so, StoreUnavailable.
    """
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_provider(settings))
        closed = await _is_closed(fetch)
        resume_s = settings.run_timeout_s + RESUME_S
        access = Access(fetch, provider=provider, closed=closed, resume_s=resume_s)
        stack.push_async_callback(access.close)
        if access.is_open:
            _check_open(settings, only_loopback=only_loopback)
        elif provider is None:
            log.info("access: API keys")
        else:
            log.info("access: API keys, and JWTs of %s", provider.issuer)
        if access.is_open:
            watching = asyncio.create_task(supervise("first_key", access.watch_for_the_first_key), name="first_key")
            stack.push_async_callback(_cancelled, watching)
        yield access


def _check_open(settings: Settings, *, only_loopback: bool | None) -> None:
    """Raises SettingsError where an open service may not start."""
    command, paths = command_to_add_a_key(settings)
    if only_loopback or settings.allow_anonymous:
        line = (
            f"access: OPEN, everyone who reaches this address may do everything; to close it, add a key ({command}). "
            "It answers at IP addresses and localhost only. Behind a proxy or at another name, set ALLOWED_HOSTS to "
            "the name in the address bar"
        )
        log.warning(line, *paths)
        return
    add_a_key = f"add a key ({command % tuple(paths)})"
    if only_loopback is None:
        raise SettingsError(
            "the address at which this server listens is unknown, so the service might be open to everyone; set "
            f"ALLOW_ANONYMOUS=1 if that is meant, or {add_a_key}"
        )
    raise SettingsError(
        f"it would be open to everyone who can reach its address; {add_a_key}, configure JWT_JWKS_URL, listen on "
        "127.0.0.1, or set ALLOW_ANONYMOUS=1"
    )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
