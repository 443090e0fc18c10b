"""The fields of a reply that mean nothing here, and that its provider wants back with the next request. Pure.

Gemini refuses a call without its thought signature, and DeepSeek a call without the reasoning that led to it. The
fields arrive in pieces. Each family has names of its own for them, so a field is taken by its form, not by its name.
"""

from collections.abc import Mapping
from typing import Any

REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_text")
"""The fields in which families send their reasoning as text."""

# Texts with these names arrive in pieces. Any other value, such as a signature, arrives whole, at times repeatedly.
IN_PIECES = frozenset({*REASONING, "text", "summary"})
SAME_BLOCK = ("type", "index", "id")  # two pieces of one block of reasoning agree in these
SIGNED = ("signature", "data")  # the last field of a block


class _Pieces(list[str]):
    """A text while it arrives."""


class OpaqueFields:
    """The opaque fields of a reply, or of one of its calls, in time linear in their length."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def add(self, fields: Mapping[str, Any]) -> None:
        """Take those of the next chunk. None and empty values add nothing."""
        _merge(self._kept, fields)

    def whole(self) -> dict[str, Any]:
        return {name: _joined(value) for name, value in self._kept.items()}


def _merge(kept: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        before = kept.get(name)
        if isinstance(value, Mapping):
            if not isinstance(before, dict):
                before = kept[name] = {}
            _merge(before, value)
        elif isinstance(value, list):
            if not isinstance(before, list) or isinstance(before, _Pieces):
                before = kept[name] = []
            for block in value:
                _add_block(before, block)
        elif isinstance(value, str) and name in IN_PIECES:
            if not isinstance(before, _Pieces):
                before = kept[name] = _Pieces()
            before.append(value)
        elif value not in (None, ""):
            kept[name] = value


def _add_block(blocks: list[Any], block: object) -> None:
    """Blocks of reasoning arrive in pieces, too: a piece goes to the last block unless it begins another one."""
    last = blocks[-1] if blocks else None
    if not isinstance(block, Mapping):
        blocks.append(block)
        return
    if not (isinstance(last, dict) and _continues(last, block)):
        last = {}
        blocks.append(last)
    _merge(last, block)


def _continues(last: Mapping[str, Any], block: Mapping[str, Any]) -> bool:
    return not any(last.get(name) for name in SIGNED) and all(
        block.get(name) in (None, last.get(name)) for name in SAME_BLOCK
    )


def _joined(value: Any) -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(inner) for name, inner in value.items()}
    return [_joined(inner) for inner in value] if isinstance(value, list) else value
