"""The names that are made of a request: a thread's title, and its name in the graph."""

from hypothesis import given
from hypothesis import strategies as st

from chat import graph_thread_id
from storage.statements import title_from


def test_a_title_is_the_first_line_cut_at_a_word() -> None:
    assert title_from("  Draft   an NDA \n for Acme") == "Draft an NDA"
    assert title_from("word " * 40) == "word " * 14 + "word…"
    assert len(title_from("x" * 500)) == 80


@given(st.text(min_size=1).filter(str.strip))
def test_every_message_has_a_title(message: str) -> None:
    assert 0 < len(title_from(message)) <= 80


def test_two_owners_threads_of_one_name_are_two() -> None:
    assert graph_thread_id("a", "b") != graph_thread_id("b", "a")
    assert graph_thread_id("a/b", "c") != graph_thread_id("a", "b:c")
