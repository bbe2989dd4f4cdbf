"""A write whose caller went away may stand in one store alone; whoever has seen it there must not quietly lose sight of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.errors import IncompleteStoreError, StorageConnectionError
from aiecs_resilient.layers import UniformLayer
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import Operation, operation
from aiecs_resilient.testing.clock import run_virtual


class Door(UniformLayer):
    """A store that lets writes wait at its door, or nobody in at all."""

    layer_name = "door"

    def __init__(self, name: str) -> None:
        super().__init__(MemoryStorageBackend(name=name))
        self.gone = False
        self.busy = False
        self.waiting = asyncio.Event()

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        if self.gone:
            raise StorageConnectionError("connection refused", outcome="not_applied", backend=self.name)
        if self.busy and op.name == "apply":
            self.waiting.set()
            await asyncio.Event().wait()
        return await call(*args, **kwargs)


@asynccontextmanager
async def left_open() -> AsyncIterator[tuple[Door, Door, DualWrite]]:
    """A message that the leader has, its follower has not, and whose caller has gone."""
    hot, cold = Door("hot"), Door("cold")
    async with DualWrite(hot, cold, durable_at_least="volatile", poll=10.0) as storage:
        await storage.add_conversation_message("s", "user", "first")
        cold.busy = True
        task = asyncio.ensure_future(storage.add_conversation_message("s", "user", "half-way"))
        await cold.waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cold.busy = False
        yield hot, cold, storage


def test_what_one_store_alone_has_is_flagged_when_the_other_leads() -> None:
    """Read from the leader, then the leader goes: the answer that lacks it says that it may be stale."""

    async def play() -> None:
        async with left_open() as (hot, _cold, storage):
            assert len(await storage.get_conversation_history("s")) == 2
            await storage.add_conversation_message("s", "user", "later")
            hot.gone = True
            async with operation() as op:
                assert len(await storage.get_conversation_history("s")) == 2
            assert op.served_by == "cold"
            assert op.stale
            with pytest.raises(IncompleteStoreError):
                await storage.get_session("s")

    run_virtual(play())


def test_other_sessions_are_not_under_suspicion() -> None:
    """One caller that went away does not make "not found" an error for everybody else in an outage."""

    async def play() -> None:
        async with left_open() as (hot, _cold, storage):
            hot.gone = True
            async with operation() as op:
                assert await storage.get_session("another") is None
            assert not op.stale

    run_virtual(play())


def test_suspicion_ends_when_the_mark_has_done_its_work() -> None:
    """The next look at both stores brings it over; after that the other store's answers are whole."""

    async def play() -> None:
        async with left_open() as (hot, _cold, storage):
            await asyncio.sleep(11)
            hot.gone = True
            async with operation() as op:
                assert len(await storage.get_conversation_history("s")) == 2
            assert op.served_by == "cold"
            assert not op.stale

    run_virtual(play())
