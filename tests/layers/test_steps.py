"""A call whose first step was taken by hand behaves as if it had been awaited."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from aiecs_resilient.layers._steps import resumed

VIRTUAL_TIME = True

variable: ContextVar[str] = ContextVar("variable", default="unset")


async def by_hand(call: Awaitable[Any]) -> Any:
    steps = call.__await__()
    try:
        waiting = steps.send(None)
    except StopIteration as done:
        return done.value
    return await resumed(steps, waiting)


async def plain(call: Awaitable[Any]) -> Any:
    return await call


@pytest.fixture(params=[plain, by_hand])
def awaited(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """The two ways to await, held to the same truths."""
    return request.param


async def test_a_result_comes_through(awaited: Callable[..., Any]) -> None:
    """What the call returns is returned, whether it waited never, once or often."""

    async def call(waits: int) -> int:
        for _ in range(waits):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1 * waits)
        return waits

    assert [await awaited(call(n)) for n in range(4)] == [0, 1, 2, 3]


async def test_a_future_can_be_awaited_too(awaited: Callable[..., Any]) -> None:
    """Not only coroutines: anything awaitable, and its failure is raised inside the call."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(1, future.set_result, 5)
    assert await awaited(future) == 5
    failing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(1, failing.set_exception, ValueError("no"))

    async def call() -> str:
        try:
            await failing
        except ValueError as error:
            await asyncio.sleep(1)
            return f"caught {error}"
        return "nothing to catch"

    assert await awaited(call()) == "caught no"


async def test_an_error_comes_through_with_its_cause(awaited: Callable[..., Any]) -> None:
    """An exception leaves as it was raised, in the first step or later."""

    async def call(late: bool) -> None:
        if late:
            await asyncio.sleep(1)
        raise KeyError("inside") from ValueError("cause")

    for late in (False, True):
        with pytest.raises(KeyError, match="inside") as caught:
            await awaited(call(late))
        assert isinstance(caught.value.__cause__, ValueError)


async def test_a_cancellation_reaches_the_call_and_may_clean_up(awaited: Callable[..., Any]) -> None:
    """The call may wait while it cleans up, at its first wait and at later ones, and a second cancellation interrupts that."""
    log: list[str] = []

    async def call(waits: int) -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cleaning")
            await asyncio.sleep(5)
            log.append("clean")

    for waits in (0, 1, 2):
        log.clear()
        task = asyncio.create_task(awaited(call(waits)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["cleaning", "clean"]
        log.clear()
        task = asyncio.create_task(awaited(call(waits)))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["cleaning"]


async def test_a_call_may_refuse_to_be_cancelled(awaited: Callable[..., Any]) -> None:
    """Swallowing a cancellation is the call's own affair, as with a plain await."""

    async def call() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "stayed"
        return "unreachable"

    task = asyncio.create_task(awaited(call()))
    await asyncio.sleep(1)
    task.cancel()
    assert await task == "stayed"


async def test_it_runs_in_the_same_task_and_context(awaited: Callable[..., Any]) -> None:
    """Context variables set inside are seen outside, and the current task is the caller's, before and after a wait."""

    async def call(late: bool) -> asyncio.Task[Any] | None:
        if late:
            await asyncio.sleep(0)
        variable.set(f"set {late}")
        return asyncio.current_task()

    for late in (False, True):
        assert await awaited(call(late)) is asyncio.current_task()
        assert variable.get() == f"set {late}"


async def test_abandoning_the_outer_call_closes_the_inner(awaited: Callable[..., Any]) -> None:
    """Closing the coroutine runs the call's ``finally`` blocks."""
    log: list[str] = []

    async def call() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            log.append("closed")

    coroutine = awaited(call())
    coroutine.send(None)
    coroutine.close()
    assert log == ["closed"]


async def test_timeouts_inside_keep_working(awaited: Callable[..., Any]) -> None:
    """A time limit inside the call cancels and un-cancels the same task."""

    async def call() -> str:
        try:
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.sleep(1)
            return "timed out inside"
        return "unreachable"

    async with asyncio.timeout(10):
        assert await awaited(call()) == "timed out inside"
