"""The contract through ``cache``: over memory, over a store that takes its time, and over batching and a dual write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.layers.batching import Batching
from aiecs_resilient.layers.cache import Cache
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import Operation
from aiecs_resilient.testing.contract import StorageContract

P = ParamSpec("P")
T = TypeVar("T")

# What is shown here does not depend on the disk, and waiting for a disk would take a minute.
FOLDER = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)


class Turns(UniformLayer):
    """A store that takes a few turns of the loop, so that reads and writes overlap and can be cancelled in the middle."""

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        await asyncio.sleep(0)
        answer = await call(*args, **kwargs)
        await asyncio.sleep(0)
        return answer


class TestCache(StorageContract):
    """Over memory, with little room: entries come and go."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        async with Cache(Turns(MemoryStorageBackend()), max_entries=20, history=100) as layer:
            yield layer


class TestCacheSQLite(StorageContract):
    """Over a file, with room for everything, refreshed ahead of time."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        with TemporaryDirectory(dir=FOLDER) as folder:
            store = SQLiteStorageBackend(Path(folder) / "store.db")
            async with Cache(store, refresh_ahead=1.0, stale_if_error=60.0) as layer:
                yield layer


class TestCacheBatchingDualWrite(StorageContract):
    """As it stands in a whole chain."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        hot, cold = Turns(MemoryStorageBackend(name="hot")), Turns(MemoryStorageBackend(name="cold"))
        async with Cache(Batching(DualWrite(hot, cold, durable_at_least="volatile"))) as layer:
            yield layer
