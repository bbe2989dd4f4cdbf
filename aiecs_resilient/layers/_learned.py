"""How long operations take, learned from the last ones of each kind: what hedging, shedding and learned limits go by."""

from __future__ import annotations

from collections import deque

_KEPT = 200
"""Durations that are remembered: enough for a 99th percentile, few enough to follow a change within seconds."""

_LEAST = 20
"""Durations below which nothing is said."""

_REFRESH = 10
"""Durations after which percentiles are worked out anew."""


class Durations:
    """The last durations of one kind of operation, in seconds."""

    __slots__ = ("_fresh", "_kept", "_sorted")

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=_KEPT)
        self._sorted: list[float] = []
        self._fresh = 0

    def add(self, seconds: float) -> None:
        """One more; of a call that was given up, how long it had lasted."""
        self._kept.append(seconds)
        self._fresh += 1

    def at(self, share: float) -> float | None:
        """Seconds within which this share of the last calls ended, None while too few are known."""
        if len(self._kept) < _LEAST:
            return None
        if self._fresh >= _REFRESH or not self._sorted:
            self._sorted, self._fresh = sorted(self._kept), 0
        return self._sorted[min(int(share * len(self._sorted)), len(self._sorted) - 1)]


class Learned:
    """Durations by operation name; outlives a reload."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Durations] = {}

    def of(self, operation: str) -> Durations:
        """Those of one kind."""
        found = self._by_name.get(operation)
        if found is None:
            found = self._by_name[operation] = Durations()
        return found

    def shown(self, share: float) -> dict[str, float]:
        """The percentile of each kind of which enough is known, for metrics."""
        values = {name: durations.at(share) for name, durations in self._by_name.items()}
        return {name: round(value, 6) for name, value in values.items() if value is not None}
