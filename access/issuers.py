"""The issuers of JWTs, and the owners that each of them names.

Two issuers may give one `sub` to two persons. One issuer is configured at a time, but the database outlives that. So it
remembers every issuer that was ever configured, by a number that no other issuer gets. The owner of a JWT is "jwt:" and
its `sub` for the first issuer, "jwt2:" and the `sub` for the second one.
"""

import logging

from access.credentials import Fetch

log = logging.getLogger("draftstream.callers")

FIRST_PREFIX = "jwt:"

FIND_ISSUER = "SELECT coalesce(same_as, number) AS number FROM jwt_issuers WHERE issuer = $1"

# Gives the issuer the next number, unless it has one. Does nothing where another process has just given that number.
ADD_ISSUER = """INSERT INTO jwt_issuers (number, issuer)
SELECT coalesce(max(number), 0) + 1, $1 FROM jwt_issuers HAVING coalesce(bool_and(issuer <> $1), true)
ON CONFLICT DO NOTHING"""

LIST_ISSUERS = "SELECT coalesce(same_as, number) AS number, issuer FROM jwt_issuers ORDER BY jwt_issuers.number"

# The provider $1 has moved to $2, so $2 has its owners. Gives no row where $1 is not known.
MOVE_ISSUER = """INSERT INTO jwt_issuers (number, issuer, same_as)
SELECT coalesce(max(number), 0) + 1, $2, max(coalesce(same_as, number)) FILTER (WHERE issuer = $1)
FROM jwt_issuers HAVING bool_or(issuer = $1)
ON CONFLICT (issuer) DO UPDATE SET same_as = EXCLUDED.same_as
RETURNING same_as AS number"""


async def owner_prefix(fetch: Fetch, issuer: str) -> str:
    """The beginning of the owners of this issuer's JWTs. Raises StoreUnavailable."""
    while not (rows := await fetch(FIND_ISSUER, issuer)):
        await fetch(ADD_ISSUER, issuer)
    prefix = prefix_of(rows[0]["number"])
    if prefix != FIRST_PREFIX:
        log.warning("access: another issuer was configured here before; the owners of this one begin with %s", prefix)
    return prefix


def prefix_of(number: int) -> str:
    return FIRST_PREFIX if number == 1 else f"jwt{number}:"
