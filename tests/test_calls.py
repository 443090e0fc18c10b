"""Tool calls on the wire: in whatever dialect, and however cut, the calls are the ones that the model made."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from call_dialects import DIALECTS, Call, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from drafting.deltas import ModelDelta, ToolCallDelta
from drafting.provider.wire import ReplyDecoder

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["{}", '{"a": 1}', "```", '"', "\\", '}"', "null", "😀", "\n\n"]
)
ARGUMENTS = st.dictionaries(
    TEXT, TEXT | st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2), min_size=1, max_size=3
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["write_document", "edit_document"]), ARGUMENTS, st.booleans(), st.booleans()),
    min_size=1,
    max_size=4,
    unique_by=lambda call: json.dumps(call[1]),  # a call that comes again as it was is the same call to some dialects
).map(
    lambda calls: [
        (f"call_{number}", name, json.dumps(fields, ensure_ascii=ascii_only, indent=1 if wide else None))
        for number, (name, fields, ascii_only, wide) in enumerate(calls)
    ]
)


def decode(deltas: Sequence[dict[str, Any]], size: int, finish: str = "tool_calls") -> list[tuple[str, str, str]]:
    """The calls of a reply whose deltas have these `tool_calls`, cut every so many bytes."""
    chunks: list[dict[str, Any]] = [{"delta": {"tool_calls": [delta]}} for delta in deltas]
    chunks.append({"delta": {}, "finish_reason": finish})
    body = "".join(f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks).encode()
    decoder = ReplyDecoder()
    heard: list[ModelDelta] = []
    for at in range(0, len(body), size):
        heard += decoder.feed(body[at : at + size]) or ()
    heard += decoder.feed(b"") or ()
    assert decoder.finished().reason == "tool_calls"
    return calls_of(heard)


def calls_of(heard: Sequence[ModelDelta]) -> list[tuple[str, str, str]]:
    calls: dict[int, tuple[str, str, str]] = {}
    for delta in heard:
        if isinstance(delta, ToolCallDelta):
            call_id, name, arguments = calls.get(delta.index, ("", "", ""))
            calls[delta.index] = (call_id or delta.call_id, delta.name or name, arguments + delta.arguments)
    return [calls[number] for number in sorted(calls)]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.__name__)
@settings(max_examples=15, deadline=None)
@given(calls=CALLS, seed=st.integers(0, 2**32), size=st.sampled_from([1, 7, 100, 10_000]))
def test_the_calls_of_any_dialect_are_the_ones_that_were_made(
    dialect: Encoder, calls: list[Call], seed: int, size: int
) -> None:
    deltas = list(dialect(calls, Random(seed)))
    decoded = decode(deltas, size, finish="tool_calls" if seed % 2 else "stop")
    if dialect.__name__.startswith("interleaved"):  # in the order in which they began
        decoded.sort()
    assert [(name, json.loads(arguments)) for _, name, arguments in decoded] == [
        (name, json.loads(arguments)) for _, name, arguments in calls
    ]
    has_ids = any(delta.get("id") == calls[-1][0] for delta in deltas)
    if has_ids and dialect.__name__ not in ("objects_joined", "new_id_and_name_each_chunk"):
        assert [call_id for call_id, _, _ in decoded] == [call_id for call_id, _, _ in calls]
