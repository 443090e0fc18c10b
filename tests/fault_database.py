"""A PostgreSQL that crashes on demand, and comes back."""

from pathlib import Path

import asyncpg
from conftest import run

from storage.database import SCHEMA
from storage.embedded import _Server

# The lease of ten seconds, cut to four: so that it runs out while a process is stopped, and nobody waits long for the
# threads of a dead one. A process renews it each three seconds.
SHORT_LEASES = """CREATE FUNCTION short_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.leased_until := least(NEW.leased_until, now() + interval '4 s'); RETURN NEW; END $$;
CREATE TRIGGER short_lease BEFORE INSERT OR UPDATE OF leased_until ON runs FOR EACH ROW EXECUTE FUNCTION short_lease()"""


class FaultDatabase:
    """A server of its own, and databases on it that have the schema."""

    def __init__(self, folder: Path) -> None:
        self._server = _Server(folder)
        self._server.start()
        # A crash of the server alone loses nothing that it gave to the kernel; and its recovery syncs nothing.
        run(self._execute(self.dsn, "ALTER SYSTEM SET fsync = off"))
        self.crash()
        self.start()

    @property
    def dsn(self) -> str:
        return self._server.dsn

    def start(self) -> None:
        self._server._bring_up()

    def crash(self) -> None:
        self._server._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self._server._data))

    def leave(self) -> None:
        self._server.leave()

    def new(self, name: str) -> str:
        """The DSN of a new database that has the schema, with short leases."""

        dsn = self.dsn.replace("@/postgres", f"@/{name}")
        run(self._execute(self.dsn, f"CREATE DATABASE {name}"))
        run(self._execute(dsn, f"{SCHEMA.read_text('utf-8')};{SHORT_LEASES}"))
        return dsn

    @staticmethod
    async def _execute(dsn: str, sql: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(sql)
        await connection.close()
