"""The claims of a JWT: which kinds of token are refused, and the scopes of an access token."""

import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from access.callers import JwtRules, _scopes_of
from access.claims import ACCESS_TOKEN_TYPES, MARKS, NEVER, Identity, InvalidToken, identity_of, is_access_token
from access.jwts import SigningKey, check
from settings import SCOPES, Settings, SettingsError

KEY = generate_private_key(SECP256R1())
SIGNING = SigningKey(None, KEY.public_key(), ("ES256",))
BASE: dict[str, Any] = {"iss": "https://id.example/", "aud": "a", "sub": "u", "exp": int(time.time()) + 600}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def read(claims: dict[str, Any], header: dict[str, Any] | None = None) -> Identity:
    """A signed token, as `check` reads it."""
    token = jwt.encode(BASE | claims, KEY, "ES256", headers=header)
    return check(token, SIGNING, issuer=BASE["iss"], audience=BASE["aud"])


def scopes(claims: dict[str, Any], **rules: Any) -> set[str]:
    return set(JwtRules(**rules).caller(read(claims)).scopes)


# ---------------------------------------------------------------------------------------------------------------
# Kinds of token


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/JWT", None])
def test_an_access_token_of_a_good_kind_is_read(kind: str | None) -> None:
    assert read({"scope": "chat"}, {"typ": kind}).scope == "chat"


OTHER_KINDS = [
    *("logout+jwt", "application/logout+jwt", "secevent+jwt", "dpop+jwt", "DPoP+JWT", "rt+jwt", "id+jwt", "jwt+at"),
    *("oauth-authz-req+jwt", "token-introspection+jwt", "client-authentication+jwt", "jwk+jwt", "entity-statement+jwt"),
    *(
        "dc+sd-jwt",
        "vc+jwt",
        "vp+jwt",
        "kb+jwt",
        "at+jwt; a=b",
        " jwt",
        "jwt ",
        "application/ at+jwt",
        "at",
        "JOSE",
        "x",
    ),
    *("\u212aWT", "JW\u0422"),  # look like a good one
]


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_token_of_another_kind_in_its_header_is_refused(kind: str) -> None:
    with pytest.raises(InvalidToken):
        read({"scope": "chat"}, {"typ": kind})


@given(json_values)
def test_no_kind_but_the_few_good_ones_is_taken(kind: object) -> None:
    good = isinstance(kind, str) and kind.lower() in ACCESS_TOKEN_TYPES
    assert is_access_token({"alg": "ES256", "typ": kind}, BASE) == good


@given(st.sampled_from([mark for mark in MARKS if not mark.access]), json_values)
def test_a_claim_of_another_kind_is_refused_whatever_its_value(mark: Any, value: object) -> None:
    assert not is_access_token({"typ": "at+jwt"}, BASE | {mark.claim: value})


@given(st.sampled_from([mark for mark in MARKS if mark.access]), json_values | st.sampled_from(["ID", "id", "Refresh"]))
def test_a_claim_that_names_the_kind_must_name_an_access_token(mark: Any, value: object) -> None:
    good = isinstance(value, str) and value.lower() in mark.access
    assert is_access_token({}, BASE | {mark.claim: value}) == good


TOKENS_OF_PROVIDERS: dict[str, dict[str, Any]] = {
    "Keycloak": {"typ": "Bearer", "azp": "app", "scope": "openid chat", "sid": "s", "acr": "1", "jti": "j"},
    "Entra ID": {"scp": "chat User.Read", "azp": "app", "ver": "2.0", "uti": "x", "rh": "y", "oid": "o", "tid": "t"},
    "Okta": {"scp": ["chat", "openid"], "cid": "app", "uid": "x", "ver": 1, "auth_time": 1},
    "Auth0": {"scope": "openid chat", "azp": "app", "permissions": ["read:x"], "gty": "client-credentials"},
    "RFC 9068": {"scope": "chat", "client_id": "app", "jti": "j", "auth_time": 1, "acr": "1", "amr": ["pwd"]},
    "Cognito": {"token_use": "access", "scope": "chat", "client_id": "app", "origin_jti": "o", "username": "u"},
    "a delegation": {"scope": "chat", "client_id": "app", "act": {"sub": "agent"}},
}


@pytest.mark.parametrize("provider", TOKENS_OF_PROVIDERS)
def test_access_tokens_of_well_known_providers_are_read(provider: str) -> None:
    identity = read(TOKENS_OF_PROVIDERS[provider])
    assert _scopes_of(identity) == {"chat"}
    assert identity.client == "app"


OTHER_TOKENS: dict[str, dict[str, Any]] = {
    "an ID token": {"nonce": "n", "at_hash": "x"},
    "an ID token of the implicit flow": {"c_hash": "x"},
    "an ID token of Keycloak": {"typ": "ID", "azp": "app", "scope": "chat"},
    "a refresh token of Keycloak": {"typ": "Refresh", "scope": "chat"},
    "an offline token of Keycloak": {"typ": "Offline", "scope": "chat"},
    "a logout token of Keycloak": {"typ": "Logout"},
    "an ID token of Cognito": {"token_use": "id"},
    "a refresh token of a library": {"token_type": "refresh"},
    "a logout token": {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}, "sid": "s"},
    "a token bound by DPoP": {"cnf": {"jkt": "x"}, "scope": "chat"},
    "a token bound by mTLS": {"cnf": {"x5t#S256": "x"}, "scope": "chat"},
    "a client assertion": {"sub": BASE["iss"]},
}


@pytest.mark.parametrize("kind", OTHER_TOKENS)
def test_tokens_of_other_kinds_are_refused(kind: str) -> None:
    for header in ({}, {"typ": None}, {"typ": "at+jwt"}):
        with pytest.raises(InvalidToken):
            read(OTHER_TOKENS[kind], header)


def test_each_mark_says_which_kind_it_marks_and_where_that_is_written() -> None:
    assert len(MARKS) == len({mark.claim for mark in MARKS}) > 15
    assert all(mark.kind and mark.source for mark in MARKS)
    assert {mark.claim for mark in MARKS} >= {"nonce", "at_hash", "c_hash", "events", "cnf", "typ", "token_use"}


# ---------------------------------------------------------------------------------------------------------------
# Scopes


@pytest.mark.parametrize(
    ("claims", "has"),
    [
        ({}, set()),
        ({"scope": ""}, set()),
        ({"scope": None}, set()),
        ({"scope": []}, set()),
        ({"scope": "chat read"}, {"chat", "read"}),
        ({"scope": " chat  read "}, {"chat", "read"}),
        ({"scope": ["chat", "read"]}, {"chat", "read"}),
        ({"scope": ["chat read"]}, set()),
        ({"scope": "chat\tread"}, set()),
        ({"scope": "chat,read"}, set()),
        ({"scope": "CHAT chats xchat"}, set()),
        ({"scp": ["User.Read"]}, set()),
        ({"scp": "chat User.Read"}, {"chat"}),
        ({"scp": ["admin"]}, {"admin"}),
        ({"scope": "chat read", "scp": ["read"]}, {"read"}),
        ({"scope": "chat", "scp": ["read"]}, set()),
        ({"scope": "chat", "scp": ""}, set()),
        ({"permissions": []}, set()),
        ({"permissions": ["chat"], "roles": ["admin"], "scopes": ["read"], "groups": ["admin"]}, set()),
        ({"scope": "draftstream:chat"}, set()),
    ],
)
def test_the_scopes_of_a_token_are_those_of_its_scope_claims(claims: dict[str, Any], has: set[str]) -> None:
    assert scopes(claims) == has


@pytest.mark.parametrize("claim", ["scope", "scp"])
@pytest.mark.parametrize("value", [7, True, 1.5, {}, {"chat": 1}, ["chat", 7], [["chat"]], [None]])
def test_a_scope_claim_that_is_neither_text_nor_a_list_of_texts_is_refused(claim: str, value: object) -> None:
    with pytest.raises(InvalidToken):
        read({claim: value})


def test_default_scopes_are_for_a_token_without_a_scope_claim() -> None:
    defaults = {"default_scopes": ("chat", "read")}
    assert scopes({}, **defaults) == {"chat", "read"}
    assert scopes({"permissions": ["x"]}, **defaults) == {"chat", "read"}
    others: list[dict[str, Any]] = [
        {"scope": ""},
        {"scp": []},
        {"scope": None},
        {"scp": ["User.Read"]},
        {"scope": "openid"},
    ]
    for claims in others:
        assert scopes(claims, **defaults) == set()


def test_with_a_prefix_only_scopes_that_have_it_count() -> None:
    prefix = {"scope_prefix": "draftstream:"}
    assert scopes({"scope": "draftstream:chat admin read draftstream:x"}, **prefix) == {"chat"}
    assert scopes({"scp": ["draftstream:admin", "chat"]}, **prefix) == {"admin"}
    assert scopes({"scope": "draftstream:draftstream:chat Draftstream:chat draftstream: chat"}, **prefix) == set()
    assert scopes({}, **prefix, default_scopes=("read",)) == {"read"}


scope_text = st.sampled_from([*SCOPES, *(f"p:{scope}" for scope in SCOPES), "openid", "p:", "", "p:x"])
scope_value = st.lists(scope_text, max_size=5) | st.lists(scope_text, max_size=5).map(" ".join)


@given(st.dictionaries(st.sampled_from(["scope", "scp"]), scope_value), st.sampled_from(["", "p:"]))
def test_no_claims_give_a_scope_that_not_each_of_them_names(claims: dict[str, Any], prefix: str) -> None:
    identity = identity_of({}, BASE | claims)
    got = _scopes_of(identity, (), prefix)
    named = [set(value.split(" ") if isinstance(value, str) else value) for value in claims.values()]
    expected = {scope for scope in SCOPES if named and all(prefix + scope in each for each in named)}
    assert got == expected


JWT = {"JWT_JWKS_URL": "https://id.example/jwks", "JWT_ISSUER": "https://id.example/", "JWT_AUDIENCE": "a"}


def test_the_settings_of_scopes() -> None:
    assert Settings.from_env(JWT).jwt_default_scopes == ()
    for text in ("read,chat", "chat read", " chat , read "):
        assert Settings.from_env(JWT | {"JWT_DEFAULT_SCOPES": text}).jwt_default_scopes == ("chat", "read")
    assert Settings.from_env(JWT | {"JWT_SCOPE_PREFIX": "https://a.example/"}).jwt_scope_prefix == "https://a.example/"


@pytest.mark.parametrize(
    ("env", "names"),
    [
        (JWT | {"JWT_DEFAULT_SCOPES": "write"}, "JWT_DEFAULT_SCOPES must be some of chat,read,admin"),
        (JWT | {"JWT_DEFAULT_SCOPES": "chat;read"}, "JWT_DEFAULT_SCOPES must be"),
        (JWT | {"JWT_SCOPE_PREFIX": "a b"}, "JWT_SCOPE_PREFIX must be"),
        (JWT | {"JWT_SCOPE_PREFIX": 'a"'}, "JWT_SCOPE_PREFIX must be"),
        (JWT | {"JWT_SCOPE_PREFIX": "é:"}, "JWT_SCOPE_PREFIX must be"),
        ({"JWT_DEFAULT_SCOPES": "chat"}, "JWT_ISSUER and JWT_AUDIENCE must be set too"),
        ({"JWT_SCOPE_PREFIX": "a:"}, "JWT_ISSUER and JWT_AUDIENCE must be set too"),
    ],
)
def test_a_wrong_setting_of_scopes_stops_the_start(env: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        Settings.from_env(env)


# ---------------------------------------------------------------------------------------------------------------
# The other claims


@pytest.mark.parametrize(
    "end", [NEVER, 1e308, 10**400, 31e15, 1_900_000_000_000, "2000000000", True], ids=lambda end: str(end)[:9]
)
def test_an_end_that_never_comes_or_is_no_number_is_refused(end: object) -> None:
    with pytest.raises(InvalidToken):
        read({"exp": end})


def test_the_last_end_that_is_taken_is_of_the_year_9999() -> None:
    assert read({"exp": NEVER - 1}).expires_at == NEVER - 1
    assert read({"exp": BASE["exp"] + 0.5}).expires_at == BASE["exp"] + 0.5


@pytest.mark.parametrize("client", [7, ["app"], "a\0b", "\ud800", "a" * 256])
def test_a_client_that_can_not_be_stored_is_refused(client: object) -> None:
    with pytest.raises(InvalidToken):
        identity_of({}, BASE | {"azp": client})


def test_the_client_of_a_token_is_the_application_that_it_was_issued_to() -> None:
    assert identity_of({}, BASE).client is None
    assert identity_of({}, BASE | {"azp": "", "cid": None}).client is None
    assert identity_of({}, BASE | {"azp": "b", "client_id": "a"}).client == "a"
    assert JwtRules().caller(identity_of({}, BASE | {"appid": "a"})).credential == "jwt:a"


@given(st.dictionaries(st.sampled_from([mark.claim for mark in MARKS] + ["sub", "exp", "azp", "x"]), json_values))
def test_whatever_the_claims_are_they_are_read_or_refused(claims: dict[str, Any]) -> None:
    try:
        identity = identity_of({"typ": "JWT"}, BASE | claims)
    except InvalidToken:
        return
    assert identity.subject
    assert identity.expires_at < NEVER
