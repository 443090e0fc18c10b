"""The databases that people have: PostgreSQL 15 with TLS and passwords, and PgBouncer."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from conftest import folder_for_all, free_port, required, run
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from storage.connections import Database, connect

NOBODY = 65534  # neither program runs as root
PROGRAMS_15 = Path("/usr/lib/postgresql/15/bin")
HBA = """local all all trust
host all postgres 127.0.0.1/32 trust
hostssl all all 127.0.0.1/32 scram-sha-256
"""


def as_nobody() -> dict[str, int]:
    return {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}


def required_15() -> Path:
    if not (PROGRAMS_15 / "initdb").exists():
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail("PostgreSQL 15 is not installed")
        pytest.skip("PostgreSQL 15 is not installed")
    return PROGRAMS_15


class Postgres15:
    """`where` is host, port and database; `authority` is the path of the certificate that signed the server's."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.where = f"127.0.0.1:{port}/postgres"
        self.dsn = self.in_database("postgres")
        self.authority = folder / "authority.pem"

    def in_database(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}?sslmode=disable"


@contextmanager
def postgres_15() -> Iterator[Postgres15]:
    programs = required_15()
    with folder_for_all("postgres15-") as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        data, port = folder / "data", free_port()
        initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, **as_nobody())  # type: ignore[call-overload]  # user and group
        database = Postgres15(folder, port)
        write_certificate(data, database.authority)
        (data / "pg_hba.conf").write_text(HBA)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{folder}'\n")
            settings.write("ssl = on\nfsync = off\nmax_connections = 60\nshared_buffers = 16MB\n")
        with _running([programs / "postgres", "-D", data], port, folder / "log", signal.SIGQUIT):
            run(_until_it_is_up(database.dsn))
            yield database


async def _until_it_is_up(dsn: str) -> None:
    await (await connect(Database(dsn), 30)).close()


@contextmanager
def pgbouncer(host: str, port: int, mode: str, size: int = 4) -> Iterator[int]:
    """A PgBouncer before the database at `host` and `port`: gives its own port."""
    program, own = required("pgbouncer"), free_port()
    with folder_for_all("pgbouncer-") as folder:
        (folder / "users.txt").write_text('"postgres" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={host} port={port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {folder / 'users.txt'}\npool_mode = {mode}\ndefault_pool_size = {size}\n"
        )
        with _running([program, folder / "pgbouncer.ini"], own, folder / "log", signal.SIGTERM):
            yield own


def write_certificate(folder: Path, public: Path) -> None:
    """One that signs itself, so that it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a database")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public.write_bytes(certificate.public_bytes(Encoding.PEM))
    private = folder / "server.key"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    shutil.copy(public, folder / "server.crt")
    if os.geteuid() == 0:
        os.chown(private, NOBODY, NOBODY)


@contextmanager
def _running(command: list[object], port: int, log: Path, end: signal.Signals) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, cwd="/", **as_nobody())  # type: ignore[call-overload]  # likewise
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert process.poll() is None, log.read_text("utf-8", "replace")
            assert time.monotonic() < deadline, log.read_text("utf-8", "replace")
            time.sleep(0.02)
        yield
    finally:
        process.send_signal(end)
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
