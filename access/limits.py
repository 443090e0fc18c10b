"""How often an owner may call: requests a minute, runs at once, model tokens a day.

Requests are counted by the dispatcher, one by one and by the weight of their route. Runs and tokens are checked at the
start of a run. The two are apart: a run that is refused has counted as a request.

Counts in memory decide, at once and without an `await`. The counts of the other processes on the same database arrive
afterwards, by an exchange about once a second (shared_limits.py). So a limit can be exceeded, by this much:

- In one process a call counts for a minute, give or take a slot of five seconds. A token counts for a day, give or
  take two hours. Usage is kept in twelve slots, and the oldest slot fades in proportion to the time. So an owner takes
  constant memory, whatever it does.
- Across processes the others' counts are up to two exchanges and a commit old: two to three seconds. Until they arrive,
  each process grants all that it knows to be free. A caller who sends everything at once to all of P processes gets at
  most P times the limit, once. Slots are numbered by the database's clock, which all processes have in common.
- A request is granted while anything of the minute is left, whatever it weighs. So the heaviest one is possible under
  the lowest limit, and a minute has at most the limit and the weight of one request.
- Tokens are known when a run ends. The runs then in progress, at most RUNS_PER_OWNER, go on and may exceed the limit.
  Tokens are estimated for a model call that was cut off, or whose provider reports no usage.
- While the database is away, each process goes by its own counts, and by the last known counts of the others for
  requests and tokens, which are still true. So its absence never refuses a call, and grants at most P times the limit.

A process that starts again finds the counts of its predecessor in the database.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from chat import LEASE_S
from chat.refusals import LimitExceeded

SLOTS = 12  # of a window: a call counts for at most a twelfth of it too long or too short
MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400

# ---------------------------------------------------------------------------------------------------------------
# Counts


@dataclass(frozen=True, slots=True)
class Quota:
    """A number of units in a sliding window."""

    name: str
    unit: str
    units: int
    window_s: int

    @property
    def slot_s(self) -> float:
        return self.window_s / SLOTS

    def slot(self, now: float) -> int:
        return int(now // self.slot_s)

    def expires_at(self, slot: int) -> float:
        """The time at which nothing of the slot counts any more; it begins to fade one slot's length before."""
        return (slot + 1) * self.slot_s + self.window_s


@dataclass(slots=True)
class Used:
    """An owner's use of a quota by slot, through this process and through the others."""

    ours: dict[int, int] = field(default_factory=dict)
    others: dict[int, int] = field(default_factory=dict)

    def add(self, slot: int, units: int) -> int:
        self.ours[slot] = self.ours.get(slot, 0) + units
        return self.ours[slot]

    def slots(self, quota: Quota, now: float) -> list[tuple[int, int]]:
        """The slots that still count, oldest first, each with its units. Drops the others."""
        for counts in (self.ours, self.others):
            for slot in [slot for slot in counts if quota.expires_at(slot) <= now]:
                del counts[slot]
        return [
            (slot, self.ours.get(slot, 0) + self.others.get(slot, 0)) for slot in sorted(self.ours.keys() | self.others)
        ]

    def total(self, quota: Quota, now: float) -> float:
        """The units of the last window. The slot that is leaving it counts in proportion to its share inside."""
        return sum(
            units * min((quota.expires_at(slot) - now) / quota.slot_s, 1.0) for slot, units in self.slots(quota, now)
        )

    def until_below(self, level: float, quota: Quota, now: float) -> int:
        """Whole seconds until the total is below `level`, which is above 0, if nothing is added."""
        slots = self.slots(quota, now)
        newer = sum(units for _, units in slots)
        for slot, units in slots:
            newer -= units
            if newer < level:
                # In the last slot_s before it expires, the slot goes down to 0 evenly.
                reached = quota.expires_at(slot) - quota.slot_s * min((level - newer) / units, 1.0)
                return max(math.floor(reached - now) + 1, 1)
        return 1

    def check(self, quota: Quota, now: float, used_up: str) -> None:
        """Raises LimitExceeded, with this text, if nothing of the quota is left."""
        if self.total(quota, now) >= quota.units:
            raise LimitExceeded(quota.name, used_up, self.until_below(quota.units, quota, now))


@dataclass(slots=True)
class Tally:
    """One owner's usage."""

    used: dict[str, Used] = field(default_factory=dict)
    running: int = 0


class Limits:
    """Decides whether an owner may call, and start a run, now. Nothing here waits, and only these two checks raise.

    `clock` gives seconds since the epoch. `everyone` is the owner that stands for all callers without a key, if there
    is one: its runs at once are not limited, as they are not one tally's.
    """

    def __init__(
        self,
        *,
        requests_a_minute: int | None,
        runs_at_once: int | None,
        tokens_a_day: int | None,
        everyone: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.process = str(uuid.uuid4())
        self.runs_at_once = runs_at_once
        self._everyone = everyone
        self._clock = clock
        self._quotas: list[Quota] = []
        if tokens_a_day is not None:
            self._quotas.append(Quota("tokens", "tokens", tokens_a_day, DAY_S))
        if requests_a_minute is not None:
            self._quotas.append(Quota("requests", "requests", requests_a_minute, MINUTE_S))
        self._tallies: dict[str, Tally] = {}
        self._our_runs: dict[str, float] = {}  # by run_id: the time at which it ended; infinity while it is in progress
        self._others_runs: dict[str, int] = {}
        self._unpublished: set[tuple[str, str, int]] = set()

    def __repr__(self) -> str:
        return (
            f"<Limits {[quota.name for quota in self._quotas]}, runs {self.runs_at_once}, {len(self._tallies)} owners>"
        )

    # Deciding

    def count_request(self, owner: str, weight: int) -> None:
        """Count a request of this weight. Raises LimitExceeded, and then counts nothing.

        The check and the count are one step without an await: two requests can't see the same last unit.
        """
        now = self._clock()
        self._forget_idle(now)
        if weight > 0:
            self._check("requests", owner, now)
            self._count(owner, "requests", weight, now)

    def check_run(self, owner: str) -> None:
        """Raises LimitExceeded if the owner may not start a run now.

        Call `run_started` with no await in between; otherwise two runs may see the same last place.
        """
        now = self._clock()
        self._forget_idle(now)
        self._check("tokens", owner, now)
        if self._limits_runs_of(owner) and self._free_runs(owner) <= 0:
            detail = f"You have {self.runs_at_once} runs in progress, which is as many as you may have."
            raise LimitExceeded("runs", detail)

    def run_started(self, owner: str, run_id: str) -> None:
        """The run has a place, until `run_ended`."""
        self._tally(owner).running += 1
        if self.runs_at_once is not None:
            self._our_runs[run_id] = math.inf

    def run_ended(self, owner: str, run_id: str, tokens: int) -> None:
        """The run has ended, or could not be started. `tokens`: of the model, that it used."""
        now = self._clock()
        self._tally(owner).running -= 1
        if self.runs_at_once is not None:
            self._our_runs[run_id] = now
        self._count(owner, "tokens", tokens, now)

    def headers(self, owner: str) -> list[tuple[str, str]]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10), for an answer of any status."""
        now = self._clock()
        tally = self._tallies.get(owner) or Tally()
        policies, limits = [], []
        for quota in self._quotas:
            used = _used(tally, quota)
            total = used.total(quota, now)
            remaining = max(math.ceil(quota.units - total), 0)
            # The draft does not register the unit "tokens", but each unit that it registers would be wrong.
            unit = f';qu="{quota.unit}"' if quota.unit != "requests" else ""
            policies.append(f'"{quota.name}";q={quota.units}{unit};w={quota.window_s}')
            more = f";t={used.until_below(quota.units - remaining, quota, now)}" if remaining < quota.units else ""
            limits.append(f'"{quota.name}";r={remaining}{more}')
        if self._limits_runs_of(owner):
            policies.append(f'"runs";q={self.runs_at_once};qu="concurrent-requests"')
            limits.append(f'"runs";r={max(self._free_runs(owner), 0)}')
        if not policies:
            return []
        return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(limits))]

    def _check(self, name: str, owner: str, now: float) -> None:
        """Raises LimitExceeded if the quota of this name, where there is one, is used up."""
        if (quota := self._quota(name)) is None:
            return
        used_up = f"You have used your {quota.units} {quota.name} of the last {_WINDOWS[quota.window_s]}."
        _used(self._tally(owner), quota).check(quota, now, used_up)

    def _limits_runs_of(self, owner: str) -> bool:
        return self.runs_at_once is not None and owner != self._everyone

    def _free_runs(self, owner: str) -> int:
        tally = self._tallies.get(owner)
        return (self.runs_at_once or 0) - (tally.running if tally else 0) - self._others_runs.get(owner, 0)

    def _count(self, owner: str, name: str, units: int, now: float) -> None:
        quota = self._quota(name)
        if quota is not None and units > 0:
            _used(self._tally(owner), quota).add(quota.slot(now), units)
            self._unpublished.add((owner, name, quota.slot(now)))

    def _quota(self, name: str) -> Quota | None:
        return next((quota for quota in self._quotas if quota.name == name), None)

    def _tally(self, owner: str) -> Tally:
        return self._tallies.setdefault(owner, Tally())

    def _forget_idle(self, now: float) -> None:
        """Check the next two owners in turn: a call adds at most one owner, and can remove two."""
        for owner in list(islice(self._tallies, 2)):
            tally = self._tallies[owner] = self._tallies.pop(owner)  # behind all others, if it stays
            used = (
                bool(tally.used[quota.name].slots(quota, now)) for quota in self._quotas if quota.name in tally.used
            )
            if not tally.running and not any(used):
                del self._tallies[owner]

    # Exchanging

    @property
    def counts(self) -> bool:
        """Whether there is a quota whose counts must be published."""
        return bool(self._quotas)

    def our_runs(self) -> list[str]:
        """The runs of this process that may be in progress in the database, where their ends arrive later."""
        now = self._clock()
        self._our_runs = {run_id: ended for run_id, ended in self._our_runs.items() if ended > now - LEASE_S}
        return list(self._our_runs)

    def unpublished(self) -> list[tuple[str, str, int, int, float]]:
        """Owner, name, slot, units and expiry of each count that has changed since the last call."""
        changed, self._unpublished = self._unpublished, set()
        rows = []
        for owner, name, slot in sorted(changed):
            quota, tally = self._quota(name), self._tallies.get(owner)
            if quota is not None and tally is not None and (units := _used(tally, quota).ours.get(slot)):
                rows.append((owner, name, slot, units, quota.expires_at(slot)))
        return rows

    def merge_counts(self, rows: Iterable[tuple[str, str, int, int]]) -> None:
        """Each row is owner, name, slot and units: the sum of all other processes."""
        now = self._clock()
        for owner, name, slot, units in rows:
            self._forget_idle(now)
            if (quota := self._quota(name)) is not None:
                _used(self._tally(owner), quota).others[slot] = units

    def replace_runs(self, runs: Iterable[tuple[str, int]]) -> None:
        """Each pair is an owner and the number of its runs in progress in other processes."""
        self._others_runs = dict(runs)


_WINDOWS = {MINUTE_S: "minute", DAY_S: "day"}


def _used(tally: Tally, quota: Quota) -> Used:
    return tally.used.setdefault(quota.name, Used())
