"""Listings by index: entries are listed by their names, and only what a page may show is looked at.

An entry only says where to look: the head decides. So an entry that came too early, or stayed behind, shows nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NamedTuple, TypeVar

from ...clock import wall_us
from ...interface import Json
from ...records import IdleKey, Route, Scope, SessionRow
from .._base import empty_metrics
from ._commit import Committer
from ._draft import Draft
from ._garbage import Collector
from ._head import Head
from ._loading import together
from ._names import HEADS, Entry, behind, entry_says, hour, index_folder, ordered, read_entry, short_hash
from ._objects import Listed
from ._reads import ObjectReads, current_session
from ._view import View

T = TypeVar("T")

_PAGE = 1_000  # entries of one listing request
_HEADS_AT_ONCE = 64
_TOTALS_KEPT = 100_000
_SHRINK_STEPS = 1_000


class Totals(NamedTuple):
    """What one key adds to the totals; ``expires`` is its session's, UTC microseconds, 0 for never."""

    sessions: bool
    active: bool
    expires: int
    messages: int
    checkpoints: int


NO_TOTALS = Totals(False, False, 0, 0, 0)


class ObjectListing(ObjectReads):
    """Walking over sessions, threads and idle keys; totals."""

    _committer: Committer
    _collector: Collector
    _totals: dict[str, tuple[str, Totals]]

    # ------------------------------------------------------------------ sessions and threads

    async def _list_sessions(
        self, status: str | None, user_id: str | None, after: str | None, limit: int
    ) -> list[tuple[str, SessionRow]]:
        self._require_open()
        now = wall_us()
        index, place = ("sessions", "") if user_id is None else ("owners", short_hash(user_id))
        wanted = None if status is None else short_hash(status)

        def read(view: View) -> tuple[str, SessionRow] | None:
            row = current_session(view, now)
            if row is None or status not in (None, row.status()) or user_id not in (None, row.owner()):
                return None
            return view.head.key, row

        def fits(entry: Entry) -> bool:
            return wanted is None or entry.facts[1] == wanted

        return await self._list(index, place, after, limit, fits, read)

    async def _list_threads(self, after: str | None, limit: int) -> list[str]:
        self._require_open()
        now = wall_us()

        def read(view: View) -> str | None:
            return view.head.key if view.head.checkpoints and view.thread_alive(now) else None

        return await self._list("threads", "", after, limit, lambda _entry: True, read)

    async def _list(
        self,
        index: str,
        place: str,
        after: str | None,
        limit: int,
        fits: Callable[[Entry], bool],
        read: Callable[[View], T | None],
    ) -> list[T]:
        found, last = list[T](), ""
        start = "" if after is None else behind(index, place, ordered(after))
        async for page in self._entries(index, place, start):
            chosen = list[Entry]()
            for entry in page:
                if entry.order != last and fits(entry):  # of two entries of one key, one is about to go
                    chosen.append(entry)
                    last = entry.order
            while chosen and len(found) < limit:
                step = min(limit - len(found), _HEADS_AT_ONCE)
                looks = [self._loader.read(entry.shard, read) for entry in chosen[:step]]
                found += [answer for answer, _clock in await together(looks) if answer is not None]
                chosen = chosen[step:]
            if len(found) >= limit:
                break
        return found[:limit]

    async def _entries(self, index: str, place: str, start: str) -> AsyncIterator[list[Entry]]:
        while True:
            listed = await self._loader.objects.list_after(index_folder(index, place), start, _PAGE)
            if listed:
                yield [read_entry(item.path, item.modified_us) for item in listed]
                start = listed[-1].path
            if len(listed) < _PAGE:
                return

    # ------------------------------------------------------------------ clean-up

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        self._require_open()
        now, idle = wall_us(), dict[str, IdleKey]()
        for index, until in (("idle", hour(before)), ("due", hour(now))):
            async for page in self._entries(index, "", ""):
                chosen = [entry for entry in page if entry.place <= until]
                while chosen and len(idle) < limit:
                    step = min(limit - len(idle), _HEADS_AT_ONCE)
                    looks = [self._look_at(entry, before, now) for entry in chosen[:step]]
                    for key in await together(looks):
                        if key is not None:
                            idle.setdefault(key.key, key)
                    chosen = chosen[step:]
                if len(idle) >= limit or page[-1].place > until:
                    break
        return list(idle.values())

    async def _look_at(self, entry: Entry, before: int, now: int) -> IdleKey | None:
        """Idle or expired; if neither, its entry is moved to when it may be."""
        read = partial(_idle_key, before=before, now=now)
        (key, found, moves), _clock = await self._loader.read(
            entry.shard, partial(_standing, read, entry, now)
        )
        if found is None and moves:
            await self._committer.run(key, [partial(_move_on, entry.index_name, now - self._retention_us)])
        return found

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        removed = await super().cleanup_expired_sessions(max_idle_hours)
        await self._collector.sweep()
        return removed

    # ------------------------------------------------------------------ totals

    async def get_metrics(self) -> Json:
        """Over all heads; those that are as they were last time are not read again."""
        self._require_open()
        now, sums = wall_us(), [0, 0, 0, 0]
        start, listed = "", list[Listed]()
        while not start or len(listed) == _PAGE:
            listed = await self._loader.objects.list_after(HEADS, start, _PAGE)
            for step in range(0, len(listed), _HEADS_AT_ONCE):
                looks = [self._totals_of(item) for item in listed[step : step + _HEADS_AT_ONCE]]
                for totals in await together(looks):
                    alive = totals.sessions and not 0 < totals.expires <= now
                    add = (alive, alive and totals.active, totals.messages, totals.checkpoints)
                    sums = [held + more for held, more in zip(sums, add, strict=True)]
            start = listed[-1].path if listed else "end"
        names = ("total_sessions", "active_sessions", "total_messages", "total_checkpoints")
        return {
            **empty_metrics(self.kind, redis_connected=False),
            **dict(zip(names, sums, strict=True)),
            **self._own_metrics(),
        }

    async def _totals_of(self, item: Listed) -> Totals:
        known = self._totals.get(item.path)
        if known is not None and known[0] == item.mark:
            return known[1]
        head = (await self._loader.head(item.path.removeprefix(f"{HEADS}/"))).head
        totals = NO_TOTALS if head is None else _totals(head)
        if len(self._totals) >= _TOTALS_KEPT:
            self._totals.clear()
        self._totals[item.path] = (item.mark, totals)
        return totals

    @abstractmethod
    def _own_metrics(self) -> Json:
        """What this backend tells beyond the contract."""


def _totals(head: Head) -> Totals:
    entry = head.entries.get("sessions")
    active = entry is not None and entry_says(entry)[1][0] == "0"
    return Totals(entry is not None, active, head.row.session_expires, head.messages, head.checkpoints)


def _idle_key(view: View, before: int, now: int) -> IdleKey | None:
    row, has_session = view.row, view.holds_session()
    if has_session and row.clock < before:
        return IdleKey(view.head.key, before, Scope.ALL)
    if has_session and not view.session_alive(now):
        return IdleKey(view.head.key, row.session_expires + 1, Scope.SESSION)
    if not view.thread_alive(now) and view.holds_thread():
        return IdleKey(view.head.key, row.thread_expires + 1, Scope.THREAD)
    return None


def _standing(
    read: Callable[[View], IdleKey | None], entry: Entry, now: int, view: View
) -> tuple[str, IdleKey | None, bool]:
    """The key, what clean-up should do with it, and whether this entry has had its time."""
    mine = view.head.entries.get(entry.index_name) == entry.path
    late = entry.place < hour(view.row.clock if entry.index_name == "idle" else now)
    return view.head.key, read(view), mine and late


def _move_on(index: str, horizon: int, draft: Draft, _route: Route) -> None:
    """Let the entry be made anew where it belongs now; a key that holds nothing forgets what it may on that occasion."""
    if not draft.holds(Scope.ALL):
        draft.forget(horizon, _SHRINK_STEPS)
    draft.renew.add(index)
