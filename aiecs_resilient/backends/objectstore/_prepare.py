"""From a changed draft to what has to be written: the new head, and before it the pages, values and entries it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ...records import SessionRow
from . import _rows as rows
from ._draft import Draft
from ._head import Head
from ._names import entry_says, hour, new_entry, ordered, short_hash, token
from ._tree import PAGE_BYTES, Load, Page, Writer


class Sizes(NamedTuple):
    """Rows kept in the head before they go into pages, and what a page takes: each write rewrites the head, each move pages."""

    tail_bytes: int = 48 * 1024
    page_bytes: int = PAGE_BYTES


SIZES = Sizes()

_PINNED_BYTES = 8 * 1024  # a session up to this stays in the head, so that reading it takes one request


@dataclass(slots=True)
class Prepared:
    """A state of a key, ready to be stored.

    Attributes:
        head: the new one.
        pages, values: immutable objects that must be there before it, by id.
        entries: paths of index entries, likewise.
        stale: ids of immutable objects that it no longer needs.
        stale_entries: paths, likewise.
    """

    head: Head
    pages: dict[str, Page]
    values: dict[str, bytes]
    entries: list[str]
    stale: list[str] = field(default_factory=list[str])
    stale_entries: list[str] = field(default_factory=list[str])


def prepare(draft: Draft, load: Load, commit: str, retention_us: int, sizes: Sizes) -> Prepared:
    """The draft itself stays as it is, so that this can be run again when a page was missing."""
    head = draft.head.copy()
    head.oldest_mark = _oldest_mark(draft)
    writer = Writer(load, token, sizes.page_bytes)
    for table in _to_be_moved(head, sizes.tail_bytes):
        _move(head, table, writer)
    values = {id: data for id, data in draft.staged.items() if id not in draft.released}
    released = draft.released - draft.staged.keys()
    head.objects += len(writer.written) + len(values) - len(writer.replaced) - len(released)
    head.commits = [*head.commits, commit]
    prepared = Prepared(head, writer.written, values, [], [*writer.replaced, *released])
    _index(draft, prepared, retention_us)
    return prepared


def _oldest_mark(draft: Draft) -> int:
    if not draft.head.marks:
        return 0
    oldest = next(draft.scan(rows.MARKS, limit=1), None)
    return 0 if oldest is None else rows.stamp_in(oldest[0])[0]


# ---------------------------------------------------------------------- from the tail into pages


def tail_size(head: Head) -> int:
    """Bytes of the rows in the tail."""
    return sum(len(place) + len(row or b"") + 8 for place, row in head.tail.items())


def _to_be_moved(head: Head, tail_bytes: int) -> list[bytes]:
    sizes: dict[bytes, int] = dict.fromkeys(rows.TABLES, 0)
    for place, row in head.tail.items():
        if not _pinned(head, place, row):
            sizes[place[:1]] += len(place) + len(row or b"") + 8
    left, chosen = sum(sizes.values()), list[bytes]()
    if left <= tail_bytes:
        return []
    for table in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if left <= tail_bytes // 2:
            break
        chosen.append(table)
        left -= sizes[table]
    return chosen


def _pinned(head: Head, place: bytes, row: bytes | None) -> bool:
    return (
        row is not None
        and len(row) <= _PINNED_BYTES
        and bool(head.row.current)
        and place == rows.SESSIONS + head.row.current.encode()
    )


def _move(head: Head, table: bytes, writer: Writer) -> None:
    places = sorted(
        place for place, row in head.tail.items() if place[:1] == table and not _pinned(head, place, row)
    )
    if not places:
        return
    root = writer.apply(head.roots.get(table), [(place[1:], head.tail.pop(place)) for place in places])
    if root is None:
        head.roots.pop(table, None)
    else:
        head.roots[table] = root


# ---------------------------------------------------------------------- index entries


def _index(draft: Draft, prepared: Prepared, retention_us: int) -> None:
    head = prepared.head
    wanted = _wanted(draft, retention_us)
    for index, (place, facts) in wanted.items():
        path = head.entries.get(index)
        if path is not None:
            if index not in draft.renew and _serves(path, index, place, facts):
                continue
            prepared.stale_entries.append(path)
        head.entries[index] = new_entry(index, place, ordered(head.key), facts)
        prepared.entries.append(head.entries[index])
    for index in head.entries.keys() - wanted.keys():
        prepared.stale_entries.append(head.entries.pop(index))


def _serves(path: str, index: str, place: str, facts: tuple[str, ...]) -> bool:
    there, found = entry_says(path)
    return found == facts and (there == place or (index in _WHEELS and there <= place))


_WHEELS = frozenset({"idle", "due"})
"""Entries of these may stand too early: whoever comes by then moves them on. So a busy key costs no entry per write."""

Wanted = dict[str, tuple[str, tuple[str, ...]]]


def _wanted(draft: Draft, retention_us: int) -> Wanted:
    """Index → place and facts of the entry that should stand for the key."""
    row, wanted = draft.row, Wanted()
    session = draft.session(row.current) if row.current else None
    if session is not None:
        facts = session_facts(session)
        wanted["sessions"] = ("", facts)
        wanted["owners"] = (short_hash(session.owner()), facts)
    if draft.head.checkpoints:
        wanted["threads"] = ("", ())
    if draft.head.marks:
        wanted["marks"] = ("", ())
    has_session, has_thread = draft.holds_session(), draft.holds_thread()
    if has_session:
        wanted["idle"] = (hour(row.clock), ())
    due = [
        expires
        for expires, has in ((row.session_expires, has_session), (row.thread_expires, has_thread))
        if has and expires
    ]
    if (
        not has_session
        and not has_thread
        and (oldest := next(draft.scan(rows.TIMES, limit=1), None)) is not None
    ):
        due.append(
            rows.stamp_in(oldest[0])[0] + retention_us
        )  # what is left are identities; then they may go
    if due:
        wanted["due"] = (hour(min(due)), ())
    return wanted


def session_facts(session: SessionRow) -> tuple[str, str]:
    """What a listing filters by before it looks at heads: ended or not, and the status."""
    return "0" if session.ended is None else "1", short_hash(session.status())
