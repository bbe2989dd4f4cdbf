"""Our own process is killed in the middle of its writes, and the next one finds both stores in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiecs_resilient.testing.campaign import postgresql_sqlite, redis_postgresql, run_killed
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer


async def test_a_killed_process_loses_nothing_it_acknowledged(
    valkey: ValkeyServer, postgresql: PostgreSQLServer, seed: int
) -> None:
    """Five kills at random moments: what callers were told holds in both stores, once and in order."""
    async with redis_postgresql(valkey, postgresql, seed=seed) as stage:
        verdict = await run_killed(stage, seed=seed, kills=5)
    assert verdict.ok, f"\n{verdict}"


async def test_a_process_killed_over_a_file_loses_nothing_it_acknowledged(
    postgresql: PostgreSQLServer, tmp_path: Path, seed: int
) -> None:
    """The store that is a file is written by the process that dies, so its own recovery is part of it."""
    async with postgresql_sqlite(postgresql, tmp_path, seed=seed) as stage:
        verdict = await run_killed(stage, seed=seed, kills=2)
    assert verdict.ok, f"\n{verdict}"


async def test_a_stage_without_a_configuration_says_so(
    valkey: ValkeyServer, postgresql: PostgreSQLServer
) -> None:
    """Another process can only open what it is told how to open."""
    async with redis_postgresql(valkey, postgresql) as stage:
        with pytest.raises(ValueError, match="config"):
            await run_killed(replace(stage, config=None), seed=1)
