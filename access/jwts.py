"""JWTs of an identity provider: the key that signed one, and the checks of it; claims.py reads its claims.

The token never chooses the algorithm: each key has the algorithms of its own type, all of them asymmetric, and a token
that names another one is refused. So neither `none` nor an HMAC over a public key is accepted.
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

from access.claims import Identity, InvalidToken, identity_of
from chat.refusals import Refusal
from settings import Settings, SettingsError

log = logging.getLogger("draftstream.identity")

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
RSA_BITS = 2048  # at least, by RFC 7518
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

LEEWAY_S = 30.0  # the provider's clock may differ by this
TOKEN_CHARS = 8192  # more than any provider issues
JWKS_BYTES = 256 * 1024
JWKS_TIMEOUT_S = 5.0
JWKS_LIFE_S = 600.0  # a withdrawn key is used no longer than this, while the provider can be reached
JWKS_RETRY_S = 15.0  # between two fetches, whatever tokens come


class ProviderUnavailable(Refusal):
    """The identity provider's keys were never fetched, so no token can be checked."""

    def __init__(self) -> None:
        super().__init__(
            "provider_unavailable",
            "The identity provider can't be reached, so tokens can't be checked; try again in a few seconds.",
        )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key of the provider, and the algorithms that it may sign with."""

    key_id: str | None
    key: PublicKey
    algorithms: tuple[str, ...]


def algorithms_of(key: object) -> tuple[str, ...]:
    """The algorithms of a key of this type; none for a key of another type, or a weak one."""
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
    """Raises ValueError for a text that is no public key of an accepted type."""
    try:
        key = load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not (algorithms := algorithms_of(key)):
        raise ValueError(f"a {type(key).__name__} of this kind is not accepted")
    return SigningKey(None, cast("PublicKey", key), algorithms)


def keys_from_jwks(document: bytes) -> list[SigningKey]:
    """The signing keys of a JWK Set (RFC 7517); others in it are ignored. Raises ValueError if it is not one."""
    jwks = orjson.loads(document)
    if not isinstance(jwks, dict) or not isinstance(jwks.get("keys"), list):
        raise ValueError("not a JWK Set")  # noqa: TRY004  # the document is wrong, not a type
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
    """Read an access token that must be signed with `key`. Raises InvalidToken."""
    try:
        decoded = jwt.decode_complete(
            token,
            key.key,
            algorithms=list(key.algorithms),
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "sub", "iss", "aud"]},
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidToken from None
    return identity_of(decoded["header"], decoded["payload"])


class Provider:
    """The identity provider and its keys."""

    def __init__(self, issuer: str, audience: str, keys: Iterable[SigningKey] = ()) -> None:
        self.issuer = issuer
        self._audience = audience
        self._keys: list[SigningKey] | None = list(keys) or None

    async def identify(self, token: str) -> Identity:
        """The person that the token is for. Raises InvalidToken, ProviderUnavailable."""
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
        """The key with this id; where the token or the key has no id, the only key for the algorithm."""
        keys = [key for key in self._keys or () if algorithm in key.algorithms]
        named = [key for key in keys if key.key_id == key_id]
        if key_id is not None and named:
            return named[0]
        nameless = [key for key in keys if key_id is None or key.key_id is None]
        return nameless[0] if len(nameless) == 1 else None


class JwksProvider(Provider):
    """A provider whose keys are fetched from the address at which it publishes them, and fetched again in time.

    The keys are kept while the provider is away. Only a token with an unknown key waits for a fetch, as the provider
    may have changed its keys. There is at most one fetch in JWKS_RETRY_S, so invented tokens can't flood the provider.
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
        """Fetch the keys, unless a fetch is under way or was less than JWKS_RETRY_S ago."""
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
            log.warning("the keys of %s can't be fetched (%s: %s)", self.issuer, type(error).__name__, error)
            return
        self._keys = keys
        self._fetched_at = self._loop.time()

    async def aclose(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})


@asynccontextmanager
async def open_jwks_provider(url: str, issuer: str, audience: str) -> AsyncIterator[Provider]:
    """The provider, with its keys if it can be reached; a start does not depend on it."""
    timeout = aiohttp.ClientTimeout(total=JWKS_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, headers={"accept": "application/json"}) as session:
        provider = JwksProvider(url, issuer, audience, session)
        try:
            await asyncio.wait({provider.refresh()})
            yield provider
        finally:
            await provider.aclose()


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
