"""The reading half of a concrete store: raw rows in, the contract's shapes out, one place for both.

A backend implements the ``_read_*`` methods. Each answers ``(rows, clock)``: the clock is the key's last stamp in this
store, read no later than the rows, so that a caller can tell a copy that is behind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ..clock import iso, wall_us
from ..codec import check_id, decode
from ..errors import InvalidValueError
from ..interface import Json, OperationOutcome
from ..operations import (
    BATCH_GET_SESSIONS,
    GET_CHECKPOINT,
    GET_CONVERSATION_HISTORY,
    GET_SESSION,
    GET_TASK_CONTEXT,
    GET_WRITES,
    LIST_CHECKPOINTS,
    LIST_SESSIONS,
    LIST_TASK_CONTEXTS,
    LIST_THREADS,
    OPERATION_OUTCOME,
    OperationContext,
    begin,
    finish,
)
from ..records import (
    THREAD_KINDS,
    CheckpointRow,
    ContextRow,
    MessageRow,
    Mutation,
    SessionRow,
    checkpoint_dict,
    message_dict,
    session_dict,
)
from ._base import RecordingBackend

DEFAULT_RETENTION_SECONDS = 3600.0
DEFAULT_CONTEXT_VERSIONS = 10


class StoreBackend(RecordingBackend):
    """A concrete store.

    Args:
        name: how it is called in errors, health and routing.
        session_ttl: seconds after its last write that a session counts as gone; None for never.
        checkpoint_ttl: the same for a thread's checkpoints.
        retention: seconds that the identity of a write is remembered at least (messages and checkpoints: as long as they
            live). A write older than half of it is refused, because its repeat might not be recognised.
        context_versions: how many versions of a task context are kept.
        max_value_bytes: the most one encoded value may take.
    """

    kind = "store"

    def __init__(
        self,
        *,
        name: str,
        session_ttl: float | None = None,
        checkpoint_ttl: float | None = None,
        retention: float = DEFAULT_RETENTION_SECONDS,
        context_versions: int = DEFAULT_CONTEXT_VERSIONS,
        max_value_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        super().__init__(name=name, max_value_bytes=max_value_bytes)
        for what, seconds in (
            ("session_ttl", session_ttl),
            ("checkpoint_ttl", checkpoint_ttl),
            ("retention", retention),
        ):
            if seconds is not None and not seconds > 0:
                raise InvalidValueError(f"{what} must be a positive number of seconds, not {seconds!r}")
        if context_versions < 1:
            raise InvalidValueError(f"context_versions must be 1 or more, not {context_versions}")
        self._session_ttl_us = int((session_ttl or 0) * 1_000_000)
        self._checkpoint_ttl_us = int((checkpoint_ttl or 0) * 1_000_000)
        self._retention_us = int(retention * 1_000_000)
        self._context_versions = context_versions

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{'' if self._open else ', not open'}>"

    @property
    def _max_age_us(self) -> int:
        return self._retention_us // 2

    def _expiry(self, mutation: Mutation) -> int:
        """When what this write touches shall count as gone: decided by the accepting store, replayed verbatim.

        A command may say when at the latest; a store's own time to live may be shorter.
        """
        if mutation.replay:
            return mutation.expires_at
        ttl = self._checkpoint_ttl_us if mutation.kind in THREAD_KINDS else self._session_ttl_us
        own = wall_us() + ttl if ttl else 0
        return min(own, mutation.expires_at) if own and mutation.expires_at else own or mutation.expires_at

    # ------------------------------------------------------------------ reads of the contract

    async def get_session(self, session_id: str) -> Json | None:
        check_id(session_id, "session_id")
        context, token = begin(GET_SESSION)
        try:
            row, clock = await self._read_session(session_id)
            self._account(context, clock, row.touched[0] if row is not None else 0)
            return None if row is None else session_dict(session_id, row)
        finally:
            finish(token)

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        for session_id in session_ids:
            check_id(session_id, "session_id")
        context, token = begin(BATCH_GET_SESSIONS)
        try:
            rows = await self._read_sessions(session_ids) if session_ids else []
            self._account(context, None, 0)
            return [
                None if row is None else session_dict(session_id, row)
                for session_id, row in zip(session_ids, rows, strict=True)
            ]
        finally:
            finish(token)

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        _check_page(limit)
        context, token = begin(LIST_SESSIONS)
        try:
            rows = await self._list_sessions(status, user_id, after, limit) if limit else []
            self._account(context, None, 0)
            return [session_dict(session_id, row) for session_id, row in rows]
        finally:
            finish(token)

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        check_id(session_id, "session_id")
        if limit < 0:
            raise InvalidValueError(f"limit must be 0 (all) or more, not {limit}")
        context, token = begin(GET_CONVERSATION_HISTORY)
        try:
            rows, clock = await self._read_messages(session_id, limit, before, after)
            self._account(context, clock, rows[-1].stamp if rows else 0)
            return [
                message_dict(
                    row.op_id,
                    row.stamp,
                    row.role,
                    row.content,
                    row.occurred_at,
                    decode(row.metadata, "metadata"),
                )
                for row in rows
            ]
        finally:
            finish(token)

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        check_id(thread_id, "thread_id")
        if checkpoint_id is not None:
            check_id(checkpoint_id, "checkpoint_id")
        context, token = begin(GET_CHECKPOINT)
        try:
            row, clock = await self._read_checkpoint(thread_id, "", checkpoint_id)
            self._account(context, clock, row.stamp if row is not None else 0)
            return None if row is None else _checkpoint(thread_id, row)
        finally:
            finish(token)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        check_id(thread_id, "thread_id")
        _check_page(limit)
        context, token = begin(LIST_CHECKPOINTS)
        try:
            rows, clock = await self._read_checkpoints(thread_id, "", limit) if limit else ([], None)
            self._account(context, clock, rows[0].stamp if rows else 0)
            return [_checkpoint(thread_id, row) for row in rows]
        finally:
            finish(token)

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        _check_page(limit)
        context, token = begin(LIST_THREADS)
        try:
            threads = await self._list_threads(after, limit) if limit else []
            self._account(context, None, 0)
            return threads
        finally:
            finish(token)

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        check_id(thread_id, "thread_id")
        check_id(checkpoint_id, "checkpoint_id")
        context, token = begin(GET_WRITES)
        try:
            values, clock = await self._read_writes(thread_id, "", checkpoint_id)
            self._account(context, clock, clock)
            return [item for value in values for item in decode(value, "writes")]
        finally:
            finish(token)

    async def get_task_context(self, session_id: str) -> Any | None:
        check_id(session_id, "session_id")
        context, token = begin(GET_TASK_CONTEXT)
        try:
            rows, clock = await self._read_contexts(session_id, 1)
            self._account(context, clock, rows[0].stamp if rows else 0)
            return decode(rows[0].value, "task context") if rows else None
        finally:
            finish(token)

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        check_id(session_id, "session_id")
        _check_page(limit)
        context, token = begin(LIST_TASK_CONTEXTS)
        try:
            rows, clock = await self._read_contexts(session_id, limit) if limit else ([], None)
            self._account(context, clock, rows[0].stamp if rows else 0)
            return [
                {
                    "version": row.stamp,
                    "context": decode(row.value, "task context"),
                    "created_at": iso(row.occurred_at),
                }
                for row in rows
            ]
        finally:
            finish(token)

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        check_id(key, "key")
        check_id(op_id, "op_id")
        context, token = begin(OPERATION_OUTCOME)
        try:
            known = await self._read_outcome(key, op_id)
            self._account(context, None, 0)
            return "applied" if known else "not_applied"
        finally:
            finish(token)

    def _answered(self, context: OperationContext) -> None:
        context.attempts += 1
        context.served_by = self.name

    def _account(self, context: OperationContext, clock: int | None, position: int) -> None:
        """Leave word in the operation's context of who answered and how far along its copy is."""
        self._answered(context)
        context.clock = clock
        context.position = position

    # ------------------------------------------------------------------ what a backend supplies

    @abstractmethod
    async def _read_session(self, key: str) -> tuple[SessionRow | None, int]:
        """The current incarnation, unless expired."""

    @abstractmethod
    async def _read_sessions(self, keys: Sequence[str]) -> list[SessionRow | None]: ...

    @abstractmethod
    async def _read_messages(
        self, key: str, limit: int, before: int | None, after: int | None
    ) -> tuple[list[MessageRow], int]:
        """By (stamp, op_id), oldest first: the newest ``limit`` (0 all), or with ``after`` the oldest ``limit`` beyond it."""

    @abstractmethod
    async def _read_checkpoint(self, key: str, ns: str, id: str | None) -> tuple[CheckpointRow | None, int]:
        """That one, or the one with the highest (stamp, op_id)."""

    @abstractmethod
    async def _read_checkpoints(self, key: str, ns: str, limit: int) -> tuple[list[CheckpointRow], int]:
        """Newest first."""

    @abstractmethod
    async def _read_writes(self, key: str, ns: str, id: str) -> tuple[list[bytes], int]:
        """Each task's encoded writes, by (stamp, op_id)."""

    @abstractmethod
    async def _read_contexts(self, key: str, limit: int) -> tuple[list[ContextRow], int]:
        """Newest first."""

    @abstractmethod
    async def _list_sessions(
        self, status: str | None, user_id: str | None, after: str | None, limit: int
    ) -> list[tuple[str, SessionRow]]:
        """In the order of ``encode_key(id)``'s UTF-8 bytes: the same in every store."""

    @abstractmethod
    async def _list_threads(self, after: str | None, limit: int) -> list[str]:
        """Keys with at least one checkpoint, in the same order as sessions."""

    @abstractmethod
    async def _read_outcome(self, key: str, op_id: str) -> bool:
        """Whether this write took place. One that found nothing to do, and answered False or 0, did not."""


def _check_page(limit: int) -> None:
    if limit < 0:
        raise InvalidValueError(f"limit must be 0 or more, not {limit}")


def _checkpoint(thread_id: str, row: CheckpointRow) -> Json:
    return checkpoint_dict(
        thread_id, row.id, decode(row.data, "checkpoint"), decode(row.metadata, "metadata"), row.occurred_at
    )
