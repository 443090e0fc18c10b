"""Bad input: whatever comes over a socket, nothing is stored or run for it, and nothing of it stays behind.

`FUZZ_REQUESTS=100000 FUZZ_SEED=7 python -m pytest tests/test_bad_input.py` for more of it, or for other input.
"""

import base64
import http.client
import io
import itertools
import json
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import quote, quote_from_bytes

import asyncpg
import requests
from conftest import Service, rows, run
from openai_server import OpenAIServer, finish, text
from sse_client import Stream, chat, check, frames, take

from storage.pool import POOL_CONNECTIONS

Start = Callable[..., Service]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "400"))
SEED = int(os.environ.get("FUZZ_SEED", "20261124"))
CLIENTS = 8
PATIENCE_S = 30.0  # for an answer that must come
SILENCE_S = 0.3  # then no answer is expected any more to bytes that may be half a request

HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODY = b'{"message": "Hi"}'
IN_CHUNKS = b"11\r\n" + BODY + b"\r\n0\r\n\r\n"
RUN = b"/api/runs/00000000-0000-0000-0000-000000000000"


def get(path: bytes, headers: bytes = CLOSE, method: bytes = b"GET") -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n"


def post(body: bytes, headers: bytes = CLOSE, path: bytes = b"/api/chat") -> bytes:
    """With the length of the body."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + JSON + length + headers + b"\r\n" + body


def post_as(headers: bytes, rest: bytes = BODY) -> bytes:
    """With whatever length the headers tell."""
    return b"POST /api/chat HTTP/1.1\r\n" + HOST + JSON + headers + b"\r\n" + rest


def place(text: str) -> bytes:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=")


# ---------------------------------------------------------------------------------------------------------------
# The matrix of refusals, beside those of tests/test_service.py

MATRIX: list[tuple[bytes, int, str]] = [
    (get(b"/./chat?message=Hi"), 404, "not_found"),
    (get(b"/chat;a=b?message=Hi"), 404, "not_found"),
    (get(b"/%2e/chat?message=Hi"), 404, "not_found"),
    (get(b"/chat%0d%0aX:y?message=Hi"), 404, "not_found"),
    (get(b"/api/threads/..%2f..%2fetc%2fpasswd"), 404, "not_found"),
    (get(b"/api/threads/" + b"x" * 129), 404, "not_found"),
    (get(b"/api/threads/a%00b"), 404, "not_found"),
    (get(b"/api/threads/%ff"), 404, "not_found"),
    (get(b"/api/threads/%f0%9f%98%80"), 404, "not_found"),
    (get(b"/api/runs/" + b"-" * 36 + b"/events"), 404, "not_found"),
    (get(b"*", method=b"OPTIONS"), 404, "not_found"),
    (get(b"/chat?message=Hi", method=b"PUT"), 405, "method_not_allowed"),
    (get(b"/chat?message=Hi", method=b"TRACE"), 405, "method_not_allowed"),
    (get(b"/api/threads", method=b"PROPFIND"), 405, "method_not_allowed"),
    (get(b"/api/chat", method=b"PATCH"), 405, "method_not_allowed"),
    # The query
    (get(b"/chat?message=a%++b"), 400, "bad_query"),
    (get(b"/chat?message=a&mess%61ge=b"), 400, "bad_query"),
    (get(b"/chat?message=%ed%a0%80"), 400, "bad_query"),
    (get(b"/chat?message=+%09%0a"), 422, "invalid_request"),
    (get(b"/chat?message=a%1bb"), 422, "invalid_request"),
    (get(b"/chat?message=Hi&thread_id="), 422, "invalid_request"),
    (get(b"/chat?message=Hi&thread_id=..%2fx"), 422, "invalid_request"),
    (get(b"/chat?message=Hi&idempotency_key=a%20b"), 422, "invalid_request"),
    (get(b"/chat?message=" + b"x" * 60_000), 413, "message_too_long"),
    (get(b"/api/threads?limit=00000005099999999999"), 422, "invalid_request"),
    (get(b"/api/threads?limit=-1"), 422, "invalid_request"),
    (get(b"/api/threads?limit=%D9%A5"), 422, "invalid_request"),
    (get(b"/api/threads?cursor=" + place("0001-01-01T00:00:00+23:59 x")), 422, "invalid_request"),
    (get(b"/api/threads?cursor=" + place("2026-01-01 x")), 422, "invalid_request"),
    (get(b"/api/threads?cursor=" + place("2026-01-01T00:00:00+00:00 \0")), 422, "invalid_request"),
    (get(RUN + b"/events?after=-1"), 404, "not_found"),
    # The headers
    (get(b"/chat?message=Hi", CLOSE + b"Origin: http://[\r\n"), 403, "bad_origin"),
    (get(b"/chat?message=Hi", CLOSE + b"Origin: null\r\n"), 403, "bad_origin"),
    (get(b"/chat?message=Hi", CLOSE + b"Origin: \xff\r\n"), 403, "bad_origin"),
    (get(b"/chat?message=Hi", CLOSE + b"Authorization: Bearer \xff\r\n"), 401, "unauthorized"),
    (get(b"/chat?message=Hi", CLOSE + b"X: " + b"x" * 70_000 + b"\r\n"), 431, "headers_too_large"),
    (get(b"/chat?message=Hi", CLOSE + b"X: x\r\n" * 40_000), 431, "headers_too_large"),
    (post(BODY, CLOSE + b"Idempotency-Key: \xff\r\n"), 422, "invalid_request"),
    (post(BODY, CLOSE + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"), 422, "invalid_request"),
    (post(BODY, CLOSE + b"Idempotency-Key: " + b"x" * 256 + b"\r\n"), 422, "invalid_request"),
    (post(BODY, CLOSE + b"Content-Type: application/json\r\n"), 415, "not_json"),
    (post_as(CLOSE + b"Transfer-Encoding: gzip, chunked\r\n", IN_CHUNKS), 415, "not_json"),
    (get(b"/nope", CLOSE + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), 404, "not_found"),
    (get(b"/chat?message=Hi", CLOSE + b"Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n"), 400, "no_websockets"),
    # The body
    (post(b"null"), 422, "invalid_request"),
    (post(b"{}"), 422, "invalid_request"),
    (post(b'{"message": null}'), 422, "invalid_request"),
    (post(b'{"message": {"a": 1}}'), 422, "invalid_request"),
    (post(b'{"message": "Hi", "message": ""}'), 422, "invalid_request"),  # the last of two counts
    (post(b'{"message": "Hi", "idempotency_key": "x"}'), 422, "invalid_request"),
    (post(b'{"message": "Hi", "thread_id": "%s"}' % (b"x" * 500_000)), 422, "invalid_request"),
    (post(b'{"message": "Hi", "thread_id": "../x"}'), 422, "invalid_request"),
    (post(b'{"message": "Hi", "on_disconnect": true}'), 422, "invalid_request"),
    (post(b'{"message": "Hi", "message": '), 400, "invalid_json"),
    (post(b'{"message": "Hi"}\0'), 400, "invalid_json"),
    (post(b"{'message': 'Hi'}"), 400, "invalid_json"),
    (post('{"message": "Hi"}'.encode("utf-16")), 400, "invalid_json"),
    (post(b'{"message": "Hi"} {"message": "Hi"}'), 400, "invalid_json"),
    # A body that does not come: of a GET, too, which needs none
    (post_as(b"Content-Length: 50\r\n", b"{"), 408, "slow_body"),
    (post_as(CHUNKED, b"1\r\n{\r\n"), 408, "slow_body"),
    (get(b"/chat?message=Hi", b"Content-Length: 5\r\n") + b"abc", 408, "slow_body"),
    # Refused by the server itself
    (b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400, ""),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
    (b"BREW /chat?message=Hi HTTP/1.1\r\n" + HOST + b"\r\n", 400, ""),
    (b"GET /chat?message=Hi HTTP/1.2\r\n" + HOST + b"\r\n", 400, ""),
    (b"GET /chat?message=Hi HTTP/1.1\n" + b"Host: localhost\n\n", 400, ""),
    (b"GET http://x?message=Hi HTTP/1.1\r\n" + HOST + b"\r\n", 400, ""),
    (b"GET ?message=Hi HTTP/1.1\r\n" + HOST + b"\r\n", 400, ""),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, ""),  # TLS
    (get("/chat?message=é".encode()), 400, ""),
    (get(b"/chat?message=" + b"x" * 70_000), 400, ""),
    (get(b"/chat?message=Hi", b"X: a\r\n b\r\n"), 400, ""),
    (get(b"/chat?message=Hi", b"X: a\0b\r\n"), 400, ""),
    (get(b"/chat?message=Hi", b"X: a\x01b\r\n"), 400, ""),
    (get(b"/chat?message=Hi", b"X y: a\r\n"), 400, ""),
    (get(b"/chat?message=Hi", CHUNKED) + b"xyz\r\n", 400, ""),
]

# Lengths that two readers may read in two ways: all refused by the server, and the next request is not run.
FRAMINGS = [
    post_as(b"Content-Length: 17\r\n" + CHUNKED, IN_CHUNKS),
    post_as(CHUNKED + b"Content-Length: 17\r\n", IN_CHUNKS),
    post_as(b"Content-Length: 17\r\nContent-Length: 17\r\n"),
    post_as(b"Content-Length: 17\r\nContent-Length: 18\r\n"),
    post_as(b"Content-Length: 17, 17\r\n"),
    post_as(b"Content-Length: -1\r\n"),
    post_as(b"Content-Length: +17\r\n"),
    post_as(b"Content-Length: 0x11\r\n"),
    post_as(b"Content-Length: 1 7\r\n"),
    post_as(b"Content-Length: \r\n"),
    post_as(b"Content-Length : 17\r\n"),
    post_as(b"Content-Length: 99999999999999999999999\r\n"),
    post_as(b"Transfer-Encoding: xchunked\r\n", IN_CHUNKS),
    post_as(b"Transfer-Encoding: chunked, identity\r\n", IN_CHUNKS),
    post_as(b"Transfer-Encoding : chunked\r\n", IN_CHUNKS),
    post_as(b"Transfer-Encoding:\x0bchunked\r\n", IN_CHUNKS),
    post_as(CHUNKED, b"xyz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post_as(CHUNKED, b"-11\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post_as(CHUNKED, b"0x11\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post_as(CHUNKED, b"5\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post_as(CHUNKED, b"fffffffffffffffff\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post_as(CHUNKED, b"11\n" + BODY + b"\n0\n\n"),
]
MATRIX += [(framing + get(b"/chat?message=Hi"), 400, "") for framing in FRAMINGS]


def test_every_row_of_the_matrix_is_refused_and_leaves_nothing(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    running = service(openai=openai, app="counted_app:app")
    empty = stored(database_url)
    wrong = []
    for sent, status, code in MATRIX:
        with connect(running) as client:
            client.sendall(sent)
            [answer, *more] = answers(to_the_end(client))
        fault = refused_wrongly(answer, status, code) or (f"and {more}" if more else "")
        if fault:
            wrong.append(f"{sent[:200]!r}: {fault}")
    assert wrong == []
    assert openai.requests == []
    assert stored(database_url) == empty


def refused_wrongly(answer: Stream, status: int, code: str) -> str:
    """The fault of a refusal. One without a code of ours is the server's, in its own words."""
    expected = {"connection": "close"}
    if code:
        expected |= {"content-type": "application/problem+json"}
        expected |= {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        problem = {"type": "about:blank", "title": http.client.responses[status], "status": status, "code": code}
        if not isinstance(answer.problem, dict) or not problem.items() <= answer.problem.items():
            return f"{answer.status} {answer.problem}"
        if status == 422 and not all(
            error["pointer"] is not None and error["detail"] for error in answer.problem["errors"]
        ):
            return f"{answer.problem}"
    if answer.status != status or not expected.items() <= answer.headers.items():
        return f"{answer.status} {answer.headers}"
    needed = {401: "www-authenticate", 405: "allow"}.get(status)
    return f"no {needed}" if needed and needed not in answer.headers else ""


# ---------------------------------------------------------------------------------------------------------------
# Reading answers, and counting tasks and rows that stay


def connect(service: Service) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def to_the_end(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


class Received(io.BufferedReader):
    """Answers one behind the other, as `http.client` reads them from a socket."""

    def makefile(self, _: str) -> "Received":
        return self

    def close(self) -> None:
        """Each answer closes it; the next one reads on."""


def answers(received: bytes) -> list[Stream]:
    """Every answer, whole, the streams held to the contract."""
    file, read = Received(io.BytesIO(received)), []
    while file.tell() < len(received):
        answer = http.client.HTTPResponse(file)  # type: ignore[arg-type]  # as far as it uses a socket
        answer.begin()
        stream = Stream(answer.status, {name.lower(): value for name, value in answer.getheaders()})
        read.append(stream)
        content_type = stream.headers.get("content-type", "")
        if content_type.startswith("text/event-stream"):
            for lines in frames(answer):
                take(stream, lines)
            check(stream, resumed=False)
        else:
            body = answer.read()
            stream.problem = json.loads(body) if "json" in content_type else body
    return read


def stored(database_url: str) -> dict[str, int]:
    """How many rows each table has."""

    async def count() -> dict[str, int]:
        connection = await asyncpg.connect(database_url)
        try:
            tables = await connection.fetch("SELECT relname FROM pg_stat_user_tables")
            return {name: await connection.fetchval(f'SELECT count(*) FROM "{name}"') for [name] in tables}
        finally:
            await connection.close()

    return run(count())


def sockets(service: Service) -> Counter[str]:
    """The process's open files: how many to its clients, to the model, and of other kinds."""
    process = Path(f"/proc/{service.process.pid}")
    ends = {}
    for line in (process / "net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        at_home = int(local.partition(":")[2], 16) == service.port
        ends[f"socket:[{inode}]"] = ("listening" if state == "0A" else "client") if at_home else "model"
    kinds: Counter[str] = Counter()
    for file in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            link = str(file.readlink())
            kinds[ends.get(link, link.partition(":")[0])] += 1
    return kinds


# ---------------------------------------------------------------------------------------------------------------
# The fuzz


@dataclass
class Case:
    """The bytes that one client sends, and the outcomes that are allowed. `messages` are the texts of its chats."""

    sends: Sequence[bytes]
    messages: list[str]
    statuses: Sequence[int] | None = None  # of the answers, where it is known beforehand
    runs: bool | None = None  # whether each of its messages must be run, or none may be; None: the answers tell
    leaves_after: int | None = None  # so many bytes of the answer; else it reads to the end
    resets: bool = False  # and leaves with an RST
    may_be_half: bool = False  # the server may be waiting for more: it is not waited for
    received: bytes = field(default=b"", repr=False)


Make = Callable[[Random, str], Case]
TOKENS = [
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%", b"&", b"=", b"?", b"/", b"\xff", b"{", b'"'),
    *(b"0\r\n\r\n", b"HTTP/1.1", b"HTTP/1.0", b"GET ", b"POST ", b"Content-Length: 3\r\n", CHUNKED, b"Host: y\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
]
NAMES = [
    *("Origin", "Host", "Last-Event-ID", "Content-Type", "Content-Encoding", "Idempotency-Key", "Authorization"),
    *("Sec-Purpose", "Sec-Fetch-Site", "Accept", "Cookie", "X-Forwarded-For", "Access-Control-Request-Method", "X"),
]
VALUES = [
    *("", "null", "http://[", "http://x", "cross-site", "prefetch", "0", "x" * 300, "é", "[", "*", "Bearer x", "a, b"),
    *(f"{RUN[10:].decode()}:0", f"{RUN[10:].decode()}:end", "application/json; charset=utf-16", "gzip"),
]
PARAMETERS = [
    "message",
    "thread_id",
    "checkpoint_id",
    "stream",
    "on_disconnect",
    "idempotency_key",
    "access_token",
    "x",
]


def a_good_chat(random: Random, message: str, headers: bytes = CLOSE) -> bytes:
    kind = random.randrange(3)
    if kind == 0:
        return get(f"/chat?message={quote(message)}".encode(), headers)
    body = json.dumps({"message": message}, ensure_ascii=random.random() < 0.5).encode()
    if kind == 1:
        return post(body, headers)
    cut = random.randrange(1, len(body))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:], b""))
    return post_as(CHUNKED + headers, chunks)


def good(random: Random, message: str) -> Case:
    return Case([a_good_chat(random, message)], [message], [200], runs=True)


def a_byte_at_a_time(random: Random, message: str) -> Case:
    sent = a_good_chat(random, message)
    return Case([sent[at : at + 1] for at in range(len(sent))], [message], [200], runs=True)


def half(random: Random, message: str) -> Case:
    sent = a_good_chat(random, message)
    sent = sent[: random.randrange(len(sent))]
    return Case([sent], [message], runs=False, leaves_after=0, resets=random.random() < 0.5)


def leaving(random: Random, message: str) -> Case:
    resets = random.random() < 0.5
    return Case([a_good_chat(random, message)], [message], leaves_after=random.randrange(1500), resets=resets)


def pipelined(random: Random, message: str) -> Case:
    """Good and bad ones in one write; each is answered, in its turn."""
    refusals = [
        (get(b"/nope", b""), 404),
        (get(b"/chat", b""), 422),
        (get(b"/chat?message=%zz", b""), 400),
        (get(b"/api/chat", b""), 405),
        (post(b"{", b""), 400),
        (post(b"[]", b""), 422),
        (post(BODY, b"Content-Encoding: br\r\n"), 415),
        (get(b"/healthz", b""), 200),
    ]
    sent = b""
    statuses: list[int] = []
    messages: list[str] = []
    for number in range(random.randrange(1, 6)):
        if random.random() < 0.4:
            messages.append(f"{message}{number}.")
            sent, statuses = sent + a_good_chat(random, messages[-1], b""), [*statuses, 200]
        else:
            refused, status = random.choice(refusals)
            sent, statuses = sent + refused, [*statuses, status]
    return Case([sent + get(b"/healthz")], messages, [*statuses, 200], runs=True)


def framed_in_two_ways(random: Random, message: str) -> Case:
    sent = random.choice(FRAMINGS).replace(b"Hi", b"Ho") + a_good_chat(random, message)
    return Case([sent], [message], [400], runs=False)


def garbage_behind(random: Random, message: str) -> Case:
    """The chat came whole, but the client gets 400, so it must not run."""
    return Case([a_good_chat(random, message, b"") + b"\0garbage\r\n\r\n"], [message], [400], runs=False)


def garbage_in_the_body(random: Random, message: str) -> Case:
    body = damaged(random, json.dumps({"message": message, "thread_id": message}).encode())
    if random.random() < 0.3:
        body = random.randbytes(random.randrange(200))
    return Case([post(body)], [message])


def garbage_in_the_query(random: Random, message: str) -> Case:
    pairs = [f"message={message}".encode()]
    for _ in range(random.randrange(1, 4)):
        value = random.choice(VALUES).encode() + random.randbytes(random.randrange(4))
        pairs.append(random.choice(PARAMETERS).encode() + b"=" + quote_from_bytes(value).encode())
    random.shuffle(pairs)
    query = bytearray(b"&".join(pairs))
    if random.random() < 0.5:
        query[random.randrange(len(query))] = random.choice(b"%&=+;/?!~")
    return Case([get(b"/chat?" + bytes(query))], [message])


def garbage_in_the_headers(random: Random, message: str) -> Case:
    lines = [f"{random.choice(NAMES)}: {random.choice(VALUES)}\r\n" for _ in range(random.randrange(1, 4))]
    return Case([a_good_chat(random, message, CLOSE + "".join(lines).encode("latin-1"))], [message])


def garbage_in_the_path(random: Random, message: str) -> Case:
    rest = quote_from_bytes(random.randbytes(random.randrange(20)), safe="/:@!$&'()*+,;=~").encode()
    cursor = base64.urlsafe_b64encode(random.choice([b"2026-01-01T00:00:00+00:00 ", b""]) + random.randbytes(9))
    path = random.choice(
        [
            b"/" + rest,
            b"/api/threads/" + rest,
            b"/api/threads?limit=" + rest,
            b"/api/threads?cursor=" + cursor.rstrip(b"="),
            b"/api/runs/" + rest + b"/events",
            RUN + b"/events?after=" + rest,
            RUN + b"/cancel" + rest,
            b"/api/runs/" + bytes(random.choices(b"0123456789abcdef-", k=36)) + b"/events",
        ]
    )
    return Case([get(path, method=random.choice([b"GET", b"POST", b"PUT", b"OPTIONS", b"PATCH"]))], [])


def huge(random: Random, message: str) -> Case:
    length = random.choice([9_000, 70_000, 300_000, 1_000_000])
    path = f"/chat?message={message}".encode()
    sent = random.choice(
        [
            get(path + b"&x=" + b"x" * length),
            get(path, CLOSE + b"X: " + b"x" * length + b"\r\n"),
            get(path, CLOSE + b"X: x\r\n" * (length // 6)),
            post(json.dumps({"message": message, "x" * length: 0}).encode()),
            post(json.dumps({"message": message, "thread_id": "x" * (length + 2**20)}).encode()),
        ]
    )
    return Case([sent], [message], may_be_half=True)


def damaged(random: Random, sent: bytes) -> bytes:
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(sent) + 1)
        put = random.choice([b"", bytes([random.randrange(256)]), random.choice(TOKENS), sent[at : at + 20]])
        sent = sent[:at] + put + sent[at + random.choice([0, 0, 1, 5]) :]
    return sent


def damage(random: Random, message: str) -> Case:
    return Case([damaged(random, a_good_chat(random, message))], [message], may_be_half=True)


def noise(random: Random, _: str) -> Case:
    parts = [random.choice([*TOKENS, random.randbytes(5)]) for _ in range(random.randrange(1, 40))]
    return Case([b"".join(parts)], [], may_be_half=True)


KINDS: Sequence[Make] = (
    *(good, good, a_byte_at_a_time, half, half, leaving, leaving, pipelined, pipelined, framed_in_two_ways),
    *(garbage_behind, garbage_in_the_body, garbage_in_the_query, garbage_in_the_headers, garbage_in_the_path),
    *(huge, damage, damage, noise),
)


def play(service: Service, case: Case) -> Case:
    """Send it, and read the answers."""
    with connect(service) as client, suppress(ConnectionError):
        for piece in case.sends:
            client.sendall(piece)
        client.settimeout(SILENCE_S if case.may_be_half else PATIENCE_S)
        most = 2**30 if case.leaves_after is None else case.leaves_after
        try:
            while len(case.received) < most and (part := client.recv(min(most - len(case.received), 65536))):
                case.received += part
        except TimeoutError:
            assert case.may_be_half, f"no answer to {case}"
        if case.resets:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return case


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", received) if status != b"100"]


def wrong_with(case: Case) -> str:
    """The fault of the answers, or an empty text."""
    seen = statuses(case.received)
    if any(status >= 500 and status != 503 for status in seen):
        return f"{seen}"
    if case.received.count(b'"status":422') != case.received.count(b'"errors":[{"pointer":'):
        return "a 422 without errors"
    if case.statuses is not None:
        try:
            read = answers(case.received)
        except (AssertionError, http.client.HTTPException, ValueError) as broken:
            return f"{broken!r}"
        if [answer.status for answer in read] != case.statuses:
            return f"{seen}"
        if any(answer.events and answer.last.get("saved") is not True for answer in read):
            return "not saved"
    return ""


def may_have_run(case: Case) -> bool:
    """A chat that was answered with a stream; or with nothing, to one who did not wait."""
    if case.runs is not None:
        return case.runs
    gave_up = (case.may_be_half or case.leaves_after is not None) and not statuses(case.received)
    return gave_up or 200 in statuses(case.received)


def test_a_fuzz_of_raw_http_harms_nothing_and_leaves_nothing_behind(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    print(f"FUZZ_SEED={SEED} FUZZ_REQUESTS={REQUESTS}")
    random = Random(SEED)
    openai.default = (text(*["All is well. "] * 20), finish())
    running = service(openai=openai, app="counted_app:app")
    with ThreadPoolExecutor(CLIENTS) as clients:
        warm = [clients.submit(chat, running.url, "Warm up") for _ in range(CLIENTS)]
        assert [stream.result().last["saved"] for stream in warm] == [True] * CLIENTS
        tasks, files = tasks_of(running), sockets(running)
        # No damage makes one of these out of another.
        messages = (f"case-{number}-{random.getrandbits(32):08x}." for number in range(REQUESTS))
        cases = (random.choice(KINDS)(random, message) for message in messages)
        wrong, sent, must, may = [], set[str](), set[str](), set[str]()
        for batch in batches(cases, 1000):
            for case in clients.map(lambda case: play(running, case), batch):
                if fault := wrong_with(case):
                    wrong.append(f"{fault}: {case.sends!r:.500} -> {case.received!r:.300}")
                sent.update(case.messages)
                if may_have_run(case):
                    (must if case.runs else may).update(case.messages)
    assert wrong == []
    wait_until(lambda: not rows(database_url, "SELECT 1 FROM runs WHERE status = 'running'"), "runs end")
    kept = Counter(row["content"] for row in rows(database_url, "SELECT content FROM messages WHERE role = 'user'"))
    asked = Counter(str(request.body["messages"][-1]["content"]) for request in openai.requests)
    assert kept == asked
    del kept["Warm up"]
    assert {message: kept[message] for message in must if kept[message] != 1} == {}
    refused = sent - must - may
    assert refused & kept.keys() == set(), "a message was refused and yet run"
    assert len(kept) <= len(must) + len(may), "a damaged message was refused and yet run"

    wait_until(lambda: tasks_of(running) <= tasks, "the tasks are as before")
    wait_until(lambda: sockets(running)["client"] == 0, "no connection of a client is left")
    # The pool of the database may have grown to its bound, and connections to the model are kept for a while.
    left = sockets(running) - files
    assert left.pop("socket", 0) <= POOL_CONNECTIONS
    left.pop("model", None)
    assert left == {}
    assert "ERROR" not in running.log, running.log


def batches(cases: Iterator[Case], size: int) -> Iterator[list[Case]]:
    while batch := list(itertools.islice(cases, size)):
        yield batch


def tasks_of(service: Service) -> Counter[str]:
    """How many asyncio tasks there are of each name, less the numbers in it."""
    names = requests.get(f"{service.url}/tasks", headers={"Connection": "close"}, timeout=PATIENCE_S).json()
    return Counter(re.sub(r"[0-9a-f-]{36}|\d+", "", name) for name in names)


def wait_until(it_is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not it_is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)
