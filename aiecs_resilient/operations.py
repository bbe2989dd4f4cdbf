"""What can be asked of a store, as data; and the identity that one request carries through the whole chain.

Every write is an operation with an identity (``op_id``). Whoever finds none mints one; retries, both legs of a dual
write and replay after an outage all carry the same, and every backend applies it at most once. Callers may name it::

    async with operation(op_id="order-7/ack") as op:       # any string of 1 to 512 characters
        await storage.add_conversation_message("s-1", "assistant", "done")
    op.position, op.served_by, op.degraded                 # what the chain did

    async with deadline(2.0):                              # one total time for a block of calls, in seconds
        ...
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from .clock import monotonic, wall_us
from .codec import check_id
from .errors import InvalidValueError, OperationScopeError


class Effect(Enum):
    """What an operation does to the store; retries and caches decide by this."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table: ``name`` is the method's name, ``key`` the parameter that says whose data it touches."""

    name: str
    effect: Effect
    key: Literal["session_id", "thread_id"] | None = None


_R, _W = Effect.READ, Effect.WRITE

CREATE_SESSION = Operation("create_session", _W, "session_id")
GET_SESSION = Operation("get_session", _R, "session_id")
UPDATE_SESSION = Operation("update_session", _W, "session_id")
END_SESSION = Operation("end_session", _W, "session_id")
DELETE_SESSION = Operation("delete_session", _W, "session_id")
LIST_SESSIONS = Operation("list_sessions", _R)
BATCH_CREATE_SESSIONS = Operation("batch_create_sessions", _W)
BATCH_GET_SESSIONS = Operation("batch_get_sessions", _R)

ADD_CONVERSATION_MESSAGE = Operation("add_conversation_message", _W, "session_id")
GET_CONVERSATION_HISTORY = Operation("get_conversation_history", _R, "session_id")
BATCH_ADD_CONVERSATION_MESSAGES = Operation("batch_add_conversation_messages", _W)

STORE_CHECKPOINT = Operation("store_checkpoint", _W, "thread_id")
PUT_CHECKPOINT = Operation("put_checkpoint", _W, "thread_id")
GET_CHECKPOINT = Operation("get_checkpoint", _R, "thread_id")
LIST_CHECKPOINTS = Operation("list_checkpoints", _R, "thread_id")
PRUNE_CHECKPOINTS = Operation("prune_checkpoints", _W, "thread_id")
PUT_WRITES = Operation("put_writes", _W, "thread_id")
GET_WRITES = Operation("get_writes", _R, "thread_id")
DELETE_THREAD = Operation("delete_thread", _W, "thread_id")
LIST_THREADS = Operation("list_threads", _R)

STORE_TASK_CONTEXT = Operation("store_task_context", _W, "session_id")
GET_TASK_CONTEXT = Operation("get_task_context", _R, "session_id")
LIST_TASK_CONTEXTS = Operation("list_task_contexts", _R, "session_id")

CLEANUP_EXPIRED_SESSIONS = Operation("cleanup_expired_sessions", _W)
OPERATION_OUTCOME = Operation("operation_outcome", _R)

# Replication: how dual_write speaks to its legs. Writes here are idempotent by the identities they carry.
APPLY = Operation("apply", _W)
READ_RECORDS = Operation("read_records", _R)
CLOSE_MARKS = Operation("close_marks", _W)
READ_IDLE = Operation("read_idle", _R)
STORE_STATE = Operation("store_state", _R)
MOVE_ROUTE = Operation("move_route", _W)

OPERATIONS: dict[str, Operation] = {
    value.name: value for value in list(globals().values()) if isinstance(value, Operation)
}
"""Every data operation by name. Lifecycle (initialize, close, health_check, get_metrics) is not here: no policy may block it."""

LIFECYCLE = ("initialize", "close", "health_check", "get_metrics")


class OperationContext:
    """The identity of one operation and, afterwards, the account of what the chain did with it.

    Attributes:
        deadline: absolute time on :func:`aiecs_resilient.clock.monotonic`, or None.
        served_by: name of the store that answered.
        attempts: how often stores were asked, all legs together.
        degraded: answered while one of two stores was unavailable or behind.
        stale: the answer may be older than an acknowledged write.
        durability: ``None`` until a store said; under ``dual_write`` ``"one"`` or ``"both"`` stores hold the write.
        clock: the last stamp of the key in the store that answered: how far along its copy is. None if it was not asked.
        max_session_ttl, max_checkpoint_ttl: seconds after this write that what it touches may live, None for any.
        position: stamp (integer microseconds, hybrid clock) of what was written or read: a message's position, the
            version for ``expected_version=``.
    """

    __slots__ = (
        "_occurred_at",
        "_op_id",
        "attempts",
        "claimed",
        "clock",
        "deadline",
        "degraded",
        "durability",
        "max_checkpoint_ttl",
        "max_session_ttl",
        "position",
        "served_by",
        "stale",
    )

    def __init__(
        self, op_id: str | None = None, occurred_at: int | None = None, deadline: float | None = None
    ) -> None:
        self._op_id = op_id
        self._occurred_at = occurred_at
        self.deadline = deadline
        self.claimed: str | None = None
        self.served_by: str | None = None
        self.attempts = 0
        self.degraded = False
        self.stale = False
        self.durability: str | None = None
        self.position: int | None = None
        self.clock: int | None = None
        self.max_session_ttl: float | None = None
        self.max_checkpoint_ttl: float | None = None

    @property
    def op_id(self) -> str:
        """The identity; minted on first use, so that reads never pay for one."""
        if self._op_id is None:
            self._op_id = new_op_id()
        return self._op_id

    @property
    def occurred_at(self) -> int:
        """When it happened, UTC microseconds: shown in records, never compared."""
        if self._occurred_at is None:
            self._occurred_at = wall_us()
        return self._occurred_at

    def remaining(self) -> float | None:
        """Seconds until the deadline (negative once it is past), or None where there is none."""
        return None if self.deadline is None else self.deadline - monotonic()

    def twin(self) -> OperationContext:
        """The same operation for a second call beside the first: its identity and deadline, an account of its own."""
        twin = OperationContext(self._op_id, self._occurred_at, self.deadline)
        twin.max_session_ttl, twin.max_checkpoint_ttl = self.max_session_ttl, self.max_checkpoint_ttl
        return twin

    def adopt(self, twin: OperationContext) -> None:
        """Its account is the one that counts: that call gave the answer. Attempts were made by both."""
        self.served_by, self.position, self.clock = twin.served_by, twin.position, twin.clock
        self.durability, self.attempts = twin.durability, self.attempts + twin.attempts
        self.degraded, self.stale = self.degraded or twin.degraded, self.stale or twin.stale

    def __repr__(self) -> str:
        state = f" served_by={self.served_by}" if self.served_by else ""
        return f"<OperationContext {self._op_id or 'unminted'}{state}>"


_scope: ContextVar[OperationContext | None] = ContextVar("aiecs_operation_scope", default=None)
_active: ContextVar[OperationContext | None] = ContextVar("aiecs_operation_active", default=None)
_deadline: ContextVar[float | None] = ContextVar("aiecs_deadline", default=None)


def new_op_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so that ids sort by time."""
    raw = bytearray((wall_us() // 1_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def begin(op: Operation) -> tuple[OperationContext, Token[OperationContext | None] | None]:
    """Enter an operation: the one in flight if there is one, else the caller's scope, else a new one.

    The outermost component that sees a call gets a token and must give it to :func:`finish`; everyone inside gets None.
    """
    active = _active.get()
    if active is not None:
        return active, None
    context = _scope.get()
    if context is None:
        context = OperationContext()
    elif op.effect is Effect.WRITE:
        if context.claimed is not None:
            raise OperationScopeError(
                f"this operation() scope already names a {context.claimed}; a second write needs a scope of its own "
                "(deadline() is what wraps a block of calls)",
                operation=op.name,
            )
        context.claimed = op.name
    context.deadline = _deadline.get()  # a scope may name several reads: each has its own time
    return context, _active.set(context)


def enter(context: OperationContext) -> Token[OperationContext | None]:
    """Make this the operation in flight here, as for a twin in a task of its own; the token is for :func:`finish`."""
    return _active.set(context)


def finish(token: Token[OperationContext | None] | None) -> None:
    """Leave what :func:`begin` entered."""
    if token is not None:
        _active.reset(token)


def active() -> OperationContext | None:
    """The operation in flight here, if any."""
    return _active.get()


def is_observed() -> bool:
    """Whether the caller has named this operation, and may read afterwards what the chain did for it."""
    return _scope.get() is not None


@asynccontextmanager
async def operation(
    op_id: str | None = None, *, occurred_at: int | None = None
) -> AsyncGenerator[OperationContext]:
    """Name exactly one write, and read afterwards what became of it.

    Args:
        op_id: idempotency key, any string of 1 to 512 characters; the same key again has no second effect. Minted if None.
        occurred_at: UTC microseconds, now if None.
    """
    if op_id is not None:
        check_id(op_id, "op_id")
    context = OperationContext(op_id, occurred_at)
    token = _scope.set(context)
    try:
        yield context
    finally:
        _scope.reset(token)


@asynccontextmanager
async def deadline(seconds: float) -> AsyncGenerator[None]:
    """Give all calls in the block one total time, in seconds. An enclosing, earlier deadline stays in force."""
    if not seconds > 0:
        raise InvalidValueError(f"a deadline must be a positive number of seconds, not {seconds!r}")
    limit = monotonic() + seconds
    outer = _deadline.get()
    token = _deadline.set(limit if outer is None else min(limit, outer))
    try:
        yield
    finally:
        _deadline.reset(token)
