"""The JSON of a tool call's arguments, decoded while it arrives, in time linear in its length. Pure."""

import re
from collections.abc import Iterator

from drafting.text import REPLACEMENT

PLAIN = re.compile(r'[^"\\]+')
HEX4 = re.compile(r"[0-9a-fA-F]{4}")
SPACE = " \t\r\n"
ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class BrokenArguments(ValueError):
    """The arguments are not a JSON object, or name a field twice."""


class ArgumentsDecoder:
    """Decodes the string fields of one JSON object. Fields of other types need the whole text, and are skipped here.

    Line ends and tabs that a model left unescaped in a string are accepted.
    """

    def __init__(self) -> None:
        self.strings: dict[str, str] = {}  # the fields that are complete
        self.complete = False
        self._undecided = ""  # the beginning of an escape, of 11 characters at most
        self._depth = 0
        self._in_string = False
        self._key: str | None = None
        self._string: list[str] = []
        self._expects = "{"  # "{", "key", ":", "value", "," or, in a value of another type, "skip"

    def feed(self, fragment: str) -> Iterator[tuple[str, str]]:
        """Take the next characters; yields (field, the next characters of its text). Raises BrokenArguments."""
        text = self._undecided + fragment
        at = 0
        while at < len(text):
            if not self._in_string:
                at = self._structure(text, at)
                continue
            if plain := PLAIN.match(text, at):
                at, piece = plain.end(), plain[0].replace("\0", REPLACEMENT)
            elif text[at] == '"':
                at, piece = at + 1, ""
                self._end_string()
                continue
            else:
                end, piece = unescape(text, at)
                if end == at:
                    break
                at = end
            if self._depth == 1 or self._expects == "key":
                self._string.append(piece)
            if self._depth == 1 and self._expects == "value" and self._key is not None:
                yield self._key, piece
        self._undecided = text[at:]

    def _structure(self, text: str, at: int) -> int:
        character = text[at]
        if character in SPACE:
            return at + 1
        if self.complete:
            raise BrokenArguments("text after the object")
        if self._depth > 1 or self._expects == "skip":
            self._skip(character)
        elif character == '"' and self._expects in ("key", "value"):
            self._in_string = True
            self._string = []
        elif character == "{" and self._expects == "{":
            self._depth, self._expects = 1, "key"
        elif character == ":" and self._expects == ":":
            self._expects = "value"
        elif character == "," and self._expects == ",":
            self._expects = "key"
        elif character == "}" and self._expects in (",", "key"):
            self.complete = True
        elif self._expects == "value":
            self._expects = "skip"
            self._skip(character)
        else:
            raise BrokenArguments(f"{character!r} where {self._expects!r} was due")
        return at + 1

    def _skip(self, character: str) -> None:
        """Pass over a number, a literal, a list or an object."""
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            if self._depth > 1:
                self._depth -= 1
                if self._depth == 1:
                    self._expects = ","
            else:
                self.complete = True
        elif character == "," and self._depth == 1:
            self._expects = "key"

    def _end_string(self) -> None:
        self._in_string = False
        if self._depth > 1 or self._expects == "skip":
            return
        text = "".join(self._string)
        if self._expects == "key":
            if text in self.strings:
                raise BrokenArguments(f"{text!r} stands twice")
            self._key, self._expects = text, ":"
        elif self._key is not None:
            self.strings[self._key] = text
            self._expects = ","


def unescape(text: str, at: int) -> tuple[int, str]:
    """Decode the escape at `at`: where it ends, and its character; `at` itself if more of the text is needed."""
    kind = text[at + 1 : at + 2]
    if kind == "u":
        return _unescape_code_unit(text, at)
    if kind and kind not in ESCAPES:
        raise BrokenArguments(f"unknown escape \\{kind}")
    return (at + 2, ESCAPES[kind]) if kind else (at, "")


def _unescape_code_unit(text: str, at: int) -> tuple[int, str]:
    """The same of a `\\uXXXX`, or of the two that make a surrogate pair."""
    if at + 6 > len(text):
        return at, ""
    unit = _code_unit(text, at)
    if not 0xD800 <= unit < 0xDC00:
        return at + 6, REPLACEMENT if unit == 0 or 0xDC00 <= unit < 0xE000 else chr(unit)
    following = text[at + 6 : at + 12]
    if len(following) < 6 and "\\u".startswith(following[:2]):
        return at, ""
    if following.startswith("\\u") and 0xDC00 <= (low := _code_unit(text, at + 6)) < 0xE000:
        return at + 12, chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00))
    return at + 6, REPLACEMENT


def _code_unit(text: str, at: int) -> int:
    digits = HEX4.match(text, at + 2)
    if digits is None:
        raise BrokenArguments("a broken \\u escape")
    return int(digits[0], 16)
