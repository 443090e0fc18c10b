"""The head of a shortened request: the documents as they now stand, and a note of the turns that are folded. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from chat import Document
from drafting.context.tokens import tokens_of

LEAST_WORDS = 200  # tokens of a message that are always kept

OPENING = (
    "[This message is from the service, not from the user. It stands for the beginning of the conversation, which is "
    "too long to be sent whole. The documents stand here, so calls further down were left without their texts. Write "
    "whole texts into your own calls, as before.]"
)
HIDDEN = (
    "Not shown, because there is no room: {}. You can't see their text. If the user's message is about one of them, "
    "say so, and ask for a message that names it by its title: it will be shown then. Never guess at its text."
)
REQUESTS = "The user's earlier messages in their own words, and the versions that they led to:"
GAP = "[Messages {} to {} are left out here. Ask the user if something in them matters.]"


def shown_whole(document: Document) -> str:
    version = f'doc_id="{document["doc_id"]}" version="{document["version"]}"'
    broken = "" if document["complete"] else ' complete="no, it broke off"'
    title = json.dumps(document["title"], ensure_ascii=False)
    return f"<document {version} title={title}{broken}>\n{document['content']}\n</document>"


def name_of(document: Document) -> str:
    return f"version {document['version']} of {document['doc_id']}"


def head(documents: Sequence[Document], hidden: Sequence[Document], note: "Note") -> str:
    parts = [OPENING, *map(shown_whole, documents)]
    if hidden:
        names = (f"{name_of(each)}, “{each['title']}”, {len(each['content']):,} characters" for each in hidden)
        parts.append(HIDDEN.format("; ".join(names)))
    if note.lines:
        parts += [REQUESTS, *note.shown]
    return "\n\n".join(parts)


@dataclass(slots=True)
class Note:
    """A line for each turn that was folded. The first always stays, the next are left out when there are too many."""

    lines: list[str] = field(default_factory=list)
    left_out: int = 1  # the first line that is shown again, behind the first of all
    tokens: int = 0

    def fold(self, words: str, made: Iterable[Document], most: int) -> None:
        """Add a turn, with a quarter of `most` tokens for the user's words. Half of them is left if all are used."""
        versions = ", ".join(map(name_of, made))
        line = f"{len(self.lines) + 1}. {_shortened(words, max(most // 4, LEAST_WORDS))}"
        self.lines.append(f"{line}\n(led to {versions})" if versions else line)
        self.tokens += tokens_of(self.lines[-1])
        if self.tokens > most:
            while self.tokens > most // 2 and self.left_out < len(self.lines):
                self.tokens -= tokens_of(self.lines[self.left_out])
                self.left_out += 1

    @property
    def shown(self) -> list[str]:
        gap = [GAP.format(2, self.left_out)] if self.left_out > 1 else []
        return [*self.lines[:1], *gap, *self.lines[self.left_out :]]


def _shortened(words: str, most: int) -> str:
    """Its beginning and its end."""
    count = tokens_of(words)
    if count <= most:
        return words
    chars = len(words) * most // count
    start, end = words[: chars * 2 // 3], words[len(words) - chars // 3 :]
    return f"{start}\n[{len(words) - len(start) - len(end):,} characters are left out here]\n{end}"
