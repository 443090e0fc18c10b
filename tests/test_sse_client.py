"""The strict reader is strict: what breaks the contract does not get past it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import sse_client
from conftest import Service
from openai_server import OpenAIServer, finish, text, tool
from sse_client import Contract, Frame, Stream

pytestmark = pytest.mark.anyio

RUN = "00000000-0000-0000-0000-00000000000"
START = f'id: {RUN}0:0\ndata: {{"type":"start","thread_id":"t","run_id":"{RUN}0","model":"m"}}\n\n'
END = f'id: {RUN}0:end\ndata: {{"type":"end","reason":"stop","saved":true,"checkpoint_id":null,"usage":null}}\n\n'
RETRY = "retry: 2000\n"


def message(content: str, position: int | str, item: int = 0) -> str:
    return f'id: {RUN}0:{position}\ndata: {{"type":"message","content":"{content}","item":{item}}}\n\n'


def doc(content: str, position: int, item: int = 0, version: int = 1) -> str:
    data = f'"content":"{content}","item":{item},"doc_id":"d1","title":"NDA","version":{version}'
    return f'id: {RUN}0:{position}\ndata: {{"type":"doc",{data}}}\n\n'


class Body:
    """A body that arrives in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.content = self

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await asyncio.sleep(0)
            yield piece


async def read(*pieces: bytes, after: int | None = None, whole_items: bool = False) -> Stream:
    stream = Stream(Body(*pieces), after, whole_items=whole_items)  # type: ignore[arg-type]  # all it needs of a response
    await stream.read_all()
    return stream


async def test_a_stream_that_keeps_the_contract_is_put_together() -> None:
    body = RETRY + START + message("Hi ", 3) + ":\n\n" + message("😀", 4) + doc("# N", 7, 1) + doc("DA", 9, 1) + END
    stream = await read(body.encode())
    assert [frame.type for frame in stream.frames] == ["start", "message", "message", "doc", "doc", "end"]
    assert (stream.text(), stream.text("doc"), stream.comments, stream.retry_ms) == ("Hi 😀", "# NDA", 1, 2000)
    assert stream.last["saved"] is True
    assert [item["item"] for item in stream.items] == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
async def test_bytes_may_be_cut_anywhere(size: int, line_end: str) -> None:
    body = (RETRY + START + message("é😀", 2) + END).replace("\n", line_end).encode() + b"\n" * (line_end == "\r")
    stream = await read(*(body[start : start + size] for start in range(0, len(body), size)))
    assert stream.text() == "é😀"


async def test_a_resumed_stream_goes_on_from_its_position() -> None:
    stream = await read((RETRY + message("lo", 5) + doc("x", 6, 1) + END).encode(), after=3)
    assert stream.text() == "lo"


@pytest.mark.parametrize(
    "frames",
    [
        [START, END],
        [RETRY],
        [RETRY, START],
        [RETRY, START, message("Hi", 2)],
        [RETRY, END, START],
        [RETRY, message("Hi", 2), END],
        [RETRY, START, START, END],
        [RETRY, START, END, END],
        [RETRY, START, END, message("Hi", 2)],
        [RETRY, START, END.replace(":end", ":2")],
        [RETRY, START, message("", 0), END],
        [RETRY, START, message("Hi", 3), END],
        [RETRY, START, message("😀", 2), END],
        [RETRY, START, message("Hi", 2), message("Hi", 3), END],
        [RETRY, START, message("Hi", 2, 1), END],
        [RETRY, START, message("Hi", 2), message("Hi", 4, 2), END],
        [RETRY, START, message("Hi", 2), doc("x", 3, 1), message("Hi", 5), END],
        [RETRY, START, message("Hi", 2), doc("x", 3), END],
        [RETRY, START, doc("x", 1), doc("x", 2, version=2), END],
        [RETRY, START, message("Hi", 2).replace(f"{RUN}0", f"{RUN}1"), END],
        [RETRY, START, message("Hi", 2).partition("\n")[2], END],
        [RETRY, START, message("Hi", "02"), END],
        [RETRY, START, "event: message\n" + message("Hi", 2), END],
        [RETRY, START, RETRY, END],
        [RETRY, START, message("Hi", 2).replace('"item":0', '"item":0,"more":1'), END],
        [RETRY, START, END[:-1]],
        [RETRY, START, END, ":"],
    ],
)
async def test_a_stream_that_breaks_the_contract_is_refused(frames: Sequence[str]) -> None:
    with pytest.raises(AssertionError):
        await read("".join(frames).encode())


async def test_an_item_in_two_pieces_is_refused_where_whole_ones_were_asked_for() -> None:
    body = (RETRY + START + message("Hi", 2) + message("Hi", 4) + END).encode()
    assert (await read(body)).text() == "HiHi"
    with pytest.raises(AssertionError):
        await read(body, whole_items=True)


async def test_a_start_is_refused_where_the_client_has_it() -> None:
    with pytest.raises(AssertionError):
        await read((RETRY + START + message("Hi", 2) + END).encode(), after=0)


async def test_bad_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        await read((RETRY + START).encode() + b"\xff\n")


def test_a_stream_that_was_left_early_is_checked_as_far_as_it_came() -> None:
    contract = Contract()
    contract.add(Frame(f"{RUN}0:0", {"type": "start", "thread_id": "t", "run_id": f"{RUN}0", "model": "m"}, 0.0))
    assert not contract.ended


async def test_the_service_keeps_the_contract_also_for_who_comes_back(
    service: Callable[..., Service], openai: OpenAIServer
) -> None:
    document = {"title": "NDA", "content": "# 😀 NDA\n" * 20}
    openai.reply(text("One ", "moment."), tool("write_document", document, cut=5), finish("tool_calls"))
    openai.reply(text("Done."), finish())
    url = service(openai=openai).url
    whole = await sse_client.chat(url, "Draft an NDA", "t")
    assert whole.text("doc") == document["content"]
    for frame in whole.frames[:-1]:
        async with sse_client.follow(url, whole.run_id, frame.id) as rest:
            await rest.read_all()
        seen = int(frame.position)
        everything = "".join(item["content"] for item in whole.items)
        assert "".join(item["content"] for item in rest.items) == everything[seen:]
    assert openai.refusals == []


async def test_a_refusal_is_no_stream(service: Callable[..., Service]) -> None:
    with pytest.raises(sse_client.Refused) as refused:
        await sse_client.chat(service().url, "")
    assert refused.value.status == 422
    assert refused.value.problem["errors"] == [{"pointer": "/message", "detail": "must not be empty"}]
