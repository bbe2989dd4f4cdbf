"""Time that a test owns: an event loop whose clock jumps, and a wall clock that moves only when told.

A test of timeouts, back-offs and open periods must neither sleep nor mock: under :class:`VirtualTimeLoop` an hour of timers
takes no time at all, because whenever nothing is ready to run the clock jumps to the next timer::

    def test_gives_up_after_a_minute() -> None:
        run_virtual(scenario())         # asyncio.sleep, asyncio.timeout, call_later: all in virtual time

Only time is virtual. While work is under way in a thread (``run_in_executor``, ``asyncio.to_thread``), or inside
``loop.real_time()``, the clock runs as fast as the real one, so that waiting for the world is not mistaken for idling.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar, TypeVarTuple, Unpack

from ..clock import use_wall_clock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_US = 1_700_000_000_000_000
"""Where fake wall clocks start: 2023-11-14T22:13:20 UTC. Fixed, so that runs repeat exactly."""


class FakeWallClock:
    """UTC microseconds that move only by :meth:`advance` and :meth:`set`; give it to ``use_wall_clock``.

    Args:
        start_us: where it starts, microseconds since the epoch.
        tick_us: how far it moves by itself each time it is read; 0 freezes it between advances.
    """

    def __init__(self, start_us: int = EPOCH_US, *, tick_us: int = 0) -> None:
        self._now_us = start_us
        self._tick_us = tick_us

    def __call__(self) -> int:
        now = self._now_us
        self._now_us += self._tick_us
        return now

    def advance(self, seconds: float) -> None:
        """Move by so many seconds; a negative number sets the clock back, as an operator may."""
        self._now_us += round(seconds * 1_000_000)

    def set(self, now_us: int) -> None:
        """Set it to this time, in microseconds since the epoch."""
        self._now_us = now_us

    def __repr__(self) -> str:
        return f"<FakeWallClock at {self._now_us} us>"


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait for the next timer, the clock jumps there instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.holds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)  # something is ready, or nothing is ever due: wait for the world
        if self.holds:
            started = time.monotonic()
            events = super().select(timeout)
            self.now += min(time.monotonic() - started, timeout)
            return events
        events = super().select(0)
        if not events:
            self.now += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` jumps to the next timer as soon as nothing else is ready. It starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def wall_us(self) -> int:
        """A wall clock that goes with the loop's time, for ``use_wall_clock``."""
        return EPOCH_US + round(self._jumping.now * 1_000_000)

    def stall(self, seconds: float) -> None:
        """Let time pass while nothing runs, as when this process was held up: timers find themselves late."""
        self._jumping.now += seconds

    @contextmanager
    def real_time(self) -> Generator[None]:
        """Inside, the clock keeps pace with the real one: for waiting on sockets, threads or processes."""
        self._jumping.holds += 1
        try:
            yield
        finally:
            self._jumping.holds -= 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.holds += 1
        future.add_done_callback(self._release)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Threads end in real time: the limit for them (Python 3.12 and later) must not be over at once."""
        with self.real_time():
            if sys.version_info >= (3, 12):
                await super().shutdown_default_executor(timeout)
            else:
                await super().shutdown_default_executor()

    def _release(self, _done: asyncio.Future[Any]) -> None:
        self._jumping.holds -= 1


def run_virtual(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run ``main`` to its end in virtual time, with a wall clock that goes along, and clean up like ``asyncio.run``."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=debug) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with use_wall_clock(loop.wall_us):
            return runner.run(main, context=copy_context())
