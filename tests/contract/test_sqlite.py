"""SQLite: one file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract

# What is shown here does not depend on the disk, and waiting for a disk would take a minute.
FOLDER = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)


class TestSQLite(StorageContract, ReplicaContract):
    """The SQLite backend keeps the whole contract."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[SQLiteStorageBackend]:
        with TemporaryDirectory(dir=FOLDER) as folder:
            async with SQLiteStorageBackend(Path(folder) / "store.db") as backend:
                yield backend
