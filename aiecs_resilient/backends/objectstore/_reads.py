"""The raw reads: one key's state, looked at as it is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from ...clock import wall_us
from ...records import CheckpointRow, ContextRow, MessageRow, SessionRow
from .._store import StoreBackend
from . import _rows as rows
from ._loading import Loader, together
from ._names import shard_of
from ._view import View

T = TypeVar("T")

_HIGHEST = 2**64 - 1


class ObjectReads(StoreBackend):
    """What :class:`.._store.StoreBackend` asks for, key by key."""

    _loader: Loader

    async def _look(self, key: str, read: Callable[[View], T]) -> tuple[T, int]:
        self._require_open()
        return await self._loader.read(shard_of(key), read, key=key)

    async def _read_session(self, key: str) -> tuple[SessionRow | None, int]:
        return await self._look(key, partial(current_session, now=wall_us()))

    async def _read_sessions(self, keys: Sequence[str]) -> list[SessionRow | None]:
        return [row for row, _clock in await together([self._read_session(key) for key in keys])]

    async def _read_messages(
        self, key: str, limit: int, before: int | None, after: int | None
    ) -> tuple[list[MessageRow], int]:
        return await self._look(
            key, partial(_messages, limit=limit, before=before, after=after, now=wall_us())
        )

    async def _read_checkpoint(self, key: str, ns: str, id: str | None) -> tuple[CheckpointRow | None, int]:
        def read(view: View) -> list[CheckpointRow]:
            chosen = islice(view.latest(ns, 1), 1) if id is None else [id]
            return _checkpoints(view, ns, list(chosen), now)

        now = wall_us()
        found, clock = await self._look(key, read)
        return (found[0] if found else None), clock

    async def _read_checkpoints(self, key: str, ns: str, limit: int) -> tuple[list[CheckpointRow], int]:
        now = wall_us()
        return await self._look(
            key, lambda view: _checkpoints(view, ns, list(islice(view.latest(ns, limit), limit)), now)
        )

    async def _read_writes(self, key: str, ns: str, id: str) -> tuple[list[bytes], int]:
        return await self._look(key, partial(_writes, ns=ns, id=id, now=wall_us()))

    async def _read_contexts(self, key: str, limit: int) -> tuple[list[ContextRow], int]:
        return await self._look(key, partial(_contexts, limit=limit, now=wall_us()))

    async def _read_outcome(self, key: str, op_id: str) -> bool:
        record, _clock = await self._look(key, lambda view: view.record(op_id))
        return record is not None and bool(record.answer)


def current_session(view: View, now: int) -> SessionRow | None:
    """The session as it counts now, whole."""
    row = view.current(now)
    if row is None:
        return None
    values = [row.metadata, *(held[2] for held in row.fields.values())]
    view.require(values)
    row.metadata = view.whole(row.metadata)
    row.fields = {name: (stamp, op, view.whole(value)) for name, (stamp, op, value) in row.fields.items()}
    return row


def _messages(view: View, limit: int, before: int | None, after: int | None, now: int) -> list[MessageRow]:
    if not view.session_alive(now):
        return []
    low = b"" if after is None else _edge(after + 1)
    high = rows.BEHIND if before is None else _edge(before)
    found = view.scan(rows.MESSAGES, low, high, reverse=after is None, limit=limit)
    chosen = [(key, rows.checked(row, 4)) for key, row in (islice(found, limit) if limit else found)]
    if after is None:
        chosen.reverse()
    view.require(row for _key, row in chosen)
    return [_message(key, view.whole(row)) for key, row in chosen]


def _message(key: bytes, row: list[Any]) -> MessageRow:
    stamp, op_id = rows.stamp_in(key)
    occurred_at, role, content, metadata = row
    return MessageRow(op_id, stamp, role, content, metadata, occurred_at)


def _edge(position: int) -> bytes:
    """The border of a range, for any integer that a caller may give as a cursor."""
    return b"" if position < 0 else rows.BEHIND if position > _HIGHEST else rows.stamped(position)


def _checkpoints(view: View, ns: str, ids: Sequence[str], now: int) -> list[CheckpointRow]:
    if not view.thread_alive(now):
        return []
    found = [(id, row) for id in ids if (row := view.checkpoint(ns, id)) is not None and row.body is not None]
    view.require(row.body for _id, row in found)
    made = list[CheckpointRow]()
    for id, row in found:
        body = view.whole(row.body)
        made.append(
            CheckpointRow(id, row.stamp, body["data"], body["metadata"], row.occurred_at, body["parent"])
        )
    return made


def _writes(view: View, ns: str, id: str, now: int) -> list[bytes]:
    if not view.thread_alive(now):
        return []
    found = sorted((row for _key, row in view.writes(ns, id)), key=_place)
    view.require(found)
    return [view.whole(row[3]["value"]) for row in found]


def _place(row: list[Any]) -> tuple[int, str]:
    return row[0], row[1]


def _contexts(view: View, limit: int, now: int) -> list[ContextRow]:
    found = view.contexts()[:limit] if view.session_alive(now) else []
    view.require(row.body for row in found)
    return [ContextRow(row.stamp, view.whole(row.body)["value"], row.occurred_at) for row in found]
