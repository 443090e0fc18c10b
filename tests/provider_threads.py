"""Threads against the strict providers, over the wire: turns that go well, and turns that break off."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from case_provider import DONE, Case, Reply, delta
from provider_neighbours import ALPHA, CALLS, DRAFTED, call
from strict_providers import FAMILIES, FILTERED, FILTERS, FORBIDDEN

SIGNED = {"google": {"thought_signature": "c2lnbmVk"}}
REJECTED = Reply([json.dumps({"error": {"message": "x"}})], 400, "application/json")
BROKEN: Mapping[str, Any] = {"error": "model_rejected", "docs": dict([ALPHA])}
ANSWERED: Mapping[str, Any] = {"end": "stop", "text": "All done."}
# One model stands for all families here, and these two refuse a field that others want.
APART = ("groq", "deepseek_r1")


def block(kind: str, name: str, text: str) -> list[dict[str, Any]]:
    return [{"type": kind, name: text, "signature": f"signed {text}"}]


THOUGHTS: Mapping[str, Sequence[str]] = {
    "deepseek_thinking": [delta(reasoning_content="I should "), delta(reasoning_content="write.")],
    "deepseek_v4": [delta(reasoning_content="I should write.")],
    "kimi": [delta(reasoning_content="I should write.")],
    "openrouter": [delta(reasoning="Hm.", reasoning_details=block("reasoning.text", "text", "Hm."))],
    "claude_thinking": [delta(thinking_blocks=block("thinking", "thinking", "Hm."))],
}
CALL_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "gemini3": {"id": "g1", "extra_content": SIGNED},
    "litellm_gemini": {"id": "call_1__thought__c2lnbmVk"},
}


def draft(family: str) -> Reply:
    made = call(ALPHA, index=0, **CALL_FIELDS.get(family, {"id": "call_0"}))
    return Reply([*THOUGHTS.get(family, ()), delta(tool_calls=[made]), CALLS, DONE])


def threads() -> list[Case]:
    cases = []
    for family in sorted(FAMILIES.keys() - APART):
        good, broken, refused = (f"{kind}-{family}" for kind in ("good", "broken", "refused"))
        cases += [
            Case(good, ["first", "again", "third"], [draft(family)], [DRAFTED, DRAFTED, ANSWERED], family),
            Case(
                broken,
                ["first", "go on", "again", "again", "go on", "third"],
                [draft(family), REJECTED],
                [BROKEN, ANSWERED, BROKEN, BROKEN, ANSWERED, ANSWERED],
                family,
            ),
            Case(
                refused, ["first", "first", "go on"], [REJECTED], [{"error": "model_rejected"}] * 2 + [ANSWERED], family
            ),
        ]
    for family in FILTERS:
        code = "content_filter" if FAMILIES[family]({"messages": FORBIDDEN}) == FILTERED else "model_rejected"
        messages = ["hello", FORBIDDEN, "harmless", FORBIDDEN, "harmless"]
        expected = [ANSWERED, {"error": code}, ANSWERED, {"error": code}, ANSWERED]
        cases.append(Case(f"filtered-{family}", messages, [], expected, family))
    return cases


THREADS = threads()
