"""Text in which the characters that models mix up are the same: quotes, dashes and spaces. Pure.

A model that copies a passage often writes straight quotes for curly ones, or a space for a line end. Folded, both are
equal. `Folded` remembers where each folded character came from, so that a match can be found in the text itself.
"""

import re
from bisect import bisect_right

_SINGLE_QUOTES = "‘’‚‛′ʼ‹›"
_DOUBLE_QUOTES = "“”„‟″«»"
_DASHES = "‐‑‒–—―−"  # a hyphen's relatives are the point
_SPACES = "\t\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_UNSEEN = "\u00ad\u200b\u2060\ufeff"  # a soft hyphen, and three spaces without a width

_SAME = str.maketrans(
    dict.fromkeys(_SINGLE_QUOTES, "'")
    | dict.fromkeys(_DOUBLE_QUOTES, '"')
    | dict.fromkeys(_DASHES, "-")
    | dict.fromkeys(_SPACES, " ")
)
_RUN = re.compile(rf"[ \n{_UNSEEN}]{{2,}}|[\n{_UNSEEN}]")
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # characters of Chinese and Japanese, which stand without spaces
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
# A word, a blank or one other character. Folding never changes more than one of them, so a text may be cut between two.
TOKEN = re.compile(rf"[\s{_UNSEEN}]+|{WORD.pattern}|[^\w\s{_UNSEEN}]")


class Folded:
    """A folded text. Several spaces and a line end are one space, and a blank line stays apart from both."""

    def __init__(self, text: str) -> None:
        flat = text.translate(_SAME)  # as long as the text
        pieces: list[str] = []
        self._at = [0]  # folded places, each behind a run of another length than its fold
        self._shift = [0]  # from these places on: the place in the text less the folded place
        done = length = 0
        for run in _RUN.finditer(flat):
            pieces += (flat[done : run.start()], _fold_of(run[0]))
            length += len(pieces[-2]) + len(pieces[-1])
            done = run.end()
            if done - length != self._shift[-1]:
                self._at.append(length)
                self._shift.append(done - length)
        self.text = "".join((*pieces, flat[done:]))

    def place(self, at: int) -> int:
        """The place in the text, of a place in the folded text."""
        return at + self._shift[bisect_right(self._at, at) - 1]


def folded(text: str) -> str:
    return _RUN.sub(lambda run: _fold_of(run[0]), text.translate(_SAME))


def _fold_of(run: str) -> str:
    if not run.strip(_UNSEEN):
        return ""
    return " " if run.count("\n") < 2 else "\n"
