"""Removing what no head names any more: trees that were dropped whole, and leftovers of writers that died half-way.

Both in bounded steps. A dropped tree is on its key's list of garbage until its last page is gone. Leftovers are found by
walking over the folders: a key that has more objects than its head counts is looked at closely.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from ...errors import StorageError
from ...records import Route
from . import _rows as rows
from ._commit import Committer
from ._draft import Draft
from ._head import Head
from ._loading import Gone, Loader, Pins, together
from ._names import BEAT, CONTENT, INDEX, content_path, read_entry, shard_of, token
from ._objects import Listed, seal
from ._tree import Page, read_page
from ._view import View

COLLECT_STEP = 32  # pages of garbage removed in one commit
SWEEP_STEP = 1_000  # objects looked at in one step: what one listing request brings
ENTRIES_STEP = 200  # index entries looked at in one step: each may cost a request


class Collector:
    """Removes garbage and leftovers.

    Args:
        loader, committer: of the store.
        leftover_age: seconds after which an object that no head names is nobody's: longer than any commit takes.
    """

    def __init__(self, loader: Loader, committer: Committer, leftover_age: float) -> None:
        self._loader = loader
        self._committer = committer
        self._age_us = int(leftover_age * 1_000_000)
        self._collecting: set[str] = set()
        self._contents_after = self._entries_after = ""
        self.closing = False

    # ------------------------------------------------------------------ garbage of one key

    def collect(self, key: str) -> None:
        """In the background, until there is none."""
        if key not in self._collecting and not self.closing:
            self._collecting.add(key)
            self._committer.background(self._collect(key), f"garbage of {key!r}")

    async def _collect(self, key: str) -> None:
        try:
            with contextlib.suppress(StorageError):
                while not self.closing and await self._collect_some(key):
                    pass
        finally:
            self._collecting.discard(key)

    async def _collect_some(self, key: str) -> bool:
        shard = shard_of(key)
        head = (await self._loader.head(shard)).head
        if head is None or not head.garbage:
            return False
        ids = head.garbage[:COLLECT_STEP]
        pages = [page for page in await together([self._page(shard, id) for id in ids]) if page is not None]
        below = [link.id for page in pages for link in page.links]
        values = [id for page in pages for id in _values_in(page)]
        remove = partial(_collected, ids, below, len(pages) + len(values))
        [mine] = await self._committer.run(key, [remove])
        if mine is True:
            await self._loader.objects.delete([content_path(shard, id) for id in (*ids, *values)])
        return mine is True and len(head.garbage) - len(ids) + len(below) > 0

    async def _page(self, shard: str, id: str) -> Page | None:
        try:
            return read_page(await self._loader.fetch(shard, id))
        except Gone:
            return None

    # ------------------------------------------------------------------ leftovers of the whole store

    async def sweep(self) -> int:
        """Look at the next objects and index entries, round and round; how many leftovers were removed."""
        old = await self._now() - self._age_us
        return await self._sweep_contents(old) + await self._sweep_entries(old)

    async def _now(self) -> int:
        """The clock that dates objects: by another one, a writer's new objects could look old."""
        path = f"{BEAT}/{token(1)}"
        await self._loader.objects.put([(path, seal(token().encode()))])
        return max(item.modified_us for item in await self._loader.objects.list_after(BEAT, "", SWEEP_STEP))

    async def _sweep_contents(self, before: int) -> int:
        listed = await self._loader.objects.list_after(CONTENT, self._contents_after, SWEEP_STEP)
        groups = [(shard, list(items)) for shard, items in groupby(listed, _shard_in)]
        if len(listed) == SWEEP_STEP:
            shard, _cut = groups.pop()
            if not groups:  # a key with more objects than one step
                groups = [(shard, await self._loader.objects.list_after(f"{CONTENT}/{shard}", "", 2**31))]
            self._contents_after = groups[-1][1][-1].path
        else:
            self._contents_after = ""
        return sum(await together([self._sweep_key(shard, items, before) for shard, items in groups]))

    async def _sweep_key(self, shard: str, listed: Sequence[Listed], before: int) -> int:
        old = [item for item in listed if item.modified_us < before]
        head = (await self._loader.head(shard)).head
        if not old or (head is not None and len(listed) <= head.objects):
            return 0
        needed = set[str]()
        if head is not None:
            try:
                needed = await self._needed(shard, head)
            except Gone:  # it changes right now; the next round will see
                return 0
        leftovers = [item.path for item in old if item.path.rpartition("/")[2] not in needed]
        await self._loader.objects.delete(leftovers)
        if head is not None and len(needed) != head.objects:
            await self._committer.run(head.key, [partial(_recounted, head.commits[-1], len(needed))])
        return len(leftovers)

    async def _needed(self, shard: str, head: Head) -> set[str]:
        """Ids of everything that the head names, directly or by way of pages."""
        pins = Pins(self._loader, shard)
        view = View(head, pins.load, pins.fetch)
        found = {
            large.id
            for table in rows.TABLES
            for _key, row in view.in_tail(table)
            for large in rows.large_in(row)
        }
        next_ids = [*(root.id for root in head.roots.values()), *head.garbage]
        while next_ids:
            ids, next_ids = next_ids[:COLLECT_STEP], next_ids[COLLECT_STEP:]
            found.update(ids)
            for page in await together([self._page(shard, id) for id in ids]):
                if page is None:
                    raise Gone(shard)
                found.update(_values_in(page))
                next_ids += [link.id for link in page.links]
        return found

    async def _sweep_entries(self, before: int) -> int:
        listed = await self._loader.objects.list_after(INDEX, self._entries_after, ENTRIES_STEP)
        self._entries_after = listed[-1].path if len(listed) == ENTRIES_STEP else ""
        entries = [read_entry(item.path) for item in listed if item.modified_us < before]
        heads = await together([self._loader.head(entry.shard) for entry in entries])
        leftovers = [
            entry.path
            for entry, held in zip(entries, heads, strict=True)
            if held.head is None or held.head.entries.get(entry.index_name) != entry.path
        ]
        await self._loader.objects.delete(leftovers)
        return len(leftovers)


def _collected(ids: Sequence[str], below: Sequence[str], objects: int, draft: Draft, _route: Route) -> bool:
    return draft.collected(ids, below, objects)


def _recounted(commit: str, objects: int, draft: Draft, _route: Route) -> None:
    if draft.head.commits[-1:] == [commit]:
        draft.head.objects, draft.changed = objects, True


def _values_in(page: Page) -> list[str]:
    return [large.id for row in page.rows for large in rows.large_in(rows.load(row))]


def _shard_in(item: Listed) -> str:
    _root, fan, digest, _id = item.path.split("/")
    return f"{fan}/{digest}"
