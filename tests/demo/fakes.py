"""A stage without servers: two memory stores behind the real dual write, one of which can be killed and frozen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import spawn
from aiecs_resilient.codec import encode
from aiecs_resilient.demo import names
from aiecs_resilient.demo.outside_check import Holding, digest
from aiecs_resilient.errors import StorageConnectionError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import Operation

P = ParamSpec("P")
T = TypeVar("T")


class Harmed(UniformLayer):
    """A store that can be away, or frozen: then it does later what it was asked meanwhile."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._away = False
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._away:
            raise StorageConnectionError("connection refused", outcome="not_applied", backend=self.name)
        if not self._thawed.is_set():
            return await asyncio.shield(spawn(self._late(call, *args, **kwargs), name="late"))
        return await call(*args, **kwargs)

    async def _late(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._thawed.wait()
        return await call(*args, **kwargs)

    def kill(self) -> None:
        self._away = True

    def restart(self) -> None:
        self._away = False

    def pause(self) -> None:
        self._thawed.clear()

    def resume(self) -> None:
        asyncio.run_coroutine_threadsafe(self._set(), self._loop).result()

    async def _set(self) -> None:
        self._thawed.set()

    async def initialize(self) -> bool:
        self._loop = asyncio.get_running_loop()
        return await super().initialize()


async def contents(store: MemoryStorageBackend) -> Holding:
    """What a memory store holds, through its own reads."""
    held = Holding(store.name)
    for session in await store.list_sessions(limit=100_000):
        key = session["session_id"]
        held.add_session(
            key,
            [session["user_id"], session["metadata"]],
            session["status"],
            session["request_count"],
            round(session["total_processing_time"] * 1_000_000),
            session["error_count"],
        )
        for message in await store.get_conversation_history(key, 0):
            held.add_message(
                key, message["position"], message["content"], encode(message["metadata"], "metadata")
            )
        for checkpoint in await store.list_checkpoints(key, 1_000):
            name = checkpoint["checkpoint_id"]
            held.checkpoints[names.checkpoint(key, name)] = digest(checkpoint["data"])
            if writes := await store.get_writes(key, name):
                held.checkpoints[names.writes(key, name, "answer")] = digest(writes)
        if (context := await store.get_task_context(key)) is not None:
            held.contexts[names.context(key)] = digest(context)
    held.open_marks = (await store.store_state()).open_marks
    return held


@dataclass
class MemoryStage:
    storage: DualWrite
    primary: Harmed
    stores: tuple[MemoryStorageBackend, MemoryStorageBackend]

    async def read_back(self) -> list[Holding]:
        return [await contents(store) for store in self.stores]

    async def done_by_primary(self, writes: Sequence[tuple[str, str]]) -> int:
        return [await self.stores[0].operation_outcome(*write) for write in writes].count("applied")


@asynccontextmanager
async def memory_stage() -> AsyncGenerator[MemoryStage]:
    stores = MemoryStorageBackend(name="hot"), MemoryStorageBackend(name="cold")
    harmed = Harmed(stores[0])
    storage = DualWrite(
        Timeout(harmed, per_attempt=0.1), stores[1], poll=0.1, dwell=0.5, durable_at_least="volatile", lag=0.3
    )
    async with storage:
        yield MemoryStage(storage, harmed, stores)
