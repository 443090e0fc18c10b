"""A search's words, as they show in a passage that was found by them. PostgreSQL finds; this marks."""

import re

QUERY_CHARS = 200
WORD = re.compile(r"\w+")
TERM = re.compile(r"\"[^\"]*\"|[^\s\"]+")  # "a phrase", or a word with what is written to it
EXCLUDED = re.compile(r"(?:^|\s)-(?:\"[^\"]*\"|\S+)")  # of a web search: -word, -"a phrase"


def wanted(query: str) -> list[str]:
    """Regular expressions of what a search is for, without what it excludes and the `or` between.

    Each is a word or a phrase: its words are letters, digits and _ alone, so that there is nothing to escape.
    """
    found: list[str] = []
    for term in TERM.finditer(EXCLUDED.sub(" ", query)):
        words = WORD.findall(term.group())
        if term.group().startswith('"'):
            found.append(r"\W+".join(words))
        else:
            found += [word for word in words if word.lower() != "or"]
    return [one for one in found if one]


def pattern(query: str) -> str:
    """PostgreSQL's regular expression for any of them."""
    found = wanted(query)
    return rf"\m({'|'.join(found)})\M" if found else r"\A"


def marked(passage: str, query: str) -> list[tuple[int, int]]:
    """Where they stand in the passage, as [start, end) in code points, in order."""
    found = wanted(query)
    anyone = re.compile(rf"\b({'|'.join(found)})\b", re.IGNORECASE)
    return [match.span() for match in anyone.finditer(passage)] if found else []
