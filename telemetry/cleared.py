"""A sentence of others for the log, without the conversation that it may quote.

A provider's error says why it refused a request, and often quotes the request. An operator needs its own words. These
are left out: each run of LONGEST_RUN letters that also stands in the conversation, each quoted passage of it, each
short message as a whole, and all that looks like a key or a person's address. Letters and digits alone are compared, so
that escapes, line ends and capitals don't hide a quotation.
"""

import html
import re
from collections.abc import Iterable, Iterator
from typing import Self

LONGEST_RUN = 16  # letters and digits: about three words
BLOCK = LONGEST_RUN // 2  # a run has at least one block that begins at a multiple of this
MOST_READ = 1500  # characters
LONGEST = 300
LONGEST_QUOTATION = 40  # a longer one is nobody's name for a parameter or a model
GAP = "…"

ESCAPES = re.compile(r"((?:\\+x[0-9a-fA-F]{2})+)|\\+(?:u([0-9a-fA-F]{4})|[nrtbf])?")
NO_LETTERS = re.compile(r"[\W_]+")
QUOTED = re.compile(r"(?<!\w)(?:\"([^\"]+)\"|'([^']+)'|`([^`]+)`|“([^”]+)”|«([^»]+)»|‘([^’]+)’)(?!\w)")
IDENTIFIER = re.compile(r"[\w.\[\]/:-]*[_.\[\]/0-9][\w.\[\]/:-]*")
NAMES = {
    "user",
    "tool",
    "tools",
    "assistant",
    "system",
    "developer",
    "function",
    "messages",
    "message",
    "content",
    "role",
}
NAMES |= {"model", "auto", "none", "null", "required", "string", "object", "array", "temperature", "stream"}
# A server that can't read the model's output quotes it, and that is in no request.
READING = re.compile(r"\b(pars(e|ing)|decod(e|ing)|grammar|last read)\b[^:\"'`{<\[]*", re.IGNORECASE)
PRIVATE = re.compile(
    r"\b(?:sk|pk|gsk|xai|hf|ds|key|org|proj|AIza)[-_]?[\w*-]*\d[\w*-]{6,}|\bsk-[\w*-]+|\bBearer\s+\S+"
    r"|[\w.+-]+@[\w.-]+\.\w+|\b(?=[\w.-]*\d)(?=[\w.-]*[A-Za-z])[\w.-]{40,}"
)
QUERY = re.compile(r"(https?://[^\s?]+)\?\S+")
USER_INFO = re.compile(r"//[^/@\s]+@")


class Cleared(str):
    """One line of at most LONGEST characters. `said`: all that is not to be shown."""

    __slots__ = ()

    def __new__(cls, text: str, said: Iterable[str]) -> Self:
        text = html.unescape(_unescaped(text[:MOST_READ]))
        if reading := READING.search(text):
            text = text[: reading.end()]
        text = PRIVATE.sub(GAP, USER_INFO.sub("//", QUERY.sub(r"\1", text)))
        texts = [_letters(_unescaped(each)) for each in said]
        conversation = "\n".join(texts)
        text = QUOTED.sub(lambda found: _quotation(found, conversation), text)
        text = _without(text, conversation, [each for each in texts if 2 < len(each) < LONGEST_RUN])
        line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        return super().__new__(cls, line if len(line) <= LONGEST else line[: LONGEST - 1] + GAP)


def _unescaped(text: str) -> str:
    """JSON's and Python's escapes, also of a text within a text."""

    def character(found: re.Match[str]) -> str:
        if found[1]:
            return bytes.fromhex(re.sub(r"\\+x", "", found[1])).decode("utf-8", "replace")
        return chr(int(found[2], 16)) if found[2] else " " if found[0].strip("\\") else ""

    return ESCAPES.sub(character, text) if "\\" in text else text


def _letters(text: str) -> str:
    return NO_LETTERS.sub("", text.casefold())


def _quotation(found: re.Match[str], conversation: str) -> str:
    passage = next(filter(None, found.groups()))
    if passage in NAMES or IDENTIFIER.fullmatch(passage):
        return found[0]
    letters = _letters(passage)
    kept = len(passage) <= LONGEST_QUOTATION and not (letters and letters in conversation)
    return found[0] if kept else GAP


def _without(text: str, conversation: str, messages: Iterable[str]) -> str:
    """The text with a gap in the place of each run that stands in the conversation, and of each short message."""
    places = [(letter, place) for place, each in enumerate(text) for letter in _letters(each)]
    letters = "".join(letter for letter, _ in places)
    gaps = [*_runs(letters, conversation)]
    gaps += [found.span() for message in messages for found in re.finditer(re.escape(message), letters)]
    shown = [*text]
    for start, end in gaps:
        first, last = places[start][1], places[end - 1][1]
        shown[first : last + 1] = [""] * (last - first) + [GAP]
    return re.sub(rf"{GAP}[\s{GAP}]*{GAP}", GAP, "".join(shown))


def _runs(letters: str, conversation: str) -> Iterator[tuple[int, int]]:
    for block in range(0, len(letters) - BLOCK + 1, BLOCK):
        if letters[block : block + BLOCK] in conversation:
            for start in range(max(block - BLOCK, 0), block + 1):
                run = letters[start : start + LONGEST_RUN]
                if len(run) == LONGEST_RUN and run in conversation:
                    yield start, start + LONGEST_RUN
