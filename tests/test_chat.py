"""The request: what is taken, and that each thing wrong with it is named."""

import re

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


SOMETHING = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(), max_size=2)
IDS = st.from_regex(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", fullmatch=True)
FIELDS: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        "message": st.text(st.characters(), max_size=120) | SOMETHING,
        "thread_id": st.text("aZ0._:@-/é\n", max_size=130) | SOMETHING,
        "checkpoint_id": IDS | SOMETHING,
        "stream": st.sampled_from(["pieces", "items"]) | SOMETHING,
        "on_disconnect": st.sampled_from(["continue", "cancel"]) | SOMETHING,
        "~other/": SOMETHING,
    },
)
TAKEN = re.compile(r"[A-Za-z0-9._:@-]{1,128}")


@given(FIELDS, st.none() | st.text(max_size=260))
def test_every_wrong_field_is_named_and_without_them_the_rest_is_taken(
    fields: dict[str, object], key: str | None
) -> None:
    repaired, request = dict(fields), None
    for _ in range(4):  # a thread_id that goes takes its checkpoint_id along; a message too long hides the others
        try:
            request = ChatRequest.from_fields(repaired, max_message_chars=100, idempotency_key=key)
            break
        except MessageTooLong:
            assert len(str(fields["message"])) > 100
            repaired["message"] = "Hi"
        except InvalidRequest as refused:
            pointers = {error["pointer"].removeprefix("/") for error in refused.errors}
            for name in {pointer.replace("~1", "/").replace("~0", "~") for pointer in pointers}:
                assert name in repaired or name in ("message", "idempotency_key")
                repaired.pop(name, None)
                if name == "message":
                    repaired["message"] = "Hi"
                elif name == "idempotency_key":
                    key = None
    assert request is not None
    given_and_taken = ((name, value) for name, value in repaired.items() if value is not None)
    assert all(getattr(request, name) == value for name, value in given_and_taken)
    assert request.message.strip()
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", request.message)
    assert request.thread_id is None or TAKEN.fullmatch(request.thread_id)
    assert request.message.encode()
    assert request.checkpoint_id is None or request.thread_id
    assert (request.fingerprint is None) == (request.idempotency_key is None)


def test_of_unknown_fields_without_number_the_first_twenty_are_named() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(dict.fromkeys(map(str, range(100_000))))
    assert [error["pointer"] for error in refused.value.errors] == [*(f"/{number}" for number in range(20)), "/message"]


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
