"""Log records to lines, as text or JSON. No line has the text of a chat: no message, no document, no words of a
provider or the database about one, no key, no DSN.

This is enforced where lines are formatted, so call sites can't get it wrong:
- The text of a line is a template in the code. The linter refuses one that is put together.
- Of its arguments only numbers, paths and single words of visible ASCII are shown: ids, codes, names, addresses.
  Anything else is shown by its length or its type. A URL is shown without its query, an address without its password.
- The one exception is a provider's error, from which `Cleared` leaves out what was said.
- Of an exception only its type, its code and the lines of code on its way are shown. Its text often has content:
  PostgreSQL's names the row, a provider's the request.
- Records of packages without known fixed templates show their origin only.
- A known secret of SHORTEST_SECRET characters or more is replaced wherever it appears, however it is escaped.

What nobody caught goes the same way: exceptions of threads, of the main thread, of finalizers and of the event loop,
and warnings. Python would print these with their texts.

LOG_CONTENT=1 lifts all of these but the last, to find a fault with data that may be seen.
"""

import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO
from urllib.parse import quote, quote_plus, urlsplit

import orjson

from telemetry.cleared import Cleared

Style = Literal["text", "json"]

KNOWN = ("draftstream", "uvicorn", "asyncio")
SHOWN_WORD = re.compile(r"[!-~]{1,200}")
QUERY = re.compile(r"\?.+")
USER_INFO = re.compile(r"//[^/@]+@")
LOOP_TEMPLATE = re.compile(r"[\w ,.']*")  # of asyncio's own texts; the repr of a callback with its arguments follows
HIDDEN = "[secret]"
NO_ORIGIN = "nowhere"  # of a text that is no URL
SHORTEST_SECRET = 8  # a shorter one would take words out of the log, and anybody can guess it

log = logging.getLogger("draftstream.log")


class Lines(logging.Formatter):
    """Makes the lines. `secrets`: texts that are never shown."""

    def __init__(self, style: Style, *, content: bool, secrets: Collection[str]) -> None:
        super().__init__()
        self._json = style == "json"
        self._content = content
        forms = {form for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _forms(secret)}
        self._secrets = sorted(forms, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        trace = ""
        if self._content:
            message = record.getMessage()
            if record.exc_info:
                trace = self.formatException(record.exc_info)
        else:
            message = _message(record)
            fields = {name: _shown(value) for name, value in fields.items()}
            if record.exc_info and record.exc_info[1] is not None:
                trace = _trace(record.exc_info[1])
        # Here, and again behind the escapes of the line itself.
        message, trace = self._hide(message), self._hide(trace)
        fields = {name: self._hide(value) if isinstance(value, str) else value for name, value in fields.items()}
        if self._json:
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            line = {"time": time, "level": record.levelname, "logger": record.name, "message": message, **fields}
            if trace:
                line["exception"] = trace
            return self._hide(orjson.dumps(line, default=str).decode())
        words = [message, *(f"{name}={_quoted(value)}" for name, value in fields.items() if value is not None)]
        return self._hide(f"{record.levelname + ':':<9} {' '.join(words)}" + (f"\n{trace}" if trace else ""))

    def _hide(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return line


def _forms(secret: str) -> Iterator[str]:
    """A secret as it stands, in a URL, in a Python literal, and each of these as JSON writes it."""
    encoded = (quote(secret, safe=""), quote(secret), quote_plus(secret))
    for form in (secret, repr(secret)[1:-1], *encoded, *(re.sub(r"%..", lambda it: it[0].lower(), e) for e in encoded)):
        yield from (form, json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1])


def _message(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] not in KNOWN:
        return f"a record of {record.name}, line {record.lineno}"
    template = str(record.msg).partition("\n")[0]
    if not record.args:
        found = LOOP_TEMPLATE.match(template) if record.name.startswith("asyncio") else None
        return found[0] if found is not None else template
    arguments = record.args if isinstance(record.args, tuple) else (record.args,)
    try:
        return template % tuple(_shown(argument) for argument in arguments)
    except (TypeError, ValueError):
        return f"{template} (its arguments do not fit)"


def _shown(argument: object) -> object:
    if argument is None or isinstance(argument, int | float | Cleared):
        return argument
    if isinstance(argument, BaseException):
        return kind(argument)
    if isinstance(argument, Enum):
        argument = argument.value
    if isinstance(argument, Path):  # of the configuration, and never out of a chat
        path = str(argument)
        return path if path.isprintable() else repr(path)
    if not isinstance(argument, str):
        return f"[{type(argument).__name__}]"
    if not SHOWN_WORD.fullmatch(argument):
        return f"[{len(argument)} characters]"
    return USER_INFO.sub("//", QUERY.sub("?…", argument))


def _quoted(value: object) -> str:
    """In quotes, as JSON has it, unless it is one word: a line can be taken apart again."""
    text = str(value)
    return text if SHOWN_WORD.fullmatch(text) else orjson.dumps(text).decode()


def kind(error: BaseException) -> str:
    """The type and code of an exception, without its text: `AuthenticationError 401`, `UniqueViolationError 23505`."""
    codes = (getattr(error, name, None) for name in ("sqlstate", "status_code", "errno"))
    shown = (str(code) for code in codes if isinstance(code, int) or (isinstance(code, str) and len(code) == 5))
    return " ".join([type(error).__name__, *shown])


def _trace(error: BaseException) -> str:
    """The traceback without the exceptions' texts, and with theirs without the source, which is ours."""
    return "\n".join(["Traceback (most recent call last):", *_frames(error)])


def _frames(error: BaseException) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _frames(before)
        yield "which led to:"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
    yield kind(error)


def origin_of(url: str) -> str:
    """Scheme, host and port of an address, for the log: without user, password, path and query."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}" if host else NO_ORIGIN
    except ValueError:
        return NO_ORIGIN


def set_up(level: str, style: Style, *, content: bool, secrets: Collection[str]) -> None:
    """Send every record of this process through `Lines` to stderr; ours from `level` on, other packages' warnings."""
    handler = _Stderr()
    handler.setFormatter(Lines(style, content=content, secrets=secrets))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.lastResort = handler  # for a logger that passes nothing on
    logging.raiseExceptions = False  # a handler of another package would print the arguments of a wrong line
    logging.getLogger("draftstream").setLevel(level)
    for name in [*logging.Logger.manager.loggerDict]:
        logger = logging.getLogger(name)
        own = [it for it in logger.handlers if type(it) is logging.StreamHandler or name.partition(".")[0] == "uvicorn"]
        if own:  # an access log that is switched off has none
            logger.handlers = [it for it in logger.handlers if it not in own]
            logger.propagate = True
    threading.excepthook = _of_thread
    sys.excepthook = _of_main_thread
    sys.unraisablehook = _of_finalizer
    warnings.showwarning = _warned


class _Stderr(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """logging would print the line's arguments."""
        with suppress(Exception):
            kind_of_error = kind(error) if (error := sys.exception()) is not None else "unknown"
            self.stream.write(f"ERROR:    a line of the log can't be written ({kind_of_error})\n")


def _of_thread(failed: threading.ExceptHookArgs) -> None:
    if isinstance(failed.exc_value, SystemExit) or failed.exc_value is None:
        return
    name = failed.thread.name if failed.thread is not None else None
    log.error("the thread %s failed", name, exc_info=failed.exc_value)


def _of_main_thread(kind_: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    if issubclass(kind_, KeyboardInterrupt):
        log.error("interrupted")
    else:
        log.critical("the process failed", exc_info=error)


def _of_finalizer(ignored: "sys.UnraisableHookArgs") -> None:
    if ignored.exc_value is not None:
        log.error("an exception was ignored in a %s", type(ignored.object).__name__, exc_info=ignored.exc_value)


def _warned(  # noqa: PLR0917  # the signature of warnings.showwarning
    message: Warning | str,  # may have content
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log.warning("%s in %s, line %d", category.__name__, Path(filename), lineno)
