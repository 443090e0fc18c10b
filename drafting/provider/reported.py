"""The line of the log about an error that the model's provider reported."""

import json
import logging
from collections.abc import Iterable, Iterator

from langchain_core.messages import AIMessage, BaseMessage

from drafting.deltas import ModelError
from telemetry.cleared import Cleared

log = logging.getLogger("draftstream.model")


def log_reported(error: ModelError, conversation: Iterable[BaseMessage]) -> None:
    """Nothing if the provider has said nothing. `conversation`: the request, and the reply so far."""
    if (reported := error.reported) is None:
        return
    if not (reported.status or reported.message or reported.content_type):
        log.warning("no answer came from the model's provider (%s)", ",".join(reported.codes))
        return
    said = [*_texts(conversation)]
    fields = {
        "status": reported.status,
        "code": Cleared(",".join(reported.codes), said) or None,
        "said": Cleared(reported.message, said) or None,
        "content_type": reported.content_type,
    }
    log.warning("the model's provider reported an error (%s)", error.code, extra={"fields": fields})


def _texts(conversation: Iterable[BaseMessage]) -> Iterator[str]:
    for message in conversation:
        yield message.content if isinstance(message.content, str) else json.dumps(message.content)
        if isinstance(message, AIMessage):
            for call in message.tool_calls:
                yield json.dumps(call["args"], ensure_ascii=False)
