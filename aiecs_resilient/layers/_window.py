"""How a store has done lately: calls, how many of them failed, how many were slow; over the last N calls or seconds.

Adding is O(1) whatever the window's size, and the totals are kept, not counted.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

_BUCKETS = 10
"""Steps in which a window of time slides: a tenth of it leaves at once."""

_FAILED, _SLOW = 1, 2


class Totals(NamedTuple):
    """What a window holds now."""

    calls: int
    failed: int
    slow: int


class Window(Protocol):
    """A sliding window. ``now`` is seconds on any clock that does not run backwards.

    Attributes:
        failed: of the calls it holds; a window of time may hold some that :meth:`totals` would drop.
    """

    failed: int

    def add(self, failed: bool, slow: bool, now: float) -> None: ...

    def totals(self, now: float) -> Totals: ...

    def clear(self) -> None: ...


class CountWindow:
    """The last ``size`` calls."""

    __slots__ = ("_calls", "_next", "_ring", "_slow", "failed")

    def __init__(self, size: int) -> None:
        self._ring = bytearray(size)
        self._next = self._calls = self.failed = self._slow = 0

    def add(self, failed: bool, slow: bool, now: float) -> None:
        ring, place = self._ring, self._next
        entry = (_FAILED if failed else 0) | (_SLOW if slow else 0)
        if self._calls < len(ring):
            self._calls += 1
        elif ring[place]:
            left = ring[place]
            self.failed -= left & _FAILED
            self._slow -= left >> 1
        if entry:
            self.failed += entry & _FAILED
            self._slow += entry >> 1
        ring[place] = entry
        place += 1
        self._next = place if place < len(ring) else 0

    def totals(self, now: float) -> Totals:
        return Totals(self._calls, self.failed, self._slow)

    def clear(self) -> None:
        self._next = self._calls = self.failed = self._slow = 0


class TimeWindow:
    """The calls of the last ``seconds``, in ten steps."""

    __slots__ = ("_buckets", "_calls", "_slow", "_step", "failed")

    def __init__(self, seconds: float) -> None:
        self._step = seconds / _BUCKETS
        self._buckets: deque[list[int]] = deque()  # [step, calls, failed, slow], oldest first
        self._calls = self.failed = self._slow = 0

    def add(self, failed: bool, slow: bool, now: float) -> None:
        step = int(now / self._step)
        buckets = self._buckets
        if not buckets or buckets[-1][0] < step:
            self._expire(step)
            buckets.append([step, 0, 0, 0])
        bucket = buckets[-1]
        bucket[1] += 1
        self._calls += 1
        if failed:
            bucket[2] += 1
            self.failed += 1
        if slow:
            bucket[3] += 1
            self._slow += 1

    def totals(self, now: float) -> Totals:
        self._expire(int(now / self._step))
        return Totals(self._calls, self.failed, self._slow)

    def clear(self) -> None:
        self._buckets.clear()
        self._calls = self.failed = self._slow = 0

    def _expire(self, step: int) -> None:
        buckets = self._buckets
        while buckets and buckets[0][0] <= step - _BUCKETS:
            _step, calls, failed, slow = buckets.popleft()
            self._calls -= calls
            self.failed -= failed
            self._slow -= slow
