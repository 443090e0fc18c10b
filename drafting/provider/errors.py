"""A provider's error, in whatever shape it comes, to a ModelError in our own words.

Providers agree on little. So everything that an error says is read: status numbers wherever they stand, codes, and
sentences, also of JSON inside of a text. A status number that tells the cause decides. A vague one (400, 500, none)
leaves it to the codes, and these to the sentences; drafting/provider/words.py has both. tests/provider_bodies.py has
errors of each family, with the public reports that they come from.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from drafting.deltas import TOO_LONG, ModelError, Reported
from drafting.provider.words import (
    ALONE,
    CODE_IN_SENTENCE,
    CODES,
    OUTPUT_LIMIT,
    RATE,
    SENTENCES,
    STATUS_IN_SENTENCE,
    VAGUE_CODES,
    Kind,
    Patterns,
)

# The code of the `error` event, its text for people, and whether the same message may succeed later.
ERRORS: Mapping[Kind, tuple[str, str, bool]] = {
    "context": ("model_context", TOO_LONG, False),
    "content": (
        "content_filter",
        "The model's provider refused this message for its content; please put it in other words.",
        False,
    ),
    "quota": ("model_quota", "The quota at the model's provider is used up; the operator can raise it.", False),
    "tools": (
        "model_misconfigured",
        "This model can't use tools, which drafting needs; the operator must choose another one.",
        False,
    ),
    "model": (
        "model_not_found",
        "The model's provider does not have this model; the operator must set another.",
        False,
    ),
    "refused": (
        "model_misconfigured",
        "The model's provider does not serve this account or region; the operator must choose another one.",
        False,
    ),
    "address": (
        "model_misconfigured",
        "The model's address does not lead to its API; the operator must correct it.",
        False,
    ),
    "rate": ("model_rate_limited", "The model is busy; please try again in a moment.", True),
    "key": ("model_auth", "The model's provider refused our key; the operator must set another.", False),
    "unavailable": ("model_unavailable", "The model's provider has a fault; please try again.", True),
    "request": ("model_rejected", "The model's provider rejected the request.", False),
    "page": (
        "model_unreachable",
        "A web page answers at the model's address, and not the model; the operator must correct the address.",
        False,
    ),
    "unreadable": (
        "model_protocol",
        "The model's reply could not be read; please send the message again.",
        True,
    ),
}
ANY: frozenset[Kind] = frozenset(get_args(Kind))

# What a status number means, and which other causes the codes and sentences beside it may name.
STATUSES: Mapping[int, tuple[Kind, frozenset[Kind]]] = {
    400: ("request", ANY),
    401: ("key", frozenset({"quota", "model"})),
    402: ("quota", frozenset()),
    403: ("key", frozenset({"quota", "content", "model", "refused", "rate"})),
    404: ("address", frozenset({"model", "tools", "refused", "content"})),
    407: ("address", frozenset()),
    408: ("unavailable", frozenset()),
    409: ("unavailable", frozenset()),
    410: ("address", frozenset({"model"})),
    413: ("context", frozenset()),
    422: ("request", ANY),
    424: ("unavailable", ANY),
    425: ("unavailable", frozenset()),
    429: ("rate", frozenset({"quota", "context"})),
    451: ("refused", frozenset()),
    498: ("rate", frozenset()),  # Groq: the capacity of a tier is used up
    499: ("unavailable", frozenset()),
}
MISDIRECTED = {405, 406, 415, 421, 501, 505}  # something answers, and it is not this API
SERVER_FAULT: frozenset[Kind] = frozenset({"context", "content", "quota", "tools", "rate"})
VAGUE = {400, 422, 424, *range(500, 600)}  # another number in the same error says more

MOST_TEXT = 20_000  # characters of an error that are read
MOST_PARTS = 200
DEEPEST = 16
LONGEST_CODE = 100

# The names of members, without "_" and in lower case.
CODE_KEYS = {"code", "type", "status", "reason", "name", "errortype", "errorcode", "errcode", "statuscode"}
CODE_KEYS |= {"httpstatus", "httpcode", "exception", "blockreason"}
TEXT_KEYS = {"message", "msg", "detail", "details", "error", "errors", "errormessage", "errormsg", "description"}
TEXT_KEYS |= {"errordescription", "title", "raw", "body", "responsebody", "cause", "statusmsg", "reasons"}
ECHOES = {"input", "messages", "request", "requestbody", "prompt", "tools", "choices", "failedgeneration"}

IS_PAGE = re.compile(r"\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
STATUS_OF_PAGE = re.compile(r"\b[45]\d\d\b")  # a page that a gateway sends with status 200 has it in its title
TAGS = re.compile(r"<(script|style)\b.*?(</\1>|$)|<[^>]*>", re.IGNORECASE | re.DOTALL)


def provider_error(error: object, status: int | None = None, *, retry_after_s: float | None = None) -> ModelError:
    """Of an error as it stands in a stream, or of a response's whole body: parsed, or the text or bytes of it.

    `status` is that of the response, where it failed or its whole body is meant.
    """
    found = Found()
    found.read(error)
    kind = _kind(found, status)
    code, content, retryable = ERRORS[kind]
    if kind == "rate" and retry_after_s is not None:
        content = f"The model is busy; please try again in {_in_words(retry_after_s)}."
    reported = Reported(
        status=status if status is not None else next(iter(found.statuses), None),
        codes=tuple(dict.fromkeys(found.codes))[:3],
        message=" / ".join(dict.fromkeys(found.texts)),
    )
    return ModelError(code, content, retryable=retryable, reported=reported)


def _in_words(seconds: float) -> str:
    if seconds < 1:
        return "a moment"
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.0f} hours"


@dataclass(slots=True)
class Found:
    """All that an error says, the outer parts first."""

    statuses: list[int] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    is_page: bool = False
    is_json: bool = False
    _parts: int = 0

    def read(self, error: object) -> None:
        if isinstance(error, bytes | bytearray):
            error = bytes(error[:MOST_TEXT]).decode("utf-8", "replace")
        if isinstance(error, str) and IS_PAGE.match(error):
            self.is_page = True
            words = _words_of_page(error[:MOST_TEXT])
            self.texts.append(words)
            self.statuses += [int(number) for number in STATUS_OF_PAGE.findall(words)[:1]]
        else:
            self._read("error", error, 0)
        for text in self.texts:
            self.statuses += [int(number) for number in STATUS_IN_SENTENCE.findall(text) if _is_status(int(number))]

    def _read(self, key: str, value: object, depth: int) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS or depth > DEEPEST:
            return
        if isinstance(value, Mapping):
            self.is_json = True
            for name, member in value.items():
                if (inner := re.sub(r"[^a-z]", "", str(name).lower())) not in ECHOES:
                    self._read(inner, member, depth + 1)
        elif isinstance(value, list | tuple):
            self._read_list(key, value, depth)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if key in CODE_KEYS:
                self._note_code(str(int(value)) if value == value // 1 else "")
        elif isinstance(value, str) and value.strip():
            self._read_text(key, value[:MOST_TEXT].strip(), depth)

    def _read_list(self, key: str, members: Sequence[object], depth: int) -> None:
        if key == "loc":  # Pydantic's path of the field, which its sentence leaves out
            self.texts.append(".".join(map(str, members[:DEEPEST]))[:LONGEST_CODE])
            return
        for member in members:
            self._read(key, member, depth + 1)

    def _read_text(self, key: str, text: str, depth: int) -> None:
        if text[0] in "{[" and (inner := _json(text)) is not None:
            self._read(key, inner, depth + 1)
        elif key in CODE_KEYS and not re.search(r"\s", text) and len(text) <= LONGEST_CODE:
            self._note_code(text)
        elif key in CODE_KEYS | TEXT_KEYS:
            self.texts.append(text)

    def _note_code(self, code: str) -> None:
        if code.isdecimal() and _is_status(int(code)):
            self.statuses.append(int(code))
        elif code and "/" not in code and code != "error":
            self.codes.append(code)


def _is_status(number: int) -> bool:
    return 300 <= number < 600


def _json(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed


def _words_of_page(page: str) -> str:
    title = TITLE.search(page)
    words = html.unescape(title[1] if title else TAGS.sub(" ", page))
    return f"a web page: {' '.join(words.split())[:200]}"


def _kind(found: Found, status: int | None) -> Kind:
    told = [status] if status is not None and _is_status(status) else []
    told += found.statuses
    # Of vague numbers the inner one is of the server that failed.
    number = next((each for each in told if each not in VAGUE), told[-1] if told else None)
    if found.is_page and (number is None or number == 403 or number < 400):
        return "page"
    default, possible = _meaning(number)
    if status is not None and number is None and not found.is_json:
        default = "unreadable"
    if number is not None and number >= 500 and "model" in _matches(CODES, _plain(found.codes)):
        return "model"  # a gateway that has no server for it; a sentence may only tell which model failed
    return next((kind for kind in _named(found) if kind in possible and kind != default), default)


def _meaning(status: int | None) -> tuple[Kind, frozenset[Kind]]:
    """The cause that a status number tells, and the others that codes and sentences may name in its place."""
    if status is None:
        return "unavailable", ANY
    if status in MISDIRECTED or status < 400:
        return "address", frozenset()
    if status >= 500:
        return "unavailable", SERVER_FAULT
    return STATUSES.get(status, ("request", ANY))


def _named(found: Found) -> Iterator[Kind]:
    """The causes that the codes name, and then those of the sentences."""
    codes = _plain(found.codes)
    yield from _matches(CODES, codes)
    for text in found.texts:
        lowered = text.lower()
        other_limit = OUTPUT_LIMIT.search(lowered) or (RATE.search(lowered) and not ALONE.search(lowered))
        words = [word.replace("_", "").lower() for word in CODE_IN_SENTENCE.findall(text) if "fallback" not in word]
        named = [*_matches(CODES, words), *_matches(SENTENCES, [lowered])]
        yield from (kind for kind in named if not (kind == "context" and other_limit))
    yield from _matches(VAGUE_CODES, codes)


def _plain(codes: Sequence[str]) -> Sequence[str]:
    return [re.sub(r"[^a-z0-9]", "", code.lower()) for code in codes]


def _matches(table: Patterns, texts: Sequence[str]) -> Iterator[Kind]:
    return (kind for kind, pattern in table if any(pattern.search(text) for text in texts))
