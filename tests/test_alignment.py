"""The alignment of two sequences: right for any input, shortest for small ones, and never more than its effort."""

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from documents import alignment
from documents.alignment import Effort, common

if TYPE_CHECKING:
    from _typeshed import TraceFunction

PLENTY = 1_000_000
letters = st.lists(st.sampled_from("abcd"), max_size=40)


def longest(before: Sequence[str], after: Sequence[str]) -> int:
    """How much they have in common at most, by the textbook."""

    @cache
    def of(i: int, j: int) -> int:
        if i == len(before) or j == len(after):
            return 0
        return max(of(i + 1, j), of(i, j + 1), 1 + of(i + 1, j + 1) if before[i] == after[j] else 0)

    return of(0, 0)


def lines_run(work: Callable[[], object], files: tuple[str, ...] = ("redline.py", "alignment.py")) -> int:
    """How many lines are run, of the redline or of other files whose names end so."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> "TraceFunction | None":
        nonlocal count
        if not frame.f_code.co_filename.endswith(files):
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def check(before: Sequence[object], after: Sequence[object], found: list[tuple[int, int]]) -> None:
    assert all(before[i] == after[j] for i, j in found)
    assert all(i < x and j < y for (i, j), (x, y) in itertools.pairwise(found))


@given(letters, letters, st.sampled_from([1, 2, 5, 128]), st.sampled_from([0, 3, 10, 50, 200, PLENTY]))
def test_the_places_rise_and_have_the_same_on_both_sides(
    before: list[str], after: list[str], most_edits: int, effort: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "MOST_EDITS", most_edits)
        check(before, after, common(before, after, Effort(effort)))


@given(letters, letters)
def test_the_shortest_edit_keeps_the_most(before: list[str], after: list[str]) -> None:
    old, new = ([ord(letter) for letter in side] for side in (before, after))
    assert len(alignment._shortest(old, new, Effort(PLENTY))) == longest(before, after)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", "", []),
        ("", "a", []),
        ("abc", "abc", [(0, 0), (1, 1), (2, 2)]),
        ("abc", "axc", [(0, 0), (2, 2)]),
        ("abc", "xyz", []),
        # x is there once on each side: it is found among elements that are not.
        ("aabbxccdd", "eeffxgghh", [(4, 4)]),
        ("xaby", "yabx", [(1, 1), (2, 2)]),
    ],
)
def test_common_gives_the_places_of_equal_elements(before: str, after: str, found: list[tuple[int, int]]) -> None:
    assert common(before, after, Effort(PLENTY)) == found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (range(50_000), range(50_000, 100_000)),  # nothing in common
        (range(50_000), range(49_999, -1, -1)),  # everything, in the wrong order
        ([0, 1] * 25_000, [1, 1, 0, 0, 1] * 10_000),  # nothing that is there once
        ([n * n % 31 for n in range(50_000)], [n * n * n % 29 for n in range(50_000)]),
        ([0] * 50_000, [0] * 20_000 + [1] + [0] * 20_000 + [1]),
    ],
)
def test_long_sequences_with_little_in_common_take_no_more_steps_than_they_may(
    before: Sequence[int], after: Sequence[int]
) -> None:
    effort = Effort(20_000)
    count = lines_run(lambda: check(before, after, common(before, after, effort)))
    assert effort.left >= 0
    assert count < 20 * (20_000 + len(before) + len(after))


def test_a_few_edits_in_a_long_sequence_without_landmarks_are_all_found() -> None:
    before = [0, 1, 1] * 20_000
    after = [*before[:10], 1, *before[10:30000], *before[30003:50000], 0, 0, *before[50000:]]
    assert len(common(before, after, Effort(PLENTY))) >= len(before) - 3
