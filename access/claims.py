"""The claims of a JWT: whether it is an access token, its subject, its client, its scopes and its end. Pure.

A provider signs tokens of many kinds with one key, often with the same issuer and audience. Only a bearer access token
says that its holder may call. So the type in the header must be one of a few, and MARKS has the claims that only tokens
of another kind have.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SUBJECT_CHARS = 255  # OpenID Connect's limit
CLIENT_CHARS = 255
# The start of the year 10000. An `exp` behind it is no end: a provider that counts in milliseconds writes such ones.
NEVER = 253_402_300_800.0

# The types of the header that an access token may have, in lower case (RFC 7519, section 5.1; RFC 9068, section 2.1).
# Many providers write none. So logout+jwt, secevent+jwt, dpop+jwt and all others are refused.
ACCESS_TOKEN_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


class InvalidToken(Exception):
    """The service does not accept this JWT. It is refused without a reason."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A claim by which a token of another kind is known.

    `access`: the values, in lower case, that it has in access tokens. Without any, no access token has the claim.
    """

    claim: str
    kind: str
    source: str
    access: frozenset[str] = frozenset()


MARKS = (
    Mark("nonce", "ID token", "OpenID Connect Core 1.0, section 2"),
    Mark("at_hash", "ID token", "OpenID Connect Core 1.0, section 3.1.3.6"),
    Mark("c_hash", "ID token", "OpenID Connect Core 1.0, section 3.3.2.11"),
    Mark("s_hash", "ID token", "FAPI 1.0 part 2, section 5.1"),
    Mark("sub_jwk", "self-issued ID token", "OpenID Connect Core 1.0, section 7.4"),
    Mark("events", "logout token, security event", "OpenID Connect Back-Channel Logout 1.0, section 2.4; RFC 8417"),
    Mark("cnf", "token bound to a key, whose proof is not checked here", "RFC 7800; RFC 8705 (mTLS); RFC 9449 (DPoP)"),
    Mark("htm", "DPoP proof", "RFC 9449, section 4.2"),
    Mark("htu", "DPoP proof", "RFC 9449, section 4.2"),
    Mark("response_type", "request object", "RFC 9101, section 4"),
    Mark("redirect_uri", "request object", "RFC 9101, section 4"),
    Mark("token_introspection", "answer of an introspection", "RFC 9701, section 5"),
    Mark("software_statement", "client registration", "RFC 7591, section 2.3"),
    Mark("vc", "verifiable credential", "W3C Verifiable Credentials Data Model 1.1, section 6.3.1"),
    Mark("vp", "verifiable presentation", "W3C Verifiable Credentials Data Model 1.1, section 6.3.1"),
    Mark("_sd_alg", "SD-JWT, whose claims are disclosed elsewhere", "RFC 9901"),
    Mark("token_use", "ID token", "Amazon Cognito", frozenset({"access"})),
    Mark("typ", "ID, refresh, offline or logout token", "Keycloak", frozenset({"bearer"})),
    Mark("token_type", "refresh token", "common JWT libraries", frozenset({"access", "access_token", "bearer"})),
)

SCOPE_CLAIMS = ("scope", "scp")  # RFC 8693, section 4.2; Entra ID and Okta
CLIENT_CLAIMS = ("client_id", "azp", "cid", "appid")  # RFC 9068; OpenID Connect; Okta; Entra ID


@dataclass(frozen=True, slots=True)
class Identity:
    """The claims of a valid JWT.

    `scope`: its scopes as RFC 6749 writes them, None if it has no scope claim. `expires_at` is in seconds since the
    epoch. `client`: the application that it was issued to.
    """

    subject: str
    scope: str | None
    expires_at: float
    client: str | None = None


def identity_of(header: Mapping[str, object], claims: Mapping[str, object]) -> Identity:
    """Of a JWT whose signature, issuer, audience and times are good. Raises InvalidToken."""
    if not is_access_token(header, claims):
        raise InvalidToken
    return Identity(_subject(claims), scope_of(claims), _end(claims), _client(claims))


def is_access_token(header: Mapping[str, object], claims: Mapping[str, object]) -> bool:
    kind = header.get("typ", "jwt")
    if not isinstance(kind, str) or kind.lower() not in ACCESS_TOKEN_TYPES:
        return False
    if claims.get("sub") == claims.get("iss"):  # a client assertion (RFC 7523), or self-issued
        return False
    return not any(mark.claim in claims and not _is_of(mark, claims[mark.claim]) for mark in MARKS)


def _is_of(mark: Mark, value: object) -> bool:
    return isinstance(value, str) and value.lower() in mark.access


def scope_of(claims: Mapping[str, object]) -> str | None:
    """The scopes of `scope` and `scp`. If both are there, those that both name. Raises InvalidToken."""
    found = [_scopes(claims[name]) for name in SCOPE_CLAIMS if name in claims]
    if not found:
        return None
    return " ".join(scope for scope in found[0] if all(scope in scopes for scopes in found))


def _scopes(value: object) -> list[str]:
    """A string, or a list of them. In a list a scope with a space is one scope, which nobody has."""
    match value:
        case None:
            return []
        case str():
            return [scope for scope in value.split(" ") if scope]
        case list() if all(isinstance(scope, str) for scope in value):
            return [scope for scope in value if scope and " " not in scope]
    raise InvalidToken


def _subject(claims: Mapping[str, object]) -> str:
    subject = claims.get("sub")
    # Printable: it is a column of every table, and neither NUL nor a lone surrogate can be stored.
    if not isinstance(subject, str) or not subject.isprintable() or not 0 < len(subject) <= SUBJECT_CHARS:
        raise InvalidToken
    return subject


def _client(claims: Mapping[str, object]) -> str | None:
    for name in CLIENT_CLAIMS:
        if client := claims.get(name):
            if not isinstance(client, str) or not client.isprintable() or len(client) > CLIENT_CHARS:
                raise InvalidToken
            return client
    return None


def _end(claims: Mapping[str, object]) -> float:
    end = claims.get("exp")
    if isinstance(end, bool) or not isinstance(end, int | float) or not end < NEVER:
        raise InvalidToken
    return float(end)
