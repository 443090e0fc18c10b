"""The tokens that an owner has used, by day and model."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TypedDict, cast

from store import Store

# The days from $2 to $3, in UTC. The bounds of `ended_at` are those of the index.
READ_USAGE = """SELECT day, model, sum(runs)::bigint AS runs, sum(input_tokens)::bigint AS input_tokens,
    sum(output_tokens)::bigint AS output_tokens, sum(cached_input_tokens)::bigint AS cached_input_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens
FROM (
    SELECT day, model, 1 AS runs, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens
    FROM usage_of_runs WHERE owner = $1 AND ended_at >= $4 AND ended_at < $5
    UNION ALL
    SELECT day, model, runs, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens
    FROM deleted_usage WHERE owner = $1 AND day >= $2 AND day <= $3
) AS used GROUP BY day, model ORDER BY day, model"""


class DayUsage(TypedDict):
    """`runs`: those whose provider reported its tokens. None: no provider reported this figure."""

    day: date
    model: str
    runs: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int | None
    reasoning_tokens: int | None


async def usage_of(store: Store, owner: str, first: date, last: date) -> Sequence[DayUsage]:
    """Of these days in UTC, both included. Turns that are not committed yet are missing. Raises StoreUnavailable."""
    begins, ends = (datetime.combine(day, time(), UTC) for day in (first, last + timedelta(days=1)))
    rows = await store.read(owner, READ_USAGE, owner, first, last, begins, ends)
    return [cast("DayUsage", dict(row)) for row in rows]
