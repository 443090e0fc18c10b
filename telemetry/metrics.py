"""Prometheus metrics, and one log line for each run.

Counters and histograms move once a run, a model's reply, a commit or a refusal, and never for a token. Gauges are read
at each scrape. Names and units follow Prometheus' conventions. Labels have few values, all from the code: never an
owner or a thread.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from chat import EndReason, RunStatus

log = logging.getLogger("draftstream.run")

# Without this each series has a second line, with the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

# Buckets, in seconds. A start waits for one read at most. The provider has 30 s for its first token. A run has a limit
# of 600 s. A commit takes milliseconds, and has a limit of 2 s.
FIRST_EVENT_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 30)
RUN_S = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)

END_REASONS = frozenset(get_args(EndReason))  # of runs that have not failed


@dataclass(frozen=True, slots=True)
class RunReport:
    """The ids and figures of a run that has ended.

    `reason` is that of its `end`, or the code of its `error`; `cause` is the exception behind the error. `journaled`:
    whether the journal has a turn that is not saved.
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
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        ProcessCollector(registry=registry)
        Gauge("draftstream_build_info", "Always 1; the version is its label.", ("version",), registry=registry).labels(
            version
        ).set(1)
        self._started = counter("draftstream_runs_started_total", "Runs that have begun.")
        self._ended = counter("draftstream_runs_total", "Runs that have ended.", ("status", "reason"))
        self._unsaved = counter("draftstream_runs_unsaved_total", "Runs whose last event did not say `saved: true`.")
        self._first_event = histogram(
            "draftstream_time_to_first_event_seconds",
            "From a request for a run to its first event.",
            buckets=FIRST_EVENT_S,
        )
        self._first_token = histogram(
            "draftstream_time_to_first_token_seconds",
            "From a run's first event to its first piece of content.",
            buckets=FIRST_TOKEN_S,
        )
        self._duration = histogram(
            "draftstream_run_duration_seconds", "From a run's first event to its last.", ("status",), buckets=RUN_S
        )
        self._tokens = counter(
            "draftstream_model_tokens_total", "Tokens, as the model's provider counted them.", ("type",)
        )
        self._replies = counter(
            "draftstream_model_replies_total",
            "Replies of the model, by how their body is read: tap (the fast path) or iterator.",
            ("path",),
        )
        self._refusals = counter("draftstream_refusals_total", "Requests that were refused before a stream.", ("code",))
        self._commits = histogram(
            "draftstream_commit_duration_seconds", "The duration of the commit of a batch.", buckets=COMMIT_S
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
        """Read these at each scrape. To be called once."""
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("draftstream_ready", "1 while the service can take chats, as /readyz says it, else 0.", ready),
            ("draftstream_runs_in_progress", "Runs that have begun and not ended.", runs),
            ("draftstream_open_streams", "Streams that a client is reading.", streams),
            ("draftstream_write_queue_units", "Units that wait to be committed.", queued_units),
            (
                "draftstream_write_queue_age_seconds",
                "The time that the oldest of these units has waited.",
                oldest_unit_s,
            ),
        )
        for name, documentation, read in gauges:
            Gauge(name, documentation, registry=self._registry).set_function(read)

    def run_started(self, seconds: float) -> None:
        """A run has begun, `seconds` after its request arrived."""
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
        level = logging.INFO if report.reason in END_REASONS else logging.WARNING
        log.log(level, "run ended", extra={"fields": {name: _figure(report, name) for name in RunReport.__slots__}})

    def refused(self, code: str) -> None:
        """A request was answered with a problem of this code."""
        self._refusals.labels(code).inc()

    def model_replied(self, path: str) -> None:
        """A reply of the model has begun, and its body is read on this path."""
        self._replies.labels(path).inc()

    def committed(self, seconds: float) -> None:
        """A batch was committed, in `seconds`."""
        self._commits.observe(seconds)

    def exposition(self, accept: str) -> tuple[str, bytes]:
        """The content type and the body for a scraper that accepts this: Prometheus' text, or OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)
