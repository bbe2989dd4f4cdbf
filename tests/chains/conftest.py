"""Real servers for whole chains: one of each per worker, and in them an empty store for every test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer

from .shipped import Mapped, fresh_mark

TABLES = ("keys", "records", "sessions", "contexts", "checkpoints", "writes")
EMPTY = (
    "DO $$ BEGIN "
    + " ".join(f"DELETE FROM {{schema}}.{table};" for table in TABLES)
    + " UPDATE {schema}.store SET epoch = 0, leader = ''; END $$"
)


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


@pytest.fixture
def redis_store(valkey: ValkeyServer) -> Mapped:
    """An empty store in Redis, as YAML describes it."""
    return {"type": "redis", "url": valkey.url, "prefix": f"{fresh_mark()}:"}


@pytest.fixture
async def postgresql_store(postgresql: PostgreSQLServer) -> AsyncIterator[Mapped]:
    """An empty store in PostgreSQL; its tables are made once per worker, which takes longer than most tests."""
    schema = "chains"
    yield {"type": "postgresql", "url": postgresql.url, "schema": schema}
    connection = await asyncpg.connect(postgresql.url)
    try:
        await connection.execute(EMPTY.format(schema=schema))
    finally:
        await connection.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Mapped:
    """An empty store in a file."""
    return {"type": "sqlite", "path": str(tmp_path / "store.db")}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The layer ``logging`` does its work and its lines go nowhere."""
    logger = logging.getLogger(telemetry.SCOPE)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
