"""Going on with a coroutine whose first step was taken by hand.

A timer costs five to nine microseconds, and most calls into memory or a cache never suspend. So the layers that limit
time take the inner call's first step themselves, and arm a timer only when it has to wait::

    steps = call(*args).__await__()
    try:
        waiting = steps.send(None)          # the same task, the same context: as ``await`` does it
    except StopIteration as done:
        return done.value                   # it did not suspend: no timer was needed
    async with asyncio.timeout_at(when):
        return await resumed(steps, waiting)
"""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def resumed(steps: Generator[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """Await the rest of ``steps``, which has just yielded ``waiting`` (what the event loop is to wait for).

    Everything the loop sends or throws, a cancellation included, reaches the call as if it had been awaited directly.
    """
    while True:
        try:
            yield waiting
        except BaseException as error:  # noqa: BLE001  handed on as `await` would, be it a cancellation
            try:
                waiting = steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
        else:
            return (yield from steps)
