"""DSNs as hosted databases, frameworks and other clients give them to copy."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from settings import Settings, SettingsError
from storage.address import UnreadableAddress, read_address
from storage.connections import Database
from storage.dsn_options import AS_IT_IS, CONNECT_BUDGET_S, IGNORED, PASSED, READ, REFUSED, WHY_IGNORED, UnusableAddress

AT = "postgresql://app:pw@db.example:5432/app"

# The DSN, where it leads, and what is passed on to asyncpg of its options.
TAKEN: list[tuple[str, str, dict[str, str]]] = [
    # Neon, direct and through its pooler
    (
        "postgresql://alex:AbC123dEf@ep-cool-darkness-123456.us-east-2.aws.neon.tech/dbname?sslmode=require&channel_binding=require",
        "ep-cool-darkness-123456.us-east-2.aws.neon.tech:5432/dbname",
        {"sslmode": "require"},
    ),
    (
        "postgresql://alex:AbC123dEf@ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech/dbname?sslmode=require",
        "ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech:5432/dbname",
        {"sslmode": "require"},
    ),
    (f"{AT}?options=endpoint%3Dep-cool-darkness-123456", "db.example:5432/app", {"options": "endpoint=ep-cool-darkness-123456"}),
    (f"{AT}?sslmode=verify-full&sslrootcert=system", "db.example:5432/app", {"sslmode": "verify-full"}),
    # Supabase: direct, session pooler, transaction pooler, and what its integrations set
    ("postgresql://postgres:pw@db.abcdefgh.supabase.co:5432/postgres", "db.abcdefgh.supabase.co:5432/postgres", {}),
    (
        "postgresql://postgres.abcdefgh:pw@aws-0-eu-west-1.pooler.supabase.com:5432/postgres",
        "aws-0-eu-west-1.pooler.supabase.com:5432/postgres",
        {},
    ),
    (
        "postgres://postgres.abcdefgh:pw@aws-0-eu-west-1.pooler.supabase.com:6543/postgres?sslmode=require&supa=base-pooler.x",
        "aws-0-eu-west-1.pooler.supabase.com:6543/postgres",
        {"sslmode": "require"},
    ),
    (
        "postgresql://postgres.abcdefgh:pw@aws-0-eu-west-1.pooler.supabase.com:6543/postgres?pgbouncer=true&connection_limit=1",
        "aws-0-eu-west-1.pooler.supabase.com:6543/postgres",
        {},
    ),
    # Amazon RDS, Azure (also its user names of before), Google Cloud SQL
    (
        "postgresql://app:pw@x.abc.eu-west-1.rds.amazonaws.com:5432/app?sslmode=verify-full&sslrootcert=/certs/global-bundle.pem",
        "x.abc.eu-west-1.rds.amazonaws.com:5432/app",
        {"sslmode": "verify-full", "sslrootcert": "/certs/global-bundle.pem"},
    ),
    (
        "postgresql://app%40server:pw@server.postgres.database.azure.com:5432/postgres?sslmode=require",
        "server.postgres.database.azure.com:5432/postgres",
        {"sslmode": "require"},
    ),
    (
        "postgresql://app:pw@/app?host=/cloudsql/project:europe-west1:name",
        "local-socket/app",
        {"host": "/cloudsql/project:europe-west1:name"},
    ),
    # Heroku, Render, Railway, Fly, DigitalOcean, Aiven, Timescale, Crunchy, PlanetScale, Vercel
    ("postgres://u1abc:p2def@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d3", "ec2-1-2-3-4.compute-1.amazonaws.com:5432/d3", {}),
    ("postgresql://app:pw@dpg-abc-a.frankfurt-postgres.render.com/app", "dpg-abc-a.frankfurt-postgres.render.com:5432/app", {}),
    ("postgresql://postgres:pw@monorail.proxy.rlwy.net:12345/railway", "monorail.proxy.rlwy.net:12345/railway", {}),
    ("postgres://app:pw@app-db.flycast:5432/app?sslmode=disable", "app-db.flycast:5432/app", {"sslmode": "disable"}),
    (
        "postgresql://doadmin:pw@db-do-user-1.b.db.ondigitalocean.com:25060/defaultdb?sslmode=require",
        "db-do-user-1.b.db.ondigitalocean.com:25060/defaultdb",
        {"sslmode": "require"},
    ),
    ("postgres://avnadmin:pw@x.aivencloud.com:12691/defaultdb?sslmode=require", "x.aivencloud.com:12691/defaultdb", {"sslmode": "require"}),
    ("postgres://tsdbadmin:pw@x.tsdb.cloud.timescale.com:30001/tsdb?sslmode=require", "x.tsdb.cloud.timescale.com:30001/tsdb", {"sslmode": "require"}),
    (
        "postgresql://pscale_api_x.y:pw@eu-west-3.pg.psdb.cloud:6432/postgres?sslmode=verify-full&sslrootcert=system&sslnegotiation=direct",
        "eu-west-3.pg.psdb.cloud:6432/postgres",
        {"sslmode": "verify-full", "sslnegotiation": "direct"},
    ),
    ("postgres://default:pw@ep-x-pooler.us-east-1.postgres.vercel-storage.com/verceldb?pgbouncer=true&connect_timeout=15", "ep-x-pooler.us-east-1.postgres.vercel-storage.com:5432/verceldb", {}),
    # libpq
    (f"{AT}?sslmode=require&connect_timeout=10", "db.example:5432/app", {"sslmode": "require"}),
    (f"{AT}?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=5000", "db.example:5432/app", {}),
    (f"{AT}?gssencmode=disable", "db.example:5432/app", {}),
    (f"{AT}?application_name=draft&sslmode=prefer", "db.example:5432/app", {"application_name": "draft", "sslmode": "prefer"}),
    (f"{AT}?fallback_application_name=draft", "db.example:5432/app", {"application_name": "draft"}),
    (f"{AT}?options=-c%20search_path%3Dpublic", "db.example:5432/app", {"options": "-c search_path=public"}),
    ("postgresql:///app?host=/run/postgresql&user=app", "local-socket/app", {"host": "/run/postgresql", "user": "app"}),
    ("postgresql://app@%2Frun%2Fpostgresql:5433/app", "local-socket/app", {}),
    ("postgresql://app:pw@a,b:5433/app?target_session_attrs=primary", "a:5432,b:5433/app", {"target_session_attrs": "primary"}),
    ("postgresql://app:pw@a,b/app?load_balance_hosts=random", "a:5432,b:5432/app", {"target_session_attrs": "read-write"}),
    (f"{AT}?load_balance_hosts=disable&sslcertmode=allow&sslsni=1&sslcompression=0", "db.example:5432/app", {}),
    (f"{AT}?sslmode=&application_name=", "db.example:5432/app", {}),
    (f"{AT}?ssl_min_protocol_version=TLSv1.3", "db.example:5432/app", {"ssl_min_protocol_version": "TLSv1.3"}),
    ("postgresql://app:pw@[2001:db8::1]:5433/app", "[2001:db8::1]:5433/app", {}),
    # Prisma
    (f"{AT}?schema=public&connection_limit=5&pool_timeout=10&socket_timeout=3", "db.example:5432/app", {}),
    (f"{AT}?schema=drafts", "db.example:5432/app", {"search_path": "drafts"}),
    (f"{AT}?sslmode=require&sslaccept=strict", "db.example:5432/app", {"sslmode": "verify-full"}),
    (f"{AT}?sslaccept=accept_invalid_certs", "db.example:5432/app", {}),
    # JDBC's and node-postgres' words
    (f"{AT}?ssl=true", "db.example:5432/app", {"sslmode": "require"}),
    (f"{AT}?ssl=false", "db.example:5432/app", {"sslmode": "disable"}),
    (f"{AT}?ssl=true&sslmode=verify-ca", "db.example:5432/app", {"sslmode": "verify-ca"}),
    (f"{AT}?sslmode=no-verify", "db.example:5432/app", {"sslmode": "require"}),
    (f"{AT}?sslmode=require&uselibpqcompat=true", "db.example:5432/app", {"sslmode": "require"}),
    # SQLAlchemy, Django, Rails, pgx, lib/pq, postgres.js
    ("postgresql+asyncpg://app:pw@db.example:5432/app", "db.example:5432/app", {}),
    ("postgres+psycopg2://app:pw@db.example/app?ssl=verify-full", "db.example:5432/app", {"sslmode": "verify-full"}),
    ("postgresql+asyncpg://app:pw@/app?host=a:5432&host=b:5433", "a:5432,b:5433/app", {"host": "a:5432,b:5433", "target_session_attrs": "read-write"}),
    (f"{AT}?conn_max_age=600", "db.example:5432/app", {}),
    (f"{AT}?pool=5&encoding=utf8&prepared_statements=false", "db.example:5432/app", {}),
    (f"{AT}?pool_max_conns=10&default_query_exec_mode=simple_protocol", "db.example:5432/app", {}),
    (f"{AT}?binary_parameters=yes&client_encoding=utf8", "db.example:5432/app", {}),
    (f"{AT}?max=10&idle_timeout=20&prepare=false", "db.example:5432/app", {}),
]  # fmt: skip


@pytest.mark.parametrize(("dsn", "place", "passed"), TAKEN)
def test_a_dsn_that_is_given_to_copy_is_taken(dsn: str, place: str, passed: dict[str, str]) -> None:
    assert Settings.from_env({"DATABASE_URL": dsn}).database_url == dsn
    address = read_address(dsn)
    assert address.where == place
    assert address.options.passed == passed
    assert "pw" not in " ".join(address.options.notes)


# libpq knows neither a driver in the scheme, nor the words of other clients.
OF_LIBPQ = [dsn for dsn, _, _ in TAKEN if not any(word in dsn for word in ("+", *(set(WHY_IGNORED) | set(READ))))]


@pytest.mark.parametrize("dsn", OF_LIBPQ)
def test_libpq_reads_the_same(dsn: str) -> None:
    theirs = conninfo_to_dict(dsn)
    ours = read_address(dsn)
    assert ours.where.endswith(f"/{theirs['dbname']}")
    for name, value in ours.options.passed.items():
        assert theirs[name] == value
    if not str(theirs["host"]).startswith("/"):
        assert ours.where.startswith(
            str(theirs["host"]).split(",")[0].join("[]" if ":" in str(theirs["host"]) else ("", ""))
        )


def test_hardly_a_dsn_was_left_out_of_the_comparison() -> None:
    assert len(OF_LIBPQ) > 8


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (f"{AT}?no_such_option=geheim", "the option no_such_option, which is not known: remove it"),
        (f"{AT}?sslMode=require", "the option sslMode, which is not known"),
        (f"{AT}?geheim", "an option that is not known"),
        (f"{AT}?gssencmode=require", "the option gssencmode, which can't be kept: the service has no GSS encryption"),
        (f"{AT}?require_auth=scram-sha-256", "the option require_auth, which can't be kept"),
        (f"{AT}?sslcrldir=/geheim", "name one file with sslcrl"),
        (f"{AT}?hostaddr=10.0.0.1", "write the address in the place of the host"),
        (f"{AT}?replication=database", "replication"),
        (f"{AT}?sslidentity=geheim", "sslcert and sslkey"),
        (f"{AT}?sslmode=geheim", "sslmode in DATABASE_URL must be one of disable, allow"),
        (f"{AT}?ssl=geheim", "ssl in DATABASE_URL must be true, false or one of"),
        (f"{AT}?sslaccept=geheim", "sslaccept in DATABASE_URL must be strict"),
        (f"{AT}?channel_binding=geheim", "channel_binding in DATABASE_URL must be require"),
        (f"{AT}?channel_binding=require&sslmode=disable", "needs TLS"),
        (f"{AT}?sslmode=require&sslrootcert=system", "weaker than sslrootcert=system"),
        (f"{AT}?sslrootcert=system&sslcrl=/geheim", "sslcrl"),
        (f"{AT}?target_session_attrs=standby", "can't be written to"),
        (f"{AT}?target_session_attrs=geheim", "must be read-write, primary or any"),
        (f"{AT}?load_balance_hosts=geheim", "load_balance_hosts in DATABASE_URL must be random or disable"),
        (f"{AT}?connect_timeout=geheim", "connect_timeout in DATABASE_URL must be a number"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_name_and_without_its_value(dsn: str, said: str) -> None:
    with pytest.raises(UnusableAddress) as refused:
        Database(dsn)
    assert said in str(refused.value)
    assert "geheim" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dsn", ["jdbc:postgresql://db/app", "prisma://x", "host=db dbname=app"])
def test_other_forms_are_not_taken(dsn: str) -> None:
    with pytest.raises(SettingsError, match="must be a postgresql:// URL"):
        Settings.from_env({"DATABASE_URL": dsn})


@pytest.mark.parametrize(
    "password", ["p@ss:w/rd#1", "a]b[c", "[YOUR-PASSWORD]", "100%", "50%off", "%zz", "%a0", "a/b", "a?b", "a#b", "a@b"]
)
def test_a_password_that_is_not_encoded_is_refused_with_the_way_out(password: str) -> None:
    with pytest.raises(UnreadableAddress, match=r"must be percent-encoded \(%40 for @\)") as refused:
        Database(f"postgresql://app:{password}@db.example/app")
    assert password not in str(refused.value)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_libpq_reads_the_same_password(password: str) -> None:
    for dsn in (
        f"postgresql://app:{quote(password, safe='')}@db.example/app",
        f"postgresql://db.example/app?user=app&password={quote(password, safe='')}",
    ):
        assert conninfo_to_dict(dsn)["password"] == password
        assert Database(dsn).address.options.passed.get("password", password) == password


def test_quotes_of_an_env_file_are_taken_off() -> None:
    for quoted in (f'"{AT}"', f"'{AT}'"):
        assert Settings.from_env({"DATABASE_URL": quoted}).database_url == AT


# ---------------------------------------------------------------------------------------------------------------
# What becomes of an option


def test_each_option_has_one_fate() -> None:
    fates = [PASSED.split(), list(WHY_IGNORED), list(READ), list(REFUSED)]
    named = [name for names in fates for name in names]
    assert len(named) == len(set(named))
    assert len(WHY_IGNORED) == sum(len(names.split()) for names in IGNORED.values())
    assert set(AS_IT_IS) <= {*READ, *REFUSED}


@pytest.mark.parametrize("name", sorted(WHY_IGNORED))
def test_an_option_that_is_ignored_is_told_with_the_reason(name: str) -> None:
    [note] = read_address(f"{AT}?{name}=geheim").options.notes
    assert note == f"{name} in DATABASE_URL: ignored, as {WHY_IGNORED[name]}"


def test_every_option_of_libpq_is_known() -> None:
    """By the list of the libpq that psycopg brings."""
    from psycopg import pq

    known = {*PASSED.split(), *WHY_IGNORED, *READ, *REFUSED}
    theirs = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    of_oauth = {name for name in theirs if name.startswith("oauth_")}  # asyncpg has no such way to log in
    assert theirs - known - of_oauth - {"authtype", "tty"} == set()


@pytest.mark.parametrize(
    ("query", "pooled"),
    [
        ("pgbouncer=true", True),
        ("pgbouncer=1", True),
        ("pgbouncer=false", None),
        ("statement_cache_size=0", True),
        ("statement_cache_size=100", None),
        ("prepared_statement_cache_size=0", True),
        ("prepare=false", True),
        ("prepare=true", None),
        ("prepared_statements=false", True),
        ("default_query_exec_mode=simple_protocol", True),
        ("", None),
    ],
)
def test_a_pooler_is_named_in_many_words(query: str, *, pooled: bool | None) -> None:
    assert Database(f"{AT}?{query}").is_pooled is pooled


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("", CONNECT_BUDGET_S),
        ("connect_timeout=30", 30),
        ("connect_timeout=1", 2),
        ("connect_timeout=0", CONNECT_BUDGET_S),
    ],
)
def test_connect_timeout_is_kept(query: str, seconds: float) -> None:
    assert read_address(f"{AT}?{query}").connect_s == seconds


def test_several_hosts_share_the_time_of_an_attempt() -> None:
    assert read_address("postgresql://app@a,b,c/app").connect_s == CONNECT_BUDGET_S / 3
    assert read_address("postgresql://app@a,b,c/app?connect_timeout=10").connect_s == 10


@pytest.mark.parametrize(
    ("query", "passed", "verified"),
    [
        ("channel_binding=require", {"sslmode": "require"}, False),
        ("channel_binding=require&sslmode=prefer", {"sslmode": "require"}, False),
        ("channel_binding=require&sslmode=verify-full&sslrootcert=system", {"sslmode": "verify-full"}, True),
        ("channel_binding=prefer", {}, None),
    ],
)
def test_channel_binding_is_told_not_to_be_kept(query: str, passed: dict[str, str], *, verified: bool | None) -> None:
    options = read_address(f"{AT}?{query}").options
    assert options.passed == passed
    told = ["certificate is verified" in note for note in options.notes]
    assert told == ([] if verified is None else [verified])
