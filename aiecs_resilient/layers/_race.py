"""Two calls for one answer: the second starts late, the first good answer counts, and the loser is gone when it is given.

The first call runs in its caller's own task, as without hedging, so a call that is answered in time costs one timer. Only
the second has a task. If it wins, the first is cut off the way ``asyncio.timeout`` cuts a block off: a cancellation from
outside that comes at the same time is not lost in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from ..errors import StorageError
from ..operations import OperationContext, enter, finish
from ._steps import resumed

T = TypeVar("T")


class Race(Generic[T]):
    """One operation, asked once or twice.

    Args:
        context: the operation's; it holds the winner's account afterwards.
        second: makes the second call.
        may_start: asked when the second call is due; False leaves it at the first.

    Attributes:
        started: the second call was made.
        won: its answer was the one given.
        unasked: it was refused before it reached the store.
    """

    def __init__(
        self, context: OperationContext, second: Callable[[], Awaitable[T]], may_start: Callable[[], bool]
    ) -> None:
        self._context = context
        self._twin = context.twin()
        self._second = second
        self._may_start = may_start
        self._scope = asyncio.timeout(None)
        self._task: asyncio.Task[T] | None = None
        self._first_runs = True
        self._told = False  # the error that is raised counts the second call too
        self.won = False

    @property
    def started(self) -> bool:
        return self._task is not None

    @property
    def unasked(self) -> bool:
        return isinstance(error := self._failure(), StorageError) and not error.attempts

    async def run(self, steps: Generator[Any, Any, T], waiting: Any, due: float) -> T:
        """The answer. ``steps`` is the first call, which has just yielded ``waiting``; the second starts at ``due``."""
        timer = asyncio.get_running_loop().call_at(due, self._start)
        try:
            return await self._decide(steps, waiting)
        finally:
            timer.cancel()
            await self._let_go()

    async def _decide(self, steps: Generator[Any, Any, T], waiting: Any) -> T:
        try:
            async with self._scope:
                try:
                    return await resumed(steps, waiting)
                finally:
                    self._first_runs = False
        except TimeoutError:
            if not self._scope.expired() or self._task is None:  # somebody else's
                raise
            self._context.attempts += 1  # the first one's, which was cut off
            return self._winner(self._task)
        except StorageError as error:
            if not error.transient or self._task is None:
                raise
            await asyncio.wait({self._task})
            failure = self._failure()
            if failure is None and not self._task.cancelled():
                self._context.attempts += error.attempts
                return self._winner(self._task)
            if isinstance(failure, StorageError):
                error.attempts += failure.attempts
            self._told = True
            raise

    def _winner(self, task: asyncio.Task[T]) -> T:
        self.won = True
        self._context.adopt(self._twin)
        return task.result()

    # ------------------------------------------------------------------ the second call

    def _start(self) -> None:
        if self._first_runs and self._may_start():
            self._task = asyncio.get_running_loop().create_task(self._run_second(), name="aiecs hedge")
            self._task.add_done_callback(self._ended)

    async def _run_second(self) -> T:
        token = enter(self._twin)
        try:
            return await self._second()
        finally:
            finish(token)

    def _ended(self, task: asyncio.Task[T]) -> None:
        if self._first_runs and not task.cancelled() and task.exception() is None:
            self._scope.reschedule(asyncio.get_running_loop().time())  # cut the first one off

    def _failure(self) -> BaseException | None:
        task = self._task
        return None if task is None or not task.done() or task.cancelled() else task.exception()

    async def _let_go(self) -> None:
        """The second call, if it lost, is over when this returns, whatever else happens to the caller."""
        task = self._task
        if task is None or self.won or self._told:
            return
        if not task.done():
            task.cancel()
            self._context.attempts += 1
        else:
            failure = self._failure()
            self._context.attempts += (
                failure.attempts if isinstance(failure, StorageError) else self._twin.attempts
            )
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
