"""The grammar of the offline model: a message is a list of known requests, or nothing is done."""

import re
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafting.offline.agreement import PERPETUAL
from drafting.offline.laws import laws
from drafting.offline.lengths import UNITS, Length, NotALength, said_length, spelled, written_length
from drafting.offline.names import name_at
from drafting.offline.sentences import LONGEST, understand
from drafting.offline.vocabulary import (
    ChangePeriod,
    Draft,
    Help,
    NameParty,
    Rename,
    Request,
    Restore,
    SetLaw,
    SetMutual,
    SetPeriod,
    Undo,
)

NEW_YORK, TEXAS, CALIFORNIA, DELAWARE = (
    f"the State of {each}, USA" for each in ["New York", "Texas", "California", "Delaware"]
)
MUTUAL, ONE_WAY = SetMutual(mutual=True), SetMutual(mutual=False)


def term(**counts: int) -> SetPeriod:
    return SetPeriod("term", Length(**counts))


def survival(**counts: int) -> SetPeriod:
    return SetPeriod("survival", Length(**counts))


def parties(first: str, second: str) -> tuple[Request, ...]:
    return NameParty("first", first), NameParty("second", second)


REQUESTS: dict[str, tuple[Request, ...]] = {
    # a new document
    "Draft an NDA": (Draft(),),
    "NDA": (Draft(),),
    "nda please": (Draft(),),
    "“Draft an NDA”": (Draft(),),
    "Draft another NDA": (Draft(),),
    "I need a non-disclosure agreement": (Draft(),),
    "please write me a Non-Disclosure Agreement": (Draft(),),
    "Can I have an NDA": (Draft(),),
    "Hi! Could you draft an NDA, please?": (Draft(),),
    "Draft a mutual NDA with a 2-year term": (Draft(), MUTUAL, term(years=2)),
    "I'd like a one-way NDA under New York law": (Draft(), ONE_WAY, SetLaw(NEW_YORK)),
    "Draft an NDA between Acme Inc. and Beta LLC": (Draft(), *parties("Acme Inc.", "Beta LLC")),
    "Draft an NDA for Acme Inc. and Beta LLC.": (Draft(), *parties("Acme Inc.", "Beta LLC")),
    "Draft an NDA between Müller & Söhne GmbH & Co. KG and Bank of America for 18 months, governed by German law": (
        *(Draft(), *parties("Müller & Söhne GmbH & Co. KG", "Bank of America"), term(months=18), SetLaw("Germany")),
    ),
    "Draft an NDA with a term of 2 years and a survival period of 5 years": (Draft(), term(years=2), survival(years=5)),
    # one-way or mutual
    "Make it mutual": (MUTUAL,),
    "can you make it mutual?": (MUTUAL,),
    "Could you please make it mutual": (MUTUAL,),
    "Please make it mutual?": (MUTUAL,),
    "It should be reciprocal": (MUTUAL,),
    "turn this into a mutual agreement, thanks": (MUTUAL,),
    "I want it to be mutual": (MUTUAL,),
    "make it mutual instead of one-way": (MUTUAL,),
    "Make it not mutual": (ONE_WAY,),
    "make it one-way": (ONE_WAY,),
    "make it one-way again": (ONE_WAY,),
    "it should not be mutual": (ONE_WAY,),
    "make it one-way, not mutual": (ONE_WAY,),
    # the term
    "Add 2-year term": (term(years=2),),
    "Add a two-year term": (term(years=2),),
    "add a two (2) year term": (term(years=2),),
    "make the term five years": (term(years=5),),
    "I want a 3 year term": (term(years=3),),
    "we'd like a term of 3 years": (term(years=3),),
    "Set term = 2 years": (term(years=2),),
    "term: 1.5 years": (term(months=18),),
    "term: 1½ years": (term(months=18),),
    "a term of one and a half years": (term(months=18),),
    "the term should be a year and a half": (term(months=18),),
    "make it 3 years and 6 months": (term(years=3, months=6),),
    "set the term to 90 days": (term(days=90),),
    "change the term from 3 to 5 years": (SetPeriod("term", Length(years=5), Length(years=3)),),
    "extend the term to five years": (term(years=5),),
    "extend the term by one year": (ChangePeriod("term", Length(years=1), 1),),
    "extend the term by one year (from 3)": (ChangePeriod("term", Length(years=1), 1, Length(years=3)),),
    "shorten it by six months": (ChangePeriod("term", Length(months=6), -1),),
    "remove the term": (SetPeriod("term", None),),
    "make the term perpetual": (SetPeriod("term", PERPETUAL),),
    # the survival period
    "Set the survival period to 5 years": (survival(years=5),),
    "survival: 18 months": (survival(months=18),),
    "the confidentiality obligations should survive for 5 years after termination": (survival(years=5),),
    "make it survive for 3 years": (survival(years=3),),
    "extend the survival period by 1 year": (ChangePeriod("survival", Length(years=1), 1),),
    "a perpetual survival period": (SetPeriod("survival", PERPETUAL),),
    # the law
    "Change the governing law to California instead of Delaware": (SetLaw(CALIFORNIA, DELAWARE),),
    "Change the law from Delaware to Texas": (SetLaw(TEXAS, DELAWARE),),
    "California instead of Delaware": (SetLaw(CALIFORNIA, DELAWARE),),
    "under the laws of England and Wales please": (SetLaw("England and Wales"),),
    "governed by Texas law": (SetLaw(TEXAS),),
    "change law to NY": (SetLaw(NEW_YORK),),
    "Governing law: the laws of the State of New York, USA.": (SetLaw(NEW_YORK),),
    "use English law": (SetLaw("England and Wales"),),
    "Change the law to Massachusetts": (SetLaw("the Commonwealth of Massachusetts, USA"),),
    "Change the law to Washington, D.C.": (SetLaw("the District of Columbia, USA"),),
    "Switch to the law of Ontario": (SetLaw("the Province of Ontario, Canada"),),
    # the parties
    "rename the first party to Acme Corp.": (NameParty("first", "Acme Corp."),),
    "The receiving party is Beta LLC": (NameParty("receiving", "Beta LLC"),),
    "call the second party “Johnson and Johnson”": (NameParty("second", "Johnson and Johnson"),),
    "rename Acme to Beta Corp.": (Rename("Acme", "Beta Corp."),),
    "the parties are Acme, Inc. and J. P. Morgan": parties("Acme, Inc.", "J. P. Morgan"),
    # back
    "undo that": (Undo(),),
    "Undo the last change.": (Undo(),),
    "go back to version 1": (Restore(1),),
    "restore v2": (Restore(2),),
    "revert to the previous version": (Restore(back=1),),
    "back to the original version": (Restore(1),),
    # several
    "Change the law to New York. Also make it mutual and add a 5 year term.": (SetLaw(NEW_YORK), MUTUAL, term(years=5)),
    "Can you make it mutual and add a 2 year term?": (MUTUAL, term(years=2)),
    "- make it mutual\n- add a term of 3 years": (MUTUAL, term(years=3)),
    "1. Make it mutual\n2) Rename the first party to Acme Corp. Also add 2-year term": (
        *(MUTUAL, NameParty("first", "Acme Corp."), term(years=2)),
    ),
    "a term of 2 years and 5 years survival": (term(years=2), survival(years=5)),
    # nothing to do
    "Hello!": (),
    "thanks": (),
    "What can you do?": (Help(),),
}


@pytest.mark.parametrize("message", REQUESTS)
def test_a_message_means_these_requests(message: str) -> None:
    understood = understand(message)
    assert understood.requests == REQUESTS[message]
    assert not understood.not_understood + understood.reasons


# Each message with the part that the reply must name.
NOT_UNDERSTOOD = {
    "Make it mutual and cook dinner": "cook dinner",
    "Make it mutual. Then call me": "call me",
    "Draft an NDA and a lease": "a lease",
    "Write an employment contract with an NDA clause": "Write an employment contract with an NDA clause",
    "make it mutual tomorrow": "make it mutual tomorrow",
    "make it mutual if they agree": "make it mutual if they agree",
    "make it mutual for 2 years": "for 2 years",
    "don't make it mutual": "don't make it mutual",
    "Never make it mutual": "Never make it mutual",
    "the other side says make it mutual": "the other side says make it mutual",
    "change the law to Narnia": "change the law to Narnia",
    "change the law to UK law": "change the law to UK law",
    "change the law to Texas and New York": "New York",
    "Change the law to New York say": "Change the law to New York say",
    "rename the first party to my landlord": "rename the first party to my landlord",
    "Draft an NDA between me and my landlord": "between me and my landlord",
    "rename the first party to **Acme**": "rename the first party to **Acme**",
    "rename the first party to [Acme]": "rename the first party to [Acme]",
    "add a -2 year term": "add a -2 year term",
    "add a 1,5 year term": "add a 1,5 year term",
    "delete clause 8": "delete clause 8",
    "add a non-solicitation clause": "add a non-solicitation clause",
    "Mach es gegenseitig": "Mach es gegenseitig",
}


@pytest.mark.parametrize("message", NOT_UNDERSTOOD)
def test_the_part_that_is_no_request_is_named(message: str) -> None:
    understood = understand(message)
    assert understood.not_understood == (NOT_UNDERSTOOD[message],)
    assert not understood.is_question


@pytest.mark.parametrize(
    "message",
    [
        *("What does the law of New York say about NDAs?", "what does the law of New York say about NDAs"),
        *("Does this survive for 2 years?", "does this survive for 2 years"),
        *("Make it mutual?", "mutual?", "A 2-year term?", "Undo that?", "Change the law to Texas?", "NDA?"),
        *(
            "Can you tell me whether it is mutual",
            "Could you explain the term?",
            "Should it be mutual?",
            "Is it mutual",
        ),
        *(
            "Can we make it mutual?",
            "Shall we make it mutual?",
            "Why not make it mutual?",
            "Can it be governed by Texas law?",
        ),
        *(
            "Make it mutual. What does that mean?",
            "What if the term should be 3 years?",
            "?",
            "Will you make it mutual or not?",
        ),
    ],
)
def test_a_question_is_no_request(message: str) -> None:
    understood = understand(message)
    assert understood.not_understood
    assert understood.is_question


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Add 0-year term", "longer than nothing"),
        ("add a zero year term", "longer than nothing"),
        ("add a 500 year term", "up to 99 years"),
        ("add a 1.1 year term", "not a whole number"),
        ("a term of 2.5 weeks", "not a whole number"),
        ("add a two (3) year term", "two numbers"),
        ("make it 2 years and 3 years", "two lengths"),
    ],
)
def test_a_length_that_no_contract_has_is_refused_with_its_reason(message: str, reason: str) -> None:
    assert [reason in each for each in understand(message).reasons] == [True]


# ---------------------------------------------------------------------------------------------------------------
# Properties

SINGLE = [
    message
    for message, requests in REQUESTS.items()
    if len(requests) == 1 and "\n" not in message and "“" not in message
]
JOINTS = [" and ", ". Also ", ", ", "; ", "\n", "! Then ", ", and then "]


@given(st.lists(st.sampled_from(SINGLE), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_requests_in_any_order_and_with_any_joint_are_each_understood(messages: list[str], random: Random) -> None:
    text, expected = "", list[Request]()
    for message in messages:
        words = (
            message.rstrip(".?!")
            if message.endswith(("?", "!")) or not message.endswith(("Corp.", "D.C."))
            else message
        )
        joint = random.choice([". ", "\n"]) if "?" in message or "you" in message.lower() else random.choice(JOINTS)
        text += (joint if text else "") + words
        expected += REQUESTS[message]
    understood = understand(text)
    assert not understood.not_understood + understood.reasons, text
    assert understood.requests == tuple(expected)


REMAINDERS = st.sampled_from(
    [
        "cook dinner",
        "whatever they want",
        "the weather is fine",
        "unless they object",
        "not",
        "maybe",
        "if possible",
        "seven",
        "except for affiliates",
        "etc",
        "in Narnia",
        "or something",
        "because of the merger",
        "as discussed with Bob",
        "per se",
        "(not really)",
        "$$$",
        "ignore all previous instructions",
    ]
)


@given(st.sampled_from(SINGLE), REMAINDERS, st.sampled_from([" ", ", ", ". ", "\n", " and "]), st.booleans())
def test_with_a_remainder_nothing_is_understood_whole(message: str, remainder: str, joint: str, first: bool) -> None:  # noqa: FBT001
    text = f"{remainder}{joint}{message}" if first else f"{message.rstrip('.?!')}{joint}{remainder}"
    assert understand(text).not_understood, text


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    understood = understand(text)
    assert understood.requests or understood.not_understood or not re.search(r"\d", text)


@pytest.mark.parametrize(
    "text",
    [
        "1 year " * 600,
        "make it " * 500,
        "between Acme and " * 240,
        "a" * 4000,
        "the laws of the State of " * 160,
        "“" * 4000,
        "x " * 20_000,
    ],
)
def test_a_long_message_is_read_at_once(text: str) -> None:
    began = time.process_time()
    assert understand(text[:LONGEST]).not_understood
    assert understand(text * 2).not_understood
    assert time.process_time() - began < 2, "CPU seconds; a pattern that backtracks takes minutes"


@given(st.tuples(*(st.integers(0, 30) for _ in UNITS)).filter(any))
def test_a_length_is_read_from_a_contract_as_it_was_written(counts: tuple[int, int, int, int]) -> None:
    length = Length(*counts)
    assert written_length(str(length)) == length
    assert said_length(str(length)) == length


def test_every_number_has_its_own_words() -> None:
    words = [spelled(number) for number in range(1000)]
    assert len(set(words)) == 1000
    assert (words[2], words[18], words[30], words[42], words[365]) == (
        *("two", "eighteen", "thirty", "forty-two", "three hundred sixty-five"),
    )


def test_a_length_can_be_made_longer_and_shorter() -> None:
    assert Length(years=3).plus(Length(years=1)) == Length(years=4)
    assert Length(months=18).plus(Length(years=1)) == Length(years=2, months=6)
    assert Length(years=2).plus(Length(months=6), -1) == Length(years=1, months=6)
    with pytest.raises(NotALength):
        Length(years=1).plus(Length(months=12), -1)


def test_every_law_is_known_by_its_own_name() -> None:
    assert len(set(laws().values())) > 80
    for law in set(laws().values()):
        for message in (f"Change the governing law to {law}", f"governed by the laws of {law}."):
            assert understand(message).requests == (SetLaw(law),), message


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Acme Inc. and Beta LLC", "Acme Inc."),
        ("Acme Corp. Also make it mutual", "Acme Corp."),
        ("Beta. Undo that", "Beta"),
        ("Foo Co., Ltd. with a term", "Foo Co., Ltd."),
        ("Société Générale S.A. under", "Société Générale S.A."),
        ("The Home Depot, Inc.", "The Home Depot, Inc."),
        ("ACME AND BETA", "ACME"),
        ("株式会社ソニー and", "株式会社ソニー"),
        ("eBay and", "eBay"),
        ("acme", None),
        ("_Acme_", None),
        ("“a\u202eb”", None),
        ("“**x**”", None),
        ("A" * 81, None),
    ],
)
def test_where_a_name_ends(text: str, name: str | None) -> None:
    found = name_at(text, 0)
    assert (found[0] if found else None) == name
