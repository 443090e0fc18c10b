"""Searches cost little, and what one owner searches or reads leaves the others their connections."""

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
import requests
from conftest import Service, rows
from openai_server import OpenAIServer, finish, text
from sse_client import chat
from test_access import Key, new_key
from test_giving_up import AT_WORK, idle, until

from chat.refusals import JITTER_S, LimitExceeded, Overloaded, Refusal
from storage.reader import SearchTooBroad
from storage.shares import READS, READS_OF_OWNER, SEARCHES, SEARCHES_OF_OWNER, Shares
from store import Store
from threads.histories import Threads
from threads.search import find_words, pattern, wanted

pytestmark = pytest.mark.anyio
Start = Callable[..., Service]

WORDS = ["term", "party", "shall", "notice", "agreement", "confidential", "law", "the", "of", "a"]
BROAD = (
    "term or party or shall or notice or agreement or confidential or law or the or of or a"
    ' or "a b c d e f g" or "the of a the of zzz" or zzzz'
)


# As slow as a search may become: it is worked out while the statement is planned.
SLOW = """CREATE OR REPLACE FUNCTION search_query(owner text, words text) RETURNS tsquery LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN PERFORM pg_sleep(60); RETURN 'a'::tsquery; END $$"""


async def fill(store: Store, texts: list[str], owner: str = "o") -> None:
    """A thread for each text, all searchable."""
    await store.fetch(
        """WITH made AS (
            INSERT INTO threads (owner, thread_id, title, last_seq, created_at, updated_at)
            SELECT $1, 't' || n, 'Untitled', 1, now(), now() FROM generate_subscripts($2::text[], 1) AS n
        ) INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete, created_at)
        SELECT $1, 't' || n, 1, 0, 'r', 'assistant', 'message', content, true, now()
        FROM unnest($2::text[]) WITH ORDINALITY AS said(content, n)""",
        owner,
        texts,
    )
    while await find_words(store, 20):
        pass


async def passages(store: Store, query: str) -> list[str]:
    found, _ = await Threads(store, "o").search(query, 100, None)
    return [thread["match"]["passage"] for thread in found if thread["match"] is not None]


# ---------------------------------------------------------------------------------------------------------------
# Passages


async def test_a_passage_has_the_match_wherever_it_stands(store: Store) -> None:
    """At the beginning, across the part that is looked through first, and near the end of the searched text."""
    filler = "lorem " * 17_000
    for place in (0, 3_000, 3_980, 3_990, 3_994, 4_000, 4_010, 50_000, 98_200):
        await fill(store, [filler[:place] + " Needle in Hay, " + filler], owner="o")
        for query in ("needle", '"needle in hay"', "zebra or needle", "needle -zebra", "NEEDLE lorem"):
            [passage] = await passages(store, query)
            assert "Needle" in passage or "lorem" in query
            assert len(passage) <= 240
        await store.fetch("DELETE FROM messages")
        await store.fetch("DELETE FROM threads")


async def test_a_part_of_a_word_at_the_end_of_the_first_part_is_no_match_for_a_passage(store: Store) -> None:
    for cut in range(3_990, 4_002):
        await fill(store, ["x" * 3 + "\n" * (cut - 3) + "termination " + "\n" * 6_000 + "a term"])
        [passage] = await passages(store, "term")
        assert passage.endswith("a term")
        await store.fetch("DELETE FROM messages")
        await store.fetch("DELETE FROM threads")


async def test_a_passage_is_found_where_the_text_has_any_character(store: Store) -> None:
    made = random.Random(1)
    pool = "ab \n\t.,;'\"\\&$^()[]{}|*+?\x01\x7f\u00e4\u0130\u2028\ufeff😀\u202e"
    texts = ["".join(made.choices(pool, k=made.randrange(9_000))) + " Needle " for _ in range(30)]
    await fill(store, texts)
    found = await passages(store, "needle")
    assert len(found) == 30
    assert all("Needle" in passage for passage in found)


# By all matches, which is slow. The passage begins 60 characters before the first one.
BY_ALL_MATCHES = """SELECT thread_id, substr(content,
    greatest(regexp_instr(left(content, 100000), $1, 1, 1, 0, 'i') - 60, 1), 240) AS passage FROM messages"""
QUERIES = (
    *("term", "TERM or law", "law -party", '"the law"', '"the law" notice', '"term', 'the "law', "of the law or a"),
    *(
        "契約",
        "契約 or vertrag",
        "straße",
        "STRASSE or naïve",
        "a_b",
        "x-y",
        "e.g.",
        "-term",
        "or",
        '""',
        "und'er",
        "😀 law",
    ),
    *(" or ".join(f"w{number}" for number in range(25)) + " or law",),
)


WORD = re.compile(r"\w+")
NO_MATCH = {"or", '""', "STRASSE or naïve"}


async def test_a_passage_begins_at_the_first_match_of_all(store: Store) -> None:
    made = random.Random(3)
    said = [*WORDS, "契約", "契約書", "Straße", "naïve", "naïve", "a_b", "x-y", "e.g.", "und'er", "Vertrag", "w7", "😀"]
    gaps = (" ", " ", "\n", "\n\n", ", ", ". ", "\u2028", " – ", "\t" * 30, "\x01", "。")
    texts = []
    for _ in range(60):
        filler = made.choice(("", "lorem ", "z\n", "😀", "。")) * made.randrange(5_000)
        words = [made.choice(said) + made.choice(gaps) for _ in range(made.randrange(2, 300))]
        made.shuffle(words)
        texts.append(filler[:3_990] + "".join(words) + filler + "law")
    await fill(store, texts)
    for query in QUERIES:
        found, _ = await Threads(store, "o").search(query, 100, None)
        expected = {row["thread_id"]: row["passage"] for row in await store.fetch(BY_ALL_MATCHES, pattern(query))}
        for thread in found:
            match = thread["match"]
            if match is None:  # its title lacks the word
                assert query == "-term"
                continue
            assert match["passage"] == expected[thread["thread_id"]], query
            for start, end in match["marks"]:
                assert set(WORD.findall(match["passage"][start:end].lower())) <= set(WORD.findall(query.lower())), query
        assert found or query in NO_MATCH, query


async def test_the_passages_of_many_long_documents_are_found_in_one_statement(store: Store) -> None:
    made = random.Random(2)
    await fill(store, [" ".join(made.choices(WORDS, k=17_000)) for _ in range(60)])
    found, _ = await Threads(store, "o").search(BROAD, 100, None)  # within the limit of a statement
    assert len(found) == 60
    for thread in found:
        assert thread["match"] is not None
        assert thread["match"]["marks"]


# ---------------------------------------------------------------------------------------------------------------
# A search that takes too long


async def test_a_search_that_takes_too_long_says_how_to_narrow_it(store: Store, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(SLOW)
    with pytest.raises(SearchTooBroad, match="rarer word") as refused:
        await Threads(store, "o").search("law", 20, None)
    assert refused.value.code == "search_too_broad"
    await until(lambda: idle(connection))
    await connection.close()


def search(running: Service, key: Key) -> requests.Response:
    return requests.get(f"{running.url}/api/threads", params={"q": "law"}, headers=key.headers, timeout=20)


def test_one_owners_searches_leave_the_chats_of_others_alone(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    openai.default = (text("Good day."), finish())
    running = service(openai=openai)
    alice, bob = new_key(database_url, "alice"), new_key(database_url, "bob")
    rows(database_url, SLOW)
    done, answers, most = threading.Event(), Counter[tuple[int, str | None]](), 0

    def flood() -> None:
        while not done.is_set():
            answer = search(running, alice)
            answers[answer.status_code, answer.json()["code"]] += 1
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 1 + JITTER_S
                assert answer.json()["limit"] == "searches"

    with ThreadPoolExecutor(16) as threads:
        flooding = [threads.submit(flood) for _ in range(16)]
        try:
            for number in range(12):
                assert chat(running.url, "Hi", thread_id="bobs", headers=bob.headers).last["saved"], number
                listed = requests.get(f"{running.url}/api/threads", headers=bob.headers, timeout=20)
                assert listed.status_code == 200
                [(count,)] = rows(
                    database_url, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                )
                most = max(most, count)
            while (422, "search_too_broad") not in answers and not any(each.done() for each in flooding):
                time.sleep(0.05)
        finally:
            done.set()
        for each in flooding:
            each.result()
    assert answers.keys() == {(422, "search_too_broad"), (429, "rate_limited")}
    assert most <= 12


def test_a_client_that_leaves_ends_its_search(service: Start, database_url: str) -> None:
    running = service()
    key = new_key(database_url, "a")
    rows(database_url, SLOW)
    with pytest.raises(requests.Timeout):
        requests.get(f"{running.url}/api/threads", params={"q": "law"}, headers=key.headers, timeout=0.2)
    deadline = time.monotonic() + 20
    while rows(database_url, AT_WORK)[0][0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------------
# Shares


async def hold(shares: Shares, owner: str, released: asyncio.Event, *, search: bool = False) -> None:
    async with shares.search(owner) if search else shares.read(owner):
        await released.wait()


async def test_an_owner_has_a_share_of_the_reads_and_the_others_have_the_rest() -> None:
    shares, released = Shares(), asyncio.Event()
    mine = [asyncio.create_task(hold(shares, "mine", released)) for _ in range(READS_OF_OWNER)]
    await asyncio.sleep(0)
    with pytest.raises(LimitExceeded, match="reads") as refused:
        await hold(shares, "mine", released)
    assert refused.value.members == {"limit": "reads"}
    theirs = [asyncio.create_task(hold(shares, f"theirs {n}", released)) for n in range(READS - READS_OF_OWNER)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await hold(shares, "last", released)
    released.set()
    await asyncio.gather(*mine, *theirs)
    await hold(shares, "last", released)


async def test_a_share_of_searches_is_smaller_and_does_not_wait() -> None:
    shares, released = Shares(), asyncio.Event()
    mine = [asyncio.create_task(hold(shares, "mine", released, search=True)) for _ in range(SEARCHES_OF_OWNER)]
    await asyncio.sleep(0)
    with pytest.raises(LimitExceeded, match="searches"):
        async with asyncio.timeout(20):
            await hold(shares, "mine", released, search=True)
    assert SEARCHES_OF_OWNER < SEARCHES < READS
    released.set()
    await asyncio.gather(*mine)
    await hold(shares, "mine", released, search=True)


async def test_a_share_comes_back_whatever_happens() -> None:
    shares, released = Shares(), asyncio.Event()
    for _ in range(3 * READS):
        with pytest.raises(ZeroDivisionError):
            async with shares.search("mine"):
                raise ZeroDivisionError
        given_up = asyncio.create_task(hold(shares, "mine", released))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait({given_up})
    released.set()
    await hold(shares, "mine", released, search=True)


async def test_many_reads_of_one_owner_at_once_are_refused_with_their_cause(store: Store) -> None:
    reads = (store.read("mine", "SELECT pg_sleep(60)") for _ in range(3 * READS))
    failures = await asyncio.gather(*reads, return_exceptions=True)
    codes = Counter(failure.code for failure in failures if isinstance(failure, Refusal))
    assert codes.keys() == {"store_unavailable", "rate_limited"}
    assert codes.total() == 3 * READS


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("or " * 66, []),
        ('"' * 200, []),
        ("-a " * 66, []),
        ("a-b:*", ["a", "b"]),
        ("'; DROP TABLE threads; --", ["DROP", "TABLE", "threads"]),
        (r"\m(.*)+\M", ["m", "M"]),
    ],
)
async def test_any_query_is_a_search_of_words(store: Store, query: str, expected: list[str]) -> None:
    assert wanted(query) == expected
    await fill(store, ["a b c"])
    await Threads(store, "o").search(query, 20, None)


def test_a_long_query_is_refused(service: Start) -> None:
    running = service()
    for query, status in (("a or " * 39 + "b", 200), ("a or " * 2_000, 422)):
        answer = requests.get(f"{running.url}/api/threads", params={"q": query}, timeout=20)
        assert answer.status_code == status
