"""How many calls a store can take at once, found out from how long they take.

A gradient limit, after those of Netflix' concurrency-limits. Each kind of operation has the least time that it takes when
nobody is in its way. While calls take about that, the limit grows by its square root; when they take a multiple, a queue
has formed in the store, and the limit shrinks in proportion. A fault shrinks it by a tenth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_ROUND = 20  # calls at least between two changes, and as many as were under way: what changed must show first
_TOLERANCE = 2.0  # how often the least time is still no queue
_SMOOTHING = 0.5
_BACK_OFF = 0.9
_FORGET = 1e-5  # by how much the least time rises per call: a store may have become slower for good
_FORGET_FAST = 1e-2  # the same at the lowest limit, where what it takes is what it takes


@dataclass(slots=True)
class GradientLimit:
    """Watches calls and moves ``limit`` between ``least`` and ``most``."""

    least: int
    most: int
    limit: float = 0.0
    _unhindered: dict[str, float] = field(default_factory=dict[str, float])
    _stretched: float = 0.0
    _calls: int = 0
    _nearest: int = 0

    def __post_init__(self) -> None:
        self.limit = self.limit or float(self.most)

    def bounds(self, least: int, most: int) -> None:
        """Other bounds; what was learned stays, as far as it fits."""
        self.least, self.most = least, most
        self._move_to(self.limit)

    def succeeded(self, operation: str, seconds: float, running: int) -> None:
        """A call took so long while so many were under way."""
        seconds = max(seconds, 1e-6)
        forget = _FORGET_FAST if self.limit <= self.least else _FORGET
        base = min(seconds, self._unhindered.get(operation, seconds) * (1 + forget))
        self._unhindered[operation] = base
        self._calls += 1
        self._stretched += seconds / base
        self._nearest = max(self._nearest, running)
        if self._calls < max(_ROUND, self.limit):
            return
        stretch, near = self._stretched / self._calls, self._nearest * 2 >= self.limit
        self._calls, self._stretched, self._nearest = 0, 0.0, 0
        if stretch > _TOLERANCE:
            self._move_to(self.limit * (1 - _SMOOTHING * min(0.5, 1 - _TOLERANCE / stretch)))
        elif near:  # a limit that nobody comes near says nothing about itself
            self._move_to(self.limit + math.sqrt(self.limit) * _SMOOTHING)

    def failed(self) -> None:
        """The store failed or gave no answer in time."""
        self._move_to(self.limit * _BACK_OFF)

    def _move_to(self, limit: float) -> None:
        self.limit = min(max(limit, self.least), self.most)
