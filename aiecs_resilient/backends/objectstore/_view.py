"""Reading one key: its tail over its trees, as sorted tables.

Without I/O: what is not in memory is asked for by raising :class:`._tree.Missing`, and the reader is run again when it is
there (see :mod:`._keys`). So readers and the engine are plain code, and each asks for all it can foresee at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...records import SessionRow
from .._engine import KeyRow, RecordRow, ValueRow
from . import _rows as rows
from . import _tree as tree
from ._head import Head

LoadObject = Callable[[str], bytes]
"""A large value by its id; raises Missing."""


class View:
    """One state of a key.

    Args:
        head: that state.
        load: pages, by id.
        fetch: large values, by id.
    """

    def __init__(self, head: Head, load: tree.Load, fetch: LoadObject) -> None:
        self.head = head
        self.load_page = load
        self.fetch_large = fetch
        self._order = sorted(head.tail)

    @property
    def row(self) -> KeyRow:
        return self.head.row

    # ------------------------------------------------------------------ tables

    def get(self, table: bytes, key: bytes) -> Any | None:
        """The row under this key, loaded."""
        place = table + key
        if place in self.head.tail:
            data = self.head.tail[place]
        else:
            data = tree.get(self.load_page, self.head.roots.get(table), key)
        return None if data is None else rows.load(data)

    def scan(
        self,
        table: bytes,
        low: bytes = b"",
        high: bytes = rows.BEHIND,
        *,
        reverse: bool = False,
        limit: int = 0,
    ) -> Iterator[tuple[bytes, Any]]:
        """Keys and loaded rows with ``low <= key < high``, in order; ``limit`` (0: none) as a hint of how many are wanted."""
        start, stop = bisect_left(self._order, table + low), bisect_left(self._order, table + high)
        tail = [(place[1:], self.head.tail[place]) for place in self._order[start:stop]]
        wanted = limit + sum(row is None for _key, row in tail) if limit else 0
        paged = tree.scan(self.load_page, self.head.roots.get(table), low, high, reverse=reverse, rows=wanted)
        for key, data in _merged(tail[::-1] if reverse else tail, paged, reverse):
            yield key, rows.load(data)

    def in_tail(self, table: bytes) -> Iterator[tuple[bytes, Any]]:
        """Loaded rows that no page holds yet."""
        for place, row in self.head.tail.items():
            if place[:1] == table and row is not None:
                yield place[1:], rows.load(row)

    def require(self, values: Iterable[Any]) -> None:
        """All large values in these are in memory, or are asked for together."""
        missing = list[str]()
        for large in rows.large_in(list(values)):
            try:
                self.fetch_large(large.id)
            except tree.Missing as error:
                missing += error.ids
        if missing:
            raise tree.Missing(missing)

    def whole(self, value: Any) -> Any:
        """The value with everything large in its place."""
        return rows.materialize(value, lambda large: self.fetch_large(large.id))

    def record(self, op_id: str) -> RecordRow | None:
        """What is remembered of an operation."""
        found = self.get(rows.RECORDS, op_id.encode())
        return None if found is None else rows.record_row(op_id, rows.checked(found, 11))

    # ------------------------------------------------------------------ sessions

    def session(self, inc: str) -> SessionRow | None:
        """An incarnation, its large values not loaded."""
        found = self.get(rows.SESSIONS, inc.encode())
        return None if found is None else rows.session_row(inc, rows.checked(found, 10))

    def current(self, now: int) -> SessionRow | None:
        """The incarnation that counts, unless it has expired."""
        return self.session(self.row.current) if self.row.current and self.session_alive(now) else None

    def session_alive(self, now: int) -> bool:
        return not 0 < self.row.session_expires <= now

    def thread_alive(self, now: int) -> bool:
        return not 0 < self.row.thread_expires <= now

    # ------------------------------------------------------------------ contexts, checkpoints, writes

    def contexts(self) -> list[ValueRow]:
        """Newest first; there are never many."""
        found = list[ValueRow]()
        for key, value in self.scan(rows.CONTEXTS, reverse=True):
            stamp, op_id = rows.stamp_in(key)
            occurred_at, body = rows.checked(value, 2)
            found.append(ValueRow(stamp, op_id, occurred_at, {"value": body}))
        return found

    def checkpoint(self, ns: str, id: str) -> ValueRow | None:
        """Also a pruned one: its body is None."""
        value = self.get(rows.CHECKPOINTS, rows.joined(ns, id))
        if value is None:
            return None
        stamp, op_id, occurred_at, body = rows.checked(value, 4)
        return ValueRow(stamp, op_id, occurred_at, None if body is None else {"ns": ns, "id": id, **body})

    def latest(self, ns: str, limit: int = 0) -> Iterator[str]:
        """Ids of the checkpoints that are there, newest first."""
        prefix = rows.joined(ns)
        for _key, id in self.scan(rows.LATEST, prefix, rows.above(prefix), reverse=True, limit=limit):
            yield id

    def writes(self, ns: str, id: str) -> Iterator[tuple[bytes, list[Any]]]:
        """Keys and rows of the tasks' writes of one checkpoint."""
        prefix = rows.joined(ns, id)
        for key, value in self.scan(rows.WRITES, prefix, rows.above(prefix)):
            yield key, rows.checked(value, 4)

    def any(self, table: bytes) -> bool:
        """Whether there is a row in it."""
        return next(self.scan(table, limit=1), None) is not None

    def holds_session(self) -> bool:
        """Session, messages or contexts: what clean-up looks for."""
        return bool(self.row.current or self.head.messages) or self.any(rows.CONTEXTS)

    def holds_thread(self) -> bool:
        """Checkpoints of any namespace, or pending writes."""
        return self.any(rows.LATEST) or self.any(rows.WRITES)


def _merged(
    tail: list[tuple[bytes, bytes | None]], paged: Iterator[tuple[bytes, bytes]], reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Two sorted sources as one; of two rows under one key the tail's counts."""
    below = next(paged, None)
    for key, row in tail:
        while below is not None and (below[0] > key if reverse else below[0] < key):
            yield below
            below = next(paged, None)
        if below is not None and below[0] == key:
            below = next(paged, None)
        if row is not None:
            yield key, row
    while below is not None:
        yield below
        below = next(paged, None)
