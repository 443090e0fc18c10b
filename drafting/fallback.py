"""A model with another one behind it, which takes over where a new try of the first one would soon fail as well."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from langchain_core.messages import BaseMessage

from chat import Finished
from drafting.deltas import Hear, ModelDelta, ModelError
from drafting.reported import log_reported

log = logging.getLogger("draftstream.model")

# The faults of a provider, or of our account there. A request that was rejected for its content or its length is the
# conversation's fault, and would be rejected elsewhere, too. A silence has a time limit of its own, and may be a long
# thought.
ELSEWHERE = frozenset(
    {
        "model_auth",
        "model_misconfigured",
        "model_not_found",
        "model_quota",
        "model_rate_limited",  # after the client's own retries
        "model_unavailable",
        "model_unreachable",
    }
)
PASSED_BY_S = 30.0  # so long the first model is not asked again: it would cost each call of a turn its retries


class ChatModel(Protocol):
    """See agent.ChatModel."""

    @property
    def name(self) -> str: ...

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished: ...


class ModelWithFallback:
    """Has the name of its first model. The end of a reply names the one that answered."""

    def __init__(self, first: ChatModel, second: ChatModel) -> None:
        self._first = first
        self._second = second
        self._passed_by_until = float("-inf")

    @property
    def name(self) -> str:
        return self._first.name

    def __repr__(self) -> str:
        return f"<ModelWithFallback {self._first!r}, {self._second!r}>"

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        """Raises ModelError: that of the first model, if both fail."""
        loop = asyncio.get_running_loop()
        heard = False

        def hear_first(deltas: Sequence[ModelDelta]) -> None:
            nonlocal heard
            heard = heard or bool(deltas)
            hear(deltas)

        failed: ModelError | None = None
        if loop.time() >= self._passed_by_until:
            try:
                return await self._first.reply(messages, tools, hear_first, may_call=may_call)
            except ModelError as error:
                if heard or error.code not in ELSEWHERE:
                    raise
                failed = error
                log_reported(error, messages)
                self._passed_by_until = loop.time() + PASSED_BY_S
                text = "%s failed (%s), so %s answers for the next %d seconds"
                log.warning(text, self._first.name, error.code, self._second.name, PASSED_BY_S)
                hear(())  # a sign of life: the time for a first token is the second model's now
        try:
            finished = await self._second.reply(messages, tools, hear, may_call=may_call)
        except ModelError as error:
            if failed is None or error.code not in ELSEWHERE:
                raise
            raise failed from error
        return replace(finished, model=self._second.name)
