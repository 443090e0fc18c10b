"""The embedded PostgreSQL: wherever its folder is, whoever runs it, however the service before it ended."""

import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from conftest import ROOT

from embedded import EmbeddedPostgresError, embedded_postgres

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    return tmp_path


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest.mark.parametrize("name", ["plain", "a folder with spaces, é", "x" * 120])
async def test_it_keeps_its_data_in_any_folder(folder: Path, name: str) -> None:
    for expected in (0, 1):
        async with embedded_postgres(folder / name) as dsn:
            await ask(dsn, "CREATE TABLE IF NOT EXISTS kept (x int)")
            assert await ask(dsn, "SELECT count(*) FROM kept") == expected
            await ask(dsn, "INSERT INTO kept VALUES (1)")
            assert await ask(dsn, "SHOW fsync") == "on"
            assert await ask(dsn, "SHOW listen_addresses") == ""
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask(dsn, "SELECT 1")


async def test_two_services_share_it_and_the_last_one_stops_it(folder: Path) -> None:
    async with embedded_postgres(folder) as dsn:
        async with embedded_postgres(folder) as same:
            assert same == dsn
        assert await ask(dsn, "SELECT 1") == 1
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask(dsn, "SELECT 1")


async def test_a_service_that_was_killed_leaves_it_to_the_next(folder: Path) -> None:
    script = (
        "import asyncio, os, pathlib, embedded\n"
        "async def main():\n"
        f"    async with embedded.embedded_postgres(pathlib.Path({str(folder)!r})):\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -9
    async with embedded_postgres(folder) as dsn:
        assert await ask(dsn, "SELECT 1") == 1
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask(dsn, "SELECT 1")


async def test_a_folder_that_cannot_be_made_is_told(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match="DATA_DIR can't be used"):
        async with embedded_postgres(folder / "file" / "data"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give its rights away")
async def test_as_root_the_server_runs_as_somebody_else_and_opens_no_folder_to_reading(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    async with embedded_postgres(closed / "data") as dsn:
        assert await ask(dsn, "SELECT 1") == 1
        assert (closed / "data/postgres").stat().st_uid != 0
    assert closed.stat().st_mode & 0o777 == 0o701
