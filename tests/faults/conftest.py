"""Servers that are killed and stopped: shared by the scenarios of one worker, each of which has a store of its own in them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer


@pytest.fixture(scope="session")
def seed() -> int:
    """Decides load and faults; ``AIECS_FAULT_SEED=7 pytest tests/faults`` plays others."""
    return int(os.environ.get("AIECS_FAULT_SEED", "1"))


@pytest.fixture(scope="session")
def seconds() -> float:
    """How long a scenario lasts, healing not included."""
    return float(os.environ.get("AIECS_FAULT_SECONDS", "5"))


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
    """An outage is what these tests are about: the lines that report it go nowhere."""
    logger = logging.getLogger(telemetry.SCOPE)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
