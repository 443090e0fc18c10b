"""The search: it makes items searchable, and marks the words of a query in the passages that PostgreSQL found."""

import asyncio
import re
from typing import NoReturn

from store import Store, StoreUnavailable
from threads.statements import FIND_WORDS

QUERY_WORD = re.compile(r"\w+")
TERM = re.compile(r"\"[^\"]*\"|[^\s\"]+")  # "a phrase", or a word with its punctuation
EXCLUDED = re.compile(r"(?:^|\s)-(?:\"[^\"]*\"|\S+)")  # of a web search: -word, -"a phrase"
# A batch of small items takes some milliseconds, one of the largest items a second: then fewer are taken.
ITEMS_AT_ONCE = 32
PAUSE_S = 0.5


def wanted(query: str) -> list[str]:
    """Regular expressions for the words and phrases of a query, without `or` and without those that it excludes.

    Their words are made of letters, digits and _ alone, so that there is nothing to escape.
    """
    found: list[str] = []
    for term in TERM.finditer(EXCLUDED.sub(" ", query)):
        words = QUERY_WORD.findall(term.group())
        if term.group().startswith('"'):
            found.append(r"\W+".join(words))
        else:
            found += [word for word in words if word.lower() != "or"]
    return [one for one in found if one]


def pattern(query: str) -> str:
    """PostgreSQL's regular expression for any word or phrase of the query."""
    found = wanted(query)
    return rf"\m(?:{'|'.join(found)})\M" if found else r"\A"


def marked(passage: str, query: str) -> list[tuple[int, int]]:
    """The places of the query's words in the passage, as [start, end) in code points, in order."""
    found = wanted(query)
    anyone = re.compile(rf"\b({'|'.join(found)})\b", re.IGNORECASE)
    return [match.span() for match in anyone.finditer(passage)] if found else []


async def find_words(store: Store, items: int) -> int:
    """Find the words of so many items that the search does not know yet; returns how many there were."""
    return len(await store.upkeep(FIND_WORDS, items))


async def keep_searchable(store: Store) -> NoReturn:
    """Find the words of new items, for ever.

    The writer does not do it, as it takes longer than to store an item. While the writer is behind, this goes slowly.
    """
    items = ITEMS_AT_ONCE
    while True:
        try:
            found = await find_words(store, items)
            more, items = found == items and not store.behind, ITEMS_AT_ONCE
        except StoreUnavailable:
            more, items = False, max(items // 2, 1)
        if not more:
            await asyncio.sleep(PAUSE_S)
