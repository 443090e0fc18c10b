"""The environment, read once into one frozen object."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import parse_qsl, urlsplit

T = TypeVar("T")

Scope = Literal["chat", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

VERSION = "0.1.0"  # the one place: pyproject.toml refers to it, and a test holds openapi.json to it
DEFAULT_MODEL = "gpt-5.1"
OFFLINE_MODEL = "offline"
DEFAULT_DATA_DIR = Path(".data")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
HOST_NAME = re.compile(r"(?:\*\.[a-z0-9_-]+\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
HEADER_VALUE = re.compile(r"[!#-&(-~][!-~]*")  # visible ASCII; a quote at the beginning came with the text around it
DSN_SCHEME = re.compile(r"postgres(?:ql)?(?:\+[a-z0-9_]+)?://")  # SQLAlchemy's names a driver
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, section 5.6.2
FIELD_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")  # of any header; in the middle it may have spaces
OWN_HEADERS = {"host", "connection", "content-length", "content-type", "transfer-encoding"}  # of each request's own
MODEL_NAME = re.compile(r"(?![\"'])[^\x00-\x1f]{1,200}")  # a quote at the beginning came with the text around it
NAME_OF_A_MODEL = "the name of a model, of 1 to 200 characters, without quotes around it"
WORD = re.compile(r"[a-z]+")
BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")  # RFC 6750, and long enough not to be guessed


class SettingsError(ValueError):
    """A setting has a value that can't be used; the text is one line that names it."""


def _within(kind: Callable[[str], T], minimum: float, maximum: float) -> Callable[[str], T]:
    def parse(text: str) -> T:
        number = kind(text)
        if not minimum <= number <= maximum:  # type: ignore[operator]  # kind is int or float
            raise ValueError
        return number

    return parse


def _url(*schemes: str) -> Callable[[str], str | None]:
    def parse(text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in schemes or (parts.scheme.startswith("http") and not parts.hostname):
            raise ValueError
        _ = parts.port  # raises for what is no port
        return text

    return parse


def _dsn(text: str) -> str:
    """The rest of it is read where a connection is made: storage/address.py.

    Quotes around it are those of an env file whose reader keeps them.
    """
    for quote in "\"'":
        if text.startswith(quote) and text.endswith(quote):
            text = text[1:-1]
    if not DSN_SCHEME.match(text):
        raise ValueError
    return text


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, which is an address or a name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _secure_url(text: str) -> str:
    parts = urlsplit(text)
    host = parts.hostname or ""
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host))):
        raise ValueError
    _ = parts.port  # raises for what is no port
    return text


def _pem(text: str) -> str:
    """A PEM, also with \\n for its line ends as env files have it; anything else is the path of one."""
    if "-----BEGIN " in text:
        return text.replace("\\n", "\n")
    try:
        return Path(text).read_text("ascii")
    except OSError:
        raise ValueError from None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _log_level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise ValueError
    return text.upper()


def _log_format(text: str) -> Literal["text", "json"]:
    match text:
        case "text":
            return "text"
        case "json":
            return "json"
    raise ValueError


def _scopes(text: str) -> tuple[Scope, ...]:
    named = text.replace(",", " ").split()
    if not set(named) <= set(SCOPES):
        raise ValueError
    return tuple(scope for scope in SCOPES if scope in named)


def _scope_prefix(text: str) -> str:
    if not re.fullmatch(r"[!#-[\]-~]+", text):  # the characters of a scope (RFC 6749, section 3.3)
        raise ValueError
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or parts.path or not parts.hostname):
            raise ValueError
    return origins


def _bearer_token(text: str) -> str | None:
    if not BEARER_TOKEN.fullmatch(text):
        raise ValueError
    return text


def _header_value(text: str) -> str | None:
    """Of a key that is sent as a header. What a client can't send would fail each run."""
    if not HEADER_VALUE.fullmatch(text):
        raise ValueError
    return text


def _host_names(text: str) -> tuple[str, ...]:
    """`*.example.com` takes in what is below it. A bare `*` would take in the names of attackers."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not all(HOST_NAME.fullmatch(name) for name in names):
        raise ValueError
    return names


def _model_name(text: str) -> str:
    if not (MODEL_NAME.fullmatch(text) and text.isprintable()):
        raise ValueError
    return text


def _model_names(text: str) -> tuple[str, ...]:
    names = tuple(_model_name(name.strip()) for name in text.split(",") if name.strip())
    if any(" " in name for name in names):  # it was to be a comma
        raise ValueError
    return names


def _word(text: str) -> str:
    if not WORD.fullmatch(text):
        raise ValueError
    return text


def _headers(text: str) -> tuple[tuple[str, str], ...]:
    try:
        headers = json.loads(text, object_pairs_hook=tuple)
    except RecursionError:
        raise ValueError from None
    if not text.startswith("{"):
        raise ValueError
    for name, value in headers:
        if not (isinstance(value, str) and FIELD_VALUE.fullmatch(value) and HEADER_NAME.fullmatch(name)):
            raise ValueError
        if name.lower() in OWN_HEADERS:
            raise ValueError
    return _once((name.lower() for name, _ in headers), headers)


def _query(text: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(parse_qsl(text.removeprefix("?"), keep_blank_values=True, strict_parsing=True))
    return _once((name for name, _ in pairs), pairs)


def _once(names: Iterable[str], pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Of two values for one name, only one could be sent."""
    if len(set(names)) < len(pairs):
        raise ValueError
    return pairs


# ---------------------------------------------------------------------------------------------------------------
# A setting: its default, and how its text is read


def _setting(parse: Callable[[str], T], default: T, what: str, *, secret: bool = False) -> T:
    """A field of Settings. `what` completes the sentence "NAME must be …". A secret's value is never shown."""
    metadata = {"parse": parse, "what": what, "secret": secret}
    setting: T = field(default=default, repr=not secret, metadata=metadata)
    return setting


def _text(default: T, *, secret: bool = False) -> T:
    return _setting(str, default, "a text", secret=secret)  # type: ignore[arg-type]  # T is str or str | None


def _whole(default: int, minimum: int, maximum: int = 2**31 - 1) -> int:
    return _setting(_within(int, minimum, maximum), default, f"a whole number from {minimum} to {maximum}")


def _limit(maximum: int = 2**53) -> int | None:
    """Off unless it is set."""
    return _setting(_within(int, 1, maximum), None, f"a whole number from 1 to {maximum}")


def _number(minimum: float, maximum: float) -> float | None:
    """Off unless it is set."""
    return _setting(_within(float, minimum, maximum), None, f"a number from {minimum:g} to {maximum:g}")


def _seconds(default: float) -> float:
    return _setting(_within(float, 0.05, 86_400), default, "a number of seconds from 0.05 to 86400")


def _switch(*, default: bool) -> bool:
    return _setting(_flag, default, "1 or 0")


def _secrets_in(value: str | tuple[tuple[str, str], ...]) -> Iterator[str]:
    """An address of the web is no secret as such, and lines of the log name it. Its user, password and query are.

    Of named values, such as headers, the values are, and so is the token of an Authorization alone.
    """
    if not isinstance(value, str):
        for _, text in value:
            yield from {text, *text.split()}
        return
    parts = urlsplit(value) if value.startswith(("http://", "https://")) else None
    if parts is None or parts.username is not None or parts.query:
        yield value
    if parts is not None:
        yield from filter(None, (parts.username, parts.password, parts.query))


# ---------------------------------------------------------------------------------------------------------------
# The settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field is the environment variable of its name, in capitals. Times are in seconds."""

    database_url: str | None = _setting(_dsn, None, "a postgresql:// URL", secret=True)
    migrate_at_start: bool = _switch(default=True)
    data_dir: Path = _setting(Path, DEFAULT_DATA_DIR, "a folder")  # noqa: RUF009  # the call makes a field
    # `from_env` sets one for the embedded database.
    journal_dir: Path | None = _setting(Path, None, "a folder")  # noqa: RUF009  # likewise
    openai_api_key: str | None = _setting(
        _header_value, None, "visible ASCII characters without quotes around them, spaces or line ends", secret=True
    )
    openai_base_url: str | None = _setting(_url("http", "https"), None, "an http:// or https:// URL", secret=True)
    openai_model: str = _setting(_model_name, DEFAULT_MODEL, NAME_OF_A_MODEL)
    # Unset, it follows from the names of the models: drafting/context/tokens.py.
    model_context_tokens: int | None = _setting(
        _within(int, 4000, 10**8), None, "a whole number from 4000 to 100000000"
    )
    models: tuple[str, ...] = _setting(
        _model_names, (), "a comma-separated list of names of models, without quotes around them"
    )
    model_fallback: str | None = _setting(_model_name, None, NAME_OF_A_MODEL)
    model_fallback_base_url: str | None = _setting(
        _url("http", "https"), None, "an http:// or https:// URL", secret=True
    )
    model_fallback_api_key: str | None = _setting(
        _header_value, None, "visible ASCII characters without quotes around them, spaces or line ends", secret=True
    )
    model_headers: tuple[tuple[str, str], ...] = _setting(
        _headers,
        (),
        'a JSON object of names and texts, such as {"api-key": "…"}, each name once, without Host or Content-Type',
        secret=True,
    )
    model_query: tuple[tuple[str, str], ...] = _setting(
        _query, (), "a query, such as api-version=2024-10-21, each name once", secret=True
    )
    model_stream_options: bool = _switch(default=True)
    model_max_output_tokens: int | None = _limit()
    model_temperature: float | None = _number(0, 2)
    model_reasoning_effort: str | None = _setting(_word, None, "a word, such as low")
    host: str = _text("127.0.0.1")
    port: int = _whole(8005, 0, 65535)
    log_level: str = _setting(_log_level, "INFO", f"one of {', '.join(LOG_LEVELS)}")
    log_format: Literal["text", "json"] = _setting(_log_format, "text", "text or json")
    log_content: bool = _switch(default=False)
    trace_to_langsmith: bool = _switch(default=False)
    max_body_bytes: int = _whole(2**20, 1024)
    max_message_chars: int = _whole(32_000, 1)
    max_runs: int = _whole(1000, 1)
    write_queue_size: int = _whole(10_000, 2)
    write_queue_bytes: int = _whole(2**28, 1)
    run_log_bytes: int | None = _limit()
    save_timeout_s: float = _seconds(5)
    run_timeout_s: float = _seconds(600)
    model_first_token_timeout_s: float = _seconds(30)
    model_idle_timeout_s: float = _seconds(60)
    heartbeat_s: float = _seconds(15)
    drain_timeout_s: float = _seconds(30)
    requests_per_minute: int | None = _limit()
    runs_per_owner: int | None = _limit()
    tokens_per_day: int | None = _limit()
    streams_per_owner: int | None = _limit()
    bytes_per_owner: int | None = _limit()
    fork_bytes_per_hour: int = _whole(2**26, 1, 2**53)
    exports_per_owner: int | None = _limit(2)  # as many as there are processes that make them
    export_timeout_s: float = _seconds(15)
    thread_ttl_days: int | None = _limit(36_500)
    cors_allow_origins: tuple[str, ...] = _setting(_origins, (), "a comma-separated list of origins, or *")
    allowed_hosts: tuple[str, ...] = _setting(
        _host_names, (), "a comma-separated list of host names without ports, such as draft.lan or *.example.com"
    )
    metrics_token: str | None = _setting(
        _bearer_token, None, "16 or more of the characters A-Z a-z 0-9 . _ ~ + / - with any = at the end", secret=True
    )
    allow_anonymous: bool = _switch(default=False)
    jwt_jwks_url: str | None = _setting(_secure_url, None, "an https:// URL (http:// on a loopback address)")
    # The PEM itself, also where the variable has a path to it.
    # A private key may stand there by mistake.
    jwt_public_key: str | None = _setting(_pem, None, "a public key in PEM, or the path of one", secret=True)
    jwt_issuer: str | None = _text(None)
    jwt_audience: str | None = _text(None)
    jwt_default_scopes: tuple[Scope, ...] = _setting(_scopes, (), f"some of {','.join(SCOPES)}")
    jwt_scope_prefix: str | None = _setting(
        _scope_prefix, None, "visible ASCII characters without a space, a quote or a backslash"
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """An empty variable counts as unset. Raises SettingsError."""
        values: dict[str, Any] = {}
        for setting in fields(cls):
            name = setting.name.upper()
            text = env.get(name, "").strip()
            if not text:
                continue
            try:
                values[setting.name] = setting.metadata["parse"](text)
            except ValueError:
                secret = setting.metadata["secret"] or "@" in text or "://" in text  # a URL may have a password
                shown = "" if secret else f", not {text!r}"
                raise SettingsError(f"{name} must be {setting.metadata['what']}{shown}") from None
        settings = cls(**values)
        settings._check_jwt()
        settings._check_models()
        if settings.database_url is None and settings.journal_dir is None:
            settings = replace(settings, journal_dir=settings.data_dir / "journal")
        return settings

    def _check_jwt(self) -> None:
        """All of it or none: half a configuration would accept tokens that are not meant for this service."""
        keys = [self.jwt_jwks_url, self.jwt_public_key]
        if all(keys):
            raise SettingsError("JWT_JWKS_URL and JWT_PUBLIC_KEY must not both be set")
        parts = {
            "JWT_JWKS_URL or JWT_PUBLIC_KEY": any(keys),
            "JWT_ISSUER": self.jwt_issuer is not None,
            "JWT_AUDIENCE": self.jwt_audience is not None,
        }
        missing = [name for name, is_set in parts.items() if not is_set]
        if missing and (any(parts.values()) or self.jwt_default_scopes or self.jwt_scope_prefix):
            raise SettingsError(f"{' and '.join(missing)} must be set too, because other JWT settings are set")

    def _check_models(self) -> None:
        """What only a provider can keep is refused without one: the offline model would pass it by."""
        if self.offline:
            for name in ("models", "model_fallback"):
                if getattr(self, name):
                    raise SettingsError(f"{name.upper()} needs a provider: set OPENAI_API_KEY or OPENAI_BASE_URL")
        if self.model_fallback is None:
            for name in ("model_fallback_base_url", "model_fallback_api_key"):
                if getattr(self, name) is not None:
                    raise SettingsError(f"{name.upper()} needs MODEL_FALLBACK, the name of the model there")
        elsewhere = self.model_fallback_base_url or self.model_fallback_api_key
        if self.model_fallback == self.openai_model and not elsewhere:
            raise SettingsError("MODEL_FALLBACK must be another model than OPENAI_MODEL, or have an address or key")

    @property
    def secrets(self) -> list[str]:
        """Texts that no line of the log may have."""
        values = [getattr(self, setting.name) for setting in fields(self) if setting.metadata["secret"]]
        return [text for value in values if value for text in _secrets_in(value)]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models that a request may name; the first one is the default."""
        if self.offline:
            return (OFFLINE_MODEL,)
        return tuple(dict.fromkeys((self.openai_model, *self.models)))

    @property
    def offline(self) -> bool:
        """Nothing says where a model is, so the service brings its own."""
        return self.openai_api_key is None and self.openai_base_url is None
