"""The messages that a model is sent, made of the history of a thread, and what lost runs add to that history. Pure."""

from collections.abc import Sequence
from itertools import takewhile

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage

from chat import Document, Item, LostRun
from drafting.tools import WRITE

LOST_ANSWER = '{"error": "This call was interrupted; it is not known whether it was carried out."}'


def mended(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The history as a provider accepts it: each tool call is followed by its answer, and each answer follows its call.

    A process that dies between the two leaves a call without an answer. Without this, the provider would refuse every
    later request of the thread (400).
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


def remembered(lost: Sequence[LostRun]) -> tuple[list[AnyMessage], list[Document]]:
    """The messages and documents of runs that left no state. The reader has seen them, so the model must know them."""
    messages: list[AnyMessage] = []
    documents: list[Document] = []
    for run in lost:
        messages.append(HumanMessage(run.message, id=run.run_id))
        text = "".join(item["content"] for item in run.items if item["type"] == "message")
        drafts = [item for item in run.items if item["type"] == "doc"]
        documents += map(_document, drafts)
        calls = [
            {
                "id": f"call_{run.run_id}_{item['item']}",
                "name": WRITE,
                "args": {"title": item["title"], "content": item["content"]},
            }
            for item in drafts
        ]
        if text or calls:
            messages.append(AIMessage(text, tool_calls=calls, response_metadata={"interrupted": True}))
            messages += [ToolMessage(LOST_ANSWER, tool_call_id=call["id"], name=WRITE) for call in calls]
    return messages, documents


def _document(item: Item) -> Document:
    return {
        "doc_id": item["doc_id"],
        "title": item["title"],
        "version": item["version"],
        "content": item["content"],
        "complete": item["complete"],
    }
