"""`python -m storage status|migrate`: the schema of the service's database; the service may be running."""

import argparse
import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack

import asyncpg

from settings import Settings, SettingsError
from storage.connections import Database
from storage.database import (
    VERSION,
    ForeignSchema,
    SchemaError,
    Shape,
    first_connection,
    migrate,
    read_shape,
)
from storage.dsn_options import UnusableAddress
from storage.embedded import EmbeddedPostgresError, data_folder, embedded_postgres
from storage.faults import StoreUnavailable

CONNECT_TIMEOUT_S = 5.0
FAILED, DUE, FOREIGN = 1, 3, 4
EXIT_CODES = f"""exit codes:
  0  the database has this service's version of the schema
  {FAILED}  the database can't be reached or can't be migrated, or a setting is wrong
  2  the command line is wrong
  {DUE}  status: a migration is due
  {FOREIGN}  the schema is newer than this service's, or not this service's"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m storage",
        description="Show or migrate the schema of the database at DATABASE_URL, or of the embedded one.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="show the versions and the files that a migration would apply; change nothing")
    commands.add_parser("migrate", help="migrate the schema to this service's version")
    arguments = parser.parse_args()
    os.umask(0o077)  # what it makes under DATA_DIR is the user's alone
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(asyncio.run(_carry_out(arguments.command)))
    except (SettingsError, UnusableAddress, StoreUnavailable, SchemaError, EmbeddedPostgresError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)  # noqa: T201  # the command's answer
        sys.exit(FOREIGN if isinstance(error, ForeignSchema) else FAILED)


async def _carry_out(command: str) -> int:
    settings = Settings.from_env(os.environ)
    async with AsyncExitStack() as stack:
        if settings.database_url is not None:
            database = Database(settings.database_url)
            place = f"database at {database.where}"
        else:
            place = f"embedded PostgreSQL in {data_folder(settings.data_dir)}"
            if command == "status" and not data_folder(settings.data_dir).exists():
                return _say_status(place, "none yet", Shape(None))
            database = Database(await stack.enter_async_context(embedded_postgres(settings.data_dir)))
        connection = await stack.enter_async_context(first_connection(database, CONNECT_TIMEOUT_S))
        return await (_status(connection, place) if command == "status" else _migrate(connection, place))


async def _status(connection: asyncpg.Connection, place: str) -> int:
    shape = await read_shape(connection)
    return _say_status(place, str(shape), shape)


def _say_status(place: str, found: str, shape: Shape) -> int:
    _say(f"{place}: {found}")
    _say(f"this service: version {VERSION} of the schema")
    _say(f"to be applied: {', '.join(step.name for step in shape.steps) or 'nothing'}")
    return DUE if shape.steps else 0


async def _migrate(connection: asyncpg.Connection, place: str) -> int:
    shape = await read_shape(connection)
    if shape.steps:
        await migrate(connection)
    _say(f"{place}: version {VERSION} of the schema")
    return 0


def _say(line: str) -> None:
    print(line)  # noqa: T201  # the command's answer


if __name__ == "__main__":
    main()
