"""The grammar of the requests that the offline model knows: patterns, and the requests that they mean. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from drafting.offline.agreement import PERPETUAL
from drafting.offline.laws import law_named, law_pattern
from drafting.offline.lengths import LENGTH, NUMBER, Length, said_length
from drafting.offline.vocabulary import (
    ChangePeriod,
    Draft,
    Help,
    NameParty,
    Party,
    PeriodField,
    Rename,
    Request,
    Restore,
    SetLaw,
    SetMutual,
    SetPeriod,
    Undo,
)

# ---------------------------------------------------------------------------------------------------------------
# The words

NDA = r"(?:nda|non-? ?disclosure agreement|confidentiality agreement)"
IT = rf"(?:it|this|that|(?:the|this|that|my|our) (?:(?:mutual |one-way )?{NDA}|agreement|contract|document|draft))"
TWO_WAY = r"(?:mutual|two-?way|bilateral|reciprocal|two-sided)"
ONE_WAY = r"(?:one-?way|unilateral|one-sided|non-?mutual|not mutual|no longer mutual|not reciprocal|not bilateral)"
MAKE = r"(?:make|turn|change|convert|switch|set)"
SET = r"(?:make|set|change|switch|move|update|amend|adjust|fix|modify)"
WANT = r"(?:(?:i|we) (?:want|need|prefer)|(?:i|we)(?: would|'d) (?:like|prefer))"
ADD = rf"(?:add|include|insert|set|use|give it|put in|apply|{WANT})"
LENGTHEN = r"(?:extend|lengthen|prolong|increase)"
SHORTEN = r"(?:shorten|reduce|cut|decrease)"
SHOULD = r"(?:should|shall|must|is to|has to|needs to|ought to)"
CONTRAST = r"(?:,? (?:instead of|rather than|and not|not|in place of) )"
THE_LAW = (
    r"(?:the |its )?(?:(?:governing|applicable) laws?(?: and (?:the )?jurisdiction)?|laws?|jurisdiction|choice of law)"
)
GOVERNED = r"(?:(?:is |be )?(?:governed by|subject to|under))"
TERM = r"(?:term|duration)"
SURVIVAL = r"(?:survival(?: (?:period|term|time))?)"
OBLIGATIONS = r"(?:(?:the |its )?(?:(?:confidentiality )?obligations(?: of confidentiality)?|confidentiality))"
AFTER_THE_END = r"(?: (?:after|beyond|following) (?:the )?(?:termination|end|expiry)(?: of (?:the )?agreement)?)?"
PERPETUALLY = r"(?:perpetual|unlimited|everlasting|last forever|forever)"
ROLE = (
    r"(?:the )?(?:(?P<disclosing>disclosing party|discloser)|(?P<receiving>receiving party|recipient|receiver)"
    r"|(?P<first>first party|party (?:one|1|a))|(?P<second>second party|party (?:two|2|b)))"
)

TAIL = re.compile(
    r"(?:,? (?:please|thanks|thank you|too|as well|now|instead|again|for me|for us))+(?![\w-])", re.IGNORECASE
)
# A request ends here. A setting that begins with a preposition may follow it without a joiner.
AFTER = re.compile(
    r"(?=\s*$|\s*[.;!?,\n]|,? (?:and|also|then|plus|but|as well as)\b| (?:between|with|under|governed|for)\b)",
    re.IGNORECASE,
)
HELP = r"(?:help(?: me)?|what can you do(?: for me)?|what do you do|who are you|what are you)"


# ---------------------------------------------------------------------------------------------------------------
# The requests that a match means

Match = re.Match[str]
Build = Callable[[Match], tuple[Request, ...]]


def drafted(match: Match) -> tuple[Request, ...]:
    requests: list[Request] = [Draft()]
    if match["two"] or match["one"]:
        requests += of_kind(match)
    if match["length"]:
        requests.append(SetPeriod("term", said_length(match["length"])))
    if match["law"]:
        requests += set_law(match)
    return tuple(requests)


def of_kind(match: Match) -> tuple[Request, ...]:
    return (SetMutual(bool(match["two"])),)


def field_of(match: Match) -> PeriodField:
    return "survival" if match.groupdict().get("survival") else "term"


def set_period(match: Match) -> tuple[Request, ...]:
    return (SetPeriod(field_of(match), said_length(match["length"]), was_of(match)),)


def make_perpetual(match: Match) -> tuple[Request, ...]:
    return (SetPeriod(field_of(match), PERPETUAL),)


def change_period(match: Match) -> tuple[Request, ...]:
    sign = -1 if match.groupdict().get("shorten") else 1
    return (ChangePeriod(field_of(match), said_length(match["length"]), sign, was_of(match)),)


def was_of(match: Match) -> Length | None:
    """Of "from 3 to 5 years" or "by one year (from 3)": a bare number has the unit of the other length."""
    said = match.groupdict().get("was") or match.groupdict().get("was_too")
    if not said:
        return None
    unit = re.search(r"[a-z]+$", match["length"], re.IGNORECASE)
    return said_length(said if re.fullmatch(LENGTH, said, re.IGNORECASE) or not unit else f"{said} {unit[0]}")


def set_law(match: Match) -> tuple[Request, ...]:
    groups = match.groupdict()
    was = groups.get("was") or groups.get("was_from")
    return (SetLaw(law_named(match["law"]), law_named(was) if was else None),)


def one_party(match: Match, name: str) -> tuple[Request, ...]:
    parties: tuple[Party, ...] = ("first", "second", "disclosing", "receiving")
    return (NameParty(next(party for party in parties if match[party]), name),)


def both_parties(_: Match, first: str, second: str) -> tuple[Request, ...]:
    return NameParty("first", first), NameParty("second", second)


def restore(match: Match) -> tuple[Request, ...]:
    if match["number"]:
        return (Restore(int(match["number"])),)
    return (Restore(1) if match["first"] else Restore(back=1),)


# ---------------------------------------------------------------------------------------------------------------
# The grammar


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the requests that it means. The names of parties follow it, if there are any, joined by `joint`."""

    pattern: re.Pattern[str]
    build: Callable[..., tuple[Request, ...]]
    names: int = 0
    joint: re.Pattern[str] | None = None


def rule(pattern: str, build: Build) -> Rule:
    """`pattern` with the end of a request behind it, so that it gives back what belongs to the next one."""
    return Rule(re.compile(rf"(?:{pattern})(?:{TAIL.pattern})?{AFTER.pattern}", re.IGNORECASE), build)


def naming(pattern: str, build: Callable[..., tuple[Request, ...]], *, joint: str | None = None) -> Rule:
    joined = re.compile(joint, re.IGNORECASE) if joint else None
    return Rule(re.compile(pattern, re.IGNORECASE), build, 2 if joint else 1, joined)


KIND = rf"(?:(?P<two>{TWO_WAY})|(?P<one>{ONE_WAY}))"
LEN = rf"(?P<length>{LENGTH})"
FROM = rf"(?P<was>{LENGTH}|{NUMBER})"
LAW = law_pattern("law")
WAS = rf"(?:{CONTRAST}{law_pattern('was')})?"
AND = r",? and "

A_DRAFT = (
    r"(?:(?:draft|write|create|prepare|generate|make|draw up|get|give|start|(?:i|we) (?:need|want)"
    r"|(?:i|we)(?: would|'d) like|(?:can|could|may) (?:i|we) (?:please )?(?:have|get))(?: me| us| up)? (?:the )?)?"
    r"(?:(?:an?|another|one|one more|a (?:new|second|further)) )?(?:(?:complete|full|standard|basic|new|second) )*"
    rf"(?:{KIND}[ ,]+)?(?:{LEN}[ ,]+)?(?:{LAW} )?{NDA}"
)
DRAFTING = [
    rule(A_DRAFT, drafted),
    naming(rf"{A_DRAFT} for ", lambda match, *names: (*drafted(match), *both_parties(match, *names)), joint=AND),
]
KINDS = [
    rule(
        rf"(?:{MAKE} {IT}|{MAKE} the obligations|{IT} {SHOULD} be|{WANT} {IT}(?: to be)?)"
        rf"(?: (?:in)?to| be| as)?(?: an?)? {KIND}(?: {NDA}| agreement| one| contract| document)?"
        rf"(?:{CONTRAST}(?:an? )?(?:{TWO_WAY}|{ONE_WAY}|only {ONE_WAY}))?",
        of_kind,
    ),
    rule(rf"{IT} (?:should not|shouldn't|must not) be {TWO_WAY}", lambda _: (SetMutual(False),)),
    rule(rf"{MAKE} {IT} (?:(?:go |work |apply )?both ways|apply to both parties)", lambda _: (SetMutual(True),)),
    rule(KIND, of_kind),
]
PERIOD = rf"(?:(?P<survival>{SURVIVAL})|{TERM})"
THE_PERIOD = rf"(?:the |its )?{PERIOD}"
THE_PERIOD_OR_IT = rf"(?:{THE_PERIOD}|{IT})"
SURVIVE = rf"(?P<survival>{OBLIGATIONS} (?:{SHOULD} )?(?:survive|last|continue|remain in force))"
MAKE_SURVIVE = rf"(?P<survival>(?:let|make|have) (?:{OBLIGATIONS}|{IT}) survive|{IT} {SHOULD} survive)"
LAST = rf"(?:(?:let|make|have) {IT}|{IT} {SHOULD}) (?:last|run|continue|remain in force)"
PERIODS = [
    rule(rf"(?:{ADD} |with |for )?(?:an? |the )?(?:fixed )?{PERIOD}(?: of| for|:) ?{LEN}{AFTER_THE_END}", set_period),
    rule(rf"(?:{ADD} |{SET} {IT} |with |for )?(?:an? |the )?{LEN}[ -](?:fixed )?{PERIOD}{AFTER_THE_END}", set_period),
    rule(rf"{SET} {THE_PERIOD}(?: to(?: be)?| be|:| =)? {LEN}{AFTER_THE_END}", set_period),
    rule(rf"{THE_PERIOD}(?: {SHOULD} be|:| to be| =)? ?{LEN}{AFTER_THE_END}", set_period),
    *(rule(rf"{who}(?: for)? {LEN}{AFTER_THE_END}", set_period) for who in (SURVIVE, MAKE_SURVIVE, LAST)),
    rule(rf"{SET} {IT}(?: to)?(?: for)? {LEN}(?: long)?", set_period),
    rule(rf"for {LEN}", set_period),
    rule(rf"(?:{SET}|{LENGTHEN}|{SHORTEN}) {THE_PERIOD} from {FROM} to {LEN}", set_period),
    rule(rf"(?:{LENGTHEN}|{SHORTEN}) {THE_PERIOD_OR_IT} to {LEN}", set_period),
    rule(
        rf"(?:{LENGTHEN}|(?P<shorten>{SHORTEN})) {THE_PERIOD_OR_IT} by (?:another |a further )?{LEN}"
        rf"(?: from {FROM}| \(from (?P<was_too>{LENGTH}|{NUMBER})\))?",
        change_period,
    ),
    rule(rf"add (?:another |a further |an additional )?{LEN}(?: more)? to {THE_PERIOD}", change_period),
    rule(rf"{SET} {THE_PERIOD}(?: to(?: be)?| be)? {PERPETUALLY}", make_perpetual),
    rule(rf"{THE_PERIOD} {SHOULD}(?: be)? {PERPETUALLY}", make_perpetual),
    rule(rf"(?:with |add )?an? {PERPETUALLY} {PERIOD}", make_perpetual),
    rule(
        rf"(?:remove|delete|drop|take out|strike) (?:the |its )?(?:fixed )?{TERM}"
        rf"|{SET} (?:the |its )?{TERM} (?:open|open-ended|indefinite)"
        rf"|(?:with )?no (?:fixed )?{TERM}|without a (?:fixed )?{TERM}"
        rf"|(?:with )?an? (?:open|open-ended|indefinite) {TERM}",
        lambda _: (SetPeriod("term", None),),
    ),
]
LAWS = [
    rule(
        rf"(?:{SET}|use|apply|insert|put in) {THE_LAW}(?: from {law_pattern('was_from')})?"
        rf"(?: to(?: be)?| be| as| of|:)? {LAW}{WAS}",
        set_law,
    ),
    rule(rf"(?:{MAKE} {IT} |{IT} {SHOULD} be |{WANT} {IT}(?: to be)? )?{GOVERNED} {LAW}{WAS}", set_law),
    rule(rf"(?:switch|move|change) to {LAW}{WAS}", set_law),
    rule(rf"{THE_LAW}(?: {SHOULD} be| to be|:| =) ?{LAW}{WAS}", set_law),
    rule(rf"(?:use |apply |choose |{SET} {IT} |with )?{LAW}(?<= law){WAS}", set_law),
    rule(rf"(?:use |apply |choose |{SET} {IT} )?{LAW}{CONTRAST}{law_pattern('was')}", set_law),
    rule(rf"(?:replace|swap) {law_pattern('was')} (?:with|by|for) {LAW}", set_law),
]
IS = rf"(?: is(?: called)?| {SHOULD} be(?: called)?|:| =) ?"
TO = r"(?: to(?: be)?| as| be|:)? "
PARTIES = [
    naming(rf"(?:rename|call|name) {ROLE}{TO}", one_party),
    naming(rf"(?:set|change|make|update) (?:the name of )?{ROLE}(?:'s name)?{TO}", one_party),
    naming(rf"{ROLE}(?:'s name)?{IS}", one_party),
    naming(rf"between |(?:rename|call|name|set|change|make) the parties{TO}", both_parties, joint=AND),
    naming(r"the parties (?:are|shall be|should be) |parties: ?", both_parties, joint=AND),
    naming(r"(?:rename|replace) ", lambda _, was, name: (Rename(was, name),), joint=r" (?:to|with|by|as) "),
]
VERSION = (
    r"(?:(?:version |v)(?P<number>\d{1,4})|(?:the )?(?:(?P<first>first|original)|previous|prior|last|preceding)"
    r" (?:version|draft|one))"
)
CHANGE = r"(?:the|my|your|this|that) (?:(?:last|latest|previous) )?(?:change|edit|request|step)"
BACK = [
    rule(
        r"(?:(?:go|roll|switch|change|get|take it|bring it) back to|back to|restore|return to|use|bring back"
        rf"|revert(?: {IT})?(?: back)? to) {VERSION}(?: again| back)?",
        restore,
    ),
    rule(
        rf"(?:undo|revert|roll back|take back|reverse)(?: (?:it|this|that|{CHANGE}))?"
        r"|(?:take|roll|turn) (?:it|this|that) back",
        lambda _: (Undo(),),
    ),
]
RULES = [*DRAFTING, *KINDS, *PERIODS, *LAWS, *PARTIES, *BACK, rule(HELP, lambda _: (Help(),))]
