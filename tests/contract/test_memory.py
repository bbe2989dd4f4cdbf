"""The reference: everything in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract


class TestMemory(StorageContract, ReplicaContract):
    """The memory backend keeps the whole contract."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[MemoryStorageBackend]:
        async with MemoryStorageBackend() as backend:
            yield backend
