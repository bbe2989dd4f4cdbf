"""A layer that fails, waits and lies as it is told: each call takes the next step of its script, then passes to the store."""

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import UniformLayer
from aiecs_resilient.operations import Operation, active


@dataclass(frozen=True)
class Delay:
    """Answer after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Lost:
    """Do it, then fail: the reply was lost."""

    error: BaseException


@dataclass(frozen=True)
class LateAnswer:
    """Do it at once, answer after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Late:
    """Wait, then fail, having done nothing."""

    seconds: float
    error: BaseException


class Hang:
    """Never answer."""


OK = None
Step = BaseException | Delay | Late | LateAnswer | Lost | Hang | type[Hang] | None


@dataclass(frozen=True)
class Call:
    """A call as it arrived at the store."""

    operation: str
    op_id: str
    at: float
    deadline: float | None


class Scripted(UniformLayer):
    """Takes one step of ``script`` per call; when it is over, ``then`` (if given) for ever."""

    layer_name = "scripted"

    def __init__(self, inner: Backend, script: Iterable[Step] = (), *, then: Step = OK) -> None:
        super().__init__(inner)
        self.script = deque(script)
        self.then = then
        self.calls: list[Call] = []
        self.ended = 0

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        context = active()
        self.calls.append(
            Call(
                op.name,
                context.op_id if context else "",
                monotonic(),
                context.deadline if context else None,
            )
        )
        step = self.script.popleft() if self.script else copy.deepcopy(self.then)  # an error is written on
        try:
            match step:
                case BaseException():
                    raise step
                case Delay():
                    await asyncio.sleep(step.seconds)
                case Late():
                    await asyncio.sleep(step.seconds)
                    raise step.error
                case Lost():
                    await call(*args, **kwargs)
                    raise step.error
                case LateAnswer():
                    answer = await call(*args, **kwargs)
                    await asyncio.sleep(step.seconds)
                    return answer
                case Hang() | type():
                    await asyncio.Event().wait()
                case _:
                    pass
            return await call(*args, **kwargs)
        finally:
            self.ended += 1

    @property
    def running(self) -> int:
        """Calls that have arrived and not ended."""
        return len(self.calls) - self.ended


async def store(*script: Step, then: Step = OK) -> Scripted:
    """An open memory store that follows the script."""
    scripted = Scripted(MemoryStorageBackend(), script, then=then)
    await scripted.initialize()
    return scripted


class Ignorant(Scripted):
    """A store that knows no op_id: a repeated write is a second effect."""

    def __init__(self, inner: Backend, script: Iterable[Step] = (), *, then: Step = OK) -> None:
        super().__init__(inner, script, then=then)
        self.honours_op_id = False
