"""A process of many producers behind ``batching``, to be killed."""

from __future__ import annotations

import asyncio
import os
import sys

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers.batching import Batching

SESSIONS = 50


def connect(store: str, address: str) -> Backend:
    """A store by name."""
    return SQLiteStorageBackend(address) if store == "sqlite" else PostgreSQLStorageBackend(address)


async def talk(store: str, address: str, producers: int) -> None:
    """Messages without end; each is printed only after it was acknowledged, with the largest batch so far."""
    async with Batching(connect(store, address)) as storage:

        async def one(number: int) -> None:
            session = f"s{number % SESSIONS}"
            for n in range(1_000_000):
                assert await storage.add_conversation_message(session, "user", f"{number}/{n}") is True
                os.write(1, f"{number} {n} {storage.state.writes.largest}\n".encode())

        await asyncio.gather(*(one(number) for number in range(producers)))


if __name__ == "__main__":
    _, store, address, producers = sys.argv
    asyncio.run(talk(store, address, int(producers)))
