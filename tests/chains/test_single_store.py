"""Every layer of this version over one store: nothing of the contract gets lost on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiecs_resilient import open_storage
from aiecs_resilient.interface import Backend
from aiecs_resilient.testing.contract import StorageContract

from .shipped import Mapped, all_layers


class TestAllLayersOverSQLite(StorageContract):
    """tracing, metrics, logging, deadline, retry, circuit_breaker, timeout and a file."""

    @pytest.fixture
    async def storage(self, sqlite_store: Mapped) -> AsyncIterator[Backend]:
        async with open_storage(all_layers(sqlite_store)) as storage:
            yield storage


class TestAllLayersOverMemory(StorageContract):
    """The same over memory."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        async with open_storage(all_layers({"type": "memory"})) as storage:
            yield storage
