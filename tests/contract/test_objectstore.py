"""Object stores: files in a folder, and Google Cloud Storage at its emulator; S3 has a file of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend, _rows
from aiecs_resilient.backends.objectstore._prepare import Sizes
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract
from aiecs_resilient.testing.servers import GCSServer

# What is shown here does not depend on the disk, and waiting for a disk would take minutes.
FOLDER = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)


class TestFiles(StorageContract, ReplicaContract):
    """file:// keeps the whole contract."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[ObjectStorageBackend]:
        with TemporaryDirectory(dir=FOLDER) as folder:
            async with ObjectStorageBackend(f"file://{folder}/store") as backend:
                yield backend


class TestSmallPages(StorageContract, ReplicaContract):
    """The same when nearly every row goes into pages at once: trees, large values and garbage under every promise."""

    @pytest.fixture
    async def storage(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ObjectStorageBackend]:
        monkeypatch.setattr(_rows, "LARGE_BYTES", 60)
        with TemporaryDirectory(dir=FOLDER) as folder:
            async with ObjectStorageBackend(
                f"file://{folder}/store", cache_size=20_000, _sizes=Sizes(tail_bytes=400, page_bytes=700)
            ) as backend:
                yield backend


@pytest.fixture(scope="module")
def gcs() -> Iterator[GCSServer]:
    """One server for all tests here."""
    with GCSServer() as server:
        server.create_bucket("contract")
        yield server


class TestGCS(StorageContract, ReplicaContract):
    """gs:// keeps the whole contract, at an emulator of Google's XML interface with generations."""

    history_size = 300
    concurrency = 25
    cancellations = 15

    @pytest.fixture
    async def storage(self, gcs: GCSServer) -> AsyncIterator[ObjectStorageBackend]:
        async with ObjectStorageBackend(
            f"gs://contract/{uuid.uuid4().hex}", endpoint=gcs.url, anonymous=True
        ) as backend:
            yield backend
