"""Latency of one kind of operation in bounded memory: counts in buckets that grow by 4 %, so percentiles are within 2 %.

Exact total, minimum and maximum beside them. At most 700 buckets between 100 ns and 28 hours, and only those that were
met take memory.
"""

from __future__ import annotations

import math

_GROWTH = 1.04
_SCALE = 1 / math.log(_GROWTH)
_SHORTEST, _LONGEST = 1e-7, 1e5
_OFFSET = math.ceil(-math.log(_SHORTEST) * _SCALE)  # makes every index positive, so that int() rounds down


class Latency:
    """Durations in seconds, as a histogram."""

    __slots__ = ("_buckets", "count", "longest", "shortest", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.shortest = math.inf
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.count += 1
        self.total += seconds
        if seconds < self.shortest:
            self.shortest = seconds
        if seconds > self.longest:
            self.longest = seconds
        bounded = _SHORTEST if seconds < _SHORTEST else min(seconds, _LONGEST)
        index = int(math.log(bounded) * _SCALE + _OFFSET)
        self._buckets[index] = self._buckets.get(index, 0) + 1

    def mean(self) -> float:
        """Seconds; 0 if nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantiles(self, *shares: float) -> list[float]:
        """Seconds within which these shares of all durations lie, in one pass; 0 if nothing was counted.

        Args:
            shares: between 0 and 1, ascending.
        """
        if not self.count:
            return [0.0] * len(shares)
        found: list[float] = []
        buckets = sorted(self._buckets.items())
        seen, place = 0, -1
        for share in shares:
            rank = max(1, math.ceil(share * self.count))
            while seen < rank:
                place += 1
                seen += buckets[place][1]
            middle = math.exp((buckets[place][0] - _OFFSET + 0.5) / _SCALE)
            found.append(min(max(middle, self.shortest), self.longest))
        return found
