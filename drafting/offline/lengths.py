"""Lengths of time: as people write them in a message, and as contracts write them ("two (2) years"). Pure."""

import re
from dataclasses import dataclass
from fractions import Fraction

UNITS = ("year", "month", "week", "day")
LONGEST = 999  # of one unit
LONGEST_YEARS = 99
DAYS = {"year": 365, "month": 30, "week": 7, "day": 1}  # at least, for the comparison with LONGEST_YEARS

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_HALVES = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4)}

_WORD = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(sorted(_SMALL, key=len)[::-1])})"
NUMBER = (
    rf"(?:\d{{1,6}} \({_WORD}\)|\d{{1,6}}(?:\.\d{{1,2}})?(?: ?[½¼¾])?|[½¼¾]|{_WORD}(?: ?\(\d{{1,6}}\))?|an?|half an?)"
)
_UNIT = r"(?:years?|yrs?|months?|mos?|weeks?|wks?|days?)"
_PART = rf"{NUMBER}(?: and a half)?[ -]?{_UNIT}\b(?: and a half\b(?![ -]{_UNIT}))?"
LENGTH = rf"{_PART}(?:(?:,? and |, ?| ){_PART}){{0,3}}"
"""A pattern of a length in a message, such as "2-year", "18 months" or "3 years and 6 months"."""

_READ_PART = re.compile(
    rf"(?P<number>{NUMBER})(?P<half> and a half)?[ -]?(?P<unit>{_UNIT})\b(?P<behind> and a half\b)?", re.IGNORECASE
)
_WRITTEN_PART = re.compile(r"[a-z -]+ \((\d+)\) (year|month|week|day)s?")


class NotALength(ValueError):
    """The text says a length that no contract can have. The message is the reason, for the user."""


@dataclass(frozen=True, slots=True)
class Length:
    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0

    def __post_init__(self) -> None:
        counts = self.counts
        if min(counts) < 0 or not any(counts):
            raise NotALength("A period must be longer than nothing.")
        in_days = sum(count * DAYS[unit] for unit, count in zip(UNITS, counts, strict=True))
        if max(counts) > LONGEST or in_days > LONGEST_YEARS * DAYS["year"]:
            raise NotALength(f"I write periods of up to {LONGEST_YEARS} years, and up to {LONGEST} of one unit.")

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.years, self.months, self.weeks, self.days

    def __str__(self) -> str:
        parts = [
            f"{spelled(count)} ({count}) {unit}{'' if count == 1 else 's'}"
            for unit, count in zip(UNITS, self.counts, strict=True)
            if count
        ]
        return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]

    def plus(self, other: "Length", sign: int = 1) -> "Length":
        """This length made longer, or shorter with -1. Raises NotALength if nothing would be left."""
        years, months, weeks, days = (mine + sign * its for mine, its in zip(self.counts, other.counts, strict=True))
        if years and (months < 0 or months > 11):
            years, months = divmod(12 * years + months, 12)
        return Length(years, months, weeks, days)


def spelled(number: int) -> str:
    """A number up to LONGEST in words."""
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        return f"{_SMALL[hundreds]} hundred" + (f" {spelled(rest)}" if rest else "")
    if number < len(_SMALL):
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")


def said_length(text: str) -> Length:
    """The length that a text of the form LENGTH says. Raises NotALength."""
    counts: dict[str, Fraction] = {}
    for part in _READ_PART.finditer(text):
        unit = next(unit for unit in UNITS if unit[0] == part["unit"][0].lower())
        if unit in counts:
            raise NotALength(f"“{text}” is two lengths, and I can't tell which one you mean.")
        counts[unit] = _number(part["number"]) + (Fraction(1, 2) if part["half"] or part["behind"] else 0)
    if counts.get("year", Fraction()).denominator > 1:  # eighteen months, as contracts do not count in half years
        counts["month"] = counts.get("month", Fraction()) + 12 * counts.pop("year")
    if any(count.denominator > 1 for count in counts.values()):
        raise NotALength(f"“{text}” is not a whole number of months, weeks or days.")
    return Length(**{f"{unit}s": int(count) for unit, count in counts.items()})


def _number(text: str) -> Fraction:
    text = text.lower()
    one, _, other = text.partition("(")
    if other:  # "two (2)" or "2 (two)"
        if _number(one.strip()) != _number(other.rstrip(")")):
            raise NotALength(f"“{text}” is two numbers.")
        return _number(one.strip())
    if text in ("a", "an"):
        return Fraction(1)
    if text.startswith("half"):
        return Fraction(1, 2)
    if text[-1] in _HALVES:
        return _HALVES[text[-1]] + (_number(text[:-1].strip()) if text[:-1].strip() else 0)
    if text[0].isdigit():
        return Fraction(text)
    return Fraction(next(number for number in range(100) if spelled(number) == text.replace(" ", "-")))


def written_length(text: str) -> Length | None:
    """The length in a contract's text, as str() gives it. None if the text is something else."""
    counts = {unit: int(count) for count, unit in _WRITTEN_PART.findall(text)}
    try:
        length = Length(**{f"{unit}s": count for unit, count in counts.items()})
    except NotALength:
        return None
    return length if str(length) == text else None
