"""At most so many log lines per second of one kind: an outage must not fill the disk with one sentence."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 1.0  # second


@dataclass(slots=True)
class _Window:
    since: float
    shown: int = 0
    dropped: int = 0


class Throttle:
    """Counts lines by kind; those over the limit are dropped, and the next one that passes says how many.

    Args:
        limit: lines per second of one kind.
        kinds: how many kinds are kept apart; when more appear, counting starts anew.
    """

    def __init__(self, limit: int, *, kinds: int = 1_000) -> None:
        self._limit = limit
        self._kinds = kinds
        self._windows: dict[tuple[str, ...], _Window] = {}

    def admit(self, kind: tuple[str, ...], now: float) -> int | None:
        """None if this line is to be dropped, else how many of its kind were dropped before it.

        Args:
            kind: what makes lines alike, such as event and store.
            now: seconds on a monotonic clock.
        """
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= self._kinds:
                self._windows.clear()
            window = self._windows[kind] = _Window(now)
        if now - window.since >= WINDOW:
            window.since, window.shown = now, 0
        if window.shown >= self._limit:
            window.dropped += 1
            return None
        window.shown += 1
        dropped, window.dropped = window.dropped, 0
        return dropped
