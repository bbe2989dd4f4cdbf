"""Everything in this process's memory: for tests, for trying out, and as the reference that other backends are held to.

It keeps the whole contract except surviving: its durability is ``volatile``, so it is refused as the only store behind
an acknowledgement of ``dual_write`` unless that is allowed expressly.
"""

from __future__ import annotations

import bisect
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..clock import wall_us
from ..codec import encode_key
from ..errors import StorageError
from ..interface import Json
from ..records import (
    Applied,
    CheckpointRow,
    ContextRow,
    Durability,
    IdleKey,
    Kind,
    MessageRow,
    Mutation,
    RecordPage,
    RecordRef,
    Route,
    Scope,
    SessionRow,
    StoreState,
)
from ..units import Bytes, Count, Seconds
from ._base import empty_metrics
from ._engine import KeyRow, RecordRow, ValueRow, apply_one, effect_of
from ._store import DEFAULT_CONTEXT_VERSIONS, DEFAULT_RETENTION_SECONDS, StoreBackend


@dataclass(slots=True)
class _KeyTables:
    """One key's rows: :class:`._engine.Tables` over plain dicts. Loads give live rows; the engine refuses before it changes any."""

    context_versions: int
    row: KeyRow = field(default_factory=KeyRow)
    records: dict[str, RecordRow] = field(default_factory=dict[str, RecordRow])
    sessions: dict[str, SessionRow] = field(default_factory=dict[str, SessionRow])
    messages: dict[str, MessageRow] = field(default_factory=dict[str, MessageRow])
    order: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    contexts: list[ValueRow] = field(default_factory=list[ValueRow])
    checkpoints: dict[tuple[str, str], ValueRow] = field(default_factory=dict[tuple[str, str], ValueRow])
    writes: dict[tuple[str, str, str], ValueRow] = field(default_factory=dict[tuple[str, str, str], ValueRow])

    def load_key(self) -> KeyRow:
        return self.row

    def save_key(self, row: KeyRow) -> None:
        self.row = row

    def load_record(self, op_id: str) -> RecordRow | None:
        return self.records.get(op_id)

    def save_record(self, row: RecordRow) -> None:
        self.records[row.op_id] = row

    def load_session(self, inc: str) -> SessionRow | None:
        return self.sessions.get(inc)

    def load_sessions(self) -> list[SessionRow]:
        return list(self.sessions.values())

    def save_session(self, row: SessionRow) -> None:
        self.sessions[row.inc] = row

    def drop_session(self, inc: str) -> None:
        del self.sessions[inc]

    def load_message(self, op_id: str) -> Mapping[str, Any] | None:
        row = self.messages.get(op_id)
        return None if row is None else {"role": row.role, "content": row.content, "metadata": row.metadata}

    def save_message(self, op_id: str, stamp: int, occurred_at: int, body: Mapping[str, Any]) -> None:
        held = self.messages.get(op_id)
        if held is not None:
            self.order.remove((held.stamp, op_id))
        self.messages[op_id] = MessageRow(
            op_id, stamp, body["role"], body["content"], body["metadata"], occurred_at
        )
        bisect.insort(self.order, (stamp, op_id))

    def drop_messages(self, upto: int) -> int:
        count = bisect.bisect_left(self.order, (upto + 1, ""))
        for _stamp, op_id in self.order[:count]:
            del self.messages[op_id]
        del self.order[:count]
        return count

    def newest_context(self) -> int:
        return self.contexts[0].stamp if self.contexts else 0

    def load_context(self, op_id: str) -> ValueRow | None:
        return next((row for row in self.contexts if row.op_id == op_id), None)

    def save_context(self, row: ValueRow) -> None:
        others = [held for held in self.contexts if held.op_id != row.op_id]
        self.contexts = sorted([*others, row], key=_place, reverse=True)[: self.context_versions]

    def drop_contexts(self, upto: int) -> int:
        before = len(self.contexts)
        self.contexts = [row for row in self.contexts if row.stamp > upto]
        return before - len(self.contexts)

    def load_checkpoint(self, ns: str, id: str) -> ValueRow | None:
        return self.checkpoints.get((ns, id))

    def save_checkpoint(self, ns: str, id: str, row: ValueRow) -> None:
        self.checkpoints[ns, id] = row

    def live_checkpoints(self, ns: str) -> list[tuple[str, ValueRow]]:
        found = [
            (id, row) for (space, id), row in self.checkpoints.items() if space == ns and row.body is not None
        ]
        return sorted(found, key=lambda item: _place(item[1]), reverse=True)

    def checkpoint_ids(self, ns: str) -> list[str]:
        return [id for id, _row in self.live_checkpoints(ns)]

    def load_writes(self, ns: str, id: str, task: str) -> ValueRow | None:
        return self.writes.get((ns, id, task))

    def save_writes(self, ns: str, id: str, task: str, row: ValueRow) -> None:
        self.writes[ns, id, task] = row

    def drop_writes(self, ns: str, id: str, upto: int) -> None:
        self.writes = {
            place: row for place, row in self.writes.items() if place[:2] != (ns, id) or row.stamp > upto
        }

    def drop_thread(self, upto: int) -> int:
        before = len(self.checkpoints) + len(self.writes)
        self.checkpoints = {place: row for place, row in self.checkpoints.items() if row.stamp > upto}
        self.writes = {place: row for place, row in self.writes.items() if row.stamp > upto}
        return before - len(self.checkpoints) - len(self.writes)

    def holds(self, scope: str) -> bool:
        session = bool(self.row.current or self.messages or self.contexts)
        thread = bool(self.writes) or any(row.body is not None for row in self.checkpoints.values())
        return (session and scope != Scope.THREAD) or (thread and scope != Scope.SESSION)

    def session_alive(self, now: int) -> bool:
        return not 0 < self.row.session_expires <= now

    def thread_alive(self, now: int) -> bool:
        return not 0 < self.row.thread_expires <= now


def _place(row: ValueRow) -> tuple[int, str]:
    return row.stamp, row.op_id


class MemoryStorageBackend(StoreBackend):
    """Stores everything in memory, gone with the process.

    Args:
        name: how it is called in errors, health and routing.
        session_ttl, checkpoint_ttl, retention: seconds; see :class:`._store.StoreBackend`.
        context_versions: versions of a task context that are kept.
        max_value_bytes: the most one encoded value may take.
    """

    kind = "memory"

    def __init__(
        self,
        *,
        name: str = "memory",
        session_ttl: Seconds | None = None,
        checkpoint_ttl: Seconds | None = None,
        retention: Seconds = DEFAULT_RETENTION_SECONDS,
        context_versions: Count = DEFAULT_CONTEXT_VERSIONS,
        max_value_bytes: Bytes = 64 * 1024 * 1024,
    ) -> None:
        super().__init__(
            name=name,
            session_ttl=session_ttl,
            checkpoint_ttl=checkpoint_ttl,
            retention=retention,
            context_versions=context_versions,
            max_value_bytes=max_value_bytes,
        )
        self._keys: dict[str, _KeyTables] = {}
        self._marks: set[tuple[str, str]] = set()
        self._route = Route(0, "")
        self._incarnation = uuid.uuid4().hex
        self._next_pruning = 0

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        self._open = True
        return True

    async def close(self) -> None:
        self._open = False

    async def health_check(self) -> Json:
        healthy = self._open
        return {
            "status": "healthy" if healthy else "unhealthy",
            "storage_backend": self.kind,
            "redis_connected": False,
            "issues": [] if healthy else [f"{self.name} is not open"],
            "durability": Durability.VOLATILE.name.lower(),
        }

    async def get_metrics(self) -> Json:
        self._require_open()
        now = wall_us()
        sessions = [row for tables in self._keys.values() if (row := self._current(tables, now)) is not None]
        return {
            **empty_metrics(self.kind, redis_connected=False),
            "total_sessions": len(sessions),
            "active_sessions": sum(row.ended is None for row in sessions),
            "total_messages": sum(len(tables.messages) for tables in self._keys.values()),
            "total_checkpoints": sum(len(tables.live_checkpoints("")) for tables in self._keys.values()),
        }

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._require_open()
        now = wall_us()
        self._forget_old_identities(now)
        return [self._apply(mutation, now) for mutation in mutations]

    def _apply(self, mutation: Mutation, now: int) -> Applied | StorageError:
        tables = self._keys.get(mutation.key) or _KeyTables(self._context_versions)
        expires_at = self._expiry(mutation)
        if expires_at != mutation.expires_at:
            mutation = replace(mutation, expires_at=expires_at)
        result = apply_one(tables, mutation, now_us=now, route=self._route, max_age_us=self._max_age_us)
        if isinstance(result, Applied):
            self._keys[mutation.key] = tables
            place = (mutation.key, mutation.op_id)
            (self._marks.add if tables.records[mutation.op_id].marked else self._marks.discard)(place)
        return result

    def _forget_old_identities(self, now: int) -> None:
        """Once a minute at most: records past retention whose row does not need them any more."""
        if now < self._next_pruning:
            return
        self._next_pruning = now + 60_000_000
        horizon = now - self._retention_us
        for tables in self._keys.values():
            for op_id, record in list(tables.records.items()):
                held = record.effect and record.kind == Kind.CHECKPOINT and effect_of(tables, record)
                if record.stamp < horizon and not record.marked and op_id not in tables.messages and not held:
                    del tables.records[op_id]

    # ------------------------------------------------------------------ reads

    def _tables(self, key: str) -> _KeyTables:
        self._require_open()
        return self._keys.get(key) or _KeyTables(self._context_versions)

    def _current(self, tables: _KeyTables, now: int) -> SessionRow | None:
        return (
            tables.sessions[tables.row.current] if tables.row.current and tables.session_alive(now) else None
        )

    async def _read_session(self, key: str) -> tuple[SessionRow | None, int]:
        tables = self._tables(key)
        return self._current(tables, wall_us()), tables.row.clock

    async def _read_sessions(self, keys: Sequence[str]) -> list[SessionRow | None]:
        now = wall_us()
        return [self._current(self._tables(key), now) for key in keys]

    async def _read_messages(
        self, key: str, limit: int, before: int | None, after: int | None
    ) -> tuple[list[MessageRow], int]:
        tables = self._tables(key)
        if not tables.session_alive(wall_us()):
            return [], tables.row.clock
        start = 0 if after is None else bisect.bisect_left(tables.order, (after + 1, ""))
        stop = len(tables.order) if before is None else bisect.bisect_left(tables.order, (before, ""))
        chosen = tables.order[start:stop]
        if limit:
            chosen = chosen[:limit] if after is not None else chosen[-limit:]
        return [tables.messages[op_id] for _stamp, op_id in chosen], tables.row.clock

    async def _read_checkpoint(self, key: str, ns: str, id: str | None) -> tuple[CheckpointRow | None, int]:
        rows, clock = await self._read_checkpoints(key, ns, 0)
        return next((row for row in rows if id is None or row.id == id), None), clock

    async def _read_checkpoints(self, key: str, ns: str, limit: int) -> tuple[list[CheckpointRow], int]:
        tables = self._tables(key)
        live = tables.live_checkpoints(ns) if tables.thread_alive(wall_us()) else []
        rows = [
            CheckpointRow(
                id, row.stamp, row.body["data"], row.body["metadata"], row.occurred_at, row.body["parent"]
            )
            for id, row in live[: limit or None]
            if row.body is not None
        ]
        return rows, tables.row.clock

    async def _read_writes(self, key: str, ns: str, id: str) -> tuple[list[bytes], int]:
        tables = self._tables(key)
        if not tables.thread_alive(wall_us()):
            return [], tables.row.clock
        rows = sorted((row for place, row in tables.writes.items() if place[:2] == (ns, id)), key=_place)
        return [row.body["value"] for row in rows if row.body is not None], tables.row.clock

    async def _read_contexts(self, key: str, limit: int) -> tuple[list[ContextRow], int]:
        tables = self._tables(key)
        rows = tables.contexts[:limit] if tables.session_alive(wall_us()) else []
        return [
            ContextRow(row.stamp, row.body["value"], row.occurred_at) for row in rows if row.body
        ], tables.row.clock

    async def _list_sessions(
        self, status: str | None, user_id: str | None, after: str | None, limit: int
    ) -> list[tuple[str, SessionRow]]:
        self._require_open()
        now, found = wall_us(), list[tuple[str, SessionRow]]()
        for key in self._sorted_keys(after):
            row = self._current(self._keys[key], now)
            if row is not None and status in (None, row.status()) and user_id in (None, row.owner()):
                found.append((key, row))
                if len(found) == limit:
                    break
        return found

    async def _list_threads(self, after: str | None, limit: int) -> list[str]:
        self._require_open()
        now = wall_us()
        live = (
            key
            for key in self._sorted_keys(after)
            if self._keys[key].thread_alive(now) and self._keys[key].live_checkpoints("")
        )
        return [key for key, _n in zip(live, range(limit), strict=False)]

    def _sorted_keys(self, after: str | None) -> list[str]:
        floor = b"" if after is None else encode_key(after).encode()
        order = sorted((encode_key(key).encode(), key) for key in self._keys)
        return [key for place, key in order if place > floor]

    async def _read_outcome(self, key: str, op_id: str) -> bool:
        record = self._tables(key).records.get(op_id)
        return record is not None and bool(record.answer)

    # ------------------------------------------------------------------ replication

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        self._require_open()
        floor = tuple(json.loads(after)) if after is not None else (-1, "", "")
        places = sorted(
            (record.stamp, key, op_id)
            for key, tables in self._keys.items()
            for op_id, record in tables.records.items()
            if record.stamp >= since
            and (record.marked or not open_only)
            and (record.stamp, key, op_id) > floor
        )[: limit + 1]
        page = places[:limit]
        records = [replay for _stamp, key, op_id in page if (replay := self._replay(key, op_id)) is not None]
        return RecordPage(records, json.dumps(page[-1]) if len(places) > limit else None)

    def _replay(self, key: str, op_id: str) -> Mutation | None:
        tables = self._keys[key]
        record = tables.records[op_id]
        effect = effect_of(tables, record)
        if effect is None:
            return None
        return Mutation(
            key=key,
            op_id=op_id,
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

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        self._require_open()
        now, idle = wall_us(), list[IdleKey]()
        for key, tables in self._keys.items():
            if len(idle) == limit:
                break
            if tables.holds(Scope.SESSION) and tables.row.clock < before:
                idle.append(IdleKey(key, before, Scope.ALL))
            elif tables.holds(Scope.SESSION) and not tables.session_alive(now):
                idle.append(IdleKey(key, tables.row.session_expires + 1, Scope.SESSION))
            elif tables.holds(Scope.THREAD) and not tables.thread_alive(now):
                idle.append(IdleKey(key, tables.row.thread_expires + 1, Scope.THREAD))
        return idle

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        self._require_open()
        closed = 0
        for ref in refs:
            tables = self._keys.get(ref.key)
            record = tables.records.get(ref.op_id) if tables is not None else None
            if record is not None and record.marked and (record.stamp, record.rank) == (ref.stamp, ref.rank):
                record.marked = False
                self._marks.discard((ref.key, ref.op_id))
                closed += 1
        return closed

    async def store_state(self) -> StoreState:
        self._require_open()
        stamps = [self._keys[key].records[op_id].stamp for key, op_id in self._marks]
        return StoreState(
            self._route,
            self._incarnation,
            Durability.VOLATILE,
            len(stamps),
            min(stamps, default=0),
            wall_us(),
        )

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        self._require_open()
        if self._route.epoch == expected_epoch and route.epoch > expected_epoch:
            self._route = route
        return self._route
