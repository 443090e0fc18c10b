"""Frames: the form of any text on the wire, and the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import Doc, End, Error, Message, Piece, Start
from runs.sse import EventId, content_of, last_frame, piece_frame, start_frame, with_content

RUN = b"123e4567-e89b-12d3-a456-426614174000"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
PIECES = st.builds(Message, TEXT, st.integers(0, 99)) | st.builds(
    Doc, TEXT, st.integers(0, 99), st.just("d1"), TEXT, st.integers(1, 99)
)


@given(piece=PIECES, position=st.integers(1, 10**9), first=st.booleans())
def test_a_frame_is_an_id_line_a_data_line_and_an_empty_one_whatever_the_text(
    piece: Piece,
    position: int,
    *,
    first: bool,
) -> None:
    frame = piece_frame(RUN, position, piece, first=first)
    lines = frame.decode().split("\n")
    assert len(lines) == 4
    assert lines[0] == f"id: {RUN.decode()}:{position}"
    assert json.loads(lines[1].removeprefix("data: "))["content"] == piece.content
    assert lines[2:] == ["", ""]
    assert "\r" not in frame.decode()
    assert content_of(frame) == piece.content
    told = json.loads(lines[1].removeprefix("data: "))
    later = {"content": piece.content, "item": piece.item}
    if isinstance(piece, Doc):
        later |= {"doc_id": piece.doc_id} | ({"title": piece.title, "version": piece.version} if first else {})
    assert told == {"type": "doc" if isinstance(piece, Doc) else "message", **later}


@given(PIECES, TEXT)
def test_a_piece_takes_another_text_and_keeps_the_rest(piece: Piece, content: str) -> None:
    changed = with_content(piece, content)
    assert changed.content == content
    assert with_content(changed, piece.content) == piece


def test_the_first_and_last_frames_have_the_fields_of_the_contract_in_order() -> None:
    assert start_frame(RUN, Start("t", "r", "m")).endswith(
        b':0\ndata: {"type":"start","thread_id":"t","run_id":"r","model":"m"}\n\n'
    )
    end = End("stop", saved=True, checkpoint_id="c", usage={"input_tokens": 1, "output_tokens": 2})
    assert last_frame(RUN, end).endswith(
        b':end\ndata: {"type":"end","reason":"stop","saved":true,"checkpoint_id":"c",'
        b'"usage":{"input_tokens":1,"output_tokens":2}}\n\n'
    )
    assert last_frame(RUN, Error("What happened.", "code", retryable=False)).endswith(
        b'data: {"type":"error","content":"What happened.","code":"code","retryable":false}\n\n'
    )


@pytest.mark.parametrize("place", ["0", "17", "end"])
def test_an_event_id_of_ours_is_read(place: str) -> None:
    assert EventId.parse(f"{RUN.decode()}:{place}") == EventId(RUN.decode(), None if place == "end" else int(place))


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-f-]{35,37}[:;](0|[0-9]{1,17}|end|END)\s?", fullmatch=True))
def test_any_other_event_id_is_not(text: str) -> None:
    event_id = EventId.parse(text)
    if event_id is not None:
        assert text == f"{event_id.run_id}:{'end' if event_id.after is None else event_id.after}"
        assert len(event_id.run_id) == len(RUN)


@pytest.mark.parametrize("place", ["", "-1", "01", "1.5", "END", "1" * 16, "5\n"])
def test_a_place_that_is_none_is_not_read(place: str) -> None:
    assert EventId.parse(f"{RUN.decode()}:{place}") is None
