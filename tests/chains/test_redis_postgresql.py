"""``config/production.yaml`` over a real Valkey and a real PostgreSQL keeps the whole contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiecs_resilient import open_storage
from aiecs_resilient.interface import Backend
from aiecs_resilient.testing.contract import StorageContract
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer

from .shipped import fresh_mark, production


class TestRedisPostgreSQL(StorageContract):
    """Redis leads, PostgreSQL follows, through every layer of the shipped configuration."""

    @pytest.fixture
    async def storage(self, valkey: ValkeyServer, postgresql: PostgreSQLServer) -> AsyncIterator[Backend]:
        config = production(
            hot={"type": "redis", "url": valkey.url, "prefix": f"{fresh_mark()}:"},
            cold={"type": "postgresql", "url": postgresql.url, "schema": fresh_mark()},
        )
        async with open_storage(config) as storage:
            yield storage
