"""The body of one reply on OpenAI's wire, decoded to deltas while it arrives. Pure, and on the hot path."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from chat import Finished, FinishReason, Usage
from drafting.deltas import ModelDelta, ModelError, Opaque
from drafting.provider.calls import Calls
from drafting.provider.chunks import ChunkReader, error_in
from drafting.provider.content import Head, Snapshots, has_thought_without_beginning, text_of
from drafting.provider.errors import provider_error
from drafting.provider.finish import finish_of
from drafting.provider.usage import figures
from drafting.text import storable

TOGETHER_CHARS = 1000  # a delta of this length is not joined with the next one, which bounds the size of a piece
PLAIN_FIELDS = frozenset({"role", "content", "refusal"})
DELTA_FIELDS = PLAIN_FIELDS | {"tool_calls", "function_call", "audio"}
SIGNED_ID = "__thought__"  # LiteLLM puts Gemini's signature into the call's id (BerriAI/litellm#16895)
CALL_FIELDS = frozenset({"index", "id", "type", "function"})


class ReplyDecoder:
    """Feed it with the body; `finished` then says how the reply ended.

    `source`: as in Opaque. `in_thought`: as in Head.
    """

    def __init__(self, source: str = "", *, in_thought: bool = False) -> None:
        self._source = source
        self.done = False  # by the provider's word, or at the end of the body
        self._chunks = ChunkReader()
        self._error: ModelError | None = None  # that stands behind the decoded part
        self._reason: FinishReason | None = None  # "stop" for any end of the model's own choice
        self._unknown: ModelError | None = None  # a finish reason that says neither that nor a known cut
        self._usage: Usage | None = None
        self._head = Head(in_thought=in_thought)
        self._snapshots = Snapshots()
        self._is_plain = False  # what comes as content is text for the reader, and not more
        self._said: list[str] = []  # the content as it was sent
        self._from_messages = 0  # how many of them no delta has said
        self._calls = Calls()
        # Halves of surrogate pairs that a provider cut between two chunks, by the call's number; None is the text's.
        self._halves: dict[int | None, str] = {}

    @property
    def over(self) -> bool:
        """It is known how the reply ended. Only its usage, or the error that ended it, may follow."""
        return self._reason is not None or self._unknown is not None or self._error is not None

    @property
    def in_thought(self) -> bool:
        """The next reply of this model will begin in its thinking, without a mark."""
        return has_thought_without_beginning("".join(self._said))

    @property
    def failed(self) -> bool:
        """The reply has no end of its own, as far as it was read."""
        return self._reason is None

    def feed(self, data: bytes) -> Sequence[ModelDelta] | None:
        """The deltas of the next bytes of the body, b"" for its end. Texts that arrive together become one delta.

        None if the bytes complete no event: half a line, or a comment, which a proxy may send for a dead model.
        """
        deltas: list[ModelDelta] | None = None
        try:
            for chunk in self._chunks.feed(data):
                deltas = [] if deltas is None else deltas
                self._take(chunk, deltas)
            self.done |= self._chunks.done or not data
        except ModelError as error:
            self._fail(error)
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            # No JSON, or JSON that is not of this wire.
            failure = ModelError(
                "model_protocol", "The model's reply could not be read; please send the message again.", retryable=True
            )
            failure.__cause__ = error
            self._fail(failure)
        return self._release(deltas or []) if self.done or self.over else deltas

    def _fail(self, error: ModelError) -> None:
        """A fault behind the end of a finished reply is none of the reply."""
        self.done = True
        if self.failed:
            self._error = error

    def finished(self) -> Finished:
        """How the reply ended. Raises the fault in it, also for a reply that just stops.

        Half a document must never pass for a finished one.
        """
        if self._reason is None:
            raise (
                self._error
                or self._unknown
                or ModelError(
                    "model_truncated",
                    "The model's reply broke off before its end; you can send the message again.",
                    retryable=True,
                )
            )
        return Finished("tool_calls" if self._reason == "stop" and self._calls.any else self._reason, self._usage)

    def _take(self, chunk: dict[str, Any], deltas: list[ModelDelta]) -> None:
        if usage := chunk.get("usage"):
            self._usage = figures(usage)
        error = chunk.get("error")
        if choices := chunk.get("choices"):
            choice = choices[0]
            if delta := choice.get("delta"):
                self._take_delta(delta, deltas)
            elif text := choice.get("text"):  # of a completion without a chat
                self._take_delta({"content": text}, deltas)
            if "message" in choice and (message := choice["message"]):
                is_whole = bool(choice.get("finish_reason")) or len(self._said) > self._from_messages
                self._take_delta(self._news_of(message) if is_whole else message, deltas)
                if not is_whole:
                    self._from_messages = len(self._said)
            error = error or choice.get("error")
            if (reason := choice.get("finish_reason")) and not error:
                self._finish(reason)
        elif not error:
            error = error_in(chunk)
        if error:
            raise provider_error(error)

    def _finish(self, reason: str) -> None:
        ending = finish_of(reason)
        if isinstance(ending, ModelError):
            self._unknown = ending
        elif ending is not None and self._reason in (None, "stop"):  # a filter may act behind the end
            self._reason = ending

    def _take_delta(self, delta: dict[str, Any], deltas: list[ModelDelta]) -> None:
        if text := delta.get("content") or delta.get("refusal"):
            # The first condition spares most tokens a call.
            if self._is_plain and text.__class__ is str and text.isascii() and not self._halves and "\0" not in text:
                self._said.append(text)
            else:
                text = self._text(text)
            if text:
                _append(text, deltas)
        if not delta.keys() <= PLAIN_FIELDS:
            self._take_more(delta, deltas)

    def _text(self, content: object) -> str:
        """The text for the reader in content of any form."""
        text = self._snapshots.feed(text_of(content))
        if not text:
            return ""
        self._said.append(text)
        text = self._head.feed(text)
        self._is_plain = self._head.passed and self._snapshots.decided
        return self._mend(text, None)

    def _held_text(self) -> str:
        """The text that was held back, where no text follows it."""
        text = self._snapshots.close()
        self._said.append(text)
        return self._mend(self._head.feed(text) + self._head.close(), None)

    def _take_more(self, delta: dict[str, Any], deltas: list[ModelDelta]) -> None:
        """The fields of a delta that most tokens of a text don't have."""
        if not delta.keys() <= DELTA_FIELDS:
            self._add_opaque(deltas, None, delta, DELTA_FIELDS)
        calls = delta.get("tool_calls")
        if calls is None and (call := delta.get("function_call")):  # as OpenAI's wire had it before there were tools
            calls = [{"function": call}]
        if not calls:
            return
        if isinstance(calls, Mapping):
            calls = [calls]
        if not self._is_plain and (held := self._held_text()):
            _append(held, deltas)
        for call in calls:
            if call:
                self._take_call(call, deltas)

    def _take_call(self, call: dict[str, Any], deltas: list[ModelDelta]) -> None:
        function = call.get("function") or call
        call_id = str(call.get("id") or "")
        arguments = function.get("arguments") or ""
        if arguments.__class__ is not str:  # some servers send an object
            arguments = orjson.dumps(arguments).decode()
        fragments = self._calls.take(call.get("index"), call_id, str(function.get("name") or ""), arguments)
        for fragment in fragments:
            fragment.arguments = self._mend(fragment.arguments, fragment.index)
        deltas += fragments
        if not call.keys() <= CALL_FIELDS:
            self._add_opaque(deltas, self._calls.last, call, CALL_FIELDS)
        if SIGNED_ID in call_id:  # only the model that gave it can read it
            self._add_opaque(deltas, self._calls.last, {"id": call_id}, frozenset())

    def _add_opaque(
        self, deltas: list[ModelDelta], call: int | None, given: Mapping[str, Any], known: frozenset[str]
    ) -> None:
        if fields := {name: value for name, value in given.items() if name not in known and value}:
            deltas.append(Opaque(call, fields, self._source))

    def _news_of(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A whole message, less what its deltas have said already."""
        said = "".join(self._said)
        if not said and not self._calls.any:
            return dict(message)
        content = text_of(message.get("content") or "")
        content = "" if content.strip() and content.strip() in said else content.removeprefix(said)
        calls = [call for call in message.get("tool_calls") or () if not self._has(call)]
        return {"content": content, "tool_calls": calls}

    def _has(self, call: Mapping[str, Any]) -> bool:
        function = call.get("function") or call
        return self._calls.have(str(function.get("name") or ""), function.get("arguments"))

    def _release(self, deltas: list[ModelDelta]) -> list[ModelDelta]:
        """Add what was held back, as nothing follows it."""
        if held := self._held_text():
            _append(held, deltas)
        for call in self._calls.close(finished=self.done and self._reason == "stop"):
            call.arguments = self._mend(call.arguments, call.index)
            deltas.append(call)
        return deltas

    def _mend(self, text: str, call: int | None) -> str:
        """Join surrogate pairs that were cut in two, and replace characters that can't be stored."""
        if text.isascii() and not self._halves and "\0" not in text:
            return text
        text = self._halves.pop(call, "") + text
        if text and "\ud800" <= text[-1] < "\udc00":
            self._halves[call] = text[-1]
            text = text[:-1]
        return storable(text)


def _append(text: str, deltas: list[ModelDelta]) -> None:
    """A text joins the one before it."""
    if deltas and isinstance(deltas[-1], str) and len(deltas[-1]) < TOGETHER_CHARS:
        deltas[-1] += text
    else:
        deltas.append(text)
