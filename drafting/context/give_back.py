"""The opaque fields of earlier replies in the next request: their provider wants them back with the messages. Pure.

Gemini 3 signs its tool calls, DeepSeek and Kimi want their reasoning back, OpenRouter and LiteLLM the blocks of other
providers. Without them the provider refuses the next request (400). Another provider would refuse them, or could read
them. So they are stored with the name of their source, and go back to that source alone.
"""

import hashlib
import re
from collections.abc import Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import orjson
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

REASONING, SIGNATURE = "reasoning_content", "thought_signature"  # the fields that providers have asked for
# Of a tool call every field goes back that OpenAI does not have. Replies have more of them, such as citations, and only
# these are asked for. `reasoning` is not: some providers that send it refuse it.
OF_REPLY = frozenset(
    {REASONING, "reasoning_details", "reasoning_opaque", "reasoning_text", "thinking_blocks", "extra_content"}
)
OPAQUE = "opaque"  # in an AIMessage's additional_kwargs
# Of one reply, in bytes: some 64,000 tokens. A longer reasoning is cut there. Of other fields a part is worth nothing,
# so they are left out.
MOST_BYTES = 2**18

# For messages that have none of their own: they come from another model, or the model did not think. DeepSeek V4 Pro
# refuses an empty text (NousResearch/hermes-agent#17341). Google documents this signature for calls of other models.
NO_REASONING = " "
NO_SIGNATURE = {"google": {"thought_signature": "skip_thought_signature_validator"}}

# Words of a refusal that names a field. Without them the field is wanted if it was not sent, and else it is not.
UNWANTED = re.compile(
    r"unsupported|not (supported|permitted|allowed)|extra (inputs|fields)|un(known|expected|recognized)"
)
MISSING = re.compile(r"missing|must (be (passed|provided|included)|have|include)|required")


def source_of(base_url: str, model: str) -> str:
    """The name of a provider's model in stored messages. A digest, as an address may be an internal one."""
    return hashlib.sha256(f"{base_url} {model}".encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------
# Into the state


def to_keep(opaque: Mapping[str, Any], *, finished: bool) -> dict[str, Any]:
    """For an AIMessage's additional_kwargs, made of the fields that Reply.opaque gives.

    Of a reply that was interrupted only the reasoning is kept. Its last block may lack its signature, and a provider
    refuses such a block. No provider asks for the signatures of a turn that is over.
    """
    names = OF_REPLY if finished else {REASONING}
    of_reply = _bounded({name: value for name, value in opaque.get("reply", {}).items() if name in names})
    of_calls = [_bounded(fields) if finished else {} for fields in opaque.get("calls", ())]
    if not (of_reply or any(of_calls)):
        return {}
    kept = {"from": opaque["from"], "reply": of_reply, "calls": of_calls}
    return kept | {"bytes": _size(kept)}


def _bounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    if _size(fields) <= MOST_BYTES:
        return dict(fields)
    reasoning = fields.get(REASONING)
    return {REASONING: reasoning[: MOST_BYTES // 4]} if isinstance(reasoning, str) else {}


def _size(fields: object) -> int:
    return len(orjson.dumps(fields))


def opaque_bytes(message: BaseMessage) -> int:
    """Of the fields that `to_keep` kept of a reply."""
    return int(message.additional_kwargs.get(OPAQUE, {}).get("bytes", 0))


# ---------------------------------------------------------------------------------------------------------------
# Into a request


@dataclass(slots=True)
class Demands:
    """What a provider has said of these fields when it refused a request."""

    required: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def learn(self, refusal: str, sent: AbstractSet[str]) -> str | None:
        """The field that the next request must have, or must not have. None if nothing new was said of one.

        `sent`: the fields that were given back in the request.
        """
        names = {REASONING, SIGNATURE, *sent}
        name = next((name for name in sorted(names) if re.search(rf"\b{re.escape(name)}\b", refusal)), None)
        if name is None:
            return None
        text = refusal.lower()
        is_wanted = not UNWANTED.search(text) and (name not in sent or MISSING.search(text) is not None)
        learnt = self.required if is_wanted else self.refused
        if name in learnt:
            return None
        learnt.add(name)
        return name


def give_back(
    wire: Sequence[MutableMapping[str, Any]], messages: Sequence[BaseMessage], source: str, demands: Demands
) -> set[str]:
    """Add the opaque fields of `messages` to the same messages on the wire, as far as they are of this source.

    Returns their names. Once the source has sent its reasoning, each later message has one: DeepSeek wants it of every
    message.
    """
    names: set[str] = set()
    ids: dict[str, str] = {}  # of calls that have the id that the provider gave them
    thinks = REASONING in demands.required
    for sent, message in zip(wire, messages, strict=True):
        if isinstance(message, ToolMessage):
            sent["tool_call_id"] = ids.get(message.tool_call_id, message.tool_call_id)
        if not isinstance(message, AIMessage):
            continue
        kept = message.additional_kwargs.get(OPAQUE) or {}
        own: Mapping[str, Any] = kept if kept.get("from") == source else {}
        fields = _wanted(own.get("reply", {}), demands)
        thinks |= REASONING in fields
        if thinks and not fields.get(REASONING) and REASONING not in demands.refused:
            fields[REASONING] = NO_REASONING
        sent.update(fields)
        names |= fields.keys()
        calls: Sequence[MutableMapping[str, Any]] = sent.get("tool_calls", ())
        of_calls = [_wanted(fields, demands) for fields in own.get("calls", ())]
        if calls and SIGNATURE in demands.required and not any(of_calls[:1]):  # Gemini looks at a step's first call
            of_calls = [{"extra_content": NO_SIGNATURE}, *of_calls[1:]]
        for call, fields in zip(calls, of_calls, strict=False):
            if "id" in fields:
                ids[call["id"]] = fields["id"]
            call.update(fields)
            names |= fields.keys() - {"id"}
    return names


def _wanted(fields: Mapping[str, Any], demands: Demands) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in demands.refused}
