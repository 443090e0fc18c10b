"""The models that the settings choose, and the lines of the log that say where they are."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from drafting.fallback import ChatModel
    from drafting.openai_model import OpenAIModel
    from drafting.tap import Path

log = logging.getLogger("draftstream.model")

# Their reasoning models refuse `max_tokens`. Most other servers know nothing else, and some pass an unknown name by.
HOSTS_OF_NEW_NAMES = ("openai.com", "azure.com")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a provider is, and how it is spoken to. None: its own default, or nothing is sent."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    stream_options: bool = True
    max_output_tokens: int | None = None
    temperature: float | None = None
    reasoning_effort: str | None = None

    def elsewhere(self, base_url: str | None, api_key: str | None) -> "Endpoint":
        """Another endpoint, or another key at this one. A key, a header or a query goes to the one it was set for."""
        if base_url is None:
            return replace(self, api_key=api_key or self.api_key)
        return replace(self, base_url=base_url, api_key=api_key, headers={}, query={})

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Of each request, beside the messages and the tools."""
        host = urlsplit(self.base_url).hostname or "" if self.base_url is not None else "openai.com"
        has_new_names = any(host == known or host.endswith(f".{known}") for known in HOSTS_OF_NEW_NAMES)
        parameters = {
            "stream_options": {"include_usage": True} if self.stream_options else None,
            "max_completion_tokens" if has_new_names else "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "reasoning_effort": self.reasoning_effort,
        }
        return {name: value for name, value in parameters.items() if value is not None}


@asynccontextmanager
async def offline_model() -> "AsyncIterator[Sequence[ChatModel]]":
    # Its grammar takes a sixth of a second to compile, and a real model does not need it.
    from drafting.offline import OfflineModel  # noqa: PLC0415

    log.info("model: offline (set OPENAI_API_KEY for a real one)")
    yield [OfflineModel()]


@asynccontextmanager
async def openai_models(
    names: Sequence[str],
    endpoint: Endpoint,
    fallback: tuple[str, Endpoint] | None,
    *,
    on_reply: "Callable[[Path], None]",
    connection: "Callable[[], AbstractContextManager[None]]",
) -> "AsyncIterator[Sequence[ChatModel]]":
    """The models of these names at one endpoint, with one client; the other model and its endpoint stand behind each.

    Raises ProxyError and HeaderError.
    """
    # Half of what a start imports, and only a real model needs it.
    from drafting.model_check import check  # noqa: PLC0415
    from drafting.openai_model import OpenAIModel  # noqa: PLC0415

    async with AsyncExitStack() as stack:

        def opened(name: str, where: Endpoint, what: str) -> "OpenAIModel":
            model = OpenAIModel(
                name,
                api_key=where.api_key,
                base_url=where.base_url,
                headers=where.headers,
                query=where.query,
                parameters=where.parameters,
                on_reply=on_reply,
                connection=connection,
            )
            stack.push_async_callback(model.aclose)
            if model.proxy is None:
                log.info("%s: %s at %s, without a proxy", what, model.name, model.origin)
            else:
                log.info("%s: %s at %s, through the proxy %s", what, model.name, model.origin, model.proxy)
            checking = asyncio.create_task(check(model), name="model check")
            stack.push_async_callback(_ended, checking)
            return model

        first = opened(names[0], endpoint, "model")
        models: list[ChatModel] = [first, *map(first.named, names[1:])]
        if len(models) > 1:
            log.info("models that a request may name: %s", ",".join(names))
        if fallback is not None:
            from drafting.fallback import ModelWithFallback  # noqa: PLC0415

            second = opened(*fallback, "fallback")
            models = [ModelWithFallback(model, second) for model in models]
        yield models


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
