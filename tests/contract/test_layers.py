"""The contract over each layer of a store's own chain, and over the whole of it: what a layer passes on, it keeps."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.layers.bulkhead import Bulkhead
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.testing.contract import StorageContract


class TestRetry(StorageContract):
    """Repeats what failed, with one identity."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Retry(MemoryStorageBackend()) as layer:
            yield layer


class TestCircuitBreaker(StorageContract):
    """Refuses calls to a store that fails; the mistakes that the suite makes on purpose are not the store's."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with CircuitBreaker(MemoryStorageBackend(), minimum_calls=1) as layer:
            yield layer
            assert layer.state.opened == 0


class TestTimeout(StorageContract):
    """Limits the time of an attempt."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Timeout(MemoryStorageBackend(), per_attempt=60.0) as layer:
            yield layer


class TestDeadline(StorageContract):
    """Limits the time of an operation."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Deadline(MemoryStorageBackend(), total=60.0) as layer:
            yield layer


class TestBulkhead(StorageContract):
    """Lets so many through at once; the others wait."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Bulkhead(
            MemoryStorageBackend(), limit=3, mode="wait", fair_by="key", adaptive=True, least=1
        ) as layer:
            yield layer
            assert (layer.state.running, layer.state.waiting) == (0, 0)


class TestWholeChain(StorageContract):
    """All of them in the right order."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        store = Timeout(MemoryStorageBackend(), per_attempt=60.0)
        async with Deadline(Retry(CircuitBreaker(Bulkhead(store))), total=60.0) as chain:
            yield chain
