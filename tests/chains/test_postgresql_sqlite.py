"""The shipped chain over other stores: PostgreSQL leads and a file on this machine follows."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiecs_resilient import open_storage
from aiecs_resilient.interface import Backend
from aiecs_resilient.testing.contract import StorageContract

from .shipped import Mapped, production


class TestPostgreSQLSQLite(StorageContract):
    """The same layers, and stores that have nothing in common."""

    @pytest.fixture
    async def storage(self, postgresql_store: Mapped, sqlite_store: Mapped) -> AsyncIterator[Backend]:
        async with open_storage(production(hot=postgresql_store, cold=sqlite_store)) as storage:
            yield storage
