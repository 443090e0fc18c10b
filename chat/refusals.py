"""The refusals of a request: each names what is wrong, and no refused request stores anything.

web/problems.py gives each code its status. Nothing here imports anything of ours.
"""

import random
from collections.abc import Sequence
from typing import TypedDict

JITTER_S = 2  # spreads the retries of requests that were refused together


class Refusal(Exception):
    """A request that is not carried out.

    `code` tells programs the reason, and web/problems.py gives each code its status. `detail` tells people.
    `members` go into the body of the answer, `headers` into its head.
    """

    def __init__(self, code: str, detail: str, headers: Sequence[tuple[str, str]] = (), **members: object) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.headers = headers
        self.members = members


class FieldError(TypedDict):
    """One thing wrong with a request; `pointer` is a JSON pointer (RFC 6901) into its body."""

    pointer: str
    detail: str


class InvalidRequest(Refusal):
    """`errors` names every field that can't be used."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = list(errors)
        super().__init__("invalid_request", "The request has fields that can't be used.", errors=self.errors)


class UnknownCheckpoint(InvalidRequest):
    def __init__(self) -> None:
        super().__init__([{"pointer": "/checkpoint_id", "detail": "is not a checkpoint of this thread"}])


class UnknownModel(InvalidRequest):
    def __init__(self, models: Sequence[str]) -> None:
        detail = f"must be a model of this service: {', '.join(models)}"
        super().__init__([{"pointer": "/model", "detail": detail}])


class NotFound(Refusal):
    """It does not exist, or another owner has it: a client can't tell the two apart."""

    def __init__(self, what: str) -> None:
        super().__init__("not_found", f"There is no such {what}.")


class ThreadBusy(Refusal):
    """`run_id`: the run that is in progress on the thread; None for a caller who may not know it."""

    def __init__(self, run_id: str | None, begun_by: str | None = None) -> None:
        detail = "The thread has a run in progress; follow it, cancel it, or wait for its end."
        if run_id is None:
            detail = "The thread has a run in progress, which another key began; wait for its end."
        super().__init__("thread_busy", detail, run_id=run_id)
        self.run_id = run_id
        self.begun_by = begun_by

    def told_to(self, reads: str | None) -> "ThreadBusy":
        """For a caller who may read the runs of this credential only, or all runs (None)."""
        return self if reads in (None, self.begun_by) else ThreadBusy(None)


OVERLOADED = "The service is at its limit and takes no more now; try again in a few seconds."


class Overloaded(Refusal):
    """The service has as much work as its settings allow."""

    def __init__(self) -> None:
        super().__init__("overloaded", OVERLOADED)


class LimitExceeded(Refusal):
    """The owner has used up a limit. `free_in_s`: whole seconds, not less than the `t` of the RateLimit field."""

    def __init__(self, limit: str, detail: str, free_in_s: int = 1) -> None:
        self.retry_after_s = free_in_s + random.randint(0, JITTER_S)  # noqa: S311  # no secret
        super().__init__("rate_limited", detail, [("retry-after", str(self.retry_after_s))], limit=limit)
        self.limit = limit
