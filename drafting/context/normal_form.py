"""The messages of a request in the form that every provider takes, whatever their history went through. Pure.

The strictest rules of all providers hold at once: one system message, at the head. After it a user's message, and then
the roles alternate. Each tool call is followed by its answer, and each answer follows its call. Ids are unique and have
nine letters or digits. No text is empty. The last message is a user's or a tool's answer.

A message depends on the messages before it alone. So a later request repeats an earlier one byte for byte and goes on
behind it, and providers find it in their prompt caches.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import isfinite
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import ToolCall

LOST_ANSWER = '{"error": "This call was interrupted; it is not known whether it was carried out."}'
# In place of a message that is not there. Parentheses, as square brackets are placeholders in documents.
INTERRUPTED = "(This turn was interrupted here.)"
LEFT_OUT = "(A message was left out here: the model could not take it.)"
EARLIER_LEFT_OUT = "(The conversation before this was left out here: the model's provider refused a message in it.)"
BEGINNING = "(The beginning of the conversation was left out.)"
GO_ON = "(Please go on.)"
NO_TEXT = "(no text)"
NO_ANSWER = "{}"

CALL_ID = "call{:05}"  # Mistral takes nine of [a-zA-Z0-9] and nothing else, and every other provider takes these, too
TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")  # Gemini's begin with no digit, OpenAI's have no dot
UNKNOWN_TOOL = "unknown"

REFUSED = "refused"  # in the response_metadata of the last message of a turn whose request was refused; its value: why
EARLIER_REFUSED = "earlier_refused"  # likewise, of a turn that was taken without the turns before it
NOTE = "note"  # in the additional_kwargs of a HumanMessage that belongs to the user's next message


def without_refused(history: Sequence[AnyMessage]) -> list[AnyMessage]:
    """The history with LEFT_OUT in place of each turn that a provider refused for its content.

    A provider reads the whole history anew in each request. So it would refuse every later message of the thread, too.
    The reply so far goes as well, as it follows from the message or is itself the reason.
    """
    turns = list(_turns(history))
    taken_alone = [place for place, turn in enumerate(turns) if _is_marked(turn, EARLIER_REFUSED)]
    first = taken_alone[-1] if taken_alone else 0
    kept: list[AnyMessage] = [HumanMessage(EARLIER_LEFT_OUT)] if first else []
    for turn in turns[first:]:
        kept += [HumanMessage(LEFT_OUT)] if _is_marked(turn, REFUSED) else turn
    return kept


def without_earlier(history: Sequence[AnyMessage]) -> list[AnyMessage] | None:
    """The history's last turn, with a line in place of the turns before it; None if nothing was said in these.

    The provider may refuse a message of an earlier turn, which another provider had taken.
    """
    *earlier, last = _turns(history)
    lines = (EARLIER_LEFT_OUT, LEFT_OUT)
    if all(message.content in lines for turn in earlier for message in turn):
        return None
    return [HumanMessage(EARLIER_LEFT_OUT), *last]


def _is_marked(turn: Sequence[AnyMessage], marker: str) -> bool:
    return any(message.response_metadata.get(marker) for message in turn)


def _turns(history: Sequence[AnyMessage]) -> Iterator[Sequence[AnyMessage]]:
    """The history cut before each message of the user."""
    starts = [place for place, message in enumerate(history) if isinstance(message, HumanMessage)]
    begin = 0
    for start in [*starts, len(history)]:
        if start > begin:
            yield history[begin:start]
        begin = start


def normal_form(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages as every provider takes them. It is its own normal form."""
    head = list(takewhile(lambda message: isinstance(message, SystemMessage), messages))
    form: list[BaseMessage] = []
    for message in _answered(messages[len(head) :]):
        _append(form, message)
    if not form or isinstance(form[-1], AIMessage):
        form.append(HumanMessage(GO_ON))
    if head:
        form.insert(0, head[0] if len(head) == 1 else SystemMessage(_paragraphs(*map(_text, head))))
    return form


def _append(form: list[BaseMessage], message: BaseMessage) -> None:
    """Append the message, with a line between where its role may not follow the one before, or join the two."""
    last = form[-1] if form else None
    if isinstance(message, AIMessage):
        if last is None:
            form.append(HumanMessage(BEGINNING))
        if isinstance(last, AIMessage):
            form[-1] = message.model_copy(update={"content": _paragraphs(_text(last), _text(message))})
            return
    elif isinstance(message, HumanMessage):
        if isinstance(last, HumanMessage) and NOTE in last.additional_kwargs:
            form[-1] = message.model_copy(update={"content": _paragraphs(_text(last), _text(message))})
            return
        if last is not None and not isinstance(last, AIMessage):
            form.append(AIMessage(INTERRUPTED))
    form.append(message)


def _answered(history: Sequence[BaseMessage]) -> Iterator[BaseMessage]:
    """Each message with a text, and each call with its answer behind it. Answers without a call are left out."""
    calls = 0
    for place, message in enumerate(history):
        if isinstance(message, AIMessage):
            text = _text(message).rstrip()
            if message.tool_calls:
                following = takewhile(lambda answer: isinstance(answer, ToolMessage), history[place + 1 :])
                answers = [answer for answer in following if isinstance(answer, ToolMessage)]
                renamed = [_named(call, calls + number) for number, call in enumerate(message.tool_calls, 1)]
                calls += len(renamed)
                yield message.model_copy(update={"content": text, "tool_calls": renamed})
                for call, sent in zip(message.tool_calls, renamed, strict=True):
                    yield ToolMessage(_answer(answers, call["id"]), tool_call_id=sent["id"], name=sent["name"])
            elif text:
                yield message if text == message.content else message.model_copy(update={"content": text})
        elif not isinstance(message, ToolMessage):
            text = _text(message)
            if isinstance(message, HumanMessage) and text == message.content and text.strip():
                yield message
            else:  # a system's message in the middle is a note
                kwargs = {} if isinstance(message, HumanMessage) else {NOTE: True}
                yield HumanMessage(text if text.strip() else NO_TEXT, additional_kwargs=kwargs)


def _named(call: ToolCall, number: int) -> ToolCall:
    name = call["name"] if TOOL_NAME.fullmatch(call["name"]) else UNKNOWN_TOOL
    return ToolCall(name=name, args=_finite(call["args"]), id=CALL_ID.format(number), type="tool_call")


def _finite(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Python's JSON has NaN and Infinity, which no provider reads."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _answer(answers: list[ToolMessage], call_id: str | None) -> str:
    """The first answer to that id, which is then taken: a provider may give an id twice."""
    for answer in answers:
        if answer.tool_call_id == (call_id or ""):
            answers.remove(answer)
            return _text(answer) if _text(answer).strip() else NO_ANSWER
    return LOST_ANSWER


def _text(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else str(message.text)


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)
