"""A request is taken as it is, or refused with an error for each wrong field."""

import base64
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat import ChatRequest
from chat.refusals import FieldError, InvalidRequest
from threads.histories import Place
from web import fields as readers
from web.fields import BadValue, EventsQuery, MessageTooLong, chat_request, cursor, cursor_of, events_query


def check(fields: object) -> ChatRequest:
    return chat_request(fields, max_message_chars=100)


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
    assert refused.value.members == {"limit": 100}


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
            request = chat_request(repaired, max_message_chars=100, idempotency_key=key)
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


# ---------------------------------------------------------------------------------------------------------------
# The place in the list of threads

OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.datetimes(timezones=st.none() | OFFSETS).map(datetime.isoformat)


@given(st.datetimes(timezones=st.just(UTC)), st.from_regex(r"[A-Za-z0-9._:@-]{1,128}", fullmatch=True))
def test_a_cursor_comes_back_as_the_place_it_was_made_of(created_at: datetime, thread_id: str) -> None:
    assert cursor(cursor_of(Place(created_at, thread_id))) == (created_at, thread_id)


@given(
    st.text()
    | st.binary().map(base64.urlsafe_b64encode).map(bytes.decode)
    | st.tuples(TIMES, st.sampled_from([" ", ""]), st.text())
    .map("".join)
    .map(lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))
)
@example(base64.urlsafe_b64encode(b"0001-01-01T00:00:00+23:59 x").decode())
@example(base64.urlsafe_b64encode(b"9999-12-31T23:59:59-23:59 x").decode())
def test_any_other_cursor_is_a_place_that_can_be_asked_for_or_refused(raw: str) -> None:
    with suppress(BadValue):
        created_at, thread_id = cursor(raw)
        assert created_at.tzinfo is UTC
        assert "\0" not in thread_id


# ---------------------------------------------------------------------------------------------------------------
# Every reader

RUN = "1f1e79fa-4dd3-66ff-8003-796a8d117922"
NO_RUN = "00000000-0000-0000-0000-000000000000"
WORDS = st.sampled_from(["pieces", "json", "docx", "1", "20", "2026-11-24T09:30:00Z", RUN, "d1", "Lease"]) | st.text(
    max_size=9
)
NAMES = {*readers.CHAT_QUERY, *readers.EVENTS_QUERY, *readers.THREADS_QUERY, *readers.OLD_THREADS_QUERY}
NAMES |= {*readers.THREAD_FIELDS, *readers.FORK_FIELDS, *readers.EXPORT_QUERY, *readers.DIFF_QUERY}
QUERIES = st.dictionaries(st.sampled_from(sorted(NAMES)) | st.text(max_size=3), WORDS, max_size=4)
BODIES = (
    st.dictionaries(st.sampled_from(sorted(NAMES)) | st.text(max_size=3), WORDS | SOMETHING, max_size=4) | SOMETHING
)
LAST_EVENT_IDS = st.sampled_from([f"{RUN}:0", f"{RUN}:end", f"{RUN}:-1", f"{RUN[::-1]}:0", ""]) | st.text(max_size=9)


def of_query(read: Callable[[dict[str, str]], object]) -> st.SearchStrategy[Callable[[], object]]:
    return QUERIES.map(lambda query: lambda: read(query))


def of_body(read: Callable[[object], object]) -> st.SearchStrategy[Callable[[], object]]:
    return BODIES.map(lambda values: lambda: read(values))


@given(
    st.one_of(
        of_query(readers.threads_query),
        of_query(readers.old_threads_query),
        of_query(readers.stream_mode),
        of_query(readers.events_names),
        of_query(readers.export_query),
        of_query(readers.diff_query),
        of_query(check),
        of_body(check),
        of_body(readers.fork_request),
        of_body(readers.new_title),
        st.tuples(QUERIES, st.none() | LAST_EVENT_IDS).map(lambda sent: lambda: events_query(*sent, RUN)),
    )
)
def test_whatever_is_wrong_the_refusal_names_a_field_and_says_how_it_should_be(read: Callable[[], object]) -> None:
    errors = refused(read)
    if errors is None:
        return
    assert errors
    for error in errors:
        assert error.keys() == {"pointer", "detail"}
        assert not error["pointer"] or error["pointer"].startswith("/")
        assert error["detail"]


def refused(read: Callable[[], object]) -> list[FieldError] | None:
    try:
        read()
    except MessageTooLong:
        return None
    except InvalidRequest as refusal:
        return refusal.errors
    return None


@pytest.mark.parametrize(
    ("query", "last_event_id", "expected"),
    [
        ({}, None, EventsQuery(None, "pieces")),
        ({"after": "0"}, None, EventsQuery(0, "pieces")),
        ({"after": "7", "stream": "items"}, f"{RUN}:9", EventsQuery(9, "items")),
        ({"after": "7"}, f"{RUN}:end", EventsQuery(None, "pieces", has_all=True)),
    ],
)
def test_a_stream_goes_on_behind_the_last_event_that_the_client_has(
    query: dict[str, str], last_event_id: str | None, expected: EventsQuery
) -> None:
    assert events_query(query, last_event_id, RUN) == expected


@pytest.mark.parametrize(
    "last_event_id", ["", "x", f"{RUN}", f"{RUN}:01", f"{NO_RUN}:0", f"{RUN}:0\n", f"{RUN}:9" + "9" * 15]
)
def test_an_event_id_of_another_run_is_refused_by_name(last_event_id: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        events_query({}, last_event_id, RUN)
    assert [error["pointer"] for error in refused.value.errors] == ["/Last-Event-ID"]
