"""Tokens for an EventSource, which can't send headers: one use, and then the resumption of the run that it read.

A URL with a token stands in logs and histories, so it must be worth little. A token resumes its own run only, at or
behind the position that was last sent, and nothing after the run was read to its end. A second reader with the same
token ends the first.

A position is kept in memory while its stream is open, and stored when the stream closes. Until then the database does
not know it: after the process was killed, and for another replica, the token may resume at any position. The streams of
a token are numbered, and only the newest one counts. The client has left the others, even if nobody has noticed that.
So an end of the run that is written to one of the others was not read.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from access.credentials import Caller, Fetch, StreamToken, Unauthorized
from access.keys import IS_GOOD, hash_of
from store import Row, StoreUnavailable

log = logging.getLogger("draftstream.callers")

STREAM_TOKEN_S = 60.0
RESUME_S = 60.0  # a token may resume its run for this and RUN_TIMEOUT_S
THE_END = 10**15  # the position of the last frame: behind every position that an event id can name

# ---------------------------------------------------------------------------------------------------------------
# The statements. They go to the pool and not through the writer: a redemption needs its answer, and the places in the
# queue are for turns.

# It also deletes some old tokens; those that another process is deleting are left to it.
ADD_TOKEN = """WITH old AS (DELETE FROM stream_tokens WHERE hash IN (
    SELECT hash FROM stream_tokens WHERE expires_at < now() ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED))
INSERT INTO stream_tokens (hash, owner, scopes, key_id, credential, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))"""  # noqa: S105  # a statement

# A token dies with the key that it was made with. Not EXISTS, which beside an OR reads the whole table.
KEY_IS_GOOD = f"(t.key_id IS NULL OR (SELECT {IS_GOOD} FROM access_keys k WHERE k.key_id = t.key_id))"  # noqa: S608  # our own text
CALLER = "owner, scopes, key_id, coalesce(credential, key_id) AS credential"

# One use: of two requests at once, the second waits for the commit of the first, and finds the token redeemed.
REDEEM_TOKEN = f"""UPDATE stream_tokens t SET redeemed_at = now(), expires_at = now() + make_interval(secs => $2)
WHERE hash = $1 AND redeemed_at IS NULL AND expires_at > now() AND {KEY_IS_GOOD}
RETURNING {CALLER}"""  # noqa: S608  # our own text

FIND_TOKEN = f"""SELECT {CALLER}, streams, position FROM stream_tokens t
WHERE hash = $1 AND run_id = $2 AND expires_at > now() AND {KEY_IS_GOOD}"""  # noqa: S608  # our own text

# A stream of the run $2, the first one or another one; none after the run was read to its end.
OPEN_TOKEN = """UPDATE stream_tokens SET run_id = $2, streams = streams + 1, position = NULL
WHERE hash = $1 AND coalesce(run_id, $2) = $2 AND NOT finished RETURNING streams"""  # noqa: S105  # a statement

CLOSE_TOKEN = "UPDATE stream_tokens SET position = $3, finished = $4 WHERE hash = $1 AND streams = $2"  # noqa: S105  # a statement


# ---------------------------------------------------------------------------------------------------------------
# Streams and their tokens


@dataclass(slots=True, eq=False)
class TokenStream:
    """A stream that a token has opened, while its reader is there. `number`: of this token's streams."""

    hash: bytes = field(repr=False)
    number: int
    sent: Callable[[], int | None]  # the position of the last frame that was sent; None: the run's last frame
    cut: Callable[[], None]  # ends the stream for another one with this token
    finished: bool = False  # its reader has read the run to its end

    @property
    def position(self) -> int:
        return _place(self.sent())

    def end(self, *, finished: bool) -> None:
        position = self.sent()
        self.sent = lambda: position
        self.cut = _nothing  # its connection may have another request by now
        self.finished = finished


class StreamTokens:
    """Makes and redeems the tokens, and keeps the streams that they have opened in this process."""

    def __init__(self, fetch: Fetch, resume_s: float) -> None:
        self._fetch = fetch
        self._resume_s = resume_s
        self._open: dict[bytes, TokenStream] = {}  # by the token's hash: the newest stream of each
        self._closing: set[asyncio.Task[None]] = set()

    async def new(self, caller: Caller) -> tuple[str, float]:
        """A token for one stream of this caller, and its life in seconds. Raises StoreUnavailable."""
        life_s = STREAM_TOKEN_S
        if caller.expires_at is not None:
            life_s = max(0.0, min(life_s, caller.expires_at - time.time()))
        token = f"st_{secrets.token_hex(32)}"
        asker = (caller.owner, sorted(caller.scopes), caller.key_id, caller.credential)
        await self._fetch(ADD_TOKEN, hash_of(token), *asker, life_s)
        return token, life_s

    async def caller(self, token: str, seen_run: str | None, seen: int | None) -> Caller:
        """The caller who asked for the token. Raises Unauthorized, StoreUnavailable.

        `seen_run`, `seen`: the run of which the client has seen an event, and the event's position (None: the last).
        """
        token_hash = hash_of(token)
        rows = await self._fetch(REDEEM_TOKEN, token_hash, self._resume_s)
        if rows:
            return _caller(rows[0], StreamToken(token_hash))
        if seen_run is None:
            raise Unauthorized
        rows = await self._fetch(FIND_TOKEN, token_hash, seen_run)
        if not rows or not self._may_resume(token_hash, rows[0], _place(seen)):
            raise Unauthorized
        opened = await self._fetch(OPEN_TOKEN, token_hash, seen_run)
        if not opened:  # the run was read to its end
            raise Unauthorized
        number = opened[0]["streams"]
        if seen is None:  # the client says so itself
            await self._fetch(CLOSE_TOKEN, token_hash, number, THE_END, True)  # finished
        return _caller(rows[0], StreamToken(token_hash, seen_run, number))

    def _may_resume(self, token_hash: bytes, row: Row, seen: int) -> bool:
        here = self._open.get(token_hash)
        if here is not None and here.number == row["streams"]:
            return not here.finished and seen <= here.position
        return row["position"] is None or seen <= row["position"]

    async def open(
        self, token: StreamToken, run_id: str, sent: Callable[[], int | None], cut: Callable[[], None]
    ) -> TokenStream | None:
        """Begin a stream of the run with this token, and cut the token's stream before it. See TokenStream.

        None if the database is away: then the stream can't be resumed.
        """
        number = token.stream or await self._first(token, run_id)
        if not number:
            return None
        opened = TokenStream(token.hash, number, sent, cut)
        other = self._open.get(token.hash)
        if other is not None and other.number > number:
            cut()  # there is a newer one already
        else:
            self._open[token.hash] = opened
            if other is not None:
                other.cut()
        return opened

    async def _first(self, token: StreamToken, run_id: str) -> int:
        try:
            rows = await self._fetch(OPEN_TOKEN, token.hash, run_id)
        except StoreUnavailable:
            rows = []
        if not rows:
            log.warning("run %s can't be resumed with its stream token", run_id)
            return 0
        number: int = rows[0]["streams"]
        return number

    def close(self, stream: TokenStream, *, finished: bool) -> None:
        """The stream's reader has left, or has read all of it."""
        stream.end(finished=finished)
        if self._open.get(stream.hash) is not stream:
            return  # a newer one counts
        closing = asyncio.create_task(self._close(stream), name="stream token")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, stream: TokenStream) -> None:
        try:
            await self._fetch(CLOSE_TOKEN, stream.hash, stream.number, stream.position, stream.finished)
        except StoreUnavailable:
            if stream.finished:  # this process remembers it, as long as the token lives
                asyncio.get_running_loop().call_later(self._resume_s, self._forget, stream)
                return
        self._forget(stream)

    def _forget(self, stream: TokenStream) -> None:
        if self._open.get(stream.hash) is stream:
            del self._open[stream.hash]

    async def aclose(self) -> None:
        """Return when the positions of all streams are stored."""
        if self._closing:
            await asyncio.wait(self._closing)


def _caller(row: Row, token: StreamToken) -> Caller:
    return Caller(
        row["owner"],
        frozenset(row["scopes"]),
        key_id=row["key_id"],
        credential=row["credential"],
        stream_token=token,
    )


def _nothing() -> None:
    pass


def _place(position: int | None) -> int:
    return THE_END if position is None else position
