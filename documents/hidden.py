"""Characters that nobody sees, and that can hide what a text says: controls of direction, of width zero, and others.

`shown` puts ⟦U+202E⟧ in the place of each. Some scripts and emoji need a few of them: these stay where they do their
work, between the characters that they join or vary. Pure.

The tables are character classes and patterns in the syntax of JavaScript, because the page has the same ones. A test
holds the two to each other, and the table to every code point of Unicode.
"""

import re
from collections.abc import Iterator

Range = tuple[int, int]


def _class(*ranges: Range) -> str:
    return "".join(rf"\u{{{first:x}}}-\u{{{last:x}}}" for first, last in ranges)


def _python(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\u\{([0-9a-f]+)\}", lambda code: rf"\U{code[1]:0>8}", pattern))


# All controls but tab and line end, formats, separators of lines and paragraphs, noncharacters, surrogates, and all
# that Unicode lets a font leave out (Default_Ignorable_Code_Point). Not the signs of category Cf that have a form of
# their own, as the Arabic ones around numbers.
HIDDEN = _class(
    (0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xD800, 0xDFFF), (0xFDD0, 0xFDEF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB),
    (0xFFFE, 0xFFFF), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0x10000, 0x110000, 0x10000)),
)  # fmt: skip

# Letters and marks, without digits and punctuation, of scripts that join their letters or stack them.
_JOINING = _class(
    (0x620, 0x65F), (0x66E, 0x6D3), (0x6D5, 0x6DC), (0x6DF, 0x6EF), (0x6FA, 0x6FF), (0x710, 0x74F), (0x750, 0x77F),
    (0x7CA, 0x7F5), (0x840, 0x85B), (0x860, 0x86A), (0x870, 0x887), (0x889, 0x88E), (0x898, 0x8E1), (0x8E3, 0x8FF),
    *(part for block in range(0x900, 0xE00, 0x80) for part in ((block, block + 0x63), (block + 0x70, block + 0x7F))),
    (0x1000, 0x103F), (0x1050, 0x108F), (0x1780, 0x17B3), (0x17B6, 0x17D3), (0x1820, 0x18AA), (0x1B00, 0x1B4C),
    (0x1CD0, 0x1CFA), (0xA840, 0xA873), (0xA8E0, 0xA8FF), (0xA980, 0xA9C0), (0xABC0, 0xABEA), (0xFB50, 0xFDCF),
    (0xFDF0, 0xFDFB), (0xFE70, 0xFEFC), (0x11000, 0x11FFF), (0x1E900, 0x1E94B),
)  # fmt: skip
_VIRAMAS = _class(
    *((block + 0x4D, block + 0x4D) for block in range(0x900, 0xD80, 0x80)), (0xDCA, 0xDCA), (0x17D2, 0x17D2)
)
# Scripts without spaces, in which a space of no width parts the words.
_UNSPACED = _class(
    (0xE01, 0xE3A), (0xE40, 0xE4E), (0xE81, 0xECE), (0x1000, 0x103F), (0x1050, 0x108F), (0x1780, 0x17B3),
    (0x17B6, 0x17DD), (0x1950, 0x19C9), (0x1A20, 0x1A7C), (0xA9E0, 0xA9FE), (0xAA60, 0xAADF),
)  # fmt: skip
_EMOJI = _class(
    (0xA9, 0xA9), (0xAE, 0xAE), (0x203C, 0x203C), (0x2049, 0x2049), (0x2122, 0x2122), (0x2139, 0x2139),
    (0x2194, 0x21AA), (0x231A, 0x23FF), (0x24C2, 0x24C2), (0x25AA, 0x25FE), (0x2600, 0x27BF), (0x2934, 0x2935),
    (0x2B05, 0x2B55), (0x3030, 0x3030), (0x303D, 0x303D), (0x3297, 0x3299), (0x1F000, 0x1FAFF),
)  # fmt: skip
_HAN = _class(
    (0x2E80, 0x2FDF), (0x3001, 0x3002), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF01, 0xFF1F),
    (0x20000, 0x3FFFD),
)  # fmt: skip
_MONGOLIAN, _HIEROGLYPHS = _class((0x1820, 0x18AA)), _class((0x13000, 0x1342F), (0x13440, 0x13455))
# England, Scotland and Wales: a black flag, then letters in tag characters.
_FLAGS = (
    r"\u{1f3f4}\u{e0067}\u{e0062}"
    r"(?:\u{e0065}\u{e006e}\u{e0067}|\u{e0073}\u{e0063}\u{e0074}|\u{e0077}\u{e006c}\u{e0073})\u{e007f}"
)

# What stays as it is. Each but a flag is one of the hidden characters, between its neighbours.
KEPT = "|".join(
    (
        _FLAGS,
        rf"(?<=[{_JOINING}])[\u{{200c}}\u{{200d}}](?=[{_JOINING}])",
        rf"(?<=[{_VIRAMAS}\u{{647}}])[\u{{200c}}\u{{200d}}]",  # also at a word's end; the heh is that of Hijri years
        rf"(?<=[{_UNSPACED}])\u{{200b}}(?=[{_UNSPACED}])",
        rf"(?<=[{_EMOJI}])[\u{{fe0e}}\u{{fe0f}}]",
        r"(?<=[0-9#*])\u{fe0f}(?=\u{20e3})",
        rf"(?<=[{_EMOJI}\u{{fe0f}}])\u{{200d}}(?=[{_EMOJI}])",
        rf"(?<=[{_HAN}])[\u{{fe00}}-\u{{fe02}}\u{{e0100}}-\u{{e01ef}}]",
        r"(?<=[\u{2205}-\u{22ff}\u{2a00}-\u{2aff}\u{1000}-\u{108f}\u{aa60}-\u{aa7f}\u{a840}-\u{a877}])\u{fe00}",
        rf"(?<=[{_MONGOLIAN}])[\u{{180b}}-\u{{180d}}\u{{180f}}]",
        rf"(?<=[{_MONGOLIAN}])\u{{180e}}(?=[{_MONGOLIAN}])",
        r"\u{115f}(?=[\u{1161}-\u{11a7}])",
        r"(?<=[\u{1100}-\u{115e}\u{a960}-\u{a97c}])\u{1160}",
        rf"(?<=[{_HIEROGLYPHS}\u{{13430}}-\u{{1343f}}])[\u{{13430}}-\u{{1343f}}]",
        rf"[\u{{13437}}\u{{1343c}}](?=[{_HIEROGLYPHS}])",
    )
)

_HIDDEN = _python(f"[{HIDDEN}]")
_KEPT_OR_HIDDEN = _python(f"{KEPT}|([{HIDDEN}])")

# Characters that Python and the parser of Markdown take for spaces, and drop at the end of a text. For the parser each
# changes places with a noncharacter.
SPACE_LIKE = "\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_STAND_INS = "".join(chr(0xFDD0 + number) for number in range(len(SPACE_LIKE)))
SWAPPED = str.maketrans(SPACE_LIKE + _STAND_INS, _STAND_INS + SPACE_LIKE)


def shown(text: str) -> str:
    """The text, with a label in the place of each hidden character."""
    return "".join(piece for piece, _ in pieces(text))


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text and the labels in it, in order; whether each is a label."""
    if _HIDDEN.search(text) is None:
        yield text, False
        return
    start = 0
    for found in _KEPT_OR_HIDDEN.finditer(text):
        if found[1] is not None:
            if found.start() > start:
                yield text[start : found.start()], False
            yield f"⟦U+{ord(found[1]):04X}⟧", True
            start = found.end()
    if start < len(text):
        yield text[start:], False
