"""The body of one reply on OpenAI's wire, decoded to deltas while it arrives. Pure, and on the hot path."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from chat import Finished, FinishReason, Usage
from drafting.deltas import ModelDelta, ModelError, Opaque, ToolCallDelta
from drafting.provider_errors import provider_error
from drafting.text import storable
from drafting.usage import figures

DATA = b"data:"
AFTER_DATA = slice(len(DATA), None)
DONE = b"[DONE]"
FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
PLAIN_FIELDS = frozenset({"role", "content", "refusal"})
DELTA_FIELDS = PLAIN_FIELDS | {"tool_calls", "function_call", "audio"}
CALL_FIELDS = frozenset({"index", "id", "type", "function"})
TOGETHER_CHARS = 1000  # a delta of this length is not joined with the next one, which bounds the size of a piece


class ReplyDecoder:
    """Feed it with the body; `finished` then says how the reply ended."""

    def __init__(self) -> None:
        self.done = False  # by the provider's word, or at the end of the body
        self._error: ModelError | None = None  # that stands behind the decoded part
        self._rest = b""  # the beginning of a line whose end has not arrived
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._calls: list[str] = []  # the ids, by index
        # Halves of surrogate pairs that a provider cut between two chunks, by the call's index; None is the text's.
        self._halves: dict[int | None, str] = {}

    def feed(self, data: bytes) -> Sequence[ModelDelta] | None:
        """The deltas of the next bytes of the body, b"" for its end. Texts that arrive together become one delta.

        None if the bytes complete no event: half a line, or a comment, which a proxy may send for a dead model.
        """
        deltas: list[ModelDelta] | None = None
        *lines, self._rest = (self._rest + (data or b"\n")).split(b"\n")
        try:
            for line in lines:
                if line.startswith(DATA) and not self.done:
                    deltas = [] if deltas is None else deltas
                    self._decode(line[AFTER_DATA], deltas)
        except ModelError as error:
            self._error = error
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            # No JSON, or JSON that is not of this wire.
            self._error = ModelError(
                "model_protocol", "The model's reply could not be read; please send the message again.", retryable=True
            )
            self._error.__cause__ = error
        self.done |= not data or self._error is not None
        return deltas

    def _decode(self, event: bytes, deltas: list[ModelDelta]) -> None:
        try:
            chunk = orjson.loads(event)
        except orjson.JSONDecodeError:
            chunk = self._decode_unusual(event)
        if error := chunk.get("error"):
            raise provider_error(error)
        if usage := chunk.get("usage"):
            self._usage = figures(usage)
        choices = chunk.get("choices")
        if not choices:
            return
        choice = choices[0]
        if reason := choice.get("finish_reason"):
            self._reason = FINISH_REASONS.get(reason, "stop")
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("refusal")
        if text and not (text.isascii() and not self._halves and "\0" not in text):  # spares most tokens a call
            text = self._mend(text, None)
        if text:
            if deltas and isinstance(deltas[-1], str) and len(deltas[-1]) < TOGETHER_CHARS:
                deltas[-1] += text
            else:
                deltas.append(text)
        if not delta.keys() <= PLAIN_FIELDS:
            self._decode_more(delta, deltas)

    def _decode_more(self, delta: dict[str, Any], deltas: list[ModelDelta]) -> None:
        """The fields of a delta that most tokens don't have."""
        _add_opaque(deltas, None, delta, DELTA_FIELDS)
        for call in delta.get("tool_calls") or ():
            begun = self._call(call)
            deltas.append(begun)
            _add_opaque(deltas, begun.index, call, CALL_FIELDS)

    def _decode_unusual(self, event: bytes) -> Any:  # noqa: ANN401  # JSON, of whatever shape
        """[DONE] as an empty chunk; else JSON with bad UTF-8 or unpaired surrogates, which orjson rightly refuses."""
        if event.strip() == DONE:
            self.done = True
            return {}
        return json.loads(event.decode("utf-8", "replace"))

    def finished(self) -> Finished:
        """How the reply ended. Raises the fault in it, also for a reply that just stops.

        Half a document must never pass for a finished one.
        """
        if self._error is not None:
            raise self._error
        if self._reason is None:
            raise ModelError(
                "model_truncated",
                "The model's reply broke off before its end; you can send the message again.",
                retryable=True,
            )
        return Finished(self._reason, self._usage)

    def _call(self, call: dict[str, Any]) -> ToolCallDelta:
        function = call.get("function") or {}
        call_id = str(call.get("id") or "")
        index = call.get("index")
        if index is None:  # some servers send no index: then a new id begins a call
            index = len(self._calls) if call_id and call_id not in self._calls else max(len(self._calls) - 1, 0)
        if index >= len(self._calls):
            self._calls.append(call_id)
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):  # some servers send an object
            arguments = orjson.dumps(arguments).decode()
        return ToolCallDelta(index, call_id, str(function.get("name") or ""), self._mend(arguments, index))

    def _mend(self, text: str, call: int | None) -> str:
        """Join surrogate pairs that were cut in two, and replace characters that can't be stored."""
        if text.isascii() and not self._halves and "\0" not in text:
            return text
        text = self._halves.pop(call, "") + text
        if text and "\ud800" <= text[-1] < "\udc00":
            self._halves[call] = text[-1]
            text = text[:-1]
        return storable(text)


def _add_opaque(deltas: list[ModelDelta], call: int | None, given: Mapping[str, Any], known: frozenset[str]) -> None:
    if fields := {name: value for name, value in given.items() if name not in known and value}:
        deltas.append(Opaque(call, fields))
