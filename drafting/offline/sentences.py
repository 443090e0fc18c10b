"""A message as a list of known requests. Pure.

A message is understood whole or not at all: it is a list of known requests, joined by "and", "also", commas or the ends
of sentences. `understand` says which parts are none, and then nothing may be changed. A question is no request, but for
"can you …" and the like.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from drafting.offline.grammar import AFTER, RULES, TAIL, Rule
from drafting.offline.lengths import NotALength
from drafting.offline.names import name_at
from drafting.offline.vocabulary import Draft, Help, Request

# Between two requests, and before the first: words that may be said without being one.
LEAD = re.compile(
    r"(?:\s|[.,;:!]|(?:^|(?<=\n))(?:[-*•]|\d{1,2}[.)]) "
    r"|(?:and|also|then|plus|next|finally|now|so|but|ok|okay|great|good|perfect|thanks|thank you|hi|hello|hey|yes|sure"
    r"|well|additionally|furthermore|in addition|as well as)\b(?!-))",
    re.IGNORECASE,
)
ASKED = re.compile(r"(?:(?:can|could|would|will) you|please|kindly)\b,? ?", re.IGNORECASE)
POLITE = re.compile(
    r"(?:go ahead and|let's|let us|i want you to|i(?:'d| would) like you to|(?:i|we) (?:want|need|would like) to)\b"
    r",? ?",
    re.IGNORECASE,
)
ENDS = (".", ";", "!", "?", "\n")
END = re.compile(r"[.;!?](?=\s|$)|\n|$")
ASKS = re.compile(
    r"(?:what|which|who|whose|whom|when|where|why|how|does|do|did|is|are|was|were|has|have|had|should|shall|may|might|must"
    r"|will|would|can|could|am|isn't|aren't|doesn't|don't you|tell me|explain|i wonder|any idea)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Understood:
    """The requests of a message in their order. They count only if `not_understood` and `reasons` are empty.

    `not_understood` has the parts that are no known request. `reasons` says why a known one can't be carried out.
    """

    requests: tuple[Request, ...] = ()
    not_understood: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    is_question: bool = False


# ---------------------------------------------------------------------------------------------------------------
# The reading of a message

LONGEST = 4000  # characters of a message that is read; no list of requests is so long
_FOLDED = str.maketrans({"’": "'", "‘": "'", "–": "-", "—": "-", "‑": "-", "\N{NO-BREAK SPACE}": " "})
_WHOLE_QUOTE = re.compile(r"[\"“']([^\"“”']+)[\"”']")


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a message: requests, or a text that is none, or a request that no contract can have."""

    end: int
    requests: tuple[Request, ...] = ()
    not_understood: str = ""
    reason: str = ""
    is_question: bool = False


def understand(message: str) -> Understood:
    """The requests of a message, or the parts of it that are none."""
    said = _tidy(message)
    if len(said) > LONGEST:
        return Understood(not_understood=(said,))
    parts = list(_parts(said))
    return Understood(
        requests=tuple(request for part in parts for request in part.requests),
        not_understood=tuple(part.not_understood for part in parts if part.not_understood),
        reasons=tuple(part.reason for part in parts if part.reason),
        is_question=any(part.is_question for part in parts),
    )


def _parts(said: str) -> Iterator[_Part]:
    text = said.translate(_FOLDED)  # of the same length
    at, asked, drafting = 0, False, False
    while True:
        begin, asked = _led(text, at, asked=asked)
        if begin >= len(text):
            return
        # "make it mutual for 2 years" is not "make it mutual" and "for 2 years"
        joined = drafting or at == 0 or text[at - 1] in ENDS or bool(text[at:begin].strip())
        part = _part(said, text, begin, asked=asked) if joined else _not_understood(said, text, begin)
        yield part
        at, drafting = part.end, drafting or Draft() in part.requests
        if text[at : at + 1] in ENDS:
            at, asked = at + 1, False


def _part(said: str, text: str, at: int, *, asked: bool) -> _Part:
    try:
        found = max(_found(said, text, at), key=lambda each: each[1], default=None)
    except NotALength as error:
        return _Part(_end(text, at), reason=str(error))
    if found is None:
        return _not_understood(said, text, at)
    requests, end = found
    if text[end : end + 1] == "?" and not asked and requests != (Help(),):
        return _Part(end, not_understood=said[at : end + 1], is_question=True)
    return _Part(end, requests)


def _not_understood(said: str, text: str, at: int) -> _Part:
    end = _end(text, at)
    is_question = text[end : end + 1] == "?" or ASKS.match(text, at) is not None
    return _Part(end, not_understood=said[at : end + 1].strip().rstrip(".;!"), is_question=is_question)


def _tidy(message: str) -> str:
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", message).splitlines())
    text = "\n".join(line for line in lines if line)
    whole = _WHOLE_QUOTE.fullmatch(text)
    return whole[1].strip() if whole else text


def _led(text: str, at: int, *, asked: bool) -> tuple[int, bool]:
    """Past the words that lead to a request; whether it is asked for politely, so that a question mark may follow."""
    while at < len(text):
        if lead := LEAD.match(text, at) or POLITE.match(text, at):
            at = lead.end()
        elif lead := ASKED.match(text, at):
            at, asked = lead.end(), True
        else:
            break
    return at, asked


def _found(said: str, text: str, at: int) -> Iterator[tuple[tuple[Request, ...], int]]:
    """Each known request that begins there, and where it ends."""
    for each in RULES:
        match = each.pattern.match(text, at)
        if match is None:
            continue
        names, end = _names(said, match.end(), each)
        if len(names) < each.names:
            continue
        if names and (tail := TAIL.match(text, end)):
            end = tail.end()
        if AFTER.match(text, end):
            yield each.build(match, *names), end


def _names(said: str, at: int, each: Rule) -> tuple[list[str], int]:
    """The names of parties that follow a pattern, as far as they do."""
    names: list[str] = []
    while len(names) < each.names:
        if names and each.joint:
            joint = each.joint.match(said, at)
            if joint is None:
                break
            at = joint.end()
        name = name_at(said, at)
        if name is None:
            break
        names.append(name[0])
        at = name[1]
    return names, at


def _end(text: str, at: int) -> int:
    """The end of the sentence."""
    found = END.search(text, at)
    return found.start() if found else len(text)
