"""What every layer is built from: :class:`Layer` forwards, :class:`UniformLayer` sends all data operations one way.

A layer *is* a backend and wraps another one (``inner`` first, then keyword-only options). What it does not touch costs
nothing: each method that a class inherits unchanged is bound straight to the inner backend's when the layer is built.

Use :class:`Layer` and override what changes (a cache, a batcher); use :class:`UniformLayer` where all operations are
treated alike (retry, breaker, timeout, tracing). Lifecycle (``initialize``, ``close``, ``health_check``,
``get_metrics``) never goes through ``around``: an open breaker must not block ``close``.

The methods are written out rather than generated, so that checkers, editors and readers see them; a guard test holds
their signatures to the interface's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, ParamSpec, TypeVar

from ..errors import StorageError
from ..interface import Backend, Json, OperationOutcome
from ..operations import (
    ADD_CONVERSATION_MESSAGE,
    APPLY,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    BATCH_GET_SESSIONS,
    CLEANUP_EXPIRED_SESSIONS,
    CLOSE_MARKS,
    CREATE_SESSION,
    DELETE_SESSION,
    DELETE_THREAD,
    END_SESSION,
    GET_CHECKPOINT,
    GET_CONVERSATION_HISTORY,
    GET_SESSION,
    GET_TASK_CONTEXT,
    GET_WRITES,
    LIFECYCLE,
    LIST_CHECKPOINTS,
    LIST_SESSIONS,
    LIST_TASK_CONTEXTS,
    LIST_THREADS,
    MOVE_ROUTE,
    OPERATION_OUTCOME,
    OPERATIONS,
    PRUNE_CHECKPOINTS,
    PUT_CHECKPOINT,
    PUT_WRITES,
    READ_IDLE,
    READ_RECORDS,
    STORE_CHECKPOINT,
    STORE_STATE,
    STORE_TASK_CONTEXT,
    UPDATE_SESSION,
    Operation,
)
from ..records import Applied, IdleKey, Mutation, RecordPage, RecordRef, Route, StoreState

P = ParamSpec("P")
T = TypeVar("T")


class Layer(Backend):
    """Forwards every operation to ``inner``.

    Attributes:
        layer_name: its name in YAML, metrics and ``explain``.
        inner: the backend it wraps.
    """

    layer_name: ClassVar[str] = "layer"

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self.honours_op_id = inner.honours_op_id
        for name in (*OPERATIONS, *LIFECYCLE):
            if getattr(type(self), name) is getattr(
                Layer, name
            ):  # inherited unchanged: skip this link of the chain
                setattr(self, name, getattr(inner, name))

    def __repr__(self) -> str:
        facts = self.describe()
        return f"<{type(self).__name__}{' ' + facts if facts else ''} over {self.inner!r}>"

    def describe(self) -> str:
        """Its state in a few words, for ``repr``, health and ``explain``."""
        return ""

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        return await self.inner.initialize()

    async def close(self) -> None:
        await self.inner.close()

    async def health_check(self) -> Json:
        return await self.inner.health_check()

    async def get_metrics(self) -> Json:
        return await self.inner.get_metrics()

    # ------------------------------------------------------------------ operations

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        return await self.inner.create_session(session_id, user_id, metadata)

    async def get_session(self, session_id: str) -> Json | None:
        return await self.inner.get_session(session_id)

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
        return await self.inner.update_session(
            session_id,
            updates,
            increment_requests,
            add_processing_time,
            mark_error,
            expected_version=expected_version,
        )

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        return await self.inner.end_session(session_id, status)

    async def delete_session(self, session_id: str) -> bool:
        return await self.inner.delete_session(session_id)

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        return await self.inner.list_sessions(status=status, user_id=user_id, after=after, limit=limit)

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        return await self.inner.batch_create_sessions(sessions)

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        return await self.inner.batch_get_sessions(session_ids)

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        return await self.inner.add_conversation_message(session_id, role, content, metadata)

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        return await self.inner.get_conversation_history(session_id, limit, before=before, after=after)

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
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
        return await self.inner.store_checkpoint(
            thread_id, checkpoint_id, checkpoint_data, metadata, expected_version=expected_version
        )

    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        return await self.inner.put_checkpoint(thread_id, checkpoint_id, checkpoint_data, metadata)

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        return await self.inner.get_checkpoint(thread_id, checkpoint_id)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        return await self.inner.list_checkpoints(thread_id, limit)

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        return await self.inner.prune_checkpoints(thread_id, keep_last)

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        return await self.inner.put_writes(thread_id, checkpoint_id, task_id, writes_data)

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        return await self.inner.get_writes(thread_id, checkpoint_id)

    async def delete_thread(self, thread_id: str) -> bool:
        return await self.inner.delete_thread(thread_id)

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        return await self.inner.list_threads(after=after, limit=limit)

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        return await self.inner.store_task_context(session_id, context, expected_version=expected_version)

    async def get_task_context(self, session_id: str) -> Any | None:
        return await self.inner.get_task_context(session_id)

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        return await self.inner.list_task_contexts(session_id, limit)

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        return await self.inner.cleanup_expired_sessions(max_idle_hours)

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        return await self.inner.operation_outcome(key, op_id)

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        return await self.inner.apply(mutations)

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        return await self.inner.read_records(since=since, open_only=open_only, after=after, limit=limit)

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        return await self.inner.close_marks(refs)

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        return await self.inner.read_idle(before, limit)

    async def store_state(self) -> StoreState:
        return await self.inner.store_state()

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        return await self.inner.move_route(expected_epoch, route)


class UniformLayer(Layer):
    """Sends every data operation through the one typed hook, :meth:`around`."""

    @abstractmethod
    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``call(*args, **kwargs)``, the inner backend's method for ``op``, in this layer's way."""

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        return await self.around(CREATE_SESSION, self.inner.create_session, session_id, user_id, metadata)

    async def get_session(self, session_id: str) -> Json | None:
        return await self.around(GET_SESSION, self.inner.get_session, session_id)

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
        return await self.around(
            UPDATE_SESSION,
            self.inner.update_session,
            session_id,
            updates,
            increment_requests,
            add_processing_time,
            mark_error,
            expected_version=expected_version,
        )

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        return await self.around(END_SESSION, self.inner.end_session, session_id, status)

    async def delete_session(self, session_id: str) -> bool:
        return await self.around(DELETE_SESSION, self.inner.delete_session, session_id)

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        return await self.around(
            LIST_SESSIONS, self.inner.list_sessions, status=status, user_id=user_id, after=after, limit=limit
        )

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        return await self.around(BATCH_CREATE_SESSIONS, self.inner.batch_create_sessions, sessions)

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        return await self.around(BATCH_GET_SESSIONS, self.inner.batch_get_sessions, session_ids)

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        return await self.around(
            ADD_CONVERSATION_MESSAGE, self.inner.add_conversation_message, session_id, role, content, metadata
        )

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        return await self.around(
            GET_CONVERSATION_HISTORY,
            self.inner.get_conversation_history,
            session_id,
            limit,
            before=before,
            after=after,
        )

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        return await self.around(
            BATCH_ADD_CONVERSATION_MESSAGES, self.inner.batch_add_conversation_messages, messages
        )

    async def store_checkpoint(
        self,
        thread_id: str,
        checkpoint_id: str,
        checkpoint_data: Json,
        metadata: Json | None = None,
        *,
        expected_version: int | None = None,
    ) -> bool:
        return await self.around(
            STORE_CHECKPOINT,
            self.inner.store_checkpoint,
            thread_id,
            checkpoint_id,
            checkpoint_data,
            metadata,
            expected_version=expected_version,
        )

    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        return await self.around(
            PUT_CHECKPOINT, self.inner.put_checkpoint, thread_id, checkpoint_id, checkpoint_data, metadata
        )

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        return await self.around(GET_CHECKPOINT, self.inner.get_checkpoint, thread_id, checkpoint_id)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        return await self.around(LIST_CHECKPOINTS, self.inner.list_checkpoints, thread_id, limit)

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        return await self.around(PRUNE_CHECKPOINTS, self.inner.prune_checkpoints, thread_id, keep_last)

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        return await self.around(
            PUT_WRITES, self.inner.put_writes, thread_id, checkpoint_id, task_id, writes_data
        )

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        return await self.around(GET_WRITES, self.inner.get_writes, thread_id, checkpoint_id)

    async def delete_thread(self, thread_id: str) -> bool:
        return await self.around(DELETE_THREAD, self.inner.delete_thread, thread_id)

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        return await self.around(LIST_THREADS, self.inner.list_threads, after=after, limit=limit)

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        return await self.around(
            STORE_TASK_CONTEXT,
            self.inner.store_task_context,
            session_id,
            context,
            expected_version=expected_version,
        )

    async def get_task_context(self, session_id: str) -> Any | None:
        return await self.around(GET_TASK_CONTEXT, self.inner.get_task_context, session_id)

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        return await self.around(LIST_TASK_CONTEXTS, self.inner.list_task_contexts, session_id, limit)

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        return await self.around(
            CLEANUP_EXPIRED_SESSIONS, self.inner.cleanup_expired_sessions, max_idle_hours
        )

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        return await self.around(OPERATION_OUTCOME, self.inner.operation_outcome, key, op_id)

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        return await self.around(APPLY, self.inner.apply, mutations)

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        return await self.around(
            READ_RECORDS, self.inner.read_records, since=since, open_only=open_only, after=after, limit=limit
        )

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        return await self.around(CLOSE_MARKS, self.inner.close_marks, refs)

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        return await self.around(READ_IDLE, self.inner.read_idle, before, limit)

    async def store_state(self) -> StoreState:
        return await self.around(STORE_STATE, self.inner.store_state)

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        return await self.around(MOVE_ROUTE, self.inner.move_route, expected_epoch, route)


def report_part(report: Json, layer: str, facts: Json) -> Json:
    """Add a layer's facts to a health or metrics report, under ``report["layers"][layer]``; returns the report."""
    report.setdefault("layers", {})[layer] = facts
    return report
