"""The service with its telemetry wired in from outside: `uvicorn telemetry_app:app`. The parts are the real ones."""

import asyncio
import os
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import asgi_app
import logs
import tracing
from asgi import Receive, Scope, Send
from chat import Outcome, Piece, RunEnded, RunStarted, StopCause, Turn
from runs import Runs
from settings import Settings
from telemetry import RunReport, Telemetry
from tracing import TraceContext

TELEMETRY = Telemetry()


class Watch:
    """What the service will say at its own places."""

    def __init__(self, runs: Runs) -> None:
        self.first_tokens: dict[str, float] = {}
        self.traces: dict[str, TraceContext | None] = {}
        self._start_run, self._end_run, self._agent = runs._start_run, runs._end_run, tracing.traced(runs._agent)
        runs._start_run, runs._end_run, runs._agent = self.start_run, self.end_run, self.agent

    def start_run(self, run: RunStarted) -> asyncio.Future[None]:
        TELEMETRY.run_started(time.time() - run.started_at)
        self.traces[run.run_id] = tracing.here()
        return self._start_run(run)

    async def agent(self, turn: Turn, emit: Callable[[Piece], None], stopping: asyncio.Future[StopCause]) -> Outcome:
        begun = time.monotonic()

        def watched(piece: Piece) -> None:
            if turn.run_id not in self.first_tokens:
                self.first_tokens[turn.run_id] = time.monotonic() - begun
                TELEMETRY.first_token(self.first_tokens[turn.run_id])
            emit(piece)

        return await self._agent(turn, watched, stopping)

    async def end_run(self, end: RunEnded) -> asyncio.Future[None]:
        run, trace = end.started, self.traces[end.started.run_id]
        saved = await self._end_run(end)
        usage = end.usage or {"input_tokens": None, "output_tokens": None}
        report = RunReport(
            run_id=run.run_id,
            thread_id=run.thread_id,
            owner=run.owner,
            status=end.status,
            reason=end.error.code if end.error else str(end.reason),
            model=run.model,
            seconds=end.ended_at - run.started_at,
            first_token_s=self.first_tokens.get(run.run_id),
            input_tokens=usage["input_tokens"],
            output_tokens=usage["output_tokens"],
            saved=True,
            trace_id=trace.trace_id if trace else None,
        )
        saved.add_done_callback(lambda _: TELEMETRY.run_ended(report))
        return saved


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await asgi_app.app(scope, receive, _on_startup(scope, send))
    elif scope["path"] == "/metrics":
        headers = {name: value.decode() for name, value in scope["headers"]}
        content_type, body = TELEMETRY.exposition(headers.get(b"accept", ""))
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type.encode())]}
        )
        await send({"type": "http.response.body", "body": body})
    else:
        headers = {name: value.decode() for name, value in scope["headers"]}
        tracing.arrive(headers.get(b"traceparent"))
        await asgi_app.app(scope, receive, send)


def _on_startup(scope: Scope, send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "lifespan.startup.complete":
            service: Any = scope["state"]["service"]
            Watch(service.runs)
            store, runs = service.store, service.runs
            TELEMETRY.watch(
                runs=lambda: len(runs._busy),
                streams=lambda: sum(len(run.readers) for run in runs._runs.values()),
                queued_units=lambda: store._writer.waiting,
                oldest_unit_s=lambda: 0.0,
            )
            settings = Settings.from_env(os.environ)
            asgi_app.log.handlers.clear()  # which its own setting up has put there
            asgi_app.log.propagate = True
            secrets = [settings.openai_api_key or "", settings.database_url or ""]
            logs.set_up(settings.log_level, settings.log_format, content=settings.log_content, secrets=secrets)
        await send(message)

    return sending
