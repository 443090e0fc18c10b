"""What lost runs add to the history of a thread. Pure."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from chat import Document, Item, LostRun
from drafting.context.normal_form import LOST_ANSWER
from drafting.tools import WRITE


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
