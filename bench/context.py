"""A thread of 300 turns about a contract of 60 KB, which is written anew 60 times, on a provider with 32,000 tokens.

Over the wire, with a real PostgreSQL: the tokens of a request, the share that a prefix cache would have had, and the CPU
of a turn, for the first and the last turns. Run: `python bench/context.py`. `make bench` does not, as it takes minutes.
"""

import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import orjson
from long_thread import SAID, PrefixCache, Script, tokens
from openai_server import OpenAIServer, finish, text, tool

from agent import Agent
from chat import StopCause, Turn
from drafting.provider.openai_model import OpenAIModel
from storage.embedded import embedded_postgres
from store import open_store
from threads.checkpointer import Checkpointer

TURNS = 300
CHARS = 60_000
WINDOWS = (32_000, 128_000)
PART = 50  # turns, at the beginning and at the end
HEADER = (
    "| context | good turns | refused | tokens a request | most | with its answer | prefix | CPU a turn, first | last |"
)


@dataclass
class Figures:
    window: int
    good: int = 0
    refused: int = 0
    cache: PrefixCache = field(default_factory=PrefixCache)
    cpu_s: list[float] = field(default_factory=list)
    most_with_answer: int = 0  # tokens of a request and the document behind it

    def read(self, server: OpenAIServer, seen: int, answer: int) -> None:
        """Note the requests since `seen`; `answer`: the tokens of the document or the edit behind the first."""
        for number, request in enumerate(server.requests[seen:]):
            body = {"tools": request.body["tools"], "messages": request.body["messages"]}  # as a model reads them
            read = orjson.dumps(body).decode()
            count = tokens(read.replace("\\n", "\n"))
            self.cache.read(read, count)
            if number == 0:
                self.most_with_answer = max(self.most_with_answer, count + answer)

    def row(self) -> str:
        first, last = (1000 * statistics.median(part) for part in (self.cpu_s[:PART], self.cpu_s[-PART:]))
        mean = self.cache.tokens // len(self.cache.requests)
        return (
            f"| {self.window:,} | {self.good} of {TURNS} | {self.refused} | {mean:,} | {self.cache.most:,} | "
            f"{self.most_with_answer:,} | {self.cache.share:.1%} | {first:.1f} ms | {last:.1f} ms |"
        )


async def measure(agent: Agent, window: int, server: OpenAIServer) -> Figures:
    script, figures = Script(CHARS), Figures(window)
    server.context_tokens = window
    last = None
    for turn in range(1, TURNS + 1):
        call = script.call(turn)
        if call is not None:
            server.reply(tool(*call, cut=1000), finish("tool_calls"))
        server.reply(text(SAID), finish())
        seen = len(server.requests)
        stopping: asyncio.Future[StopCause] = asyncio.get_running_loop().create_future()
        asked = Turn("bench", f"t{window}", str(uuid.uuid4()), script.message(turn), checkpoint_id=last)
        before = time.thread_time()
        outcome = await agent(asked, lambda _: None, stopping)
        figures.cpu_s.append(time.thread_time() - before)
        last = outcome.checkpoint_id
        figures.good += outcome.reason == "stop"
        figures.read(server, seen, tokens(call[1].replace("\\n", "\n")) if call else 0)
    figures.refused = len(server.refusals)
    return figures


async def main() -> None:
    print(HEADER)
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder, OpenAIServer() as server:
        Path(folder).chmod(0o755)
        server.tokens = lambda body: tokens(body.replace("\\n", "\n"))
        model = OpenAIModel("strict", api_key=server.key, base_url=server.base_url)
        async with (
            embedded_postgres(Path(folder)) as dsn,
            open_store(dsn, queue_size=1000, queue_bytes=2**28, connect_timeout_s=30, drain_timeout_s=30) as store,
        ):
            saver = Checkpointer(store)
            for window in WINDOWS:
                agent = Agent(
                    model,
                    saver,
                    remember=saver.remember,
                    first_token_timeout_s=60,
                    idle_timeout_s=60,
                    context_tokens={model.name: window},
                )
                print((await measure(agent, window, server)).row(), flush=True)
        await model.aclose()


if __name__ == "__main__":
    asyncio.run(main())
