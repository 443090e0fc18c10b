"""The tokens of a model call, as providers report them. Pure."""

from collections.abc import Mapping
from typing import Any

from chat import Usage

MOST_TOKENS = 2**40  # of one call: beyond any real figure, and the sum of a turn's calls still fits JSON and SQL

# The tokens that came from a prefix cache, and those of reasoning. DeepSeek and LiteLLM (for Claude) write the first
# ones beside the totals.
CACHED = (("prompt_tokens_details", "cached_tokens"), ("prompt_cache_hit_tokens",), ("cache_read_input_tokens",))
REASONING = (("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",))


def figures(reported: object) -> Usage | None:
    """None for impossible figures, as for a provider that reports none.

    The cached tokens are among the input tokens, and those of reasoning among the output tokens.
    """
    if not isinstance(reported, Mapping):
        return None
    read, written = _tokens(reported.get("prompt_tokens") or 0), _tokens(reported.get("completion_tokens") or 0)
    if read is None or written is None:
        return None
    usage: Usage = {"input_tokens": read, "output_tokens": written}
    if (cached := _first(reported, CACHED)) is not None:
        usage["cached_input_tokens"] = min(cached, read)
    if (reasoning := _first(reported, REASONING)) is not None:
        usage["reasoning_tokens"] = min(reasoning, written)
    return usage


def added(before: Usage | None, usage: Usage) -> Usage:
    """The sum of two calls. A figure that one of them lacks counts as 0."""
    total: dict[str, Any] = {**(before or {})}
    for name, tokens in usage.items():
        total[name] = total.get(name, 0) + tokens
    return total  # type: ignore[return-value]  # it has the names of both


def _first(reported: Mapping[str, object], places: tuple[tuple[str, ...], ...]) -> int | None:
    for place in places:
        figure: object = reported
        for name in place:
            figure = figure.get(name) if isinstance(figure, Mapping) else None
        if figure is not None and (tokens := _tokens(figure)) is not None:
            return tokens
    return None


def _tokens(figure: object) -> int | None:
    """Some servers write the number as a float."""
    if isinstance(figure, float) and figure.is_integer():
        figure = int(figure)
    if isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure < MOST_TOKENS:
        return figure
    return None
