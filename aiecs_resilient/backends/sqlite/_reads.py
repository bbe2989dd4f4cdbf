"""The raw reads of the SQLite backend: a key's clock first, then its rows, so that the clock is never ahead of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ...clock import wall_us
from ...codec import encode_key
from ...records import CheckpointRow, ContextRow, MessageRow, SessionRow
from .._store import StoreBackend
from ._rows import session_row, unpack_answer

IN_PLACE_ROWS = 1_000
"""More rows than this are read in a thread, so that the loop is not held up for milliseconds."""

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class SQLiteReads(StoreBackend):
    """What :class:`._store.StoreBackend` asks for."""

    @abstractmethod
    async def _fetch(self, query: str, parameters: Any) -> list[Any]: ...

    @abstractmethod
    async def _fetch_large(self, query: str, parameters: Any) -> list[Any]: ...

    async def _read_session(self, key: str) -> tuple[SessionRow | None, int]:
        rows = await self._fetch("read_session", {"place": place_of(key), "now": wall_us()})
        if not rows:
            return None, 0
        [(clock, *columns)] = rows
        return (None if columns[0] is None else session_row(tuple(columns))), clock

    async def _read_sessions(self, keys: Sequence[str]) -> list[SessionRow | None]:
        return [(await self._read_session(key))[0] for key in keys]

    async def _read_messages(
        self, key: str, limit: int, before: int | None, after: int | None
    ) -> tuple[list[MessageRow], int]:
        id, clock = await self._alive("read_session_key", key)
        if not id:
            return [], clock
        query = "read_newest_messages" if after is None else "read_oldest_messages"
        wanted = {
            "key": id,
            "before": _HIGHEST if before is None else _fit(before),
            "after": _LOWEST if after is None else _fit(after),
            "limit": IN_PLACE_ROWS + 1 if not limit or limit > IN_PLACE_ROWS else limit,
        }
        found = await self._fetch(query, wanted)
        if len(found) > IN_PLACE_ROWS:
            found = await self._fetch_large(query, {**wanted, "limit": _fit(limit) or -1})
        rows = [MessageRow(*row) for row in found]
        return (rows[::-1] if after is None else rows), clock

    async def _read_checkpoint(self, key: str, ns: str, id: str | None) -> tuple[CheckpointRow | None, int]:
        number, clock = await self._alive("read_thread_key", key)
        if not number:
            return None, clock
        if id is None:
            found = await self._fetch("read_checkpoints", (number, ns, 1))
        else:
            found = await self._fetch("read_checkpoint", (number, ns, id))
        return (CheckpointRow(*found[0]) if found else None), clock

    async def _read_checkpoints(self, key: str, ns: str, limit: int) -> tuple[list[CheckpointRow], int]:
        number, clock = await self._alive("read_thread_key", key)
        if not number:
            return [], clock
        fetch = self._fetch if 0 < limit <= IN_PLACE_ROWS else self._fetch_large
        found = await fetch("read_checkpoints", (number, ns, _fit(limit) or -1))
        return [CheckpointRow(*row) for row in found], clock

    async def _read_writes(self, key: str, ns: str, id: str) -> tuple[list[bytes], int]:
        number, clock = await self._alive("read_thread_key", key)
        found = await self._fetch("read_writes", (number, ns, id)) if number else []
        return [value for (value,) in found], clock

    async def _read_contexts(self, key: str, limit: int) -> tuple[list[ContextRow], int]:
        number, clock = await self._alive("read_session_key", key)
        found = await self._fetch("read_contexts", (number, _fit(limit))) if number else []
        return [ContextRow(*row) for row in found], clock

    async def _list_sessions(
        self, status: str | None, user_id: str | None, after: str | None, limit: int
    ) -> list[tuple[str, SessionRow]]:
        fetch = self._fetch if limit <= IN_PLACE_ROWS else self._fetch_large
        wanted: dict[str, Any] = {
            "after": b"" if after is None else place_of(after),
            "now": wall_us(),
            "limit": _fit(limit),
        }
        if user_id is not None:
            found = await fetch("list_sessions_by_owner", {**wanted, "owner": user_id, "status": status})
        elif status is not None:
            found = await fetch("list_sessions_by_status", {**wanted, "status": status})
        else:
            found = await fetch("list_sessions", wanted)
        return [(key, session_row(tuple(columns))) for key, *columns in found]

    async def _list_threads(self, after: str | None, limit: int) -> list[str]:
        fetch = self._fetch if limit <= IN_PLACE_ROWS else self._fetch_large
        wanted = {"after": b"" if after is None else place_of(after), "now": wall_us(), "limit": _fit(limit)}
        return [key for (key,) in await fetch("list_threads", wanted)]

    async def _read_outcome(self, key: str, op_id: str) -> bool:
        found = await self._fetch("read_outcome", (place_of(key), op_id))
        return any(unpack_answer(answer) for (answer,) in found)

    async def _alive(self, query: str, key: str) -> tuple[int, int]:
        """The key's number, 0 if there is nothing or it has expired; and its clock."""
        rows = await self._fetch(query, {"place": place_of(key), "now": wall_us()})
        if not rows:
            return 0, 0
        [(number, clock, alive)] = rows
        return (number if alive else 0), clock


def place_of(key: str) -> bytes:
    """Where a key stands in lists, and what it is found by."""
    return encode_key(key).encode()


def _fit(number: int) -> int:
    """Cursors and limits may be any integer; SQLite's have 64 bits."""
    return max(_LOWEST, min(number, _HIGHEST))
