"""The request: what is taken, and that each thing wrong with it is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import ChatRequest, InvalidRequest, MessageTooLong, graph_thread_id, title_from


def check(fields: object) -> ChatRequest:
    return ChatRequest.from_fields(fields, max_message_chars=100)


def test_a_message_is_all_that_is_needed() -> None:
    assert check({"message": "Draft an NDA"}) == ChatRequest("Draft an NDA", None, None, "pieces")


@pytest.mark.parametrize(
    "message",
    ["x" * 100, "\n\ndata: x\n\nevent: end", "</script>", "a\u2028b", "\u202e", "e" + "\u0301" * 90, "tab\there\r\n"],
)
def test_any_text_a_person_can_send_is_taken_as_it_is(message: str) -> None:
    assert check({"message": message}).message == message


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ([], [""]),
        ("text", [""]),
        (None, [""]),
        ({}, ["/message"]),
        ({"message": None}, ["/message"]),
        ({"message": 1}, ["/message"]),
        ({"message": ["a"]}, ["/message"]),
        ({"message": ""}, ["/message"]),
        ({"message": " \n\t "}, ["/message"]),
        ({"message": "a\0b"}, ["/message"]),
        ({"message": "a\x1bb"}, ["/message"]),
        ({"message": "a\ud800"}, ["/message"]),
        ({"message": "a", "thread_id": ""}, ["/thread_id"]),
        ({"message": "a", "thread_id": "a/b"}, ["/thread_id"]),
        ({"message": "a", "thread_id": "x\n"}, ["/thread_id"]),
        ({"message": "a", "thread_id": "é"}, ["/thread_id"]),
        ({"message": "a", "thread_id": "x" * 129}, ["/thread_id"]),
        ({"message": "a", "thread_id": 7}, ["/thread_id"]),
        ({"message": "a", "checkpoint_id": "x", "thread_id": "t"}, ["/checkpoint_id"]),
        ({"message": "a", "checkpoint_id": "1f1e7774-6f1f-6390-bffe-2da23c4264ef"}, ["/checkpoint_id"]),
        ({"message": "a", "stream": "words"}, ["/stream"]),
        ({"message": "a", "stream": None}, ["/stream"]),
        ({"message": "a", "stream": {}}, ["/stream"]),
        ({"message": "a", "mesage": "b"}, ["/mesage"]),
        ({"message": "a", "a/b~c": "b"}, ["/a~1b~0c"]),
        ({"message": 1, "thread_id": 1, "x": 1}, ["/x", "/message", "/thread_id"]),
    ],
)
def test_each_wrong_field_is_named(fields: object, pointers: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(fields)
    assert [error["pointer"] for error in refused.value.errors] == pointers


def test_a_message_that_is_too_long_is_refused_with_the_limit() -> None:
    with pytest.raises(MessageTooLong) as refused:
        check({"message": "x" * 101})
    assert refused.value.limit == 100


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_taken_or_refused_by_name(fields: object) -> None:
    try:
        request = check(fields)
    except (InvalidRequest, MessageTooLong):
        return
    assert isinstance(fields, dict)
    assert request.message == fields["message"]


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
