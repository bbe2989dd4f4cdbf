"""Redis, on a real Valkey."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract
from aiecs_resilient.testing.servers import ValkeyServer


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """One server for all tests here."""
    with ValkeyServer() as server:
        yield server


class TestRedis(StorageContract, ReplicaContract):
    """The Redis backend keeps the whole contract."""

    @pytest.fixture
    async def storage(self, valkey: ValkeyServer) -> AsyncIterator[RedisStorageBackend]:
        async with RedisStorageBackend(valkey.url, prefix=f"{uuid.uuid4().hex}:") as backend:
            yield backend
