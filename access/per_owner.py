"""Everything that is limited for each owner, in one object."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from access.budgets import Budget
from access.credentials import ANONYMOUS
from access.forks import Forks
from access.limits import MINUTE_S, Limits, Quota
from access.places import Places
from access.shared_limits import exchanging
from access.stored_bytes import StoredBytes
from chat import Supervise, unsupervised
from settings import Settings
from store import Store

RUNS_PER_OWNER = 100  # at once, where nothing else is set: a tenth of MAX_RUNS, so that one key can't fill a process
STREAMS_A_RUN = 2  # where STREAMS_PER_OWNER is not set: a client, and one more that follows
STREAM_TOKENS_A_MINUTE = 1000  # each is a row for at least a minute, and for RUN_TIMEOUT_S once it is used


@dataclass(frozen=True, slots=True)
class PerOwner:
    """`streams` and `forks` have places, the others count. docs/access.md has them all."""

    limits: Limits
    streams: Places
    stream_tokens: Budget
    forks: Forks
    stored_bytes: StoredBytes


@asynccontextmanager
async def limiting(settings: Settings, store: Store, supervise: Supervise = unsupervised) -> AsyncIterator[PerOwner]:
    """Where the runs at once are not set, callers without a key have no such limit: they are not one person."""
    runs_at_once, everyone = settings.runs_per_owner, None
    if runs_at_once is None:
        runs_at_once, everyone = RUNS_PER_OWNER, ANONYMOUS.owner
    limits = Limits(
        requests_a_minute=settings.requests_per_minute,
        runs_at_once=runs_at_once,
        tokens_a_day=settings.tokens_per_day,
        everyone=everyone,
        clock=store.now,
    )
    streams_at_once, everyone = settings.streams_per_owner, None
    if streams_at_once is None:
        streams_at_once, everyone = STREAMS_A_RUN * runs_at_once, ANONYMOUS.owner
    stored_bytes = StoredBytes(store.fetch, settings.bytes_per_owner)
    async with exchanging(limits, store, supervise):
        try:
            yield PerOwner(
                limits,
                Places("streams", "open streams", streams_at_once, everyone),
                Budget(
                    Quota("stream_tokens", "tokens", STREAM_TOKENS_A_MINUTE, MINUTE_S),
                    f"You have asked for {STREAM_TOKENS_A_MINUTE} stream tokens in the last minute.",
                ),
                Forks(settings.fork_bytes_per_hour),
                stored_bytes,
            )
        finally:
            await stored_bytes.close()
