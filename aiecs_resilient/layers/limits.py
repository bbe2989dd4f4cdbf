"""limits: how large a value may be, how many go in one batch, and how long what is written may live."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..clock import wall_us
from ..codec import encode
from ..errors import InvalidValueError, StorageError
from ..interface import Backend, Json
from ..operations import (
    ADD_CONVERSATION_MESSAGE,
    APPLY,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    CREATE_SESSION,
    END_SESSION,
    PRUNE_CHECKPOINTS,
    PUT_CHECKPOINT,
    PUT_WRITES,
    STORE_CHECKPOINT,
    STORE_TASK_CONTEXT,
    UPDATE_SESSION,
    Operation,
    begin,
    finish,
)
from ..records import THREAD_KINDS, Applied, Mutation
from ..units import Bytes, Count, Seconds
from ._base import Layer, report_part
from ._options import checked

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Refusals:
    """What was refused, by the limit it went over; outlives a reload."""

    by_limit: dict[str, int] = field(default_factory=dict[str, int])


class Limits(Layer):
    """Refuses what is too large before anything is sent, and gives what is written a longest life.

    A value is measured as it is stored: its MessagePack form in bytes. Each part of a write is measured by itself: metadata,
    the data of a checkpoint, the writes of a task, a task context, a field of a session; the content of a message in UTF-8.

    With ``max_session_ttl`` (``max_checkpoint_ttl``) a session with its messages and contexts (a thread) counts as gone so
    long after its last write. A store's own time to live may be shorter. Every write renews it, so a busy one lives on.

    Reads pass, and cost nothing.

    Place: outside whatever changes values, and outside ``batching``, where writes become records::

        deadline → namespace → limits → cache → batching → compression → dual_write{…}      right
        compression → limits → redis      wrong: it measures what is left after compression
        batching → limits → redis         wrong: a record that was accepted is refused, and its batch with it
        dual_write{limits → …, …}         wrong: what one store takes the other refuses

    Errors: InvalidValueError, not applied, with what it is, how large and how large it may be.
    Events: ``limit.exceeded`` with the reason. Metrics and health: part ``limits``. Cancellation passes untouched.

    Args:
        max_value: bytes of one value.
        max_content: bytes of a message's content.
        max_items: items in one batch, and writes of one task.
        max_session_ttl: seconds after its last write that a session lives at most; for ever if not given.
        max_checkpoint_ttl: the same for a thread's checkpoints and pending writes, in seconds.
        state: what was refused; outlives a reload.
    """

    layer_name: ClassVar[str] = "limits"

    def __init__(
        self,
        inner: Backend,
        *,
        max_value: Bytes = 4 * 1024 * 1024,
        max_content: Bytes = 1024 * 1024,
        max_items: Count = 1_000,
        max_session_ttl: Seconds | None = None,
        max_checkpoint_ttl: Seconds | None = None,
        state: Refusals | None = None,
    ) -> None:
        super().__init__(inner)
        self._max_value = checked(self.layer_name, "max_value", max_value, Bytes)
        self._max_content = checked(self.layer_name, "max_content", max_content, Bytes)
        self._max_items = checked(self.layer_name, "max_items", max_items, Count)
        for name, ttl in (("max_session_ttl", max_session_ttl), ("max_checkpoint_ttl", max_checkpoint_ttl)):
            if ttl is not None:
                checked(self.layer_name, name, ttl, Seconds)
        self._session_ttl, self._checkpoint_ttl = max_session_ttl, max_checkpoint_ttl
        self.state = Refusals() if state is None else state

    def describe(self) -> str:
        return f"{self._max_value:,} bytes a value, {sum(self.state.by_limit.values())} refused"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        return {"refused": dict(self.state.by_limit)}

    # ------------------------------------------------------------------ measuring

    def _refuse(self, op: Operation, limit: str, message: str) -> InvalidValueError:
        self.state.by_limit[limit] = self.state.by_limit.get(limit, 0) + 1
        telemetry.event(telemetry.LIMIT_EXCEEDED, backend=self.name, operation=op.name, reason=limit)
        return InvalidValueError(
            f"{message}: raise limits.{limit}, or store it in parts", operation=op.name, attempts=0
        )

    def _size(self, op: Operation, size: int, what: str) -> None:
        if size > self._max_value:
            raise self._refuse(
                op, "max_value", f"{what} takes {size:,} bytes, the limit is {self._max_value:,}"
            )

    def _value(self, op: Operation, value: object, what: str) -> None:
        if value is not None:
            self._size(op, len(encode(value, what)), what)

    def _text(self, op: Operation, content: object, what: str) -> None:
        if not isinstance(content, str) or len(content) * 4 <= self._max_content:
            return  # what is no text at all the store refuses
        size = len(content.encode(errors="surrogatepass"))
        if size > self._max_content:
            raise self._refuse(
                op, "max_content", f"{what} takes {size:,} bytes, the limit is {self._max_content:,}"
            )

    def _count(self, op: Operation, items: Sequence[object], what: str) -> None:
        if len(items) > self._max_items:
            raise self._refuse(
                op, "max_items", f"{what} has {len(items):,} items, the limit is {self._max_items:,}"
            )

    async def _mortal(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The call, under which what is written gets its longest life."""
        if self._session_ttl is None and self._checkpoint_ttl is None:
            return await call(*args, **kwargs)
        context, token = begin(op)
        outer = context.max_session_ttl, context.max_checkpoint_ttl
        context.max_session_ttl = _least(outer[0], self._session_ttl)
        context.max_checkpoint_ttl = _least(outer[1], self._checkpoint_ttl)
        try:
            return await call(*args, **kwargs)
        finally:
            context.max_session_ttl, context.max_checkpoint_ttl = outer
            finish(token)

    # ------------------------------------------------------------------ writes

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        self._value(CREATE_SESSION, metadata, "metadata")
        return await self._mortal(CREATE_SESSION, self.inner.create_session, session_id, user_id, metadata)

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
        for name, value in (updates or {}).items():
            self._value(UPDATE_SESSION, value, f"updates[{name!r}]")
        return await self._mortal(
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
        return await self._mortal(END_SESSION, self.inner.end_session, session_id, status)

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        self._count(BATCH_CREATE_SESSIONS, sessions, "the batch")
        for n, item in enumerate(sessions):
            self._value(BATCH_CREATE_SESSIONS, item.get("metadata"), f"sessions[{n}].metadata")
        return await self._mortal(BATCH_CREATE_SESSIONS, self.inner.batch_create_sessions, sessions)

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        self._text(ADD_CONVERSATION_MESSAGE, content, "content")
        self._value(ADD_CONVERSATION_MESSAGE, metadata, "metadata")
        return await self._mortal(
            ADD_CONVERSATION_MESSAGE,
            self.inner.add_conversation_message,
            session_id,
            role,
            content,
            metadata,
        )

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        op = BATCH_ADD_CONVERSATION_MESSAGES
        self._count(op, messages, "the batch")
        for n, item in enumerate(messages):
            self._text(op, item.get("content"), f"messages[{n}].content")
            self._value(op, item.get("metadata"), f"messages[{n}].metadata")
        return await self._mortal(op, self.inner.batch_add_conversation_messages, messages)

    async def store_checkpoint(
        self,
        thread_id: str,
        checkpoint_id: str,
        checkpoint_data: Json,
        metadata: Json | None = None,
        *,
        expected_version: int | None = None,
    ) -> bool:
        self._value(STORE_CHECKPOINT, checkpoint_data, "checkpoint_data")
        self._value(STORE_CHECKPOINT, metadata, "metadata")
        return await self._mortal(
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
        self._value(PUT_CHECKPOINT, checkpoint_data, "checkpoint_data")
        self._value(PUT_CHECKPOINT, metadata, "metadata")
        return await self._mortal(
            PUT_CHECKPOINT, self.inner.put_checkpoint, thread_id, checkpoint_id, checkpoint_data, metadata
        )

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        return await self._mortal(PRUNE_CHECKPOINTS, self.inner.prune_checkpoints, thread_id, keep_last)

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        self._count(PUT_WRITES, writes_data, "writes_data")
        self._value(PUT_WRITES, list(writes_data), "writes_data")
        return await self._mortal(
            PUT_WRITES, self.inner.put_writes, thread_id, checkpoint_id, task_id, writes_data
        )

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        self._value(STORE_TASK_CONTEXT, context, "context")
        return await self._mortal(
            STORE_TASK_CONTEXT,
            self.inner.store_task_context,
            session_id,
            context,
            expected_version=expected_version,
        )

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        """Records that a layer above has made; what a peer has accepted is not judged again."""
        return await self.inner.apply(
            [mutation if mutation.replay else self._limited(mutation) for mutation in mutations]
        )

    def _limited(self, mutation: Mutation) -> Mutation:
        for name, value in mutation.body.items():
            if isinstance(value, bytes):
                self._size(APPLY, len(value), f"{mutation.kind} {name}")
            elif name == "content":
                self._text(APPLY, value, "content")
        for name, value in mutation.body.get("fields", {}).items():
            self._size(APPLY, len(value), f"updates[{name!r}]")
        ttl = self._checkpoint_ttl if mutation.kind in THREAD_KINDS else self._session_ttl
        if ttl is None:
            return mutation
        latest = wall_us() + int(ttl * 1_000_000)
        expires_at = min(latest, mutation.expires_at) if mutation.expires_at else latest
        return replace(mutation, expires_at=expires_at)


def _least(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)
