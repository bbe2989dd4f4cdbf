"""One real Valkey for all tests of this folder; each test has a prefix of its own.

No ``__init__.py`` here: with one, the folder would be importable as ``redis`` and hide the driver.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.testing.servers import ValkeyServer


@pytest.fixture(scope="session")
def server() -> Iterator[ValkeyServer]:
    """Not to be killed, stopped or reconfigured: it is everybody's. ``own_server`` is for that."""
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """A server that this test may kill, pause, reconfigure and restart."""
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """A prefix that nobody else uses."""
    return f"{uuid.uuid4().hex}:"


@pytest.fixture
async def backend(server: ValkeyServer, prefix: str) -> AsyncIterator[RedisStorageBackend]:
    async with RedisStorageBackend(server.url, prefix=prefix) as opened:
        yield opened
