"""The passage of a document that is nearest to a text that does not stand in it, and what differs. Pure.

A model that is shown the document's own characters corrects its call at once. The passage is found by the words that
both have, rare ones first, so the time grows with the document's length only once for all edits of a call.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import islice
from math import log

from drafting.editing.folding import TOKEN, WORD, folded

SHOWN_CHARS = 600  # the most of one passage
AROUND_CHARS = 60  # on each side of a place
MOST_DIFFERENCES = 3
MOST_WORDS = 200  # of a find, that are looked for
MOST_HITS = 5_000  # places of these words: in a long document the frequent words mean nothing
MARGIN = 2  # words, for a passage that differs at its beginning or its end
ROUNDING = 1e-9  # of sums of weights
WORD_CHARS = 30  # a text may have no blanks for long
END_CHARS = 2_000  # of a text, the most that is shown for its last words


def shown(text: str, start: int, end: int) -> str:
    """The passage; of a long one its beginning and its end."""
    if end - start <= SHOWN_CHARS:
        return text[start:end]
    half = SHOWN_CHARS // 2
    return f"{text[start : start + half]}\n[…]\n{text[end - half : end]}"


def around(text: str, start: int, end: int) -> str:
    """The passage with some words on each side."""
    return shown(text, _word_start(text, start - AROUND_CHARS), _word_end(text, end + AROUND_CHARS))


def last_words(text: str) -> str:
    """The end of the text, without blanks behind it: as many words as it takes to stand once."""
    text = text.rstrip()
    length = AROUND_CHARS
    while length < min(len(text), END_CHARS):
        words = text[_word_start(text, len(text) - length) :]
        if text.find(words) == len(text) - len(words):
            return words
        length *= 2
    return text[_word_start(text, len(text) - END_CHARS) :]


def _word_start(text: str, at: int) -> int:
    start = max(at, 0)
    while start > 0 and not text[start - 1].isspace():
        start -= 1
        if at - start == WORD_CHARS:
            return at
    return start


def _word_end(text: str, at: int) -> int:
    end = min(at, len(text))
    while end < len(text) and not text[end].isspace():
        end += 1
        if end - at == WORD_CHARS:
            return at
    return end


class Words:
    """The words of a text, in their order."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = [word.casefold() for word in WORD.findall(text)]
        self._counts = Counter(self._words)

    def nearest(self, find: str) -> str:
        """Sentences that show the nearest passage, and how the text to find differs from it."""
        find = find[: _end_of_words(find)]
        wanted = [word.casefold() for word in WORD.findall(find)]
        window = self._window(wanted)
        if window is None:
            beginning = self._text[: _word_end(self._text, AROUND_CHARS)]
            return f"None of its words do. The document begins with this text:\n{beginning}\n"
        first, last = window
        margin = MARGIN + max(len(wanted) - (last - first + 1), 0)
        around_it = list(islice(WORD.finditer(self._text), max(first - margin, 0), last + margin + 1))
        start, end = _word_start(self._text, around_it[0].start()), _word_end(self._text, around_it[-1].end())
        return _compared(find, self._text[start:end])

    def _window(self, wanted: Sequence[str]) -> tuple[int, int] | None:
        """The first and the last word of the stretch that has the most of the wanted words, rare ones counting more."""
        weights = self._weights(wanted)
        hits = [(number, word) for number, word in enumerate(self._words) if word in weights]
        width = len(wanted) * 5 // 4 + 2
        held: Counter[str] = Counter()
        best, found, score, left = 0.0, None, 0.0, 0
        for number, word in hits:
            held[word] += 1
            score += weights[word] if held[word] == 1 else 0
            while hits[left][0] <= number - width:
                gone = hits[left][1]
                held[gone] -= 1
                score -= 0 if held[gone] else weights[gone]
                left += 1
            if score > best + ROUNDING:
                best, found = score, (hits[left][0], number)
        return found

    def _weights(self, wanted: Sequence[str]) -> dict[str, float]:
        """Of the rarest of the wanted words that stand in the text, MOST_HITS times together."""
        weights: dict[str, float] = {}
        hits = 0
        for word in sorted(set(wanted) & self._counts.keys(), key=lambda word: self._counts[word]):
            hits += self._counts[word]
            if hits > MOST_HITS and weights:
                break
            weights[word] = log(1 + len(self._words) / self._counts[word])
        return weights


def _end_of_words(find: str) -> int:
    """Where the words end that are compared."""
    for number, word in enumerate(WORD.finditer(find), 1):
        if number == MOST_WORDS:
            return word.end()
    return len(find)


class _Tokens:
    """The words and signs of a text, without the blanks."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.found = [token for token in TOKEN.finditer(text) if not token[0].isspace()]
        self.keys = [folded(token[0]).casefold() for token in self.found]

    def start(self, number: int) -> int:
        return self.found[number].start()

    def between(self, first: int, end: int) -> str:
        return self._text[self.start(first) : self.found[end - 1].end()] if first < end else ""


def _compared(find: str, text: str) -> str:
    """`text`: the nearest passage, and perhaps some words more."""
    ours, theirs = _Tokens(find), _Tokens(text)
    matcher = SequenceMatcher(None, ours.keys, theirs.keys, autojunk=False)
    *blocks, _ = matcher.get_matching_blocks()
    first, last = blocks[0], blocks[-1]
    begin = max(first.b - first.a, 0)
    end = min(last.b + len(ours.keys) - last.a, len(theirs.keys))
    passage = theirs.between(begin, end)
    differences = list(_differences(matcher, ours, theirs, begin, end))
    told = "; ".join(differences[:MOST_DIFFERENCES])
    if not told:
        is_same = folded(find).split() == folded(passage).split()
        told = "the spaces or blank lines are other ones" if is_same else "upper and lower case are not the same"
    return f"The nearest text there is:\n{shown(passage, 0, len(passage))}\nIt differs: {told}."


def _differences(matcher: SequenceMatcher[str], ours: _Tokens, theirs: _Tokens, begin: int, end: int) -> Iterator[str]:
    """In the order of the text, and only those within the passage."""
    for kind, a, to_a, b, to_b in matcher.get_opcodes():
        if kind == "equal":
            continue
        has = ours.between(a, to_a)[:AROUND_CHARS]
        stands = theirs.between(max(b, begin), min(to_b, end))[:AROUND_CHARS]
        if has and stands:
            yield f'the document has "{stands}" where find has "{has}"'
        elif has:
            yield f'find has "{has}" besides'
        elif stands:
            yield f'the document has "{stands}" besides'
