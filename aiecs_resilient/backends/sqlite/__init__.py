"""One file, many processes, no server: the whole contract on SQLite, durable against power loss.

Writes go to one thread that puts all that wait into one transaction (write-ahead log, ``synchronous=FULL``), so that they
share an fsync. Short reads happen in place: they take microseconds, and a hop to a thread would cost ten times as much.
What applying a write means is the reference engine's; the tables under it are SQL.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...clock import wall_us
from ...codec import check_text
from ...errors import InvalidValueError, StorageError
from ...interface import Json
from ...records import Applied, Durability, Mutation
from ...units import Bytes, Count, Seconds
from .._base import empty_metrics
from .._engine import apply_one
from .._store import DEFAULT_CONTEXT_VERSIONS, DEFAULT_RETENTION_SECONDS
from ._errors import is_busy, map_error
from ._file import DatabaseFile
from ._replication import SQLiteReplication, load_route
from ._sql import SQL
from ._tables import Batch
from ._thread import ConnectionThread

Connections = tuple[sqlite3.Connection, sqlite3.Connection, sqlite3.Connection]

FORGET_EVERY_US = 60_000_000
FORGET_STEP = (
    1_000  # records per look: a transaction stays short, and what is left over is taken a second later
)


class SQLiteStorageBackend(SQLiteReplication):
    """Stores everything in one file; several processes of one machine may use it at once.

    Args:
        path: of the file, on a local disk; created if missing.
        name: how it is called in errors, health and routing.
        busy_timeout: seconds to wait while another process writes.
        check_on_open: look through the whole file for damage when it is opened; takes about a second per gigabyte.
        max_pending: writes that may wait for the disk; one more is refused with OverloadedError.
        session_ttl, checkpoint_ttl, retention: seconds; see :class:`._store.StoreBackend`.
        context_versions: versions of a task context that are kept.
        max_value_bytes: the most one encoded value may take.
    """

    kind = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "sqlite",
        busy_timeout: Seconds = 5.0,
        check_on_open: bool = True,
        max_pending: Count = 10_000,
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
        text = os.fspath(path)
        if not text or text == ":memory:" or "\x00" in text:
            raise InvalidValueError(
                f"path must name a file, not {text!r}; for data that need not survive use the memory backend"
            )
        if not busy_timeout > 0:
            raise InvalidValueError(
                f"busy_timeout must be a positive number of seconds, not {busy_timeout!r}"
            )
        if max_pending < 1:
            raise InvalidValueError(f"max_pending must be 1 or more, not {max_pending}")
        self._file = DatabaseFile(Path(text), busy_timeout=busy_timeout, check=check_on_open)
        self._writer, self._large_reads = (
            ConnectionThread(
                self._file,
                name=name,
                writes=writes,
                context_versions=context_versions,
                max_pending=max_pending,
            )
            for writes in (True, False)
        )
        self._lifecycle = asyncio.Lock()
        self._reader: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._next_forgetting = 0

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        async with self._lifecycle:
            if not self._open:
                writer, large_reads, self._reader = await self._connect()
                self._writer.start(writer)
                self._large_reads.start(large_reads)
                self._inode = self._identify()
                self._open = True
        return True

    async def close(self) -> None:
        self._open = False
        async with self._lifecycle:
            await self._writer.stop()
            await self._large_reads.stop()
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    async def _connect(self) -> Connections:
        opening = asyncio.ensure_future(asyncio.to_thread(self._file.open))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard)  # the thread cannot be stopped; what it opens is closed
            raise
        except (OSError, sqlite3.Error) as error:
            raise self._mapped(error) from error

    async def health_check(self) -> Json:
        issues: list[str] = []
        if not self._open:
            issues.append(f"{self.name} is not open")
        else:
            try:
                if self._identify() != self._inode:
                    issues.append(
                        f"{self._file.path} was removed or replaced: restart, and restore it if it is gone"
                    )
                await self._writer.call(
                    lambda batch: _beat(batch, wall_us())
                )  # healthy means that a write works
            except StorageError as error:
                issues.append(error.message)
        return {
            "status": "unhealthy" if issues else "healthy",
            "storage_backend": self.kind,
            "redis_connected": False,
            "issues": issues,
            "durability": Durability.HOST.name.lower(),
            "path": str(self._file.path),
            "pending": self._writer.pending,
        }

    async def get_metrics(self) -> Json:
        self._require_open()
        now = wall_us()

        def count(batch: Batch) -> tuple[int, int, int, int]:
            execute = batch.connection.execute
            [total, active] = execute(SQL["count_sessions"], {"now": now}).fetchone()
            [messages] = execute(SQL["count_messages"]).fetchone()
            [checkpoints] = execute(SQL["count_checkpoints"]).fetchone()
            return total, active, messages, checkpoints

        total, active, messages, checkpoints = await self._large_reads.call(count)
        return {
            **empty_metrics(self.kind, redis_connected=False),
            "total_sessions": total,
            "active_sessions": active,
            "total_messages": messages,
            "total_checkpoints": checkpoints,
            "group_commit": asdict(self._writer.counts),
        }

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._require_open()
        now = wall_us()
        ready = [self._dated(mutation) for mutation in mutations]
        horizon = self._forget_before(now)
        if not ready:
            return []
        return await self._writer.call(lambda batch: self._apply(batch, ready, now, horizon))

    def _apply(
        self, batch: Batch, mutations: Sequence[Mutation], now: int, horizon: int
    ) -> list[Applied | StorageError]:
        route = load_route(batch.connection)  # in the same transaction: this is the fence
        if horizon:
            forgotten = batch.connection.execute(SQL["forget_records"], (horizon, FORGET_STEP)).rowcount
            if forgotten == FORGET_STEP:
                self._next_forgetting = now + 1_000_000
        return [
            apply_one(
                batch.tables(mutation.key), mutation, now_us=now, route=route, max_age_us=self._max_age_us
            )
            for mutation in mutations
        ]

    def _dated(self, mutation: Mutation) -> Mutation:
        check_text(mutation.op_id, "op_id")
        expires_at = self._expiry(mutation)
        return mutation if expires_at == mutation.expires_at else replace(mutation, expires_at=expires_at)

    def _forget_before(self, now: int) -> int:
        """Once a minute: the stamp below which identities need not be remembered any more; else 0."""
        if now < self._next_forgetting:
            return 0
        self._next_forgetting = now + FORGET_EVERY_US
        return max(now - self._retention_us, 0)

    # ------------------------------------------------------------------ statements

    async def _fetch(self, query: str, parameters: Any) -> list[Any]:  # Any: the driver's border
        """Rows, read in place; in the thread only if another process holds a lock that cannot be waited for here."""
        self._require_open()
        assert self._reader is not None
        try:
            return self._reader.execute(SQL[query], parameters).fetchall()
        except sqlite3.Error as error:
            if not is_busy(error):
                raise self._mapped(error) from error
        return await self._fetch_large(query, parameters)

    async def _fetch_large(self, query: str, parameters: Any) -> list[Any]:
        """Rows, read in the thread for large reads."""
        self._require_open()

        return await self._large_reads.call(
            lambda batch: batch.connection.execute(SQL[query], parameters).fetchall()
        )

    def _mapped(self, error: Exception) -> Exception:
        if isinstance(error, OSError):
            return StorageError(f"{self._file.path} cannot be opened: {error}", backend=self.name)
        return map_error(error, self._file.path, self.name, "not_applied")

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _discard(opening: asyncio.Future[Connections]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        for connection in opening.result():
            connection.close()


def _beat(batch: Batch, now: int) -> None:
    batch.connection.execute(SQL["save_meta"], ("beat", now))
