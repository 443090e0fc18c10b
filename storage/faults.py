"""The database's errors by their remedy."""

import asyncpg

from chat import RunFailure
from chat.refusals import Refusal

BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

# The schema's own rules refuse a second run in one place of a thread, and the end of a run that ended already.
CONFLICTS = (asyncpg.UniqueViolationError, asyncpg.RestrictViolationError)

TOO_SLOW = (TimeoutError, asyncpg.QueryCanceledError)  # by our own time limit, and by the server's


class Unconfirmed(Exception):
    """A COMMIT was sent, and it may have been carried out, perhaps on one machine alone.

    `committed`: it was, and the connection can go on. A later commit on it then proves this one, too.
    """

    def __init__(self, why: str, *, committed: bool) -> None:
        super().__init__(why)
        self.committed = committed


class ConnectTimeout(ConnectionError):
    """An attempt to connect took longer than its budget, so nothing was sent. A TimeoutError would be a statement's."""


DATABASE_FAULTS = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, Unconfirmed),
    asyncpg.InternalClientError,  # of a connection that the server ended between two statements
)


class StoreUnavailable(RunFailure, Refusal):
    """The database does not do what was asked of it. Each subclass is another cause, and says it."""

    TEXT = "The database can't be reached; try again in a few seconds."

    def __init__(self, why: str = "") -> None:
        super().__init__("store_unavailable", self.TEXT, retryable=True)
        self.why = why

    def __str__(self) -> str:
        return self.why or self.content


class StatementTooSlow(StoreUnavailable):
    """The server ended a statement at its time limit."""

    TEXT = "The database took too long for this and stopped it; try again in a few seconds."


class NoAnswer(StoreUnavailable):
    TEXT = "The database did not answer in time; try again in a few seconds."


class WaitsForLock(StoreUnavailable):
    TEXT = "The database is changing its tables at the moment; try again in a few seconds."


class NotWritten(StoreUnavailable):
    """A write is still in the queue."""

    TEXT = "The database has not confirmed an earlier write of this thread; try again in a few seconds."


class NotConfirmed(StoreUnavailable):
    TEXT = "The database did not confirm the change in time; it may still be made, so look before you try again."


def unavailable(error: Exception) -> StoreUnavailable:
    """The failure that says the true cause of a failed statement."""
    match error:
        case asyncpg.QueryCanceledError():
            return StatementTooSlow(type(error).__name__)
        case asyncpg.LockNotAvailableError():
            return WaitsForLock(type(error).__name__)
        case Unconfirmed():
            return NotConfirmed(str(error))
        case TimeoutError() | ConnectTimeout():
            return NoAnswer(str(error) or type(error).__name__)
    return StoreUnavailable(type(error).__name__)


def is_refused_content(error: Exception) -> bool:
    """Whether the database refused the values themselves, so that a retry can't help.

    SQLSTATE classes 22 (data exception), 23 (integrity constraint) and 54 (program limit exceeded, a row too large).
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in ("22", "23", "54")
    return isinstance(error, asyncpg.DataError | ValueError | TypeError)  # refused by the client's own encoder
