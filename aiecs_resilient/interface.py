"""The contract: the specification's six interfaces, and what this library adds to them.

Names, orders and defaults are the specification's. What we add is concrete on the same classes, with a correct slow
default or :class:`UnsupportedOperationError`, so that any class with the sixteen abstract methods can stand in a chain.

Everywhere: unknown ids answer ``None``, ``False``, ``[]`` or ``0`` and never raise; a store that is down raises
:class:`StorageError` and is never answered as "not found". Ids are any Unicode text of 1 to 512 characters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self

from .errors import StorageError, UnsupportedOperationError
from .records import Applied, IdleKey, Mutation, RecordPage, RecordRef, Route, StoreState

Json = dict[str, Any]
"""A plain dict as it leaves the library; the shapes are in :mod:`aiecs_resilient.records`."""

OperationOutcome = Literal["applied", "not_applied"]


def _unsupported(owner: object, what: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(f"{type(owner).__name__} does not support {what}", operation=what)


class ISessionStorage(ABC):
    """Sessions: lifecycle, counters, metadata."""

    @abstractmethod
    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        """Start a session afresh, counters at zero, and return it as ``get_session`` will."""

    @abstractmethod
    async def get_session(self, session_id: str) -> Json | None:
        """The session, or None."""

    @abstractmethod
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
        """Change fields and count, in one atomic step. False if there is no such session.

        Args:
            updates: may set ``status``, ``user_id``, ``metadata`` and custom keys; never an id, a time or a counter.
            add_processing_time: seconds, not negative; kept to the microsecond.
            expected_version: ``position`` of the session as it was read; ConflictError if it changed since.

        On an ended session it still counts and sets other fields; with a ``status`` it changes nothing and answers False.
        """

    @abstractmethod
    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        """End it; it stays readable. True again when repeated, False if there is no such session."""

    async def delete_session(self, session_id: str) -> bool:
        """Remove the session with its messages and task contexts. False if there was nothing."""
        raise _unsupported(self, "delete_session")

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        """Sessions in a stable order, those after the id ``after``."""
        raise _unsupported(self, "list_sessions")

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        """Create many, each item with ``session_id``, ``user_id`` and optionally ``metadata``."""
        for session in sessions:
            await self.create_session(session["session_id"], session["user_id"], session.get("metadata"))
        return [True] * len(sessions)

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        """The sessions of these ids, in their order, None where there is none."""
        return [await self.get_session(session_id) for session_id in session_ids]


class IConversationStorage(ABC):
    """Conversations: messages in the order in which they were acknowledged."""

    @abstractmethod
    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        """Append a message; the session need not exist."""

    @abstractmethod
    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        """The newest ``limit`` messages, oldest first; 0 means all.

        Args:
            before: only messages with a lower ``position``: pages backwards.
            after: only messages with a higher ``position``: the oldest ``limit`` of them, so that it pages forwards.
        """

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        """Append many, each item with ``session_id``, ``role``, ``content`` and optionally ``metadata``."""
        return [
            await self.add_conversation_message(
                item["session_id"], item["role"], item["content"], item.get("metadata")
            )
            for item in messages
        ]


class ICheckpointStorage(ABC):
    """Checkpoints of workflow threads."""

    @abstractmethod
    async def store_checkpoint(
        self,
        thread_id: str,
        checkpoint_id: str,
        checkpoint_data: Json,
        metadata: Json | None = None,
        *,
        expected_version: int | None = None,
    ) -> bool:
        """Store it whole or not at all. The same id replaces it and makes it the latest."""

    @abstractmethod
    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        """That checkpoint, or the one stored last."""

    @abstractmethod
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        """Newest first; 0 gives none."""

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        """Remove all but the newest ``keep_last``, with their pending writes; the number removed."""
        raise _unsupported(self, "prune_checkpoints")

    async def delete_thread(self, thread_id: str) -> bool:
        """Remove a thread's checkpoints and pending writes. False if there was nothing."""
        raise _unsupported(self, "delete_thread")

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        """Ids of threads with checkpoints, in a stable order, those after ``after``."""
        raise _unsupported(self, "list_threads")


class ITaskContextStorage(ABC):
    """Task contexts: the newest version counts, older ones are kept for a while."""

    @abstractmethod
    async def get_task_context(self, session_id: str) -> Any | None:
        """The newest, or None."""

    @abstractmethod
    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        """Store a new version: JSON types, bytes, tuples, and (coming back as plain data) dataclasses, sets, datetimes."""

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        """Versions, newest first: ``version`` (its position), ``context``, ``created_at``."""
        raise _unsupported(self, "list_task_contexts")


class IStorageBackend(ISessionStorage, IConversationStorage, ICheckpointStorage, ITaskContextStorage):
    """Everything a store does for an application."""

    @abstractmethod
    async def initialize(self) -> bool:
        """Connect, create or migrate the schema under a lock. True only when the promises hold; raises otherwise."""

    @abstractmethod
    async def close(self) -> None:
        """Drain what was acknowledged and let go. Idempotent."""

    @abstractmethod
    async def health_check(self) -> Json:
        """At least ``status`` (healthy, degraded, unhealthy), ``storage_backend``, ``redis_connected``, ``issues`` []."""

    @abstractmethod
    async def get_metrics(self) -> Json:
        """At least ``total_sessions, active_sessions, total_messages, total_checkpoints, storage_backend,
        redis_connected, timestamp``; totals are the store's, not the process's."""

    @abstractmethod
    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        """Remove sessions without a write for so long, with all that belongs to their id, in bounded steps; how many."""

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        """Whether the write ``op_id`` on session or thread ``key`` took place: settles an ``unknown`` outcome."""
        raise _unsupported(self, "operation_outcome")

    # Replication: how dual_write speaks to its two stores. Applications do not call these.

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        """Apply each at most once, atomically with its record. A refusal is that item's result; a failing store raises."""
        raise _unsupported(self, "apply")

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        """Records with a stamp of at least ``since``, to be replayed on the peer; ``open_only``: those with an open mark."""
        raise _unsupported(self, "read_records")

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        """Keys with a session, messages or contexts and no write since stamp ``before``, or whose expiry has passed."""
        raise _unsupported(self, "read_idle")

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        """The peer definitely has these: close their marks if they still stand as named. How many were closed."""
        raise _unsupported(self, "close_marks")

    async def store_state(self) -> StoreState:
        """Routing, incarnation, durability and open marks."""
        raise _unsupported(self, "store_state")

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        """Install ``route`` if the store's epoch is still ``expected_epoch`` (compare-and-set, fencing every later write).
        Returns the route the store holds afterwards."""
        raise _unsupported(self, "move_route")

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class ICheckpointerBackend(ABC):
    """Checkpoints as workflow frameworks write them: the same store as ICheckpointStorage, plus pending writes."""

    @abstractmethod
    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        """As ``store_checkpoint``."""

    @abstractmethod
    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        """As ``ICheckpointStorage.get_checkpoint``."""

    @abstractmethod
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        """As ``ICheckpointStorage.list_checkpoints``."""

    @abstractmethod
    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        """Store a task's writes; the same task again replaces them. The checkpoint need not exist yet."""

    @abstractmethod
    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        """All tasks' writes in the order in which they were put, tuples as tuples."""


class Backend(IStorageBackend, ICheckpointerBackend):
    """One link of a chain: all our stores and layers are one, and so is a foreign store once it is adapted.

    Attributes:
        name: how it is called in errors, health and routing.
        honours_op_id: a write repeated with the same identity has one effect. Only then may an unknown outcome be retried.
    """

    name: str
    honours_op_id: bool = True


__all__ = [
    "Backend",
    "ICheckpointStorage",
    "ICheckpointerBackend",
    "IConversationStorage",
    "ISessionStorage",
    "IStorageBackend",
    "ITaskContextStorage",
    "Json",
    "OperationOutcome",
]
