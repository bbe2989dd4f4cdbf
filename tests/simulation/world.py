"""A small world on virtual time: stores, links and processes that fail on schedule, under the real ``dual_write`` code.

Everything random comes from one seed, and time jumps to the next timer, so a history replays identically and thousands
of operations take a second. Stores are memory backends behind simulated servers: a killed one refuses, a stopped one
takes requests and runs them when it resumes, a link may lose the request or the reply.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import use_wall_clock
from aiecs_resilient.errors import StorageConnectionError, StorageTimeoutError
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import Effect, Operation

EPOCH_US = 1_800_000_000_000_000
CALL_TIMEOUT = 0.25


class Server:
    """One store's process: up, killed or stopped, with its own clock."""

    def __init__(self, name: str, rng: random.Random, skew_us: int = 0) -> None:
        self.name = name
        self.store = MemoryStorageBackend(name=name)
        self.rng = rng
        self.skew_us = skew_us
        self.alive = True
        self.running = asyncio.Event()
        self.running.set()

    def wall(self) -> int:
        return EPOCH_US + int(asyncio.get_running_loop().time() * 1_000_000) + self.skew_us

    def kill(self) -> None:
        """What was acknowledged stays: its log survives a killed process."""
        self.alive = False
        self.running.set()

    def restart(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.running.clear()

    def resume(self) -> None:
        self.running.set()

    async def serve(self, call: Callable[[], Awaitable[Any]]) -> Any:
        await self.running.wait()
        if not self.alive:
            raise StorageConnectionError("connection refused", outcome="not_applied", backend=self.name)
        with use_wall_clock(self.wall):
            return await call()


class Link(UniformLayer):
    """One process's way to one server: delay, loss of request or reply, partition, and a client-side time-out."""

    layer_name = "link"

    def __init__(self, server: Server, rng: random.Random) -> None:
        super().__init__(server.store)
        self.server = server
        self.rng = rng
        self.cut = False
        self.loss = 0.0
        self.dead = False
        self.late: set[asyncio.Task[Any]] = set()

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        if self.dead:
            await asyncio.Event().wait()
        await asyncio.sleep(self.rng.uniform(0.0001, 0.003))
        if self.cut:
            raise StorageConnectionError("no route to host", outcome="not_applied", backend=self.name)
        if self.rng.random() < self.loss / 2:
            raise StorageConnectionError("request lost", backend=self.name)
        lose_reply = self.rng.random() < self.loss
        task = asyncio.ensure_future(self.server.serve(lambda: call(*args, **kwargs)))
        self.late.add(task)
        task.add_done_callback(self._forget)
        done, _pending = await asyncio.wait({task}, timeout=CALL_TIMEOUT)
        await asyncio.sleep(self.rng.uniform(0.0001, 0.003))
        if not done:  # the server may still run it later
            raise StorageTimeoutError("no answer", backend=self.name)
        if self.cut or (lose_reply and op.effect is Effect.WRITE):
            raise StorageConnectionError("reply lost", backend=self.name)
        return task.result()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.late.discard(task)
        if not task.cancelled():
            task.exception()

    async def initialize(self) -> bool:
        await self.server.store.initialize()
        if self.cut or not self.server.alive:
            raise StorageConnectionError("cannot connect", outcome="not_applied", backend=self.name)
        return True

    async def close(self) -> None:
        """The store belongs to the world, not to this process."""


class Process:
    """One application process: its own clock, its own links, its own ``dual_write``."""

    def __init__(
        self, number: int, primary: Server, fallback: Server, rng: random.Random, **options: Any
    ) -> None:
        self.number = number
        self.rng = rng
        self.skew_us = rng.randint(-300_000, 300_000)
        self.links = (Link(primary, rng), Link(fallback, rng))
        self.storage = DualWrite(
            *self.links,
            **{"poll": 0.2, "dwell": 0.5, "lag": 0.5, "patience": 0.2, "durable_at_least": "volatile"}
            | options,
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.crashed = False

    def wall(self) -> int:
        return EPOCH_US + int(asyncio.get_running_loop().time() * 1_000_000) + self.skew_us

    async def start(self) -> None:
        with use_wall_clock(self.wall):
            await self.storage.initialize()

    def run(self, work: Callable[[Process], Awaitable[None]]) -> None:
        async def scene() -> None:
            with use_wall_clock(self.wall):
                await work(self)

        self.tasks.append(asyncio.ensure_future(scene()))

    async def crash(self) -> None:
        """End it where it stands: nothing is flushed, nothing closed."""
        self.crashed = True
        for link in self.links:
            link.dead = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.storage.router.stop()
        await self.storage._settler.abandon()

    async def close(self) -> None:
        if not self.crashed:
            with use_wall_clock(self.wall):
                await self.storage.close()


def dump(server: Server) -> dict[str, Any]:
    """One store's state as users could ever see it, key by key, for comparing two stores."""
    now = server.wall()
    state: dict[str, Any] = {}
    for key, tables in server.store._keys.items():
        current = server.store._current(tables, now)
        state[key] = {
            "session": current,
            "messages": [(op_id, stamp, tables.messages[op_id].content) for stamp, op_id in tables.order],
            "contexts": [(row.stamp, row.op_id) for row in tables.contexts],
            "checkpoints": [(place, row.stamp, row.op_id) for place, row in tables.live_checkpoints("")],
            "writes": sorted((place, row.stamp, row.op_id) for place, row in tables.writes.items()),
        }
    return {key: value for key, value in state.items() if any(value.values())}
