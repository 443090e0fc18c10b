"""JWTs of an identity provider: which key signed one, and what must stand in it.

The algorithm is never the token's choice: each key has those of its own type, all of them asymmetric, and a token that
names another is refused. So neither `none` nor an HMAC over a public key gets anywhere.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import aiohttp
import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from chat import Refusal

log = logging.getLogger("draftstream.identity")

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
RSA_BITS = 2048  # RFC 7518: no shorter one
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

LEEWAY_S = 30.0  # the provider's clock may differ by this
TOKEN_CHARS = 8192  # more than any provider issues
SUBJECT_CHARS = 255  # OpenID Connect's limit
JWKS_BYTES = 256 * 1024
JWKS_TIMEOUT_S = 5.0
JWKS_LIFE_S = 600.0  # a key that the provider has withdrawn is used no longer than this, if the provider can be reached
JWKS_RETRY_S = 15.0  # between two fetches, whatever is asked of us


class InvalidToken(Exception):
    """It is no JWT that this service accepts. Why is nobody's business."""


class ProviderUnavailable(Refusal):
    """The identity provider's keys were never got, so that nothing can be said of a token."""

    def __init__(self) -> None:
        super().__init__(
            "provider_unavailable",
            "The identity provider can't be reached, so tokens can't be checked; try again in a few seconds.",
        )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key of the provider, and what it may have signed with."""

    key_id: str | None
    key: PublicKey
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a JWT that holds says. `scope` is the claim as it stands; `expires_at` in seconds since the epoch."""

    subject: str
    scope: str | None
    expires_at: float


def algorithms_of(key: object) -> tuple[str, ...]:
    """What a key of this type may have signed with; nothing for a key of another type, or a weak one."""
    match key:
        case RSAPublicKey() if key.key_size >= RSA_BITS:
            return RSA_ALGORITHMS
        case EllipticCurvePublicKey() if key.curve.name in CURVE_ALGORITHMS:
            return (CURVE_ALGORITHMS[key.curve.name],)
        case Ed25519PublicKey():
            return ("EdDSA",)
        case _:
            return ()


def key_from_pem(pem: str) -> SigningKey:
    """Raises ValueError for what is not a public key of a type that is accepted."""
    try:
        key = load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not (algorithms := algorithms_of(key)):
        raise ValueError(f"a {type(key).__name__} of this kind is not accepted")
    return SigningKey(None, cast("PublicKey", key), algorithms)


def keys_from_jwks(document: bytes) -> list[SigningKey]:
    """The keys of a JWK Set (RFC 7517) that may sign; others in it are passed over. Raises ValueError if it is none."""
    jwks = orjson.loads(document)
    if not isinstance(jwks, dict) or not isinstance(jwks.get("keys"), list):
        raise ValueError("not a JWK Set")  # noqa: TRY004  # it is the document that is wrong
    return [key for jwk in jwks["keys"] if isinstance(jwk, dict) and (key := _key_from_jwk(jwk)) is not None]


def _key_from_jwk(jwk: dict[str, object]) -> SigningKey | None:
    readers = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}
    read = readers.get(str(jwk.get("kty")))
    operations = jwk.get("key_ops", ["verify"])
    if read is None or jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        key = read(cast("dict[str, str]", jwk))
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    algorithms = tuple(name for name in algorithms_of(key) if jwk.get("alg", name) == name)
    key_id = jwk.get("kid")
    if not algorithms or not isinstance(key_id, str | None):
        return None
    return SigningKey(key_id, cast("PublicKey", key), algorithms)


def check(token: str, key: SigningKey, *, issuer: str, audience: str) -> Identity:
    """Read a JWT that `key` must have signed. Raises InvalidToken."""
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "sub", "iss", "aud"]},
        )
        expires_at = float(claims["exp"])
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidToken from None
    subject, scope = claims["sub"], claims.get("scope")
    # Printable: it is a column of every table, and neither NUL nor a lone surrogate can be stored.
    if not subject.isprintable() or not 0 < len(subject) <= SUBJECT_CHARS or not isinstance(scope, str | None):
        raise InvalidToken
    return Identity(subject, scope, expires_at)


class Provider:
    """The identity provider: its keys, and the JWTs that they sign."""

    def __init__(self, issuer: str, audience: str, keys: Iterable[SigningKey] = ()) -> None:
        self.issuer = issuer
        self._audience = audience
        self._keys: list[SigningKey] | None = list(keys) or None

    async def identify(self, token: str) -> Identity:
        """Who the token is for. Raises InvalidToken, ProviderUnavailable."""
        if len(token) > TOKEN_CHARS:
            raise InvalidToken
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise InvalidToken from None
        key = await self._key(header.get("kid"), header.get("alg"))
        if key is None:
            raise InvalidToken
        return check(token, key, issuer=self.issuer, audience=self._audience)

    async def _key(self, key_id: object, algorithm: object) -> SigningKey | None:
        return self._find(key_id, algorithm)

    def _find(self, key_id: object, algorithm: object) -> SigningKey | None:
        """The key with this id; the only one for the algorithm, where either side has no id."""
        keys = [key for key in self._keys or () if algorithm in key.algorithms]
        named = [key for key in keys if key.key_id == key_id]
        if key_id is not None and named:
            return named[0]
        nameless = [key for key in keys if key_id is None or key.key_id is None]
        return nameless[0] if len(nameless) == 1 else None


class JwksProvider(Provider):
    """A provider whose keys are fetched from where it publishes them, kept while it is away, and fetched again in time.

    A token with an unknown key waits for a fetch, as the provider may have changed its keys; any other never does.
    There is at most one fetch in JWKS_RETRY_S, so that made-up tokens can't send us against the provider.
    """

    def __init__(self, url: str, issuer: str, audience: str, session: aiohttp.ClientSession) -> None:
        super().__init__(issuer, audience)
        self._url = url
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def _key(self, key_id: object, algorithm: object) -> SigningKey | None:
        key = self._find(key_id, algorithm)
        if key is None or self._loop.time() > self._fetched_at + JWKS_LIFE_S:
            fetching = self.refresh()
            if key is None:
                await asyncio.wait({fetching})
                key = self._find(key_id, algorithm)
        if self._keys is None:
            raise ProviderUnavailable
        return key

    def refresh(self) -> "asyncio.Task[None]":
        """Fetch the keys; the fetch that is under way or too short ago counts."""
        if self._fetching is None or (self._fetching.done() and self._loop.time() > self._tried_at + JWKS_RETRY_S):
            self._tried_at = self._loop.time()
            self._fetching = asyncio.create_task(self._fetch(), name="jwks")
        return self._fetching

    async def _fetch(self) -> None:
        try:
            async with self._session.get(self._url, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ValueError(f"status {answer.status}")
                document = await answer.content.read(JWKS_BYTES + 1)
                while len(document) <= JWKS_BYTES and (more := await answer.content.read(JWKS_BYTES)):
                    document += more
            if len(document) > JWKS_BYTES:
                raise ValueError(f"more than {JWKS_BYTES} bytes")
            if not (keys := keys_from_jwks(document)):
                raise ValueError("no key that may sign")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.warning("the keys of %s can't be had (%s: %s)", self.issuer, type(error).__name__, error)
            return
        self._keys = keys
        self._fetched_at = self._loop.time()

    async def aclose(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})


@asynccontextmanager
async def open_jwks_provider(url: str, issuer: str, audience: str) -> AsyncIterator[Provider]:
    """The provider, with its keys if it can be reached: a start does not depend on it."""
    timeout = aiohttp.ClientTimeout(total=JWKS_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, headers={"accept": "application/json"}) as session:
        provider = JwksProvider(url, issuer, audience, session)
        try:
            await asyncio.wait({provider.refresh()})
            yield provider
        finally:
            await provider.aclose()
