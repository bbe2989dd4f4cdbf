"""The contract over each layer of a store's own chain, and over the whole of it: what a layer passes on, it keeps."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from namespaced import NamespacedContract

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.layers.bulkhead import Bulkhead
from aiecs_resilient.layers.chaos import Chaos
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.compression import Compression
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.encryption import Encryption
from aiecs_resilient.layers.hedging import Hedging
from aiecs_resilient.layers.limits import Limits
from aiecs_resilient.layers.namespace import Namespace
from aiecs_resilient.layers.rate_limit import RateLimit
from aiecs_resilient.layers.read_only import ReadOnly
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


class TestReadOnly(StorageContract):
    """Switched off, it lets everything pass; that it refuses every write is shown with its own tests."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with ReadOnly(MemoryStorageBackend(), enabled=False) as layer:
            yield layer
            assert layer.state.refused == 0


class TestLimits(StorageContract):
    """Generous limits that nothing in the suite meets."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Limits(
            MemoryStorageBackend(),
            max_value=128 * 1024 * 1024,
            max_content=128 * 1024 * 1024,
            max_items=100_000,
            max_session_ttl=86_400.0,
            max_checkpoint_ttl=86_400.0,
        ) as layer:
            yield layer
            assert layer.state.by_limit == {}


class TestHedging(StorageContract):
    """Asks twice for every read that takes a moment; here every one does."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        slow = Chaos(MemoryStorageBackend(), latency_rate=0.05, latency=0.002)
        async with Hedging(slow, min_delay=0.0005, max_delay=0.0005, budget_ratio=1.0) as layer:
            yield layer


class TestRateLimit(StorageContract):
    """Waits a little now and then; what cannot be done in time would be refused."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with RateLimit(MemoryStorageBackend(), rate=1e6, burst=100, by="key", max_wait=10.0) as layer:
            yield layer
            assert (layer.state.buckets.refused, layer.state.buckets.shed) == (0, 0)


class TestCompression(StorageContract):
    """Compresses everything, however small."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Compression(MemoryStorageBackend(), min_size=1, min_saving=0.0) as layer:
            yield layer


class TestEncryption(StorageContract):
    """Encrypts everything, and refuses what is not encrypted."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        keys = {"one": "0f" * 32, "two": "f0" * 32}
        async with Encryption(MemoryStorageBackend(), secret_keys=keys, active_key="two") as layer:
            yield layer
            assert layer.state.refused == 0


class TestChaos(StorageContract):
    """Delays at random; asked for no faults, it makes none."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        async with Chaos(MemoryStorageBackend(), latency_rate=0.05, latency=0.001) as layer:
            yield layer


class TestNamespace(NamespacedContract):
    """A store of one's own inside a shared one, under a tenant whose name looks like part of an id."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        memory = MemoryStorageBackend()
        async with Namespace(memory, tenant=self.tenant) as layer:
            other = Namespace(memory, tenant="a")
            await other.create_session("b:s", "somebody else")
            yield layer


class TestWholeChain(StorageContract):
    """All of them in the right order."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Any]:
        store = Timeout(MemoryStorageBackend(), per_attempt=60.0)
        async with Deadline(Retry(Hedging(CircuitBreaker(Bulkhead(store)))), total=60.0) as chain:
            yield chain
