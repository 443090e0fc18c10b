"""W3C trace context, and spans by OpenTelemetry's GenAI conventions.

A request's `traceparent` is passed on to the model, with a new span id. Spans are recorded only if `opentelemetry-api`
is installed and a provider is configured (`opentelemetry-instrument` does so, from the OTEL_ variables). A span has the
model, the duration and the number of tokens, and never a text of the conversation.

`tracestate` is not passed on: a service that has no entry in it may drop it.
"""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Concatenate, ParamSpec, Self
from urllib.parse import urlsplit

from chat import Finished, Outcome, RunFailure, Turn, Usage
from telemetry.logs import origin_of

try:
    from opentelemetry import trace as otel
except ImportError:  # not installed: no spans are recorded
    otel = None  # type: ignore[assignment]

log = logging.getLogger("draftstream.tracing")

# version "-" trace-id "-" parent-id "-" flags, in lower case. Later versions may add more after a further "-".
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED = 0x01
NAME = "draftstream"
PROVIDER = "openai"  # by its wire; the server's address is a separate attribute

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span's place in its trace: 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str
    flags: int

    @classmethod
    def parse(cls, traceparent: str | None) -> "TraceContext | None":
        """None for a missing or invalid header: the standard says to ignore it."""
        match = TRACEPARENT.fullmatch(traceparent or "")
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, int(flags, 16) & SAMPLED)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def child(self) -> "TraceContext":
        return replace(self, span_id=secrets.token_hex(8))


_here: ContextVar[TraceContext | None] = ContextVar("trace context", default=None)
_conversation: ContextVar[str | None] = ContextVar("thread of the turn", default=None)


def arrive(traceparent: str | None) -> TraceContext | None:
    """Join the request's trace: all that the request starts from here on, its tasks too, belongs to it.

    Call it for each request, also without a header: a server may run a request in the context of the one before.
    """
    # If OpenTelemetry instruments the server, its current span is already a child of the header's.
    context = _context_of(otel.get_current_span()) if otel is not None else None
    context = context or TraceContext.parse(traceparent)
    _here.set(context)
    return context


def here() -> TraceContext | None:
    """The current place in a trace."""
    return _here.get()


def _context_of(span: "otel.Span") -> TraceContext | None:
    place = span.get_span_context()
    if not place.is_valid:
        return None
    return TraceContext(f"{place.trace_id:032x}", f"{place.span_id:016x}", place.trace_flags & SAMPLED)


# ---------------------------------------------------------------------------------------------------------------
# Spans


def name_exporters() -> None:
    """One line for each place that spans go to; none where OpenTelemetry is not configured."""
    if not _is_configured():
        return
    # Private, but the SDK has no other way to ask, and a line is all that is lost if it changes.
    processors = getattr(getattr(otel.get_tracer_provider(), "_active_span_processor", None), "_span_processors", ())
    exporters = [getattr(processor, "span_exporter", None) for processor in processors] or [None]
    for exporter in exporters:
        address = getattr(exporter, "_endpoint", None)
        place = origin_of(address if "//" in address else f"grpc://{address}") if isinstance(address, str) else None
        log.info("spans without any text of conversations: %s to %s", type(exporter).__name__, place or "unknown")


def _is_configured() -> bool:
    return otel is not None and not isinstance(
        otel.get_tracer_provider(), otel.ProxyTracerProvider | otel.NoOpTracerProvider
    )


class TraceSpan:
    """A place in the request's trace, if there is one; recorded as a span if OpenTelemetry is configured.

    It is OpenTelemetry's current span only inside the blocks of `current`.
    """

    def __init__(self, name: str, attributes: Mapping[str, str | int | bool], *, client: bool) -> None:
        parent = here()
        self._span = _start(name, attributes, parent, client=client)
        if self._span is not None:
            self.context = _context_of(self._span)
        else:
            self.context = parent.child() if parent is not None else None

    def current(self) -> AbstractContextManager[object]:
        """Spans that other libraries (an HTTP client, a database) record in this block are children of this one.

        Without this, an instrumented HTTP client would begin a new trace and send its `traceparent`.
        """
        if self._span is None:
            return nullcontext()
        return otel.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def set(self, name: str, value: str | int | list[str]) -> None:
        if self._span is not None:
            self._span.set_attribute(name, value)

    def usage(self, usage: Usage | None) -> None:
        if usage is not None:
            self.set("gen_ai.usage.input_tokens", usage["input_tokens"])
            self.set("gen_ai.usage.output_tokens", usage["output_tokens"])

    def failed(self, error: BaseException) -> None:
        """Recorded by its code or type only, as its text may quote the conversation."""
        if self._span is not None:
            self._span.set_attribute(
                "error.type", error.code if isinstance(error, RunFailure) else type(error).__name__
            )
            self._span.set_status(otel.StatusCode.ERROR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):  # a cancelled task has not failed
            self.failed(error)
        if self._span is not None:
            self._span.end()


def _start(
    name: str, attributes: Mapping[str, str | int | bool], parent: TraceContext | None, *, client: bool
) -> "otel.Span | None":
    if not _is_configured():
        return None
    context = None
    if parent is not None:
        place = otel.SpanContext(
            int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=otel.TraceFlags(parent.flags)
        )
        context = otel.set_span_in_context(otel.NonRecordingSpan(place))
    kind = otel.SpanKind.CLIENT if client else otel.SpanKind.INTERNAL
    return otel.get_tracer(NAME).start_span(name, context=context, kind=kind, attributes=attributes)


class ModelCall(TraceSpan):
    """The span of one request to the model, which is sent with its `headers`."""

    def __init__(self, model: str, base_url: str) -> None:
        server = urlsplit(base_url)
        attributes: dict[str, str | int | bool] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "gen_ai.request.stream": True,
            "server.address": server.hostname or "",
            "server.port": server.port or (80 if server.scheme == "http" else 443),
        }
        if (thread_id := _conversation.get()) is not None:
            attributes["gen_ai.conversation.id"] = thread_id
        super().__init__(f"chat {model}", attributes, client=True)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.context is None else {"traceparent": self.context.traceparent}

    def finished(self, reply: Finished) -> None:
        self.set("gen_ai.response.finish_reasons", [reply.reason])
        self.usage(reply.usage)


def traced(
    carry_out: Callable[Concatenate[Turn, P], Awaitable[Outcome]], model: str, provider: str = PROVIDER
) -> Callable[Concatenate[Turn, P], Awaitable[Outcome]]:
    """An agent that carries out turns, with a span around each turn that its requests to the model belong to."""

    async def traced_turn(turn: Turn, /, *others: P.args, **named: P.kwargs) -> Outcome:
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": provider,
            "gen_ai.agent.name": NAME,
            "gen_ai.request.model": turn.model or model,
            "gen_ai.conversation.id": turn.thread_id,
            "draftstream.run_id": turn.run_id,
        }
        with TraceSpan(f"invoke_agent {NAME}", attributes, client=False) as span, span.current():
            _here.set(span.context)  # the run's task is its own context
            _conversation.set(turn.thread_id)
            outcome = await carry_out(turn, *others, **named)
            span.usage(outcome.usage)
            if outcome.error is not None:
                span.failed(outcome.error)
            return outcome

    return traced_turn
