"""The LangGraph graph: its state, its two nodes, the prompt; it turns one message into events.

The tokens go from the model to `emit` directly, not through a stream mode of the graph, which would cost about half of
the work of a token. Whatever stops a turn (the model's error, a person, the time limit) ends the node, not the graph:
so the state always holds what the reader has seen, and the next message just works.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, Literal, Protocol, TypedDict

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
    Finished,
    FinishReason,
    Hear,
    LostRun,
    ModelDelta,
    ModelError,
    Outcome,
    RunFailure,
    StopCause,
    Turn,
    Usage,
    graph_thread_id,
)
from drafting.reply import Reply
from drafting.tools import TOOLS, WRITE, Documents
from drafting.watchdog import Watchdog

MODEL_CALLS = 8  # a turn's bound; the last one is not offered the tools, so that it closes with words
# A whole copy of a channel's value is stored once in so many updates, to bound what must be replayed. A turn has four
# of the messages: at 1000, 100 turns take 1.5 times their text, at 200 2.7 times, and load as fast. See
# bench/stored_bytes.py.
SNAPSHOT_FREQUENCY = 1000

MESSAGE_BYTES = 3000  # of a message or a document beside its text

PROMPT = """You draft legal documents in a conversation, as a careful lawyer's associate would.

Drafting
- Write documents with the tools, never in your reply: write_document for a new document or a rewrite, edit_document to
  change passages. The user sees the document beside the conversation as you write it. Keep one document under one
  title; a changed document is a new version of it.
- Draft at once, with sensible assumptions. Ask first only if you cannot draft without the answer, once and
  briefly.
- Never invent facts. Where a name, date, amount or address is not known, put a placeholder in brackets: [Company Name].
- Draft complete documents: a title, the parties, definitions, numbered clauses with headings, the usual closing
  provisions and signature blocks. Use defined terms consistently and keep cross references right. Use Markdown:
  "# " for the title, "## 1. Heading" for clauses, "1.1" for sub-clauses.
- Name the governing law you assumed, in the document and in your reply.
- When asked for a change, change what was asked and what follows from it, and nothing else. Pass to edit_document the
  exact text to find, long enough to stand only once.

Replying
- Before a tool call say in a sentence what you are about to draft. Afterwards say in a few sentences what you assumed,
  which placeholders are to be filled and what the user may want to decide. Do not repeat the document.
- Say once in a conversation that a lawyer should review the document before it is signed; do not repeat it.
- A tool's answer with an "error" means that nothing was done: correct the call and try again.
- Answer in the user's language."""

SYSTEM = SystemMessage(PROMPT)

LOST_ANSWER = '{"error": "This call was interrupted; it is not known whether it was carried out."}'


class ChatModel(Protocol):
    """What the agent needs of a model."""

    @property
    def name(self) -> str: ...

    async def reply(self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear) -> Finished:
        """Have the reply's deltas heard as they come; returns how it ended. Raises ModelError."""


def append(state: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    """The reducer of both channels; associative over batches, as DeltaChannel asks."""
    return [*state, *(value for write in writes for value in write)]


class GraphState(TypedDict):
    """A thread as the graph keeps it. Deltas are stored, so that a thread's storage does not grow with its square."""

    messages: Annotated[list[AnyMessage], DeltaChannel(append, list, snapshot_frequency=SNAPSHOT_FREQUENCY)]
    documents: Annotated[list[Document], DeltaChannel(append, list, snapshot_frequency=SNAPSHOT_FREQUENCY)]


@dataclass(slots=True)
class Progress:
    """What a turn carries from node to node beside the state, and what comes of it."""

    emit: Emit
    stopping: asyncio.Future[StopCause]
    reply: Reply | None = None
    next_item: int = 0
    model_calls: int = 0
    usage: Usage | None = None
    untold: int = 0  # about how many tokens the calls took that ended without a word of their usage
    finish: FinishReason | None = None
    error: RunFailure | None = None
    unfinished: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Nothing more is to be asked of the model."""
        return self.error is not None or self.stopping.done() or self.finish in ("length", "content_filter")

    def count(self, usage: Usage | None) -> None:
        if usage is None:
            return
        before = self.usage or {"input_tokens": 0, "output_tokens": 0}
        self.usage = {
            "input_tokens": before["input_tokens"] + usage["input_tokens"],
            "output_tokens": before["output_tokens"] + usage["output_tokens"],
        }


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
    ) -> None:
        self._model = model
        self._remember = remember
        self._first_token_timeout_s = first_token_timeout_s
        self._idle_timeout_s = idle_timeout_s
        graph = StateGraph(GraphState, context_schema=Progress)
        # Each node says itself where it goes on, and the turn ends where none does: a conditional edge would read the
        # state anew, and a function of it that is not async would take a thread.
        graph.add_node("agent", self._agent)
        graph.add_node("tools", _tools)
        graph.add_edge(START, "agent")
        self._graph = graph.compile(checkpointer=saver)

    async def __call__(self, turn: Turn, emit: Emit, stopping: asyncio.Future[StopCause]) -> Outcome:
        """Raises what the saver raises; a fault of the model is part of the outcome."""
        thread = graph_thread_id(turn.owner, turn.thread_id)
        config: RunnableConfig = {
            "configurable": {"thread_id": thread},
            "metadata": {"run_id": turn.run_id},
            "recursion_limit": 2 * MODEL_CALLS + 2,
        }
        if turn.branches:
            config["configurable"]["checkpoint_id"] = turn.checkpoint_id
        elif turn.checkpoint_id is not None:
            config["configurable"][STORED_LAST] = turn.checkpoint_id
        progress = Progress(emit, stopping)
        remembered, documents = _of_lost_runs(turn.lost)
        message = HumanMessage(turn.message, id=turn.run_id)
        # "exit": one checkpoint a turn. It is committed with the turn's rows, or not at all.
        stages = self._graph.astream(
            {"messages": [*remembered, message], "documents": documents},
            config,
            context=progress,
            stream_mode="values",
            durability="exit",
        )
        state: dict[str, Any] = {}
        async for state in stages:  # noqa: B007  # the last of them is the state at the end
            pass
        return Outcome(
            reason=_end_reason(progress),
            error=progress.error,
            unfinished=frozenset(progress.unfinished),
            usage=progress.usage,
            untold=progress.untold,
            checkpoint_id=self._remember(thread, state, _size(state)),
        )

    async def state(self, owner: str, thread_id: str) -> Mapping[str, Any]:
        """The thread's newest state: `messages` and `documents`."""
        snapshot = await self._graph.aget_state({"configurable": {"thread_id": graph_thread_id(owner, thread_id)}})
        values: Mapping[str, Any] = snapshot.values
        return values

    async def _agent(self, state: GraphState, runtime: Runtime[Progress]) -> dict[str, Any] | Command[Literal["tools"]]:
        progress = runtime.context
        progress.model_calls += 1
        progress.finish = None
        reply = progress.reply = Reply(Documents(state["documents"]), progress.next_item, progress.emit)
        asked, told = [SYSTEM, *mended(state["messages"])], progress.usage
        try:
            await self._listen(asked, reply, progress)
        except RunFailure as failure:
            progress.error = failure
        reply.close(finished=progress.finish in ("stop", "tool_calls"))
        progress.next_item = reply.next_item
        progress.unfinished |= reply.unfinished
        calls = [{"id": call.call_id, "name": call.name, "args": call.arguments} for call in reply.calls]
        message = AIMessage(reply.text, tool_calls=calls)
        said = bool(reply.text or calls)
        if progress.usage is told and (said or progress.error is None):  # else the provider did not take the call
            progress.untold += count_tokens_approximately([*asked, message])
        if not said:
            return {}
        if progress.finish is None:
            message.response_metadata["interrupted"] = True
        update = {"messages": [message]}
        return Command(update=update, goto="tools") if reply.calls else update

    async def _listen(self, messages: Sequence[BaseMessage], reply: Reply, progress: Progress) -> None:
        """Feed the reply with the model's deltas until its end, a stop, or too long a silence.

        The limits on silence are kept here alone, for every model alike; a model limits only its connecting. It has a
        task of its own: what arrives wakes the few frames of that task, not those of the graph around this node.
        """
        if progress.stopping.done():
            return

        def hear(deltas: Sequence[ModelDelta]) -> None:
            reply.feed(deltas)
            watchdog.beat()

        tools = TOOLS if progress.model_calls < MODEL_CALLS else ()
        try:
            async with Watchdog(first_s=self._first_token_timeout_s, idle_s=self._idle_timeout_s) as watchdog:
                progress.stopping.add_done_callback(watchdog.stop)
                try:
                    finished = await asyncio.create_task(self._model.reply(messages, tools, hear), name="model")
                finally:
                    progress.stopping.remove_done_callback(watchdog.stop)
        except TimeoutError as silence:
            if progress.stopping.done():
                return
            if reply.begun:
                raise ModelError("model_idle_timeout", "The model fell silent.", retryable=True) from silence
            late = "The model did not begin to answer in time."
            raise ModelError("model_first_token_timeout", late, retryable=True) from silence
        progress.finish = finished.reason
        progress.count(finished.usage)


async def _tools(state: GraphState, runtime: Runtime[Progress]) -> dict[str, Any] | Command[Literal["agent"]]:
    """Answer the reply's calls. They were carried out as they arrived, since the reader watches the document."""
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
    if progress.finish in (None, "tool_calls") and progress.stopping.done():
        return "cancelled"
    if progress.finish == "content_filter":
        return "content_filter"
    return "stop" if progress.finish == "stop" else "length"


def _size(state: Mapping[str, Any]) -> int:
    """About how many bytes a state takes. A document stands in it twice, as the model wrote it in its call, too."""
    messages, documents = state["messages"], state["documents"]
    text = sum(len(message.content) for message in messages) + 2 * sum(len(each["content"]) for each in documents)
    return text + MESSAGE_BYTES * (len(messages) + len(documents))


def _of_lost_runs(lost: Sequence[LostRun]) -> tuple[list[AnyMessage], list[Document]]:
    """What runs said that left no state, as messages and documents: the reader has seen it, so the model must know."""
    messages: list[AnyMessage] = []
    documents: list[Document] = []
    for run in lost:
        messages.append(HumanMessage(run.message, id=run.run_id))
        text = "".join(item["content"] for item in run.items if item["type"] == "message")
        calls, answers = [], []
        for item in run.items:
            if item["type"] != "doc":
                continue
            call_id = f"call_{run.run_id}_{item['item']}"
            arguments = {"title": item["title"], "content": item["content"]}
            calls.append({"id": call_id, "name": WRITE, "args": arguments})
            answers.append(ToolMessage(LOST_ANSWER, tool_call_id=call_id, name=WRITE))
            documents.append(
                {
                    "doc_id": item["doc_id"],
                    "title": item["title"],
                    "version": item["version"],
                    "content": item["content"],
                    "complete": item["complete"],
                }
            )
        if text or calls:
            reply = AIMessage(text, tool_calls=calls, response_metadata={"interrupted": True})
            messages += [reply, *answers]
    return messages, documents


def mended(messages: Sequence[AnyMessage]) -> list[BaseMessage]:
    """The history as a model takes it: every tool call has its answer right behind it, every answer its call.

    A turn that was killed between the two leaves a call without one, and every later request of the thread would be
    refused for it (400).
    """
    history: list[BaseMessage] = []
    for place, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            continue
        history.append(message)
        if isinstance(message, AIMessage) and message.tool_calls:
            following = takewhile(lambda answer: isinstance(answer, ToolMessage), messages[place + 1 :])
            answers = {answer.tool_call_id: answer for answer in following if isinstance(answer, ToolMessage)}
            for call in message.tool_calls:
                call_id = call["id"] or ""
                history.append(answers.get(call_id) or ToolMessage(LOST_ANSWER, tool_call_id=call_id))
    return history
