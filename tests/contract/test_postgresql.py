"""PostgreSQL, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract
from aiecs_resilient.testing.servers import PostgreSQLServer

TABLES = ("keys", "records", "sessions", "contexts", "checkpoints", "writes")
EMPTY = f"DO $$ BEGIN {' '.join(f'DELETE FROM aiecs.{table};' for table in TABLES)} END $$"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One server for all; tests work on ids of their own."""
    with PostgreSQLServer(fsync=False) as server:
        yield server.url


class TestPostgreSQLContract(StorageContract, ReplicaContract):
    """The PostgreSQL backend keeps the whole contract."""

    @pytest.fixture
    async def storage(self, url: str) -> AsyncIterator[PostgreSQLStorageBackend]:
        async with PostgreSQLStorageBackend(url) as backend:
            yield backend
            await backend.initialize()  # a test may have closed it
            await backend._opened().fetch(EMPTY)  # what clean-up counts shall be this test's own
