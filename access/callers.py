"""The caller of a request, by an API key, by a JWT of an identity provider, or by the one-use token of an EventSource.

While there is neither a key nor an identity provider, the service is open: a request without credentials is
ANONYMOUS's. Credentials that are sent are always checked. The first key closes the service within POLL_S. Keys are
revoked but never deleted, so nothing opens it again.

Every answer comes from the database or is at most CACHE_S old, so a revoked key dies within that time. While the
database is away, a key that was good goes on for OUTAGE_S, so that new chats go on. A stream that has begun goes on
after the end of its caller's key.

The owner is the one that the operator named for the key, or "jwt:" and the `sub` of a JWT (see issuers.py). So the two
can't meet by accident. A key for the owner "jwt:…" belongs to that person, and a key for "anonymous" has the threads of
the time in which the service was open.
"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from access.claims import Identity, InvalidToken
from access.credentials import (
    ANONYMOUS,
    Caller,
    Fetch,
    NoKeyNeeded,
    StreamToken,
    TwoCredentials,
    Unauthorized,
)
from access.issuers import FIRST_PREFIX, owner_prefix
from access.jwts import Provider, open_provider
from access.keys import HAS_KEYS, READ_KEYS, ApiKey, command_to_add_a_key
from access.stream_tokens import RESUME_S, StreamTokens, TokenStream
from chat import Supervise, unsupervised
from settings import SCOPES, Scope, Settings, SettingsError
from store import BatchedReads, StoreUnavailable

log = logging.getLogger("draftstream.callers")

DEFAULT_SCOPES: Sequence[Scope] = ("chat", "read")  # of a new key

BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)  # RFC 6750, section 2.1
NO_HASH = bytes(32)  # compared with the secret of a key that is not there

CACHE_S = 5.0
POLL_S = 5.0
OUTAGE_S = 600.0
CACHED_KEYS = 10_000


@dataclass(slots=True)
class KnownKey:
    """A key that was good in the database at `checked_at`, by the loop's clock."""

    caller: Caller
    checked_at: float
    fresh_until: float


@dataclass(frozen=True, slots=True)
class JwtRules:
    """How the claims of a JWT become a caller. `owner_prefix`: of its issuer, see issuers.py."""

    owner_prefix: str = FIRST_PREFIX
    default_scopes: Collection[Scope] = ()
    scope_prefix: str = ""

    def caller(self, identity: Identity) -> Caller:
        owner = f"{self.owner_prefix}{identity.subject}"
        scopes = _scopes_of(identity, self.default_scopes, self.scope_prefix)
        return Caller(owner, scopes, identity.expires_at, credential=f"jwt:{identity.client or ''}")


def _scopes_of(identity: Identity, default: Collection[Scope] = (), prefix: str = "") -> frozenset[str]:
    """The claim's scopes that are ours, without the prefix that they must have. `default`: where there is no claim."""
    if identity.scope is None:
        return frozenset(default)
    named = identity.scope.split(" ")
    return frozenset(scope for scope in SCOPES if f"{prefix}{scope}" in named)


class Access:
    """Finds the caller of a request; the module's docstring has the rules."""

    def __init__(
        self,
        fetch: Fetch,
        *,
        provider: Provider | None,
        closed: bool,
        resume_s: float,
        jwt_rules: JwtRules | None = None,
    ) -> None:
        self._fetch = fetch
        self._keys = BatchedReads(fetch, READ_KEYS)  # a burst with one key costs one query
        self._provider = provider
        self._closed = closed
        self._jwt_rules = jwt_rules or JwtRules()
        self._tokens = StreamTokens(fetch, resume_s)
        self._known: dict[bytes, KnownKey] = {}  # by the whole key, so that a wrong secret finds none
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Access {'open' if self.is_open else 'closed'}, {len(self._known)} keys known>"

    @property
    def is_open(self) -> bool:
        return not self._closed and self._provider is None

    async def caller(
        self,
        authorization: str | None,
        access_token: str | None = None,
        seen_run: str | None = None,
        seen: int | None = None,
    ) -> Caller:
        """The caller, by the `Authorization` header or, where a route takes one, by a stream token.

        `seen_run`, `seen`: the run of which the client has seen an event, and the event's position (None: the last). A
        token that started the run may resume it there.
        Raises Unauthorized, TwoCredentials, StoreUnavailable, ProviderUnavailable.
        """
        if authorization is not None and access_token is not None:
            raise TwoCredentials
        scheme, _, _ = (authorization or "").partition(" ")
        try:
            if access_token is not None:
                return await self._by_stream_token(access_token, seen_run, seen)
            if self.is_open and scheme.lower() != "bearer":  # nothing was sent, or a proxy's Basic
                return ANONYMOUS
            if authorization is None:
                raise Unauthorized(sent=False)
            return await self._by_bearer(authorization)
        except Unauthorized:
            if self.is_open:
                raise NoKeyNeeded from None
            raise

    async def _by_bearer(self, authorization: str) -> Caller:
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
        # The database's clock decides when a key ends, and this machine's may differ from it by hours.
        expires_at = time.time() + row["life_s"] if row["life_s"] is not None else None
        caller = Caller(row["owner"], frozenset(row["scopes"]), expires_at, key.key_id, key.key_id)
        while len(self._known) >= CACHED_KEYS:
            del self._known[next(iter(self._known))]
        self._known[whole] = KnownKey(caller, now, now + CACHE_S)
        return caller

    async def close(self) -> None:
        """Wait for the statements that are under way."""
        await self._keys.close()
        await self._tokens.aclose()

    async def _by_jwt(self, token: str) -> Caller:
        if self._provider is None:
            raise Unauthorized
        try:
            identity = await self._provider.identify(token)
        except InvalidToken:
            raise Unauthorized from None
        return self._jwt_rules.caller(identity)

    # Stream tokens

    async def new_stream_token(self, caller: Caller) -> tuple[str, float]:
        """A token for one stream of this caller, and its life in seconds. Raises StoreUnavailable."""
        return await self._tokens.new(caller)

    async def _by_stream_token(self, token: str, seen_run: str | None, seen: int | None) -> Caller:
        caller = await self._tokens.caller(token, seen_run, seen)
        if caller.owner == ANONYMOUS.owner and caller.key_id is None and not self.is_open:
            raise Unauthorized  # made while the service was open
        return caller

    async def open_stream(
        self, token: StreamToken, run_id: str, sent: Callable[[], int | None], cut: Callable[[], None]
    ) -> TokenStream | None:
        """As StreamTokens.open."""
        return await self._tokens.open(token, run_id, sent, cut)

    def close_stream(self, stream: TokenStream, *, finished: bool) -> None:
        """As StreamTokens.close."""
        self._tokens.close(stream, finished=finished)

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
        rules = JwtRules()
        if provider is not None:
            prefix = await owner_prefix(fetch, provider.issuer)
            rules = JwtRules(prefix, settings.jwt_default_scopes, settings.jwt_scope_prefix or "")
        resume_s = settings.run_timeout_s + RESUME_S
        access = Access(fetch, provider=provider, closed=closed, resume_s=resume_s, jwt_rules=rules)
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
        at = "IP addresses, localhost and ALLOWED_HOSTS" if settings.allowed_hosts else "IP addresses and localhost"
        line = (
            f"access: OPEN, everyone who reaches this address may do everything; to close it, add a key ({command}). "
            f"It answers at {at} only. Behind a proxy or at another name, add the name in the address bar to "
            "ALLOWED_HOSTS"
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
