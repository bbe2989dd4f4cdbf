"""Latency of one kind of operation in bounded memory: counts in buckets that grow by 4 %, so percentiles are within 2 %.

Exact total, minimum and maximum beside them. At most 700 buckets between 100 ns and 28 hours, and only those that were
met take memory. Durations go into buckets a few hundred at a time, so that adding one costs next to nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left

_GROWTH = 1.04
_SCALE = 1 / math.log(_GROWTH)
_SHORTEST, _LONGEST = 1e-7, 1e5
_OFFSET = math.ceil(-math.log(_SHORTEST) * _SCALE)  # makes every index positive, so that int() rounds down
_UNSORTED = 256


def _bucket(seconds: float) -> int:
    return int(math.log(min(max(seconds, _SHORTEST), _LONGEST)) * _SCALE + _OFFSET)


class Latency:
    """Durations in seconds, as a histogram."""

    __slots__ = ("_buckets", "_counted", "_longest", "_shortest", "_total", "_unsorted")

    def __init__(self) -> None:
        self._unsorted: list[float] = []
        self._buckets: dict[int, int] = {}
        self._counted = 0
        self._total = 0.0
        self._shortest = math.inf
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._unsorted.append(seconds)
        if len(self._unsorted) >= _UNSORTED:
            self._sort()

    def _sort(self) -> None:
        fresh, self._unsorted = self._unsorted, []
        if not fresh:
            return
        fresh.sort()
        self._counted += len(fresh)
        self._total += math.fsum(fresh)
        self._shortest = min(self._shortest, fresh[0])
        self._longest = max(self._longest, fresh[-1])
        place = 0
        while place < len(fresh):  # one step per bucket met, not per duration
            index = _bucket(fresh[place])
            end = bisect_left(fresh, math.exp((index + 1 - _OFFSET) / _SCALE), place + 1)
            if fresh[place] >= _LONGEST:
                end = len(fresh)
            self._buckets[index] = self._buckets.get(index, 0) + end - place
            place = end

    @property
    def count(self) -> int:
        """How many durations were added."""
        return self._counted + len(self._unsorted)

    @property
    def shortest(self) -> float:
        """Seconds; 0 if nothing was counted."""
        self._sort()
        return self._shortest if self._counted else 0.0

    @property
    def longest(self) -> float:
        """Seconds; 0 if nothing was counted."""
        self._sort()
        return self._longest

    def mean(self) -> float:
        """Seconds; 0 if nothing was counted."""
        self._sort()
        return self._total / self._counted if self._counted else 0.0

    def quantiles(self, *shares: float) -> list[float]:
        """Seconds within which these shares of all durations lie, in one pass; 0 if nothing was counted.

        Args:
            shares: between 0 and 1, ascending.
        """
        self._sort()
        if not self._counted:
            return [0.0] * len(shares)
        found: list[float] = []
        buckets = sorted(self._buckets.items())
        seen, place = 0, -1
        for share in shares:
            rank = max(1, math.ceil(share * self._counted))
            while seen < rank:
                place += 1
                seen += buckets[place][1]
            middle = math.exp((buckets[place][0] - _OFFSET + 0.5) / _SCALE)
            found.append(min(max(middle, self._shortest), self._longest))
        return found
