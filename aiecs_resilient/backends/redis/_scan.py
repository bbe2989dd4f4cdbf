"""One sorted sequence out of many buckets, in pages: what listing and the replay of records are made of.

Each bucket is an index in itself, sorted. A page of each is fetched, in one round trip for all that need one, and merged; the
page is small because neighbours in the order lie in different buckets. The cost of a page does not grow with the store.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T", bytes, tuple[int, bytes])

Fetch = Callable[[Sequence[tuple[int, T | None]], int], Awaitable[list[list[T]]]]
"""For each (bucket, last item had or None): its next items, at most so many."""

_SPARE = 8  # beyond an even share: a bucket that runs dry early costs one more round trip


class MergedScan(Generic[T]):
    """Items of all buckets in order.

    Args:
        fetch: gets pages.
        buckets: how many there are.
    """

    def __init__(self, fetch: Fetch[T], buckets: int) -> None:
        self._fetch: Fetch[T] = fetch
        self._buckets = buckets
        self._heap: list[tuple[T, int]] = []
        self._pages: dict[int, list[T]] = {}  # what is left of each page, last first
        self._last: dict[int, T | None] = dict.fromkeys(range(buckets))  # of those that may have more

    async def take(self, count: int) -> list[T]:
        """The next ``count`` items; fewer only at the end."""
        taken: list[T] = []
        size = count // self._buckets + _SPARE
        while len(taken) < count:
            await self._fill(size)
            if not self._heap:
                break
            item, bucket = heapq.heappop(self._heap)
            taken.append(item)
            self._advance(bucket)
        return taken

    async def _fill(self, size: int) -> None:
        dry = [(bucket, last) for bucket, last in self._last.items() if bucket not in self._pages]
        if not dry:
            return
        for (bucket, _), page in zip(dry, await self._fetch(dry, size), strict=True):
            if len(page) < size:
                del self._last[bucket]
            else:
                self._last[bucket] = page[-1]
            if page:
                self._pages[bucket] = page[::-1]
                self._advance(bucket)

    def _advance(self, bucket: int) -> None:
        page = self._pages.get(bucket)
        if page:
            heapq.heappush(self._heap, (page.pop(), bucket))
        else:
            self._pages.pop(bucket, None)
