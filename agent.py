"""The agent: the prompt, the port to a model, and the LangGraph graph that turns one message into pieces of a reply.

The graph has two nodes. `agent` calls the model and feeds a Reply with its deltas; `tools` puts the answers of the tool
calls into the state. The rest of drafting is in `drafting/`.

Pieces go from the model to `emit` directly. A stream mode of the graph would cost about as much again for each token.
Whatever stops a turn (the model's error, a person, the time limit) ends the node and not the graph. So the state always
holds the text that the reader has seen, and the thread takes its next message as usual.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command

from chat import (
    STORED_LAST,
    Document,
    Emit,
    EndReason,
    FinishReason,
    Outcome,
    RunFailure,
    StopCause,
    Turn,
    Usage,
    graph_thread_id,
)
from drafting.context.give_back import OPAQUE, opaque_bytes, to_keep
from drafting.context.layout import LIMITS
from drafting.context.layouts import Layouts
from drafting.context.lost_runs import remembered
from drafting.context.normal_form import EARLIER_REFUSED, REFUSED, without_earlier, without_refused
from drafting.context.tokens import message_tokens, tools_tokens
from drafting.deltas import ModelDelta, ModelError
from drafting.editing.versions import Documents
from drafting.port import ChatModel
from drafting.provider.reported import log_reported
from drafting.provider.usage import added
from drafting.reply import Reply
from drafting.tool_use import ToolUse
from drafting.tools import TOOLS
from drafting.watchdog import Watchdog

MODEL_CALLS = 8  # the most of one turn; the last may not call a tool, so that the turn closes with words
# After this many updates of a channel its whole value is stored again, which bounds the updates to replay. A turn
# updates the messages four times. At 1000, 100 turns take 1.5 times their text; at 200 they take 2.7 times, and load
# as fast. See bench/stored_bytes.py.
SNAPSHOT_FREQUENCY = 1000

EMPTY = "The model answered with nothing; please send the message again."
REJECTED = ("model_rejected", "model_context")  # may be for the content of the message

MESSAGE_BYTES = 3000  # in memory, of a message or a document beside its text

PROMPT = """You draft legal documents in a conversation, as a careful lawyer's associate would.

Drafting
- Write documents with the tools, never in your reply: write_document for a new document or a rewrite, edit_document to
  change passages or the title. The user sees the document beside the conversation as you write it. Keep one document
  under one title, unless the user wants another; a changed document is a new version of it.
- Draft at once, with sensible assumptions. Ask first only if you cannot draft without the answer, once and
  briefly.
- Never invent facts. Where a name, date, amount or address is not known, put a placeholder in brackets: [Company Name].
- Draft complete documents: a title, the parties, definitions, numbered clauses with headings, the usual closing
  provisions and signature blocks. Use defined terms consistently and keep cross references right. Use Markdown:
  "# " for the title, "## 1. Heading" for clauses, "1.1" for sub-clauses.
- Name the governing law you assumed, in the document and in your reply.
- When asked for a change, change what was asked and what follows from it, and nothing else. Pass to edit_document the
  exact text to find, long enough to stand only once. Send all edits in one call: each means the text before the call,
  and none may overlap another.
- A version that broke off is not complete. To go on, edit it: find its last words, and replace them with the same words
  and the rest.

Replying
- Before a tool call say in a sentence what you are about to draft. Afterwards say in a few sentences what you assumed,
  which placeholders are to be filled and what the user may want to decide. Do not repeat the document.
- Say once in a conversation that a lawyer should review the document before it is signed; do not repeat it.
- A tool's answer with an "error" says what was wrong and what to do: correct the call and try again.
- Answer in the user's language."""

SYSTEM = SystemMessage(PROMPT)

TOO_LONG_SENT = (
    "a request of about %d tokens was too long for %s; it is sent again with at most %d, and the thread keeps to that: "
    "set MODEL_CONTEXT_TOKENS to the tokens that the model takes"
)

EARLIER_REFUSED_SENT = "%s refuses the content of an earlier turn: the turns before this one are left out from now on"

log = logging.getLogger("draftstream.agent")


NO_OTHERS: Mapping[str, ChatModel] = {}


def append(state: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    """The reducer of both channels; associative over batches, as DeltaChannel asks."""
    return [*state, *(value for write in writes for value in write)]


class GraphState(TypedDict):
    """A thread as the graph keeps it. Only deltas are stored: whole values would grow with the square of its length."""

    messages: Annotated[list[AnyMessage], DeltaChannel(append, list, snapshot_frequency=SNAPSHOT_FREQUENCY)]
    documents: Annotated[list[Document], DeltaChannel(append, list, snapshot_frequency=SNAPSHOT_FREQUENCY)]


@dataclass(slots=True)
class Progress:
    """The context of one turn, passed from node to node beside the state: its ports, its counts, its result so far."""

    thread: str  # its name in LangGraph's tables
    emit: Emit
    stopping: asyncio.Future[StopCause]
    model: ChatModel
    asked: Sequence[BaseMessage] = ()  # the newest request
    limits: list[int] = field(default_factory=list)  # the budgets of tokens that the newest request was cut to
    leaves_earlier_out: bool = False  # its provider had refused the content of an earlier turn
    answered_by: str | None = None  # if it is not the model that was asked
    reply: Reply | None = None
    next_item: int = 0
    model_calls: int = 0
    usage: Usage | None = None
    estimated_tokens: int = 0  # of the calls whose usage the provider did not report
    finish: FinishReason | None = None
    error: RunFailure | None = None
    has_drafted: bool = False  # a document, so that the model need not say more
    unfinished: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """The model is not to be called again in this turn."""
        return self.error is not None or self.stopping.done() or self.finish in ("length", "content_filter")

    def count(self, usage: Usage | None) -> None:
        if usage is not None:
            self.usage = added(self.usage, usage)


class Agent:
    """Carries out turns: call it with a Turn, where its pieces go, and a future that stops it when it resolves."""

    def __init__(
        self,
        model: ChatModel,
        saver: BaseCheckpointSaver[str],
        *,
        remember: Callable[[str, Mapping[str, Any], int], str | None],
        first_token_timeout_s: float,
        idle_timeout_s: float,
        context_tokens: Mapping[str, int] | None = None,
        others: Mapping[str, ChatModel] = NO_OTHERS,
    ) -> None:
        """`context_tokens`: as many as each model takes. Without it a model gets each history as it is."""
        fixed = message_tokens(SYSTEM) + tools_tokens(TOOLS)
        self._layouts = None if context_tokens is None else Layouts(context_tokens, fixed)
        self._model = model
        self._others = others  # that a turn may name
        self._remember = remember
        self._tool_use = ToolUse()
        self._first_token_timeout_s = first_token_timeout_s
        self._idle_timeout_s = idle_timeout_s
        graph = StateGraph(GraphState, context_schema=Progress)
        # Each node returns where the turn goes on, and the turn ends where none does. A conditional edge would read the
        # state again, and a function of it that is not async would take a thread.
        graph.add_node("agent", self._agent)
        graph.add_node("tools", _tools)
        graph.add_edge(START, "agent")
        self._graph = graph.compile(checkpointer=saver)

    async def __call__(self, turn: Turn, emit: Emit, stopping: asyncio.Future[StopCause]) -> Outcome:
        """Raises the errors of the saver. A fault of the model is part of the outcome."""
        thread = graph_thread_id(turn.owner, turn.thread_id)
        model = self._model if turn.model is None else self._others[turn.model]
        progress = Progress(thread, emit, stopping, model)
        messages, documents = remembered(turn.lost)
        messages.append(HumanMessage(turn.message, id=turn.run_id))
        # "exit": one checkpoint a turn. It is committed with the turn's rows, or not at all.
        states = self._graph.astream(
            {"messages": messages, "documents": documents},
            _config(turn),
            context=progress,
            stream_mode="values",
            durability="exit",
        )
        state: dict[str, Any] = {}
        async for state in states:  # noqa: B007  # the last of them is the state at the end
            pass
        return Outcome(
            reason=_end_reason(progress),
            error=progress.error,
            unfinished=frozenset(progress.unfinished),
            usage=progress.usage,
            estimated_tokens=progress.estimated_tokens,
            model=progress.answered_by,
            checkpoint_id=self._remember(thread, state, _size(state)),
        )

    async def state(self, owner: str, thread_id: str) -> Mapping[str, Any]:
        """The thread's newest state: `messages` and `documents`."""
        snapshot = await self._graph.aget_state({"configurable": {"thread_id": graph_thread_id(owner, thread_id)}})
        values: Mapping[str, Any] = snapshot.values
        return values

    async def _agent(self, state: GraphState, runtime: Runtime[Progress]) -> dict[str, Any] | Command[Literal["tools"]]:
        """The node that calls the model once. The progress says how its reply ended."""
        progress = runtime.context
        progress.model_calls += 1
        progress.finish = None
        reply = progress.reply = Reply(Documents(state["documents"]), progress.next_item, progress.emit)
        usage_before = progress.usage
        try:
            await self._ask(state, reply, progress)
        except RunFailure as failure:
            progress.error = failure
        reply.close(finished=progress.finish in ("stop", "tool_calls"))
        progress.next_item = reply.next_item
        progress.unfinished |= reply.unfinished
        has_documents = bool(state["documents"])
        answered_by = progress.answered_by or progress.model.name
        self._tool_use.note(answered_by, reply.text, has_called=bool(reply.calls), has_documents=has_documents)
        calls = [{"id": call.call_id, "name": call.name, "args": call.arguments} for call in reply.calls]
        message = AIMessage(reply.text, tool_calls=calls)
        if isinstance(progress.error, ModelError):
            log_reported(progress.error, [*progress.asked, message])
        is_empty = not reply.text.strip() and not calls
        was_refused = is_empty and progress.error is not None  # by the provider, which counts no tokens for it then
        if is_empty and progress.finish in ("stop", "tool_calls") and not progress.has_drafted:
            progress.error = ModelError("model_empty", EMPTY, retryable=True)
        progress.has_drafted |= bool(reply.new_documents)
        if progress.usage is usage_before and not was_refused:
            progress.estimated_tokens += count_tokens_approximately([*progress.asked, message])
        message.response_metadata = _marks(progress, is_empty=is_empty)
        if is_empty and REFUSED not in message.response_metadata:
            return {}
        if opaque := to_keep(reply.opaque(), finished=progress.finish is not None):
            message.additional_kwargs[OPAQUE] = opaque
        update = {"messages": [message]}
        return Command(update=update, goto="tools") if reply.calls else update

    async def _ask(self, state: GraphState, reply: Reply, progress: Progress) -> None:
        """Send the model the history, and the turn alone if the provider refuses the content of an earlier turn."""
        history = without_refused(state["messages"])
        try:
            await self._send(history, state["documents"], reply, progress)
        except ModelError as error:
            is_first = progress.model_calls == 1 and not reply.begun
            if error.code != "content_filter" or not is_first or (turn := without_earlier(history)) is None:
                raise
            log_reported(error, progress.asked)
            await self._send(turn, state["documents"], reply, progress)
            progress.leaves_earlier_out = True
            log.warning(EARLIER_REFUSED_SENT, progress.model.name)

    async def _send(
        self, history: Sequence[AnyMessage], documents: Sequence[Document], reply: Reply, progress: Progress
    ) -> None:
        """Send what the model takes of the history, and less of it when the provider says that it is too long."""
        progress.limits = []
        if self._layouts is None:
            progress.asked = [SYSTEM, *history]
            await self._listen(progress.asked, reply, progress)
            return None
        place = (progress.thread, progress.model.name)
        layout = await self._layouts.layout(*place, history, documents)
        if layout.misfit is not None:
            raise ModelError("model_context", layout.misfit, retryable=False)
        while True:
            progress.asked = [SYSTEM, *layout.messages]
            try:
                return await self._listen(progress.asked, reply, progress)
            except ModelError as error:
                tokens = layout.tokens
                if error.code != "model_context" or reply.begun or (limit := layout.shorten()) is None:
                    self._layouts.forget(*place)  # it may be shorter than the state says
                    raise
                progress.limits.append(limit)
                log_reported(error, progress.asked)
                log.warning(TOO_LONG_SENT, tokens, progress.model.name, limit)

    async def _listen(self, messages: Sequence[BaseMessage], reply: Reply, progress: Progress) -> None:
        """Feed the reply with the model's deltas until its end, a stop, or too long a silence.

        The limits on silence are kept here, for every model alike; a model limits only its own connecting. The model
        has a task of its own: an arrival then wakes its few frames, and not those of the graph around this node.
        """
        if progress.stopping.done():
            return

        def hear(deltas: Sequence[ModelDelta]) -> None:
            reply.feed(deltas)
            watchdog.beat()

        may_call = progress.model_calls < MODEL_CALLS
        try:
            async with Watchdog(first_s=self._first_token_timeout_s, idle_s=self._idle_timeout_s) as watchdog:
                progress.stopping.add_done_callback(watchdog.stop)
                try:
                    finished = await asyncio.create_task(
                        progress.model.reply(messages, TOOLS, hear, may_call=may_call), name="model"
                    )
                finally:
                    progress.stopping.remove_done_callback(watchdog.stop)
        except TimeoutError as silence:
            if progress.stopping.done():
                return
            if reply.begun:
                silent = "The model fell silent; the reply so far is kept. You can send the message again."
                raise ModelError("model_idle_timeout", silent, retryable=True) from silence
            late = "The model did not begin to answer in time; please send the message again."
            raise ModelError("model_first_token_timeout", late, retryable=True) from silence
        progress.finish = finished.reason
        progress.answered_by = finished.model
        progress.count(finished.usage)


def _config(turn: Turn) -> RunnableConfig:
    """Names the thread, and the state to start from where that is not simply the thread's newest."""
    configurable: dict[str, str | None] = {"thread_id": graph_thread_id(turn.owner, turn.thread_id)}
    if turn.branches:
        configurable["checkpoint_id"] = turn.checkpoint_id
    elif turn.checkpoint_id is not None:
        configurable[STORED_LAST] = turn.checkpoint_id
    return {
        "configurable": configurable,
        "metadata": {"run_id": turn.run_id},
        "recursion_limit": 2 * MODEL_CALLS + 2,
    }


async def _tools(state: GraphState, runtime: Runtime[Progress]) -> dict[str, Any] | Command[Literal["agent"]]:
    """The node that answers the reply's tool calls. They were carried out while they arrived, as the reader watches."""
    progress = runtime.context
    reply = progress.reply
    if reply is None:
        return {}
    answers = [ToolMessage(call.answer, tool_call_id=call.call_id, name=call.name) for call in reply.calls]
    update = {"messages": answers, "documents": reply.new_documents}
    over = progress.over or progress.model_calls >= MODEL_CALLS
    return update if over else Command(update=update, goto="agent")


def _end_reason(progress: Progress) -> EndReason | None:
    if progress.error is not None:
        return None
    if progress.finish in ("length", "content_filter"):
        return progress.finish
    has_calls = progress.reply is not None and bool(progress.reply.calls)  # whose answers the model has not seen
    if progress.finish is None or (has_calls and progress.stopping.done()):
        return "cancelled"
    return "length" if has_calls else "stop"


def _marks(progress: Progress, *, is_empty: bool) -> dict[str, Any]:
    """What later requests must know of a reply, for its `response_metadata`."""
    marks = {
        REFUSED: _refusal(progress, is_empty=is_empty),
        EARLIER_REFUSED: progress.leaves_earlier_out,
        "interrupted": progress.finish is None,
        LIMITS: {"model": progress.model.name, "limits": progress.limits} if progress.limits else None,
    }
    return {name: mark for name, mark in marks.items() if mark}


def _refusal(progress: Progress, *, is_empty: bool) -> str | None:
    """The reason why later requests leave this turn out, if its provider refused it for its content.

    Some providers say only that they rejected the request. Then it is the message if the turn's first request was
    rejected: the history before it had been taken.
    """
    if progress.finish == "content_filter":
        return "content_filter"
    code = progress.error.code if progress.error is not None else None
    is_first = progress.model_calls == 1 and is_empty
    return code if code == "content_filter" or (code in REJECTED and is_first) else None


def _size(state: Mapping[str, Any]) -> int:
    """The rough size of a state in memory, in bytes. A document is in it twice: its text is also in the tool call."""
    messages, documents = state["messages"], state["documents"]
    text = sum(len(message.content) + opaque_bytes(message) for message in messages) + 2 * sum(
        len(each["content"]) for each in documents
    )
    return text + MESSAGE_BYTES * (len(messages) + len(documents))
