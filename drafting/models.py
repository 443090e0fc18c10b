"""The model that the settings choose, and the line of the log that says where it is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from drafting.offline import OfflineModel

if TYPE_CHECKING:
    from drafting.openai_model import OpenAIModel
    from drafting.tap import Path

log = logging.getLogger("draftstream.model")


@asynccontextmanager
async def offline_model() -> AsyncIterator[OfflineModel]:
    log.info("model: offline (set OPENAI_API_KEY for a real one)")
    yield OfflineModel()


@asynccontextmanager
async def openai_model(
    name: str,
    *,
    api_key: str | None,
    base_url: str | None,
    on_reply: "Callable[[Path], None]",
    connection: "Callable[[], AbstractContextManager[None]]",
) -> "AsyncIterator[OpenAIModel]":
    """Raises ProxyError and HeaderError."""
    # Half of what a start imports, and only a real model needs it.
    from drafting.model_check import check  # noqa: PLC0415
    from drafting.openai_model import OpenAIModel  # noqa: PLC0415

    model = OpenAIModel(name, api_key=api_key, base_url=base_url, on_reply=on_reply, connection=connection)
    if model.proxy is None:
        log.info("model: %s at %s, without a proxy", model.name, model.origin)
    else:
        log.info("model: %s at %s, through the proxy %s", model.name, model.origin, model.proxy)
    checking = asyncio.create_task(check(model), name="model check")
    try:
        yield model
    finally:
        checking.cancel()
        await asyncio.wait({checking})
        await model.aclose()
