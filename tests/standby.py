"""A PostgreSQL whose COMMIT waits for a standby, and the standby."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import asyncpg
from conftest import run
from fault_database import FaultDatabase

from storage.embedded import SOCKET_FOLDER_LINE, _Server

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
PROBE = "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'probe', ''); COMMIT"
GHOST = "ghost"  # the name of a standby that is not there
STANDBY = "standby"


class Primary(FaultDatabase):
    def wait_for(self, name: str) -> None:
        """From the return on every commit waits for the standby of this name; for none, if it is empty."""
        run(self._wait_for(name))

    async def _wait_for(self, name: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        await connection.execute("SET synchronous_commit = local")
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        await connection.execute("SELECT pg_reload_conf()")
        while await connection.fetchval("SHOW synchronous_standby_names") != name:
            pass
        # Another process of the server applies the names, a moment later.
        while name == GHOST and not await self._waits(connection):
            pass
        await connection.close()

    async def _waits(self, connection: asyncpg.Connection) -> bool:
        probe = await asyncpg.connect(self.dsn)
        commit = asyncio.ensure_future(probe.execute(PROBE))
        waits = False
        while not commit.done() and not waits:
            waits = bool(await connection.fetch(f"{WAITING} AND pid = $1", probe.get_server_pid()))
        await connection.fetch("SELECT pg_cancel_backend($1)", probe.get_server_pid())
        await commit
        await probe.close()
        return waits


class Standby:
    """A copy of the primary that receives its WAL, under the name STANDBY."""

    def __init__(self, primary: Primary, folder: Path) -> None:
        self._server = _Server(folder)
        folder.mkdir(mode=0o755, exist_ok=True)
        self._server._account = primary._server._account  # so that it may open the primary's socket
        self._server._make_reachable()
        self._let_in(primary)
        self._server._own(self._server._data)
        sockets = primary._server._read(SOCKET_FOLDER_LINE)
        source = ("-h", sockets, "-p", "5432", "-U", "postgres", "-D", str(self._server._data))
        self._server._run("pg_basebackup", *source, "-R", "-X", "stream", "-c", "fast")
        with (self._server._data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"cluster_name = '{STANDBY}'\n")

    @staticmethod
    def _let_in(primary: Primary) -> None:
        """Under root the standby's user has no name, by which the primary could know it."""
        with (primary._server._data / "pg_hba.conf").open("a") as access:
            access.write("local replication all trust\n")
        primary._server._run("pg_ctl", "reload", "-D", str(primary._server._data))

    def start(self) -> None:
        self._server._launch()

    def stop(self) -> None:
        self._server._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self._server._data), check=False)

    def promote(self) -> None:
        """From now on it is a primary of its own."""
        self._server._run("pg_ctl", "promote", "-w", "-D", str(self._server._data))

    def dsn(self, database: str) -> str:
        sockets = quote(self._server._read(SOCKET_FOLDER_LINE), safe="")
        return f"postgresql://postgres@/{database}?host={sockets}&port=5432"
