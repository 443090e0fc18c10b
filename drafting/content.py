"""Which part of a reply's content is text for the reader. Thinking is not. Pure."""

from collections.abc import Mapping

# How models that have no field for their thinking mark it, at the head of the reply alone.
MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "[THINK]": "[/THINK]",
}


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


class Head:
    """The head of a reply: it holds text back while that may be a mark, and takes out the thinking between marks."""

    def __init__(self) -> None:
        self.passed = False  # the text has begun: from now on everything is text
        self._held = ""
        self._mark = ""  # the end of the thinking that has begun
        self._was_thinking = False

    def feed(self, text: str) -> str:
        """The text for the reader."""
        if self.passed:
            return text
        self._held += text
        while not self.passed:
            if self._mark:
                _, end, after = self._held.partition(self._mark)
                if not end:
                    self._held = self._held[-len(self._mark) :]
                    return ""
                self._held, self._mark, self._was_thinking = after, "", True
            head = self._held.lstrip()
            if not head or any(mark.startswith(head) for mark in MARKS if mark != head):
                return ""
            mark = next((mark for mark in MARKS if head.startswith(mark)), None)
            if mark is not None:
                self._held, self._mark = head[len(mark) :], MARKS[mark]
            else:
                self.passed = True
        return self._release()

    def close(self) -> str:
        """The text that is held back. No mark follows."""
        return "" if self.passed or self._mark or not self._held.strip() else self._release()

    def _release(self) -> str:
        self.passed = True
        text, self._held = self._held, ""
        return text.lstrip() if self._was_thinking else text
