"""The validation of requests: of bodies, queries, and the headers that belong to them.

A reader returns a checked value, or raises InvalidRequest with one error for each wrong field. Nothing here does I/O or
reads a clock.
"""

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Literal, Self, TypeVar

from chat import CHECKPOINT_ID, RUN_ID, THREAD_ID, ChatRequest, OnDisconnect, StreamMode
from chat.refusals import FieldError, InvalidRequest, Refusal
from runs.sse import EventId
from threads.histories import Place

T = TypeVar("T")
D = TypeVar("D")
Word = TypeVar("Word", bound=str)

UNKNOWN_NAMED = 20  # in the errors; a body of a megabyte can have 100,000 fields
THREADS_A_PAGE = 20
SEARCH_CHARS = 200
USAGE_DAYS = 30
MOST_USAGE_DAYS = 366
THREAD_TITLE_CHARS = 200

# C0 controls but tab, newline and carriage return: no keyboard types them, and PostgreSQL refuses NUL.
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
LINE_CONTROL = re.compile(r"[\t\r\n]")
SURROGATE = re.compile("[\ud800-\udfff]")
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")  # visible ASCII; most clients send a UUID
MODEL_NAME = re.compile("[^\x00-\x1f\ud800-\udfff]{1,200}")  # whether there is such a model, the runs know
POSITION = re.compile(r"[0-9]{1,15}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
LIMIT = re.compile(r"[1-9][0-9]?|100")
RUNS_LIMIT = re.compile(r"[1-9][0-9]{0,2}|1000")
# RFC 3339. The + of the zone may arrive as a space: that is the meaning of an unescaped + in a query.
TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?)([Zz]|[+ -]\d\d:\d\d)", re.ASCII)

DAY = re.compile(r"[12]\d{3}-\d\d-\d\d", re.ASCII)

STREAM_MODES: Collection[StreamMode] = ("pieces", "items")
ON_DISCONNECT: Collection[OnDisconnect] = ("continue", "cancel")

# The names that each body and query may have. A test holds the OpenAPI document to them.
CHAT_FIELDS = ("message", "thread_id", "checkpoint_id", "stream", "on_disconnect", "model")
CHAT_QUERY = (*CHAT_FIELDS, "idempotency_key")
EVENTS_QUERY = ("after", "stream")
THREADS_QUERY = ("limit", "cursor", "q")
HISTORY_QUERY = ("before", "limit")
OLD_THREADS_QUERY = ("before",)
THREAD_FIELDS = ("title",)
FORK_FIELDS = ("checkpoint_id", "thread_id")
EXPORT_QUERY = ("format", "document", "version", "checkpoint_id")
USAGE_QUERY = ("from", "to")
DIFF_QUERY = ("from", "to", "format", "checkpoint_id")

ExportFormat = Literal["md", "json", "docx"]
DiffFormat = Literal["html", "docx", "json"]
EXPORT_FORMATS: Collection[ExportFormat] = ("md", "json", "docx")
DIFF_FORMATS: Collection[DiffFormat] = ("html", "docx", "json")


class MessageTooLong(Refusal):
    def __init__(self, limit: int) -> None:
        detail = f"The message has more than {limit} characters, which is the limit (MAX_MESSAGE_CHARS)."
        super().__init__("message_too_long", detail, limit=limit)


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """Fork a thread at `checkpoint_id` (None: at its head) into a new one (None: with a new UUID)."""

    checkpoint_id: str | None = None
    thread_id: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    limit: int | None
    before: str | None  # a run


@dataclass(frozen=True, slots=True)
class ThreadsQuery:
    """A page of the list of threads, or of a search for `words`. `before`: the place of the last thread read."""

    limit: int
    before: Place | None
    words: str | None


@dataclass(frozen=True, slots=True)
class EventsQuery:
    """`after`: the code points that the client already has. `has_all`: it has the whole stream."""

    after: int | None
    stream: StreamMode
    has_all: bool = False


@dataclass(frozen=True, slots=True)
class ExportQuery:
    """`document`: export one document, in its newest or a given version, and not the conversation."""

    format: ExportFormat
    document: str | None
    version: int | None
    checkpoint_id: str | None


@dataclass(frozen=True, slots=True)
class DiffQuery:
    """`new_version` defaults to the newest one, `old_version` to the one before `new_version`."""

    format: DiffFormat
    old_version: int | None
    new_version: int | None
    checkpoint_id: str | None


# ---------------------------------------------------------------------------------------------------------------
# Reading fields by name


class BadValue(ValueError):
    """The text says how the value must be."""


Check = Callable[[object], T]
"""Returns the value in the form that the service uses. Raises BadValue."""


class Fields:
    """Raw values by name. Leaving the block raises InvalidRequest for unknown names and for wrong values."""

    def __init__(self, values: object, known: Collection[str], kind: str = "field") -> None:
        if not isinstance(values, Mapping):
            raise InvalidRequest([{"pointer": "", "detail": "must be a JSON object"}])
        self._values: Mapping[str, object] = values
        self._errors: list[FieldError] = []
        for name in islice((name for name in values if name not in known), UNKNOWN_NAMED):
            self.refuse(str(name), f"is not a known {kind}")

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def read(self, name: str, check: Check[T], default: D, *, required: bool = False) -> T | D:
        """The checked value, or the default where the value is absent or wrong."""
        if name not in self._values:
            if required:
                self.refuse(name, "is required")
            return default
        try:
            return check(self._values[name])
        except BadValue as bad:
            self.refuse(name, str(bad))
            return default

    def refuse(self, name: str, detail: str) -> None:
        self._errors.append({"pointer": "/" + name.replace("~", "~0").replace("/", "~1"), "detail": detail})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._errors:
            raise InvalidRequest(self._errors)


# ---------------------------------------------------------------------------------------------------------------
# Checks of one value


def text(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue("must be a string")
    return value


def message(max_chars: int) -> Check[str]:
    """The check raises MessageTooLong, too."""

    def check(value: object) -> str:
        said = text(value)
        if len(said) > max_chars:
            raise MessageTooLong(max_chars)
        if not said.strip():
            raise BadValue("must not be empty")
        if CONTROL_CHARACTER.search(said):
            raise BadValue("must not contain control characters other than tab and line ends")
        if SURROGATE.search(said):
            raise BadValue("must not contain unpaired surrogates")
        return said

    return check


def line(max_chars: int) -> Check[str]:
    """One line of text; white space around it is dropped."""

    def check(value: object) -> str:
        said = text(value).strip()
        if not 1 <= len(said) <= max_chars:
            raise BadValue(f"must have 1 to {max_chars} characters")
        if CONTROL_CHARACTER.search(said) or LINE_CONTROL.search(said):
            raise BadValue("must not contain control characters")
        if SURROGATE.search(said):
            raise BadValue("must not contain unpaired surrogates")
        return said

    return check


def matching(pattern: re.Pattern[str], detail: str) -> Check[str]:
    def check(value: object) -> str:
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            raise BadValue(detail)
        return value

    return check


def or_null(check: Check[T]) -> Check[T | None]:
    return lambda value: None if value is None else check(value)


def one_of(words: Collection[Word]) -> Check[Word]:
    known = " or ".join(f'"{word}"' for word in words).replace(" or ", ", ", max(len(words) - 2, 0))

    def check(value: object) -> Word:
        for word in words:
            if value == word:
                return word
        raise BadValue(f"must be {known}")

    return check


def number(pattern: re.Pattern[str], detail: str) -> Check[int]:
    digits = matching(pattern, detail)
    return lambda value: int(digits(value))


def timestamp(value: object) -> datetime:
    try:
        if (match := TIME.fullmatch(text(value))) is not None:
            local, zone = match.groups()
            return datetime.fromisoformat(local.upper() + zone.upper().replace(" ", "+")).astimezone(UTC)
    except (ValueError, OverflowError):  # OverflowError: out of range once it is in UTC
        pass
    raise BadValue("must be a time as RFC 3339 has it: 2026-11-24T09:30:00Z")


def day(value: object) -> date:
    try:
        if DAY.fullmatch(raw := text(value)):
            return date.fromisoformat(raw)
    except ValueError:
        pass
    raise BadValue("must be a day in UTC: 2026-11-24")


def cursor(value: object) -> Place:
    """The inverse of `cursor_of`."""
    try:
        raw = text(value)
        moment, _, thread_id = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode().partition(" ")
        created_at = datetime.fromisoformat(moment)
        if created_at.tzinfo is not None and "\0" not in thread_id:
            return Place(created_at.astimezone(UTC), thread_id)
    except (binascii.Error, ValueError, OverflowError):  # OverflowError: out of range once it is in UTC
        pass
    raise BadValue("must be the next_cursor of a page before")


def cursor_of(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place.created_at.isoformat()} {place.thread_id}".encode()).decode().rstrip("=")


MODEL = or_null(matching(MODEL_NAME, "must be the name of a model, of 1 to 200 characters"))
THREAD = or_null(matching(THREAD_ID, "must be 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -"))
CHECKPOINT = or_null(matching(CHECKPOINT_ID, "must be the id of a checkpoint of this thread"))
VERSION_NUMBER = number(VERSION, "must be a version: a whole number from 1")


# ---------------------------------------------------------------------------------------------------------------
# Readers of a whole body or query


def chat_request(values: object, *, max_message_chars: int, idempotency_key: str | None = None) -> ChatRequest:
    """From a JSON body or a query, and the key that came with it. Raises MessageTooLong, too."""
    with Fields(values, CHAT_FIELDS) as fields:
        request = ChatRequest(
            message=fields.read("message", message(max_message_chars), "", required=True),
            thread_id=fields.read("thread_id", THREAD, None),
            checkpoint_id=fields.read("checkpoint_id", CHECKPOINT, None),
            stream=fields.read("stream", one_of(STREAM_MODES), "pieces"),
            on_disconnect=fields.read("on_disconnect", one_of(ON_DISCONNECT), "continue"),
            model=fields.read("model", MODEL, None),
            idempotency_key=idempotency_key,
        )
        if fields.has("checkpoint_id") and not fields.has("thread_id"):
            fields.refuse("checkpoint_id", "needs the thread_id it belongs to")
        if idempotency_key is not None and not IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            fields.refuse("idempotency_key", "must be 1 to 255 visible ASCII characters")
    return request


def fork_request(values: object) -> ForkRequest:
    with Fields(values, FORK_FIELDS) as fields:
        return ForkRequest(fields.read("checkpoint_id", CHECKPOINT, None), fields.read("thread_id", THREAD, None))


def new_title(values: object) -> str:
    with Fields(values, THREAD_FIELDS) as fields:
        return fields.read("title", line(THREAD_TITLE_CHARS), "", required=True)


def threads_query(query: Mapping[str, str]) -> ThreadsQuery:
    with Fields(query, THREADS_QUERY, "parameter") as fields:
        return ThreadsQuery(
            limit=fields.read("limit", number(LIMIT, "must be a whole number from 1 to 100"), THREADS_A_PAGE),
            before=fields.read("cursor", cursor, None),
            words=fields.read("q", line(SEARCH_CHARS), None),
        )


def history_query(query: Mapping[str, str]) -> HistoryQuery:
    with Fields(query, HISTORY_QUERY, "parameter") as fields:
        return HistoryQuery(
            limit=fields.read("limit", number(RUNS_LIMIT, "must be a whole number from 1 to 1000"), None),
            before=fields.read("before", matching(RUN_ID, "must be the next_before of a page"), None),
        )


def old_threads_query(query: Mapping[str, str]) -> datetime:
    """Threads last updated before this time are old."""
    with Fields(query, OLD_THREADS_QUERY, "parameter") as fields:
        return fields.read("before", timestamp, datetime.min.replace(tzinfo=UTC), required=True)


def stream_mode(query: Mapping[str, str]) -> StreamMode:
    with Fields(query, query) as fields:
        return fields.read("stream", one_of(STREAM_MODES), "pieces")


def events_names(query: Mapping[str, str]) -> None:
    """Refuse unknown parameters, before the run is searched for."""
    with Fields(query, EVENTS_QUERY, "parameter"):
        pass


def events_query(query: Mapping[str, str], last_event_id: str | None, run_id: str) -> EventsQuery:
    """The header overrides `after`: a browser that reconnects sends it, to the same URL as before."""
    with Fields(query, EVENTS_QUERY, "parameter") as fields:
        after = fields.read("after", number(POSITION, "must be a position: a whole number"), None)
        mode: StreamMode = fields.read("stream", one_of(STREAM_MODES), "pieces")
        if last_event_id is None:
            return EventsQuery(after, mode)
        seen = EventId.parse(last_event_id)
        if seen is not None and seen.run_id == run_id:
            return EventsQuery(seen.after, mode, has_all=seen.after is None)
        fields.refuse("Last-Event-ID", "must be the id of an event of this run")
    return EventsQuery(after, mode)


def usage_query(query: Mapping[str, str], today: date) -> tuple[date, date]:
    """The first and the last day."""
    with Fields(query, USAGE_QUERY, "parameter") as fields:
        last = fields.read("to", day, today)
        first = fields.read("from", day, last - timedelta(days=USAGE_DAYS - 1))
        if not timedelta() <= last - first < timedelta(days=MOST_USAGE_DAYS):
            fields.refuse("from", f"must be at most {MOST_USAGE_DAYS} days before the day of `to`, and not behind it")
    return first, last


def export_query(query: Mapping[str, str]) -> ExportQuery:
    with Fields(query, EXPORT_QUERY, "parameter") as fields:
        if fields.has("version") and not fields.has("document"):
            fields.refuse("version", "needs the document that it is one of")
        return ExportQuery(
            format=fields.read("format", one_of(EXPORT_FORMATS), "md"),
            document=fields.read("document", text, None),
            version=fields.read("version", VERSION_NUMBER, None),
            checkpoint_id=fields.read("checkpoint_id", CHECKPOINT, None),
        )


def diff_query(query: Mapping[str, str]) -> DiffQuery:
    with Fields(query, DIFF_QUERY, "parameter") as fields:
        return DiffQuery(
            format=fields.read("format", one_of(DIFF_FORMATS), "html"),
            old_version=fields.read("from", VERSION_NUMBER, None),
            new_version=fields.read("to", VERSION_NUMBER, None),
            checkpoint_id=fields.read("checkpoint_id", CHECKPOINT, None),
        )
