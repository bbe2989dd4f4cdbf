"""Who loads what, who writes what, and which loads came too late: what keeps a cache from storing the past.

A load that began before a write of the same place ended may have seen what was there before it: its answer is right for its
caller, who called before, and wrong for everybody after. So each write, as it ends, raises the generation of its places,
and a load is kept only if the generation is still the one in which it began. After a write whose outcome is unknown the
place is not kept for a while: the write may still be on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import StorageError
from ._entries import Entry, Place

MANY = 10_000
"""Places with an unsettled write that are remembered one by one; if there are more, nothing is kept while they settle."""


class Flight:
    """A load under way, and those who wait for the same.

    Attributes:
        entry: its answer, if it came and can be kept.
        error: why there is none, if that concerns all who wait.
        stale: the answer may be older than an acknowledged write.
        alone: its answer cannot be shared: each has to ask for itself.
    """

    __slots__ = ("alone", "entry", "error", "stale", "waiting")

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.error: StorageError | None = None
        self.stale = False
        self.alone = False
        self.waiting: list[asyncio.Future[None]] = []

    async def end(self) -> None:
        """Wait for it. Whoever stops waiting disturbs nobody."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await future

    def land(self) -> None:
        """Wake all who wait."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)


@dataclass(slots=True)
class _Fence:
    """Of a place that is being loaded."""

    generation: int = 0
    loads: int = 0


@dataclass(slots=True)
class _Writers:
    """Of a place that is being written."""

    count: int = 0
    shared: bool = False


class Fences:
    """Loads and writes under way, by place.

    Args:
        settle: seconds after a write of unknown outcome in which its places are not kept.
    """

    def __init__(self, settle: float) -> None:
        self.settle = settle
        self.flights: dict[Place, Flight] = {}
        self._fences: dict[Place, _Fence] = {}
        self._writers: dict[Place, _Writers] = {}
        self._unsettled: dict[Place, float] = {}  # in the order of their ends
        self._all_unsettled_until = 0.0

    # ------------------------------------------------------------------ loads

    def begin_load(self, place: Place) -> int:
        """The generation in which it begins."""
        fence = self._fences.get(place)
        if fence is None:
            fence = self._fences[place] = _Fence()
        fence.loads += 1
        return fence.generation

    def end_load(self, place: Place, generation: int) -> bool:
        """Whether no write has ended meanwhile."""
        fence = self._fences[place]
        fence.loads -= 1
        if not fence.loads:
            del self._fences[place]
        return fence.generation == generation

    # ------------------------------------------------------------------ writes

    def begin_write(self, places: Iterable[Place]) -> None:
        """Somebody writes there."""
        for place in places:
            writers = self._writers.get(place)
            if writers is None:
                writers = self._writers[place] = _Writers()
            writers.count += 1
            writers.shared = writers.count > 1 or writers.shared

    def end_write(self, place: Place) -> bool:
        """It has ended, well or not: what is being loaded is the past. Whether it was the only write all along."""
        self.void(place)
        writers = self._writers[place]
        writers.count -= 1
        if not writers.count:
            del self._writers[place]
        return not writers.shared

    def void(self, place: Place) -> None:
        """What is being loaded may be kept by nobody, and joined by nobody who comes from now on."""
        fence = self._fences.get(place)
        if fence is not None:
            fence.generation += 1
            self.flights.pop(place, None)

    def void_all(self) -> None:
        """The same for every place."""
        for fence in self._fences.values():
            fence.generation += 1
        self.flights.clear()

    def unsettle(self, place: Place | None, now: float) -> None:
        """A write of unknown outcome may still arrive there, or, if None, anywhere."""
        until = now + self.settle
        if place is None or len(self._unsettled) >= MANY:
            self._all_unsettled_until = until
            self._unsettled.clear()
            return
        self._unsettled.pop(place, None)
        self._unsettled[place] = until

    def is_unsettled(self, place: Place, now: float) -> bool:
        """A write of unknown outcome may still be on its way there."""
        if now < self._all_unsettled_until:
            return True
        while self._unsettled:
            first = next(iter(self._unsettled))
            if self._unsettled[first] > now:
                break
            del self._unsettled[first]
        return place in self._unsettled
