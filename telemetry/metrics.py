"""What is measured: Prometheus metrics, and one log line for each run.

A figure is taken once a run, a commit or a refusal, and gauges are read when somebody asks; nothing is done for a
token. Names and units follow Prometheus' conventions. Labels have few values, all of our own making: never an owner
or a thread.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from chat import EndReason, RunStatus

log = logging.getLogger("draftstream.run")

# Else each series comes with the time of its creation: as many lines again, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

# In seconds. A start waits for one read at most; a first token is the provider's business, up to its limit of 30 s; a
# run has a limit of 600 s; a commit takes milliseconds, and is given up after 2 s.
FIRST_EVENT_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 30)
RUN_S = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)

AS_TOLD = frozenset(get_args(EndReason))  # how a run ends that has not failed


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run that has ended, in ids and figures.

    `reason`: as its `end` said it, or the code of its `error`, and `cause` what led to that.
    `journaled`: whether a turn that is not saved is durable all the same.
    """

    run_id: str
    thread_id: str
    owner: str
    status: RunStatus
    reason: str
    cause: BaseException | None
    model: str
    seconds: float
    first_token_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    saved: bool
    journaled: bool | None
    trace_id: str | None


def _figure(report: RunReport, name: str) -> object:
    value: object = getattr(report, name)
    return round(value, 3) if isinstance(value, float) else value


class Telemetry:
    """The metrics of one service, in a registry of their own."""

    def __init__(self, version: str) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("draftstream_build_info", "Always 1; the version is its label.", ("version",), registry=registry).labels(
            version
        ).set(1)
        self._started = Counter("draftstream_runs_started_total", "Runs that have begun.", registry=registry)
        self._ended = Counter(
            "draftstream_runs_total", "Runs that have ended.", ("status", "reason"), registry=registry
        )
        self._unsaved = Counter(
            "draftstream_runs_unsaved_total",
            "Runs whose last event could not say that they are saved.",
            registry=registry,
        )
        self._first_event = Histogram(
            "draftstream_time_to_first_event_seconds",
            "From a request for a run to its first event.",
            buckets=FIRST_EVENT_S,
            registry=registry,
        )
        self._first_token = Histogram(
            "draftstream_time_to_first_token_seconds",
            "From a run's first event to the first piece of what the model says.",
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self._duration = Histogram(
            "draftstream_run_duration_seconds",
            "From a run's first event to its last.",
            ("status",),
            buckets=RUN_S,
            registry=registry,
        )
        self._tokens = Counter(
            "draftstream_model_tokens_total",
            "Tokens, as the model's provider counted them.",
            ("type",),
            registry=registry,
        )
        self._replies = Counter(
            "draftstream_model_replies_total",
            "Replies of the model, by how their body is read: tap (the fast path) or iterator.",
            ("path",),
            registry=registry,
        )
        self._refusals = Counter(
            "draftstream_refusals_total", "Requests that were refused before a stream.", ("code",), registry=registry
        )
        self._commits = Histogram(
            "draftstream_commit_duration_seconds",
            "How long the database took for a batch of the writer's.",
            buckets=COMMIT_S,
            registry=registry,
        )
        for kind in ("input", "output"):
            self._tokens.labels(kind)  # there from the start, at 0
        for path in ("tap", "iterator"):
            self._replies.labels(path)

    def watch(
        self,
        *,
        ready: Callable[[], bool],
        runs: Callable[[], int],
        streams: Callable[[], int],
        queued_units: Callable[[], int],
        oldest_unit_s: Callable[[], float],
    ) -> None:
        """Read these whenever the metrics are asked for. To be called once."""
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("draftstream_ready", "1 while the service can take chats, as /readyz says it, else 0.", ready),
            ("draftstream_runs_in_progress", "Runs that have begun and not ended.", runs),
            ("draftstream_open_streams", "Streams that a client is reading.", streams),
            ("draftstream_write_queue_units", "Units that wait to be committed.", queued_units),
            ("draftstream_write_queue_age_seconds", "How long the oldest of them has waited.", oldest_unit_s),
        )
        for name, documentation, read in gauges:
            Gauge(name, documentation, registry=self._registry).set_function(read)

    def run_started(self, seconds: float) -> None:
        """A run has begun, so long after the request for it came in."""
        self._started.inc()
        self._first_event.observe(seconds)

    def run_ended(self, report: RunReport) -> None:
        self._ended.labels(report.status.value, report.reason).inc()
        self._duration.labels(report.status.value).observe(report.seconds)
        if report.first_token_s is not None:
            self._first_token.observe(report.first_token_s)
        if not report.saved:
            self._unsaved.inc()
        self._tokens.labels("input").inc(report.input_tokens or 0)
        self._tokens.labels("output").inc(report.output_tokens or 0)
        level = logging.INFO if report.reason in AS_TOLD else logging.WARNING
        log.log(level, "run ended", extra={"fields": {name: _figure(report, name) for name in RunReport.__slots__}})

    def refused(self, code: str) -> None:
        """A request was answered with a problem of this code."""
        self._refusals.labels(code).inc()

    def model_replied(self, path: str) -> None:
        """A reply of the model has begun, and its body is read on this path."""
        self._replies.labels(path).inc()

    def committed(self, seconds: float) -> None:
        """The database has taken a batch."""
        self._commits.observe(seconds)

    def exposition(self, accept: str) -> tuple[str, bytes]:
        """The content type and the body for a scraper that accepts this: Prometheus' text, or OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)
