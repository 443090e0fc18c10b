"""A proxy in front of the service that breaks a connection in the middle of a stream."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Self

HEAD_END = b"\r\n\r\n"


class CuttingProxy:
    """Each port that it opens cuts its first stream after so many bytes of the body, and passes everything else."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextmanager
    def on_a_thread(cls, upstream: int) -> Iterator[Self]:
        with asyncio.Runner() as runner, ThreadPoolExecutor(1) as thread:
            stop = asyncio.Event()
            started: Future[Self] = Future()

            async def live() -> None:
                proxy = cls(upstream)
                started.set_result(proxy)
                await stop.wait()
                await proxy._close()

            living = thread.submit(runner.run, live())
            try:
                yield started.result(10)
            finally:
                runner.get_loop().call_soon_threadsafe(stop.set)
                living.result(10)

    def open(self, after: int) -> str:
        """The URL of a new port, whose first stream is cut."""
        return f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(self._open(after), self._loop).result(10)}"

    async def _open(self, after: int) -> int:
        cuts = [after]  # of the streams to come

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if (this := asyncio.current_task()) is not None:
                self._tasks.add(this)
                this.add_done_callback(self._tasks.discard)
            back, forth = await asyncio.open_connection("127.0.0.1", self._upstream)
            asking = asyncio.create_task(_pass(reader, forth))
            try:
                with suppress(OSError, asyncio.CancelledError):  # cancelled at the end of the tests, and over then
                    await _answer(back, writer, cuts)
            finally:
                asking.cancel()
                forth.transport.abort()
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


async def _answer(source: asyncio.StreamReader, target: asyncio.StreamWriter, cuts: list[int]) -> None:
    """Returns at the cut, with the bytes before it sent. uvicorn sends the head of an answer in one piece."""
    left: int | None = None
    while data := await source.read(65536):
        head, end, _ = data.partition(HEAD_END)
        if left is None and cuts and head.startswith(b"HTTP/") and b"text/event-stream" in head:
            left = cuts.pop() + len(head + end)
        if left is not None:
            data, left = data[:left], left - len(data)
        target.write(data)
        await target.drain()
        if left is not None and left <= 0:
            return
