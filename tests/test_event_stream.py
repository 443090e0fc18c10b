"""The reader of Server-Sent Events against the specification's own steps, whatever the bytes and the cuts."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drafting.provider.event_stream import BOM, EventReader

LINES = st.one_of(
    st.sampled_from(
        [
            *(b"", b"", b"data: a", b"data:b", b"data", b"data:", b"data:  two spaces", b"event: error", b"event:"),
            *(b"id: 1", b"retry: 5", b": comment", b":", b"error: {}", b"dat", b"Data: x", b"data : x", b'{"a": 1}'),
        ]
    ),
    st.binary(max_size=6).filter(lambda line: b"\r" not in line and b"\n" not in line),
)
BODIES = st.builds(
    lambda bom, lines, last: bom + b"".join(line + end for line, end in lines) + last,
    st.sampled_from([b"", b"", BOM, BOM + BOM, BOM[:2]]),
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]))),
    LINES,
)


def by_the_specification(body: bytes) -> list[tuple[bytes, bytes]]:
    """Section 9.2.6 word for word. The body's last event, if it has no empty line, is discarded there, not here."""
    events: list[tuple[bytes, bytes]] = []
    body = body.removeprefix(BOM)
    data = name = b""
    for line in [*re.split(rb"\r\n|\n|\r", body), b""]:
        if line == b"":
            if data == b"":
                name = b""
                continue
            events.append((name, data.removesuffix(b"\n")))
            data = name = b""
        elif line.startswith(b":"):
            continue
        else:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value
            elif field == b"data":
                data += value + b"\n"
    return events


def read(body: bytes, size: int) -> list[tuple[bytes | None, bytes]]:
    reader = EventReader()
    events = [event for at in range(0, len(body), size) for event in reader.feed(body[at : at + size])]
    return events + reader.close()


@given(BODIES, st.integers(1, 9))
@example(b"data\n\ndata\ndata\n\ndata:", 1)  # the specification's own examples
@example(b"data:test\n\ndata: test\n\n", 3)
@example(b"data: YHOO\ndata: +2\ndata: 10\n\n", 2)
@example(b"data: a\r\r\ndata: b\r\r", 1)
@example(BOM, 1)
def test_any_body_cut_anywhere_has_the_events_of_the_specification(body: bytes, size: int) -> None:
    events = read(body, size)
    assert [event for event in events if event[0] is not None] == by_the_specification(body)
    assert events == read(body, max(1, len(body)))


def test_a_line_that_the_specification_ignores_is_given_out_by_itself() -> None:
    body = b'data: a\nerror: {"code":400}\n\n{"error": {}}\n'
    assert read(body, 5) == [(None, b'error: {"code":400}'), (b"", b"a"), (None, b'{"error": {}}')]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n"])
def test_an_event_comes_with_the_last_byte_of_it(end: bytes) -> None:
    reader = EventReader()
    assert reader.feed(b"data: a" + end[:-1]) == ([(b"", b"a")] if end == b"\r\n\r\n" else [])
    assert reader.feed(end[-1:]) == ([] if end == b"\r\n\r\n" else [(b"", b"a")])
