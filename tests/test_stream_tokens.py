"""The tokens of an EventSource: one use, the resumption of their own run, and nothing after its end was read."""

import asyncio
import http.client
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from conftest import Service
from openai_server import OpenAIServer, finish, text, wait
from sse_client import chat, frames, request
from test_access import (
    GUARDED,
    NOWHERE,
    Key,
    Link,
    Start,
    closed_access,
    execute,
    new_key,
    send,
    until,
)

from access.credentials import Caller, Unauthorized
from access.stream_tokens import THE_END, StreamTokens, TokenStream
from store import Store, StoreUnavailable

pytestmark = pytest.mark.anyio


def stream_token(service: Service, key: Key) -> str:
    answer = send(service, "POST", "/api/stream-tokens", key.headers)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["expires_in"] == 60
    token: str = body["access_token"]
    return token


@dataclass
class Reader:
    """A stream that is read frame by frame, as an EventSource does, whose connection may break."""

    url: str
    last_id: str | None = None
    ids: list[str] = field(default_factory=list)
    said: str = ""
    _opened: list[http.client.HTTPConnection | http.client.HTTPResponse] = field(default_factory=list)

    def connect(self) -> int:
        """Gives the status."""
        parts = self.url.removeprefix("http://").partition("/")
        self.close()
        connection = http.client.HTTPConnection(parts[0], timeout=60)
        headers = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        connection.request("GET", f"/{parts[2]}", headers=headers)
        answer = connection.getresponse()
        self._opened += [answer, connection]
        self._frames = frames(answer)
        return answer.status

    def read(self, words: str) -> None:
        """Until these words have come, all told."""
        while words not in self.said:
            lines = next(self._frames)
            self.last_id = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
            self.ids.append(self.last_id)
            [data] = [line for line in lines if line.startswith("data: ")]
            if '"content":"' in data:
                self.said += data.partition('"content":"')[2].partition('"')[0]
            if '"type":"end"' in data:
                self.said += "THE END"

    def is_cut(self) -> bool:
        """Wait for the end of the connection; whether the run's last frame was missing."""
        try:
            return not any('"type":"end"' in "".join(lines) for lines in self._frames)
        except (http.client.HTTPException, OSError, AssertionError):
            return True

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        self._opened.clear()

    @property
    def run_id(self) -> str:
        return self.ids[0].partition(":")[0]


@pytest.fixture
def readers() -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def reader(url: str, last_id: str | None = None) -> Reader:
        made.append(Reader(url, last_id))
        return made[-1]

    yield reader
    for each in made:
        each.close()


@pytest.fixture
def gates(openai: OpenAIServer) -> list[threading.Event]:
    """The model says "One ", and the next words when the next gate opens."""
    gates = [threading.Event(), threading.Event()]
    openai.reply(text("One "), wait(gates[0]), text("two "), wait(gates[1]), text("three"), finish())
    return gates


def position_of(database_url: str) -> tuple[int, int | None, bool]:
    [row] = execute(database_url, "SELECT streams, position, finished FROM stream_tokens")
    return row["streams"], row["position"], row["finished"]


def test_a_stream_token_starts_one_stream_and_resumes_it_exactly_until_its_end(
    service: Start,
    openai: OpenAIServer,
    database_url: str,
    gates: list[threading.Event],
    readers: Callable[..., Reader],
) -> None:
    key = new_key(database_url, "a")
    running = service(openai=openai)
    token = stream_token(running, key)
    url = f"{running.url}/chat?message=Hello&thread_id=t&access_token={token}"
    reader = readers(url)
    assert reader.connect() == 200
    reader.read("One ")
    assert request("GET", url).status == 401, "one use"
    events = f"{running.url}/api/runs/{reader.run_id}/events?access_token={token}"
    assert request("GET", events).status == 401, "without a position"
    reader.close()
    until(lambda: position_of(database_url) == (1, 4, False))
    for beyond in (5, 8, 10**14, "end"):
        for path in (url, events):
            headers = {"Last-Event-ID": f"{reader.run_id}:{beyond}"}
            assert request("GET", path, headers=headers).status == 401, "beyond the last position sent"
    assert position_of(database_url) == (1, 4, False)
    assert reader.connect() == 200
    gates[0].set()
    reader.read("two ")
    reader.close()
    until(lambda: position_of(database_url) == (2, 8, False))
    reader.url = events
    assert reader.connect() == 200
    gates[1].set()
    reader.read("THE END")
    assert reader.said == "One two threeTHE END", "nothing twice, and no gap"
    for path in (url, events):
        for place in ("0", "4", "13", "end"):
            headers = {"Last-Event-ID": f"{reader.run_id}:{place}"}
            assert request("GET", path, headers=headers).status == 401, "its end was read"
        assert request("GET", path).status == 401
    until(lambda: position_of(database_url) == (3, THE_END, True))
    other = chat(running.url, "Other", headers=key.headers)
    assert request("GET", url, headers={"Last-Event-ID": other.ids[1]}).status == 401, "its own run alone"
    threads = send(running, "GET", "/api/threads", key.headers).json()["threads"]
    assert len(threads) == 2
    assert token not in running.log
    [row] = execute(database_url, "SELECT * FROM stream_tokens")
    assert token not in repr(row)


def test_a_token_that_still_reads_its_own_run_opens_no_other(
    service: Start,
    openai: OpenAIServer,
    database_url: str,
    gates: list[threading.Event],
    readers: Callable[..., Reader],
) -> None:
    key = new_key(database_url, "a")
    running = service(openai=openai)
    reader = readers(f"{running.url}/chat?message=Hello&access_token={stream_token(running, key)}")
    assert reader.connect() == 200
    reader.read("One ")
    other = chat(running.url, "Other", headers=key.headers)
    token = reader.url.partition("access_token=")[2]
    events = f"{running.url}/api/runs/{other.run_id}/events?access_token={token}"
    for place in (f"{other.run_id}:0", f"{reader.run_id}:0", f"{reader.run_id}:4", f"{NOWHERE}:0", "x"):
        assert request("GET", events, headers={"Last-Event-ID": place}).status == 401
    for gate in gates:
        gate.set()


@pytest.mark.parametrize("path", ["chat", "events"])
def test_a_used_url_as_from_a_log_opens_nothing_at_once_after_its_end(
    service: Start, database_url: str, path: str
) -> None:
    """Also while the position is on its way to the database, and at another replica when it is there."""
    key = new_key(database_url, "a")
    replicas = [service(), service()]
    made = chat(replicas[0].url, "Hello", headers=key.headers)
    for _ in range(10):
        token = stream_token(replicas[0], key)
        place = {"chat": "chat?message=Hello&", "events": f"api/runs/{made.run_id}/events?"}[path]
        url = f"/{place}access_token={token}"
        read = request("GET", replicas[0].url + url)
        assert read.status == 200
        headers = {"Last-Event-ID": f"{read.run_id}:0"}
        assert [request("GET", replicas[0].url + url, headers=headers).status for _ in range(3)] == [401] * 3
        until(lambda: execute(database_url, "SELECT 1 FROM stream_tokens WHERE NOT finished") == [])
        assert request("GET", replicas[1].url + url, headers=headers).status == 401


def test_a_second_reader_with_the_same_token_ends_the_first_and_not_the_run(
    service: Start,
    openai: OpenAIServer,
    database_url: str,
    gates: list[threading.Event],
    readers: Callable[..., Reader],
) -> None:
    """As an EventSource comes back while the service has not noticed that its connection broke."""
    key = new_key(database_url, "a")
    running = service(openai=openai)
    token = stream_token(running, key)
    first = readers(f"{running.url}/chat?message=Hello&on_disconnect=cancel&access_token={token}")
    assert first.connect() == 200
    first.read("One ")
    second = readers(first.url, first.last_id)
    assert second.connect() == 200
    assert first.is_cut()
    third = readers(first.url, f"{first.run_id}:1")
    assert third.connect() == 200
    assert second.is_cut()
    assert second.ids == []
    for gate in gates:
        gate.set()
    third.read("THE END")
    assert third.said == "ne two threeTHE END"
    assert position_of(database_url)[0] == 3
    until(lambda: position_of(database_url)[2])


def test_at_another_replica_a_stream_goes_on_exactly_while_the_first_is_half_open(
    service: Start,
    openai: OpenAIServer,
    database_url: str,
    gates: list[threading.Event],
    readers: Callable[..., Reader],
) -> None:
    """The first replica writes the end to a connection that is dead. That is no sign that it was read."""
    key = new_key(database_url, "a")
    replicas = [service(openai=openai), service(openai=openai)]
    url = f"/chat?message=Hello&access_token={stream_token(replicas[0], key)}"
    reader = readers(replicas[0].url + url)
    assert reader.connect() == 200
    reader.read("One ")
    half_open, reader = reader, replace(reader, url=replicas[1].url + url, _opened=[])
    with ThreadPoolExecutor(1) as threads:
        coming_back = threads.submit(reader.connect)  # it waits for the run's end, in the other process
        until(lambda: position_of(database_url)[0] == 2)
        for gate in gates:
            gate.set()
        assert coming_back.result() == 200
    reader.read("THE END")
    assert reader.said == "One two threeTHE END"
    until(lambda: position_of(database_url) == (2, THE_END, True))
    for replica in replicas:
        assert request("GET", replica.url + url, headers={"Last-Event-ID": f"{reader.run_id}:0"}).status == 401
    half_open.close()
    reader.close()


def test_of_many_requests_with_a_token_at_once_one_gets_a_stream(service: Start, database_url: str) -> None:
    key = new_key(database_url, "a")
    running = service()
    url = f"{running.url}/chat?message=Hello&access_token={stream_token(running, key)}"
    with ThreadPoolExecutor(20) as threads:
        statuses = sorted(threads.map(lambda _: request("GET", url).status, range(20)))
    assert statuses == [200] + [401] * 19
    assert len(send(running, "GET", "/api/threads", key.headers).json()["threads"]) == 1


def test_a_stream_token_follows_a_run(service: Start, database_url: str) -> None:
    key, theirs = new_key(database_url, "a"), new_key(database_url, "b")
    running = service()
    made = chat(running.url, "Hello", headers=key.headers)
    url = f"{running.url}/api/runs/{made.run_id}/events?access_token="
    assert request("GET", url + stream_token(running, theirs)).status == 404
    token = stream_token(running, key)
    assert request("GET", url + token).ids == made.ids
    assert request("GET", url + token).status == 401
    part = request("GET", f"{url}{stream_token(running, key)}", headers={"Last-Event-ID": made.ids[1]})
    assert part.ids == made.ids[2:], "a new token goes on where another stream broke off"
    only_chat = stream_token(running, new_key(database_url, "a", ["chat"]))
    assert request("GET", url + only_chat).status == 403, "a token can do what its key can"


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_stream_token_ends_with_its_key(
    service: Start,
    openai: OpenAIServer,
    database_url: str,
    gates: list[threading.Event],
    readers: Callable[..., Reader],
    end: str,
) -> None:
    key = new_key(database_url, "a", expires_at=datetime.now(UTC) + timedelta(hours=1))
    running = service(openai=openai)
    unused, used = stream_token(running, key), stream_token(running, key)
    url = f"{running.url}/chat?message=Hello&access_token="
    reader = readers(url + used)
    assert reader.connect() == 200
    reader.read("One ")
    change = {"revoked": "revoked_at = now()", "expired": "expires_at = now()"}[end]
    execute(database_url, f"UPDATE access_keys SET {change}")
    assert request("GET", url + unused).status == 401
    assert request("GET", url + used, headers={"Last-Event-ID": reader.ids[0]}).status == 401
    for gate in gates:
        gate.set()
    reader.read("THE END")  # a stream that has begun goes on


def test_a_stream_token_ends_after_a_minute_and_may_resume_no_longer_than_a_run_takes(
    service: Start,
    openai: OpenAIServer,
    database_url: str,
    gates: list[threading.Event],
    readers: Callable[..., Reader],
) -> None:
    key = new_key(database_url, "a")
    running = service(openai=openai, RUN_TIMEOUT_S="100")
    token = stream_token(running, key)
    [row] = execute(database_url, "SELECT expires_at - now() AS life FROM stream_tokens")
    assert timedelta(seconds=50) < row["life"] <= timedelta(seconds=60)
    reader = readers(f"{running.url}/chat?message=Hello&access_token={token}")
    assert reader.connect() == 200
    reader.read("One ")
    [row] = execute(database_url, "SELECT expires_at - now() AS life FROM stream_tokens")
    assert timedelta(seconds=140) < row["life"] <= timedelta(seconds=160)
    late = stream_token(running, key)
    execute(database_url, "UPDATE stream_tokens SET expires_at = now() - interval '1 s'")
    assert request("GET", f"{running.url}/chat?message=Hello&access_token={late}").status == 401
    assert request("GET", reader.url, headers={"Last-Event-ID": reader.ids[0]}).status == 401
    stream_token(running, key)
    [row] = execute(database_url, "SELECT count(*) AS count FROM stream_tokens")
    assert row["count"] == 1, "the old ones are deleted"
    for gate in gates:
        gate.set()


def test_a_stream_token_is_good_for_nothing_else(service: Start, database_url: str) -> None:
    key = new_key(database_url, "a")
    running = service()
    for method, template, _ in GUARDED:
        path = re.sub(r"\{\w+\}", NOWHERE, template)
        token = stream_token(running, key)
        assert send(running, method, path, {"Authorization": f"Bearer {token}"}).status_code == 401
        if template not in ("/chat", "/api/runs/{run_id}/events"):
            assert send(running, method, f"{path}?access_token={token}", {}).status_code == 401
    twice = send(running, "GET", f"/chat?message=Hi&access_token={stream_token(running, key)}", key.headers)
    assert twice.status_code == 400
    assert twice.headers["www-authenticate"] == 'Bearer realm="draftstream", error="invalid_request"'
    assert send(running, "GET", "/api/threads", key.headers).json()["threads"] == []


async def test_of_many_redemptions_at_once_one_succeeds(store: Store) -> None:
    replicas = [closed_access(Link(store)) for _ in range(4)]
    for _ in range(10):
        token, _ = await replicas[0].new_stream_token(Caller("a", frozenset(["chat"])))
        results = await asyncio.gather(
            *(replica.caller(None, token) for replica in replicas for _ in range(2)), return_exceptions=True
        )
        [caller] = [result for result in results if isinstance(result, Caller)]
        assert caller.owner == "a"
        assert sum(isinstance(result, Unauthorized) for result in results) == 7


async def test_a_stream_token_lives_no_longer_than_what_it_was_made_with(store: Store) -> None:
    access = closed_access(Link(store))
    caller = Caller("jwt:a", frozenset(["chat"]), expires_at=time.time() + 30)
    token, life_s = await access.new_stream_token(caller)
    assert 10 < life_s <= 30
    redeemed = await access.caller(None, token)
    assert (redeemed.owner, redeemed.scopes) == ("jwt:a", frozenset(["chat"]))
    assert token not in repr(redeemed)


@pytest.mark.parametrize("token", ["", "\0", "\ud800", "st_", "é" * 10_000])
async def test_a_strange_stream_token_is_just_wrong(store: Store, token: str) -> None:
    with pytest.raises(Unauthorized):
        await closed_access(Link(store)).caller(None, token, NOWHERE)


# ---------------------------------------------------------------------------------------------------------------
# The rule, against a model of it


@dataclass
class Open:
    """A stream of a replica: how far it has sent, and whether it was cut for another one."""

    replica: int
    number: int
    sent: int | None
    stream: TokenStream | None = None
    was_cut: bool = False


class Rule:
    """One token at some replicas: what it may do, in a few lines, beside what it does."""

    def __init__(self, store: Store, seed: int) -> None:
        self.random = random.Random(seed)
        self.replicas = [StreamTokens(store.fetch, 60) for _ in range(2)]
        self.streams: list[Open] = []
        self.stored: int | None = None  # the newest stream's position; None while it is open, or its process was killed
        self.finished = False

    async def begin(self, token: str) -> None:
        self.token = token
        caller = await self.replicas[0].caller(token, None, None)
        await self.open(0, caller, 0)

    async def open(self, replica: int, caller: Caller, sent: int) -> None:
        opened = Open(replica, len(self.streams) + 1, sent)
        assert caller.stream_token is not None

        def cut() -> None:
            opened.was_cut = True

        opened.stream = await self.replicas[replica].open(caller.stream_token, "r", lambda: opened.sent, cut)
        assert opened.stream is not None
        assert opened.stream.number == opened.number
        for other in self.streams:
            if other.replica == replica and other.stream is not None:
                assert other.was_cut
        self.streams.append(opened)
        self.stored = None

    def may_resume(self, replica: int, seen: int) -> bool:
        newest = self.streams[-1]
        if self.finished:
            return False
        if newest.stream is not None and newest.replica == replica:
            return seen <= (THE_END if newest.sent is None else newest.sent)
        return self.stored is None or seen <= self.stored

    async def step(self) -> None:
        do = self.random.choice([self.resume, self.resume, self.send, self.leave, self.read_to_the_end, self.kill])
        await do()

    async def resume(self) -> None:
        replica, seen = self.random.randrange(2), self.random.choice([0, 3, 7, 20, None])
        place = THE_END if seen is None else seen
        expected = self.may_resume(replica, place)
        try:
            caller = await self.replicas[replica].caller(self.token, "r", seen)
        except Unauthorized:
            assert not expected
            return
        assert expected
        assert caller.stream_token is not None
        assert caller.stream_token.resumes == "r"
        if seen is None:
            self.finished = True
        else:
            await self.open(replica, caller, seen)

    async def send(self) -> None:
        for stream in self.streams:
            if stream.sent is not None:
                stream.sent += self.random.randrange(3)

    async def leave(self) -> None:
        await self.close(finished=False)

    async def read_to_the_end(self) -> None:
        await self.close(finished=True)

    async def close(self, *, finished: bool) -> None:
        here = [stream for stream in self.streams if stream.stream is not None]
        if not here:
            return
        closing = self.random.choice(here)
        assert closing.stream is not None
        if finished:
            closing.sent = None
        self.replicas[closing.replica].close(closing.stream, finished=finished)
        closing.stream = None
        if closing is self.streams[-1] and not self.finished:
            self.finished = finished
            self.stored = THE_END if closing.sent is None else closing.sent
        await self.replicas[closing.replica].aclose()

    async def kill(self) -> None:
        """A replica dies, and another one starts in its place."""
        replica = self.random.randrange(2)
        self.replicas[replica] = StreamTokens(self.replicas[replica]._fetch, 60)
        for stream in self.streams:
            if stream.replica == replica:
                stream.stream = None


@pytest.mark.parametrize("seed", range(30))
async def test_a_token_resumes_at_or_behind_the_position_last_sent_and_not_after_the_end(
    store: Store, seed: int
) -> None:
    rule = Rule(store, seed)
    token, _ = await rule.replicas[0].new(Caller("a", frozenset(["chat"])))
    await rule.begin(token)
    for _ in range(25):
        await rule.step()


async def test_a_process_remembers_an_end_that_the_database_did_not_take(store: Store) -> None:
    link = Link(store)
    tokens = StreamTokens(link.fetch, 60)
    token, _ = await tokens.new(Caller("a", frozenset(["chat"])))
    redeemed = (await tokens.caller(token, None, None)).stream_token
    assert redeemed is not None
    stream = await tokens.open(redeemed, "r", lambda: None, lambda: None)
    assert stream is not None
    link.cut = True
    tokens.close(stream, finished=True)
    await tokens.aclose()
    link.cut = False
    with pytest.raises(Unauthorized):
        await tokens.caller(token, "r", 0)


async def test_without_the_database_a_stream_goes_on_and_can_not_be_resumed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link(store)
    tokens = StreamTokens(link.fetch, 60)
    token, _ = await tokens.new(Caller("a", frozenset(["chat"])))
    redeemed = (await tokens.caller(token, None, None)).stream_token
    assert redeemed is not None
    link.cut = True
    assert await tokens.open(redeemed, "r", lambda: None, lambda: None) is None
    assert "run r can't be resumed with its stream token" in caplog.text
    with pytest.raises(StoreUnavailable):
        await tokens.caller(token, "r", 0)
    link.cut = False
    with pytest.raises(Unauthorized):
        await tokens.caller(token, "r", 0)


async def test_a_stream_costs_no_statement_for_a_token_or_a_frame(store: Store) -> None:
    link = Link(store)
    tokens = StreamTokens(link.fetch, 60)
    token, _ = await tokens.new(Caller("a", frozenset(["chat"])))
    redeemed = (await tokens.caller(token, None, None)).stream_token
    assert redeemed is not None
    position = 0
    stream = await tokens.open(redeemed, "r", lambda: position, lambda: None)
    assert stream is not None
    sent = link.sent
    for position in range(1000):
        assert stream.position == position
    tokens.close(stream, finished=False)
    await tokens.aclose()
    assert link.sent == sent + 1
