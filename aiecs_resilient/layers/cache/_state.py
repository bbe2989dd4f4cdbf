"""What a cache is made of, apart from the chain it stands in: it outlives a reload, if the store is still the same one."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

from ...interface import Backend
from ._entries import Entries
from ._fences import Fences

FLOORS = 20_000
"""Ids whose last written stamp is remembered, so that an answer from a copy that lacks it is not kept."""


@dataclass(slots=True)
class CacheCounts:
    """How well it works.

    Attributes:
        hits, misses: answers from here, and from the store.
        joined: that waited for somebody else's load of the same.
        refreshed: loads in the background of what would soon be over.
        stale: answers whose time was over, given because the store failed.
        fenced: loads that were not kept, because a write had ended meanwhile or was of unknown outcome.
        invalidated: entries that a write made untrue.
        extended: histories that a message was added to.
    """

    hits: int = 0
    misses: int = 0
    joined: int = 0
    refreshed: int = 0
    stale: int = 0
    fenced: int = 0
    invalidated: int = 0
    extended: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of reads that did not reach the store."""
        asked = self.hits + self.joined + self.misses
        return (self.hits + self.joined) / asked if asked else 0.0


class CacheState:
    """Entries, fences and counts; shared by two chains while one takes over from the other."""

    def __init__(self) -> None:
        self.counts = CacheCounts()
        self.entries = Entries(1, 1)
        self.fences = Fences(0.0)
        self.floors: LRUCache[str, int] = LRUCache(FLOORS)
        self.users = 0
        self._store: Backend | None = None

    def configure(self, store: Backend, max_entries: int, max_bytes: int, settle: float) -> None:
        """For a chain that ends in this store. What another one answered is forgotten."""
        self.fences.settle = settle
        if self.entries.limits != (max_entries, max_bytes) or self._store is not store:
            self.entries = Entries(max_entries, max_bytes)
            self.fences.void_all()
            self.floors.clear()
            self._store = store

    def clear(self) -> None:
        """Forget all answers."""
        self.counts.invalidated += len(self.entries)
        self.entries.clear()
        self.fences.void_all()

    def saw(self, key: str, stamp: int | None) -> None:
        """The store holds a write of this key with this stamp."""
        if stamp is not None and stamp > self.floors.get(key, 0):
            self.floors[key] = stamp
