"""Which part of a reply's content is text for the reader. Thinking is not. Pure."""

import re
from collections.abc import Mapping

# How models that have no field for their thinking mark it, at the head of the reply alone.
MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<reason>": "</reason>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    # Harmony, the format of gpt-oss
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
    "<|start|>assistant<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
}
# A mark of the text itself, behind which it begins.
TEXT_MARKS = ("<|channel|>final<|message|>", "<|start|>assistant<|channel|>final<|message|>", "</think>")
ALL_MARKS = (*MARKS, *TEXT_MARKS)
END_OF_THOUGHT = "</think>"
MARK_PARTS = 24  # chunks that may hold a mark
IS_END_OF_THOUGHT = re.compile(r"\n</think>|</think>[ \t]*(\n|$)")


def text_of(content: object) -> str:
    """The text in content of one or several parts. Raises TypeError for what is no content."""
    if isinstance(content, str):
        return content
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list):
        raise TypeError(f"content is a {type(content).__name__}")
    return "".join(map(_text_of_part, parts))


def _text_of_part(part: object) -> str:
    """ "" of a part that is thinking, a reference, or anything else without a text."""
    if isinstance(part, str) or not isinstance(part, Mapping):
        return text_of(part)
    kind = str(part.get("type") or "text")
    if "think" in kind or "reason" in kind:
        return ""
    text = part.get("text") or part.get("refusal") or ""
    if isinstance(text, Mapping):
        text = text.get("value") or ""
    return text if isinstance(text, str) else ""


def has_thought_without_beginning(said: str) -> bool:
    """The templates of DeepSeek R1 and QwQ put "<think>" into the prompt, so that only its end is in the reply."""
    return IS_END_OF_THOUGHT.search(said) is not None and not any(mark in said for mark in MARKS)


class Snapshots:
    """Tells a provider that sends the text so far in each chunk from one that sends the next characters.

    Three texts that begin the reply, each the beginning of the next one, are snapshots. A text that was held back for
    that is given out with the next one.
    """

    def __init__(self) -> None:
        self.decided = False
        self._first = ""
        self._second = ""
        self._so_far: str | None = None  # of the snapshots

    def feed(self, text: str) -> str:
        """The next characters of the reply."""
        if self.decided:
            return text
        if self._so_far is not None:
            return self._news(text)
        if not self._first:
            self._first = text
        elif not self._second and _grows(self._first, text):
            self._second, text = text, ""
        elif self._second and _grows(self._second, text):
            self._so_far, text = text, text[len(self._first) :]
        else:
            text = self.close() + text
            self.decided = True
        return text

    def _news(self, text: str) -> str:
        so_far = self._so_far or ""
        if not text.startswith(so_far):  # such as a last chunk of its own
            return text
        self._so_far = text
        return text[len(so_far) :]

    def close(self) -> str:
        """The text that is held back. None follows."""
        text = "" if self.decided or self._so_far is not None else self._second
        self._second = ""
        return text


def _grows(text: str, following: str) -> bool:
    return len(following) > len(text) and following.startswith(text) and not text.isspace()


class Head:
    """The head of a reply: it holds text back while that may be a mark, and takes out the thinking between marks.

    `in_thought`: the model's template has put the mark of the thinking into the prompt, so that only its end comes. If
    it does not come either, all was text.
    """

    def __init__(self, *, in_thought: bool = False) -> None:
        self.passed = False  # the text has begun: from now on everything is text
        self._held = ""
        self._mark = ""  # the end of the thinking that has begun
        self._in_thought = in_thought
        self._thought: list[str] = []  # what was held back for that
        self._tail = ""  # the end of it
        self._was_thinking = False

    def feed(self, text: str) -> str:
        """The text for the reader."""
        if self.passed:
            return text
        if self._in_thought:
            text = self._behind_thought(text)
            if self._in_thought:
                return ""
        self._held += text
        while not self.passed:
            if self._mark:
                _, end, after = self._held.partition(self._mark)
                if not end:
                    self._held = self._held[-len(self._mark) :]
                    return ""
                self._held, self._mark, self._was_thinking = after, "", True
            head = self._held.lstrip()
            if not head or any(mark.startswith(head) for mark in ALL_MARKS if mark != head):
                return ""
            self._take_mark(head)
        return self._release()

    def _behind_thought(self, text: str) -> str:
        """The text from the end of the thinking on, or all of it if it begins with a mark."""
        self._thought.append(text)
        if len(self._thought) < MARK_PARTS:
            said = "".join(self._thought)
            if said.lstrip().startswith(ALL_MARKS):
                self._in_thought = False
                return said
        _, end, after = (self._tail + text).partition(END_OF_THOUGHT)
        self._tail = (self._tail + text)[-len(END_OF_THOUGHT) :]
        if end:
            self._in_thought, self._was_thinking = False, True
        return after

    def _take_mark(self, head: str) -> None:
        """Take the mark at the head of the text, or note that the text begins."""
        mark = next((mark for mark in ALL_MARKS if head.startswith(mark)), None)
        if mark is None:
            self.passed = True
            return
        self._held, self._mark = head.removeprefix(mark), MARKS.get(mark, "")
        self._was_thinking = True

    def close(self) -> str:
        """The text that is held back. No mark follows."""
        if self._in_thought:
            self._in_thought = False
            return self.feed("".join(self._thought)) + self.close()
        return "" if self.passed or self._mark or not self._held.strip() else self._release()

    def _release(self) -> str:
        self.passed = True
        text, self._held = self._held, ""
        return text.lstrip() if self._was_thinking else text
