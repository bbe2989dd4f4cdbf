"""Cancels a call at each point where it waits, one point per run: the way to show that no cancellation is swallowed."""

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from aiecs_resilient.operations import active


@types.coroutine
def _cancelled_at(
    point: int, steps: Generator[Any, Any, Any], reached: list[int]
) -> Generator[Any, Any, Any]:
    """Await ``steps``, cancelling the current task just before its wait number ``point``."""
    number = 0
    waiting = steps.send(None)
    while True:
        if number == point:
            reached.append(number)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        number += 1
        try:
            sent = yield waiting
        except BaseException as error:  # noqa: BLE001  handed on, as `await` would
            waiting = steps.throw(error)
        else:
            waiting = steps.send(sent)


async def _drive(point: int, call: Awaitable[Any], reached: list[int]) -> Any:
    try:
        return await _cancelled_at(point, call.__await__(), reached)
    except RuntimeError as error:  # a generator turns the StopIteration of what it drives into this
        if isinstance(error.__cause__, StopIteration):
            return error.__cause__.value
        raise


async def cancel_everywhere(
    scenario: Callable[[], Awaitable[tuple[Awaitable[Any], Callable[[], Awaitable[None]]]]],
) -> int:
    """Run a call once for each of its waits, cancelled there, and check what is left each time.

    Args:
        scenario: builds everything afresh and returns the call to be cancelled, and what must hold afterwards.

    Returns:
        How many waits there were. The last run, which is not cancelled, must succeed or fail by itself.
    """
    point = 0
    while True:
        call, check = await scenario()
        before = asyncio.all_tasks()
        reached: list[int] = []
        task = asyncio.create_task(_drive(point, call, reached))
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        if not reached:
            assert not isinstance(outcome, asyncio.CancelledError)
            return point
        assert isinstance(outcome, asyncio.CancelledError), f"swallowed at wait {point}: {outcome!r}"
        assert task.cancelled()
        assert asyncio.all_tasks() <= before, "a task was left behind"
        assert active() is None
        await check()
        point += 1
