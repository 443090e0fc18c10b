"""API keys: their form, the hash that is stored of one, and every statement on their table.

A key is `ds_`, its id, `_` and its secret. The id finds the key's row; of the secret only a hash is stored. Keys are
revoked and never deleted, so nothing opens a service again that a key has closed.
"""

import hashlib
import re
import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from settings import DEFAULT_DATA_DIR, Settings

KEY = re.compile(r"ds_([0-9a-f]{12})_([0-9a-f]{64})")

# The secret is random and 32 bytes long, so its hash needs neither salt nor a slow function.
ADD_KEY = """INSERT INTO access_keys (key_id, secret_hash, owner, name, scopes, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)"""

LIST_KEYS = """SELECT key_id, owner, name, scopes, created_at, expires_at, CASE
    WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'good' END AS state
FROM access_keys ORDER BY created_at, key_id"""

# Gives no row where there is no such key.
REVOKE_KEY = """UPDATE access_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1 RETURNING key_id"""

IS_GOOD = "(k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true))"

# One row for each of the ids, empty for one that is not there.
READ_KEYS = f"""SELECT k.secret_hash, k.owner, k.scopes, extract(epoch FROM k.expires_at - now())::float8 AS life_s,
    {IS_GOOD} AS is_good
FROM unnest($1::text[]) WITH ORDINALITY AS asked (key_id, place) LEFT JOIN access_keys k USING (key_id)
ORDER BY place"""  # noqa: S608  # our own text

HAS_KEYS = "SELECT EXISTS (SELECT FROM access_keys) AS has_keys"


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> "ApiKey":
        return cls(secrets.token_hex(6), secrets.token_hex(32))

    @classmethod
    def parse(cls, text: str) -> "ApiKey | None":
        match = KEY.fullmatch(text)
        return None if match is None else cls(*match.groups())

    def __str__(self) -> str:
        return f"ds_{self.key_id}_{self.secret}"

    @property
    def secret_hash(self) -> bytes:
        """As it is stored."""
        return hash_of(self.secret)

    @property
    def whole_hash(self) -> bytes:
        """Of the id, too: a key with a wrong secret has another one than the key itself."""
        return hash_of(f"{self.key_id} {self.secret}")


def hash_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def command_to_add_a_key(settings: Settings) -> tuple[str, Sequence[Path]]:
    """The command as it works in a shell that stands in this process's folder: a template of a log line, and its paths.

    The log shows paths, and no other text of several words that is not a template's.
    """
    root, python = Path(__file__).resolve().parent.parent, Path(sys.executable)
    command, paths = "", []
    if Path.cwd() != root:
        command, paths = "cd %s && ", [root]
    elif python.is_relative_to(root):
        python = python.relative_to(root)  # .venv/bin/python, after make run
    if settings.database_url is not None:
        command += "DATABASE_URL=… "  # not shown, as it has a password
    elif paths or settings.data_dir != DEFAULT_DATA_DIR:
        command += "DATA_DIR=%s "
        paths.append(settings.data_dir.resolve())
    quoted = [Path(shlex.quote(str(path))) for path in (*paths, python)]
    return f"{command}%s -m access add --owner NAME", quoted
