"""The models that the settings choose, and the lines of the log that say where they are."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from drafting.provider.endpoint import Endpoint

if TYPE_CHECKING:
    from drafting.port import ChatModel
    from drafting.provider.openai_model import OpenAIModel
    from drafting.provider.tap import Path

log = logging.getLogger("draftstream.model")


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
    variables = dict.fromkeys(names, "MODELS") | {names[0]: "OPENAI_MODEL"}
    async with AsyncExitStack() as stack:

        async def opened(variables: Mapping[str, str], where: Endpoint, what: str) -> "OpenAIModel":
            return await stack.enter_async_context(_opened(variables, where, what, on_reply, connection))

        if fallback is None:
            first = await opened(variables, endpoint, "model")
            yield _all(first, names)
            return
        from drafting.fallback import ModelWithFallback  # noqa: PLC0415

        name, elsewhere = fallback
        if elsewhere != endpoint:
            first = await opened(variables, endpoint, "model")
            second = await opened({name: "MODEL_FALLBACK"}, elsewhere, "fallback")
            yield [ModelWithFallback(model, second) for model in _all(first, names)]
            return
        first = await opened(variables | ({} if name in variables else {name: "MODEL_FALLBACK"}), endpoint, "model")
        log.info("fallback: %s, at the same address", name)
        second = first.named(name)
        # A model is no fallback of its own.
        yield [model if model.name == name else ModelWithFallback(model, second) for model in _all(first, names)]


def _all(first: "OpenAIModel", names: Sequence[str]) -> "Sequence[OpenAIModel]":
    if len(names) > 1:
        log.info("models that a request may name: %s", ",".join(names))
    return [first, *map(first.named, names[1:])]


@asynccontextmanager
async def _opened(
    variables: Mapping[str, str],
    endpoint: Endpoint,
    what: str,
    on_reply: "Callable[[Path], None]",
    connection: "Callable[[], AbstractContextManager[None]]",
) -> "AsyncIterator[OpenAIModel]":
    """The first model of this endpoint. `variables`: those of the environment that name each of its models."""
    # Half of what a start imports, and only a real model needs it.
    from drafting.provider.model_check import check  # noqa: PLC0415
    from drafting.provider.openai_model import OpenAIModel  # noqa: PLC0415

    model = OpenAIModel(
        next(iter(variables)),
        api_key=endpoint.api_key,
        base_url=endpoint.base_url,
        headers=endpoint.headers,
        query=endpoint.query,
        parameters=endpoint.parameters,
        variables=endpoint.variables,
        on_reply=on_reply,
        connection=connection,
    )
    try:
        if model.proxy is None:
            log.info("%s: %s at %s, without a proxy", what, model.name, model.origin)
        else:
            log.info("%s: %s at %s, through the proxy %s", what, model.name, model.origin, model.proxy)
        checking = asyncio.create_task(check(model, variables), name="model check")
        try:
            yield model
        finally:
            checking.cancel()
            await asyncio.wait({checking})
    finally:
        await model.aclose()
