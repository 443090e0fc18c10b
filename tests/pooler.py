"""A pooler as PgBouncer, with one client: it tells a made-up process id, and another server may take over unnoticed."""

import asyncio
import struct
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

SSL_REQUEST, CANCEL_REQUEST, PROTOCOL_3 = 80877103, 80877102, 196608
LENGTH = struct.Struct("!i")


class Pooler:
    """`switches`: from the next transaction on, also of connections that are open, the server is `other`."""

    def __init__(self, dsn: str, other: str) -> None:
        self._dsn, self._other = dsn, other
        self.switches = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = f"postgresql://postgres@127.0.0.1:{port}/pooled"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            await _Session(self, client, back).run()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            back.transport.abort()

    @property
    def server(self) -> str:
        return self._other if self.switches else self._dsn


class _Session:
    def __init__(self, pooler: Pooler, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._pooler, self._client, self._back = pooler, client, back
        self._is_idle = False  # outside of a transaction

    async def run(self) -> None:
        while (code := LENGTH.unpack((await _framed(self._client))[:4])[0]) == SSL_REQUEST:
            self._back.write(b"N")
        if code == CANCEL_REQUEST:
            return
        server = self._pooler.server
        reader, writer, greeting = await self._log_in(server)
        self._back.write(greeting)
        answers = asyncio.create_task(self._pass_answers(reader))
        try:
            while True:
                message = await self._client.readexactly(1) + await _whole(self._client)
                if self._is_idle and server != self._pooler.server:
                    answers.cancel()
                    writer.transport.abort()
                    server = self._pooler.server
                    reader, writer, _ = await self._log_in(server)
                    answers = asyncio.create_task(self._pass_answers(reader))
                self._is_idle = False
                writer.write(message)
        finally:
            answers.cancel()
            writer.transport.abort()

    async def _log_in(self, dsn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """A connection to the server, and all that it said until it was ready."""
        parts = urlsplit(dsn)
        options = parse_qs(parts.query)
        folder, port = unquote(options["host"][0]), options["port"][0]
        if folder.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        else:
            reader, writer = await asyncio.open_connection(folder, int(port))
        fields = f"user\0postgres\0database\0{parts.path[1:]}\0\0".encode()
        writer.write(LENGTH.pack(8 + len(fields)) + LENGTH.pack(PROTOCOL_3) + fields)
        greeting = b""
        kind = b""
        while kind != b"Z":
            kind, rest = await reader.readexactly(1), await _whole(reader)
            greeting += kind + (LENGTH.pack(12) + LENGTH.pack(1) + rest[-4:] if kind == b"K" else rest)
        self._is_idle = True
        return reader, writer, greeting

    async def _pass_answers(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                kind, rest = await reader.readexactly(1), await _whole(reader)
                self._is_idle = kind == b"Z" and rest.endswith(b"I")
                self._back.write(kind + rest)
        except (OSError, asyncio.IncompleteReadError):
            self._back.transport.abort()


async def _framed(reader: asyncio.StreamReader) -> bytes:
    """What follows a length."""
    [length] = LENGTH.unpack(await reader.readexactly(4))
    return await reader.readexactly(length - 4)


async def _whole(reader: asyncio.StreamReader) -> bytes:
    framed = await _framed(reader)
    return LENGTH.pack(4 + len(framed)) + framed
