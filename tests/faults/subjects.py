"""What is held against the model: a store alone, and the whole chain over stores that fail, on virtual time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.clock import use_wall_clock
from aiecs_resilient.errors import StorageConnectionError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import UniformLayer
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import Operation
from aiecs_resilient.testing.clock import VirtualTimeLoop

T = TypeVar("T")

State = Literal["up", "refusing", "losing replies", "hanging"]


class Leg(UniformLayer):
    """A store that can be reached, or not, or only one way."""

    layer_name = "leg"

    def __init__(self, name: str) -> None:
        self.store = MemoryStorageBackend(name=name)
        super().__init__(self.store)
        self.state: State = "up"

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        match self.state:
            case "refusing":
                raise StorageConnectionError("connection refused", outcome="not_applied", backend=self.name)
            case "hanging":
                await asyncio.Event().wait()
            case "losing replies":
                await call(*args, **kwargs)
                raise StorageConnectionError("the reply was lost", backend=self.name)
            case "up":
                pass
        return await call(*args, **kwargs)


Wrap = Callable[[Backend], Backend]


def chain(
    hot: Leg,
    cold: Leg,
    *,
    above: Wrap = lambda inner: inner,
    inside: Wrap = lambda inner: inner,
    pace: float = 1.0,
) -> Backend:
    """The layers of the shipped chain over these two, with times that suit a test.

    Args:
        above, inside: puts something around the whole chain, or around each store inside its ``retry``.
        pace: shortens all times but the deadline.
    """

    def leg(leg: Leg, per_attempt: float) -> Backend:
        limited = inside(Timeout(leg, per_attempt=per_attempt))
        return Retry(CircuitBreaker(limited, open_for=pace, max_open_for=2 * pace), base_delay=0.05 * pace)

    both = DualWrite(
        leg(hot, 0.25 * pace),
        leg(cold, 0.5 * pace),
        durable_at_least="volatile",
        poll=0.5 * pace,
        dwell=pace,
        lag=pace,
    )
    return above(Deadline(both, total=4.0))


class Subject:
    """A storage that a synchronous test drives, call by call."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._runner = asyncio.Runner(loop_factory=loop_factory)
        self._context = contextvars.copy_context()
        loop = self._runner.get_loop()
        if isinstance(loop, VirtualTimeLoop):
            self._context.run(lambda: use_wall_clock(loop.wall_us).__enter__())
        self.storage = self._make()
        self.run(self._open())

    def _make(self) -> Backend:
        raise NotImplementedError

    async def _open(self) -> None:
        await self.storage.initialize()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call, context=self._context)

    def close(self) -> None:
        self.run(self.storage.close())
        self._runner.close()


class MemorySubject(Subject):
    """The reference backend."""

    def __init__(self) -> None:
        super().__init__(VirtualTimeLoop)

    def _make(self) -> Backend:
        return MemoryStorageBackend()


class SQLiteSubject(Subject):
    """A file, on real time: its threads know no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(asyncio.new_event_loop)

    def _make(self) -> Backend:
        return SQLiteStorageBackend(self._path)


class ChainSubject(Subject):
    """The layers of the shipped chain over two stores in memory, each behind a leg that fails when told."""

    def __init__(self) -> None:
        self.legs = (Leg("hot"), Leg("cold"))
        super().__init__(VirtualTimeLoop)

    def _make(self) -> Backend:
        return chain(*self.legs)

    def heal(self) -> None:
        """Everything works again, and there was time to catch up."""
        for leg in self.legs:
            leg.state = "up"
        self.run(asyncio.sleep(30))
