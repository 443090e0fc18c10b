"""The name of a download: whatever the title, it is a name and nothing else, in each form that a system may give it."""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from web.file_names import TITLE_BYTES, disposition

HEADER = re.compile(r"""attachment; filename="([A-Za-z0-9 ._()-]+)"; filename\*=UTF-8''([A-Za-z0-9%._~-]+)""")
FORBIDDEN = set('"\\/:*?<>|')
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}
FORMS: Sequence[Literal["NFC", "NFD", "NFKC", "NFKD"]] = ("NFC", "NFD", "NFKC", "NFKD")


def names(title: str, version: str = "v1") -> tuple[str, str]:
    """In ASCII and in Unicode, after a check of what holds for every name."""
    matched = HEADER.fullmatch(disposition(title, "md", version)[1])
    assert matched is not None, title
    plain, name = matched[1], unquote(matched[2], errors="strict")
    for one in (plain, name):
        assert one.endswith(f"{version}.md")
        assert one[0] not in " .-"
        assert one.partition(".")[0].rstrip(" ").upper() not in DEVICES
        assert "  " not in one
        assert len(one.encode()) <= TITLE_BYTES + len(f"_ {version}.md")
    return plain, name


def is_seen(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] not in "CZ"


def code_points() -> Iterator[str]:
    return map(chr, range(sys.maxunicode + 1))


def test_no_code_point_in_the_middle_of_a_title_makes_a_sign_of_a_path_or_of_a_header() -> None:
    """Ten at once, each between letters, for the time that it takes."""
    made: set[str] = set()
    points = list(code_points())
    for start in range(0, len(points), 10):
        _, name = names("a" + "b".join(points[start : start + 10]) + "c")
        made.update(name)
    assert len(made) > 100_000, "letters of every script stay"
    for character in made:
        for form in FORMS:
            in_this_form = unicodedata.normalize(form, character)
            assert not FORBIDDEN & set(in_this_form), f"U+{ord(character):04X} in {form}"
            assert all(map(is_seen, in_this_form)), f"U+{ord(character):04X} in {form}"


def test_no_code_point_alone_makes_a_name_that_is_hidden_or_empty() -> None:
    for character in code_points():
        if unicodedata.category(character) not in ("Cn", "Co"):  # unassigned and private: the test above has them
            plain, name = names(character)
            assert re.search("[A-Za-z0-9]", plain.removesuffix("v1.md"))
            assert name == "thread v1.md" or any(unicodedata.category(one)[0] in "LMNS" for one in name[:-6])


@given(st.text(), st.sampled_from(["", "v1", "v1-v3"]))
@example("CON", "")
@example("a" * 149 + "漢", "v1")
@example("\ufdfa" * 200, "")
def test_any_title_makes_a_name(title: str, version: str) -> None:
    _, name = names(title, version)
    assert names(name, version)[1].startswith(name[:20].rstrip(" .")), "a name is its own name"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Mutual NDA", "Mutual NDA.md"),
        ("Terms & Conditions (2nd ed.), §5", "Terms & Conditions (2nd ed.), §5.md"),
        ("Landlord’s consent – draft", "Landlord’s consent – draft.md"),
        ("../../etc/passwd", "etc passwd.md"),
        ('a "quoted" title\r\nX-Evil: 1', "a quoted title X-Evil 1.md"),
        ("Geheimhaltung für Müller & Söhne", "Geheimhaltung für Müller & Söhne.md"),
        ("Geheimhaltung fu\u0308r Mu\u0308ller", "Geheimhaltung für Müller.md"),
        ("保密协议", "保密协议.md"),
        ("😀" * 300, "😀" * 37 + ".md"),
        ("100% mine; filename=x", "100% mine; filename=x.md"),
        ("...", "thread.md"),
        ("", "thread.md"),
        ("- - -", "thread.md"),
        ("-rf", "rf.md"),
        (".bashrc", "bashrc.md"),
        ("Final.  . .", "Final.md"),
        ("\u202egnp.exe", "gnp.exe.md"),
        ("con\u00adtract \u200bof\ufeff sale\ufe0f", "contract of sale.md"),
        ("\u3164\u2800\u034f", "thread.md"),
        # Full width and other characters that normal forms turn into signs
        (
            "NDA\uff02; filename\uff0a=UTF-8\uff07\uff07Invoice.html; x=\uff02",
            "NDA ; filename =UTF-8''Invoice.html; x=.md",
        ),
        ("..\uff0f..\uff0fetc\uff0fpasswd", "etc passwd.md"),
        ("\uff3c\uff3chost\uff3cshare", "host share.md"),
        ("c\uff1a\u2100b", "c a cb.md"),
        # Names that Windows gives to a device
        ("NUL", "_NUL.md"),
        ("con", "_con.md"),
        ("aux.report", "_aux.report.md"),
        ("COM\u00b9", "_COM1.md"),
        ("\uff23\uff2f\uff2e", "_CON.md"),
        ("LPT9 . x", "_LPT9 . x.md"),
        ("CONTRACT", "CONTRACT.md"),
    ],
)
def test_a_title_is_the_files_name_and_nothing_else(title: str, name: str) -> None:
    assert unquote(disposition(title, "md")[1].partition("UTF-8''")[2]) == name
    names(title, "")


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("Geheimhaltung für Müller & Söhne", "Geheimhaltung fur Muller Sohne.md"),
        ("保密协议 (2)", "(2).md"),
        ("CÖN", "_CON.md"),
        ("保密协议", "thread.md"),
    ],
)
def test_the_name_in_ascii_has_letters_digits_and_a_few_signs(title: str, plain: str) -> None:
    assert f'filename="{plain}"' in disposition(title, "md")[1]


def test_however_long_its_title_a_file_can_be_stored_and_tells_its_version() -> None:
    for title in ("保密协议" * 50, "\ufdfa" * 100, "é" * 200):
        for version in ("v1", "v1-v3"):
            _, name = names(title, version)
            assert len(name.encode()) < 200
