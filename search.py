"""A search's words, as they show in a passage that was found by them. PostgreSQL finds; this marks."""

import re

QUERY_CHARS = 200
WORD = re.compile(r"\w+")
EXCLUDED = re.compile(r"(?:^|\s)-(?:\"[^\"]*\"|\S+)")  # of a web search: -word, -"a phrase"


def wanted(query: str) -> list[str]:
    """The words that a search is for, without those that it excludes and the `or` between them."""
    return [word for word in WORD.findall(EXCLUDED.sub(" ", query)) if word.lower() != "or"]


def pattern(query: str) -> str:
    """PostgreSQL's regular expression for any of the words. They are letters, digits and _ alone: nothing to escape."""
    words = wanted(query)
    return rf"\m({'|'.join(words)})\M" if words else r"\A"


def marked(passage: str, query: str) -> list[tuple[int, int]]:
    """Where the words stand in the passage, as [start, end) in code points, in order."""
    words = {word.lower() for word in wanted(query)}
    return [found.span() for found in WORD.finditer(passage) if found.group().lower() in words]
