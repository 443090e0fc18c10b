"""Edits of documents: one base version, folded characters, the arguments that models send, refusals that help."""

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import Document
from drafting.editing.edits import Edit
from drafting.editing.folding import Folded, folded
from drafting.editing.versions import Documents
from drafting.tools import EditCall, ToolError, edit_call

# ---------------------------------------------------------------------------------------------------------------
# Means


def version(
    content: str, number: int = 1, *, doc_id: str = "d1", title: str = "NDA", complete: bool = True
) -> Document:
    return {"doc_id": doc_id, "title": title, "version": number, "content": content, "complete": complete}


def call(*edits: tuple[str, str], doc_id: str | None = "d1", title: str | None = None) -> EditCall:
    return EditCall(doc_id, title, tuple(itertools.starmap(Edit, edits)))


def edited(content: str, *edits: tuple[str, str]) -> str:
    return Documents([version(content)]).edit(call(*edits))["content"]


def refusal(content: str, *edits: tuple[str, str]) -> str:
    with pytest.raises(ToolError) as error:
        edited(content, *edits)
    told = str(error.value)
    assert told.endswith("Nothing was changed.")
    return told


def count(text: str, part: str) -> int:
    """Also of places that overlap."""
    return sum(text.startswith(part, at) for at in range(len(text)))


# ---------------------------------------------------------------------------------------------------------------
# One base


def test_every_find_means_the_version_that_the_model_saw() -> None:
    edits = ("## 4. Term", "## 5. Term"), ("## 5.", "## 6.")
    for order in itertools.permutations(edits):
        assert edited("## 4. Term\n\n## 5. Notices", *order) == "## 5. Term\n\n## 6. Notices"


def test_texts_change_places() -> None:
    assert (
        edited("The Buyer pays the Seller.", ("Buyer", "Seller"), ("Seller", "Buyer")) == "The Seller pays the Buyer."
    )


def test_passages_that_touch_do_not_overlap() -> None:
    assert edited("one two", ("one ", ""), ("two", "2")) == "2"


@given(st.text('ab \n“"', min_size=1, max_size=40), st.data())
def test_finds_that_stand_once_and_do_not_overlap_are_carried_out_in_any_order(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans = [
        (start, end)
        for start, end in itertools.pairwise(places)
        if text[start:end] and count(text, text[start:end]) == 1
    ]
    edits, expected, done = [], "", 0
    for start, end in spans:
        replacement = data.draw(st.text('abc “"', max_size=5))
        if replacement == text[start:end]:
            replacement += "."
        edits.append((text[start:end], replacement))
        expected += text[done:start] + replacement
        done = end
    expected += text[done:]
    shuffled = data.draw(st.permutations(edits))
    if not edits or not expected.strip():
        return
    if expected == text:  # two edits that together change nothing
        assert "reads so already" in refusal(text, *shuffled)
        return
    assert edited(text, *shuffled) == expected


def test_a_find_that_stands_twice_in_the_base_is_ambiguous_even_if_another_edit_replaces_one_of_them() -> None:
    told = refusal("1. Term is a year.\n2. Term ends.", ("1. Term is", "1. Length is"), ("Term", "Duration"))
    assert told.startswith("Edit 2: the text to find stands 2 times")


def test_an_edit_can_not_find_what_another_edit_of_the_call_wrote() -> None:
    assert "does not stand" in refusal("The fee is 5.", ("5", "6 euros"), ("6 euros", "7 euros"))


def test_finds_that_overlap_are_refused_and_the_text_that_both_take_in_is_shown() -> None:
    told = refusal("It ends after two years of service.", ("after two years", "soon"), ("two years of", "2 of"))
    assert "overlap, edit 1 and edit 2" in told
    assert "\ntwo years\n" in told


def test_the_calls_of_one_reply_mean_the_version_before_it() -> None:
    for order in itertools.permutations([("## 4. Term", "## 5. Term"), ("## 5.", "## 6.")]):
        documents = Documents([version("## 4. Term\n\n## 5. Notices")])
        made = [documents.edit(call(edit)) for edit in order]
        assert [each["version"] for each in made] == [2, 3]
        assert made[-1]["content"] == "## 5. Term\n\n## 6. Notices"


def test_calls_of_one_reply_that_overlap_are_told_so() -> None:
    documents = Documents([version("after two years of")])
    documents.edit(call(("two years", "a year")))
    with pytest.raises(ToolError, match=r"one of an earlier call and edit 1(.|\n)*\nyears\n"):
        documents.edit(call(("years of", "year of")))
    documents.add("d1", "NDA", 3, "after three years of", complete=True)  # written anew, so the earlier edits are gone
    assert documents.edit(call(("years of", "year of")))["content"] == "after three year of"


# ---------------------------------------------------------------------------------------------------------------
# Perfect answers on contracts


WORDING = "the Party shall “Services” not give Fee’s notice under this Agreement – as agreed in writing"


def contract(articles: int, seed: int) -> str:
    """Numbered articles with references, in words that repeat as they do in contracts."""
    chance = random.Random(seed)
    words = WORDING.split()
    lines = ["# Agreement"]
    for article in range(1, articles + 1):
        lines.append(f"## {article}. {chance.choice(words).title()} {chance.choice(words)}")
        for clause in range(1, chance.randint(2, 6)):
            said = " ".join(chance.choices(words, k=chance.randint(4, 25)))
            lines.append(
                f"{article}.{clause} {said}, see Section {chance.randint(1, articles)}.{clause} and Article "
                f"{chance.randint(1, articles)}."
            )
    return "\n\n".join(lines) + "\n"


NUMBER = re.compile(r"(?<=^## )\d+(?=\.)|^\d+(?=\.\d)|(?<=Section )\d+|(?<=Article )\d+", re.MULTILINE)


def places_to_renumber(text: str, after: int) -> list[re.Match[str]]:
    return [number for number in NUMBER.finditer(text) if int(number[0]) > after]


def smallest_windows(text: str, numbers: Sequence[re.Match[str]]) -> Iterator[tuple[str, str]]:
    """For each number, the fewest characters around it that stand once."""
    for number in numbers:
        for width in range(len(text)):
            found = [
                (start, start + len(number[0]) + width)
                for start in range(max(number.start() - width, 0), number.start() + 1)
                if text.count(text[start : start + len(number[0]) + width]) == 1
            ]
            if found:
                start, end = found[0]
                before, behind = text[start : number.start()], text[number.end() : end]
                yield text[start:end], f"{before}{int(number[0]) + 1}{behind}"
                break


def whole_lines(text: str, after: int) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        new = NUMBER.sub(lambda number: str(int(number[0]) + (int(number[0]) > after)), line)
        if new != line:
            yield line, new


@pytest.mark.parametrize("seed", range(6))
def test_an_article_is_inserted_and_all_others_renumbered_by_exact_edits(seed: int) -> None:
    """The perfect answer of a model. It was refused as soon as a new number stood where an old one still did."""
    text, after = contract(14, seed), 4
    renumbered = NUMBER.sub(lambda number: str(int(number[0]) + (int(number[0]) > after)), text)
    heading = next(line for line in text.splitlines() if line.startswith(f"## {after + 1}."))
    [lines] = [list(whole_lines(text, after))]
    assert len(lines) > 20
    new_article = (heading, f"## {after + 1}. New\n\n{after + 1}.1 All of it.\n\n" + dict(lines)[heading])
    expected = renumbered.replace(dict(lines)[heading], new_article[1])
    by_line = [new_article if find == heading else (find, new) for find, new in lines]
    assert edited(text, *by_line) == edited(text, *reversed(by_line)) == expected
    # Windows of two numbers that overlap are one edit in a perfect answer, so each second one is taken.
    windows = list(smallest_windows(text, places_to_renumber(text, after)))
    for chosen in (windows[::2], windows[1::2]):
        down = edited(text, *disjoint(text, chosen))
        assert down == edited(text, *reversed(disjoint(text, chosen)))
        assert len(down) >= len(text)


def disjoint(text: str, edits: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    kept, done = [], 0
    for find, new in sorted(edits, key=lambda edit: text.index(edit[0])):
        if text.index(find) >= done:
            kept.append((find, new))
            done = text.index(find) + len(find)
    assert len(kept) > len(edits) // 2
    return kept


# ---------------------------------------------------------------------------------------------------------------
# Characters that may differ


@pytest.mark.parametrize(
    ("content", "find", "replace", "expected"),
    [
        ("The “Term” is long.", 'The "Term" is long.', 'The "Term" is short.', "The “Term” is short."),
        ("Der „Vertrag“ gilt.", 'Der "Vertrag" gilt.', 'Der "Vertrag" endet.', "Der „Vertrag“ endet."),
        ("Le « Terme » court.", 'Le " Terme " court.', 'Le " Terme " finit.', "Le « Terme » finit."),
        ("the »Fee« is", 'the "Fee"', 'the "Fees"', "the »Fees« is"),
        ("Party’s share", "Party's share", "Party's part", "Party’s part"),
        ("years 2020–2024 — or more", "2020-2024 - or", "2020-2025 - or", "years 2020–2025 — or more"),
        ("a non‑binding offer", "non-binding offer", "non-binding bid", "a non‑binding bid"),
        ("§\xa04 of the\u202fAct", "§ 4 of the Act", "§ 5 of the Act", "§\xa05 of the\u202fAct"),
        ("a long\nline of\n text", "long line of text", "long line of words", "a long\nline of\n words"),
        ("two  spaces\there", "two spaces here", "two spaces there", "two  spaces\tthere"),
        ("one line", "one\nline", "one\nrow", "one row"),
        ("1.1 “A” is.\n\n1.2 “B” is.", '1.1 "A" is.\n\n1.2 "B" is.', '1.1 "A" was.\n\n1.2 "B" is.',
         "1.1 “A” was.\n\n1.2 “B” is."),
        ("at the end “X”", '\nat the end "X"\n', '\nat an end "X"\n', "at an end “X”"),
        ("a soft\u00adhyphen’s word", "softhyphen's word", "softhyphen's end", "a soft\u00adhyphen’s end"),
        ("a “b” c", 'a "b" c', "", ""),
    ],
)  # fmt: skip
def test_quotes_dashes_and_spaces_may_differ_and_the_document_keeps_its_own(
    content: str, find: str, replace: str, expected: str
) -> None:
    assert find not in content
    assert edited(f"Before. {content} After.", (find, replace)) == f"Before. {expected} After."


def test_an_exact_match_wins_over_a_folded_one() -> None:
    assert edited('“Term” and "Term"', ('"Term"', '"Fee"')) == '“Term” and "Fee"'


def test_a_folded_passage_that_stands_twice_is_ambiguous() -> None:
    assert "stands 2 times" in refusal("“Term” and „Term“", ('"Term"', '"Fee"'))


@pytest.mark.parametrize("find", ["The Term", "the  Term.", "the terms", "the Term\n\nis"])
def test_letters_marks_and_blank_lines_may_not_differ(find: str) -> None:
    assert "does not stand" in refusal("Here the Term is", (find, "x"))


MIXED = st.text("ab \n\t\xa0\u200b“”\"'’–-_.", max_size=30)


@given(MIXED)
def test_a_place_in_a_folded_text_is_one_in_the_text(text: str) -> None:
    view = Folded(text)
    assert view.text == folded(text)
    assert view.place(len(view.text)) == len(text)
    places = [view.place(at) for at in range(len(view.text) + 1)]
    assert places == sorted(set(places))
    for at, character in enumerate(view.text):
        assert folded(text[places[at] : places[at + 1]]) == character


WORDS = st.sampled_from(["term", "fee", "“", "”", "’", "–", "„", "\xad"])
BLANKS = st.sampled_from([" ", "  ", "\n", "\xa0", "\t", "\n\n", ""])
PLAIN = str.maketrans("“”„’–\xa0\t", '"""\'-  ')


@given(st.lists(st.tuples(WORDS, BLANKS), min_size=1, max_size=12), st.data())
def test_a_folded_edit_changes_its_passage_alone_and_reads_as_the_model_wrote_it(
    tokens: list[tuple[str, str]], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(tokens) - 1))
    last = data.draw(st.integers(first, len(tokens) - 1))
    before, behind = ("".join(map("".join, part)) for part in (tokens[:first], tokens[last + 1 :]))
    passage, blank = "".join(map("".join, tokens[first : last + 1])), tokens[last][1]
    passage, behind = passage.removesuffix(blank), blank + behind
    text, find = f"<{before}{passage}{behind}>", passage.translate(PLAIN).replace("\xad", "")
    new = data.draw(st.sampled_from([f"{find} more", f"some {find}", find.replace("fee", "f"), "x", f'"{find}"']))
    if not find or find != find.strip() or find == new or find in text or count(folded(text), folded(find)) != 1:
        return
    result = edited(text, (find, new))
    assert folded(result) == folded(f"<{before}{new}{behind}>")
    assert result.startswith(f"<{before}".rstrip("\xad"))
    assert result.endswith(f"{behind}>".lstrip("\xad"))
    if new == f"{find} more":
        assert passage.strip("\xad") in result


# ---------------------------------------------------------------------------------------------------------------
# The arguments that models send

ONE = {"find": "one", "replace": "1"}
TWO = {"find": "two", "replace": "2"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"doc_id": "d1", "edits": [ONE, TWO]}, "1 2"),
        ({"doc_id": "d1", "edits": ONE}, "1 two"),
        ({"doc_id": "d1", "edits": json.dumps([ONE, TWO])}, "1 2"),
        ({"doc_id": "d1", "edits": json.dumps(ONE)}, "1 two"),
        ({"doc_id": "d1", "edits": [json.dumps(ONE), json.dumps(TWO)]}, "1 2"),
        ({"doc_id": "d1", "edits": [{"old": "one", "new": "1"}]}, "1 two"),
        ({"doc_id": "d1", "edits": [{"old_string": "one", "new_string": "1"}]}, "1 two"),
        ({"doc_id": "d1", "edits": [{"old_text": "one", "new_text": "1"}]}, "1 two"),
        ({"doc_id": "d1", "edits": [{"oldText": "one", "newText": "1"}]}, "1 two"),
        ({"doc_id": "d1", "edits": [{"old_str": "one", "new_str": ""}]}, " two"),
        ({"doc_id": "d1", "edits": [{"search": "one", "replace": "1", "why": "shorter"}]}, "1 two"),
        ({"doc_id": "d1", "edits": [{"find": "one", "replacement": "1"}]}, "1 two"),
        ({"doc_id": "d1", **ONE}, "1 two"),
        ({"doc_id": "d1", "old_string": "one", "new_string": "1", "edits": None}, "1 two"),
        ({"document_id": "d1", "edits": [ONE]}, "1 two"),
        ({"id": "d1", "edits": [ONE]}, "1 two"),
        ({"document": "d1", "edits": [ONE]}, "1 two"),
        ({"docId": "D1", "edits": [ONE]}, "1 two"),
        ({"doc_id": "Lease", "edits": [ONE]}, "1 two"),
        ({"doc_id": " lease ", "edits": [ONE]}, "1 two"),
        ({"title": "Lease", "edits": [ONE]}, "1 two"),
        ({"edits": [ONE]}, "1 two"),
        ({"doc_id": "", "edits": [ONE]}, "1 two"),
        ({"doc_id": "d1", "version": 3, "edits": [ONE]}, "1 two"),
    ],
)
def test_the_arguments_that_models_send_are_taken(arguments: dict[str, object], expected: str) -> None:
    for text in (json.dumps(arguments), json.dumps(json.dumps(arguments)), json.dumps(arguments, indent=1)):
        made = Documents([version("one two", 3, title="Lease")]).edit(edit_call(text))
        assert (made["content"], made["title"], made["version"]) == (expected, "Lease", 4)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "no json",
        '"no json"',
        "[]",
        "{}",
        '{"doc_id": "d1"}',
        '{"doc_id": "d1", "edits": []}',
        '{"doc_id": "d1", "edits": "one"}',
        '{"doc_id": "d1", "edits": 1}',
        '{"doc_id": "d1", "edits": ["one"]}',
        '{"doc_id": "d1", "edits": [["one", "1"]]}',
        '{"doc_id": "d1", "edits": [{"find": "one"}]}',
        '{"doc_id": "d1", "edits": [{"find": "one", "replace": null}]}',
        '{"doc_id": "d1", "edits": [{"find": "one", "replace": 1}]}',
        '{"doc_id": "d1", "edits": [{"find": "one", "replace": "1", "find": "two"}]}',
        '{"doc_id": "d1", "edits": [{"find": "one", "old": "two", "replace": "1"}]}',
        '{"doc_id": "d1", "edits": [{"find": "one", "replace": "1"}], "edits": []}',
        '{"doc_id": ["d1"], "edits": [{"find": "one", "replace": "1"}]}',
        '{"doc_id": "d1", "content": "all of it"}',
    ],
)
def test_other_arguments_are_refused_with_the_form_that_is_expected(arguments: str) -> None:
    with pytest.raises(ToolError) as error:
        edit_call(arguments)
    assert '"edits": [{"find": ' in str(error.value)
    assert str(error.value).endswith("Nothing was changed.")


# ---------------------------------------------------------------------------------------------------------------
# Refusals that help

LEASE = """# Lease

## 4. Term

4.1 The “Term” is thirty (30) years, unless Section 7.2 applies.

## 5. Notices

5.1 A notice takes effect thirty (30) days after the Tenant’s receipt.

5.2 A **Formal Notice** takes effect at once.
"""


@pytest.mark.parametrize(
    ("find", "nearest", "differs"),
    [
        ('4.1 The "Term" is thirty (30) years, unless Section 7.3', "4.1 The “Term” is thirty (30) years, unless Section 7.2",
         'the document has "2" where find has "3"'),
        ("effect sixty (60) days after", "effect thirty (30) days after",
         'the document has "thirty" where find has "sixty"; the document has "30" where find has "60"'),
        ("the tenant's receipt", "the Tenant’s receipt", "upper and lower case"),
        ("A Formal Notice takes", "A **Formal Notice** takes", 'the document has "**" besides'),
        ("## 5. Notices\n5.1 A notice", "## 5. Notices\n\n5.1 A notice", "blank lines"),
        ("A notice shall take effect thirty", "A notice takes effect thirty", 'has "takes" where find has "shall take"'),
    ],
)  # fmt: skip
def test_a_find_that_does_not_stand_there_is_answered_with_the_nearest_text(
    find: str, nearest: str, differs: str
) -> None:
    told = refusal(LEASE, (find, "x"))
    assert nearest in LEASE
    assert f"The nearest text there is:\n{nearest}\n" in told
    assert differs in told


def test_a_model_that_copies_the_nearest_text_has_its_edit() -> None:
    told = refusal(LEASE, ("5.1 A notice is in effect thirty days after receipt by the Tenant.", "5.1 No."))
    nearest = told.split("The nearest text there is:\n")[1].split("\nIt differs")[0]
    assert edited(LEASE, (nearest, "5.1 No.")).count("5.1 No.") == 1


def test_a_find_without_a_word_of_the_document_is_shown_how_the_document_begins() -> None:
    assert "# Lease\n\n## 4. Term" in refusal(LEASE, ("Mietvertrag", "x"))


def test_a_find_that_stands_several_times_is_shown_each_place() -> None:
    told = refusal(LEASE, ("thirty (30)", "x"))
    assert "stands 2 times" in told
    assert "(1) # Lease\n\n## 4. Term\n\n4.1 The “Term” is thirty (30) years, unless Section 7.2 applies." in told
    assert "(2) " in told
    assert "takes effect thirty (30) days after" in told
    assert "more than 5 times" in refusal("a b " * 100, ("a b", "x"))


def test_the_nearest_text_is_found_in_a_script_without_spaces() -> None:
    told = refusal(
        "# 租赁合同\n\n4.1 租赁期限为三十年。\n\n5.1 通知在收到后三十天生效。", ("通知在收到后六十天生效", "x")
    )
    assert "The nearest text there is:\n通知在收到后三十天生效\n" in told
    assert 'has "三" where find has "六"' in told


def test_a_refusal_is_short_however_long_the_text_is() -> None:
    long = "Word" * 50_000
    for content, find in ((long, "x"), (f"{long} a {long} a", "a"), ("a b " * 50_000, "a b " * 20_000 + "c")):
        assert len(refusal(content, (find, "y"))) < 4_000
    broken = version("ab " * 50_000, complete=False)
    with pytest.raises(ToolError) as error:
        Documents([broken]).edit(call(("x", "y")))
    assert len(str(error.value)) < 4_000


def test_all_faults_of_a_call_are_told_together() -> None:
    told = refusal(LEASE, ("Term", "x"), ("## 4.", "## 5."), ("not there", "x"), ("5.2", "5.2"))
    assert re.findall(r"^Edit (\d):", told, re.MULTILINE) == ["1", "3", "4"]
    assert told.count("Nothing was changed.") == 1


def test_a_document_that_is_not_there_is_answered_with_those_that_are() -> None:
    documents = Documents([version("a"), version("b", doc_id="d2", title="Lease"), version("c", 2)])
    for name in ("d9", "Lea", None):
        with pytest.raises(ToolError, match=r"d2 \(Lease\), d1 \(NDA\)(.|\n)*Nothing was changed"):
            documents.edit(call(("a", "b"), doc_id=name))
    with pytest.raises(ToolError, match="write_document"):
        Documents([]).edit(call(("a", "b")))


def test_an_edit_of_an_older_version_is_refused() -> None:
    documents = Documents([version("a"), version("b", 2)])
    with pytest.raises(ToolError, match="Version 1 of d1 is not the newest: that is 2"):
        documents.edit(EditCall("d1", None, (Edit("b", "c"),), 1))
    assert documents.edit(EditCall("d1", None, (Edit("b", "c"),), 2))["version"] == 3
    assert documents.edit(EditCall("d1", "Lease", (), 2))["version"] == 4  # another call of the same reply


def test_a_refused_call_changes_nothing() -> None:
    documents = Documents([version("one two")])
    with pytest.raises(ToolError):
        documents.edit(call(("one", "1"), ("three", "3")))
    assert documents.edit(call(("two", "2"))) == version("one 2", 2)


# ---------------------------------------------------------------------------------------------------------------
# Titles


def test_a_title_is_changed_with_and_without_edits() -> None:
    documents = Documents([version("one")])
    assert documents.edit(call(title=" Mutual\nNDA ")) == version("one", 2, title="Mutual NDA")
    assert documents.edit(call(("one", "two"), title="NDA 2")) == version("two", 3, title="NDA 2")
    with pytest.raises(ToolError, match="reads so already"):
        documents.edit(call(title="NDA 2"))


def test_a_title_that_names_the_document_is_no_new_title() -> None:
    assert Documents([version("one")]).edit(call(("one", "two"), doc_id=None, title="nda"))["title"] == "NDA"
    assert Documents([version("one")]).edit(call(("one", "two"), doc_id=None, title="Lease"))["title"] == "Lease"


def test_a_document_is_found_under_its_newest_title_alone() -> None:
    documents = Documents([version("one"), version("one", 2, title="Mutual NDA")])
    assert documents.place("Mutual NDA") == ("d1", 3)
    assert documents.place("NDA") == ("d2", 1)
    assert documents.place("NDA", "d1") == documents.place("Other", "Mutual NDA") == ("d1", 3)
    assert documents.place("Other", "d7") == ("d2", 1)


def test_a_title_that_two_documents_have_names_neither() -> None:
    documents = Documents([version("a"), version("b", doc_id="d2")])
    with pytest.raises(ToolError, match=r"d1 \(NDA\), d2 \(NDA\)"):
        documents.edit(call(("a", "b"), doc_id="NDA"))
