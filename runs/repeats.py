"""GETs that come again. An EventSource whose connection broke before its first frame has no id to resume with.

It sends its GET again, as it was. Without an idempotency key that would be a second chat. While the first one is in
progress it is refused, at which an EventSource gives up for good. After that the message would run a second time. So
for REPEAT_S the GET belongs to the run that it began, as long as nothing else was said in the thread and nobody has
read the run's end. Whoever sends the same words on purpose has read the answer first.

Only the credential that began the run can follow it so. Without a thread's name there is no rule: each such GET has a
thread of its own, and two people may begin with the same words.
"""

from collections.abc import Callable
from dataclasses import dataclass

from chat import ChatRequest
from runs.run import Run

REPEAT_S = 15.0  # browsers come back after 3 to 5 s: two attempts, each with a time-out of a few seconds


@dataclass(slots=True)
class Begun:
    run: Run
    request: ChatRequest
    asked_at: float


class Repeats:
    """The newest run of each thread, where a GET without an idempotency key has begun it. `clock`: monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: dict[tuple[str, str], Begun] = {}  # by owner and thread

    def begin(self, run: Run, request: ChatRequest, *, by_get: bool) -> None:
        """Of each new run of a named thread: the runs before it are not repeated any more."""
        self._begun.pop((run.owner, run.thread_id), None)
        if by_get and request.idempotency_key is None and request.on_disconnect == "continue":
            self._begun[run.owner, run.thread_id] = Begun(run, request, self._clock())

    def find(self, owner: str, request: ChatRequest, begun_by: str | None, reads: str | None) -> Run | None:
        """The run that the GET began when it came before. `begun_by`, `reads`: as for Runs.start."""
        begun = self._begun.get((owner, request.thread_id or ""))
        now = self._clock()
        if (
            begun is None
            or begun.request != request
            or begun.run.begun_by != begun_by
            or reads not in (None, begun_by)
            or (begun.run.ended and begun.run.was_read)
            or now - begun.asked_at > REPEAT_S
        ):
            return None
        begun.asked_at = now
        return begun.run

    def forget(self, run: Run) -> None:
        """It leaves memory, or has never begun."""
        begun = self._begun.get((run.owner, run.thread_id))
        if begun is not None and begun.run is run:
            del self._begun[run.owner, run.thread_id]
