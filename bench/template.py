"""The template: a chat service as users of FastAPI and LangGraph write it, at its best.

`graph.astream(stream_mode="messages")` on ChatOpenAI, the official saver on a pool, StreamingResponse, and
`asyncio.create_task` to save the turn. It has the service's prompt and tools, so that the model gets the same request.
"""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field

from agent import PROMPT
from drafting.tools import TOOLS

CREATE_TABLE = """CREATE TABLE IF NOT EXISTS messages (
    id bigserial PRIMARY KEY, thread_id text NOT NULL, role text NOT NULL, content text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now())"""
SAVE_MESSAGE = "INSERT INTO messages (thread_id, role, content) VALUES (%s, %s, %s)"


class ChatRequest(BaseModel):
    message: str = Field(min_length=1, max_length=32_000)
    thread_id: str | None = None


def write_document(title: str, content: str) -> str:
    """Write a complete document in Markdown."""
    return json.dumps({"title": title, "characters": len(content)})


def edit_document(doc_id: str, edits: list[dict[str, str]]) -> str:
    """Change passages of a document's newest version."""
    return json.dumps({"doc_id": doc_id, "edits": len(edits)})


def build_graph(saver: AsyncPostgresSaver) -> Any:
    model = ChatOpenAI(model=os.environ["OPENAI_MODEL"], streaming=True, stream_usage=True).bind_tools(
        list(map(dict, TOOLS))
    )

    async def agent(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [await model.ainvoke([SystemMessage(PROMPT), *state["messages"]])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode([write_document, edit_document]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(checkpointer=saver)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncConnectionPool(
        os.environ["DATABASE_URL"],
        max_size=20,
        open=False,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    ) as pool:
        saver = AsyncPostgresSaver(pool)  # type: ignore[arg-type]  # its rows are dicts, by the row_factory
        await saver.setup()
        async with pool.connection() as connection:
            await connection.execute(CREATE_TABLE)
        app.state.pool = pool
        app.state.graph = build_graph(saver)
        yield


app = FastAPI(lifespan=lifespan)
background_tasks: set[asyncio.Task[None]] = set()


def in_background(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    background_tasks.add(task)
    task.add_done_callback(background_tasks.discard)


async def save_message(thread_id: str, role: str, content: str) -> None:
    async with app.state.pool.connection() as connection:
        await connection.execute(SAVE_MESSAGE, (thread_id, role, content))


def event(**data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def stream_reply(thread_id: str, message: str) -> AsyncIterator[str]:
    yield event(type="start", thread_id=thread_id)
    in_background(save_message(thread_id, "user", message))
    reply = ""
    async for chunk, _ in app.state.graph.astream(
        {"messages": [HumanMessage(message)]},
        {"configurable": {"thread_id": thread_id}},
        stream_mode="messages",
    ):
        if isinstance(chunk, AIMessageChunk) and chunk.text:
            reply += chunk.text
            yield event(type="message", content=chunk.text)
    in_background(save_message(thread_id, "assistant", reply))
    yield event(type="end")


@app.post("/api/chat")
async def chat(request: ChatRequest) -> StreamingResponse:
    thread_id = request.thread_id or str(uuid.uuid4())
    return StreamingResponse(
        stream_reply(thread_id, request.message),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
