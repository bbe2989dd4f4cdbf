"""The shipped chains as stages: real servers, a proxy in front of each, names of their own per stage on shared servers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ...backends.postgresql import PostgreSQLStorageBackend
from ...backends.redis import RedisStorageBackend
from ...storage import open_storage
from ..proxy import FaultProxy
from ..servers import PostgreSQLServer, ValkeyServer
from .stage import Stage, Store

Mapped = dict[str, Any]
"""A configuration as a mapping, as YAML would give it."""

PRIMARY, FALLBACK = "hot", "cold"
LOOPBACK = "127.0.0.1"

QUICK: Mapping[str, str] = {"poll": "200ms", "dwell": "500ms", "lag": "1s"}
"""Options of ``dual_write`` under which an outage and the way back fit into seconds. Rules are the same, only sooner."""


def production(
    primary: Mapped, fallback: Mapped, *, dual_write: Mapping[str, str] = QUICK, open_for: str = "500ms"
) -> Mapped:
    """The chain of ``config/production.yaml`` over other stores and with other times."""
    return {
        "version": 1,
        "backends": {PRIMARY: primary, FALLBACK: fallback},
        "pipeline": [
            "tracing",
            "metrics",
            "logging",
            {"deadline": {"total": "2s"}},
            {
                "dual_write": {
                    **dual_write,
                    "primary": [
                        {"retry": {"attempts": 3}},
                        {
                            "circuit_breaker": {
                                "failure_rate": 0.5,
                                "open_for": open_for,
                                "max_open_for": "1s",
                            }
                        },
                        {"timeout": {"per_attempt": "250ms"}},
                        {"backend": PRIMARY},
                    ],
                    "fallback": [
                        {"retry": {"attempts": 3}},
                        {"circuit_breaker": {"open_for": open_for, "max_open_for": "1s"}},
                        {"timeout": {"per_attempt": "500ms"}},
                        {"backend": FALLBACK},
                    ],
                }
            },
        ],
    }


@asynccontextmanager
async def redis_postgresql(
    valkey: ValkeyServer, postgresql: PostgreSQLServer, *, seed: int = 0
) -> AsyncGenerator[Stage]:
    """Redis leads, PostgreSQL follows; both behind proxies."""
    mark = fresh_mark()
    async with (
        FaultProxy(LOOPBACK, valkey.port, seed=seed) as to_redis,
        FaultProxy(LOOPBACK, postgresql.port, seed=seed) as to_postgresql,
    ):
        config = production(
            {"type": "redis", "url": to_redis.through(valkey.url), "prefix": f"{mark}:"},
            {"type": "postgresql", "url": to_postgresql.through(postgresql.url), "schema": mark},
        )
        yield Stage(
            "Redis → PostgreSQL",
            lambda: open_storage(config),
            (
                Store(
                    PRIMARY,
                    lambda: RedisStorageBackend(valkey.url, name=PRIMARY, prefix=f"{mark}:"),
                    valkey,
                    to_redis,
                ),
                Store(
                    FALLBACK,
                    lambda: PostgreSQLStorageBackend(postgresql.url, name=FALLBACK, schema=mark),
                    postgresql,
                    to_postgresql,
                ),
            ),
            config,
        )


@asynccontextmanager
async def postgresql_sqlite(
    postgresql: PostgreSQLServer, folder: Path, *, seed: int = 0
) -> AsyncGenerator[Stage]:
    """PostgreSQL leads, a file on this machine follows."""
    from ...backends.sqlite import SQLiteStorageBackend

    mark = fresh_mark()
    path = folder / f"{mark}.db"
    async with FaultProxy(LOOPBACK, postgresql.port, seed=seed) as proxy:
        config = production(
            {"type": "postgresql", "url": proxy.through(postgresql.url), "schema": mark},
            {"type": "sqlite", "path": str(path)},
        )
        yield Stage(
            "PostgreSQL → SQLite",
            lambda: open_storage(config),
            (
                Store(
                    PRIMARY,
                    lambda: PostgreSQLStorageBackend(postgresql.url, name=PRIMARY, schema=mark),
                    postgresql,
                    proxy,
                ),
                Store(FALLBACK, lambda: SQLiteStorageBackend(str(path), name=FALLBACK)),
            ),
            config,
        )


def fresh_mark() -> str:
    """A prefix or schema that nobody has used."""
    return f"c{uuid.uuid4().hex[:16]}"
