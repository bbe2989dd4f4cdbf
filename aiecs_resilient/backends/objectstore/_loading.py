"""What is in memory of the store: heads as they were last seen, and immutable objects, which never go stale.

A head is looked at again for every read (a conditional request: it costs no transfer if nothing changed); pages and large
values are fetched once. All of it is bounded by bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ...errors import DataCorruptionError
from ._head import Head, read_head
from ._names import content_path, head_path
from ._objects import UNCHANGED, Found, Objects, Version, unseal
from ._tree import Missing, Page, read_page
from ._view import View

T = TypeVar("T")

_ROUNDS = 8  # heads that may change under a reader before it gives up
_FETCHES = 10_000  # rounds of one reader: a guard against a reader that asks for ever


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """All at once; when all have ended, the first error if there was one. Nothing is left running behind."""
    if len(calls) <= 1:
        return [await call for call in calls]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


class Gone(Exception):
    """An object is not there any more: the head that named it has been replaced meanwhile."""


class ByteCache(Generic[T]):
    """The values used last, up to so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._items: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def get(self, name: str) -> T | None:
        found = self._items.get(name)
        if found is None:
            return None
        self._items.move_to_end(name)
        return found[0]

    def put(self, name: str, value: T, size: int) -> None:
        self.discard(name)
        if size > self._limit:
            return
        self._items[name] = (value, size)
        self._held += size
        while self._held > self._limit:
            _name, (_value, freed) = self._items.popitem(last=False)
            self._held -= freed

    def discard(self, name: str) -> None:
        found = self._items.pop(name, None)
        if found is not None:
            self._held -= found[1]

    def clear(self) -> None:
        self._items.clear()
        self._held = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A head and the version it has in the store; None and None where there is none."""

    head: Head | None
    version: Version | None


NOTHING = Held(None, None)
_UNPACKED = 3  # a decoded object takes about so many times its bytes


class Loader:
    """Reads heads and immutable objects.

    Args:
        objects: where they are.
        cache_bytes: what may be kept of them in memory, about.
    """

    def __init__(self, objects: Objects, cache_bytes: int) -> None:
        self.objects = objects
        self._heads: ByteCache[Held] = ByteCache(cache_bytes // 2)
        self._contents: ByteCache[Page | bytes] = ByteCache(cache_bytes // 2)

    # ------------------------------------------------------------------ heads

    def last_seen(self, shard: str) -> Held | None:
        """The head as this process saw it last; another process may have changed it since."""
        return self._heads.get(shard)

    async def head(self, shard: str) -> Held:
        """The head as it is now."""
        known = self._heads.get(shard)
        path = head_path(shard)
        found = await self.objects.get(path, known.version if known is not None else None)
        if found is UNCHANGED and known is not None:
            return known
        if not isinstance(found, Found):
            self._heads.discard(shard)
            return NOTHING
        try:
            return self.remember(
                shard, read_head(unseal(found.data, path), path), found.version, len(found.data)
            )
        except DataCorruptionError:  # in the store, or on the way here?
            again = await self.objects.get(path)
            if not isinstance(again, Found):
                return NOTHING
            return self.remember(
                shard, read_head(unseal(again.data, path), path), again.version, len(again.data)
            )

    def remember(self, shard: str, head: Head, version: Version, size: int) -> Held:
        """This is the head now."""
        held = Held(head, version)
        self._heads.put(shard, held, size * _UNPACKED)
        return held

    def forget(self, shard: str) -> None:
        """What the head is, is uncertain."""
        self._heads.discard(shard)

    def clear(self) -> None:
        """Drop everything that is in memory."""
        self._heads.clear()
        self._contents.clear()

    # ------------------------------------------------------------------ immutable objects

    def keep(self, shard: str, id: str, content: Page | bytes, size: int) -> None:
        """Something that was just written."""
        self._contents.put(
            content_path(shard, id), content, size * (_UNPACKED if isinstance(content, Page) else 1)
        )

    def kept(self, shard: str, id: str) -> Page | bytes | None:
        """From memory only."""
        return self._contents.get(content_path(shard, id))

    async def fetch(self, shard: str, id: str) -> bytes:
        """The payload of an immutable object."""
        path = content_path(shard, id)
        for last in (False, True):
            found = await self.objects.get(path)
            if not isinstance(found, Found):
                raise Gone(path)
            try:
                return unseal(found.data, path)
            except DataCorruptionError:
                if last:
                    raise
        raise AssertionError("unreachable")

    async def read(self, shard: str, read: Callable[[View], T], *, key: str = "") -> tuple[T, int]:
        """Run a reader over the key as it is now; its answer, and the key's clock in that state."""
        gone: Gone | None = None
        for _round in range(_ROUNDS):
            held = await self.head(shard)
            if held.head is None:
                nothing = Head(key)
                return read(View(nothing, _no_page, _no_object)), 0
            if key and held.head.key != key:
                raise foreign(key, held.head)
            pins = Pins(self, shard)
            view = View(held.head, pins.load, pins.fetch)
            try:
                answer = await pins.run(partial(read, view))
            except Gone as error:
                gone = error
                if (await self.head(shard)).version == held.version:
                    raise DataCorruptionError(
                        f"object {error} is missing, though its head names it: was something deleted by hand?"
                    ) from error
                continue
            return answer, held.head.row.clock
        raise DataCorruptionError(f"object {gone} went missing again and again under a reader")


def foreign(key: str, head: Head) -> DataCorruptionError:
    """What lies in a key's place is another key's."""
    return DataCorruptionError(f"the head of {key!r} is that of {head.key!r}; it is left as it is")


def _no_page(id: str) -> Page:
    raise Missing([id])


def _no_object(id: str) -> bytes:
    raise Missing([id])


class Pins:
    """What one reader or writer needs in memory until it is done, however small the cache is."""

    def __init__(self, loader: Loader, shard: str) -> None:
        self._loader = loader
        self._shard = shard
        self._pinned: dict[str, Page | bytes] = {}

    def load(self, id: str) -> Page:
        """A page; Missing if it is not in memory."""
        found = self._find(id)
        if not isinstance(found, Page):
            found = read_page(found)
            self._pinned[id] = found
            self._loader.keep(self._shard, id, found, sum(map(len, found.rows)) + sum(map(len, found.keys)))
        return found

    def fetch(self, id: str) -> bytes:
        """A large value; Missing if it is not in memory."""
        found = self._find(id)
        assert isinstance(found, bytes), "a large value is never a page"
        return found

    def _find(self, id: str) -> Page | bytes:
        found = self._pinned.get(id)
        if found is None:
            found = self._loader.kept(self._shard, id)
            if found is None:
                raise Missing([id])
            self._pinned[id] = found
        return found

    async def run(self, reader: Callable[[], T]) -> T:
        """Run it until nothing is missing."""
        for _fetch in range(_FETCHES):
            try:
                return reader()
            except Missing as error:
                await self.need(error.ids)
        raise AssertionError("a reader asked for the same objects again and again")

    async def need(self, ids: Sequence[str]) -> None:
        """Fetch these, all at once."""
        payloads = await together([self._loader.fetch(self._shard, id) for id in ids])
        for id, payload in zip(ids, payloads, strict=True):
            self._pinned[id] = payload
            self._loader.keep(self._shard, id, payload, len(payload))
