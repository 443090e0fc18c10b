"""Log records to lines, as text or JSON. No line has the text of a chat: no message, no document, no words of a
provider or the database about one, no key, no DSN.

This is enforced where lines are formatted, so call sites can't get it wrong:
- The text of a line is a template in the code. The linter refuses one that is put together.
- Of its arguments only numbers, paths and single words of visible ASCII are shown: ids, codes, names, addresses.
  Anything else is shown by its length or its type. A URL is shown without its query, an address without its password.
- Of an exception only its type, its code and the lines of code on its way are shown. Its text often has content:
  PostgreSQL's names the row, a provider's the request.
- Records of packages without known fixed templates show their origin only.
- A known secret is replaced wherever it appears.

LOG_CONTENT=1 lifts all of these but the last, to find a fault with data that may be seen.
"""

import logging
import re
import traceback
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Literal

import orjson

Style = Literal["text", "json"]

KNOWN = ("draftstream", "uvicorn", "asyncio")
SHOWN_WORD = re.compile(r"[!-~]{1,200}")
QUERY = re.compile(r"\?.+")
USER_INFO = re.compile(r"//[^/@]+@")
HIDDEN = "[secret]"


class Lines(logging.Formatter):
    """Makes the lines. `secrets`: texts that are never shown."""

    def __init__(self, style: Style, *, content: bool, secrets: Collection[str]) -> None:
        super().__init__()
        self._json = style == "json"
        self._content = content
        # Each as it stands, and as JSON writes it.
        forms = {form for secret in secrets if secret for form in (secret, orjson.dumps(secret).decode()[1:-1])}
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


def _message(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] not in KNOWN:
        return f"a record of {record.name}, line {record.lineno}"
    template = str(record.msg).partition("\n")[0]
    if not record.args:
        return template
    arguments = record.args if isinstance(record.args, tuple) else (record.args,)
    try:
        return template % tuple(_shown(argument) for argument in arguments)
    except (TypeError, ValueError):
        return f"{template} (its arguments do not fit)"


def _shown(argument: object) -> object:
    if argument is None or isinstance(argument, int | float):
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


def set_up(level: str, style: Style, *, content: bool, secrets: Collection[str]) -> None:
    """Send every record of this process through `Lines` to stderr; ours from `level` on, other packages' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(style, content=content, secrets=secrets))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("draftstream").setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        if logger.handlers:  # an access log that is switched off has none
            logger.handlers.clear()
            logger.propagate = True
