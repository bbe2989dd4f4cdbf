"""read_only: everything may be read and nothing changed, for a migration, an audit or a store that must be spared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import telemetry
from ..errors import StorageError, UnsupportedOperationError
from ..interface import Backend, Json
from ..operations import (
    ADD_CONVERSATION_MESSAGE,
    APPLY,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    CLEANUP_EXPIRED_SESSIONS,
    CLOSE_MARKS,
    CREATE_SESSION,
    DELETE_SESSION,
    DELETE_THREAD,
    END_SESSION,
    MOVE_ROUTE,
    PRUNE_CHECKPOINTS,
    PUT_CHECKPOINT,
    PUT_WRITES,
    STORE_CHECKPOINT,
    STORE_TASK_CONTEXT,
    UPDATE_SESSION,
    Operation,
)
from ..records import Applied, Mutation, RecordRef, Route
from ._base import Layer, report_part


@dataclass(slots=True)
class Lock:
    """Whether writes are refused; outlives a reload.

    Attributes:
        forced: what an operator said; None where the configuration decides.
        refused: writes that were.
    """

    forced: bool | None = None
    refused: int = 0


class ReadOnly(Layer):
    """Refuses every write before anything is sent.

    Reads, health and metrics pass, and cost nothing. An operator may switch it at run time, until the next restart, with
    ``force(True)``, ``force(False)`` and ``force(None)`` (back to the configuration). Opening the chain still creates or
    migrates a store's schema: use a database role that may not, where that matters.

    Place: outside whatever accepts writes and answers for them::

        deadline → read_only → cache → batching → dual_write{…}      right
        batching → read_only → redis          wrong: a write is accepted and queued before it is refused
        dual_write{read_only → …, …}          wrong: a leg that may not be written to never catches up

    Errors: UnsupportedOperationError, not applied. Events: ``write.refused``. Metrics and health: part ``read_only``.
    Cancellation passes untouched.

    Args:
        enabled: refuse writes.
        state: an operator's word, and what was refused; outlives a reload.
    """

    layer_name: ClassVar[str] = "read_only"

    def __init__(self, inner: Backend, *, enabled: bool = True, state: Lock | None = None) -> None:
        super().__init__(inner)
        self._enabled = enabled
        self.state = Lock() if state is None else state

    def describe(self) -> str:
        return f"{'on' if self.on else 'off'}, {self.state.refused} refused"

    @property
    def on(self) -> bool:
        """Whether writes are refused now."""
        return self._enabled if self.state.forced is None else self.state.forced

    def force(self, on: bool | None) -> None:
        """Refuse writes, let them pass, or (None) do what the configuration says."""
        self.state.forced = on

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        return {"on": self.on, "refused": self.state.refused}

    def _check(self, op: Operation) -> None:
        if not self.on:
            return
        self.state.refused += 1
        telemetry.event(telemetry.WRITE_REFUSED, backend=self.name, operation=op.name)
        raise UnsupportedOperationError(
            "this storage is read-only at the moment (layer read_only); nothing was written",
            operation=op.name,
            backend=self.name,
            attempts=0,
        )

    # ------------------------------------------------------------------ every write

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        self._check(CREATE_SESSION)
        return await self.inner.create_session(session_id, user_id, metadata)

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
        self._check(UPDATE_SESSION)
        return await self.inner.update_session(
            session_id,
            updates,
            increment_requests,
            add_processing_time,
            mark_error,
            expected_version=expected_version,
        )

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        self._check(END_SESSION)
        return await self.inner.end_session(session_id, status)

    async def delete_session(self, session_id: str) -> bool:
        self._check(DELETE_SESSION)
        return await self.inner.delete_session(session_id)

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        self._check(BATCH_CREATE_SESSIONS)
        return await self.inner.batch_create_sessions(sessions)

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        self._check(ADD_CONVERSATION_MESSAGE)
        return await self.inner.add_conversation_message(session_id, role, content, metadata)

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        self._check(BATCH_ADD_CONVERSATION_MESSAGES)
        return await self.inner.batch_add_conversation_messages(messages)

    async def store_checkpoint(
        self,
        thread_id: str,
        checkpoint_id: str,
        checkpoint_data: Json,
        metadata: Json | None = None,
        *,
        expected_version: int | None = None,
    ) -> bool:
        self._check(STORE_CHECKPOINT)
        return await self.inner.store_checkpoint(
            thread_id, checkpoint_id, checkpoint_data, metadata, expected_version=expected_version
        )

    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        self._check(PUT_CHECKPOINT)
        return await self.inner.put_checkpoint(thread_id, checkpoint_id, checkpoint_data, metadata)

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        self._check(PRUNE_CHECKPOINTS)
        return await self.inner.prune_checkpoints(thread_id, keep_last)

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        self._check(PUT_WRITES)
        return await self.inner.put_writes(thread_id, checkpoint_id, task_id, writes_data)

    async def delete_thread(self, thread_id: str) -> bool:
        self._check(DELETE_THREAD)
        return await self.inner.delete_thread(thread_id)

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        self._check(STORE_TASK_CONTEXT)
        return await self.inner.store_task_context(session_id, context, expected_version=expected_version)

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        self._check(CLEANUP_EXPIRED_SESSIONS)
        return await self.inner.cleanup_expired_sessions(max_idle_hours)

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._check(APPLY)
        return await self.inner.apply(mutations)

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        self._check(CLOSE_MARKS)
        return await self.inner.close_marks(refs)

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        self._check(MOVE_ROUTE)
        return await self.inner.move_route(expected_epoch, route)
