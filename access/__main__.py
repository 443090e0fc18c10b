"""`python -m access add|list|revoke`: the API keys, on the database of the service, which may be running or not.

A key is shown once, and what is stored is a hash of it. Keys are revoked and never deleted.
"""

import argparse
import asyncio
import os
import secrets
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from access.callers import CACHE_S, DEFAULT_SCOPES, SCOPES, hash_of
from settings import Settings, SettingsError
from storage.embedded import EmbeddedPostgresError, embedded_postgres
from store import SchemaError, Statement, Store, StoreUnavailable, UnsavedTurns, open_store

OWNER_CHARS = 255


class KeyRow(NamedTuple):
    key_id: str
    secret_hash: bytes
    owner: str
    name: str
    scopes: list[str]
    expires_at: datetime | None


ADD_KEY = Statement(
    "add_key",
    KeyRow,
    """INSERT INTO access_keys (key_id, secret_hash, owner, name, scopes, expires_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key_id) DO NOTHING""",
)


class RevocationRow(NamedTuple):
    key_id: str


REVOKE_KEY = Statement(
    "revoke_key",
    RevocationRow,
    "UPDATE access_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1",
)

LIST_KEYS = """SELECT key_id, owner, name, scopes, created_at, expires_at, CASE
    WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'good' END AS state
FROM access_keys ORDER BY created_at, key_id"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m access", description="Manage the API keys of the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a key, and show it once, on the standard output")
    add.add_argument("--owner", required=True, type=_owner, help="whose threads it is for")
    add.add_argument("--name", default="", type=_printable, help="what it is for, for people to read")
    add.add_argument(
        "--scopes", default=list(DEFAULT_SCOPES), type=_scopes, help="some of chat,read,admin (default: chat,read)"
    )
    add.add_argument("--expires", type=_end_date, help="the last day it is good on, or an ISO 8601 time; UTC")
    commands.add_parser("list", help="list the keys; none is shown")
    revoke = commands.add_parser("revoke", help="end a key; for good")
    revoke.add_argument("key_id", help="as list has it")
    arguments = parser.parse_args()
    try:
        asyncio.run(_carry_out(arguments))
    except (SettingsError, StoreUnavailable, SchemaError, UnsavedTurns, EmbeddedPostgresError, TimeoutError) as error:
        sys.exit(f"{parser.prog}: {error or 'the database does not answer'}")


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


async def _carry_out(arguments: argparse.Namespace) -> None:
    settings = Settings.from_env(os.environ)
    async with AsyncExitStack() as stack:
        dsn = settings.database_url
        if dsn is None:
            dsn = await stack.enter_async_context(embedded_postgres(settings.data_dir))
        store = await stack.enter_async_context(
            open_store(
                dsn,
                queue_size=1,
                queue_bytes=2**16,
                connect_timeout_s=5,
                drain_timeout_s=5,
                migrate_at_start=settings.migrate_at_start,
            )
        )
        match arguments.command:
            case "add":
                await _add(store, arguments)
            case "revoke":
                await _revoke(store, arguments.key_id)
            case _:
                await _list(store)


async def _add(store: Store, arguments: argparse.Namespace) -> None:
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    key = ADD_KEY(key_id, hash_of(secret), arguments.owner, arguments.name, arguments.scopes, arguments.expires)
    async with asyncio.timeout(10):
        await store.write("access_keys", [key])
    end = f", until {_utc(arguments.expires)}" if arguments.expires else ""
    _tell(f"The key {key_id} of {arguments.owner} ({', '.join(arguments.scopes)}{end}). It is not shown again:")
    print(f"ds_{key_id}_{secret}")  # noqa: T201  # what the command is for


async def _revoke(store: Store, key_id: str) -> None:
    if not any(row["key_id"] == key_id for row in await store.fetch(LIST_KEYS)):
        sys.exit(f"There is no key {key_id}; see python -m access list.")
    async with asyncio.timeout(10):
        await store.write("access_keys", [REVOKE_KEY(key_id)])
    _tell(f"The key {key_id} is revoked; a service that has just seen it refuses it within {CACHE_S:.0f} seconds.")


async def _list(store: Store) -> None:
    rows = [("KEY", "STATE", "SCOPES", "CREATED", "EXPIRES", "OWNER", "NAME")]
    for key in await store.fetch(LIST_KEYS):
        end = _utc(key["expires_at"]) if key["expires_at"] else "-"
        scopes = ",".join(key["scopes"])
        rows.append(
            (key["key_id"], key["state"], scopes, f"{key['created_at']:%Y-%m-%d}", end, key["owner"], key["name"])
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  # the standard output is for the key alone


if __name__ == "__main__":
    main()
