"""JWTs against a real identity provider: its keys are served over a socket."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import jwt
import pytest
import requests
from conftest import Service, rows
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from sse_client import chat, request
from test_access import command

from access import jwts as room
from access.claims import InvalidToken
from access.issuers import MOVE_ISSUER, owner_prefix
from access.jwts import (
    JwksProvider,
    Provider,
    ProviderUnavailable,
    key_from_pem,
    keys_from_jwks,
    open_jwks_provider,
)
from settings import Settings, SettingsError
from store import Store

ISSUER, AUDIENCE = "https://id.example/", "draftstream"
RSA, OTHER_RSA, SHORT_RSA = (generate_rsa_key(65537, bits) for bits in (2048, 2048, 1024))
EC256, EC384, EC521, EC256K1 = (generate_private_key(curve()) for curve in (SECP256R1, SECP384R1, SECP521R1, SECP256K1))
ED25519 = Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def jwk(key: Any, algorithm: str, **more: object) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {name: value for name, value in made.items() if name != "key_ops"} | more


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones, changed; None takes one away."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300}
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(key: Any = RSA, algorithm: str = "RS256", *, kid: str | None = "rsa", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={} if kid is None else {"kid": kid})


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


class Jwks:
    """Where the provider publishes its keys: `document`, or as `fault` has it."""

    def __init__(self) -> None:
        self.document: object = {"keys": [jwk(RSA, "RS256", kid="rsa", use="sig", alg="RS256")]}
        self.fault = ""
        self.asked = 0
        self.over = Event()
        jwks = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                jwks.asked += 1
                if jwks.fault == "slow":
                    jwks.over.wait(30)
                body = json.dumps(jwks.document).encode()
                if jwks.fault == "large":
                    body += b" " * (room.JWKS_BYTES + 1)
                if jwks.fault == "broken":
                    body = body[:-3]
                moved = jwks.fault == "redirect" and self.path == "/jwks"
                self.send_response(302 if moved else 500 if jwks.fault == "500" else 200)
                self.send_header("location", "/moved")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def jwks() -> Iterator[Jwks]:
    server = Jwks()
    yield server
    server.close()


@pytest.fixture
async def provider(jwks: Jwks) -> AsyncIterator[Provider]:
    async with open_jwks_provider(jwks.url, ISSUER, AUDIENCE) as provider:
        yield provider


# ---------------------------------------------------------------------------------------------------------------
# Good and bad tokens


@pytest.mark.anyio
async def test_a_good_token_says_who_it_is_for(provider: Provider) -> None:
    found = await provider.identify(token(scope="read", exp=2_000_000_000))
    assert (found.subject, found.scope, found.expires_at) == ("alice", "read", 2e9)
    for good in (
        token(aud=["other", AUDIENCE]),
        token(exp=time.time() - 20),  # a clock may be off by half a minute
        token(nbf=time.time() + 20, iat=time.time() + 20),
        token(sub="auth0|ünï-1"),
        token(kid=None),  # there is one key
    ):
        assert (await provider.identify(good)).scope is None


PUBLIC_PEM = pem(RSA)


def signed_with_the_public_key() -> str:
    """The classic: an HMAC whose secret is the public key, which everyone has."""
    signing = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rsa'})}.{encoded(claims())}"
    digest = hmac.digest(PUBLIC_PEM.encode(), signing.encode(), hashlib.sha256)
    return f"{signing}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


BAD: dict[str, Callable[[], str]] = {
    "another key": lambda: token(OTHER_RSA),
    "alg none": lambda: jwt.encode(claims(), "", "none", headers={"kid": "rsa"}),
    "alg none, spelt otherwise": lambda: f"{encoded({'alg': 'nOnE', 'kid': 'rsa'})}.{encoded(claims())}.",
    "alg none with a signature": lambda: (
        f"{encoded({'alg': 'none', 'kid': 'rsa'})}.{encoded(claims())}.{token().split('.')[2]}"
    ),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "an HMAC over the public key": signed_with_the_public_key,
    "an HMAC": lambda: token("a" * 64, "HS256"),
    "an algorithm of another type": lambda: token(EC256, "ES256"),
    "an algorithm that the key is not for": lambda: token(RSA, "RS512"),
    "an unknown algorithm": lambda: f"{encoded({'alg': 'RS1', 'kid': 'rsa'})}.{encoded(claims())}.AAAA",
    "no algorithm": lambda: f"{encoded({'kid': 'rsa'})}.{encoded(claims())}.AAAA",
    "an algorithm that is no name": lambda: f"{encoded({'alg': ['RS256'], 'kid': 'rsa'})}.{encoded(claims())}.AAAA",
    "a key of its own": lambda: jwt.encode(
        claims(), OTHER_RSA, "RS256", headers={"kid": "rsa", "jwk": jwk(OTHER_RSA, "RS256")}
    ),
    "a critical extension": lambda: jwt.encode(
        claims(), RSA, "RS256", headers={"kid": "rsa", "crit": ["exp"], "exp": 1}
    ),
    "an unknown key id": lambda: token(kid="other"),
    "changed claims": lambda: f"{token().split('.')[0]}.{encoded(claims(sub='mallory'))}.{token().split('.')[2]}",
    "expired": lambda: token(exp=time.time() - 40),
    "no end": lambda: token(exp=None),
    "an end that is no number": lambda: token(exp="soon"),
    "an end that never comes": lambda: token(exp=float("inf")),
    "not yet valid": lambda: token(nbf=time.time() + 60),
    "from the future": lambda: token(iat=time.time() + 60),
    "another audience": lambda: token(aud="other"),
    "a longer audience": lambda: token(aud=AUDIENCE + "x"),
    "no audience": lambda: token(aud=None),
    "an empty audience": lambda: token(aud=[]),
    "another issuer": lambda: token(iss="https://id.example"),
    "no issuer": lambda: token(iss=None),
    "no subject": lambda: token(sub=None),
    "an empty subject": lambda: token(sub=""),
    "a subject that is no text": lambda: jwt.encode(claims() | {"sub": 7}, RSA, "RS256", headers={"kid": "rsa"}),
    "a subject that can't be stored": lambda: token(sub="a\0"),
    "half a character": lambda: token(sub="\ud800"),
    "a long subject": lambda: token(sub="a" * 256),
    "a scope that is no text": lambda: token(scope=7),
    "too long": lambda: token(more="a" * 9000),
    "deep": lambda: f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.e30.AAAA",
    "no JWT": lambda: "abc",
    "empty parts": lambda: "..",
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", BAD)
async def test_a_bad_token_is_refused(provider: Provider, what: str) -> None:
    made = BAD[what]()
    with pytest.raises(InvalidToken):
        await provider.identify(made)
    pinned = Provider(ISSUER, AUDIENCE, [key_from_pem(PUBLIC_PEM)])
    if what not in ("an unknown key id", "an algorithm that the key is not for"):  # a PEM has neither
        with pytest.raises(InvalidToken):
            await pinned.identify(made)
    assert (await pinned.identify(token())).subject == "alice"


@given(
    st.text(max_size=300)
    | st.tuples(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60)).map(
        lambda parts: ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    )
)
def test_whatever_is_sent_is_an_invalid_token(text: str) -> None:
    pinned = Provider(ISSUER, AUDIENCE, [key_from_pem(PUBLIC_PEM)])
    with pytest.raises(InvalidToken):
        asyncio.run(pinned.identify(text))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (RSA, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        (EC256, {"ES256"}),
        (EC384, {"ES384"}),
        (EC521, {"ES512"}),
        (ED25519, {"EdDSA"}),
    ],
)
async def test_each_type_of_key_has_its_own_algorithms(key: Any, algorithms: set[str]) -> None:
    pinned = Provider(ISSUER, AUDIENCE, [key_from_pem(pem(key))])
    of_jwks = Provider(
        ISSUER, AUDIENCE, keys_from_jwks(json.dumps({"keys": [jwk(key, min(algorithms), kid="rsa")]}).encode())
    )
    for algorithm in algorithms:
        for provider in (pinned, of_jwks):
            assert (await provider.identify(token(key, algorithm))).subject == "alice"


@pytest.mark.parametrize("key", [SHORT_RSA, EC256K1, Ed448PrivateKey.generate()])
def test_weak_and_unusual_keys_are_not_accepted(key: Any) -> None:
    with pytest.raises(ValueError, match="not accepted"):
        key_from_pem(pem(key))


def test_a_private_key_is_no_public_key() -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the library's own words
        key_from_pem(RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def test_of_a_key_set_only_what_may_sign_is_taken() -> None:
    signing = jwk(RSA, "RS256", kid="1")
    private = json.loads(json.dumps(jwt.get_algorithm_by_name("RS256").to_jwk(RSA, as_dict=True)))
    others: list[object] = [
        signing | {"use": "enc"},
        signing | {"key_ops": ["encrypt"]},
        signing | {"key_ops": 7},
        signing | {"alg": "HS256"},
        signing | {"alg": "ES256"},
        signing | {"n": "AQAB"},
        signing | {"kid": 7},
        signing | {"kty": "oct", "k": "c2VjcmV0"},
        private | {"key_ops": ["verify"]},
        jwk(SHORT_RSA, "RS256"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "1"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": ["RSA"]},
        {},
        "key",
        None,
    ]
    assert keys_from_jwks(json.dumps({"keys": others}).encode()) == []
    assert [key.key_id for key in keys_from_jwks(json.dumps({"keys": [*others, signing]}).encode())] == ["1"]
    for document in (b"", b"[]", b"{}", b'{"keys": {}}', b"<html>"):
        with pytest.raises(ValueError):  # noqa: PT011  # any will do
            keys_from_jwks(document)


@pytest.mark.anyio
async def test_without_a_key_id_the_key_must_be_the_only_one_for_it() -> None:
    keys = [jwk(RSA, "RS256", kid="1"), jwk(OTHER_RSA, "RS256", kid="2"), jwk(EC256, "ES256", kid="3")]
    provider = Provider(ISSUER, AUDIENCE, keys_from_jwks(json.dumps({"keys": keys}).encode()))
    assert (await provider.identify(token(EC256, "ES256", kid=None))).subject == "alice"
    assert (await provider.identify(token(OTHER_RSA, kid="2"))).subject == "alice"
    with pytest.raises(InvalidToken):
        await provider.identify(token(RSA, kid=None))
    with pytest.raises(InvalidToken):
        await provider.identify(token(RSA, kid="2"))


# ---------------------------------------------------------------------------------------------------------------
# The provider's keys


@pytest.mark.anyio
async def test_keys_are_fetched_once_and_again_for_a_new_one(
    jwks: Jwks, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        await provider.identify(token())
        with pytest.raises(InvalidToken):
            await provider.identify(token(OTHER_RSA, kid="new"))
    assert jwks.asked == 1, "made-up tokens do not send us against the provider"
    monkeypatch.setattr(room, "JWKS_RETRY_S", 0)
    jwks.document = {"keys": [jwk(OTHER_RSA, "RS256", kid="new")]}
    together = await asyncio.gather(*(provider.identify(token(OTHER_RSA, kid="new")) for _ in range(5)))
    assert len(together) == 5
    assert jwks.asked == 2, "those that wait for it share it"
    monkeypatch.undo()
    with pytest.raises(InvalidToken):
        await provider.identify(token())


@pytest.mark.anyio
async def test_a_key_that_was_withdrawn_is_used_for_a_while_only(
    jwks: Jwks, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    jwks.document = {"keys": [jwk(OTHER_RSA, "RS256", kid="new")]}
    await provider.identify(token())
    monkeypatch.setattr(room, "JWKS_RETRY_S", 0)
    monkeypatch.setattr(room, "JWKS_LIFE_S", 0)
    await provider.identify(token())  # it never waits for a fetch, and starts one
    while jwks.asked < 2:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(room, "JWKS_RETRY_S", 100)
    assert isinstance(provider, JwksProvider)
    await provider.refresh()  # the one under way
    with pytest.raises(InvalidToken):
        await provider.identify(token())


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["500", "redirect", "large", "broken", "slow"])
async def test_the_keys_at_hand_go_on_while_the_provider_is_away(
    jwks: Jwks, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(room, "JWKS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(room, "JWKS_RETRY_S", 0)
    monkeypatch.setattr(room, "JWKS_LIFE_S", 0)
    async with open_jwks_provider(jwks.url, ISSUER, AUDIENCE) as provider:
        jwks.fault = fault
        jwks.document = {"keys": [jwk(OTHER_RSA, "RS256", kid="new")]}
        with pytest.raises(InvalidToken):
            await provider.identify(token(OTHER_RSA, kid="new"))
        assert jwks.asked >= 2
        assert (await provider.identify(token())).subject == "alice"


@pytest.mark.anyio
async def test_a_start_does_not_depend_on_the_provider(jwks: Jwks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "JWKS_RETRY_S", 0)
    jwks.fault = "500"
    async with open_jwks_provider(jwks.url, ISSUER, AUDIENCE) as provider:
        with pytest.raises(ProviderUnavailable):
            await provider.identify(token())
        jwks.fault = ""
        assert (await provider.identify(token())).subject == "alice"


# ---------------------------------------------------------------------------------------------------------------
# The service with a provider


def bearer(made: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {made}"}


def test_a_service_with_a_provider_is_closed_and_takes_its_tokens(service: Callable[..., Service], jwks: Jwks) -> None:
    running = service(JWT_JWKS_URL=jwks.url, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)
    assert f"access: API keys, and JWTs of {ISSUER}" in running.log
    threads = f"{running.url}/api/threads"
    assert requests.get(threads, timeout=10).status_code == 401
    assert requests.get(threads, headers=bearer(token(OTHER_RSA)), timeout=10).status_code == 401
    may_do_nothing = requests.get(threads, headers=bearer(token()), timeout=10)
    assert (may_do_nothing.status_code, may_do_nothing.json()["code"]) == (403, "insufficient_scope")
    both = bearer(token(scope="chat read"))
    made = chat(running.url, "Hello", headers=both, thread_id="t")
    assert made.last["saved"]
    listed = requests.get(threads, headers=both, timeout=10).json()["threads"]
    assert [thread["thread_id"] for thread in listed] == ["t"]
    assert requests.get(threads, headers=bearer(token(sub="bob", scp=["read"])), timeout=10).json()["threads"] == []
    limited = bearer(token(scope="openid chat"))
    assert chat(running.url, "Hello", headers=limited, thread_id="u").status == 200
    refused = requests.get(threads, headers=limited, timeout=10)
    assert refused.status_code == 403
    assert 'error="insufficient_scope", scope="read"' in refused.headers["www-authenticate"]
    stream_token = requests.post(f"{running.url}/api/stream-tokens", headers=limited, timeout=10).json()["access_token"]
    assert request("GET", f"{running.url}/chat?message=Hello&access_token={stream_token}").last["saved"]
    in_query = requests.get(f"{running.url}/chat?message=Hello&access_token={token()}", timeout=10)
    assert in_query.status_code == 401


def test_a_service_with_a_public_key(service: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(PUBLIC_PEM)
    for setting in (str(tmp_path / "key.pem"), PUBLIC_PEM, PUBLIC_PEM.replace("\n", "\\n")):
        running = service(JWT_PUBLIC_KEY=setting, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)
        answer = requests.get(f"{running.url}/api/threads", headers=bearer(token(scope="read")), timeout=10)
        assert answer.status_code == 200
        assert running.stop() == 0


def test_while_nothing_is_known_of_the_providers_keys_the_answer_is_503(
    service: Callable[..., Service], jwks: Jwks
) -> None:
    jwks.fault = "500"
    running = service(JWT_JWKS_URL=jwks.url, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)
    answer = requests.get(f"{running.url}/api/threads", headers=bearer(token()), timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert "retry-after" in answer.headers


def test_the_threads_of_one_issuer_are_not_those_of_another(service: Callable[..., Service], database_url: str) -> None:
    """The same person's name at another provider, which is configured later on the same database."""
    other_issuer = "https://other.example"
    keys = {"JWT_AUDIENCE": AUDIENCE, "JWT_PUBLIC_KEY": PUBLIC_PEM}

    def threads(running: Service, issuer: str) -> list[str]:
        headers = bearer(token(iss=issuer, scope="chat read"))
        chat(running.url, "Hello", headers=headers, thread_id=issuer.rpartition("/")[2] or "first")
        listed = requests.get(f"{running.url}/api/threads", headers=headers, timeout=10).json()["threads"]
        return sorted(thread["thread_id"] for thread in listed)

    first = service(JWT_ISSUER=ISSUER, **keys)
    assert threads(first, ISSUER) == ["first"]
    assert first.stop() == 0
    second = service(JWT_ISSUER=other_issuer, **keys)
    assert "another issuer was configured here before; the owners of this one begin with jwt2:" in second.log
    assert threads(second, other_issuer) == ["other.example"]
    assert requests.get(f"{second.url}/api/threads", headers=bearer(token(scope="read")), timeout=10).status_code == 401
    assert second.stop() == 0
    back = service(JWT_ISSUER=ISSUER, **keys)
    assert threads(back, ISSUER) == ["first"]
    owners = rows(database_url, "SELECT DISTINCT owner FROM threads ORDER BY owner")
    assert [row["owner"] for row in owners] == ["jwt2:alice", "jwt:alice"]


@pytest.mark.anyio
async def test_issuers_that_start_at_once_get_a_number_each_and_keep_it(store: Store) -> None:
    issuers = [f"https://{number % 5}.example" for number in range(40)]
    prefixes = await asyncio.gather(*(owner_prefix(store.fetch, issuer) for issuer in issuers))
    by_issuer = dict(zip(issuers, prefixes, strict=True))
    assert sorted(by_issuer.values()) == ["jwt2:", "jwt3:", "jwt4:", "jwt5:", "jwt:"]
    assert [by_issuer[issuer] for issuer in issuers] == prefixes
    assert [await owner_prefix(store.fetch, issuer) for issuer in issuers] == prefixes


@pytest.mark.anyio
async def test_a_provider_that_has_moved_keeps_its_owners_and_no_number_is_given_twice(store: Store) -> None:
    old, new, third = "https://old.example", "https://new.example", "https://third.example"
    assert await store.fetch(MOVE_ISSUER, old, new) == []
    assert await owner_prefix(store.fetch, old) == "jwt:"
    assert await owner_prefix(store.fetch, new) == "jwt2:", "it started too early"
    for _ in range(2):
        assert len(await store.fetch(MOVE_ISSUER, old, new)) == 1
    assert await owner_prefix(store.fetch, new) == await owner_prefix(store.fetch, old) == "jwt:"
    assert await owner_prefix(store.fetch, third) == "jwt3:"
    await store.fetch(MOVE_ISSUER, new, "https://newest.example")
    assert await owner_prefix(store.fetch, "https://newest.example") == "jwt:"
    assert await owner_prefix(store.fetch, "https://last.example") == "jwt5:"


def test_the_command_lists_issuers_and_moves_one(service: Callable[..., Service], database_url: str) -> None:
    none = command("issuers", "--moved", ISSUER, "https://new.example", database_url=database_url)
    assert none.returncode != 0
    assert f"No JWTs of {ISSUER} were ever accepted here" in none.stderr
    service(JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, JWT_PUBLIC_KEY=PUBLIC_PEM)
    assert command("issuers", database_url=database_url).stdout == f"OWNERS  ISSUER\njwt:…   {ISSUER}\n"
    moved = command("issuers", "--moved", ISSUER, "https://new.example", database_url=database_url)
    assert moved.stdout.splitlines()[1:] == [f"jwt:…   {ISSUER}", "jwt:…   https://new.example"]


ALL = {"JWT_JWKS_URL": "https://id.example/jwks", "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}


@pytest.mark.parametrize(
    ("env", "names"),
    [
        (ALL | {"JWT_AUDIENCE": ""}, "JWT_AUDIENCE"),
        (ALL | {"JWT_ISSUER": ""}, "JWT_ISSUER"),
        (ALL | {"JWT_JWKS_URL": ""}, "JWT_JWKS_URL or JWT_PUBLIC_KEY"),
        (ALL | {"JWT_PUBLIC_KEY": PUBLIC_PEM}, "JWT_JWKS_URL and JWT_PUBLIC_KEY"),
        (ALL | {"JWT_JWKS_URL": "http://id.example/jwks"}, "JWT_JWKS_URL must be an https"),
        (ALL | {"JWT_JWKS_URL": "http://127.0.0.1.example/jwks"}, "JWT_JWKS_URL must be an https"),
        (ALL | {"JWT_JWKS_URL": "file:///etc/jwks"}, "JWT_JWKS_URL must be an https"),
        ({"JWT_PUBLIC_KEY": "/nowhere/key.pem"}, "JWT_PUBLIC_KEY must be a public key in PEM"),
        ({"ALLOW_ANONYMOUS": "yes"}, "ALLOW_ANONYMOUS must be 1 or 0"),
    ],
)
def test_half_a_configuration_stops_the_start(env: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        Settings.from_env(env)


def test_a_whole_one_does_not() -> None:
    assert Settings.from_env(ALL).jwt_jwks_url == ALL["JWT_JWKS_URL"]
    for url in ("http://localhost:1/jwks", "http://[::1]:1/jwks", "http://127.0.0.1/jwks"):
        assert Settings.from_env(ALL | {"JWT_JWKS_URL": url}).jwt_jwks_url == url
