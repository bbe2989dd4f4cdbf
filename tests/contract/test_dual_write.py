"""The whole contract through ``dual_write``: healthy, and while one of its two stores is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.errors import StorageConnectionError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import Operation
from aiecs_resilient.testing.contract import (
    CheckpointContract,
    ConversationContract,
    DeletionContract,
    IdContract,
    ListingContract,
    PendingWritesContract,
    SessionContract,
    StorageContract,
    TaskContextContract,
    ValueContract,
)


class Away(UniformLayer):
    """A store that cannot be reached once ``gone`` is set."""

    gone = False

    async def around(self, op: Operation, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.gone:
            raise StorageConnectionError("connection refused", outcome="not_applied", backend=self.name)
        return await call(*args, **kwargs)


def pair() -> tuple[Away, Away, DualWrite]:
    hot, cold = Away(MemoryStorageBackend(name="hot")), Away(MemoryStorageBackend(name="cold"))
    return hot, cold, DualWrite(hot, cold, durable_at_least="volatile")


class TestDualWrite(StorageContract):
    """Both stores up."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        _hot, _cold, dual = pair()
        async with dual:
            yield dual


class Degraded(
    SessionContract,
    ConversationContract,
    CheckpointContract,
    PendingWritesContract,
    TaskContextContract,
    IdContract,
    ValueContract,
    ListingContract,
    DeletionContract,
):
    """What users see of data. Not ``operation_outcome``: "not applied" needs both stores' word, and one is away."""


class TestDualWriteWithoutItsFollower(Degraded):
    """The fallback is away: everything is marked and nothing else changes."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        _hot, cold, dual = pair()
        async with dual:
            cold.gone = True
            yield dual


class TestDualWriteAfterATakeover(Degraded):
    """The primary is away: the fallback, which had everything, leads."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Backend]:
        hot, _cold, dual = pair()
        async with dual:
            hot.gone = True
            yield dual
