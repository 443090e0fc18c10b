"""The fields that a provider wants back: from the chunks of a reply into the state."""

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from chat import Piece
from drafting.context.give_back import MOST_BYTES, OPAQUE, Demands, give_back, opaque_bytes, source_of, to_keep
from drafting.deltas import ModelDelta
from drafting.editing.versions import Documents
from drafting.provider.opaque import OpaqueFields
from drafting.provider.wire import ReplyDecoder
from drafting.reply import Reply

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


# ---------------------------------------------------------------------------------------------------------------
# Back to the provider


def sent(kept: dict[str, Any], source: str, demands: Demands | None = None) -> dict[str, Any]:
    """An assistant message with a call as it goes to that source."""
    made = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    wire: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [made]}
    give_back([wire], [AIMessage("", additional_kwargs={OPAQUE: kept})], source, demands or Demands())
    return wire


OWN = {"from": "m", "reply": {"reasoning_content": "Hm.", "citations": [1]}, "calls": [{"extra_content": SIGNED}]}


def test_the_fields_go_back_to_their_source_and_to_no_other() -> None:
    kept = to_keep(OWN, finished=True)
    own, other = sent(kept, "m"), sent(kept, "another")
    assert (own["reasoning_content"], own["tool_calls"][0]["extra_content"]) == ("Hm.", SIGNED)
    assert "citations" not in own
    assert "Hm." not in json.dumps(other)
    assert other["tool_calls"][0].keys() == {"id", "type", "function"}
    assert source_of("http://a/v1", "m") != source_of("http://a/v1", "m2") != source_of("http://b/v1", "m2")


def test_a_reply_that_was_interrupted_keeps_its_reasoning_alone() -> None:
    kept = to_keep(OWN, finished=False)
    assert (kept["reply"], kept["calls"]) == ({"reasoning_content": "Hm."}, [{}])
    assert (
        to_keep({}, finished=True) == to_keep({"from": "m", "reply": {"note": 1}, "calls": [{}]}, finished=True) == {}
    )


def test_what_is_kept_of_a_reply_is_bounded() -> None:
    long = {"reasoning_content": "é" * MOST_BYTES, "reasoning_details": [{"signature": "x"}]}
    kept = to_keep({"from": "m", "reply": long, "calls": [{"extra_content": "y" * MOST_BYTES}]}, finished=True)
    assert set(kept["reply"]) == {"reasoning_content"}
    assert kept["calls"] == [{}]
    assert 0 < opaque_bytes(AIMessage("", additional_kwargs={OPAQUE: kept})) <= MOST_BYTES
    assert opaque_bytes(AIMessage("")) == 0


@pytest.mark.parametrize(
    ("refusal", "given", "required", "refused"),
    [
        (
            "The `reasoning_content` in the thinking mode must be passed back to the API.",
            set(),
            {"reasoning_content"},
            0,
        ),
        ("Missing `reasoning_content` field", {"reasoning_content"}, {"reasoning_content"}, 0),
        ("Function call is missing a thought_signature in functionCall parts.", set(), {"thought_signature"}, 0),
        ("property 'reasoning_content' is unsupported", {"reasoning_content"}, 0, {"reasoning_content"}),
        ("reasoning_content is an output", {"reasoning_content"}, 0, {"reasoning_content"}),
        ("Extra inputs are not permitted: extra_content", {"extra_content"}, 0, {"extra_content"}),
        ("Extra inputs are not permitted: stream_options", {"extra_content"}, 0, 0),
        ("invalid id", {"id_of_mine"}, 0, 0),
    ],
)
def test_a_refusal_says_which_field_is_wanted(refusal: str, given: set[str], required: object, refused: object) -> None:
    demands = Demands()
    learnt = demands.learn(refusal, given)
    assert (demands.required, demands.refused) == (required or set(), refused or set())
    assert demands.learn(refusal, given) is None, "the same refusal teaches nothing, so the request is not sent again"
    assert (learnt is None) == (not required and not refused)


def test_a_call_of_another_model_gets_the_signature_that_google_documents() -> None:
    [made] = sent({}, "m", Demands(required={"thought_signature"}))["tool_calls"]
    assert made["extra_content"] == {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert sent({}, "m", Demands(required={"reasoning_content"}))["reasoning_content"] == " "
