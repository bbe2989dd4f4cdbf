"""Real servers for whole chains: one of each per worker, and in them a store of its own for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey that keeps what it acknowledged when it is killed."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL that keeps what it acknowledged when its process is killed."""
    with PostgreSQLServer(fsync=False) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The layer ``logging`` does its work and its lines go nowhere."""
    logger = logging.getLogger(telemetry.SCOPE)
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)
