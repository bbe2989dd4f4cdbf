"""Sorted rows in immutable pages: what a key holds beyond what fits into its head.

A B+tree whose pages are never changed: a batch of changes writes new pages for the leaves it touches and for the way up, and
names the pages it replaced. So an append to a conversation of a million messages writes as much as to one of ten.

Nothing here does I/O. Pages come from ``load``, which raises :class:`Missing` for what is not in memory; the caller
fetches that and asks again. Every function names all pages it can foresee at once, so that this rarely happens twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ...codec import decode, encode
from ...errors import DataCorruptionError

PAGE_BYTES = 64 * 1024
FETCH_AT_ONCE = 64  # pages asked for in one round
_UNLIMITED = 2**62


class Missing(Exception):
    """These immutable objects are needed in memory."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"{len(ids)} objects are needed")
        self.ids = ids


class Link(NamedTuple):
    """One child of a page: the lowest key in it (or a lower one), its id, how many rows are below."""

    key: bytes
    id: str
    rows: int


class Root(NamedTuple):
    """The top of a tree; level 0 is a leaf."""

    id: str
    level: int
    rows: int


@dataclass(frozen=True, slots=True)
class Page:
    """``values`` are rows' bytes in a leaf (level 0), links above it."""

    level: int
    keys: list[bytes]
    rows: list[bytes]
    links: list[Link]

    def pack(self) -> bytes:
        """For storing."""
        entries: Any = self.rows if self.level == 0 else [[link.id, link.rows] for link in self.links]
        return encode([self.level, self.keys, entries], "page", limit=_UNLIMITED)


def read_page(data: bytes) -> Page:
    """What :meth:`Page.pack` made."""
    try:
        level, keys, entries = decode(data, "page")
        if len(keys) != len(entries):
            raise ValueError(f"{len(keys)} keys, {len(entries)} entries")
        if level == 0:
            return Page(0, keys, entries, [])
        links = [Link(key, id, rows) for key, (id, rows) in zip(keys, entries, strict=True)]
    except (TypeError, ValueError) as error:
        raise DataCorruptionError(f"a stored page has a form that is not known: {error}") from error
    return Page(level, keys, [], links)


Load = Callable[[str], Page]
"""A page by its id; raises :class:`Missing` if it is not in memory."""


def get(load: Load, root: Root | None, key: bytes) -> bytes | None:
    """The row of this key."""
    if root is None:
        return None
    page = load(root.id)
    while page.level:
        page = load(_child(page, key).id)
    place = bisect_left(page.keys, key)
    return page.rows[place] if place < len(page.keys) and page.keys[place] == key else None


def _child(page: Page, key: bytes) -> Link:
    return page.links[max(bisect_right(page.keys, key) - 1, 0)]


def scan(
    load: Load, root: Root | None, low: bytes, high: bytes, *, reverse: bool = False, rows: int = 0
) -> Iterator[tuple[bytes, bytes]]:
    """Rows with ``low <= key < high``. ``rows`` says how many will be taken (0: all), so that no more pages are asked for."""
    if root is None:
        return
    _require(load, root, low, high, reverse, rows)
    yield from _scan(load, root.id, low, high, reverse)


def _scan(load: Load, id: str, low: bytes, high: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    page = load(id)
    if page.level:
        links = _between(page, low, high)
        for link in reversed(links) if reverse else links:
            yield from _scan(load, link.id, low, high, reverse)
        return
    start, stop = bisect_left(page.keys, low), bisect_left(page.keys, high)
    places = range(stop - 1, start - 1, -1) if reverse else range(start, stop)
    for place in places:
        yield page.keys[place], page.rows[place]


def _between(page: Page, low: bytes, high: bytes) -> list[Link]:
    start = max(bisect_right(page.keys, low) - 1, 0)
    return page.links[start : max(bisect_left(page.keys, high), start + 1)]


def _require(load: Load, root: Root, low: bytes, high: bytes, reverse: bool, rows: int) -> None:
    """Level by level from the top: all pages that so many rows may come from are in memory, or are asked for together."""
    wanted = [Link(b"", root.id, root.rows)]
    for level in range(root.level, -1, -1):
        pages = _all(load, wanted)
        if level:
            wanted = [link for page in pages for link in _between(page, low, high)]
            wanted = _enough(wanted[::-1], rows)[::-1] if reverse else _enough(wanted, rows)


def _enough(links: list[Link], rows: int) -> list[Link]:
    """The first links that hold so many rows even if the border cuts the outermost ones."""
    if not rows:
        return links
    held, place = 0, 1
    while place < len(links) and held < rows:
        held += links[place].rows  # the first one may give nothing
        place += 1
    return links[:place]


def _all(load: Load, links: Sequence[Link]) -> list[Page]:
    pages, missing = list[Page](), list[str]()
    for link in links:
        try:
            pages.append(load(link.id))
        except Missing as error:
            missing += error.ids
            if len(missing) == FETCH_AT_ONCE:
                break
    if missing:
        raise Missing(missing)
    return pages


Change = tuple[bytes, bytes | None]
"""A key and its new row; None removes it."""


class Writer:
    """Applies batches of changes and keeps account: pages to be written before the new root counts, pages it replaces."""

    def __init__(self, load: Load, name: Callable[[], str], page_bytes: int = PAGE_BYTES) -> None:
        self._load = load
        self._name = name
        self._page_bytes = page_bytes
        self.written: dict[str, Page] = {}
        self.replaced: list[str] = []

    def apply(self, root: Root | None, changes: Sequence[Change]) -> Root | None:
        """The tree with these changes: at least one, sorted by key, each key once."""
        if root is None:
            links = self._leaves([change for change in changes if change[1] is not None], appended=True)
            level = 0
        else:
            links, level = self._rewrite([root.id], root.level, changes), root.level
        while len(links) > 1:
            level += 1
            links = self._inner(level, links, appended=True)
        if not links:
            return None
        [top] = links
        while level and len(self.written[top.id].links) == 1:  # a page with one child says nothing
            [below] = self.written.pop(top.id).links
            top, level = below, level - 1
            if top.id not in self.written:
                break
        return Root(top.id, level, top.rows)

    def _rewrite(self, ids: Sequence[str], level: int, changes: Sequence[Change]) -> list[Link]:
        """Neighbouring pages of one level, all of them touched, as new pages of that level."""
        pages = _all(self._load, [Link(b"", id, 0) for id in ids])
        self.replaced += ids
        if level == 0:
            rows = {key: row for page in pages for key, row in zip(page.keys, page.rows, strict=True)}
            last = max((page.keys[-1] for page in pages if page.keys), default=b"")
            for key, row in changes:
                if row is None:
                    rows.pop(key, None)
                else:
                    rows[key] = row
            return self._leaves(sorted(rows.items()), appended=changes[-1][0] >= last)
        children = [link for page in pages for link in page.links]
        appended = changes[-1][0] >= children[-1].key
        return self._inner(level, self._descend(children, level, changes), appended=appended)

    def _descend(self, links: list[Link], level: int, changes: Sequence[Change]) -> list[Link]:
        kept, touched, theirs, start = list[Link](), list[str](), list[Change](), 0
        keys = [key for key, _row in changes]
        self._foresee(links, keys)
        for place, link in enumerate(links):
            stop = bisect_left(keys, links[place + 1].key) if place + 1 < len(links) else len(keys)
            if stop > start:
                touched.append(link.id)
                theirs += changes[start:stop]
            else:
                if touched:
                    kept += self._rewrite(touched, level - 1, theirs)
                    touched, theirs = [], []
                kept.append(link)
            start = stop
        return kept + (self._rewrite(touched, level - 1, theirs) if touched else [])

    def _foresee(self, links: list[Link], keys: list[bytes]) -> None:
        lows = [link.key for link in links]
        places = sorted({max(bisect_right(lows, key) - 1, 0) for key in keys})
        _all(self._load, [links[place] for place in places])

    def _leaves(self, rows: Sequence[Change], *, appended: bool) -> list[Link]:
        sizes = [len(key) + len(row or b"") + 8 for key, row in rows]
        return [
            self._write(
                Page(0, [key for key, _row in part], [row for _key, row in part if row is not None], [])
            )
            for part in _parts(rows, sizes, self._page_bytes, appended=appended, least=1)
        ]

    def _inner(self, level: int, links: Sequence[Link], *, appended: bool) -> list[Link]:
        sizes = [len(link.key) + len(link.id) + 12 for link in links]
        return [
            self._write(Page(level, [link.key for link in part], [], list(part)))
            for part in _parts(links, sizes, self._page_bytes, appended=appended, least=2)
        ]

    def _write(self, page: Page) -> Link:
        id = self._name()
        self.written[id] = page
        rows = len(page.rows) if page.level == 0 else sum(link.rows for link in page.links)
        return Link(page.keys[0], id, rows)


T = TypeVar("T")


def _parts(
    items: Sequence[T], sizes: Sequence[int], limit: int, *, appended: bool, least: int
) -> Iterator[Sequence[T]]:
    """Cut into pages: full ones where the end grows, so that they stay as they are; else even ones, with room in each."""
    total = sum(sizes)
    if not appended:
        limit = total // -(-total // limit) + 1 if total else limit
    start = held = 0
    for place, size in enumerate(sizes):
        if held and held + size > limit and place - start >= least:
            yield items[start:place]
            start, held = place, 0
        held += size
    if start < len(items):
        yield items[start:]
