"""A proxy in front of PostgreSQL that resets, refuses, freezes and delays, on demand."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


class FaultProxy:
    """`frozen`: nothing passes, and nothing is closed. `refuse`: new connections are closed at once."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        options = parse_qs(parts.query)
        self._host, self._port = unquote(options["host"][0]), int(options["port"][0])
        self._database = parts.path
        self.frozen = False
        self.refuse = False
        self.holding = asyncio.Event()  # while `frozen`: something arrived that does not pass
        self.delay_s = 0.0
        self.connect_delay_s = 0.0  # as of a database that wakes first
        self.connections = 0  # that were begun
        self.lose_answer_to: bytes | None = None  # once: bytes with this reach the server, and its answer is lost
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._swallowed: set[asyncio.StreamWriter] = set()

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}{self._database}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await asyncio.sleep(0.01)  # a service may be connecting: wait for the connection, to end it
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.reset()  # also of those whose tasks had not begun
        await self._server.wait_closed()

    async def reset(self) -> None:
        """Cut every connection there is."""
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def swallow(self) -> None:
        """The connections that there are pass nothing any more, and nothing tells them so; new ones are served."""
        self._swallowed |= self._writers

    @classmethod
    @contextmanager
    def on_a_thread(cls, dsn: str) -> Iterator[Self]:
        """For tests that block. Its attributes may be set from any thread; `cut` is `reset` from outside."""
        with asyncio.Runner() as runner, ThreadPoolExecutor(1) as thread:
            stop = asyncio.Event()
            started: Future[Self] = Future()

            async def live() -> None:
                async with cls(dsn) as proxy:
                    started.set_result(proxy)
                    await stop.wait()

            living = thread.submit(runner.run, live())
            try:
                yield started.result(10)
            finally:
                runner.get_loop().call_soon_threadsafe(stop.set)
                living.result(10)

    def cut(self) -> None:
        asyncio.run_coroutine_threadsafe(self.reset(), self._server.get_loop()).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (this := asyncio.current_task()) is not None:
            self._keep(this)
        try:
            if self.refuse:
                raise ConnectionRefusedError
            self.connections += 1
            await asyncio.sleep(self.connect_delay_s)
            database_reader, database_writer = await self._connect()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        self._writers |= {writer, database_writer}
        answered = asyncio.Event()
        self._keep(asyncio.create_task(self._pass_requests(reader, database_writer, writer, answered)))
        self._keep(asyncio.create_task(self._pass_answers(database_reader, writer, answered)))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_requests(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        answered: asyncio.Event,
    ) -> None:
        with self._ending(target):
            while data := await source.read(65536):
                answered.clear()
                await self._pass(data, target)
                if self.lose_answer_to is not None and self.lose_answer_to in data:
                    self.lose_answer_to = None
                    back.transport.abort()
                    await answered.wait()  # the server must have done it before it hears that nobody listens

    async def _pass_answers(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answered: asyncio.Event
    ) -> None:
        with self._ending(target):
            while data := await source.read(65536):
                answered.set()
                await self._pass(data, target)
        answered.set()

    async def _pass(self, data: bytes, target: asyncio.StreamWriter) -> None:
        while self.frozen or target in self._swallowed:
            self.holding.set()
            await asyncio.sleep(0.01)
        await asyncio.sleep(self.delay_s)
        target.write(data)
        await target.drain()

    @contextmanager
    def _ending(self, target: asyncio.StreamWriter) -> Iterator[None]:
        """When one side of a connection ends, so does the other."""
        try:
            with suppress(OSError):
                yield
        finally:
            target.transport.abort()
            self._writers.discard(target)
