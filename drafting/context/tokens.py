"""How many tokens a text has, about, and how many a model takes. Pure."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from langchain_core.messages import AIMessage, BaseMessage

# Fitted to o200k and the tokenizers of Llama 3 and Mistral, on contracts and tables in nine languages. German is
# counted lowest: 0.87 of the tokens of Llama 3. English is counted too high (1.3), and so is Russian (2).
LETTERS_A_TOKEN = 4.2  # letters and spaces
TOKENS_A_SIGN = 0.6  # the rest of ASCII: digits, punctuation, line ends
BYTES_A_TOKEN = 3.0  # of UTF-8, beyond ASCII: a Chinese character is about a token
MESSAGE_TOKENS = 4  # of a message, or a call, beside its text

_LETTERS = (string.ascii_letters + " ").encode()
_ASCII = bytes(range(128))


def tokens_of(text: str) -> int:
    """No tokenizer: each provider has another, and one takes 10 ms for a contract of 60 KB. This takes 0.1 ms."""
    data = text.encode("utf-8", "replace")
    beyond_letters = data.translate(None, _LETTERS)
    beyond_ascii = 0 if text.isascii() else len(beyond_letters.translate(None, _ASCII))
    letters, signs = len(data) - len(beyond_letters), len(beyond_letters) - beyond_ascii
    return int(letters / LETTERS_A_TOKEN + signs * TOKENS_A_SIGN + beyond_ascii / BYTES_A_TOKEN) + 1


def message_tokens(message: BaseMessage) -> int:
    """Fields that go back to the provider as they came, such as its reasoning, count too."""
    count = MESSAGE_TOKENS + tokens_of(message.content if isinstance(message.content, str) else str(message.content))
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            count += MESSAGE_TOKENS + tokens_of(call["name"]) + tokens_of(orjson.dumps(call["args"]).decode())
    if message.additional_kwargs:
        count += tokens_of(orjson.dumps(message.additional_kwargs, default=str).decode())
    return count


def tools_tokens(tools: Sequence[Mapping[str, Any]]) -> int:
    return tokens_of(orjson.dumps(list(tools)).decode())


# ---------------------------------------------------------------------------------------------------------------
# The models

UNKNOWN_MODEL_TOKENS = 128_000

# The first that fits the model's name, without its provider ("openai/") and in small letters. Where a provider limits
# the input more than input and output together, it is the input's limit. Sources: the model pages of
# platform.openai.com, docs.anthropic.com, ai.google.dev, api-docs.deepseek.com and docs.mistral.ai, the model cards of
# the open models, and models.dev. Ollama and llama.cpp serve less, unless they are told otherwise.
FAMILIES: Sequence[tuple[str, int]] = (
    (r"gpt-[56](\.\d)?(-|$)", 272_000),
    (r"gpt-4\.1", 1_047_576),
    (r"gpt-4o|gpt-4-turbo|gpt-4-(1106|0125)|chatgpt-4o", 128_000),
    (r"gpt-4-32k", 32_768),
    (r"gpt-4", 8_192),
    (r"gpt-3\.5", 16_385),
    (r"gpt-oss", 131_072),
    (r"o1-(mini|preview)", 128_000),
    (r"o[134](-|$)", 200_000),
    (r"(.*\.)?claude", 200_000),
    (r"gemini", 1_048_576),
    (r"gemma-?3", 131_072),
    (r"gemma-?2", 8_192),
    (r"deepseek", 128_000),
    (r"magistral", 40_000),
    (r"(mistral-(large|medium|small)|ministral|codestral|devstral|mistral-nemo|open-mistral-nemo)", 128_000),
    (r"(open-)?mi[sx]tral", 32_768),
    (r"(meta-)?llama-?3\.[123]", 131_072),
    (r"(meta-)?llama-?3", 8_192),
    (r"(meta-)?llama-?4", 1_000_000),
    (r"qwen-?3", 32_768),
    (r"qwen-?2(\.5)?", 32_768),
    (r"phi-?3|phi-?4-mini", 128_000),
    (r"phi-?4", 16_384),
    (r"smollm", 8_192),
    (r"grok-4", 256_000),
    (r"grok", 131_072),
    (r"command", 128_000),
)


def context_of(model: str) -> int:
    """The tokens that a model takes, by its name."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((tokens for family, tokens in FAMILIES if re.match(family, name)), UNKNOWN_MODEL_TOKENS)
