"""Writing one key: a state that is being changed, with what must be stored before it counts and removed after.

It is :class:`.._engine.Tables` for the reference engine. Every step (one mutation) either happens whole or leaves no trace:
:meth:`Draft.attempt` takes it back when something was not in memory, when the engine refused, or when a row is damaged.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ...records import Kind, Scope, SessionRow
from .._engine import KeyRow, RecordRow, ValueRow
from . import _rows as rows
from . import _tree as tree
from ._head import Head
from ._names import token
from ._view import LoadObject, View

T = TypeVar("T")


class Draft(View):
    """A copy of one state of a key, to be changed.

    Args:
        head, load, fetch: see :class:`._view.View`.
        context_versions: how many are kept.

    Attributes:
        staged: id → large value that rows of this draft refer to and that no store holds yet.
        released: ids of large values that no row refers to any more.
        changed: something is different from the state it was made of.
        renew: indexes whose entry is to be made anew, because its time has come.
    """

    def __init__(self, head: Head, load: tree.Load, fetch: LoadObject, context_versions: int) -> None:
        super().__init__(head.copy(), load, self._fetch_staged)
        self._fetch_stored = fetch
        self._context_versions = context_versions
        self.staged: dict[str, bytes] = {}
        self.released: set[str] = set()
        self.changed = False
        self.renew: set[str] = set()
        self._undo: list[tuple[bytes, bytes | None, bool]] = []

    @classmethod
    def of(cls, view: View) -> Draft:
        """The same state, for code that wants the engine's tables; nothing of it will be kept."""
        return cls(view.head, view.load_page, view.fetch_large, 1)

    def _fetch_staged(self, id: str) -> bytes:
        return self.staged[id] if id in self.staged else self._fetch_stored(id)

    def _stage(self, data: bytes) -> str:
        id = token()
        self.staged[id] = data
        return id

    # ------------------------------------------------------------------ steps

    def attempt(self, step: Callable[[Draft], T]) -> T:
        """Run it; if it raises, everything is as before."""
        self._undo = []
        before = replace(self.head, row=replace(self.head.row), roots=dict(self.head.roots))
        garbage, highest = list(self.head.garbage), dict(self.head.highest)
        released, staged, changed = set(self.released), dict(self.staged), self.changed
        try:
            return step(self)
        except BaseException:
            for place, row, was_there in reversed(self._undo):
                self._place(place, row, was_there)
            before.tail, before.garbage, before.highest = self.head.tail, garbage, highest
            self.head, self.released, self.staged, self.changed = before, released, staged, changed
            raise

    def _place(self, place: bytes, row: bytes | None, there: bool) -> None:
        tail = self.head.tail
        if there and place not in tail:
            insort(self._order, place)
        elif not there and place in tail:
            del self._order[bisect_left(self._order, place)]
        if there:
            tail[place] = row
        else:
            tail.pop(place, None)

    def _write(self, table: bytes, key: bytes, data: bytes | None, old: Any | None) -> None:
        """``old``: the row that is replaced, as loaded, or None; its large values are released unless the new row has them."""
        place = table + key
        self._undo.append((place, self.head.tail.get(place), place in self.head.tail))
        self.changed = True
        self.released |= {large.id for large in rows.large_in(old)}
        if self.released and data is not None:
            self.released -= {large.id for large in rows.large_in(rows.load(data))}
        # A row that no page holds needs no trace of its removal.
        self._place(place, data, data is not None or table in self.head.roots)

    def put(self, table: bytes, key: bytes, value: Any, old: Any | None) -> None:
        """Set a row; see :meth:`_write`."""
        self._write(table, key, rows.dump(value, self._stage), old)

    def remove(self, table: bytes, key: bytes) -> bool:
        """Take a row away; whether there was one."""
        old = self.get(table, key)
        if old is None:
            return False
        self._write(table, key, None, old)
        return True

    def drop(self, table: bytes) -> None:
        """Empty a table: its pages are left to be removed in steps."""
        start, stop = bisect_left(self._order, table), bisect_left(self._order, rows.above(table))
        root = self.head.roots.pop(table, None)
        for place in self._order[start:stop]:
            row = self.head.tail[place]
            self._write(table, place[1:], None, None if row is None else rows.load(row))
        if root is not None:
            self.head.garbage.append(root.id)
            self.changed = True

    def _rose(self, table: bytes, stamp: int) -> None:
        self.head.highest[table] = max(self.head.highest.get(table, 0), stamp)

    # ------------------------------------------------------------------ key and records

    def load_key(self) -> KeyRow:
        return self.head.row

    def save_key(self, row: KeyRow) -> None:
        self.head.row, self.changed = row, True

    def load_record(self, op_id: str) -> RecordRow | None:
        return self.record(op_id)

    def save_record(self, row: RecordRow) -> None:
        key = row.op_id.encode()
        old = self.get(rows.RECORDS, key)
        self.put(rows.RECORDS, key, rows.record_value(row), old)
        place = rows.stamped(row.stamp, row.op_id)
        if old is None or old[1] != row.stamp:
            if old is not None:
                self.remove(rows.TIMES, rows.stamped(old[1], row.op_id))
            self.put(rows.TIMES, place, 0, None)
        if old is not None and old[4]:
            self.remove(rows.MARKS, rows.stamped(old[1], row.op_id))
        if row.marked:
            self.put(rows.MARKS, place, 0, None)
        self.head.marks += row.marked - (old is not None and old[4])
        if row.stamp <= self.head.walked:
            self.head.walked = 0  # it came late, or may go now: it must be looked at again

    # ------------------------------------------------------------------ sessions

    def load_session(self, inc: str) -> SessionRow | None:
        return self.session(inc)

    def load_sessions(self) -> list[SessionRow]:
        return [
            rows.session_row(key.decode(), rows.checked(value, 10)) for key, value in self.scan(rows.SESSIONS)
        ]

    def save_session(self, row: SessionRow) -> None:
        key = row.inc.encode()
        old = self.get(rows.SESSIONS, key)
        self._write(rows.SESSIONS, key, rows.dump_session(row, self._stage), old)

    def drop_session(self, inc: str) -> None:
        self.remove(rows.SESSIONS, inc.encode())

    # ------------------------------------------------------------------ messages: found by the stamp of their record

    def _message_key(self, op_id: str) -> bytes | None:
        record = self.get(rows.RECORDS, op_id.encode())
        return None if record is None else rows.stamped(record[1], op_id)

    def load_message(self, op_id: str) -> Mapping[str, Any] | None:
        key = self._message_key(op_id)
        value = None if key is None else self.get(rows.MESSAGES, key)
        if value is None:
            return None
        _occurred_at, role, content, metadata = rows.checked(value, 4)
        return {"role": role, "content": content, "metadata": metadata}

    def save_message(self, op_id: str, stamp: int, occurred_at: int, body: Mapping[str, Any]) -> None:
        held = self._message_key(op_id)
        if held is not None and self.remove(rows.MESSAGES, held):
            self.head.messages -= 1
        value = [occurred_at, body["role"], body["content"], body["metadata"]]
        self.put(rows.MESSAGES, rows.stamped(stamp, op_id), value, None)
        self.head.messages += 1
        self._rose(rows.MESSAGES, stamp)

    def drop_messages(self, upto: int) -> int:
        if upto >= self.head.highest.get(rows.MESSAGES, 0):
            dropped, self.head.messages = self.head.messages, 0
            self.drop(rows.MESSAGES)
        else:
            keys = [key for key, _row in self.scan(rows.MESSAGES, b"", rows.stamped(upto + 1))]
            dropped = sum(self.remove(rows.MESSAGES, key) for key in keys)
            self.head.messages -= dropped
        if dropped:
            self.head.walked = 0  # their records may be forgotten now
        return dropped

    # ------------------------------------------------------------------ contexts

    def newest_context(self) -> int:
        return next((row.stamp for row in self.contexts()), 0)

    def load_context(self, op_id: str) -> ValueRow | None:
        return next((row for row in self.contexts() if row.op_id == op_id), None)

    def save_context(self, row: ValueRow) -> None:
        held = self.load_context(row.op_id)
        if held is not None:
            self.remove(rows.CONTEXTS, rows.stamped(held.stamp, held.op_id))
        body = row.body or {}
        self.put(rows.CONTEXTS, rows.stamped(row.stamp, row.op_id), [row.occurred_at, body["value"]], None)
        for extra in self.contexts()[self._context_versions :]:
            self.remove(rows.CONTEXTS, rows.stamped(extra.stamp, extra.op_id))

    def drop_contexts(self, upto: int) -> int:
        gone = [row for row in self.contexts() if row.stamp <= upto]
        return sum(self.remove(rows.CONTEXTS, rows.stamped(row.stamp, row.op_id)) for row in gone)

    # ------------------------------------------------------------------ checkpoints

    def load_checkpoint(self, ns: str, id: str) -> ValueRow | None:
        return self.checkpoint(ns, id)

    def save_checkpoint(self, ns: str, id: str, row: ValueRow) -> None:
        key = rows.joined(ns, id)
        old = self.get(rows.CHECKPOINTS, key)
        if old is not None and old[3] is not None:
            self.remove(rows.LATEST, rows.joined(ns) + rows.stamped(old[0], old[1]))
            self.head.checkpoints -= not ns
            if old[0] <= self.head.walked:
                self.head.walked = 0  # the record of the one that is replaced may be forgotten now
        body = None
        if row.body is not None:
            body = {name: row.body[name] for name in ("data", "metadata", "parent")}
            self.put(rows.LATEST, rows.joined(ns) + rows.stamped(row.stamp, row.op_id), id, None)
            self.head.checkpoints += not ns
        self.put(rows.CHECKPOINTS, key, [row.stamp, row.op_id, row.occurred_at, body], old)
        self._rose(rows.CHECKPOINTS, row.stamp)

    def checkpoint_ids(self, ns: str) -> list[str]:
        return list(self.latest(ns))

    # ------------------------------------------------------------------ pending writes

    def load_writes(self, ns: str, id: str, task: str) -> ValueRow | None:
        value = self.get(rows.WRITES, rows.joined(ns, id, task))
        if value is None:
            return None
        stamp, op_id, occurred_at, body = rows.checked(value, 4)
        return ValueRow(stamp, op_id, occurred_at, {"ns": ns, "id": id, "task": task, **body})

    def save_writes(self, ns: str, id: str, task: str, row: ValueRow) -> None:
        key = rows.joined(ns, id, task)
        body = row.body or {}
        value = [row.stamp, row.op_id, row.occurred_at, {"path": body["path"], "value": body["value"]}]
        self.put(rows.WRITES, key, value, self.get(rows.WRITES, key))
        self._rose(rows.CHECKPOINTS, row.stamp)

    def drop_writes(self, ns: str, id: str, upto: int) -> None:
        for key in [key for key, value in self.writes(ns, id) if value[0] <= upto]:
            self.remove(rows.WRITES, key)

    def drop_thread(self, upto: int) -> int:
        had = self.any(rows.CHECKPOINTS) or self.any(rows.WRITES)
        if not had:
            return 0
        self.head.walked = 0  # records of checkpoints may be forgotten now
        if upto >= self.head.highest.get(rows.CHECKPOINTS, 0):
            self.head.checkpoints = 0
            for table in (rows.CHECKPOINTS, rows.LATEST, rows.WRITES):
                self.drop(table)
            return 1
        return self._drop_older(upto)

    def _drop_older(self, upto: int) -> int:
        """Part of a thread: a delete that arrived behind later writes."""
        dropped = 0
        for key, value in [*self.scan(rows.CHECKPOINTS)]:
            stamp, op_id, _occurred_at, body = rows.checked(value, 4)
            if stamp <= upto:
                ns = key[: 2 + int.from_bytes(key[:2], "big")]
                if body is not None and self.remove(rows.LATEST, ns + rows.stamped(stamp, op_id)):
                    self.head.checkpoints -= len(ns) == 2  # the namespace ""
                dropped += self.remove(rows.CHECKPOINTS, key)
        stale = [key for key, value in self.scan(rows.WRITES) if value[0] <= upto]
        return dropped + sum(self.remove(rows.WRITES, key) for key in stale)

    # ------------------------------------------------------------------ what there is

    def holds(self, scope: str) -> bool:
        return (scope != Scope.THREAD and self.holds_session()) or (
            scope != Scope.SESSION and self.holds_thread()
        )

    # ------------------------------------------------------------------ marks and forgetting

    def close_mark(self, op_id: str, stamp: int, rank: int) -> bool:
        """Close a mark that still stands as named."""
        record = self.load_record(op_id)
        if record is None or not record.marked or (record.stamp, record.rank) != (stamp, rank):
            return False
        record.marked = False
        self.save_record(record)
        return True

    def forget(self, horizon: int, steps: int) -> int:
        """Look at up to so many of the oldest records and forget those past the horizon that nothing needs; how many."""
        low = rows.stamped(self.head.walked + 1) if self.head.walked else b""
        seen = list[tuple[int, str]]()
        for key, _value in self.scan(rows.TIMES, low, rows.stamped(max(horizon, 0)), limit=steps + 1):
            place = rows.stamp_in(key)
            if len(seen) >= steps and place[0] != seen[-1][0]:  # all of one stamp together
                break
            seen.append(place)
        else:
            steps = len(seen) + 1
        gone = 0
        for stamp, op_id in seen:
            key = op_id.encode()
            record = self.load_record(op_id)
            if record is None or not self._needed(record):
                self.remove(rows.RECORDS, key)
                self.remove(rows.TIMES, rows.stamped(stamp, op_id))
                gone += 1
        walked = seen[-1][0] if len(seen) >= steps else max(horizon - 1, 0)
        if walked > self.head.walked:
            self.head.walked, self.changed = walked, True
        return gone

    def collected(self, ids: Sequence[str], below: Sequence[str], objects: int) -> bool:
        """These pieces of garbage are about to be removed, with so many objects in all; what hung from them is next."""
        if not set(ids) <= set(self.head.garbage):
            return False  # another process was quicker
        self.head.garbage = [id for id in self.head.garbage if id not in ids] + [*below]
        self.head.objects -= objects
        self.changed = True
        return True

    def _needed(self, record: RecordRow) -> bool:
        if record.marked:
            return True
        if record.kind == Kind.MESSAGE:
            return self.get(rows.MESSAGES, rows.stamped(record.stamp, record.op_id)) is not None
        if record.kind == Kind.CHECKPOINT and record.effect and "id" in record.effect:
            held = self.checkpoint(record.effect["ns"], record.effect["id"])
            return held is not None and held.body is not None and held.op_id == record.op_id
        return False
