"""The common elements of two sequences, in order, for a bounded effort. Pure; knows nothing of documents.

A stretch of a few elements, or a single element, that each side has exactly once is an anchor (patience diff): it says
where a passage went even if much around it changed. Between two anchors the shortest edit is sought (Myers). Two
sequences with little in common would take the square of their length. So the effort is counted, and when it is used up,
nothing more counts as common.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MOST_EDITS = 128  # of one search for the shortest edit; beyond them it goes on from the furthest place that it found


STRETCH = 6  # elements: so many words in a row, or three and the spaces between them, are seldom there twice
LOOKS_A_STEP = 4  # the search for anchors looks an element up in tables, each time faster than a step
EQUALS_A_STEP = 4  # likewise, a step past equal elements costs a comparison


@dataclass
class Effort:
    """How many steps may still be taken; a step is one on a diagonal of an edit graph."""

    left: int

    def spend(self, steps: int) -> bool:
        """Whether there are as many left; only then they are spent."""
        if steps > self.left:
            return False
        self.left -= steps
        return True

    def took(self, steps: int) -> None:
        """So many were taken, as many as there are left or more."""
        self.left -= steps


def common(before: Sequence[Hashable], after: Sequence[Hashable], effort: Effort) -> list[tuple[int, int]]:
    """The places (i, j), rising in both, where before[i] == after[j]."""
    numbers: dict[Hashable, int] = {}  # in place of the elements, as they are compared and hashed again and again
    one, other = ([numbers.setdefault(element, len(numbers)) for element in side] for side in (before, after))
    found: list[tuple[int, int]] = []
    gaps = deque([(0, len(one), 0, len(other))])  # the wide ones first, so that each gets its share of the effort
    while gaps:
        i, i_end, j, j_end = gaps.popleft()
        while i < i_end and j < j_end and one[i] == other[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        while i < i_end and j < j_end and one[i_end - 1] == other[j_end - 1]:
            i_end, j_end = i_end - 1, j_end - 1
            found.append((i_end, j_end))
        if i == i_end or j == j_end or not effort.spend((i_end - i + j_end - j) // LOOKS_A_STEP + 1):
            continue
        old, new = one[i:i_end], other[j:j_end]
        anchors = _anchors(_stretches(old), _stretches(new)) or _anchors(old, new)
        if not anchors:
            found += [(i + x, j + y) for x, y in _shortest(old, new, effort)]
            continue
        anchors = [(i + x, j + y) for x, y in anchors]
        found += anchors
        starts = [(i, j), *((x + 1, y + 1) for x, y in anchors)]
        ends = [*anchors, (i_end, j_end)]
        gaps += [(x, x_end, y, y_end) for (x, y), (x_end, y_end) in zip(starts, ends, strict=True)]
    return sorted(found)


def _anchors(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Of the elements that both have exactly once, the most that stand in the same order."""
    in_old, in_new = Counter(old), Counter(new)
    place = {element: j for j, element in enumerate(new) if in_new[element] == 1}
    pairs = [(i, place[element]) for i, element in enumerate(old) if in_old[element] == 1 and element in place]
    return _rising(pairs)


def _stretches(elements: Sequence[int]) -> list[Hashable]:
    return list(zip(*(elements[start:] for start in range(STRETCH)), strict=False))


def _rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest choice of the pairs, which rise on the left, that also rises on the right."""
    ends: list[int] = []  # the smallest right side that a choice of this length can end with
    last: list[int] = []  # and the pair with which it does
    previous: list[int] = []
    for number, (_, right) in enumerate(pairs):
        length = bisect_left(ends, right)
        previous.append(last[length - 1] if length else -1)
        ends[length : length + 1] = [right]
        last[length : length + 1] = [number]
    chosen = []
    number = last[-1] if last else -1
    while number >= 0:
        chosen.append(pairs[number])
        number = previous[number]
    return chosen[::-1]


def _shortest(old: Sequence[int], new: Sequence[int], effort: Effort) -> list[tuple[int, int]]:
    """The places that a short edit from old to new keeps: the shortest edit, if it has at most MOST_EDITS."""
    in_old, in_new = set(old), set(new)
    olds = [i for i, element in enumerate(old) if element in in_new]
    news = [j for j, element in enumerate(new) if element in in_old]
    old, new = [old[i] for i in olds], [new[j] for j in news]
    found: list[tuple[int, int]] = []
    x, y = 0, 0
    while x < len(old) and y < len(new):
        kept, (dx, dy) = _walk(old[x:], new[y:], effort)
        found += [(olds[x + i], news[y + j]) for i, j in kept]
        if dx + dy == 0:
            break
        x, y = x + dx, y + dy
    return found


def _walk(old: Sequence[int], new: Sequence[int], effort: Effort) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Myers' greedy walk over the edit graph: the places kept on the way, and how far it got."""
    zero = MOST_EDITS + 1
    furthest = [0] * (2 * MOST_EDITS + 3)  # by diagonal, x - y
    trail: list[list[int]] = []
    for edits in range(MOST_EDITS + 1):
        if not effort.spend(edits + 1):
            break
        trail.append(furthest[zero - edits - 1 : zero + edits + 2])
        equal = 0
        for diagonal in range(-edits, edits + 1, 2):
            down = _comes_down(diagonal, edits, furthest[zero + diagonal - 1], furthest[zero + diagonal + 1])
            x = furthest[zero + diagonal + 1] if down else furthest[zero + diagonal - 1] + 1
            y = x - diagonal
            start = x
            while x < len(old) and y < len(new) and old[x] == new[y]:
                x, y = x + 1, y + 1
            equal += x - start
            furthest[zero + diagonal] = x
            if x >= len(old) and y >= len(new):
                return _back(trail, x, y), (x, y)
        effort.took(equal // EQUALS_A_STEP)
    edits = len(trail) - 1
    reached = [
        (x, x - diagonal)
        for diagonal in range(-edits, edits + 1, 2)
        if 0 <= (x := furthest[zero + diagonal]) - diagonal <= len(new) and x <= len(old)
    ]
    if not reached:
        return [], (0, 0)
    x, y = max(reached, key=sum)
    return _back(trail, x, y), (x, y)


def _comes_down(diagonal: int, edits: int, left: int, right: int) -> bool:
    """Whether the furthest path to a diagonal comes from the one above it (an insertion), not below (a deletion)."""
    return diagonal == -edits or (diagonal != edits and left < right)


def _back(trail: list[list[int]], x: int, y: int) -> list[tuple[int, int]]:
    """The places that the path to (x, y) keeps."""
    kept = []
    for edits in range(len(trail) - 1, -1, -1):
        before, diagonal = trail[edits], x - y
        middle = diagonal + edits + 1
        down = _comes_down(diagonal, edits, before[middle - 1], before[middle + 1])
        from_x = before[middle + 1] if down else before[middle - 1] + 1
        while x > from_x and y > 0:
            x, y = x - 1, y - 1
            kept.append((x, y))
        x, y = (from_x, y - 1) if down else (from_x - 1, y)
    return kept
