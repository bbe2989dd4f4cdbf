"""Under ``dual_write``: an object store follows, misses an outage, catches up, and holds what its leader holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.objectstore import ObjectStorageBackend
from aiecs_resilient.errors import StaleRouteError, StorageConnectionError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import Operation
from aiecs_resilient.records import Route
from aiecs_resilient.testing.contract import _mutations as make
from aiecs_resilient.testing.contract._base import snapshot


class Away(UniformLayer):
    """A store that cannot be reached once ``gone`` is set."""

    gone = False

    async def around(self, op: Operation, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.gone:
            raise StorageConnectionError("connection refused", outcome="not_applied", backend=self.name)
        return await call(*args, **kwargs)


@pytest.fixture
def leader() -> Backend:
    return MemoryStorageBackend(name="leader")


@pytest.fixture
def follower(folder: Path) -> Away:
    return Away(ObjectStorageBackend(f"file://{folder}/store", name="follower"))


@pytest.fixture
async def storage(leader: Backend, follower: Away) -> AsyncIterator[DualWrite]:
    async with DualWrite(leader, follower, durable_at_least="volatile") as dual:
        yield dual


async def _work(storage: Backend, run: str) -> None:
    for n in range(10):
        key = f"s{n % 3}"
        await storage.create_session(key, run, {"run": run})
        await storage.add_conversation_message(key, "user", f"{run} {n}")
        await storage.update_session(key, {"n": n}, increment_requests=True)
        await storage.store_checkpoint(key, f"c{n % 4}", {"run": run, "large": "x" * 20_000})
        await storage.put_writes(key, f"c{n % 4}", "task", [("a", n)])
        await storage.store_task_context(key, {"run": run})
    await storage.prune_checkpoints("s1", 1)
    await storage.delete_session("s2")


async def _until_equal(leader: Backend, follower: Backend) -> None:
    async with asyncio.timeout(20):
        while True:
            pairs = [
                (await snapshot(leader, key), await snapshot(follower, key)) for key in ("s0", "s1", "s2")
            ]
            marks = (await leader.store_state()).open_marks
            if all(mine == theirs for mine, theirs in pairs) and not marks:
                return
            await asyncio.sleep(0.02)


async def test_it_follows_and_catches_up(storage: DualWrite, leader: Backend, follower: Away) -> None:
    """Healthy, through an outage and after it: in the end both hold the same, positions and times included."""
    await _work(storage, "healthy")
    await _until_equal(leader, follower.inner)
    follower.gone = True
    await _work(storage, "alone")
    assert (await leader.store_state()).open_marks > 0
    follower.gone = False
    await _work(storage, "again")
    await _until_equal(leader, follower.inner)
    assert (await follower.inner.store_state()).open_marks == 0


async def test_it_refuses_an_older_epoch(follower: Away) -> None:
    """After the route has moved nothing of an older epoch is taken, also where the key is in memory."""
    async with follower.inner as store:
        await make.apply(store, make.message("s", "before", replay=True, epoch=1, home="one"))
        assert await store.move_route(0, Route(2, "two")) == Route(2, "two")
        refusal = await make.refused(store, make.message("s", "late", replay=True, epoch=1, home="one"))
        assert isinstance(refusal, StaleRouteError)
        assert (refusal.transient, refusal.outcome) == (True, "not_applied")
        await make.apply(store, make.message("s", "new", replay=True, epoch=2, home="two"))
        assert len(await store.get_conversation_history("s")) == 2


async def test_the_route_of_another_process_is_seen(folder: Path) -> None:
    """One process moves the route; the next fenced write of another one knows."""
    url = f"file://{folder}/store"
    async with ObjectStorageBackend(url) as one, ObjectStorageBackend(url) as two:
        await make.apply(two, make.message("s", "before", replay=True, epoch=1, home="x"))
        await one.move_route(0, Route(5, "y"))
        assert isinstance(
            await make.refused(two, make.message("s", "late", replay=True, epoch=4, home="x")),
            StaleRouteError,
        )
        assert (await two.store_state()).route == Route(5, "y")
        assert (await one.store_state()).incarnation == (await two.store_state()).incarnation
