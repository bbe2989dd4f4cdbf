"""What all our backends share: each public write becomes one :class:`Mutation`, each read a row decoded.

A concrete backend supplies ``apply`` and the raw reads; ``dual_write`` supplies them by asking its two legs. So there is
one place that checks arguments, encodes values, mints identities and shapes answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..clock import iso, wall_us
from ..codec import MAX_VALUE_BYTES, check_id, check_text, encode, fingerprint
from ..errors import BackendClosedError, InvalidValueError, StorageError
from ..interface import Backend, Json
from ..operations import (
    ADD_CONVERSATION_MESSAGE,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    CLEANUP_EXPIRED_SESSIONS,
    CREATE_SESSION,
    DELETE_SESSION,
    DELETE_THREAD,
    END_SESSION,
    PRUNE_CHECKPOINTS,
    PUT_WRITES,
    STORE_CHECKPOINT,
    STORE_TASK_CONTEXT,
    UPDATE_SESSION,
    Operation,
    OperationContext,
    begin,
    finish,
)
from ..records import THREAD_KINDS, Applied, Kind, Mutation, Scope, SessionRow, session_dict

FIXED_FIELDS = frozenset(
    {
        "session_id",
        "created_at",
        "updated_at",
        "last_activity",
        "request_count",
        "total_processing_time",
        "error_count",
    }
)
"""What ``update_session(updates=…)`` may never set: ids, times and counters have their own ways to change."""

MAX_PROCESSING_SECONDS = 1e9
CLEANUP_STEP = (
    200  # keys removed per step: long enough to be efficient, short enough to hold no lock for long
)
_HOUR_US = 3_600_000_000


class RecordingBackend(Backend):
    """A store that records every write with its identity.

    Args:
        name: how this store is called in errors, health and routing.
        max_value_bytes: the most one encoded value may take.
    """

    def __init__(self, *, name: str, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        self.name = name
        self._max_value_bytes = max_value_bytes
        self._open = False

    @property
    def max_value_bytes(self) -> int:
        """The most one encoded value may take: who stands above and encodes for it keeps to that."""
        return self._max_value_bytes

    # ------------------------------------------------------------------ sessions

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        body = self._create_body(session_id, user_id, metadata)
        context, token = begin(CREATE_SESSION)
        try:
            applied = await self._write(context, CREATE_SESSION, Kind.CREATE, session_id, body)
            row = SessionRow(
                inc=context.op_id,
                created=applied.stamp,
                user_id=user_id,
                metadata=body["metadata"],
                created_at=applied.occurred_at,
            )
            return session_dict(session_id, row)
        finally:
            finish(token)

    async def update_session(
        self,
        session_id: str,
        updates: Json | None = None,
        increment_requests: bool = False,
        add_processing_time: float = 0.0,
        mark_error: bool = False,
        *,
        expected_version: int | None = None,
    ) -> bool:
        check_id(session_id, "session_id")
        body = {
            "fields": self._fields(updates or {}),
            "requests": int(increment_requests),
            "time_us": _microseconds(add_processing_time),
            "errors": int(mark_error),
        }
        return bool(await self._write_alone(UPDATE_SESSION, Kind.UPDATE, session_id, body, expected_version))

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        check_id(session_id, "session_id")
        body = {"status": check_text(status, "status")}
        return bool(await self._write_alone(END_SESSION, Kind.END, session_id, body))

    async def delete_session(self, session_id: str) -> bool:
        check_id(session_id, "session_id")
        body = {"scope": Scope.SESSION, "before": 0}
        return bool(await self._write_alone(DELETE_SESSION, Kind.DELETE, session_id, body))

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        items = [
            (item["session_id"], self._create_body(item["session_id"], item["user_id"], item.get("metadata")))
            for item in _checked(sessions, "sessions", ("session_id", "user_id"))
        ]
        return await self._write_many(BATCH_CREATE_SESSIONS, Kind.CREATE, items)

    # ------------------------------------------------------------------ conversations

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        body = self._message_body(session_id, role, content, metadata)
        return bool(await self._write_alone(ADD_CONVERSATION_MESSAGE, Kind.MESSAGE, session_id, body))

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        items = [
            (
                item["session_id"],
                self._message_body(item["session_id"], item["role"], item["content"], item.get("metadata")),
            )
            for item in _checked(messages, "messages", ("session_id", "role", "content"))
        ]
        return await self._write_many(BATCH_ADD_CONVERSATION_MESSAGES, Kind.MESSAGE, items)

    # ------------------------------------------------------------------ checkpoints

    async def store_checkpoint(
        self,
        thread_id: str,
        checkpoint_id: str,
        checkpoint_data: Json,
        metadata: Json | None = None,
        *,
        expected_version: int | None = None,
    ) -> bool:
        check_id(thread_id, "thread_id")
        body = {
            "ns": "",
            "id": check_id(checkpoint_id, "checkpoint_id"),
            "data": self._encode(checkpoint_data, "checkpoint_data"),
            "metadata": self._metadata(metadata),
            "parent": "",
        }
        return bool(
            await self._write_alone(STORE_CHECKPOINT, Kind.CHECKPOINT, thread_id, body, expected_version)
        )

    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        return await self.store_checkpoint(thread_id, checkpoint_id, checkpoint_data, metadata)

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        check_id(thread_id, "thread_id")
        if keep_last < 0:
            raise InvalidValueError(f"keep_last must be 0 or more, not {keep_last}")
        body = {"ns": "", "keep": keep_last}
        return int(await self._write_alone(PRUNE_CHECKPOINTS, Kind.PRUNE, thread_id, body))

    async def delete_thread(self, thread_id: str) -> bool:
        check_id(thread_id, "thread_id")
        body = {"scope": Scope.THREAD, "before": 0}
        return bool(await self._write_alone(DELETE_THREAD, Kind.DELETE, thread_id, body))

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        check_id(thread_id, "thread_id")
        body = {
            "ns": "",
            "id": check_id(checkpoint_id, "checkpoint_id"),
            "task": check_id(task_id, "task_id"),
            "path": "",
            "value": self._encode(list(writes_data), "writes_data"),
        }
        return bool(await self._write_alone(PUT_WRITES, Kind.WRITES, thread_id, body))

    # ------------------------------------------------------------------ task contexts

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        check_id(session_id, "session_id")
        body = {"value": self._encode(context, "context")}
        return bool(
            await self._write_alone(STORE_TASK_CONTEXT, Kind.CONTEXT, session_id, body, expected_version)
        )

    # ------------------------------------------------------------------ clean-up

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        if max_idle_hours < 0:
            raise InvalidValueError(f"max_idle_hours must be 0 or more, not {max_idle_hours}")
        context, token = begin(CLEANUP_EXPIRED_SESSIONS)
        try:
            before = wall_us() - int(max_idle_hours * _HOUR_US)
            removed = 0
            while idle := await self.read_idle(before, CLEANUP_STEP):
                mutations = [
                    self._mutation(
                        context,
                        Kind.DELETE,
                        item.key,
                        {"scope": item.scope, "before": item.before},
                        f"/{item.before}",  # the same again if a retry of the whole finds it again, and never another
                    )
                    for item in idle
                ]
                gone = sum(bool(_settled(result).answer) for result in await self.apply(mutations))
                removed += gone
                if len(idle) < CLEANUP_STEP or not gone:  # what is left came alive in between
                    break
            return removed
        finally:
            finish(token)

    # ------------------------------------------------------------------ the way of every write

    def _mutation(
        self, context: OperationContext, kind: str, key: str, body: Mapping[str, Any], suffix: str = ""
    ) -> Mutation:
        now = wall_us()
        return Mutation(
            key=key,
            op_id=context.op_id + suffix,
            kind=kind,
            body=body,
            fingerprint=fingerprint(kind, key, body),
            occurred_at=context.occurred_at,
            stamp=now,
            expires_at=_latest_expiry(context, kind, now),
        )

    async def _write(
        self,
        context: OperationContext,
        operation: Operation,
        kind: str,
        key: str,
        body: Mapping[str, Any],
        expected_version: int | None = None,
    ) -> Applied:
        mutation = self._mutation(context, kind, key, body)
        mutation.expected_version = expected_version
        [result] = await self.apply([mutation])
        self._answered(context)
        if isinstance(result, StorageError):
            result.operation = result.operation or operation.name
            raise result
        context.position = result.stamp
        return result

    async def _write_alone(
        self,
        operation: Operation,
        kind: str,
        key: str,
        body: Mapping[str, Any],
        expected_version: int | None = None,
    ) -> Any:
        context, token = begin(operation)
        try:
            return (await self._write(context, operation, kind, key, body, expected_version)).answer
        finally:
            finish(token)

    async def _write_many(
        self, operation: Operation, kind: str, items: Sequence[tuple[str, Json]]
    ) -> list[bool]:
        if not items:
            return []
        context, token = begin(operation)
        try:
            mutations = [
                self._mutation(context, kind, key, body, f"/{n}") for n, (key, body) in enumerate(items)
            ]
            results = await self.apply(mutations)
            self._answered(context)
            return [bool(_settled(result).answer) for result in results]
        finally:
            finish(token)

    def _answered(self, context: OperationContext) -> None:
        """Leave word of who served the write; ``dual_write`` knows better and has done so."""

    # ------------------------------------------------------------------ checking and encoding

    def _encode(self, value: Any, what: str) -> bytes:
        return encode(value, what, limit=self._max_value_bytes)

    def _metadata(self, metadata: Json | None) -> bytes:
        if metadata is None:
            return b"\x80"
        if not isinstance(metadata, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError(f"metadata must be a dict, not {type(metadata).__name__}")
        return self._encode(metadata, "metadata")

    def _create_body(self, session_id: str, user_id: str, metadata: Json | None) -> Json:
        check_id(session_id, "session_id")
        return {"user_id": check_text(user_id, "user_id"), "metadata": self._metadata(metadata)}

    def _message_body(self, session_id: str, role: str, content: str, metadata: Json | None) -> Json:
        check_id(session_id, "session_id")
        check_text(content, "content")
        if len(content) * 4 > self._max_value_bytes and len(content.encode()) > self._max_value_bytes:
            raise InvalidValueError(
                f"content is over the limit of {self._max_value_bytes:,} bytes: raise the limit or split it"
            )
        return {"role": check_text(role, "role"), "content": content, "metadata": self._metadata(metadata)}

    def _fields(self, updates: Json) -> dict[str, bytes]:
        fields: dict[str, bytes] = {}
        for name, value in updates.items():
            check_id(name, "a field's name")
            if name in FIXED_FIELDS:
                raise InvalidValueError(
                    f"updates may not set {name!r}; counters change through increment_requests, add_processing_time and mark_error"
                )
            if name in {"status", "user_id"}:
                check_text(value, f"updates[{name!r}]")
            if name == "metadata":
                fields[name] = self._metadata(value)
            else:
                fields[name] = self._encode(value, f"updates[{name!r}]")
        return fields

    def _require_open(self) -> None:
        if not self._open:
            raise BackendClosedError(
                f"{self.name} is not open: use `async with`, or initialize() it first", backend=self.name
            )


def _checked(items: Sequence[Json], what: str, needed: tuple[str, ...]) -> Sequence[Json]:
    """Refuse a batch before any of it is written."""
    for index, item in enumerate(items):
        missing = [name for name in needed if name not in item]
        if missing:
            raise InvalidValueError(
                f"{what}[{index}] has no {', '.join(missing)}; each item needs {', '.join(needed)}"
            )
    return items


def _settled(result: Applied | StorageError) -> Applied:
    if isinstance(result, StorageError):
        raise result
    return result


def _latest_expiry(context: OperationContext, kind: str, now: int) -> int:
    """When what this write touches is to be gone at the latest, if a layer above has set a limit; 0 for never."""
    ttl = context.max_checkpoint_ttl if kind in THREAD_KINDS else context.max_session_ttl
    return 0 if ttl is None else now + int(ttl * 1_000_000)


def _microseconds(seconds: float) -> int:
    if not 0 <= seconds <= MAX_PROCESSING_SECONDS or math.isnan(seconds):
        raise InvalidValueError(
            f"add_processing_time must be 0 to {MAX_PROCESSING_SECONDS:g} seconds, not {seconds!r}"
        )
    return round(seconds * 1_000_000)


def empty_metrics(backend: str, redis_connected: bool) -> Json:
    """The keys that every ``get_metrics`` has."""
    return {
        "total_sessions": 0,
        "active_sessions": 0,
        "total_messages": 0,
        "total_checkpoints": 0,
        "storage_backend": backend,
        "redis_connected": redis_connected,
        "timestamp": iso(wall_us()),
    }
