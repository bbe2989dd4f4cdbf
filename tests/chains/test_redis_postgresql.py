"""``config/production.yaml`` over a real Valkey and a real PostgreSQL keeps the whole contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiecs_resilient import open_storage
from aiecs_resilient.interface import Backend
from aiecs_resilient.testing.contract import StorageContract

from .shipped import Mapped, production


class TestRedisPostgreSQL(StorageContract):
    """Redis leads, PostgreSQL follows, through every layer of the shipped configuration."""

    @pytest.fixture
    async def storage(self, redis_store: Mapped, postgresql_store: Mapped) -> AsyncIterator[Backend]:
        async with open_storage(production(hot=redis_store, cold=postgresql_store)) as storage:
            yield storage
