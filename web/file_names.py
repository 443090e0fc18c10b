"""The name of a download, made of a title that a model or a caller chose.

The title is normalised first and cleaned then, because normalisation makes quotes and slashes out of other characters.
What may stand in a name is listed; everything else becomes a space. The name is the same text in each normal form that
a file system may bring it into.
"""

import re
import unicodedata
from urllib.parse import quote

TITLE_BYTES = 150  # of UTF-8, of the 255 that most file systems take for a name
SIGNS = frozenset(" ._()-,;=&%+'’§€–—")
# Letters and symbols that look like no character, or like one that a path or a header is made of. Windows writes some
# of the latter as that one when it converts a name to an old code page.
UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffc")
ALIKE = frozenset("\u01c0\u02ba\u02bd\u02f8\ua789")
NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ._()-]+")
DEVICE = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9]) *(?:\.|$)", re.IGNORECASE)  # Windows opens it, and no file


def disposition(title: str, extension: str, version: str = "") -> tuple[str, str]:
    """The header that names the file (RFC 6266): in Unicode, and in ASCII for clients that don't read Unicode."""
    end = f" {version}.{extension}" if version else f".{extension}"
    clean = "".join(map(_in_a_name, unicodedata.normalize("NFKC", title)))
    name = _named(clean.encode()[:TITLE_BYTES].decode(errors="ignore"))
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = _no_device(_named(NOT_PLAIN.sub(" ", plain)) + end)
    encoded = quote(_no_device(name + end), safe="")
    return "content-disposition", f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def _in_a_name(character: str) -> str:
    """The character itself, nothing for one that cannot be seen, and a space for one that may not stand there."""
    if character in SIGNS:
        return character
    kind = unicodedata.category(character)
    if kind == "Cf" or character in UNSEEN or _is_variation_selector(character):
        return ""
    return character if (kind[0] in "LMN" or kind == "So") and character not in ALIKE else " "


def _is_variation_selector(character: str) -> bool:
    return (
        "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
        or "\u180b" <= character <= "\u180f"
    )


def _named(text: str) -> str:
    """Without dots in front, which hide a file, a sign that makes it an option, and the ends that Windows drops."""
    name = " ".join(text.split()).lstrip(" .-").rstrip(" .")
    return name if any(character not in SIGNS for character in name) else "thread"


def _no_device(name: str) -> str:
    return f"_{name}" if DEVICE.match(name) else name
