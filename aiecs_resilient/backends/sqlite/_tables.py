"""One key's rows inside the writer's transaction: what the engine needs of a store, as SQL.

A :class:`Batch` lives as long as one transaction. It reads a key's row once and writes it back once, however many
operations of the batch touch that key; after a rollback it is thrown away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from ...codec import encode_key
from ...records import Scope, SessionRow
from .._engine import KeyRow, RecordRow, ValueRow
from ._rows import Row, pack_answer, pack_effect, record_row, session_row, session_values
from ._sql import SQL


class KeyTables:
    """:class:`._engine.Tables` of one key."""

    def __init__(self, connection: sqlite3.Connection, key: str, context_versions: int) -> None:
        self._execute = connection.execute
        self._key = key
        self._context_versions = context_versions
        self._place = encode_key(key).encode()
        self._id = (
            0  # 0: no row yet; made by the first thing that is saved, so that a refusal leaves no trace
        )
        self._has_rows = self._has_thread = False  # rows: messages or contexts
        self._dirty = self._sessions_changed = False
        self._said: dict[str, tuple[int, int, Mapping[str, Any]]] = {}
        self._checkpointed: set[str] = set()
        self._row = KeyRow()
        found: Row | None = self._execute(SQL["load_key"], (self._place,)).fetchone()
        if found is not None:
            self._id, has_session, has_thread = found[0], found[7], found[8]
            self._row = KeyRow(*found[1:7])
            self._has_rows, self._has_thread = bool(has_session), bool(has_thread)

    def _saved_id(self) -> int:
        if not self._id:
            self._id = self._execute(SQL["insert_key"], (self._place, self._key)).lastrowid or 0
        return self._id

    def flush(self) -> None:
        """Write the key's own row, once, before the transaction commits."""
        if not self._dirty:
            return
        row = self._row
        self._execute(
            SQL["save_key"],
            (
                row.clock,
                row.session_dead,
                row.thread_dead,
                row.session_expires,
                row.thread_expires,
                row.current,
                bool(row.current) or self._has_rows,
                self._has_thread,
                self._saved_id(),
            ),
        )
        if self._sessions_changed:
            session = self.load_session(row.current) if row.current else None
            standing = (None, None) if session is None else (session.status(), session.owner())
            self._execute(SQL["save_standing"], (*standing, self._id))
        self._dirty = self._sessions_changed = False

    # ------------------------------------------------------------------ key and records

    def load_key(self) -> KeyRow:
        return self._row

    def save_key(self, row: KeyRow) -> None:
        self._row, self._dirty = row, True

    def load_record(self, op_id: str) -> RecordRow | None:
        found = self._execute(SQL["load_record"], (self._id, op_id)).fetchone() if self._id else None
        return None if found is None else record_row(op_id, found)

    def save_record(self, row: RecordRow) -> None:
        said = self._said.pop(row.op_id, None)
        words: Row = (None,) * 5
        if said is not None:
            position, said_at, body = said
            words = (position, said_at, body["role"], body["content"], body["metadata"])
        held = row.op_id in self._checkpointed
        self._checkpointed.discard(row.op_id)
        self._execute(
            SQL["save_record"],
            (
                self._saved_id(),
                row.op_id,
                row.kind,
                row.stamp,
                row.rank,
                row.home,
                row.marked,
                row.fingerprint,
                row.occurred_at,
                pack_answer(row.answer),
                pack_effect(row.effect),
                row.expires_at,
                row.format,
                held,
                *words,
            ),
        )

    # ------------------------------------------------------------------ sessions

    def load_session(self, inc: str) -> SessionRow | None:
        found = self._execute(SQL["load_session"], (self._id, inc)).fetchone()
        return None if found is None else session_row(found)

    def load_sessions(self) -> list[SessionRow]:
        return [session_row(row) for row in self._execute(SQL["load_sessions"], (self._id,)).fetchall()]

    def save_session(self, row: SessionRow) -> None:
        self._execute(SQL["save_session"], (self._saved_id(), *session_values(row)))
        self._sessions_changed = self._dirty = True

    def drop_session(self, inc: str) -> None:
        self._execute(SQL["drop_session"], (self._id, inc))
        self._sessions_changed = self._dirty = True

    # ------------------------------------------------------------------ messages: columns of their record

    def load_message(self, op_id: str) -> Mapping[str, Any] | None:
        if op_id in self._said:
            return self._said[op_id][2]
        found = self._execute(SQL["load_message"], (self._id, op_id)).fetchone()
        return None if found is None else dict(zip(("role", "content", "metadata"), found, strict=True))

    def save_message(self, op_id: str, stamp: int, occurred_at: int, body: Mapping[str, Any]) -> None:
        self._said[op_id] = (
            stamp,
            occurred_at,
            body,
        )  # written by save_record, which always follows: one insert
        self._has_rows = self._dirty = True

    def drop_messages(self, upto: int) -> int:
        return self._execute(SQL["drop_messages"], (self._id, upto)).rowcount

    # ------------------------------------------------------------------ contexts

    def newest_context(self) -> int:
        found = self._execute(SQL["newest_context"], (self._id,)).fetchone()
        return 0 if found is None else int(found[0])

    def load_context(self, op_id: str) -> ValueRow | None:
        found = self._execute(SQL["load_context"], (self._id, op_id)).fetchone()
        if found is None:
            return None
        stamp, held_op, occurred_at, value = found
        return ValueRow(stamp, held_op, occurred_at, {"value": value})

    def save_context(self, row: ValueRow) -> None:
        body = row.body or {}
        key = self._saved_id()
        self._execute(SQL["save_context"], (key, row.op_id, row.stamp, row.occurred_at, body["value"]))
        self._execute(SQL["trim_contexts"], (key, self._context_versions))
        self._has_rows = self._dirty = True

    def drop_contexts(self, upto: int) -> int:
        dropped = self._execute(SQL["drop_contexts"], (self._id, upto)).rowcount
        self._recount(Scope.SESSION)  # the engine has dropped the messages before
        return dropped

    # ------------------------------------------------------------------ checkpoints and pending writes

    def load_checkpoint(self, ns: str, id: str) -> ValueRow | None:
        found = self._execute(SQL["load_checkpoint"], (self._id, ns, id)).fetchone()
        if found is None:
            return None
        stamp, op_id, occurred_at, data, metadata, parent = found
        body = {"ns": ns, "id": id, "data": data, "metadata": metadata, "parent": parent}
        return ValueRow(stamp, op_id, occurred_at, None if data is None else body)

    def save_checkpoint(self, ns: str, id: str, row: ValueRow) -> None:
        key = self._saved_id()
        body = row.body or {"data": None, "metadata": None, "parent": None}
        self._execute(SQL["release_checkpoint"], (key, row.op_id, ns, id))
        self._execute(
            SQL["save_checkpoint"],
            (
                key,
                ns,
                id,
                row.stamp,
                row.op_id,
                row.occurred_at,
                body["data"],
                body["metadata"],
                body["parent"],
            ),
        )
        if row.body is None:
            self._recount(Scope.THREAD)
        else:
            self._checkpointed.add(row.op_id)
            self._has_thread = self._dirty = True

    def checkpoint_ids(self, ns: str) -> list[str]:
        return [id for (id,) in self._execute(SQL["checkpoint_ids"], (self._id, ns)).fetchall()]

    def load_writes(self, ns: str, id: str, task: str) -> ValueRow | None:
        found = self._execute(SQL["load_writes"], (self._id, ns, id, task)).fetchone()
        if found is None:
            return None
        stamp, op_id, occurred_at, path, value = found
        body = {"ns": ns, "id": id, "task": task, "path": path, "value": value}
        return ValueRow(stamp, op_id, occurred_at, body)

    def save_writes(self, ns: str, id: str, task: str, row: ValueRow) -> None:
        body = row.body or {}
        place = (self._saved_id(), ns, id, task)
        self._execute(
            SQL["save_writes"], (*place, row.stamp, row.op_id, row.occurred_at, body["path"], body["value"])
        )
        self._has_thread = self._dirty = True

    def drop_writes(self, ns: str, id: str, upto: int) -> None:
        self._execute(SQL["drop_writes"], (self._id, ns, id, upto))
        self._recount(Scope.THREAD)

    def drop_thread(self, upto: int) -> int:
        self._execute(SQL["release_checkpoints"], (self._id, self._id, upto))
        dropped = self._execute(SQL["drop_checkpoints"], (self._id, upto)).rowcount
        dropped += self._execute(SQL["drop_all_writes"], (self._id, upto)).rowcount
        self._recount(Scope.THREAD)
        return dropped

    # ------------------------------------------------------------------ what there is

    def holds(self, scope: str) -> bool:
        session = scope != Scope.THREAD and (bool(self._row.current) or self._any("holds_session"))
        return session or (scope != Scope.SESSION and self._any("holds_thread"))

    def _any(self, query: str) -> bool:
        return bool(self._execute(SQL[query], (self._id,)).fetchone()[0])

    def _recount(self, scope: str) -> None:
        """After something was dropped: is there anything left for clean-up to find?"""
        if scope == Scope.SESSION:
            self._has_rows = self._any("holds_session")
        else:
            self._has_thread = self._any("holds_thread")
        self._dirty = True


class Batch:
    """The keys that one transaction touches."""

    def __init__(self, connection: sqlite3.Connection, context_versions: int) -> None:
        self.connection = connection
        self._context_versions = context_versions
        self._tables: dict[str, KeyTables] = {}

    def tables(self, key: str) -> KeyTables:
        """The key's tables, the same ones throughout the transaction."""
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = KeyTables(self.connection, key, self._context_versions)
        return found

    def flush(self) -> None:
        """Write what was put off to the end."""
        for tables in self._tables.values():
            tables.flush()
