"""The port to a model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from langchain_core.messages import BaseMessage

from chat import Finished
from drafting.deltas import Hear


class ChatModel(Protocol):
    """`drafting/provider/openai_model.py`, `drafting/fallback.py` and `drafting/offline/` have one each."""

    @property
    def name(self) -> str: ...

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        """Call `hear` with the reply's deltas as they come; returns how the reply ended. Raises ModelError.

        The tools go with each request, also with one that may not call them. They stand at its head, so a prefix cache
        would miss without them, and some servers refuse a history that has calls if the request has no tools.
        """
