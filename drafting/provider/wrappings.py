"""A call's arguments while they arrive: where they end, and what some models wrap them in. Pure.

The arguments are a JSON object. Some models write a JSON string that contains the object, or put it into a fence of
Markdown.
"""

import re
from typing import Protocol

from drafting.arguments import PLAIN, BrokenArguments, unescape

STRUCTURE = re.compile(r'["{}\[\]]')
IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
OPENING = re.compile(r'[{\["]')
FENCE = "`"
BEHIND_FENCE = " \t\r\n`"


class Wrapping(Protocol):
    @property
    def complete(self) -> bool: ...

    def feed(self, text: str) -> tuple[str, str]:
        """The arguments in the next characters, and the text behind their end."""


def wrapping_of(text: str) -> Wrapping:
    """For the arguments that begin with this text, which is not empty."""
    first = text.lstrip()[0]
    if first == '"':
        return InString()
    return InFence() if first == FENCE else Plain()


class Plain:
    """Not wrapped. On the hot path, so it looks at the characters of a string only if one may end it."""

    __slots__ = ("_escaped", "_in_string", "_open", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._in_string = False
        self._escaped = False  # the next character is
        self._open: list[str] = []  # the closing brackets that are due, the next one last

    def end(self) -> str:
        """No more comes: the closing brackets that are missing, unless more is."""
        if self._in_string:
            return ""
        missing = "".join(reversed(self._open))
        self._open.clear()
        self.complete = True
        return missing

    def is_inside(self, text: str) -> bool:
        """All of the text is in the middle of a string, so there is nothing to note of it."""
        return self._in_string and not self._escaped and '"' not in text and "\\" not in text

    def feed(self, text: str) -> tuple[str, str]:
        if self.is_inside(text):
            return text, ""
        at = 0
        while at < len(text) and not self.complete:
            if self._escaped:
                self._escaped = False
                at += 1
            elif self._in_string:
                at = self._string(text, at)
            else:
                at = self._structure(text, at)
        return text[:at], text[at:]

    def _string(self, text: str, at: int) -> int:
        match = IN_STRING.match(text, at)
        at = match.end() if match else at
        if at < len(text):
            self._in_string, self._escaped = text[at] != '"', text[at] == "\\"
            at += 1
        return at

    def _structure(self, text: str, at: int) -> int:
        match = STRUCTURE.search(text, at)
        if match is None:
            return len(text)
        if match[0] == '"':
            self._in_string = True
        else:
            if match[0] in "{[":
                self._open.append("}" if match[0] == "{" else "]")
            else:
                del self._open[-1:]
            self.complete = not self._open
        return match.end()


class InString:
    """In a JSON string, which may contain a further wrapping."""

    def __init__(self) -> None:
        self.complete = False
        self._begun = False
        self._undecided = ""  # the beginning of an escape
        self._inner: Wrapping | None = None

    def feed(self, text: str) -> tuple[str, str]:
        if self.complete:
            return "", text
        if not self._begun:
            text = text.lstrip().removeprefix('"')
            self._begun = True
        content, behind = self._decode(self._undecided + text)
        if self._inner is None:
            if not content.strip():
                return content, behind
            self._inner = wrapping_of(content)
        arguments, rest = self._inner.feed(content)
        return arguments + rest, behind

    def _decode(self, text: str) -> tuple[str, str]:
        decoded: list[str] = []
        at = 0
        self._undecided = ""
        while at < len(text):
            if plain := PLAIN.match(text, at):
                decoded.append(plain[0])
                at = plain.end()
            elif text[at] == '"':
                self.complete = True
                return "".join(decoded), text[at + 1 :]
            else:
                end, character = _unescape(text, at)
                if end == at:
                    self._undecided = text[at:]
                    break
                decoded.append(character)
                at = end
        return "".join(decoded), ""


def _unescape(text: str, at: int) -> tuple[int, str]:
    try:
        return unescape(text, at)
    except BrokenArguments:
        return at + 1, text[at]


class InFence:
    """Between two lines of "```", the first of which may name the language."""

    def __init__(self) -> None:
        self._inner: Wrapping | None = None

    @property
    def complete(self) -> bool:
        return self._inner is not None and self._inner.complete

    def feed(self, text: str) -> tuple[str, str]:
        if self._inner is None:
            opening = OPENING.search(text)
            if opening is None:
                return "", ""
            text = text[opening.start() :]
            self._inner = wrapping_of(text)
        arguments, behind = self._inner.feed(text)
        return arguments, behind.lstrip(BEHIND_FENCE)
