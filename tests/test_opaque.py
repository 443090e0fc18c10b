"""The fields that a provider wants back: from the chunks of a reply into the state."""

import json
from typing import Any

import pytest

from chat import Piece
from drafting.deltas import ModelDelta
from drafting.opaque import OpaqueFields
from drafting.reply import Reply
from drafting.versions import Documents
from drafting.wire import ReplyDecoder

SIGNED = {"google": {"thought_signature": "Abc=="}}


@pytest.mark.parametrize(
    ("chunks", "whole"),
    [
        (
            [{"reasoning_content": "I should "}, {"reasoning_content": "write."}],
            {"reasoning_content": "I should write."},
        ),
        ([{"reasoning": "a"}, {"reasoning": None}, {"reasoning": "b"}], {"reasoning": "ab"}),
        ([{"extra_content": SIGNED}, {"extra_content": SIGNED}], {"extra_content": SIGNED}),
        ([{"reasoning_opaque": "x=="}, {"reasoning_opaque": ""}], {"reasoning_opaque": "x=="}),
        (
            [  # OpenRouter: blocks with an index
                {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "a"}]},
                {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "b"}]},
                {"reasoning_details": [{"type": "reasoning.text", "index": 0, "signature": "s"}]},
                {"reasoning_details": [{"type": "reasoning.encrypted", "index": 1, "data": "d"}]},
            ],
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "index": 0, "text": "ab", "signature": "s"},
                    {"type": "reasoning.encrypted", "index": 1, "data": "d"},
                ]
            },
        ),
        (
            [  # LiteLLM for Claude: blocks that end with their signature
                {"thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": ""}]},
                {"thinking_blocks": [{"type": "thinking", "thinking": "b", "signature": ""}]},
                {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "s"}]},
                {"thinking_blocks": [{"type": "thinking", "thinking": "c"}]},
            ],
            {
                "thinking_blocks": [
                    {"type": "thinking", "thinking": "ab", "signature": "s"},
                    {"type": "thinking", "thinking": "c"},
                ]
            },
        ),
        ([{"x": 1}, {"x": [1]}, {"x": ["a", "b"]}, {"y": {"z": 1}}, {"y": 2}], {"x": [1, "a", "b"], "y": 2}),
        ([{"text": "a"}, {"text": ["b"]}, {"text": {"c": 1}}, {"text": "d"}], {"text": "d"}),
    ],
)
def test_pieces_of_a_field_become_whole(chunks: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    fields = OpaqueFields()
    for chunk in chunks:
        fields.add(chunk)
    assert fields.whole() == whole


def reply_to(*deltas: dict[str, Any]) -> tuple[Reply, list[Piece]]:
    pieces: list[Piece] = []
    reply = Reply(Documents(()), 0, pieces.extend)
    decoder = ReplyDecoder("m")
    for delta in deltas:
        chunk = b"data: %b\n\n" % json.dumps({"choices": [{"delta": delta}]}).encode()
        heard: list[ModelDelta] = list(decoder.feed(chunk) or ())
        reply.feed(heard)
    reply.close(finished=True)
    return reply, pieces


def test_a_call_keeps_its_signature_and_the_reply_its_reasoning_and_the_reader_sees_neither() -> None:
    call = {"index": 0, "id": "g1", "type": "function", "function": {"name": "write_document", "arguments": ""}}
    body = json.dumps({"title": "A", "content": "text"})
    reply, pieces = reply_to(
        {"reasoning_content": "I should "},
        {"content": "", "reasoning_content": "write."},
        {"tool_calls": [call | {"extra_content": SIGNED}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": body}}]},
        {"tool_calls": [{"index": 1, "id": "g2", "function": {"name": "write_document", "arguments": body}}]},
    )
    assert reply.opaque() == {
        "from": "m",
        "reply": {"reasoning_content": "I should write."},
        "calls": [{"extra_content": SIGNED}, {}],
    }
    assert "".join(piece.content for piece in pieces) == "texttext"


def test_a_reply_without_such_fields_leaves_nothing_in_the_state() -> None:
    reply, _ = reply_to({"role": "assistant", "content": "", "refusal": None}, {"content": "OK", "reasoning": None})
    assert reply.opaque() == {}


def test_a_field_is_kept_as_the_state_can_hold_it() -> None:
    reply, _ = reply_to({"content": "OK", "note": "a\ud83d", "number": 2**62})
    assert reply.opaque() == {"from": "m", "reply": {"note": "a\ufffd", "number": 2**62}, "calls": []}
