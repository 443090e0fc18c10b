"""The passages of a document that a change has touched, as they now stand. Pure."""

from collections.abc import Iterable, Sequence

from documents.alignment import Effort, common

STEPS = 20_000  # of an alignment; beyond them more counts as changed than was, which is no harm


def changed(before: str, after: str) -> list[str]:
    """The lines of `after` that are not those of `before`, a text for each stretch of them.

    Where lines were only taken out, it is the lines on both sides of the gap.
    """
    old, new = before.splitlines(), after.splitlines()
    passages: list[str] = []
    i = j = _equal(old, new)
    rest = _equal(old[i:][::-1], new[j:][::-1])
    middle, middle_after = old[i : len(old) - rest], new[j : len(new) - rest]
    places = [(i + x, j + y) for x, y in common(middle, middle_after, Effort(STEPS))]
    for x, y in [*places, (len(old) - rest, len(new) - rest)]:
        if y > j:
            text = "\n".join(new[j:y])
        elif x > i:
            text = "\n".join([*_first(reversed(new[:j])), *_first(new[j:])])
        else:
            text = ""
        if text.strip():
            passages.append(text)
        i, j = x + 1, y + 1
    return passages


def _first(lines: Iterable[str]) -> list[str]:
    """The first that is not blank."""
    return next(([line] for line in lines if line.strip()), [])


def _equal(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of lines at their beginning that both have. Most of a contract is; this takes a tenth of a search."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
