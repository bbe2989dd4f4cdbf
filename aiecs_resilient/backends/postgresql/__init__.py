"""PostgreSQL: everything durable, every write one function call that holds the operation's record and its effect.

The rules of ``_engine.py`` run inside the server (``sql/postgresql/*.sql``), under a lock on the row of the key; a batch is
one call too. Waiting for a connection is bounded by the caller's deadline and never an error of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import clock as clocks
from ...codec import encode_key, escape_text, unescape_text
from ...errors import ConfigurationError, InvalidValueError, OverloadedError, StorageError
from ...interface import Json
from ...records import (
    Applied,
    CheckpointRow,
    ContextRow,
    Durability,
    IdleKey,
    MessageRow,
    Mutation,
    RecordPage,
    RecordRef,
    Route,
    SessionRow,
    StoreState,
)
from ...units import Bytes, Count, CountOrZero, Seconds, SecondsOrZero
from .._base import empty_metrics
from .._store import DEFAULT_CONTEXT_VERSIONS, DEFAULT_RETENTION_SECONDS, StoreBackend
from ._migrate import migrate
from ._options import read_address
from ._pool import Pool
from ._rows import Row, applied, checkpoint, columns, messages, plain, replay, session
from ._sql import check_schema, listing, queries, records

if TYPE_CHECKING:
    import asyncpg

PRUNE_SECONDS = 60.0  # between two rounds, give or take half
PRUNE_STEP = 1_000  # rows per step: long enough to be efficient, short enough to hold no lock for long
EXACT_TOTALS = 50_000  # above, the figures of get_metrics come from statistics
OVERFLOW_IDLE_SECONDS = 30.0
UNIQUE_VIOLATION = "23505"
_LAST = 2**63 - 1


class PostgreSQLStorageBackend(StoreBackend):
    """Stores everything in a PostgreSQL (13 or newer), in a schema of its own that it creates and migrates.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``. Over a network it must say how it is
            encrypted (``sslmode=verify-full``, ``require``, or expressly ``disable``); with several hosts the one that
            takes writes is chosen.
        name: how it is called in errors, health and routing.
        pool_size: connections that stay open.
        max_overflow: connections beyond those, while they are needed.
        connect_timeout: seconds to open a connection.
        acquire_timeout: seconds to wait for a free connection at most; the operation's deadline may be sooner.
        command_timeout: seconds for one statement at most, likewise.
        statement_timeout: seconds after which the server itself ends a statement; 0 leaves its own setting.
        health_timeout: seconds that ``health_check`` may take.
        close_timeout: seconds that ``close`` waits for running statements.
        statement_cache_size: prepared statements per connection; 0 for PgBouncer in transaction mode.
        schema: where the tables are; a lower-case identifier.
        session_ttl, checkpoint_ttl, retention: seconds; see :class:`._store.StoreBackend`.
        context_versions: versions of a task context that are kept.
        max_value_bytes: the most one encoded value may take.
    """

    kind = "postgresql"

    def __init__(
        self,
        connection_string: str,
        *,
        name: str = "postgresql",
        pool_size: Count = 10,
        max_overflow: CountOrZero = 20,
        connect_timeout: Seconds = 5.0,
        acquire_timeout: Seconds = 30.0,
        command_timeout: Seconds = 30.0,
        statement_timeout: SecondsOrZero = 0.0,
        health_timeout: Seconds = 2.0,
        close_timeout: Seconds = 10.0,
        statement_cache_size: CountOrZero = 100,
        schema: str = "aiecs",
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
        _check_options(
            positive={
                "connect_timeout": connect_timeout,
                "acquire_timeout": acquire_timeout,
                "command_timeout": command_timeout,
                "health_timeout": health_timeout,
                "close_timeout": close_timeout,
                "pool_size": pool_size,
            },
            not_negative={
                "statement_timeout": statement_timeout,
                "statement_cache_size": statement_cache_size,
                "max_overflow": max_overflow,
            },
        )
        self._address = read_address(connection_string)
        self._schema = check_schema(schema)
        self._sql = queries(schema)
        self._pool_size, self._most = pool_size, pool_size + max_overflow
        self._connect_timeout = connect_timeout
        self._acquire_timeout = acquire_timeout
        self._command_timeout = command_timeout
        self._statement_timeout = statement_timeout
        self._health_timeout = health_timeout
        self._close_timeout = close_timeout
        self._statement_cache_size = statement_cache_size
        self._pool: Pool | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._lifecycle = asyncio.Lock()

    def __repr__(self) -> str:
        state = repr(self._pool) if self._pool is not None else "closed"
        return f"<PostgreSQLStorageBackend {self.name} {self._address.shown} {state}>"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        async with self._lifecycle:
            if self._open:
                return True
            pool = self._new_pool()
            connection = await pool.connect()
            try:
                await pool.guard(migrate(connection, self._schema, backend=self.name))
            except BaseException:
                connection.terminate()
                raise
            pool.adopt(connection)
            self._pool = pool
            self._open = True
            self._upkeep = clocks.spawn(self._keep_up(pool), name=f"{self.name}.upkeep")
            return True

    async def close(self) -> None:
        async with self._lifecycle:
            self._open = False
            upkeep, self._upkeep = self._upkeep, None
            pool, self._pool = self._pool, None
            if upkeep is not None:
                upkeep.cancel()
                await asyncio.gather(upkeep, return_exceptions=True)
            if pool is not None:
                await pool.close(self._close_timeout)

    async def health_check(self) -> Json:
        report: Json = {
            "status": "healthy",
            "storage_backend": self.kind,
            "redis_connected": False,
            "issues": [],
        }
        if self._pool is None:
            return {**report, "status": "unhealthy", "issues": [f"{self.name} is not open"]}
        report["pool"] = self._pool.facts()
        began = clocks.monotonic()
        try:
            [row] = await self._pool.fetch(self._sql["pulse"], limit=self._health_timeout)
        except StorageError as error:
            busy = isinstance(error, OverloadedError)
            return {**report, "status": "degraded" if busy else "unhealthy", "issues": [str(error)]}
        durability = _durability(row)
        if durability is Durability.VOLATILE:
            report["status"] = "degraded"
            report["issues"] = ["synchronous_commit is off: a crash of the server loses acknowledged writes"]
        return {
            **report,
            "durability": durability.name.lower(),
            "latency_ms": round((clocks.monotonic() - began) * 1000, 3),
        }

    async def get_metrics(self) -> Json:
        pool = self._opened()
        [row] = await pool.fetch(self._sql["totals"], _given_now(), EXACT_TOTALS)
        return {
            **empty_metrics(self.kind, redis_connected=False),
            "total_sessions": row["sessions"],
            "active_sessions": row["active"],
            "total_messages": row["messages"],
            "total_checkpoints": row["checkpoints"],
            "totals_exact": row["exact"],
            "pool": pool.facts(),
        }

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        pool = self._opened()
        if not mutations:
            return []
        expiries = [self._expiry(mutation) for mutation in mutations]
        common = (_given_now(), self._max_age_us, self._retention_us, self._context_versions)
        if len(mutations) == 1:
            rows = await self._apply_plain(pool, mutations[0], expiries[0], common)
        elif (together := await self._append_many(pool, mutations, expiries)) is not None:
            return together
        else:
            rows = None
        if rows is None:
            fenced = any(mutation.epoch for mutation in mutations)
            rows = await pool.fetch(self._sql["apply"], *columns(mutations, expiries), fenced, *common)
        results: list[Any] = [None] * len(mutations)
        for row in rows:
            place = int(row["n"]) - 1
            result = applied(row, mutations[place])
            if isinstance(result, StorageError):
                result.backend = self.name
            results[place] = result
        return results

    async def _apply_plain(
        self, pool: Pool, mutation: Mutation, expires_at: int, common: tuple[int | None, ...]
    ) -> list[Row] | None:
        """The short way for a message or a counter; None where only the general one will do."""
        call = plain(mutation, expires_at)
        if call is None:
            return None
        name, arguments = call
        try:
            return await pool.fetch(self._sql[name], *arguments, *common)
        except StorageError as error:
            if getattr(error.__cause__, "sqlstate", None) != UNIQUE_VIOLATION:
                raise
            return None  # the same identity came twice at the same moment: rolled back, and looked at closely

    async def _append_many(
        self, pool: Pool, mutations: Sequence[Mutation], expiries: Sequence[int]
    ) -> list[Applied | StorageError] | None:
        """The short way for many messages; None where only the general one will do."""
        call = messages(mutations, expiries)
        if call is None:
            return None
        try:
            [row] = await pool.fetch(self._sql["append_many"], *call, _given_now(), self._max_age_us)
        except StorageError as error:
            if getattr(error.__cause__, "sqlstate", None) != UNIQUE_VIOLATION:
                raise
            return None
        stamps: list[int] | None = row[0]
        return (
            None
            if stamps is None
            else [
                Applied(
                    stamp=stamp,
                    rank=mutation.rank,
                    answer=True,
                    effect=mutation.body,
                    occurred_at=mutation.occurred_at,
                    expires_at=expires_at,
                )
                for mutation, stamp, expires_at in zip(mutations, stamps, expiries, strict=True)
            ]
        )

    # ------------------------------------------------------------------ reads

    async def _read_session(self, key: str) -> tuple[SessionRow | None, int]:
        rows = await self._fetch("read_session", encode_key(key), _given_now())
        return (session(rows[0]), rows[0]["clock"]) if rows else (None, 0)

    async def _read_sessions(self, keys: Sequence[str]) -> list[SessionRow | None]:
        rows = await self._fetch("read_sessions", [encode_key(key) for key in keys], _given_now())
        return [session(row) for row in rows]

    async def _read_messages(
        self, key: str, limit: int, before: int | None, after: int | None
    ) -> tuple[list[MessageRow], int]:
        end = _LAST if before is None else min(before, _LAST)
        common = (encode_key(key), end, limit or None, _given_now())
        if after is None:
            rows = await self._fetch("read_newest_messages", *common)
        else:
            rows = await self._fetch("read_messages_after", *common, min(max(after, -1), _LAST))
        messages = [
            MessageRow(
                row["op_id"].decode(),
                row["position"],
                unescape_text(row["role"]),
                unescape_text(row["content"]),
                row["metadata"],
                row["said_at"],
            )
            for row in (reversed(rows) if after is None else rows)
            if row["op_id"] is not None
        ]
        return messages, rows[0]["clock"] if rows else 0

    async def _read_checkpoint(self, key: str, ns: str, id: str | None) -> tuple[CheckpointRow | None, int]:
        if id is None:
            found, clock = await self._read_checkpoints(key, ns, 1)
            return (found[0] if found else None), clock
        rows = await self._fetch(
            "read_checkpoint", encode_key(key), encode_key(ns), encode_key(id), _given_now()
        )
        if not rows:
            return None, 0
        return (None if rows[0]["id"] is None else checkpoint(rows[0])), rows[0]["clock"]

    async def _read_checkpoints(self, key: str, ns: str, limit: int) -> tuple[list[CheckpointRow], int]:
        rows = await self._fetch(
            "read_checkpoints", encode_key(key), encode_key(ns), limit or None, _given_now()
        )
        return [checkpoint(row) for row in rows if row["id"] is not None], rows[0]["clock"] if rows else 0

    async def _read_writes(self, key: str, ns: str, id: str) -> tuple[list[bytes], int]:
        rows = await self._fetch("read_writes", encode_key(key), encode_key(ns), encode_key(id), _given_now())
        return [row["value"] for row in rows if row["value"] is not None], rows[0]["clock"] if rows else 0

    async def _read_contexts(self, key: str, limit: int) -> tuple[list[ContextRow], int]:
        rows = await self._fetch("read_contexts", encode_key(key), max(limit, 1), _given_now())
        found = [
            ContextRow(row["stamp"], row["value"], row["occurred_at"])
            for row in rows[:limit]
            if row["value"] is not None
        ]
        return found, rows[0]["clock"] if rows else 0

    async def _list_sessions(
        self, status: str | None, user_id: str | None, after: str | None, limit: int
    ) -> list[tuple[str, SessionRow]]:
        query = listing(self._schema, by_status=status is not None, by_owner=user_id is not None)
        filters = [escape_text(value) for value in (status, user_id) if value is not None]
        rows = await self._opened().fetch(query, _floor(after), limit, _given_now(), *filters)
        found = ((unescape_text(row["id"]), session(row)) for row in rows)
        return [(key, row) for key, row in found if row is not None]

    async def _list_threads(self, after: str | None, limit: int) -> list[str]:
        rows = await self._fetch("list_threads", _floor(after), limit, _given_now())
        return [unescape_text(row["id"]) for row in rows]

    async def _read_outcome(self, key: str, op_id: str) -> bool:
        [row] = await self._fetch("read_outcome", encode_key(key), op_id.encode())
        return bool(row[0])

    # ------------------------------------------------------------------ replication

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        stamp, key, op_id = (since, "", "") if after is None else _cursor(after)
        query = records(self._schema, open_only=open_only)
        rows = await self._opened().fetch(query, stamp, key, op_id.encode(), limit + 1)
        page = rows[:limit]
        cursor = None
        if len(rows) > limit:
            last = page[-1]
            cursor = json.dumps([last["stamp"], last["key"], last["op_id"].decode()])
        return RecordPage([replay(row) for row in page], cursor)

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        rows = await self._fetch("read_idle", before, limit, _given_now())
        return [IdleKey(unescape_text(row["id"]), row["before"], row["scope"]) for row in rows]

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        pool = self._opened()
        if not refs:
            return 0
        [row] = await pool.fetch(
            self._sql["close_marks"],
            [encode_key(ref.key) for ref in refs],
            [ref.op_id.encode() for ref in refs],
            [ref.stamp for ref in refs],
            [ref.rank for ref in refs],
        )
        return int(row[0])

    async def store_state(self) -> StoreState:
        [row] = await self._fetch("store_state")
        durability = _durability(row)
        incarnation = f"{row['system_id']}/{row['timeline']}/{row['incarnation']}"
        if durability is Durability.VOLATILE:
            incarnation += f"/{row['started']}"  # each crash may have lost the tail
        return StoreState(
            Route(row["epoch"], unescape_text(row["leader"])),
            incarnation,
            durability,
            row["open_marks"],
            row["oldest_mark"],
            row["now_us"],
        )

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        [row] = await self._fetch("move_route", expected_epoch, route.epoch, escape_text(route.leader))
        return Route(row["epoch"], unescape_text(row["leader"]))

    # ------------------------------------------------------------------ inside

    def _opened(self) -> Pool:
        self._require_open()
        assert self._pool is not None
        return self._pool

    async def _fetch(self, name: str, *args: object) -> list[Row]:
        return await self._opened().fetch(self._sql[name], *args)

    def _new_pool(self) -> Pool:
        import asyncpg  # on use: it costs 0.12 s

        settings = {"application_name": "aiecs-resilient"}
        if self._statement_timeout:
            settings["statement_timeout"] = str(max(1, round(self._statement_timeout * 1000)))
        hosts: Json = {}
        if self._address.hosts > 1 and not self._address.chooses_host:
            hosts["target_session_attrs"] = "read-write"

        async def connect() -> asyncpg.Connection[asyncpg.Record]:
            return await asyncpg.connect(
                self._address.url,
                timeout=self._connect_timeout,
                statement_cache_size=self._statement_cache_size,
                max_cached_statement_lifetime=0,
                server_settings=settings,
                **hosts,
            )

        return Pool(
            connect,
            keep=self._pool_size,
            most=self._most,
            acquire_timeout=self._acquire_timeout,
            command_timeout=self._command_timeout,
            faults=(
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                EOFError,
            ),
            backend=self.name,
            place=self._address.shown,
        )

    async def _keep_up(self, pool: Pool) -> None:
        """Forget old identities and close what overflowed, about once a minute, never at the same time as everybody."""
        while True:
            await asyncio.sleep(PRUNE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing
            try:
                await pool.trim(OVERFLOW_IDLE_SECONDS)
                await self.prune_records(PRUNE_STEP)
            except StorageError:
                continue  # an outage is seen and reported by those who use the store; this comes again in a minute

    async def prune_records(self, step: int) -> int:
        """Forget identities past retention that nothing needs, ``step`` at a time until none is left; how many."""
        removed = 0
        while True:
            [row] = await self._fetch("prune", _given_now(), self._retention_us, step)
            gone = int(row[0])
            removed += max(gone, 0)
            if gone < step:
                return removed


def _given_now() -> int | None:
    """The time if somebody has replaced the clock, a test or a simulation; else the server's own counts."""
    wall = clocks._wall.get()
    return None if wall is clocks._system_wall_us else wall()


def _durability(row: Row) -> Durability:
    """What an acknowledgement survives, from the server's settings."""
    if row["synchronous_commit"] == "off":
        return Durability.VOLATILE
    if not row["fsync"]:
        return Durability.PROCESS
    if row["replicated"] and row["synchronous_commit"] != "local":
        return Durability.REPLICATED
    return Durability.HOST


def _floor(after: str | None) -> str:
    return "" if after is None else encode_key(after)


def _cursor(text: str) -> tuple[int, str, str]:
    try:
        stamp, key, op_id = json.loads(text)
    except ValueError as error:
        raise InvalidValueError(
            f"{text!r} is not a cursor of read_records: give back what a page gave"
        ) from error
    return int(stamp), str(key), str(op_id)


def _check_options(*, positive: dict[str, float], not_negative: dict[str, float]) -> None:
    for name, value in positive.items():
        if not value > 0:
            raise ConfigurationError(f"{name} must be above 0, not {value!r}")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ConfigurationError(f"{name} must be 0 or more, not {value!r}")
