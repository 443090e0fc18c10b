"""The part of a thread's history that a model is sent, within a budget of tokens. Pure.

A request is laid out once, and then only added to. So each request begins, byte for byte, with the one before, within a
turn as well as from turn to turn, and the provider finds it in its prefix cache. Each document is in it in full once.
An edit adds the passages that it changed, as they now stand.

The layout changes at a cut alone. A cut is due when a text in it is the document's no longer (it was written anew, or
much of it has changed), and when the budget is used up. A cut puts each document at the head, as it now stands, and
leaves older texts out. If the turns behind them take too much, it folds the oldest into a note: the user's words, and
the versions that they led to. It leaves room, so that the next cut is some turns away.

Everything is decided message by message, from the ones before. So the same history has the same layout, whoever
computes it, and in how many parts. The thread's state stays whole.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage

from chat import Document
from drafting.context.note import Note, head
from drafting.context.shelves import Shelves
from drafting.context.tokens import message_tokens
from drafting.context.turns import Entry, ThreadTurn, answer_of, fields_of
from drafting.tools import EDIT

ANSWER_SHARE = 0.15  # of the model's context, for its answer
LEAST_SHARE = 0.10  # for the turns beside the documents, also if a document written anew may not fit then
SLACK_SHARE = 0.10  # as tokens are estimated
HISTORY_SHARE = 0.3  # of the room beside the documents, for the turns and the note behind a cut
NOTE_SHARE = 0.2  # of that room, for the note
LIMITS = "context_limits"  # in a reply's metadata: the budgets that its request was cut to, and for which model

READ = AIMessage("I have read this.")  # keeps the head apart from the user's next message, as roles must alternate


class Layout:
    """The request for a history, as far as it was taken.

    `window`: the tokens that the model takes. `fixed`: those of the prompt and the tools.
    """

    def __init__(self, model: str, window: int, fixed: int) -> None:
        self._model = model
        self._window = window
        self._fixed = fixed
        self._limit = window  # of the budget
        self._taken = 0
        self._last: BaseMessage | None = None  # that was taken
        self._shelves = Shelves()
        self._note = Note()
        self._turns: list[ThreadTurn] = []  # that are not folded
        self._asking: tuple[Entry, int] | None = None  # the message whose calls are being answered, and how many are
        self._head: list[BaseMessage] = []
        self._tail: list[BaseMessage] = []
        self._head_tokens = self._tail_tokens = 0

    # The request

    @property
    def messages(self) -> list[BaseMessage]:
        return [*self._head, *self._tail]

    @property
    def tokens(self) -> int:
        """About as many as the request has."""
        return self._fixed + self._head_tokens + self._tail_tokens

    @property
    def budget(self) -> int:
        """The tokens that leave room for an answer, and if possible for the longest document anew."""
        most = (1 - SLACK_SHARE - ANSWER_SHARE) * self._window
        shown = [shelf.tokens for shelf in self._shelves.shown]
        before_rewrite = (1 - SLACK_SHARE) * self._window - max(shown, default=0)
        least = self._fixed + sum(shown) + LEAST_SHARE * self._window
        return min(self._limit, int(min(most, max(before_rewrite, least))))

    @property
    def misfit(self) -> str | None:
        """Names the text that is longer than the model can read, for a person. A contract is never sent in part."""
        if self.tokens <= self._window:
            return None
        longest = self._shelves.longest
        if longest is not None and 2 * longest.tokens > self.tokens - self._fixed:
            text = longest.newest
            what = f"The document “{text['title']}” ({len(text['content']):,} characters)"
        else:
            what = "This message"
        return (
            f"{what} is longer than the model can read at once (about {self._window:,} tokens). It would have seen a "
            "part only, so nothing was sent to it. Shorten the text, go on from an earlier message, or ask the "
            "operator for a model with a larger context."
        )

    def shorten(self) -> int | None:
        """Cut to half of the tokens that the provider found too many; the new budget, or None if that is no help."""
        before = self.tokens
        limit = min(self.budget, before) // 2
        self._bound(limit)
        return limit if self.tokens < before else None

    def _bound(self, limit: int) -> None:
        self._limit = limit
        self._cut()

    # The history

    def precedes(self, messages: Sequence[AnyMessage]) -> bool:
        """Whether this history begins with the one that was taken."""
        return self._taken == 0 or (len(messages) >= self._taken and messages[self._taken - 1] is self._last)

    def take(self, messages: Sequence[AnyMessage], documents: Sequence[Document], most: int) -> bool:
        """Take so many of the next messages, and the answers that belong to them; whether there are more."""
        self._shelves.know(documents)
        end = self._taken + most
        while self._taken < len(messages):
            message = messages[self._taken]
            if not isinstance(message, ToolMessage):
                self._settle()  # a request may have been sent here
                if self._taken >= end:
                    return True
            self._taken += 1
            self._last = message
            if isinstance(message, ToolMessage):
                self._take_answer(message)
            else:
                self._take(message)
        self._shelves.claim_rest(self._taken)
        self._settle()
        return False

    def _take(self, message: AnyMessage) -> None:
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        if isinstance(message, HumanMessage) or not self._turns:
            self._turns.append(ThreadTurn())
        if isinstance(message, HumanMessage):
            self._shelves.hear(str(message.content), self._taken)
        self._obey(message.response_metadata.get(LIMITS) or {})
        entry = Entry(message, [None] * len(calls))
        self._asking = (entry, 0)
        self._add(entry, message)

    def _take_answer(self, answer: ToolMessage) -> None:
        """Answers stand behind their calls, in the same order."""
        caller, place = self._asking or (None, 0)
        calls = caller.message.tool_calls if caller and isinstance(caller.message, AIMessage) else []
        while place < len(calls) and calls[place]["id"] != answer.tool_call_id:
            place += 1
        if caller is None or place == len(calls):
            return  # no call is known for it
        self._asking = (caller, place + 1)
        call, fields, sent = calls[place], fields_of(answer), answer
        caller.made[place] = made = self._shelves.claim(fields, call["name"], call["args"], self._taken)
        if made is not None and call["name"] == EDIT:
            passages = self._shelves.edit(made, self._taken)
            sent = answer.model_copy(update={"content": answer_of(fields | {"changed_passages": passages})})
        elif made is not None:
            self._shelves.put(made, self._taken)
        self._add(Entry(answer, [made]), sent)

    def _add(self, entry: Entry, sent: BaseMessage) -> None:
        self._turns[-1].entries.append(entry)
        self._tail.append(sent)
        self._tail_tokens += message_tokens(sent)

    def _obey(self, found: Mapping[str, Any]) -> None:
        """The request of this reply was cut so often. A layout that is still at hand has been, too."""
        if found.get("model") == self._model:
            for limit in found["limits"]:
                if limit < self._limit:
                    self._bound(limit)

    # The cut

    def _settle(self) -> None:
        if self._shelves.are_stale or self.tokens > self.budget:
            self._cut()

    def _cut(self) -> None:
        *over, current = self._turns
        now = current.without_texts(is_over=False)
        taken = self._fixed + current.tokens
        self._shelves.show_again(taken, self.budget)
        shown = self._shelves.shown
        room = max(0, self.budget - taken - sum(shelf.tokens for shelf in shown))
        kept = self._fold(over, room)
        hidden = [shelf.newest for shelf in self._shelves.hidden]
        texts = [text for shelf in shown for text in shelf.texts]
        self._head = [HumanMessage(head(texts, hidden, self._note)), READ] if texts or self._note.lines else []
        self._head_tokens = sum(map(message_tokens, self._head))
        self._tail = [*chain.from_iterable(kept), *now]
        self._tail_tokens = sum(turn.tokens for turn in self._turns)

    def _fold(self, over: Sequence[ThreadTurn], room: int) -> list[list[BaseMessage]]:
        """Fold the oldest turns until the others and the note leave half of the room; the messages of the others."""
        messages = [turn.without_texts(is_over=True) for turn in over]
        tokens = sum(turn.tokens for turn in over)
        folded = 0
        while folded < len(over) and self._note.tokens + tokens > HISTORY_SHARE * room:
            turn = over[folded]
            self._note.fold(turn.words, turn.made, int(NOTE_SHARE * room))
            tokens -= turn.tokens
            folded += 1
        del self._turns[:folded]
        return messages[folded:]
