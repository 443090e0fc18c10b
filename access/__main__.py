"""`python -m access add|list|revoke|issuers`: who may call, in the database of the service, running or not.

A key is shown once, and only a hash of it is stored.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

from access.callers import CACHE_S, DEFAULT_SCOPES
from access.issuers import LIST_ISSUERS, MOVE_ISSUER, prefix_of
from access.keys import ADD_KEY, LIST_KEYS, REVOKE_KEY, ApiKey
from settings import SCOPES, Settings, SettingsError
from storage.embedded import EmbeddedPostgresError, data_folder, embedded_postgres
from store import (
    Database,
    Row,
    SchemaError,
    StoreUnavailable,
    Unconfirmed,
    UnusableAddress,
    fetch_committed,
    open_connection,
    within,
)

OWNER_CHARS = 255
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m access", description="Manage who may call the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a key and print it, once")
    add.add_argument("--owner", required=True, type=_owner, help="the owner whose threads it opens")
    add.add_argument("--name", default="", type=_printable, help="a note for the list of keys")
    add.add_argument(
        "--scopes", default=list(DEFAULT_SCOPES), type=_scopes, help="some of chat,read,admin (default: chat,read)"
    )
    add.add_argument("--expires", type=_end_date, help="the last day on which it is valid, or an ISO 8601 time; UTC")
    commands.add_parser("list", help="list the keys, without their secrets")
    revoke = commands.add_parser("revoke", help="revoke a key for good")
    revoke.add_argument("key_id", help="the KEY that list shows")
    issuers = commands.add_parser("issuers", help="list the issuers of JWTs, and how the owners of each begin")
    issuers.add_argument(
        "--moved",
        nargs=2,
        metavar=("OLD", "NEW"),
        help="a provider has moved: its new issuer gets the owners of the old",
    )
    arguments = parser.parse_args()
    os.umask(0o077)  # what it makes under DATA_DIR is the user's alone
    try:
        asyncio.run(_carry_out(arguments))
    except (SettingsError, UnusableAddress, SchemaError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except (StoreUnavailable, EmbeddedPostgresError) as error:
        sys.exit(f"{parser.prog}: {error}; {_cure()}")


def _printable(text: str) -> str:
    if not text.isprintable() or len(text) > OWNER_CHARS:
        raise argparse.ArgumentTypeError(f"must be up to {OWNER_CHARS} printable characters")
    return text


def _owner(text: str) -> str:
    if not text or text != text.strip():
        raise argparse.ArgumentTypeError("must not be empty, nor begin or end with a space")
    return _printable(text)


def _scopes(text: str) -> list[str]:
    scopes = text.replace(",", " ").split()
    if not scopes or not set(scopes) <= set(SCOPES):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(SCOPES)}")
    return sorted(set(scopes))


def _end_date(text: str) -> datetime:
    try:
        end = datetime.fromisoformat(text)
        if len(text) <= len("2027-12-31"):  # a day, also as 20271231
            end += timedelta(days=1)
        end = end.astimezone(UTC) if end.tzinfo else end.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the latter behind the calendar's last day
        what = "must be like 2027-12-31 or 2027-12-31T12:00:00Z, and before 9999-12-31"
        raise argparse.ArgumentTypeError(what) from None
    if end <= datetime.now(UTC):
        raise argparse.ArgumentTypeError("must not be in the past")
    return end


def _cure() -> str:
    if os.environ.get("DATABASE_URL"):
        return "start the database, or set DATABASE_URL to the one of the service"
    return "set DATABASE_URL if the service has one, and DATA_DIR if it has one"


async def _carry_out(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "add":
            await _add(arguments)
        case "revoke":
            await _revoke(arguments.key_id)
        case "issuers":
            await _issuers(arguments.moved)
        case _:
            await _list()


async def _add(arguments: argparse.Namespace) -> None:
    key = ApiKey.new()
    scopes, expires_at = arguments.scopes, arguments.expires
    await _fetch(ADD_KEY, key.key_id, key.secret_hash, arguments.owner, arguments.name, scopes, expires_at)
    end = f", until {_utc(expires_at)}" if expires_at else ""
    _tell(f"The key {key.key_id} of {arguments.owner} ({', '.join(scopes)}{end}). It is not shown again:")
    print(key)  # noqa: T201  # the purpose of the command


async def _revoke(key_id: str) -> None:
    if not await _fetch(REVOKE_KEY, key_id):
        sys.exit(f"There is no key {key_id}; see python -m access list.")
    _tell(f"The key {key_id} is revoked; a service that has just seen it refuses it within {CACHE_S:.0f} seconds.")


async def _list() -> None:
    table = [("KEY", "STATE", "SCOPES", "CREATED", "EXPIRES", "OWNER", "NAME")]
    for key in await _fetch(LIST_KEYS):
        end = _utc(key["expires_at"]) if key["expires_at"] else "-"
        scopes = ",".join(key["scopes"])
        table.append(
            (key["key_id"], key["state"], scopes, f"{key['created_at']:%Y-%m-%d}", end, key["owner"], key["name"])
        )
    _show(table)


async def _issuers(moved: list[str] | None) -> None:
    if moved is not None:
        if not await _fetch(MOVE_ISSUER, *moved):
            sys.exit(f"No JWTs of {moved[0]} were ever accepted here; see python -m access issuers.")
        _tell(f"JWTs of {moved[1]} have the owners of {moved[0]}; restart the service if it accepts them already.")
    rows = await _fetch(LIST_ISSUERS)
    _show([("OWNERS", "ISSUER"), *((f"{prefix_of(row['number'])}…", row["issuer"]) for row in rows)])


def _show(table: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


async def _fetch(sql: str, *arguments: object) -> list[Row]:
    """One statement in the service's database: the one at DATABASE_URL, or else the embedded one in DATA_DIR."""
    settings = Settings.from_env(os.environ)
    async with AsyncExitStack() as stack:
        dsn = settings.database_url
        if dsn is None:
            is_new = not data_folder(settings.data_dir).exists()
            dsn = await stack.enter_async_context(embedded_postgres(settings.data_dir))
            if is_new:
                _tell(f"DATABASE_URL is not set: this is a new embedded database in {settings.data_dir.resolve()}.")
        database = open_connection(Database(dsn), CONNECT_TIMEOUT_S, migrates=settings.migrate_at_start)
        connection = await stack.enter_async_context(database)
        try:
            work = fetch_committed(connection, COMMAND_TIMEOUT_S, sql, *arguments)
            return await within(COMMAND_TIMEOUT_S, connection, work)
        except Unconfirmed:
            sys.exit(
                "The change is made, but no standby has confirmed it. Run the command again when the standby is back."
            )


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  # the standard output is for the key alone


if __name__ == "__main__":
    main()
