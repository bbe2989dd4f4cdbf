"""Real servers are killed, stopped and cut off under load; afterwards a separate program finds nothing lost.

Tier T0: each scenario for a few seconds. The campaign plays the same ones for longer, with more seeds and on more chains.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aiecs_resilient.testing.campaign import SCENARIOS, postgresql_sqlite, redis_postgresql, run
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer

ON_REDIS = (
    "primary killed",
    "primary stopped",
    "replies lost",
    "connections broken",
    "primary in a black hole",
    "fallback killed, then the primary",
)
ON_POSTGRESQL = ("primary killed", "replies lost")


@pytest.mark.parametrize("name", ON_REDIS)
async def test_redis_over_postgresql_survives(
    name: str, valkey: ValkeyServer, postgresql: PostgreSQLServer, seed: int, seconds: float
) -> None:
    """Nothing acknowledged is lost, doubled, out of order, foreign or different in the two stores, and it heals alone."""
    async with redis_postgresql(valkey, postgresql, seed=seed) as stage:
        verdict = await run(SCENARIOS[name], stage, seed=seed, seconds=seconds)
    assert verdict.ok, f"\n{verdict}"


@pytest.mark.parametrize("name", ON_POSTGRESQL)
async def test_postgresql_over_sqlite_survives(
    name: str, postgresql: PostgreSQLServer, tmp_path: Path, seed: int, seconds: float
) -> None:
    """The same with other stores: what holds is the chain's doing, not one store's."""
    async with postgresql_sqlite(postgresql, tmp_path, seed=seed) as stage:
        verdict = await run(SCENARIOS[name], stage, seed=seed, seconds=seconds)
    assert verdict.ok, f"\n{verdict}"
