"""What ``dual_write`` asks of the SQLite backend beyond applying: records, marks, route, state."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from ...clock import wall_us
from ...errors import DataCorruptionError
from ...records import Durability, IdleKey, Mutation, RecordPage, RecordRef, Route, StoreState
from .._engine import RecordRow, effect_of
from ._reads import SQLiteReads, place_of
from ._rows import Row, listed_record, replay
from ._sql import SQL
from ._tables import Batch
from ._thread import ConnectionThread

Place = tuple[int, int, str]


class SQLiteReplication(SQLiteReads):
    """Needs the two threads of the backend."""

    _writer: ConnectionThread
    _large_reads: ConnectionThread

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        self._require_open()
        read = _open_records if open_only else _all_records
        return await self._large_reads.call(lambda batch: read(_Snapshot(batch), since, after, limit))

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        wanted = {"before": before, "now": wall_us(), "limit": limit}
        idle = [IdleKey(key, before, scope) for key, _clock, scope in await self._fetch("read_idle", wanted)]
        whole = {item.key for item in idle}
        for query in ("read_expired_sessions", "read_expired_threads"):
            expired = await self._fetch(query, wanted)
            idle += [IdleKey(key, upto, scope) for key, upto, scope in expired if key not in whole]
        return idle[:limit]

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        self._require_open()
        wanted = [(place_of(ref.key), ref.op_id, ref.stamp, ref.rank) for ref in refs]
        if not wanted:
            return 0

        def close(batch: Batch) -> int:
            return sum(batch.connection.execute(SQL["close_mark"], ref).rowcount for ref in wanted)

        return await self._writer.call(close)

    async def store_state(self) -> StoreState:
        self._require_open()
        now = wall_us()

        def read(batch: Batch) -> StoreState:
            marks, oldest = batch.connection.execute(SQL["count_marks"]).fetchone()
            incarnation = _load_meta(batch.connection, "incarnation")
            if incarnation is None:
                raise DataCorruptionError("the file has lost its incarnation; restore it from a backup")
            route = load_route(batch.connection)
            return StoreState(route, incarnation, Durability.HOST, marks, oldest, now)

        return await self._large_reads.call(read)

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        self._require_open()

        def move(batch: Batch) -> Route:
            held = load_route(batch.connection)
            if held.epoch != expected_epoch or route.epoch <= expected_epoch:
                return held
            text = json.dumps([route.epoch, route.leader])
            batch.connection.execute(SQL["save_meta"], ("route", text))
            return route

        return await self._writer.call(move)


def load_route(connection: sqlite3.Connection) -> Route:
    """The routing the store holds; nobody's before it took part in a dual write."""
    text = _load_meta(connection, "route")
    return Route(0, "") if text is None else Route(*json.loads(text))


def _load_meta(connection: sqlite3.Connection, name: str) -> Any:
    found = connection.execute(SQL["load_meta"], (name,)).fetchone()
    return None if found is None else found[0]


class _Snapshot:
    """Records and the rows they refer to, as of one moment."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.fetch = batch.connection.execute

    def replay(self, key: str, op_id: str, record: RecordRow) -> Mutation | None:
        effect = effect_of(self._batch.tables(key), record)
        return None if effect is None else replay(key, op_id, record, effect)


def _open_records(snapshot: _Snapshot, since: int, after: str | None, limit: int) -> RecordPage:
    stamp, number, op_id = _place(after)
    wanted = {"since": since, "stamp": stamp, "key": number, "op_id": op_id, "limit": limit + 1}
    rows: list[Row] = snapshot.fetch(SQL["read_open_records"], wanted).fetchall()
    found, cursor = list[Mutation](), None
    for key, number, *columns in rows[:limit]:
        op_id, record = listed_record(columns)
        item = snapshot.replay(key, op_id, record)
        found += [] if item is None else [item]
        cursor = json.dumps([record.stamp, number, op_id])
    return RecordPage(found, cursor if len(rows) > limit else None)


def _all_records(snapshot: _Snapshot, since: int, after: str | None, limit: int) -> RecordPage:
    stamp, number, op_id = _place(after)
    found, seen = list[Mutation](), 0
    while seen < limit:
        head = snapshot.fetch(SQL["read_next_key"], {"key": number, "since": since}).fetchone()
        if head is None:
            return RecordPage(found, None)
        if head[0] != number:
            number, stamp, op_id = head[0], -1, ""
        wanted = {"key": number, "since": since, "stamp": stamp, "op_id": op_id, "limit": limit - seen}
        rows: list[Row] = snapshot.fetch(SQL["read_key_records"], wanted).fetchall()
        for columns in rows:
            op_id, record = listed_record(columns)
            stamp = record.stamp
            item = snapshot.replay(head[1], op_id, record)
            found += [] if item is None else [item]
        seen += len(rows)
        if seen < limit:
            number, stamp, op_id = number + 1, -1, ""
    return RecordPage(found, json.dumps([stamp, number, op_id]))


def _place(cursor: str | None) -> Place:
    if cursor is None:
        return -1, 0, ""
    stamp, number, op_id = json.loads(cursor)
    return stamp, number, op_id
