"""The decoder of growing tool-call arguments: whatever the cuts, the text is the JSON string's."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafting.arguments import ArgumentsDecoder, BrokenArguments
from drafting.text import REPLACEMENT

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def decode(fragments: list[str]) -> tuple[ArgumentsDecoder, dict[str, str]]:
    decoder = ArgumentsDecoder()
    streamed: dict[str, str] = {}
    for fragment in fragments:
        for name, piece in decoder.feed(fragment):
            streamed[name] = streamed.get(name, "") + piece
    return decoder, streamed


def cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@given(st.dictionaries(TEXT, VALUES), st.booleans(), st.integers(1, 9), st.sampled_from([None, 2]))
def test_any_object_cut_anywhere_gives_its_strings(
    fields: dict[str, object],
    ascii_only: bool,  # noqa: FBT001  # hypothesis gives it so
    size: int,
    indent: int | None,
) -> None:
    text = json.dumps(fields, ensure_ascii=ascii_only, indent=indent)
    decoder, streamed = decode(cut(text, size))
    strings = {name: value for name, value in fields.items() if isinstance(value, str)}
    assert decoder.complete
    assert decoder.strings == strings
    assert streamed == {name: value for name, value in strings.items() if value}


@given(st.text(max_size=60), st.integers(1, 5))
def test_rubbish_is_refused_or_waits_but_never_passes_for_an_object(text: str, size: int) -> None:
    try:
        decoder, _ = decode(cut(text, size))
    except BrokenArguments:
        return
    if decoder.complete:
        assert text.strip().startswith("{")
        assert text.strip().endswith("}")


ANY_TEXT = st.text(st.characters() | st.sampled_from("\0\ud83d\ude00"))
OBJECTS = st.dictionaries(TEXT, VALUES | ANY_TEXT, min_size=1).map(json.dumps)
SOUP = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"',
        '"a"',
        "\\",
        '\\"',
        "\\u",
        "\\ud83d",
        "\\ude00",
        "0041",
        "\\n",
        "1",
        "NaN",
        " ",
        "\n",
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """An object with a text inserted, or with one replaced."""
    text = draw(OBJECTS)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(SOUP) + text[at + draw(st.integers(0, 3)) :]
    return text


def cut_at(text: str, places: list[int]) -> list[str]:
    return [text[start:stop] for start, stop in pairwise([0, *sorted(places), len(text)])]


def outcome(fragments: list[str]) -> tuple[dict[str, str], dict[str, str], bool, str]:
    """The streamed text, the complete fields, whether the object is complete, and its fault."""
    decoder = ArgumentsDecoder()
    streamed: dict[str, str] = {}
    wrong = ""
    try:
        for fragment in fragments:
            for name, piece in decoder.feed(fragment):
                streamed[name] = streamed.get(name, "") + piece
    except BrokenArguments as error:
        wrong = str(error)
    return streamed, decoder.strings, decoder.complete, wrong


def storable(text: str) -> str:
    return re.sub("[\0\ud800-\udfff]", REPLACEMENT, text)


def without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = {storable(name): value for name, value in pairs}
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice")
    return fields


@given(damaged() | st.lists(SOUP).map("".join), st.data())
def test_where_it_is_cut_makes_no_difference_and_what_json_takes_it_takes(text: str, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(text))))
    streamed, strings, complete, wrong = outcome(cut_at(text, places))
    assert (streamed, strings, complete, wrong) == outcome([text])
    assert strings.items() <= (dict.fromkeys(strings, "") | streamed).items()
    try:
        fields = json.loads(text, strict=False, object_pairs_hook=without_repetition)
    except ValueError:
        return
    if isinstance(fields, dict):
        assert complete
        assert not wrong
        expected = {name: storable(value) for name, value in fields.items() if isinstance(value, str)}
        assert strings == expected


def test_a_piece_comes_with_the_fragment_that_brings_it() -> None:
    decoder = ArgumentsDecoder()
    assert list(decoder.feed('{"content": "The pa')) == [("content", "The pa")]
    assert list(decoder.feed("rties")) == [("content", "rties")]


@pytest.mark.parametrize(
    ("fragments", "text"),
    [
        (['{"c":"\\u00', 'e9"}'], "é"),
        (['{"c":"\\', 'n"}'], "\n"),
        (['{"c":"\\ud83d', "\\ude", '00"}'], "😀"),
        (['{"c":"\\ud83d\\', "u", 'de00"}'], "😀"),
        (['{"c":"\\ud83d"}'], REPLACEMENT),
        (['{"c":"\\ud83dx"}'], REPLACEMENT + "x"),
        (['{"c":"\\ud83d\\n"}'], REPLACEMENT + "\n"),
        (['{"c":"\\ud83d\\ud83d\\ude00"}'], REPLACEMENT + "😀"),
        (['{"c":"\\ude00"}'], REPLACEMENT),
        (['{"c":"a\\u0000b"}'], f"a{REPLACEMENT}b"),
        (['{"c":"a\nb\tc"}'], "a\nb\tc"),
    ],
)
def test_escapes(fragments: list[str], text: str) -> None:
    decoder, streamed = decode(fragments)
    assert decoder.complete
    assert streamed == decoder.strings == {"c": text}


@pytest.mark.parametrize(
    "text",
    ["[]", '"x"', "{]", '{"a" 1}', '{"a":"x" "b"}', '{"c":"\\x"}', '{"c":"\\uZZZZ"}', '{"a":"1","a":"2"}', "{} {}"],
)
def test_what_is_not_one_object_is_refused(text: str) -> None:
    with pytest.raises(BrokenArguments):
        decode([text])


def test_an_unfinished_object_is_not_complete() -> None:
    decoder, streamed = decode(['{"title":"A","content":"half'])
    assert not decoder.complete
    assert streamed["content"] == "half"
    assert decoder.strings == {"title": "A"}


def test_the_work_is_linear_in_the_length() -> None:
    """Counts the characters that are read, not time: only a cut escape is read twice."""
    decoder = ArgumentsDecoder()
    longest = 0
    for fragment in cut(json.dumps({"content": 'x"\\😀' * 5000}), 3):
        list(decoder.feed(fragment))
        longest = max(longest, len(decoder._undecided))  # the only thing it carries over
    assert decoder.complete
    assert longest < 12
