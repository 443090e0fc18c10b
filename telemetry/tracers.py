"""Tracers that packages bring along. They send every message and document to another service, as variables of the
environment tell them. So none of them sees these variables, and only TRACE_TO_LANGSMITH turns LangSmith's on.

A tracer that a wrapper of the command installs, as `opentelemetry-instrument` does, runs before this service and can't
be turned off here. The log names it.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import langsmith

log = logging.getLogger("draftstream.tracers")

PREFIXES = ("LANGSMITH_", "LANGCHAIN_")
"""Of the variables that LangSmith, langchain-core and what is made for them read: tracers, gateways, debug output."""

RECORDERS = (
    *("opentelemetry.instrumentation.langchain", "opentelemetry.instrumentation.openai"),
    *("opentelemetry.instrumentation.openai_v2", "opentelemetry.instrumentation.openai_agents"),
    *(
        "openinference.instrumentation",
        "traceloop",
        "langfuse",
        "langtrace_python_sdk",
        "agentops",
        "ddtrace",
        "newrelic",
    ),
    *("mlflow", "wandb", "logfire", "sentry_sdk", "elasticapm", "weave", "phoenix", "helicone_async", "promptlayer"),
)
"""Modules that can record the text of requests to a model. A wrapper imports them before the service starts."""

DEFAULT_ADDRESS = "https://api.smith.langchain.com"
LIST_CHARS = 190  # the log shows a word of up to 200
FLUSH_S = 2.0  # how long a shutdown waits for the last traces


class TracerError(Exception):
    """LangSmith's tracer was asked for and can't be used; one line says why."""


def take_variables(env: MutableMapping[str, str]) -> dict[str, str]:
    """Remove the tracers' variables from the environment; returns those that were set."""
    names = [name for name in env if name.upper().startswith(PREFIXES)]
    return {name: value for name in names if (value := env.pop(name))}


@asynccontextmanager
async def tracers(*, to_langsmith: bool) -> AsyncIterator[None]:
    """All tracers are off in this block, or exactly LangSmith's is on. Raises TracerError."""
    variables = take_variables(os.environ)
    import langsmith  # noqa: PLC0415  # LangGraph has imported it, and the commands, which have no agent, need none of it

    langsmith.utils.get_env_var.cache_clear()  # type: ignore[attr-defined]  # an lru_cache, which overloads hide
    found = [name for name in RECORDERS if name in sys.modules]
    if found:
        log.warning("%s may record messages and documents, and send them to another service", _list(found))
    if not to_langsmith:
        langsmith.configure(enabled=False)
        if variables:
            log.info(
                "LangSmith and other tracers stay off, and these variables are ignored: %s "
                "(TRACE_TO_LANGSMITH=1 turns LangSmith on)",
                _list(variables),
            )
        yield
        return
    client = _client(variables)
    log.warning("TRACE_TO_LANGSMITH is 1: LangSmith at %s gets every message and every document", client.api_url)
    project = variables.get("LANGSMITH_PROJECT") or variables.get("LANGCHAIN_PROJECT")
    langsmith.configure(client=client, enabled=True, project_name=project)
    try:
        yield
    finally:
        langsmith.configure(client=None, enabled=False, project_name=None)
        await asyncio.to_thread(client.close, timeout=FLUSH_S)


def _client(variables: Mapping[str, str]) -> "langsmith.Client":
    """A client that sends to the one address that the log names: no replica, profile, redirect or second exporter."""
    import langsmith  # noqa: PLC0415  # as above
    import requests  # noqa: PLC0415  # LangSmith's client uses it

    def read(name: str) -> str:
        return variables.get(f"LANGSMITH_{name}") or variables.get(f"LANGCHAIN_{name}") or ""

    address, key = read("ENDPOINT") or DEFAULT_ADDRESS, read("API_KEY")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable:
        raise TracerError("LANGSMITH_ENDPOINT must be an http:// or https:// URL without a password")
    if not key and address == DEFAULT_ADDRESS:
        raise TracerError("TRACE_TO_LANGSMITH needs LANGSMITH_API_KEY")
    session = requests.Session()
    session.max_redirects = 0
    workspace = read("WORKSPACE_ID")
    return langsmith.Client(
        api_url=address, api_key=key, workspace_id=workspace, session=session, tracing_mode="langsmith"
    )


def _list(names: Iterable[str]) -> str:
    """As one word, so that the log shows it."""
    text = ",".join(sorted(names))
    return text if len(text) < LIST_CHARS else f"{text[:LIST_CHARS].rpartition(',')[0]},..."
