"""Object stores: S3, at moto's server; apart from the others, so that they can run side by side."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract
from aiecs_resilient.testing.servers import S3Server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """One server for all tests here."""
    with S3Server() as server:
        server.create_bucket("contract")
        yield server


class TestS3(StorageContract, ReplicaContract):
    """s3:// keeps the whole contract, at moto's server."""

    history_size = 300
    concurrency = 25
    cancellations = 15

    @pytest.fixture
    async def storage(self, s3: S3Server) -> AsyncIterator[ObjectStorageBackend]:
        async with ObjectStorageBackend(
            f"s3://contract/{uuid.uuid4().hex}",
            endpoint=s3.url,
            region="us-east-1",
            access_key_id="any",
            secret_access_key="any",
        ) as backend:
            yield backend
