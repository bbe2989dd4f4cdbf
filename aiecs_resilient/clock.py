"""The two clocks everything here reads, so that a test or a simulation can own time.

``monotonic()`` is the running loop's own clock (a virtual-time loop moves it at will); ``wall_us()`` is UTC in
integer microseconds, replaceable for the current context with :func:`use_wall_clock`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")


def _system_wall_us() -> int:
    return time.time_ns() // 1_000


_wall: ContextVar[Callable[[], int]] = ContextVar("aiecs_wall_clock", default=_system_wall_us)


def wall_us() -> int:
    """Microseconds since the epoch, UTC."""
    return _wall.get()()


def monotonic() -> float:
    """Seconds on the running event loop's clock: what deadlines are measured on."""
    return asyncio.get_running_loop().time()


@contextmanager
def use_wall_clock(clock: Callable[[], int]) -> Generator[None]:
    """Replace :func:`wall_us` inside the block, and in tasks started there."""
    token = _wall.set(clock)
    try:
        yield
    finally:
        _wall.reset(token)


def spawn(coroutine: Coroutine[object, object, T], *, name: str) -> asyncio.Task[T]:
    """Start a background task in an empty context: it must not inherit the operation that happened to start it."""
    context = Context()
    context.run(_wall.set, _wall.get())
    return asyncio.get_running_loop().create_task(coroutine, name=name, context=context)


def iso(us: int) -> str:
    """Naive UTC ISO-8601 with microseconds, the form in which times leave this library (consumers subtract ``utcnow()``)."""
    return (
        datetime.fromtimestamp(us // 1_000_000, UTC)
        .replace(microsecond=us % 1_000_000, tzinfo=None)
        .isoformat(timespec="microseconds")
    )
