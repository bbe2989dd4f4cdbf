"""Permits for calls to one store: who may go, who waits, and in which order those that wait are let through.

Counted, not a semaphore: a call that need not wait costs two comparisons. A permit that becomes free is handed to one
waiter, so nobody can overtake; a waiter that goes away hands it on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from ._adaptive import GradientLimit

Waiter = asyncio.Future[bool]
"""True when it has a permit, False when it waited too long."""


@dataclass(slots=True)
class Permits:
    """The permits of one store; outlives a reload, so that an old and a new chain together keep its limit.

    Attributes:
        limit: calls at once.
        reserved: permits beyond that for calls that go first.
        running: calls under way.
        waiting: calls that wait, those that go first not counted.
        admitted, refused: how many there were.
        adaptive: what moves ``limit``, if something does.
    """

    limit: int = 1
    reserved: int = 0
    running: int = 0
    waiting: int = 0
    admitted: int = 0
    refused: int = 0
    adaptive: GradientLimit | None = None
    _first: deque[Waiter] = field(default_factory=deque[Waiter])
    _groups: OrderedDict[str, deque[Waiter]] = field(default_factory=OrderedDict[str, deque[Waiter]])

    def configure(self, limit: int, reserved: int, least: int | None) -> None:
        """Other limits; ``least`` if the limit shall adapt between it and ``limit``. What is under way stays."""
        self.reserved = reserved
        if least is None:
            self.adaptive, self.limit = None, limit
        elif self.adaptive is None:
            self.adaptive, self.limit = GradientLimit(least, limit), limit
        else:
            self.adaptive.bounds(least, limit)
            self.limit = int(self.adaptive.limit)
        self._admit()

    def take(self) -> bool:
        """A permit at once, if nobody waits for one."""
        if self.running < self.limit and not self.waiting:
            self.running += 1
            self.admitted += 1
            return True
        return False

    def take_first(self) -> bool:
        """A permit at once for a call that goes first."""
        if self.running < self.limit + self.reserved and not self._first:
            self.running += 1
            self.admitted += 1
            return True
        return False

    def give(self) -> None:
        """A call has ended."""
        self.running -= 1
        if self._first or self.waiting:
            self._admit()

    async def wait(self, group: str, seconds: float | None) -> bool:
        """Wait for a permit; False if there was none in time. Groups take turns, calls of one group go in order.

        A cancelled wait leaves nothing behind.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._groups.setdefault(group, deque()).append(waiter)
        self.waiting += 1
        try:
            return await self._granted(waiter, seconds)
        finally:
            self._leave(group, waiter)

    async def wait_first(self, seconds: float | None) -> bool:
        """Wait in the line of those that go first."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._first.append(waiter)
        try:
            return await self._granted(waiter, seconds)
        finally:
            if waiter in self._first:
                self._first.remove(waiter)

    async def _granted(self, waiter: Waiter, seconds: float | None) -> bool:
        timer = (
            None
            if seconds is None
            else asyncio.get_running_loop().call_later(max(0.0, seconds), _expire, waiter)
        )
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.give()  # it came in the same moment in which the caller went away
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def succeeded(self, operation: str, seconds: float) -> None:
        """For an adaptive limit: a call took so long."""
        if self.adaptive is not None:
            self.adaptive.succeeded(operation, seconds, self.running)
            self.limit = int(self.adaptive.limit)

    def failed(self) -> None:
        """For an adaptive limit: the store failed."""
        if self.adaptive is not None:
            self.adaptive.failed()
            self.limit = int(self.adaptive.limit)

    def _leave(self, group: str, waiter: Waiter) -> None:
        queue = self._groups.get(group)
        if queue is None or waiter not in queue:  # it was let through
            return
        queue.remove(waiter)
        self.waiting -= 1
        if not queue:
            del self._groups[group]

    def _admit(self) -> None:
        while self._first and self.running < self.limit + self.reserved:
            self._grant(self._first.popleft())
        while self._groups and self.running < self.limit:
            group, queue = next(iter(self._groups.items()))
            waiter = queue.popleft()
            self.waiting -= 1
            if queue:
                self._groups.move_to_end(group)
            else:
                del self._groups[group]
            self._grant(waiter)

    def _grant(self, waiter: Waiter) -> None:
        if waiter.done():  # cancelled or out of time, and not yet gone
            return
        self.running += 1
        self.admitted += 1
        waiter.set_result(True)


def _expire(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(False)
