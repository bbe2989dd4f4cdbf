"""What is kept, and for how long: bounded in entries and in bytes, never cleaned up in one go.

Values are kept as bytes. That makes their size a fact, gives every reader a copy of its own, and costs less than copying
objects. cachetools keeps the order of use; time is ours, because its own expiry removes everything that is due at once.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Literal

from cachetools import LRUCache

Kind = Literal["session", "history", "context", "checkpoint"]
Place = tuple[Kind, str]
"""Where something is kept: what it is, and the id of the session or thread."""

OVERHEAD_BYTES = 600
"""What an entry takes beside its value: its object, its place, its share of two indexes. Measured with tracemalloc."""

STEP = 16
"""Entries that one fill looks at for being over: more than it adds, and few enough to take microseconds."""


class Entry:
    """One answer of the store.

    Attributes:
        data: the value, encoded; empty for "there is none".
        position, clock: as the store's answer reported them; None if it did not.
        fresh_until, refresh_from, kept_until: seconds on the loop's clock: when it is over, when a read should renew it,
            and until when it may stand in for a store that fails.
        size: bytes, all told.
        tag: which of several it is, where that can be asked: a checkpoint's id.
        negative: it says that there is none.
        live: it is still kept.
    """

    __slots__ = (
        "clock",
        "data",
        "fresh_until",
        "kept_until",
        "live",
        "negative",
        "position",
        "refresh_from",
        "size",
        "tag",
    )

    def __init__(self, data: bytes, position: int | None, clock: int | None, extra: int = 0) -> None:
        self.data = data
        self.position = position
        self.clock = clock
        self.size = OVERHEAD_BYTES + len(data) + extra
        self.negative = not data
        self.tag = ""
        self.live = False
        self.fresh_until = self.refresh_from = self.kept_until = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long entries are good for, in seconds.

    Attributes:
        ttl, negative_ttl: of what is there, and of what is not.
        jitter: share by which each is shorter at random, so that what was loaded together is not due together.
        refresh_ahead: share at the end in which a read renews it in the background.
        stale_if_error: beyond, while the store fails.
    """

    ttl: float
    negative_ttl: float
    jitter: float
    refresh_ahead: float
    stale_if_error: float

    def date(self, entry: Entry, now: float) -> None:
        """Write into an entry how long it is good for."""
        ttl = self.negative_ttl if entry.negative else self.ttl
        ttl *= 1.0 - self.jitter * random.random()  # noqa: S311  spreads load, guards nothing
        entry.fresh_until = now + ttl
        entry.refresh_from = entry.fresh_until - ttl * self.refresh_ahead
        entry.kept_until = entry.fresh_until + (0.0 if entry.negative else self.stale_if_error)


class _Held(LRUCache[Place, Entry]):
    """cachetools' order of use; who is put out for want of room is told."""

    evicted = 0

    def popitem(self) -> tuple[Place, Entry]:
        place, entry = super().popitem()
        entry.live = False
        self.evicted += 1
        return place, entry


class Entries:
    """Entries by place; the ones not used for longest leave first.

    Attributes:
        limits: entries and bytes at most.
        expired: left because their time was over.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.limits = (max_entries, max_bytes)
        self.expired = 0
        self._held = _Held(max_bytes, getsizeof=_size)
        self._queue: deque[tuple[Place, Entry]] = (
            deque()
        )  # in the order of arrival, which is about that of expiry

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """That all of them take."""
        return int(self._held.currsize)

    @property
    def evicted(self) -> int:
        """Left for want of room."""
        return self._held.evicted

    def get(self, place: Place) -> Entry | None:
        """What is there, good or not."""
        try:
            return self._held[place]
        except KeyError:
            return None

    def put(self, place: Place, entry: Entry, now: float) -> bool:
        """Keep it in place of what was there; False if it is larger than everything may be together."""
        self.drop(place)  # first: a replacement that does not fit would leave the old value standing
        if entry.size > self.limits[1]:
            return False
        self._held[place] = entry
        entry.live = True
        while len(self._held) > self.limits[0]:
            self._held.popitem()
        self._queue.append((place, entry))
        self.step(now)
        return True

    def drop(self, place: Place) -> bool:
        """It is not true any more. Whether there was something."""
        entry = self._held.pop(place, None)
        if entry is None:
            return False
        entry.live = False
        return True

    def clear(self) -> None:
        """Nothing is known to be true any more."""
        for _place, entry in self._queue:
            entry.live = False
        evicted = self._held.evicted
        self._held = _Held(self.limits[1], getsizeof=_size)
        self._held.evicted = evicted
        self._queue.clear()

    def step(self, now: float) -> None:
        """Let go of a few that are over. What has left otherwise is taken off the queue on the way."""
        queue = self._queue
        for _ in range(min(STEP, len(queue))):
            place, entry = queue[0]
            if not entry.live:
                queue.popleft()
            elif entry.kept_until <= now:
                queue.popleft()
                self.drop(place)
                self.expired += 1
            elif len(queue) > 2 * len(self._held) + STEP:
                queue.rotate(-1)  # it stands before many that have left
            else:
                return


def _size(entry: Entry) -> int:
    return entry.size
