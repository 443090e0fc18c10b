"""Content of a reply: the thinking that models put into it, and providers that send the text so far again."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafting.provider.content import MARKS, Head, Snapshots, has_thought_without_beginning

TEXTS = st.lists(st.text("aA \n1", min_size=1, max_size=4), min_size=1, max_size=8)


def fed(reader: Head | Snapshots, parts: Sequence[str]) -> str:
    return "".join([*map(reader.feed, parts), reader.close()])


@given(TEXTS)
def test_snapshots_say_the_last_of_them(parts: list[str]) -> None:
    so_far = ["x" + "".join(parts[:end]) for end in range(len(parts) + 1)]
    if len(so_far) > 2:
        assert fed(Snapshots(), so_far) == so_far[-1]


@pytest.mark.parametrize(
    "parts",
    [
        ["na", "na", "nana", " na"],
        ["好", "好的", "。"],
        ["1", "10", "0"],
        ["a", "ab"],
        [" ", "  ", "   ", "x"],
        ["a", "b", "ba"],
    ],
)
def test_a_text_that_repeats_itself_is_given_out_whole(parts: list[str]) -> None:
    assert fed(Snapshots(), parts) == "".join(parts)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("mark", "end"), MARKS.items())
def test_thinking_between_marks_is_no_text(mark: str, end: str, size: int) -> None:
    text = f"\n{mark}I <wonder>{end}\n\nThe answer </x>."
    assert fed(Head(), [text[at : at + size] for at in range(0, len(text), size)]) == "The answer </x>."


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I wonder\n</think>\n\nThe answer.", "The answer."),
        ("<think>I wonder</think>The answer.", "The answer."),
        ("The answer, without a thought.", "The answer, without a thought."),
        ("</think>\n\nThe answer.", "The answer."),
    ],
)
def test_a_model_that_begins_in_its_thinking_says_its_answer(text: str, said: str, size: int) -> None:
    assert fed(Head(in_thought=True), [text[at : at + size] for at in range(0, len(text), size)]) == said


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ("I wonder\n</think>\n\nThe answer.", True),
        ("I wonder.</think>\nThe answer.", True),
        ("<think>\nI wonder\n</think>\nThe answer.", False),
        ("The tag </think> ends it.", False),
        ("The answer.", False),
    ],
)
def test_only_the_end_of_a_thought_shows_that_the_template_has_its_beginning(said: str, *, has: bool) -> None:
    assert has_thought_without_beginning(said) is has
