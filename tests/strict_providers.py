"""What each family of providers refuses beyond OpenAI's own rules, restated from public reports. Pure.

A rule takes the body of a request and returns the sentence of its refusal, or None. The reports:

- mistral: pydantic/pydantic-ai#1210, anomalyco/opencode#1680, langchain-ai/langchain#24668; its template in vLLM counts
  the roles without calls and answers.
- template: janhq/jan#6254, microsoft/autogen#1037, suitenumerique/conversations#197 (Gemma, Llama and others).
- qwen: vllm-project/vllm#41114, BerriAI/litellm#26879.
- anthropic: NVIDIA-NeMo/Switchyard#502, anomalyco/opencode#1150, vercel/ai#14612.
- bedrock: vercel/ai#7537, NousResearch/hermes-agent#55092, langchain-ai/langchain-aws#238.
- gemini: labring/aiproxy#450, tinyhumansai/openhuman#3548, BerriAI/litellm#16895.
- deepseek: RooCodeInc/Roo-Code#10171, NousResearch/hermes-agent#17341 and #16021, openai/openai-agents-python#2155.
- kimi: continuedev/continue#11600, openclaw/openclaw#74846.
- groq, cerebras: janhq/jan#8136, Kilo-Org/kilocode#10375.
- openrouter: jeremychone/rust-genai#298, earendil-works/pi#989. claude: BerriAI/litellm#15601.
- perplexity: perplexityai/api-discussion#265, get-convex/agent#127.
- cohere: oracle/langchain-oracle#9, kwaroran/Risuai#458.
- minimax: MiniMax-AI/MiniMax-M2#69, anomalyco/opencode#32609, earendil-works/pi#5468.
- azure: Oaklight/argo-proxy#91.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Body = Mapping[str, Any]
Wire = Mapping[str, Any]
Rule = Callable[[Body], str | None]

FORBIDDEN = "FORBIDDEN"  # the word that a content filter refuses
FILTERED = "The response was filtered due to the prompt triggering the content management policy."


def parts(body: Body) -> tuple[list[Wire], list[Wire]]:
    """The system messages at the head, and the rest."""
    messages = list(body["messages"])
    head = 0
    while head < len(messages) and messages[head]["role"] in ("system", "developer"):
        head += 1
    return messages[:head], messages[head:]


def calls_of(message: Wire) -> Sequence[Wire]:
    calls: Sequence[Wire] = message.get("tool_calls") or ()
    return calls


def all_calls(body: Body) -> Iterator[Wire]:
    for message in body["messages"]:
        yield from calls_of(message)


def current_turn(body: Body) -> Sequence[Wire]:
    messages: Sequence[Wire] = body["messages"]
    return messages[max(place for place, message in enumerate(messages) if message["role"] == "user") + 1 :]


def blank(message: Wire) -> bool:
    return not (message.get("content") or "").strip()


def mistral(body: Body) -> str | None:
    before = ""
    for message in body["messages"]:
        role = message["role"]
        if (before, role) in {("tool", "user"), ("tool", "system"), ("user", "user"), ("assistant", "assistant")}:
            return f"Unexpected role '{role}' after role '{before}'"
        if role == "assistant" and not message.get("content") and not calls_of(message):
            return "Assistant message must have either content or tool_calls, but not none."
        before = role
    if before not in ("user", "tool"):
        return f"Expected last role User or Tool (or Assistant with prefix True) for serving but got {before}"
    if bad := [call["id"] for call in all_calls(body) if not re.fullmatch(r"[a-zA-Z0-9]{9}", call["id"])]:
        return f"Tool call id was {bad[0]} but must be a-z, A-Z, 0-9, with a length of 9."
    return mistral_template(body)


def mistral_template(body: Body) -> str | None:
    _, rest = parts(body)
    counted = [m["role"] for m in rest if m["role"] == "user" or (m["role"] == "assistant" and not calls_of(m))]
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(counted)):
        return "After the optional system message, conversation roles must alternate user/assistant/user/assistant/..."
    return None


def template(body: Body) -> str | None:
    head, rest = parts(body)
    if len(head) > 1:
        return "Conversation roles must alternate user/assistant/user/assistant/..."
    before = ""
    for message in rest:
        role = message["role"]
        if role == before != "tool" or (not before and role != "user") or (before, role) == ("tool", "user"):
            return "Conversation roles must alternate user/assistant/user/assistant/..."
        before = role
    return None


def qwen(body: Body) -> str | None:
    if any(message["role"] == "system" for message in body["messages"][1:]):
        return "System message must be at the beginning."
    if not any(message["role"] == "user" for message in body["messages"]):
        return "No user query found in messages."
    return None


def anthropic(body: Body) -> str | None:
    _, rest = parts(body)
    ids = [call["id"] for call in all_calls(body)]
    refusals = {
        'messages: first message must use the "user" role': not rest or rest[0]["role"] != "user",
        "The conversation must end with a user message.": rest[-1:] and rest[-1]["role"] == "assistant",
        "messages: `tool_use` ids must be unique": len(set(ids)) != len(ids),
        "String should match pattern '^[a-zA-Z0-9_-]+$'": not all(
            re.fullmatch(r"[a-zA-Z0-9_-]+", each) for each in ids
        ),
        "messages: text content blocks must be non-empty": any(blank(m) and not calls_of(m) for m in rest),
        "text content blocks must contain non-whitespace text": any(m.get("content") and blank(m) for m in rest),
    }
    broken = next((refusal for refusal, is_broken in refusals.items() if is_broken), None)
    return broken or answers_follow(body) or arguments_are_objects(body)


def answers_follow(body: Body) -> str | None:
    open_ids: list[str] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_ids:
                return "unexpected `tool_use_id` found in `tool_result` blocks"
            open_ids.remove(message["tool_call_id"])
        elif open_ids:
            return "`tool_use` ids were found without `tool_result` blocks immediately after"
        open_ids += [call["id"] for call in calls_of(message)]
    return "`tool_use` ids were found without `tool_result` blocks immediately after" if open_ids else None


def arguments_are_objects(body: Body) -> str | None:
    for call in all_calls(body):
        try:
            arguments = json.loads(call["function"]["arguments"], parse_constant=_refused_constant)
        except ValueError:
            return f"invalid params, invalid function arguments json string, tool_call_id: {call['id']}"
        if not isinstance(arguments, dict):
            return "tool_use.input: Input should be a valid dictionary"
    return None


def _refused_constant(name: str) -> None:
    raise ValueError(name)


def bedrock(body: Body) -> str | None:
    _, rest = parts(body)
    if not rest or rest[0]["role"] != "user":
        return "A conversation must start with a user message. Try again with a conversation that starts with one."
    if any(blank(message) and not calls_of(message) for message in rest):
        return "The text field in the ContentBlock object is blank. Add text to the text field, and try again."
    if any(True for _ in all_calls(body)) and not body.get("tools"):
        return "The toolConfig field must be defined when using toolUse and toolResult content blocks."
    return answers_follow(body)


def gemini3(body: Body) -> str | None:
    for message in current_turn(body):
        if calls := calls_of(message):
            google = (calls[0].get("extra_content") or {}).get("google") or {}
            if not google.get("thought_signature"):
                return "Function call is missing a thought_signature in functionCall parts."
    names = [call["function"]["name"] for call in all_calls(body)]
    if any(not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}", name) for name in names):
        return "Invalid function name. Must start with a letter or an underscore."
    before = None
    for message in parts(body)[1]:
        if calls_of(message) and before not in ("user", "tool"):
            return (
                "Please ensure that function call turn comes immediately after a user turn or a function response turn."
            )
        before = message["role"]
    return answers_follow(body)


def litellm_gemini(body: Body) -> str | None:
    for message in current_turn(body):
        if (calls := calls_of(message)) and "__thought__" not in calls[0]["id"]:
            return "Function call is missing a thought_signature in functionCall parts."
    return answers_follow(body)


def deepseek_thinking(body: Body) -> str | None:
    for place, message in enumerate(current_turn(body)):
        if calls_of(message) and "reasoning_content" not in message:
            return f"Missing `reasoning_content` field in the assistant message at message index {place}"
    return None


def deepseek_v4(body: Body) -> str | None:
    if any(message["role"] == "assistant" and not message.get("reasoning_content") for message in body["messages"]):
        return "The `reasoning_content` in the thinking mode must be passed back to the API."
    return None


def deepseek_r1(body: Body) -> str | None:
    """Before V3.2, by DeepSeek's own documentation; the report of an error does not say more than this."""
    return "reasoning_content is an output" if any("reasoning_content" in m for m in body["messages"]) else None


def kimi(body: Body) -> str | None:
    for place, message in enumerate(body["messages"]):
        if calls_of(message) and not message.get("reasoning_content"):
            return (
                f"thinking is enabled but reasoning_content is missing in assistant tool call message at index {place}"
            )
    return None


def groq(body: Body) -> str | None:
    known = {"role", "content", "name", "tool_calls", "tool_call_id"}
    for place, message in enumerate(body["messages"]):
        for name in sorted(message.keys() - known):
            return f"'messages.{place}' : for 'role:assistant' : property '{name}' is unsupported"
        for call in calls_of(message):
            for name in sorted(call.keys() - {"id", "type", "function"}):
                return f"'messages.{place}.tool_calls' : property '{name}' is unsupported"
    return None


def openrouter(body: Body) -> str | None:
    for message in current_turn(body):
        if calls_of(message):
            details = message.get("reasoning_details") or [{}]
            if any(block.get("signature") != f"signed {block.get('text')}" for block in details):
                return "The reasoning_details of the assistant message do not match the model's own: missing a block."
    return None


def claude_thinking(body: Body) -> str | None:
    for message in current_turn(body):
        if calls_of(message):
            blocks = message.get("thinking_blocks") or [{}]
            if any(block.get("signature") != f"signed {block.get('thinking')}" for block in blocks):
                return "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`."
    return None


def perplexity(body: Body) -> str | None:
    _, rest = parts(body)
    before = None
    for message in rest:
        side = "assistant" if message["role"] == "assistant" else "other"
        if side == before and not (message["role"] == "tool" and before == "other"):
            return "After the (optional) system message(s), user or tool message(s) should alternate with assistant"
        before = side
    return None if before == "other" else "Last message must have role `user` or `tool`."


def cohere(body: Body) -> str | None:
    before = None
    for message in body["messages"]:
        if blank(message) and not calls_of(message):
            return "invalid request: all elements in history must have a message."
        if (before, message["role"]) == ("tool", "user"):
            return "invalid request: cannot specify message if the last entry in chat history contains tool results"
        before = message["role"]
    return None


def minimax(body: Body) -> str | None:
    if sum(message["role"] == "system" for message in body["messages"]) > 1:
        return "invalid params, system message must be the first (2013)"
    return answers_follow(body) or arguments_are_objects(body)


def strings(body: Body) -> str | None:
    """Servers that are strict about types: the key `content` is always there, and a text unless there are calls."""
    for place, message in enumerate(body["messages"]):
        if "content" not in message:
            return (
                f"Failed to deserialize the JSON body into the target type: messages[{place}]: missing field `content`"
            )
        if not isinstance(message["content"], str) and not calls_of(message):
            return f"messages[{place}].content: expected a string"
    return None


def azure(body: Body) -> str | None:
    return FILTERED if FORBIDDEN in json.dumps(body["messages"]) else None


def rejects_word(body: Body) -> str | None:
    """Refuses a content, and does not say so."""
    return "Bad request" if FORBIDDEN in json.dumps(body["messages"]) else None


FILTERS = ("azure", "rejects_word")  # the families that refuse a message for its content

FAMILIES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        mistral,
        template,
        qwen,
        anthropic,
        bedrock,
        gemini3,
        litellm_gemini,
        deepseek_thinking,
        deepseek_v4,
        deepseek_r1,
        kimi,
        groq,
        openrouter,
        claude_thinking,
        perplexity,
        cohere,
        minimax,
        strings,
        azure,
        rejects_word,
    )
}
