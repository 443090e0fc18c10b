"""The environment, read once into one frozen object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

VERSION = "0.1.0"  # the one place: pyproject.toml refers to it, and a test holds openapi.json to it
DEFAULT_MODEL = "gpt-5.1"
DEFAULT_DATA_DIR = Path(".data")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NOT_SHOWN = ("DATABASE_URL", "OPENAI_API_KEY", "JWT_PUBLIC_KEY")  # a private key may stand there by mistake


class SettingsError(ValueError):
    """A setting has a value that can't be used; the text is one line that names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field is the environment variable of its name, in capitals. Times are in seconds."""

    database_url: str | None
    migrate_at_start: bool
    data_dir: Path
    journal_dir: Path | None
    openai_api_key: str | None
    openai_base_url: str | None
    openai_model: str
    host: str
    port: int
    log_level: str
    log_format: Literal["text", "json"]
    log_content: bool
    max_body_bytes: int
    max_message_chars: int
    max_runs: int
    write_queue_size: int
    write_queue_bytes: int
    save_timeout_s: float
    run_timeout_s: float
    model_first_token_timeout_s: float
    model_idle_timeout_s: float
    heartbeat_s: float
    drain_timeout_s: float
    requests_per_minute: int | None
    runs_per_owner: int | None
    tokens_per_day: int | None
    thread_ttl_days: int | None
    cors_allow_origins: tuple[str, ...]
    allow_anonymous: bool
    jwt_jwks_url: str | None
    jwt_public_key: str | None  # the PEM itself, also where the variable has a path to it
    jwt_issuer: str | None
    jwt_audience: str | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """An empty variable counts as unset. Raises SettingsError."""

        def read(name: str, parse: Callable[[str], T], default: T, what: str) -> T:
            text = env.get(name, "").strip()
            if not text:
                return default
            try:
                return parse(text)
            except ValueError:
                shown = "" if name in NOT_SHOWN or "@" in text else f", not {text!r}"  # a URL with a password
                raise SettingsError(f"{name} must be {what}{shown}") from None

        def whole(name: str, default: int, minimum: int, maximum: int = 2**31 - 1) -> int:
            return read(name, _within(int, minimum, maximum), default, f"a whole number from {minimum} to {maximum}")

        def limit(name: str) -> int | None:
            what = f"a whole number from 1 to {2**53}"
            return read(name, _within(int, 1, 2**53), None, what)

        def seconds(name: str, default: float) -> float:
            return read(name, _within(float, 0.05, 86_400), default, "a number of seconds from 0.05 to 86400")

        database_url = read("DATABASE_URL", _url("postgresql", "postgres"), None, "a postgresql:// URL")
        data_dir = read("DATA_DIR", Path, DEFAULT_DATA_DIR, "a folder")
        settings = cls(
            database_url=database_url,
            migrate_at_start=read("MIGRATE_AT_START", _flag, default=True, what="1 or 0"),
            data_dir=data_dir,
            journal_dir=read("JOURNAL_DIR", Path, data_dir / "journal" if database_url is None else None, "a folder"),
            openai_api_key=env.get("OPENAI_API_KEY", "").strip() or None,
            openai_base_url=read("OPENAI_BASE_URL", _url("http", "https"), None, "an http:// or https:// URL"),
            openai_model=env.get("OPENAI_MODEL", "").strip() or DEFAULT_MODEL,
            host=env.get("HOST", "").strip() or "127.0.0.1",
            port=whole("PORT", 8005, 0, 65535),
            log_level=read("LOG_LEVEL", _log_level, "INFO", f"one of {', '.join(LOG_LEVELS)}"),
            log_format=read("LOG_FORMAT", _log_format, "text", "text or json"),
            log_content=read("LOG_CONTENT", _flag, default=False, what="1 or 0"),
            max_body_bytes=whole("MAX_BODY_BYTES", 2**20, 1024),
            max_message_chars=whole("MAX_MESSAGE_CHARS", 32_000, 1),
            max_runs=whole("MAX_RUNS", 1000, 1),
            write_queue_size=whole("WRITE_QUEUE_SIZE", 10_000, 2),
            write_queue_bytes=whole("WRITE_QUEUE_BYTES", 2**28, 1),
            save_timeout_s=seconds("SAVE_TIMEOUT_S", 5),
            run_timeout_s=seconds("RUN_TIMEOUT_S", 600),
            model_first_token_timeout_s=seconds("MODEL_FIRST_TOKEN_TIMEOUT_S", 30),
            model_idle_timeout_s=seconds("MODEL_IDLE_TIMEOUT_S", 60),
            heartbeat_s=seconds("HEARTBEAT_S", 15),
            drain_timeout_s=seconds("DRAIN_TIMEOUT_S", 30),
            requests_per_minute=limit("REQUESTS_PER_MINUTE"),
            runs_per_owner=limit("RUNS_PER_OWNER"),
            tokens_per_day=limit("TOKENS_PER_DAY"),
            thread_ttl_days=read("THREAD_TTL_DAYS", _within(int, 1, 36_500), None, "a whole number from 1 to 36500"),
            cors_allow_origins=read("CORS_ALLOW_ORIGINS", _origins, (), "a comma-separated list of origins, or *"),
            allow_anonymous=read("ALLOW_ANONYMOUS", _flag, default=False, what="1 or 0"),
            jwt_jwks_url=read("JWT_JWKS_URL", _secure_url, None, "an https:// URL (http:// on a loopback address)"),
            jwt_public_key=read("JWT_PUBLIC_KEY", _pem, None, "a public key in PEM, or the path of one"),
            jwt_issuer=env.get("JWT_ISSUER", "").strip() or None,
            jwt_audience=env.get("JWT_AUDIENCE", "").strip() or None,
        )
        settings._check_jwt()
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
        if 0 < len(missing) < len(parts):
            raise SettingsError(f"{' and '.join(missing)} must be set too, because other JWT settings are set")

    @property
    def offline(self) -> bool:
        """Nothing says where a model is, so the service brings its own."""
        return self.openai_api_key is None and self.openai_base_url is None


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


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or parts.path or not parts.hostname):
            raise ValueError
    return origins
