"""Reading a request: whatever arrives, it is understood or refused as the contract says, and nothing else is raised."""

import asyncio
import itertools
import json
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat.refusals import Refusal
from web import asgi
from web.asgi import Disconnected, Request, Response
from web.outlet import UNSENT_BYTES

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LATIN_1 = st.text(st.characters(max_codepoint=255))
PIECES_OF_A_QUERY = ["a", "b", "=", "&", "+", "%", "%2", "%26", "%3D", "%C3%A9", "%ff", "%zz", "%+1", "%%", "%00", "é"]
T = TypeVar("T")
JSON_TYPE = {"content-type": "application/json"}


def request(*pieces: bytes, headers: dict[str, str] | None = None, query: bytes = b"", cut: bool = False) -> Request:
    """A POST whose body comes in these pieces; `cut`: and then the client leaves."""
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": cut or number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]
    queue = iter([*messages, {"type": "http.disconnect"}])

    async def receive() -> MutableMapping[str, Any]:
        return next(queue)

    return Request("POST", "/api/chat", "1.1", JSON_TYPE | (headers or {}), query, receive)


def outcome(read: Callable[[], T]) -> T | Refusal:
    try:
        return read()
    except Refusal as refusal:
        return refusal


# ---------------------------------------------------------------------------------------------------------------
# The query


@given(st.dictionaries(TEXT, TEXT))
def test_a_query_is_what_was_put_into_it(parameters: dict[str, str]) -> None:
    assert request(query=urlencode(parameters).encode()).query() == parameters


@given(st.lists(st.sampled_from(PIECES_OF_A_QUERY)).map("".join).map(str.encode) | st.binary())
@example(b"a=%++")
def test_any_query_is_read_as_the_standard_library_does_or_refused(raw: bytes) -> None:
    parameters = outcome(request(query=raw).query)
    if isinstance(parameters, Refusal):
        assert parameters.code == "bad_query"
    else:
        assert list(parameters.items()) == parse_qsl(raw.decode(), keep_blank_values=True, errors="strict")


# ---------------------------------------------------------------------------------------------------------------
# The body


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b'{"a":', b'"b"', b"}", b"[", b"]", b"\xff"]), min_size=1))
def test_any_body_however_cut_is_json_or_refused(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    read = outcome(lambda: asyncio.run(request(*pieces).json(limit=100)))
    if isinstance(read, Refusal):
        assert read.code == ("body_too_large" if len(body) > 100 else "invalid_json")
    else:
        assert len(body) <= 100
        assert read == json.loads(body)


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_a_body_that_breaks_off_is_nobodys(pieces: list[bytes]) -> None:
    with pytest.raises(Disconnected):
        asyncio.run(request(*pieces, cut=True).json(limit=100))


@pytest.mark.parametrize("length", ["101", "9" * 18])
def test_a_body_that_says_it_is_too_large_is_not_waited_for(length: str) -> None:
    with pytest.raises(Refusal, match="more than 100 bytes") as refused:
        asyncio.run(request(headers={"content-length": length}, cut=True).json(limit=100))
    assert (refused.value.code, refused.value.members) == ("body_too_large", {"limit": 100})


@pytest.mark.parametrize("pieces", [[], itertools.repeat(b" ")], ids=["no byte", "a byte at a time, for ever"])
def test_a_slow_body_is_given_up(pieces: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_S", 0.02)
    rest = iter(pieces)

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(0)
        for piece in rest:
            return {"type": "http.request", "body": piece, "more_body": True}
        return await asyncio.Future()

    slow = Request("POST", "/api/chat", "1.1", JSON_TYPE, b"", receive)
    with pytest.raises(Refusal, match=r"did not arrive within 0\.02 seconds") as refused:
        asyncio.run(slow.json(limit=10**9))
    assert refused.value.code == "slow_body"


@given(LATIN_1 | st.sampled_from(["application/json;charset=utf-8", 'Application/JSON ; charset="UTF-8"']))
@example("application/json; charset=utf-16")
def test_any_content_type_is_json_or_refused(content_type: str) -> None:
    read = outcome(lambda: asyncio.run(request(b"1", headers={"content-type": content_type}).json(limit=100)))
    if isinstance(read, Refusal):
        assert read.code == "not_json"
    else:
        assert read == 1
        assert content_type.strip().lower().startswith("application/json")


# ---------------------------------------------------------------------------------------------------------------
# The headers


def from_scope(*headers: tuple[str, str]) -> Request:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    scope = {"method": "GET", "path": "/", "http_version": "1.1", "headers": raw, "query_string": b""}
    return Request.from_scope(scope, request().receive)


@given(LATIN_1 | st.lists(st.sampled_from(["http", "://", "[", "]", ":", "@", "/", "x", "null"])).map("".join))
@example("http://[")
def test_any_origin_but_our_own_is_foreign(origin: str) -> None:
    foreign = from_scope(("host", "x"), ("origin", origin)).foreign_origin
    assert foreign == (None if origin in ("http://x", "https://x", "http://x:80", "https://x:443") else origin)


def test_headers_without_end_are_refused_before_they_are_joined() -> None:
    with pytest.raises(Refusal) as refused:
        from_scope(("host", "x"), *[("a", "b")] * 40_000)
    assert refused.value.code == "headers_too_large"
    assert from_scope(("host", "x"), ("a", "b"), ("a", "c")).headers["a"] == "b, c"


# ---------------------------------------------------------------------------------------------------------------
# Writing without waiting


class Cycle:
    """A request's cycle as uvicorn has it: `send` waits while the client takes too little."""

    def __init__(self, *, unsent: int = 0, waits: bool = False) -> None:
        self.transport = self
        self.sent: list[bytes] = []
        self.aborted = False
        self._unsent = unsent
        self._waits = waits

    def get_protocol(self) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def abort(self) -> None:
        self.aborted = True

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self._waits:
            await asyncio.get_running_loop().create_future()
        self.sent.append(message["body"])


@pytest.mark.anyio
async def test_what_can_be_written_without_waiting_is() -> None:
    cycle = Cycle(unsent=100)
    response = Response(cycle.send)
    assert response.write_now(b"one")
    assert response.write_now(b"two")
    assert cycle.sent == [b"one", b"two"]


@pytest.mark.anyio
async def test_nothing_is_written_where_the_client_takes_too_little_or_the_server_is_not_known() -> None:
    slow = Cycle(unsent=UNSENT_BYTES + 1)
    assert not Response(slow.send).write_now(b"one")
    unknown = Cycle()

    async def send(message: MutableMapping[str, Any]) -> None:
        await unknown.send(message)

    assert not Response(send).write_now(b"one")
    assert slow.sent == unknown.sent == []


@pytest.mark.anyio
async def test_a_server_that_waits_all_the_same_loses_the_connection_and_holds_nobody_up() -> None:
    cycle = Cycle(waits=True)
    assert Response(cycle.send).write_now(b"one")
    assert cycle.aborted
