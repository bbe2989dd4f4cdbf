"""A server that speaks Redis just enough to answer every command with what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import hiredis

Answer = Callable[[list[bytes]], bytes | None]
"""A command's reply in wire form; None hangs up."""


@asynccontextmanager
async def fake_server(answer: Answer) -> AsyncIterator[str]:
    """Its URL. Commands of the handshake (CLIENT) are answered with OK."""

    open_now: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now[writer] = asyncio.current_task()
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                reply = b"+OK\r\n" if command[0] == b"CLIENT" else answer(command)
                if reply is None:
                    writer.close()
                    return
                writer.write(reply)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in open_now:
            writer.close()
        await asyncio.gather(
            *[task for task in open_now.values() if task is not None], return_exceptions=True
        )
