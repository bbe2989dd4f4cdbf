"""What ``dual_write`` asks of this backend beyond applying: records, marks, route, state.

An object store has no transaction over two objects, so the fence is read in the same commit, before the head is replaced,
but not in the same atomic step: a write that is under way while the route moves may land right after. A follower bears
that, since records merge in any order; a leader would not. Object stores lead nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from itertools import islice

from ...clock import wall_us
from ...records import Mutation, RecordPage, RecordRef, Route, StoreState
from .._engine import RecordRow, effect_of
from . import _rows as rows
from ._draft import Draft
from ._listing import ObjectListing
from ._loading import together
from ._names import HEADS, behind, head_path
from ._store_object import StoreObject
from ._view import View

MOST_MARKS_COUNTED = 10_000
_PAGE = 1_000

Place = tuple[int, str]
"""Stamp and op_id."""


class ObjectReplication(ObjectListing):
    """Needs the store's own object besides what :class:`._listing.ObjectListing` needs."""

    _store: StoreObject

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        self._require_open()
        order, shard, low = "", "", (max(since, 0), "")
        found = list[Mutation]()
        if after is not None:
            order, shard, stamp, op_id = json.loads(after)
            low = max(low, (stamp, op_id))
            last = await self._read_key(shard, open_only, low, limit, found)
            if last is not None:
                return RecordPage(found, json.dumps([order, shard, *last]))
        low = (max(since, 0), "")
        async for order, shard in self._keys_with_records(open_only, order):  # noqa: B020  from there on
            last = await self._read_key(shard, open_only, low, limit - len(found), found)
            if last is not None:
                return RecordPage(found, json.dumps([order, shard, *last]))
        return RecordPage(found, None)

    async def _read_key(
        self, shard: str, open_only: bool, low: Place, limit: int, found: list[Mutation]
    ) -> Place | None:
        """Adds up to ``limit`` records behind ``low``; the last one's place if there may be more."""
        table = rows.MARKS if open_only else rows.TIMES
        read = partial(_records, table=table, low=low, limit=limit)
        (page, last), _clock = await self._loader.read(shard, read)
        found += page
        return last

    async def _keys_with_records(self, open_only: bool, order: str) -> AsyncIterator[tuple[str, str]]:
        """Order and shard of the keys behind ``order``."""
        if open_only:
            async for page in self._entries("marks", "", behind("marks", "", order) if order else ""):
                for entry in page:
                    if entry.order != order:  # of two entries of one key, one is about to go
                        yield entry.order, entry.shard
                    order = entry.order
            return
        start = head_path(order) if order else ""
        while True:
            listed = await self._loader.objects.list_after(HEADS, start, _PAGE)
            for item in listed:
                shard = item.path.removeprefix(f"{HEADS}/")
                yield shard, shard
            if len(listed) < _PAGE:
                return
            start = listed[-1].path

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        self._require_open()
        wanted = dict[str, list[RecordRef]]()
        for ref in refs:
            wanted.setdefault(ref.key, []).append(ref)
        calls = [
            self._committer.run(key, [partial(_close_mark, ref) for ref in mine])
            for key, mine in wanted.items()
        ]
        answers = await together(calls) if calls else []
        return sum(answer is True for closed in answers for answer in closed)

    async def store_state(self) -> StoreState:
        self._require_open()
        now = wall_us()
        facts = await self._store.read()
        marks, oldest = 0, list[int]()
        async for page in self._entries("marks", "", ""):
            shards = list(dict.fromkeys(entry.shard for entry in page))
            for held in await together([self._loader.head(shard) for shard in shards]):
                if held.head is not None and held.head.marks:
                    marks += held.head.marks
                    oldest.append(held.head.oldest_mark)
            if marks >= MOST_MARKS_COUNTED:
                break
        durability = self._loader.objects.durability
        return StoreState(facts.route, facts.incarnation, durability, marks, min(oldest, default=0), now)

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        self._require_open()
        return await self._store.move_route(expected_epoch, route)


def _close_mark(ref: RecordRef, draft: Draft, _route: Route) -> bool:
    return draft.close_mark(ref.op_id, ref.stamp, ref.rank)


def _records(view: View, table: bytes, low: Place, limit: int) -> tuple[list[Mutation], Place | None]:
    """Records with a place above ``low``, as the peer has to replay them; the last one's place if there may be more."""
    if view.row.clock < low[0] and table == rows.TIMES:
        return [], None
    start = rows.stamped(*low)
    places = [
        rows.stamp_in(key)
        for key, _row in islice(view.scan(table, start, limit=limit + 1), limit + 1)
        if key != start or not low[1]
    ][: max(limit, 1)]
    draft = Draft.of(view)
    records = [record for _stamp, op_id in places if (record := draft.load_record(op_id)) is not None]
    effects = [effect_of(draft, record) for record in records]
    view.require(effects)
    found = [
        _replay(view.head.key, record, view.whole(dict(effect)))
        for record, effect in zip(records, effects, strict=True)
        if effect is not None
    ]
    return found, (places[-1] if len(places) >= limit else None)


def _replay(key: str, record: RecordRow, effect: dict[str, object]) -> Mutation:
    return Mutation(
        key=key,
        op_id=record.op_id,
        kind=record.kind,
        body=effect,
        fingerprint=record.fingerprint,
        occurred_at=record.occurred_at,
        stamp=record.stamp,
        replay=True,
        rank=record.rank,
        home=record.home,
        expires_at=record.expires_at,
        answer=record.answer,
        format=record.format,
    )
