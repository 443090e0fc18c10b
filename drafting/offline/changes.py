"""Requests carried out on the terms of an agreement, and the words that say what they change. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from drafting.offline.agreement import PERPETUAL, Period, Terms, library, names_of
from drafting.offline.lengths import Length, NotALength
from drafting.offline.vocabulary import (
    ChangePeriod,
    NameParty,
    Rename,
    Request,
    SetLaw,
    SetMutual,
    SetPeriod,
)

PERIODS = {"term": "The term", "survival": "The survival period"}


class Refused(ValueError):
    """A request that can't be carried out. The message is the reason, for the user."""

    def __init__(self, reason: str, **values: object) -> None:
        super().__init__(library()["reasons"][reason].format(**values))


def requested(terms: Terms, requests: Sequence[Request]) -> tuple[Terms, set[str]]:
    """The terms after all requests, in their order, and the names of the fields that they set. Raises Refused."""
    said: dict[str, object] = {}
    for request in requests:
        after = _after(terms, request)
        for name in _fields(terms, request):
            value = getattr(after, name)
            if name in said and said[name] != value and not isinstance(request, ChangePeriod):
                raise Refused("two_things", one=_shown(name, said[name]), other=_shown(name, value))
            said[name] = value
        terms = after
    if terms.first and terms.second and terms.first.casefold() == terms.second.casefold():
        raise Refused("one_name")
    return terms, set(said)


def _fields(terms: Terms, request: Request) -> list[str]:
    match request:
        case SetMutual():
            return ["mutual"]
        case SetPeriod(field) | ChangePeriod(field):
            return [field]
        case SetLaw():
            return ["law"]
        case NameParty() | Rename():
            return [_party(terms, request)]
    return []


def _after(terms: Terms, request: Request) -> Terms:
    match request:
        case SetMutual(mutual):
            return replace(terms, mutual=mutual)
        case SetPeriod(field, period, was):
            _expect_period(terms, field, was)
            return _with(terms, field, period)
        case ChangePeriod(field, by, sign, was):
            _expect_period(terms, field, was)
            now: Period | None = getattr(terms, field)
            if not isinstance(now, Length):
                raise Refused("no_period", name=PERIODS[field])
            try:
                return _with(terms, field, now.plus(by, sign))
            except NotALength as error:
                raise Refused("length", error=error) from None
        case SetLaw(law, was):
            now_law = terms.law or library()["governing_law"]
            if was and was != now_law:
                raise Refused("not_so", name="The governing law", now=f"that of {now_law}", was=f"that of {was}")
            return replace(terms, law=None if law == library()["governing_law"] else law)
        case NameParty(_, name) | Rename(_, name):
            return _with(terms, _party(terms, request), name)
    return terms


def _with(terms: Terms, field: str, value: object) -> Terms:
    values: dict[str, Any] = {field: value}
    return replace(terms, **values)


def _expect_period(terms: Terms, field: str, was: Length | None) -> None:
    if was and was != getattr(terms, field):
        raise Refused("not_so", name=PERIODS[field], now=_period(getattr(terms, field)), was=was)


def _party(terms: Terms, request: NameParty | Rename) -> str:
    """The field of the party that is to be named."""
    if isinstance(request, Rename):
        first, second = names_of(terms)
        for field, name in (("first", first), ("second", second)):
            if name.strip("[]").casefold() == request.was.strip("[]").casefold():
                return field
        raise Refused("no_such_party", name=request.was, first=first, second=second)
    if request.party in ("first", "second"):
        return request.party
    if terms.mutual:
        raise Refused("both_roles")
    return "first" if request.party == "disclosing" else "second"


def _period(period: Period | None) -> str:
    if period is None:
        return "not fixed"
    return "without limit in time" if period == PERPETUAL else str(period)


def _shown(field: str, value: object) -> str:
    if field == "mutual":
        return "a mutual agreement" if value else "a one-way agreement"
    if value is None or isinstance(value, Length) or value == PERPETUAL:
        return _period(value) if field in PERIODS else str(library()["governing_law"])
    return str(value)


def changes_between(before: Terms, after: Terms) -> list[str]:
    """The differences, as phrases of a sentence."""
    phrases = []
    if after.mutual != before.mutual:
        phrases.append("make the obligations mutual" if after.mutual else "make the agreement one-way")
    if after.term != before.term:
        phrases.append(_term_phrase(after.term))
    if after.survival != before.survival:
        length = _period(after.survival)
        phrases.append(
            "let the obligations continue without limit in time"
            if after.survival == PERPETUAL
            else f"set the survival period to {length}"
        )
    if after.law != before.law:
        phrases.append(f"change the governing law to that of {after.law or library()['governing_law']}")
    for number, now, was in (("first", after.first, before.first), ("second", after.second, before.second)):
        if now != was:
            phrases.append(f"name the {number} party {now}")
    return phrases


def _term_phrase(term: Period | None) -> str:
    if term is None:
        return "remove the fixed term, so that either Party can end the agreement by notice"
    return "make the term perpetual" if term == PERPETUAL else f"give the agreement a term of {term}"


def details_of(terms: Terms) -> str:
    """What was asked of a new agreement, behind its name: " between … with a term of … under the law of …"."""
    first, second = names_of(terms)
    parties = f" between {first} and {second}" if terms.first or terms.second else ""
    periods = []
    if terms.term is not None:
        periods.append("a perpetual term" if terms.term == PERPETUAL else f"a term of {terms.term}")
    if terms.survival is not None:
        periods.append(
            "an unlimited survival period" if terms.survival == PERPETUAL else f"a survival period of {terms.survival}"
        )
    return (
        parties
        + (f" with {listed(periods)}" if periods else "")
        + (f" under the law of {terms.law}" if terms.law else "")
    )


def listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
