"""Offers of another protocol: the request is answered as without them, with its whole body, in HTTP/1.1."""

import itertools
import random
import socket
import sys
from collections.abc import Callable

import pytest
from conftest import Service
from openai_server import OpenAIServer, echo
from test_bad_input import BODY, CHUNKED, CLOSE, HOST, IN_CHUNKS, JSON, answers, connect, get, post, post_as, to_the_end

Start = Callable[..., Service]

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
OFFERS = [
    H2C,  # Java's HttpClient, curl --http2
    b"Upgrade: h2c\r\n" + b"Connection: keep-alive, upgrade\r\n",
    b"CONNECTION: UPGRADE\r\nUPGRADE: H2C\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",  # of no handshake
    b"Connection: Upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1\r\n",
    b"Connection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n",
    b"Connection: Upgrade\r\nUpgrade:\r\n",
    b"Upgrade: h2c\r\n",  # without Connection it counts for nothing
]
HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture
def running(service: Start, openai: OpenAIServer) -> Service:
    openai.default = (echo(),)
    return service(openai=openai)


def send(running: Service, *writes: bytes) -> bytes:
    with connect(running) as client:
        for data in writes:
            client.sendall(data)
        return to_the_end(client)


def said_last(message: str) -> str:
    """How the model's answer ends, which is the conversation."""
    return f'["user", "{message}"]]'


def test_a_request_that_offers_another_protocol_is_answered_as_without_the_offer(running: Service) -> None:
    for offer in OFFERS:
        for sent in (
            post(BODY, offer + CLOSE),
            post_as(offer + CHUNKED + CLOSE, IN_CHUNKS),
            get(b"/chat?message=Hi", offer + CLOSE),
            b"GET /chat?message=Hi HTTP/1.0\r\n" + HOST + offer + b"\r\n",
        ):
            [answer] = answers(send(running, sent))
            assert answer.status == 200, sent
            assert answer.text.endswith(said_last("Hi")), sent
            assert "upgrade" not in answer.headers


def test_neither_the_cut_of_the_bytes_nor_the_requests_around_it_matter(running: Service) -> None:
    chance = random.Random(12)
    for number in range(30):
        said = [f"{number}.{place}" for place in range(chance.randrange(1, 5))]
        sent = b""
        for words in said:
            body = b'{"message": "%b"}' % words.encode()
            offer = chance.choice([b"", *OFFERS])
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            sent += post_as(offer + CHUNKED, chunks) if chance.random() < 0.5 else post(body, offer)
        sent += get(b"/healthz")
        cuts = [0, *sorted(chance.choices(range(len(sent)), k=chance.randrange(8))), len(sent)]
        got = answers(send(running, *(sent[begin:end] for begin, end in itertools.pairwise(cuts))))
        assert [answer.status for answer in got] == [200] * (len(said) + 1), sent
        for answer, words in zip(got, said, strict=False):
            assert answer.text.endswith(said_last(words)), sent


def test_many_offers_in_one_write_are_all_answered(running: Service) -> None:
    offered = b"GET /healthz HTTP/1.1\r\n" + HOST + H2C + b"\r\n"
    got = answers(send(running, offered * 90 + get(b"/healthz")))
    assert [answer.status for answer in got] == [200] * 91


def test_the_body_comes_after_100_continue(running: Service) -> None:
    with connect(running) as client:
        length = b"Content-Length: %d\r\n" % len(BODY)
        client.sendall(b"POST /api/chat HTTP/1.1\r\n" + HOST + JSON + H2C + length + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(BODY)
        assert client.recv(16, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK\r"


def test_a_request_that_is_refused_without_the_offer_is_refused_with_it(running: Service, openai: OpenAIServer) -> None:
    for sent, status in (
        (post_as(H2C + b"Content-Length: 17\r\n" + CHUNKED, IN_CHUNKS), 400),
        (post_as(H2C + b"Content-Length: 17\r\nContent-Length: 18\r\n"), 400),
        (post_as(H2C + CHUNKED + CLOSE, b"xyz\r\n"), 400),
        (post(b"", H2C + CLOSE), 400),
        (post(b"[]", H2C + CLOSE), 422),
        (b"CONNECT x:80 HTTP/1.1\r\n" + HOST + H2C + b"\r\n", 400),
        (get(b"/nowhere", H2C + CLOSE), 404),
    ):
        [answer] = answers(send(running, sent))
        assert answer.status == status, sent
    assert openai.requests == []


def test_a_websocket_is_refused_and_told_of_the_streams(running: Service, openai: OpenAIServer) -> None:
    """Also behind a proxy that drops Upgrade."""
    behind_a_proxy = HANDSHAKE.partition(b"\r\n")[2].partition(b"\r\n")[2]
    for path, handshake in itertools.product(
        (b"/chat?message=Hi", b"/api/chat", b"/debug"), (HANDSHAKE, behind_a_proxy)
    ):
        [answer] = answers(send(running, get(path, handshake + CLOSE)))
        assert (answer.status, answer.problem["code"]) == (400, "no_websockets")
        assert "EventSource" in answer.problem["detail"]
    assert openai.requests == []
    assert "websockets" not in running.log


def test_uvicorn_with_websockets_and_the_service_as_a_program_do_the_same(service: Start, openai: OpenAIServer) -> None:
    openai.default = (echo(),)
    as_programs = (service(openai, UVICORN_HTTP="h11"), service(openai, command=[sys.executable, "asgi_app.py"]))
    for running in (service(openai, UVICORN_WS="auto"), *as_programs):
        [posted] = answers(send(running, post(BODY, H2C + CLOSE)))
        assert posted.text.endswith(said_last("Hi"))
        [answer] = answers(send(running, get(b"/chat?message=Hi", HANDSHAKE + CLOSE)))
        assert (answer.status, answer.problem["code"]) == (400, "no_websockets")
