"""Stores for these tests: on memory where the disk does not matter, and at emulated services."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiecs_resilient.testing.servers import GCSServer, S3Server

FAST = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone afterwards; in memory where the system has that."""
    with TemporaryDirectory(dir=FAST) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Not to be killed or paused: it is everybody's."""
    with S3Server() as server:
        server.create_bucket("tests")
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[GCSServer]:
    """Not to be killed or paused: it is everybody's."""
    with GCSServer() as server:
        server.create_bucket("tests")
        yield server


@pytest.fixture(params=["file", "s3", "gs"])
def address(request: pytest.FixtureRequest, folder: Path) -> dict[str, object]:
    """Arguments of a backend on each kind of store, on a place of its own."""
    return make_address(request, folder, str(request.param))


def make_address(request: pytest.FixtureRequest, folder: Path, scheme: str) -> dict[str, object]:
    """``url`` and options."""
    place = uuid.uuid4().hex
    if scheme == "file":
        return {"url": f"file://{folder}/{place}"}
    if scheme == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return {"url": f"s3://tests/{place}", "endpoint": server.url, "region": "us-east-1",
                "access_key_id": "any", "secret_access_key": "any"}  # fmt: skip
    other: GCSServer = request.getfixturevalue("gcs")
    return {"url": f"gs://tests/{place}", "endpoint": other.url, "anonymous": True}


Make = Callable[[str], dict[str, object]]


@pytest.fixture
def make(request: pytest.FixtureRequest, folder: Path) -> Make:
    """The same for a scheme that the test names."""
    return lambda scheme: make_address(request, folder, scheme)
