"""Redis or Valkey: every operation is one Lua script, atomic with its record, in one round trip.

What a write means is in ``lua/*.lua``, line for line what :mod:`._engine` says in Python; this module sends mutations there and
reads rows back. Where things stand is :mod:`._keys`, their form :mod:`._rows`, connections :mod:`._client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ...clock import spawn, wall_us
from ...errors import ConfigurationError, StorageConnectionError, StorageError
from ...interface import Json
from ...records import (
    FORMAT,
    Applied,
    CheckpointRow,
    ContextRow,
    Durability,
    MessageRow,
    Mutation,
    SessionRow,
)
from ...units import Bytes, Count, Seconds
from .._base import empty_metrics
from .._store import DEFAULT_CONTEXT_VERSIONS, DEFAULT_RETENTION_SECONDS
from . import _state as server
from ._keys import Keys, interleave, ordered
from ._listing import RedisListing
from ._replication import RedisReplication
from ._rows import (
    MAX_NUMBER,
    Record,
    alive,
    checkpoint_row,
    context_row,
    head_is_live,
    message_row,
    number,
    pack_mutation,
    session_row,
    unpack_answer,
    writes_value,
)
from ._scripts import Command

if TYPE_CHECKING:
    from ._client import RedisClient

STORED_FORMAT = 1
"""Of keys and rows. A store with a higher one was written by a newer version and is left alone."""

_PER_CALL = 200  # mutations of one id in one script call: bounds how long the server is busy with it


class RedisStorageBackend(RedisListing, RedisReplication):
    """A store in Redis 6 or later, or Valkey.

    Args:
        redis_url: ``redis://[user:password@]host:port/database``, ``rediss://`` for TLS, or ``unix:///socket?db=0``.
        name: how it is called in errors, health and routing.
        prefix: what all keys begin with; stores under different prefixes share a server without touching.
        session_ttl, checkpoint_ttl: seconds after its last write that a session or thread counts as gone; None for never.
        retention: seconds that the identity of a write is remembered at least.
        context_versions: versions of a task context that are kept.
        max_value_bytes: the most one encoded value may take.
        max_connections: sockets at most; further calls wait in line.
        connect_timeout: seconds for making a connection.
        response_timeout: seconds for one request; the caller's deadline, if earlier, wins.
        pool_timeout: seconds that a call waits in line for a connection.
        durability: what an acknowledgement survives, where the server does not let us ask (CONFIG forbidden).
    """

    kind = "redis"

    def __init__(
        self,
        redis_url: str,
        *,
        name: str = "redis",
        prefix: str = "aiecs:",
        session_ttl: Seconds | None = None,
        checkpoint_ttl: Seconds | None = None,
        retention: Seconds = DEFAULT_RETENTION_SECONDS,
        context_versions: Count = DEFAULT_CONTEXT_VERSIONS,
        max_value_bytes: Bytes = 64 * 1024 * 1024,
        max_connections: Count = 32,
        connect_timeout: Seconds = 2.0,
        response_timeout: Seconds = 5.0,
        pool_timeout: Seconds = 10.0,
        durability: Literal["volatile", "process", "host", "replicated"] | None = None,
    ) -> None:
        super().__init__(
            name=name,
            session_ttl=session_ttl,
            checkpoint_ttl=checkpoint_ttl,
            retention=retention,
            context_versions=context_versions,
            max_value_bytes=max_value_bytes,
        )
        for what, value in (
            ("max_connections", max_connections),
            ("connect_timeout", connect_timeout),
            ("response_timeout", response_timeout),
            ("pool_timeout", pool_timeout),
        ):
            if not value > 0:
                raise ConfigurationError(f"{what} must be above 0, not {value!r}")
        self._url = redis_url
        self._keys = Keys(prefix)
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._pool_timeout = pool_timeout
        self._declared = None if durability is None else Durability[durability.upper()]
        self._opening = asyncio.Lock()
        self._pruning: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self._client if self._open else 'closed'}>"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        async with self._opening:
            if self._open:
                await self._verify(self._use())
                return True
            from ._client import RedisClient, driver_options
            from ._pruning import Pruner

            client = RedisClient(
                driver_options(self._url, self._connect_timeout),
                name=self.name,
                scripts=self._scripts,
                max_connections=self._max_connections,
                connect_timeout=self._connect_timeout,
                response_timeout=self._response_timeout,
                pool_timeout=self._pool_timeout,
            )
            try:
                await self._verify(client)
            except BaseException:
                await client.close()
                raise
            self._client, self._open = client, True
            pruner = Pruner(client, self._keys, self._scripts, self._retention_us)
            self._pruning = spawn(pruner.run(), name=f"{self.name}: forgetting old identities")
            return True

    async def _verify(self, client: RedisClient) -> None:
        """The promises hold: it can be written, is no replica or cluster node, and holds nothing newer than we know."""
        info = server.parse_info(await client.raw(server.info_commands())) or {}
        if info.get("cluster_enabled") == "1":
            raise ConfigurationError(
                f"{self.name} is a node of a Redis Cluster, which this backend does not route to yet: give a single server"
            )
        if info.get("role", "master") != "master":
            raise StorageConnectionError(
                f"{self.name} is a {info['role']} and takes no writes: give the master's address",
                outcome="not_applied",
                backend=self.name,
            )
        version = info.get("redis_version", "6")
        if int(version.partition(".")[0]) < 6:
            raise ConfigurationError(f"{self.name} is Redis {version}; this backend needs 6 or later")
        await client.load_scripts()
        _, held = await client.run(
            [("SET", self._keys.format, STORED_FORMAT, "NX"), ("GET", self._keys.format)]
        )
        if int(held) > STORED_FORMAT:
            raise ConfigurationError(
                f"{self.name} holds data of format {int(held)}, this version knows {STORED_FORMAT}: update this process"
            )

    async def close(self) -> None:
        async with self._opening:
            self._open = False
            pruning, self._pruning = self._pruning, None
            if pruning is not None:
                pruning.cancel()
                await asyncio.wait([pruning])
            client, self._client = self._client, None
            if client is not None:
                await client.close()

    async def health_check(self) -> Json:
        problems: list[str] = []
        info: server.Info | None = None
        reached = False
        client = self._client
        if client is None:
            problems.append(f"{self.name} is not open")
        else:
            try:
                replies = await client.raw(
                    [*server.info_commands(), ("SET", self._keys.probe, str(wall_us()))]
                )
                reached = True
                info = server.parse_info(replies[:-1])
                client.check(replies[-1:])
            except StorageError as error:
                problems.append(str(error))
        status = "unhealthy" if problems else "healthy"
        if reached and not (info is None and self._declared is not None):
            problems += server.issues(info)
        return {
            "status": "degraded" if problems and status == "healthy" else status,
            "storage_backend": self.kind,
            "redis_connected": reached,
            "issues": problems,
            "durability": self._durability(info).name.lower(),
        }

    async def get_metrics(self) -> Json:
        calls = self._per_group(
            self._scripts.bucket_totals,
            lambda group: interleave(
                [self._keys.totals[b] for b in group], [self._keys.due[b] for b in group]
            ),
            self._clock_argument(),
        )
        sums = await self._use().run(calls)
        sessions, active, messages, checkpoints = (sum(column) for column in zip(*sums, strict=True))
        return {
            **empty_metrics(self.kind, redis_connected=True),
            "total_sessions": sessions,
            "active_sessions": active,
            "total_messages": messages,
            "total_checkpoints": checkpoints,
        }

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        client = self._use()
        results: list[Applied | StorageError | None] = [None] * len(mutations)
        queues: dict[str, list[tuple[int, int, list[bytes]]]] = {}
        for place, mutation in enumerate(mutations):
            expires_at = self._expiry(mutation)
            try:
                packed = pack_mutation(mutation, expires_at)
            except StorageError as error:
                results[place] = error
            else:
                queues.setdefault(mutation.key, []).append((place, expires_at, packed))
        while queues := {key: queue for key, queue in queues.items() if queue}:
            # Each id at most once per round, so that even a repeated call cannot change the order of its writes.
            turn = {key: queue[:_PER_CALL] for key, queue in queues.items()}
            calls = [self._apply_call(key, [args for _, _, args in items]) for key, items in turn.items()]
            with client.unknown_if(any(isinstance(result, Applied) for result in results)):
                answers = await client.run(calls)
            for (key, items), replies in zip(turn.items(), answers, strict=True):
                for (place, expires_at, _), reply in zip(items, replies, strict=True):
                    results[place] = unpack_answer(mutations[place], expires_at, reply, self._max_age_us)
                queues[key] = queues[key][_PER_CALL:]
        return [result for result in results if result is not None]

    def _apply_call(self, key: str, packed: Sequence[list[bytes]]) -> Command:
        keys = self._keys.of(key)
        return self._scripts.apply.call(
            keys.all,
            keys.id,
            keys.name,
            self._clock_argument(),
            self._max_age_us,
            self._context_versions,
            FORMAT,
            *[argument for arguments in packed for argument in arguments],
        )

    # ------------------------------------------------------------------ reads

    async def _read_session(self, key: str) -> tuple[SessionRow | None, int]:
        flat = await self._use().one("HGETALL", self._keys.of(key).key)
        return session_row(flat, self._now())

    async def _read_sessions(self, keys: Sequence[str]) -> list[SessionRow | None]:
        replies = await self._use().run([("HGETALL", self._keys.of(key).key) for key in keys])
        now = self._now()
        return [session_row(flat, now)[0] for flat in replies]

    async def _read_messages(
        self, key: str, limit: int, before: int | None, after: int | None
    ) -> tuple[list[MessageRow], int]:
        keys = self._keys.of(key)
        low = "-inf" if after is None else f"({_bounded(after)}"
        high = "+inf" if before is None else f"({_bounded(before)}"
        count = _bounded(limit) or -1
        if after is None:
            read: Command = ("ZREVRANGEBYSCORE", keys.messages, high, low, "WITHSCORES", "LIMIT", 0, count)
        else:
            read = ("ZRANGEBYSCORE", keys.messages, low, high, "WITHSCORES", "LIMIT", 0, count)
        (clock, expires), flat = await self._use().run([("HMGET", keys.key, "clock", "se"), read])
        if not alive(expires, self._now()):
            return [], number(clock)
        rows = [message_row(member, score) for member, score in zip(flat[::2], flat[1::2], strict=True)]
        return (rows[::-1] if after is None else rows), number(clock)

    async def _read_checkpoint(self, key: str, ns: str, id: str | None) -> tuple[CheckpointRow | None, int]:
        if id is None:
            rows, clock = await self._read_checkpoints(key, ns, 1)
            return (rows[0] if rows else None), clock
        keys, place = self._keys.of(key), b"c" + ordered(ns) + id.encode()
        row, _, heads, values = keys.thread[0], None, keys.thread[1], keys.thread[2]
        (clock, expires), head, body = await self._use().run(
            [("HMGET", row, "clock", "te"), ("HGET", heads, place), ("HGET", values, place)]
        )
        if head is None or body is None or not head_is_live(head) or not alive(expires, self._now()):
            return None, number(clock)
        return checkpoint_row(id.encode(), head, body), number(clock)

    async def _read_checkpoints(self, key: str, ns: str, limit: int) -> tuple[list[CheckpointRow], int]:
        rows, clock = await self._read_thread(key, b"c" + ordered(ns), limit or -1, newest_first=True)
        return [checkpoint_row(id_, head, body) for head, id_, body in rows], clock

    async def _read_writes(self, key: str, ns: str, id: str) -> tuple[list[bytes], int]:
        rows, clock = await self._read_thread(key, b"w" + ordered(ns) + ordered(id), -1, newest_first=False)
        return [writes_value(body) for _head, _task, body in rows], clock

    async def _read_thread(
        self, key: str, head: bytes, limit: int, *, newest_first: bool
    ) -> tuple[list[tuple[bytes, bytes, bytes]], int]:
        call = self._scripts.read_thread.call(
            self._keys.of(key).thread, head, _bounded(limit), int(newest_first)
        )
        clock, expires, *flat = await self._use().one(*call)
        if not alive(expires, self._now()):
            return [], number(clock)
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True)), number(clock)

    async def _read_contexts(self, key: str, limit: int) -> tuple[list[ContextRow], int]:
        call = self._scripts.read_contexts.call(self._keys.of(key).contexts, _bounded(limit))
        clock, expires, *flat = await self._use().one(*call)
        if not alive(expires, self._now()):
            return [], number(clock)
        rows = [context_row(score, row) for score, row in zip(flat[::2], flat[1::2], strict=True)]
        return rows, number(clock)

    async def _read_outcome(self, key: str, op_id: str) -> bool:
        raw = await self._use().one("HGET", self._keys.of(key).records, op_id)
        return raw is not None and bool(Record(raw, None).answer)


def _bounded(value: int) -> int:
    """Within what Redis takes as a number; no stamp and no count of ours is beyond."""
    return max(-MAX_NUMBER, min(value, MAX_NUMBER))
