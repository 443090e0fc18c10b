"""A long thread about one contract, and the rules of a provider that counts tokens, for tests and bench/context.py.

The contract is written anew in each fifth turn and edited in the next two. The other turns are questions.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = re.findall(r"[A-Za-z-]+", Path(__file__).parent.parent.joinpath("drafting/offline/clauses.toml").read_text())
TOKEN = re.compile(r"[A-Za-z]{1,7}|[0-9]{1,3}|[^\sA-Za-z0-9]|\n+")  # about as o200k: 1.17 of its tokens for a contract
ASKED_FIRST = "Draft a master services agreement between Alpha GmbH and Beta Ltd under German law."
SAID = "The agreement says in clause 7 that either party may terminate it on thirty days' notice."
TITLE = "Master Services Agreement"


def tokens(text: str) -> int:
    """By the rule of the strict provider, which is not the service's own."""
    return len(TOKEN.findall(text))


def contract(seed: int, chars: int) -> str:
    choices = random.Random(seed)
    paragraphs, size = [f"# {TITLE}"], 0
    while size < chars:
        number = len(paragraphs)
        paragraphs.append(f"{number}. " + " ".join(choices.choices(WORDS, k=60)) + ".")
        size += len(paragraphs[-1]) + 2
    return "\n\n".join(paragraphs)


@dataclass
class Script:
    """The user's messages and the model's replies, turn by turn."""

    chars: int
    current: str = ""  # the newest version's text
    version: int = 0

    def message(self, turn: int) -> str:
        if turn == 1:
            return ASKED_FIRST
        return (
            f"In turn {turn}: look at clause {turn % 20 + 1}, and make the notice period {turn} days if it is not yet."
        )

    def call(self, turn: int) -> tuple[str, str] | None:
        """The tool that the model calls in this turn, and its arguments."""
        if turn % 5 == 1:
            self.current = contract(turn, self.chars)
            name, arguments = "write_document", json.dumps({"title": TITLE, "content": self.current})
        elif turn % 5 in (2, 3):
            old = random.Random(turn).choice(self.current.splitlines()[2::2])
            new = f"{old[:-1]}, as asked in turn {turn}."
            self.current = self.current.replace(old, new)
            edits = [{"find": old, "replace": new}]
            name, arguments = "edit_document", json.dumps({"doc_id": "d1", "edits": edits})
        else:
            return None
        self.version += 1
        return name, arguments


def texts(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """All that a model reads, as text: contents, and the strings in arguments and answers."""
    for message in messages:
        yield from strings(message.get("content") or "")
        for call in message.get("tool_calls") or ():
            yield from strings(call["function"]["arguments"])


def strings(text: str) -> Iterator[str]:
    waiting: list[Any] = [text]
    if text.startswith("{"):
        waiting = [json.loads(text)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def missing(messages: Sequence[dict[str, Any]], text: str) -> list[str]:
    """The lines of a document that a model could not know from these messages."""
    known = {line for said in texts(messages) for line in said.splitlines()}
    return [line for line in text.splitlines() if line not in known]


def times_in_full(messages: Sequence[dict[str, Any]]) -> int:
    """How often a text of the contract stands in them whole."""
    return sum(f"# {TITLE}\n" in said for said in texts(messages))


@dataclass
class PrefixCache:
    """The share of tokens that a provider's prefix cache would have had. It keeps the requests of a thread."""

    tokens: int = 0
    first: int = 0
    hits: float = 0
    most: int = 0  # tokens of a request
    requests: list[str] = field(default_factory=list)

    def read(self, request: str, count: int) -> None:
        begins = max((common_prefix(request, earlier) for earlier in self.requests[-4:]), default=0)
        self.first = self.first or count
        self.tokens += count
        self.hits += count * begins / len(request)
        self.most = max(self.most, count)
        self.requests.append(request)

    @property
    def share(self) -> float:
        """Of all requests but the first, which no cache can have."""
        return self.hits / (self.tokens - self.first)


def common_prefix(one: str, other: str) -> int:
    """Its length, by halving."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[:middle] == other[:middle]:
            least = middle
        else:
            most = middle - 1
    return least
