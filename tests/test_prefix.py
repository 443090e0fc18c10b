"""The sub-path of a request: whose word counts, and in which form."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
from conftest import ROOT, Service
from hypothesis import given
from hypothesis import strategies as st
from sse_client import chat
from uvicorn import Config
from uvicorn import Server as Uvicorn

from web.prefix import path_below, prefix_of, trusted_proxies

PROXY = ("10.0.0.7", 4711)
SEGMENTS = st.text("aZ09._~-", min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))


def peer(address: object) -> Any:
    return SimpleNamespace(get_extra_info=lambda name: address if name == "peername" else None)


def told(forwarded: str | None, address: object = PROXY, trusted: object = ("10.0.0.7",), root_path: str = "") -> str:
    return prefix_of({"root_path": root_path}, forwarded, peer(address), cast(Any, trusted))


@given(st.lists(SEGMENTS, min_size=1, max_size=8), st.booleans())
def test_a_prefix_of_plain_segments_is_taken(segments: list[str], slash: bool) -> None:  # noqa: FBT001  # hypothesis
    prefix = "/" + "/".join(segments)
    assert told(prefix + "/" * slash) == prefix


BAD = [
    *("", "/", "//", "//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "evil.example"),
    *(
        "/a//b",
        "//a",
        "/a/..",
        "/../a",
        "/.",
        "/a/./b",
        "/a b",
        "/a\tb",
        "/a\r\nX: y",
        "/%2e%2e",
        "/%2f%2fevil",
        "/a?b",
    ),
    *(
        "/a#b",
        "/a;b",
        "/a:b",
        "/@evil.example",
        "/a, /b",
        "/é",
        "/" + "a" * 65,
        "/a" * 9,
        "/a//",
        "javascript:x",
        "/a\n",
    ),
]


@pytest.mark.parametrize("forwarded", BAD)
def test_a_prefix_that_may_lead_elsewhere_is_not(forwarded: str) -> None:
    assert told(forwarded) == ""


@given(st.text(st.characters(max_codepoint=255), max_size=30))
def test_whatever_is_taken_begins_a_path_of_the_same_host(forwarded: str) -> None:
    location = told(forwarded) + "/debug"
    resolved = requests.compat.urljoin("https://www.example.com/x", location)
    assert resolved == "https://www.example.com" + location
    assert location.isascii()
    assert location.isprintable()
    assert "//" not in location
    assert "/." not in location.replace("/..", "/.") or "/./" not in location


def test_the_prefix_of_a_stranger_is_not_taken() -> None:
    for address in (("10.0.0.8", 1), ("", 1), "", None, "/run/socket"):
        assert told("/draft", address) == ""
    assert prefix_of({}, "/draft", None, ("10.0.0.7",)) == ""
    assert told("/draft", ("fd00::1", 1, 0, 0), ("fd00::1",)) == "/draft"


def test_the_root_path_of_the_server_comes_first() -> None:
    assert told("/other", root_path="/draft") == "/draft"
    assert told("//evil", root_path="/draft/") == "/draft"
    assert told(None, root_path="/a b") == "/a%20b"


@pytest.mark.parametrize(
    ("root_path", "path", "below"),
    [
        ("", "/chat", "/chat"),
        ("/draft", "/draft/chat", "/chat"),
        ("/draft", "/draft", "/"),
        ("/draft", "/draft/", "/"),
        ("/draft/", "/draft//chat", "/chat"),  # as uvicorn joins them
        ("/draft", "/drafts/chat", "/drafts/chat"),
        ("/draft", "/chat", "/chat"),  # of a server that leaves it out
        ("/api", "/api/api/chat", "/api/chat"),
    ],
)
def test_the_path_is_the_one_below_the_root_path(root_path: str, path: str, below: str) -> None:
    assert path_below({"root_path": root_path, "path": path}) == below


def test_the_proxies_are_those_of_uvicorn() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        pass

    def server(**settings: Any) -> Uvicorn:
        config = Config(app, **settings)
        config.load()
        return Uvicorn(config)

    assert "127.0.0.1" in trusted_proxies(server())
    assert "10.0.0.7" not in trusted_proxies(server())
    assert "10.0.0.7" in trusted_proxies(server(forwarded_allow_ips="10.0.0.0/8"))
    assert None in trusted_proxies(server(forwarded_allow_ips="*"))
    assert "127.0.0.1" not in trusted_proxies(server(proxy_headers=False))
    assert "127.0.0.1" not in trusted_proxies(None)


def test_below_the_root_path_of_uvicorn_everything_is_found(service: Callable[..., Service]) -> None:
    """The proxy takes the sub-path away, and uvicorn puts it before the path."""
    running = service(UVICORN_ROOT_PATH="/draft")  # as --root-path
    root = requests.get(f"{running.url}/", allow_redirects=False, timeout=10)
    assert (root.status_code, root.headers["Location"]) == (302, "/draft/debug")
    assert requests.get(f"{running.url}/debug", timeout=10).status_code == 200
    document = requests.get(f"{running.url}/openapi.json", timeout=10).json()
    assert document == json.loads((ROOT / "web/openapi.json").read_text()) | {"servers": [{"url": "/draft"}]}
    stream = chat(running.url, "Hi", headers={"X-Forwarded-Prefix": "/other"})
    assert stream.headers["location"] == f"/draft/api/runs/{stream.run_id}/events"


def test_only_a_trusted_proxy_names_the_prefix(service: Callable[..., Service]) -> None:
    headers = {"X-Forwarded-Prefix": "/draft", "X-Forwarded-For": "203.0.113.9"}
    for allowed, expected in (("127.0.0.1", "/draft/debug"), ("10.0.0.7", "/debug")):
        running = service(FORWARDED_ALLOW_IPS=allowed)
        answer = requests.get(f"{running.url}/", headers=headers, allow_redirects=False, timeout=10)
        assert answer.headers["Location"] == expected
        assert answer.headers["Cache-Control"] == "no-store"
