"""A model with another one behind it, which takes over where a new try of the first one would soon fail as well."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage

from chat import Finished
from drafting.deltas import Hear, ModelDelta, ModelError
from drafting.port import ChatModel
from drafting.provider.reported import log_reported

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
PASSED_BY_S = (
    30.0  # so long the second model is asked first: else each call of a turn would wait for the first's retries
)
FIRST, SECOND = "first", "second"


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
        heard = False

        def hear_first(deltas: Sequence[ModelDelta]) -> None:
            nonlocal heard
            heard = heard or bool(deltas)
            hear(deltas)

        failed: dict[str, ModelError] = {}  # by the model's place, as both may have one name
        for place in self._order():
            model = self._first if place == FIRST else self._second
            try:
                finished = await model.reply(messages, tools, hear_first, may_call=may_call)
            except ModelError as error:
                if heard or error.code not in ELSEWHERE:
                    raise
                failed[place] = error
                if place == FIRST:
                    self._pass_by(error, messages)
                else:
                    self._go_back(error, messages)
                hear(())  # a sign of life: the time of the other model begins now
            else:
                return finished if place == FIRST else replace(finished, model=model.name)
        raise failed[FIRST]

    def _order(self) -> Sequence[str]:
        is_passed_by = asyncio.get_running_loop().time() < self._passed_by_until
        return (SECOND, FIRST) if is_passed_by else (FIRST, SECOND)

    def _pass_by(self, error: ModelError, messages: Sequence[BaseMessage]) -> None:
        """Calls that run at the same time fail alike, and the log tells of it once."""
        now = asyncio.get_running_loop().time()
        if now >= self._passed_by_until:
            log_reported(error, messages)
            text = "%s failed (%s), so %s answers for the next %d seconds"
            log.warning(text, self._first.name, error.code, self._second.name, PASSED_BY_S)
        self._passed_by_until = now + PASSED_BY_S

    def _go_back(self, error: ModelError, messages: Sequence[BaseMessage]) -> None:
        """A fallback that fails must not keep the first model from its calls."""
        self._passed_by_until = float("-inf")
        log_reported(error, messages)
        log.warning("%s failed, too (%s)", self._second.name, error.code)
