"""No part of a DSN's password is shown, however it is written."""

import logging
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from settings import Settings, SettingsError
from storage.address import UNKNOWN, UnreadableAddress
from storage.connections import Database, connect
from storage.dsn_options import UnusableAddress
from store import StoreUnavailable, passwords_of, where
from telemetry.logs import Lines

pytestmark = pytest.mark.anyio

FORMS = (
    "postgresql://user:{}@db.example/drafts",
    "postgresql://user:{}@db.example:5432/drafts?sslmode=require",
    "postgres://user:{}@a.example:1,b.example:2/drafts",
    "postgresql://user:{}@[::1]:5433/drafts",
    "postgresql://user:{}@/drafts?host=/run/postgresql",
    "postgresql://db.example/drafts?user=user&password={}",
    "postgresql://db.example/drafts?password={}&sslmode=require",
    "postgresql://user@db.example/drafts?sslpassword={}",
    "postgresql://{}@db.example/drafts",  # in the place of the user
    "postgresql://user {}@db.example/drafts",
    "host=db.example user=user password={}",
    "jdbc:postgresql://db.example/drafts?password={}",
)
MAY_BE_SHOWN = (
    "postgresql db.example:5432/drafts a.example:1,b.example:2/drafts [::1]:5433/drafts local-socket/drafts user "
    f"{UNKNOWN} can't use the database at"
)
RUN = 4


def parts(secret: str, text: str) -> set[str]:
    """The runs of four characters that the text has of the secret, and that no other field has."""
    with pytest.raises(SettingsError) as constant:
        Settings.from_env({"DATABASE_URL": "x"})
    allowed = f"{MAY_BE_SHOWN} {constant.value} {UnreadableAddress()} {Settings.from_env({})!r}"
    runs = {secret[at : at + RUN] for at in range(len(secret) - RUN + 1)}
    return {run for run in runs if run in text and run not in allowed}


@given(password=st.text(min_size=RUN, max_size=20), form=st.sampled_from(FORMS), encoded=st.booleans())
@example(password="12/34secret", form=FORMS[0], encoded=False)
@example(password="99#secret", form=FORMS[0], encoded=False)
@example(password="1234?a=secret", form=FORMS[0], encoded=False)
@example(password="p@ss/word", form=FORMS[0], encoded=False)
@example(password="p@ssword", form=FORMS[2], encoded=False)
@example(password="pass[word", form=FORMS[3], encoded=False)
@example(password="pass\tword", form=FORMS[0], encoded=False)
@example(password="ﬀ℀secret", form=FORMS[0], encoded=False)  # urlsplit refuses it, with the authority in its text
def test_no_part_of_a_password_is_shown(password: str, form: str, *, encoded: bool) -> None:
    dsn = form.format(quote(password, safe="") if encoded else password)
    shown = where(dsn)
    try:
        settings = Settings.from_env({"DATABASE_URL": dsn})
    except SettingsError as error:
        shown += f" {error} {error.__cause__}" + ("" if error.__suppress_context__ else f" {error.__context__}")
    else:
        shown += repr(settings)
        line = logging.makeLogRecord({"name": "x", "msg": f"at {dsn}, {password}", "levelname": "INFO"})
        if len(password) >= 8 and encoded and (":{}@" in form or "password={}" in form):
            shown += Lines("text", content=True, secrets=passwords_of(dsn)).format(line)
    assert parts(password, shown) == set()


@given(st.text(min_size=8, max_size=20))
def test_a_password_that_is_percent_encoded_is_read_as_it_is(password: str) -> None:
    dsn = f"postgresql://user:{quote(password, safe='')}@db.example/drafts"
    settings = Settings.from_env({"DATABASE_URL": dsn})
    assert settings.database_url == dsn
    assert password in passwords_of(dsn)
    assert where(dsn) == "db.example:5432/drafts"


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:p@a:1,b:2/x", "a:1,b:2/x"),
        ("postgresql://u:p@a,b:2/x?target_session_attrs=read-write", "a:5432,b:2/x"),
        ("postgresql://u:p@[2001:db8::1]:6432/x", "[2001:db8::1]:6432/x"),
        ("postgresql:///x?host=/run/postgresql&port=5433", "local-socket/x"),
        ("postgres://u:p%40ss@db/x?sslmode=verify-full&sslrootcert=/not/there", "db:5432/x"),
    ],
)
def test_the_place_is_the_one_that_asyncpg_reads(dsn: str, shown: str) -> None:
    assert Settings.from_env({"DATABASE_URL": dsn}).database_url == dsn
    assert where(dsn) == shown


@pytest.mark.parametrize(
    "dsn",
    [
        *("postgresql://u:p@db:0/x", "postgresql://u:p@db:65536/x", "postgresql://u:p@db:port/x"),
        *("postgresql://user:password/x", "postgresql://user:3456/password/x"),  # the host was left out
        *("postgresql://u:a@b@c/x", "postgresql://u@db/x#y", "postgresql://db/x?user=a@b"),
    ],
)
def test_a_dsn_that_can_be_read_in_two_ways_is_refused_with_the_way_out(dsn: str) -> None:
    assert where(dsn) == UNKNOWN
    with pytest.raises(UnreadableAddress, match="percent-encoded") as refused:
        Database(dsn)
    assert dsn not in str(refused.value)


@pytest.mark.parametrize("dsn", ["mysql://db/x", "host=db", "postgresql:db", "postgresqlx://db/x"])
def test_the_settings_ask_for_the_scheme(dsn: str) -> None:
    with pytest.raises(SettingsError, match=r"must be a postgresql:// URL$"):
        Settings.from_env({"DATABASE_URL": dsn})


def test_settings_show_no_secret() -> None:
    env = {
        "DATABASE_URL": "postgresql://u:geheim12@db/x",
        "OPENAI_API_KEY": "geheim12",
        "OPENAI_BASE_URL": "https://u:geheim12@h/?k=geheim12",
    }
    assert "geheim12" not in repr(Settings.from_env(env))
    for name in ("PORT", "JWT_JWKS_URL", "CORS_ALLOW_ORIGINS", "OPENAI_BASE_URL", "LOG_LEVEL"):
        with pytest.raises(SettingsError) as refused:
            Settings.from_env({name: "postgresql://geheim12:x/y"})
        assert "geheim12" not in str(refused.value)


PASSWORD = "geheim12"


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/x", "ConnectionRefusedError"),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/x", "ConnectionRefusedError"),
        (f"postgresql://user:{PASSWORD}@/x?host=/not/there", "FileNotFoundError"),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/x?sslmode={PASSWORD}", "sslmode in DATABASE_URL must be one of"),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/x?target_session_attrs={PASSWORD}", "must be read-write, primary"),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/x?connect_timeout={PASSWORD}", "must be a number of seconds"),
        (
            f"postgresql://user:{PASSWORD}@127.0.0.1:1/x?sslmode=require&ssl_min_protocol_version={PASSWORD}",
            "can't be used (ClientConfigurationError)",
        ),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/x?{PASSWORD}", "an option that is not known"),
        (f"postgresql://127.0.0.1:1/x?user=u&password=begin&{PASSWORD}=end", "an option that is not known"),
    ],
)
async def test_a_connection_that_fails_shows_no_password(dsn: str, said: str) -> None:
    with pytest.raises((StoreUnavailable, UnusableAddress)) as failed:
        await connect(Database(dsn), 0.01)
    assert said in str(failed.value)
    assert parts(PASSWORD, str(failed.value)) == set()


async def test_the_server_refuses_a_password_and_its_text_is_shown_without_it(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    for dsn in (postgres.replace("@/postgres", "@/nowhere"), f"{postgres}&options=-c%20geheim%3D{PASSWORD}"):
        with pytest.raises(StoreUnavailable, match=r"\((InvalidCatalogName|UndefinedObject)") as failed:
            await connect(Database(dsn), 0.01)
        assert PASSWORD not in str(failed.value)
