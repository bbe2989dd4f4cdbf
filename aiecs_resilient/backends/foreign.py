"""A store somebody else wrote, with the specification's sixteen methods and nothing more, as a link of a chain.

It knows no ``op_id``. So a write with an unknown outcome is not retried over it, and it cannot be a leg of ``dual_write``:
both would risk a second effect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar, cast

from ..clock import iso, wall_us
from ..errors import (
    ConfigurationError,
    Outcome,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
    UnsupportedOperationError,
)
from ..interface import Backend, Json
from ..operations import (
    ADD_CONVERSATION_MESSAGE,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    BATCH_GET_SESSIONS,
    CLEANUP_EXPIRED_SESSIONS,
    CREATE_SESSION,
    END_SESSION,
    GET_CHECKPOINT,
    GET_CONVERSATION_HISTORY,
    GET_SESSION,
    GET_TASK_CONTEXT,
    GET_WRITES,
    LIST_CHECKPOINTS,
    PUT_CHECKPOINT,
    PUT_WRITES,
    STORE_CHECKPOINT,
    STORE_TASK_CONTEXT,
    UPDATE_SESSION,
    Effect,
    Operation,
    begin,
    finish,
)

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class ForeignStorage(Protocol):
    """The sixteen methods, as the specification has them; inheriting from anything of ours is not needed."""

    async def initialize(self) -> bool: ...

    async def close(self) -> None: ...

    async def health_check(self) -> Json: ...

    async def get_metrics(self) -> Json: ...

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int: ...

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json: ...

    async def get_session(self, session_id: str) -> Json | None: ...

    async def update_session(
        self,
        session_id: str,
        updates: Json | None = None,
        increment_requests: bool = False,
        add_processing_time: float = 0.0,
        mark_error: bool = False,
    ) -> bool: ...

    async def end_session(self, session_id: str, status: str = "completed") -> bool: ...

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool: ...

    async def get_conversation_history(self, session_id: str, limit: int = 50) -> list[Json]: ...

    async def store_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool: ...

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None: ...

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]: ...

    async def get_task_context(self, session_id: str) -> Any | None: ...

    async def store_task_context(self, session_id: str, context: Any) -> bool: ...


class _WithWrites(Protocol):
    """The two methods of pending writes, which a foreign store may have too."""

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: list[tuple[Any, ...]]
    ) -> bool: ...

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]: ...


METHODS = tuple(
    name for name in vars(ForeignStorage) if not name.startswith("_") and callable(vars(ForeignStorage)[name])
)
"""Names of the sixteen."""


def adapt(backend: ForeignStorage, *, name: str | None = None) -> Backend:
    """The backend itself if it is one of ours, else wrapped so that it can stand in a chain.

    Args:
        name: how it is called in errors, health and routing; by default its ``name``, or its class's.

    Raises:
        ConfigurationError: it lacks some of the sixteen methods; names them.
    """
    return backend if isinstance(backend, Backend) else ForeignBackend(backend, name=name)


class ForeignBackend(Backend):
    """Asks a store that knows only the specification's methods.

    ``put_checkpoint`` is its ``store_checkpoint``; a batch is a loop, so what fails in the middle has an unknown outcome;
    ``put_writes`` and ``get_writes`` work if it has them. What the specification does not know (``before=``, ``after=``,
    ``expected_version=``, listing, deleting, replication) raises UnsupportedOperationError before anything is sent.
    ``TimeoutError``, ``ConnectionError`` and other ``OSError`` become our errors; anything else it raises is left as it is.

    Args:
        foreign: the store.
        name: how it is called in errors, health and routing; by default its ``name``, or its class's.
    """

    kind = "foreign"
    honours_op_id = False

    def __init__(self, foreign: ForeignStorage, *, name: str | None = None) -> None:
        missing = [method for method in METHODS if not callable(getattr(foreign, method, None))]
        if missing:
            raise ConfigurationError(
                f"{type(foreign).__name__} cannot be used as a store: it has no {', '.join(missing)}; "
                "the specification's IStorageBackend asks for them"
            )
        own = cast("object", getattr(foreign, "name", None))
        self.name = name or (own if isinstance(own, str) and own else type(foreign).__name__)
        self.foreign = foreign
        writes = all(callable(getattr(foreign, method, None)) for method in ("put_writes", "get_writes"))
        self._writes = cast("_WithWrites", foreign) if writes else None

    def __repr__(self) -> str:
        return f"<ForeignBackend {self.name!r}, {type(self.foreign).__name__}>"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        try:
            return await self.foreign.initialize()
        except OSError as error:
            self._fail(error, None)

    async def close(self) -> None:
        await self.foreign.close()

    async def health_check(self) -> Json:
        report: Json = {}
        try:
            report |= await self.foreign.health_check()
        except OSError as error:
            report |= {"status": "unhealthy", "issues": [f"{self.name}: {error}"]}
        report.setdefault("status", "healthy")
        report.setdefault("storage_backend", self.name)
        report.setdefault("redis_connected", False)
        report.setdefault("issues", [])
        return report

    async def get_metrics(self) -> Json:
        try:
            report = dict(await self.foreign.get_metrics())
        except OSError as error:
            self._fail(error, None)
        report.setdefault("storage_backend", self.name)
        report.setdefault("redis_connected", False)
        report.setdefault("timestamp", iso(wall_us()))
        return report

    # ------------------------------------------------------------------ operations

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        return await self._ask(CREATE_SESSION, self.foreign.create_session, session_id, user_id, metadata)

    async def get_session(self, session_id: str) -> Json | None:
        return await self._ask(GET_SESSION, self.foreign.get_session, session_id)

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
        self._refuse(UPDATE_SESSION, expected_version=expected_version)
        return await self._ask(
            UPDATE_SESSION,
            self.foreign.update_session,
            session_id,
            updates,
            increment_requests,
            add_processing_time,
            mark_error,
        )

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        return await self._ask(END_SESSION, self.foreign.end_session, session_id, status)

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        return await self._ask(
            ADD_CONVERSATION_MESSAGE,
            self.foreign.add_conversation_message,
            session_id,
            role,
            content,
            metadata,
        )

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        self._refuse(GET_CONVERSATION_HISTORY, before=before, after=after)
        return await self._ask(
            GET_CONVERSATION_HISTORY, self.foreign.get_conversation_history, session_id, limit
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
        self._refuse(STORE_CHECKPOINT, expected_version=expected_version)
        return await self._ask(
            STORE_CHECKPOINT,
            self.foreign.store_checkpoint,
            thread_id,
            checkpoint_id,
            checkpoint_data,
            metadata,
        )

    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        return await self._ask(
            PUT_CHECKPOINT, self.foreign.store_checkpoint, thread_id, checkpoint_id, checkpoint_data, metadata
        )

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        return await self._ask(GET_CHECKPOINT, self.foreign.get_checkpoint, thread_id, checkpoint_id)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        return await self._ask(LIST_CHECKPOINTS, self.foreign.list_checkpoints, thread_id, limit)

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        writes = self._with_writes(PUT_WRITES)
        return await self._ask(
            PUT_WRITES, writes.put_writes, thread_id, checkpoint_id, task_id, list(writes_data)
        )

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        writes = self._with_writes(GET_WRITES)
        return await self._ask(GET_WRITES, writes.get_writes, thread_id, checkpoint_id)

    async def get_task_context(self, session_id: str) -> Any | None:
        return await self._ask(GET_TASK_CONTEXT, self.foreign.get_task_context, session_id)

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        self._refuse(STORE_TASK_CONTEXT, expected_version=expected_version)
        return await self._ask(STORE_TASK_CONTEXT, self.foreign.store_task_context, session_id, context)

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        return await self._ask(
            CLEANUP_EXPIRED_SESSIONS, self.foreign.cleanup_expired_sessions, max_idle_hours
        )

    # ------------------------------------------------------------------ batches

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        async def create(item: Json) -> bool:
            await self.create_session(item["session_id"], item["user_id"], item.get("metadata"))
            return True

        return await self._each(BATCH_CREATE_SESSIONS, create, sessions)

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        return await self._each(BATCH_GET_SESSIONS, self.get_session, session_ids)

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        async def add(item: Json) -> bool:
            return await self.add_conversation_message(
                item["session_id"], item["role"], item["content"], item.get("metadata")
            )

        return await self._each(BATCH_ADD_CONVERSATION_MESSAGES, add, messages)

    async def _each(self, op: Operation, call: Callable[[S], Awaitable[T]], items: Sequence[S]) -> list[T]:
        """One after the other, as one operation: a scope that names a batch names it once."""
        _context, token = begin(op)
        done: list[T] = []
        try:
            for item in items:
                done.append(await call(item))  # noqa: PERF401  what is done decides the outcome of a failure
        except StorageError as error:
            if done and op.effect is Effect.WRITE:
                error.outcome = "unknown"
            error.operation = op.name
            raise
        else:
            return done
        finally:
            finish(token)

    # ------------------------------------------------------------------ the way of every call

    async def _ask(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context, token = begin(op)
        try:
            answer = await call(*args, **kwargs)
        except OSError as error:
            self._fail(error, op)
        finally:
            finish(token)
        context.attempts += 1
        context.served_by = self.name
        return answer

    def _fail(self, error: OSError, op: Operation | None) -> NoReturn:
        """Our error for what the standard library raises; how far a write got before it, nobody knows."""
        outcome: Outcome = "unknown" if op is not None and op.effect is Effect.WRITE else "not_applied"
        kind = StorageTimeoutError if isinstance(error, TimeoutError) else StorageConnectionError
        raise kind(
            f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
            outcome=outcome,
            operation=None if op is None else op.name,
            backend=self.name,
        ) from error

    def _refuse(self, op: Operation, **extensions: object) -> None:
        given = [f"{option}=" for option, value in extensions.items() if value is not None]
        if given:
            raise UnsupportedOperationError(
                f"{self.name} knows the specification's parameters only, not {', '.join(given)}",
                operation=op.name,
                backend=self.name,
            )

    def _with_writes(self, op: Operation) -> _WithWrites:
        if self._writes is None:
            raise UnsupportedOperationError(
                f"{type(self.foreign).__name__} has no put_writes and get_writes",
                operation=op.name,
                backend=self.name,
            )
        return self._writes
