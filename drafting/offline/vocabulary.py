"""The requests that the offline model knows. Pure."""

from dataclasses import dataclass
from typing import Literal

from drafting.offline.agreement import Period
from drafting.offline.lengths import Length

Party = Literal["first", "second", "disclosing", "receiving"]
PeriodField = Literal["term", "survival"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A new document."""


@dataclass(frozen=True, slots=True)
class SetMutual:
    mutual: bool


@dataclass(frozen=True, slots=True)
class SetPeriod:
    """`was`: the user says that it is this now."""

    field: PeriodField
    period: Period | None
    was: Length | None = None


@dataclass(frozen=True, slots=True)
class ChangePeriod:
    """Make it longer by so much, or shorter with the sign -1."""

    field: PeriodField
    by: Length
    sign: int
    was: Length | None = None


@dataclass(frozen=True, slots=True)
class SetLaw:
    law: str
    was: str | None = None


@dataclass(frozen=True, slots=True)
class NameParty:
    party: Party
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """The party that has the one name now gets the other."""

    was: str
    name: str


@dataclass(frozen=True, slots=True)
class Restore:
    """A version by its number, or counted from the newest: 0 is the newest, 1 the one before."""

    version: int | None = None
    back: int = 0


@dataclass(frozen=True, slots=True)
class Undo:
    pass


@dataclass(frozen=True, slots=True)
class Help:
    pass


Request = Draft | SetMutual | SetPeriod | ChangePeriod | SetLaw | NameParty | Rename | Restore | Undo | Help
