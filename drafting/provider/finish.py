"""What a finish reason says about a reply: it is finished, it was cut, or it failed. Pure.

Each family has words of its own. A word that is not known here fails the reply, as half a document must never pass for
a finished one.
"""

import re
from collections.abc import Mapping

from chat import FinishReason
from drafting.deltas import ModelError, Reported

# In lower case, with "_" between the words.
FINISHED = {
    *("stop", "end_turn", "stop_sequence", "stop_token", "eos", "eos_token", "eod", "end", "complete", "completed"),
    *("tool_calls", "tool_call", "tool_use", "function_call", "function_calls"),
}
TOO_LONG = {
    *("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_new_tokens", "max_length"),
    *("model_length", "token_limit", "context_length", "model_context_window_exceeded"),
}
FILTERED = {
    *("content_filter", "content_filtered", "function_call_filter", "filter", "safety", "image_safety", "recitation"),
    *("prohibited_content", "blocklist", "spii", "sensitive", "refusal", "guardrail_intervened", "moderation"),
    *("flagged", "blocked", "error_toxic"),
}
REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(FINISHED, "stop"),
    **dict.fromkeys(TOO_LONG, "length"),
    **dict.fromkeys(FILTERED, "content_filter"),
}
PREFIX = re.compile(r"finish_?reason[._]", re.IGNORECASE)  # of a name in Google's enumeration
WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[ -]")
NOT_YET = {"", "null", "none"}  # as texts, in each chunk but the last
PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_ -]{0,39}")


def finish_of(reason: str) -> FinishReason | ModelError | None:
    """`stop` for any end of the model's own choice, whether it calls tools or not; None if the reply goes on."""
    word = WORDS.sub("_", PREFIX.sub("", reason.partition(":")[0].strip(), count=1)).lower()
    if word in NOT_YET:
        return None
    return REASONS.get(word) or _unknown(reason)


def _unknown(reason: str) -> ModelError:
    named = f' with the reason "{reason}"' if PLAIN_WORD.fullmatch(reason) else ""
    return ModelError(
        "model_truncated",
        f"The model's provider ended the reply{named} before it was finished; you can send the message again.",
        retryable=True,
        reported=Reported(None, (reason,), ""),
    )
