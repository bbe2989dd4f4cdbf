"""The task that brings the stores together again outlives whatever happens to it, and health says so meanwhile."""

from __future__ import annotations

import asyncio

from aiecs_resilient.errors import StorageError
from aiecs_resilient.records import RecordPage
from aiecs_resilient.testing.clock import run_virtual

from .subjects import Leg, chain


class Faulty(Leg):
    """A store whose records cannot be read, for a reason that nobody foresaw."""

    broken = True

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        if self.broken:
            raise RuntimeError("nobody foresaw this")
        return await super().read_records(since=since, open_only=open_only, after=after, limit=limit)


def test_an_unforeseen_error_does_not_end_reconciliation() -> None:
    """As long as it lasts health names it; when it is over, the store that was behind catches up."""

    async def play() -> None:
        hot, cold = Faulty("hot"), Leg("cold")
        async with chain(hot, cold) as storage:
            cold.state = "refusing"
            await storage.create_session("s", "u")
            cold.state = "up"
            await asyncio.sleep(10)
            health = await storage.health_check()
            assert health["status"] == "degraded"
            assert "nobody foresaw this" in str(health["issues"])
            hot.broken = False
            await asyncio.sleep(10)
            health = await storage.health_check()
            assert health["status"] == "healthy", health
            assert await cold.store.get_session("s") == await hot.store.get_session("s")

    run_virtual(play())


def test_an_error_of_a_store_is_not_called_unforeseen() -> None:
    """A store that is away is an outage, and health says that instead."""

    async def play() -> None:
        hot, cold = Leg("hot"), Leg("cold")
        async with chain(hot, cold) as storage:
            cold.state = "refusing"
            try:
                await storage.create_session("s", "u")
            except StorageError:
                raise AssertionError("one store is enough") from None
            await asyncio.sleep(10)
            assert "cannot be reconciled" not in str((await storage.health_check())["issues"])

    run_virtual(play())
