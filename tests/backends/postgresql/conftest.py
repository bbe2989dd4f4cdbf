"""One real server for all tests of this folder; each test has a schema of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.testing.servers import PostgreSQLServer


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what happens in the server or in the background, where nothing tells us; ten seconds at most."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  a server has no asyncio.Event
            await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQLServer]:
    """Not to be killed or stopped: it is everybody's. ``own_server`` is for that."""
    with PostgreSQLServer(fsync=False) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[PostgreSQLServer]:
    """A server that this test may kill, pause and restart."""
    with PostgreSQLServer(fsync=False) as running:
        yield running


@pytest.fixture
def schema() -> str:
    """A schema that nobody else uses."""
    return f"t_{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def backend(server: PostgreSQLServer, schema: str) -> AsyncIterator[PostgreSQLStorageBackend]:
    async with PostgreSQLStorageBackend(server.url, schema=schema) as opened:
        yield opened
