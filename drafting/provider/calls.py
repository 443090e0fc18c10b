"""Which call of a reply each fragment on the wire belongs to. Pure.

OpenAI gives each call an index, and an id and a name in its first fragment. Others give every call the same index, or
none, an id in every fragment, an empty id, the name in pieces or late, or "{}" as a placeholder for the arguments.

A fragment meets the call with its index. If the index is new, it begins a call, unless it has no name and its id, or
no id at all, leads to a call. Without an index it meets the call with its id, or without an id the last call; a new id
with a name begins a call. The call that it meets continues, but another one begins if

- its arguments are complete, and the fragment has another id, another name, or a name and arguments;
- they have begun, and the fragment has another name;
- they have not begun, and the fragment has another name and another id;
- they are a placeholder, and the fragment has a name, and another id, another name, or neither id nor index.

Behind complete arguments an object begins another call of the same name. Any other text there continues the call, and
so breaks its JSON. No byte is dropped but white space, the marks with which a model's template ends a call, and what a
provider sends again: a whole call, or with each fragment the arguments so far. The latter can't be meant as more of
them, as `{"` within an object, or within a string of it, is no JSON.

Where the model has finished, arguments that lack nothing but closing brackets get them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from drafting.deltas import ToolCallDelta
from drafting.provider.wrappings import Plain, Wrapping, wrapping_of

# The arguments of a call that has none yet: nothing, a placeholder, or the beginning of one.
NONE_YET = re.compile(r'\s*(\{\s*\}?|""?|n(u(ll?)?)?)?\s*')
PLACEHOLDER = re.compile(r'\s*(\{\s*\}|""|null)\s*')
# The end of a call by the model's template, and the beginning of one: brackets, a fence, "</tool_call>", "<|call|>".
END_MARKS = re.compile(r"([\s}\]`]|</\w{1,40}>|<\|[^|<>\s]{1,40}\|>)*")
END_MARKS_BEGUN = re.compile(END_MARKS.pattern + r"(<(/\w{0,40}|\|[^|<>\s]{0,40}\|?)?)?")
# A name as the model's template writes it: "functions.edit_document:0", "edit_document<|channel|>json".
NAME = re.compile(r"(?:functions?[./:])?([A-Za-z0-9_-]+)(?::\d+|<\|.*)?", re.DOTALL)


@dataclass(slots=True, eq=False)
class Call:
    """A call, as far as its fragments have arrived."""

    number: int
    name: str = ""
    call_id: str = ""  # the first one
    ids: set[str] = field(default_factory=lambda: {""})
    wrapping: Wrapping | None = None  # None until the arguments have begun
    held: str = ""  # arguments that may be a placeholder
    raw: list[str] = field(default_factory=list)  # the arguments as they were sent
    untold: list[str] = field(default_factory=list)  # arguments that were not given out yet
    behind: str = ""  # text behind complete arguments, as long as it may be the end marks of a template
    is_resent: bool = False  # with each fragment the provider sends the arguments so far again
    told: tuple[str, str] = ("", "")  # the id and name that were given out
    is_echo: bool = False  # it has the name of the call before it, and no arguments: it may be no call at all

    @property
    def complete(self) -> bool:
        return self.wrapping is not None and self.wrapping.complete

    def is_inside(self, arguments: str) -> bool:
        """All of the text is in the middle of a string of the arguments."""
        return self.name != "" and self.wrapping.__class__ is Plain and self.wrapping.is_inside(arguments)

    def is_followed(self, index: object, call_id: str, name: str, arguments: str) -> bool:
        """A fragment that meets this call begins another one."""
        another_id = bool(self.call_id) and call_id not in self.ids
        another_name = bool(name and self.name and name != self.name)
        if self.complete:
            return another_id or another_name or bool(name and not END_MARKS.fullmatch(arguments))
        if self.wrapping is not None:
            return another_name
        if PLACEHOLDER.fullmatch(self.held):  # without anything behind it, this is the whole of the arguments
            return bool(name) and (another_id or another_name or (index is None and not call_id))
        return another_name and another_id

    def is_repeated_by(self, call_id: str, arguments: str) -> bool:
        is_known = self.is_resent or call_id in self.ids  # "" is in them
        return self.complete and is_known and arguments.strip() == self.sent

    @property
    def sent(self) -> str:
        return "".join(self.raw).strip()

    def note(self, call_id: str, name: str) -> None:
        if call_id:
            self.ids.add(call_id)
            self.call_id = self.call_id or call_id
        if not self.name:
            self.name = name
        elif name != self.name and self.wrapping is None:
            # A name in pieces, or the name as far as it is known.
            self.name = name if name.startswith(self.name) else self.name + name

    def take(self, text: str) -> str:
        """Take the next characters of the arguments. Returns those behind their end."""
        if not self.complete:
            text = self._news(text)
        if self.wrapping is None:
            self.held += text
            if NONE_YET.fullmatch(self.held):
                return ""
            placeholder = PLACEHOLDER.match(self.held)
            text = self.held[placeholder.end() :] if placeholder else self.held
            self.begin(text)
        if self.wrapping is None:
            return ""
        arguments, behind = self.wrapping.feed(text)
        self.raw.append(text[: len(text) - len(behind)] if behind else text)
        self.untold.append(arguments)
        return behind

    def _news(self, text: str) -> str:
        """The arguments without those that have been sent before."""
        before = self.held.lstrip() if self.wrapping is None else "".join(self.raw[:1]).lstrip()
        if not (text.lstrip().startswith("{") and before.startswith("{") and text.lstrip().startswith(before)):
            return text
        before = before if self.wrapping is None else "".join(self.raw).lstrip()
        if not text.lstrip().startswith(before) or PLACEHOLDER.fullmatch(before):
            return text
        self.is_resent = True
        return text.lstrip().removeprefix(before)

    def take_behind(self, text: str) -> None:
        """Text behind complete arguments, which is not the beginning of others."""
        self.behind += text
        if not END_MARKS_BEGUN.fullmatch(self.behind):
            self._give_behind()

    def _give_behind(self) -> None:
        self.untold.append(self.behind)
        self.behind = ""

    def begin(self, arguments: str) -> None:
        self.held = ""
        self.wrapping = wrapping_of(arguments)

    def close(self, *, finished: bool) -> None:
        """A placeholder that nothing followed is the whole of the arguments."""
        if held := self.held.strip():
            self.begin(held)
            self.take(held)
        if not END_MARKS.fullmatch(self.behind):
            self._give_behind()
        if finished and isinstance(self.wrapping, Plain):
            self.untold.append(self.wrapping.end())

    def tell(self) -> ToolCallDelta | None:
        """What is known of the call, and was not given out yet."""
        arguments = self.untold[0] if len(self.untold) == 1 else "".join(self.untold)
        self.untold.clear()
        name = NAME.fullmatch(self.name)
        head = (self.call_id, name[1] if name else self.name)
        if head != self.told:
            self.told = head
            return ToolCallDelta(self.number, *head, arguments)
        return ToolCallDelta(self.number, "", "", arguments) if arguments else None


class Calls:
    """The calls of a reply, by the rule of this module."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._by_index: dict[object, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._last: Call | None = None  # the one that the last fragment went to
        self.any = False

    @property
    def last(self) -> int:
        """The number of the call that the last fragment went to."""
        return self._last.number if self._last is not None else 0

    def take(self, index: object, call_id: str, name: str, arguments: str) -> Sequence[ToolCallDelta]:
        """The next fragment, as deltas of one call, or of several if arguments follow complete ones."""
        call = self._by_index.get(index)
        # Nearly every fragment is in the middle of a document.
        if call is not None and call_id in call.ids and name in ("", call.name) and call.is_inside(arguments):
            call.raw.append(arguments)
            self._last = call
            return (ToolCallDelta(call.number, "", "", arguments),)
        if isinstance(index, str):
            index = int(index) if index.isdecimal() else index or None
        call = self._met(index, call_id, name)
        if call is None or call.is_followed(index, call_id, name, arguments):
            if call is not None and name in ("", call.name) and call.is_repeated_by(call_id, arguments):
                return []
            is_echo = call is not None and name == call.name and not arguments.strip()
            call = self._begin(is_echo=is_echo)
        call.note(call_id, name)
        deltas: list[ToolCallDelta] = []
        while behind := self._give(call, arguments, deltas):
            if behind.strip() == call.sent:
                break
            arguments, name = behind, call.name
            call = self._begin()
            call.note("", name)
        if call_id:
            self._by_id[call_id] = call
        if index is not None:
            self._by_index[index] = call
        self._last = call
        return deltas

    def have(self, name: str, arguments: object) -> bool:
        """There is a call like this one, which is whole."""
        sent = arguments.strip() if isinstance(arguments, str) else json.dumps(arguments)
        return any(call.name == name and (call.sent == sent or _equal(call.sent, sent)) for call in self._calls)

    def close(self, *, finished: bool) -> list[ToolCallDelta]:
        """The reply is over. `finished`: by the model's own choice."""
        deltas: list[ToolCallDelta] = []
        for call in self._calls:
            call.close(finished=finished)
            if any(call.untold) or (call.name and not call.is_echo):
                self._tell(call, deltas)
        return deltas

    def _met(self, index: object, call_id: str, name: str) -> Call | None:
        if index is not None:
            if (call := self._by_index.get(index)) is not None or name:
                return call
            return self._by_id.get(call_id) if call_id else self._last
        if call_id and ((call := self._by_id.get(call_id)) is not None or name):
            return call
        return self._last

    def _begin(self, *, is_echo: bool = False) -> Call:
        call = Call(len(self._calls), is_echo=is_echo)
        self._calls.append(call)
        return call

    def _give(self, call: Call, arguments: str, deltas: list[ToolCallDelta]) -> str:
        """Returns the object that begins behind complete arguments; any other text there goes to the call."""
        behind = call.take(arguments) if arguments else ""
        begins_another = behind.lstrip().startswith("{")
        if behind and not begins_another:
            call.take_behind(behind)
        if call.name and (call.untold or not call.is_echo):
            self._tell(call, deltas)
        return behind if begins_another else ""

    def _tell(self, call: Call, deltas: list[ToolCallDelta]) -> None:
        if (delta := call.tell()) is not None:
            self.any = True
            deltas.append(delta)


def _equal(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except (ValueError, RecursionError):
        return False
