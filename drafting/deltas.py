"""The deltas of a model's reply, as they come from any model, and the failure of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chat import RunFailure


@dataclass(slots=True)
class ToolCallDelta:
    """The next characters of a tool call's JSON arguments. `call_id` and `name` are "" in all but the call's first."""

    index: int
    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Opaque:
    """Fields that the reader never sees, and that the provider wants back with the next request.

    `call`: the index of the tool call that they belong to, None for those of the reply. `source`: the provider's model,
    to which alone `drafting/context/give_back.py` sends them.
    """

    call: int | None
    fields: Mapping[str, Any]
    source: str = ""


ModelDelta = str | ToolCallDelta | Opaque
"""A string is the next characters of the reply; it is never empty."""

Hear = Callable[[Sequence[ModelDelta]], None]
"""Takes the next deltas of a reply: all those of one arrival, together. An empty sequence is a sign of life, such as
a chunk of reasoning."""


@dataclass(frozen=True, slots=True)
class Reported:
    """An error as the provider told it, for the log alone: it may quote the conversation, or have an account's name."""

    status: int | None
    codes: Sequence[str]
    message: str
    content_type: str | None = None  # where it is not that of a stream


class ModelError(RunFailure):
    """The model did not answer, or its reply broke off. `reported` is None if the provider has said nothing."""

    def __init__(self, code: str, content: str, *, retryable: bool, reported: Reported | None = None) -> None:
        super().__init__(code, content, retryable=retryable)
        self.reported = reported


class HeaderError(Exception):
    """A header of the requests to the model can't be sent; one line names the variable of the environment."""


class ProxyError(Exception):
    """The proxy that the environment names can't be used; one line says why."""


TOO_LONG = "This thread has become too long for the model; go on from an earlier message, or in a new thread."
