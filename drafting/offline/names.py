"""The names of parties in a message. Pure.

A name is made of words with a capital letter or a digit, or it stands in quotation marks. So no other word of a message
can become part of it.
"""

import re

NAME_CHARS = 80
NAME_WORDS = 8
_QUOTED = re.compile(r"“([^“”\n]+)”|\"([^\"\n]+)\"")
_WORD = re.compile(r" ?([^\s,;:!?()\[\]“”\"]+)(,(?= ))?")
_SPELLED = re.compile(r"[^\W_](?:[^\W_]|[&'’.+/-](?=[^\W_]))*")
_SAFE = re.compile(r"(?:[^\W_]|[ &'’.,+/()-])+")
_SUFFIXES = frozenset(
    re.findall(
        r"\w+",
        "inc incorporated corp corporation llc llp lp ltd limited plc co company gmbh ag kg kgaa ug se sa sas sarl srl "
        "spa bv nv ab as oy aps pty pte kk",
    )
)
_DOTTED = frozenset({"inc", "corp", "ltd", "co", "st", "dr", "mr", "mrs", "ms", "bros", "pty", "pte"})
_INSIDE = frozenset({"of", "the", "de", "la", "van", "von", "der", "du", "&"})  # between two words of a name
# Words that begin another request or join it to this one. None is part of a name, unless it is in quotation marks.
NO_NAME = frozenset(
    re.findall(
        r"[\w-]+",
        "a add also an and as at be between but by call can change could create delete discard do does draft drop "
        "extend for from give go governed have how i if in include insert instead into is it its law make me must "
        "mutual my name nda need new no not now on one-way or party please prepare put remove rename replace "
        "restore reverse revert set shall should shorten so switch take term thank thanks that then they this to "
        "turn under undo unless until update use want we what when where which who why will with would write you "
        "your",
    )
)


def name_at(text: str, at: int) -> tuple[str, int] | None:
    """The name that begins there, and where it ends."""
    if quoted := _QUOTED.match(text, at):
        name = " ".join((quoted[1] or quoted[2]).split())
        return (name, quoted.end()) if _SAFE.fullmatch(name) and len(name) <= NAME_CHARS else None
    end, words, ended = at, 0, False
    position = at
    while words < NAME_WORDS and (found := _WORD.match(text, position)):
        word, dot = found[1].rstrip("."), found[1].endswith(".")
        plain = word.replace(".", "").lower()
        suffix = plain in _SUFFIXES and words > 0
        if plain in NO_NAME or (ended and not suffix and word != "&"):
            break
        if plain in _INSIDE and words > 0:
            position = found.end()
            words += 1
            continue
        if not (suffix or _is_capitalised(word)) or not _SPELLED.fullmatch(word):
            break
        words += 1
        ended = ended or suffix
        keeps_dot = dot and (plain in _DOTTED or "." in word or len(word) == 1)
        end = found.start(1) + len(word) + keeps_dot
        position = found.end()
        if dot and not keeps_dot:
            break
        if found[2] and not _suffix_at(text, position):
            break
    name = text[at:end].strip()
    return (name, end) if name and len(name) <= NAME_CHARS else None


def _is_capitalised(word: str) -> bool:
    """It has a capital letter or a digit, or letters of a script that has no capitals."""
    return any(letter.isupper() or letter.isdigit() or (letter.isalpha() and not letter.islower()) for letter in word)


def _suffix_at(text: str, at: int) -> bool:
    found = _WORD.match(text, at)
    return found is not None and found[1].replace(".", "").lower() in _SUFFIXES
