"""Two stores, one truth: no acknowledged write lost, none doubled, the same order on both sides.

A write goes to the leader, which stamps it and keeps, in the same atomic step, a mark "the peer lacks this"; then its
effect is replayed on the follower, and the mark is closed lazily. A crash anywhere leaves a mark, never a loss. When the
leader is unavailable the other store takes over for all processes, by epoch; when it has returned and caught up, the
primary leads again. The rules (R1 to R12) and what is honestly promised are in ``docs/dual-write.md``.

Place: below cache and batching (one coherent cache over both stores), above each leg's own ``retry``,
``circuit_breaker`` and ``timeout`` (their state is about one store)::

    right   deadline -> dual_write{primary: retry -> circuit_breaker -> timeout -> redis, fallback: … -> postgresql}
    wrong   retry -> dual_write{…}     a takeover would be repeated instead of the attempt that failed

Events: ``failover.completed``, ``failback.started``, ``failback.completed``, ``follower.missed``, ``reconcile.*``.
Cancellation: outcome ``unknown``; if the leader has the write, its mark finishes the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from cachetools import LRUCache

from ...backends._base import RecordingBackend
from ...codec import check_id
from ...errors import (
    IncompleteStoreError,
    InvalidValueError,
    StorageConnectionError,
    StorageError,
    UnsupportedOperationError,
)
from ...interface import Backend, Json, OperationOutcome
from ...operations import (
    APPLY,
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
    READ_IDLE,
    Operation,
    begin,
    finish,
)
from ...records import Applied, Durability, IdleKey, Mutation
from ...units import Count, Seconds, SecondsOrZero
from ._health import health_report, metrics_report
from ._legs import Leg
from ._policy import Policy
from ._reads import Reader
from ._replication import Settler
from ._routing import Router
from ._writes import Writer

T = TypeVar("T")


class DualWrite(RecordingBackend):
    """A primary and a fallback store as one backend.

    Args:
        primary: leads whenever it can.
        fallback: leads while the primary cannot. Both must be our own backends (or chains over them): a store that knows
            no ``op_id`` cannot replay safely.
        poll: seconds between two looks at both stores, and the bound within which another process's takeover is seen.
        dwell: seconds that the fallback leads at least before the primary leads again, against flapping.
        lag: seconds after which a record that the follower lacks counts as missed, and health says so.
        patience: seconds of silence after which running into the caller's own deadline counts against the leader.
        settle_after: seconds that closed marks are collected before they are written.
        loss_window: seconds of its last writes that a restarted store may have lost; they are offered to it anew.
        page: records per step of reconciliation.
        tracked_keys: sessions and threads whose last seen stamp this process remembers, for monotonic reads.
        durable_at_least: what one store must survive for its acknowledgement alone to count:
            ``volatile`` nothing, ``process`` a killed server, ``host`` a power loss, ``replicated`` a lost machine.
        on_incomplete: what a read does when the only store that can answer may lack operations and the answer would be
            "not found" or older than one seen before: ``raise`` IncompleteStoreError, or answer and ``flag`` it as stale.
    """

    layer_name: ClassVar[str] = "dual_write"
    branches: ClassVar[tuple[str, str]] = ("primary", "fallback")
    kind = "dual_write"

    def __init__(
        self,
        primary: Backend,
        fallback: Backend,
        *,
        poll: Seconds = 1.0,
        dwell: SecondsOrZero = 5.0,
        lag: Seconds = 2.0,
        patience: Seconds = 0.5,
        settle_after: SecondsOrZero = 0.05,
        loss_window: SecondsOrZero = 5.0,
        page: Count = 200,
        tracked_keys: Count = 100_000,
        durable_at_least: Literal["volatile", "process", "host", "replicated"] = "process",
        on_incomplete: Literal["raise", "flag"] = "raise",
    ) -> None:
        super().__init__(name=f"{primary.name}+{fallback.name}")
        if primary.name == fallback.name:
            raise InvalidValueError(
                f"both stores are called {primary.name!r}; routing is kept in them by name, so give them different ones"
            )
        for leg in (primary, fallback):
            if not leg.honours_op_id:
                raise UnsupportedOperationError(
                    f"{leg.name!r} cannot be a leg of dual_write: it knows no op_id, so a replay would be a second effect"
                )
        self._router = Router(
            Leg("primary", primary),
            Leg("fallback", fallback),
            poll=poll,
            dwell=dwell,
            lag=lag,
            loss_window=loss_window,
            page=page,
        )
        self._settler = Settler(interval=settle_after)
        policy = Policy(
            patience=patience,
            floor=Durability[durable_at_least.upper()],
            flag_incomplete=on_incomplete == "flag",
            seen=LRUCache(tracked_keys),
        )
        self._writer = Writer(self._router, self._settler, policy)
        self._reader = Reader(self._router, policy)

    @property
    def router(self) -> Router:
        """Who leads, and the state of both legs; for health, tools and tests."""
        return self._router

    def __repr__(self) -> str:
        router = self._router
        state = f"epoch {router.route.epoch}, {router.leader} leads{', degraded' if router.degraded else ''}"
        return f"<DualWrite {state} over {router.primary.backend!r} and {router.fallback.backend!r}>"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        if self._open:
            return True
        legs = self._router.legs
        results = await asyncio.gather(*(leg.backend.initialize() for leg in legs), return_exceptions=True)
        for leg, result in zip(legs, results, strict=True):
            if isinstance(
                result, StorageConnectionError
            ):  # one may be away: its schema is made when it is back
                leg.failed(result)
            elif isinstance(result, BaseException):
                raise result
        await self._router.start()
        self._settler.start()
        self._open = True
        return True

    async def close(self) -> None:
        if self._open:
            self._open = False
            await self._settler.stop()
            await self._router.stop()
        await asyncio.gather(*(leg.backend.close() for leg in self._router.legs))

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._require_open()
        context, token = begin(APPLY)
        try:
            return await self._writer.apply(context, mutations)
        finally:
            finish(token)

    # ------------------------------------------------------------------ reads

    async def _read(
        self,
        operation: Operation,
        key: str | None,
        call: Callable[[Backend], Awaitable[T]],
        *,
        absent: Callable[[T], bool],
    ) -> T:
        self._require_open()
        return await self._reader.read(operation, key, call, absent=absent)

    async def get_session(self, session_id: str) -> Json | None:
        check_id(session_id, "session_id")
        return await self._read(
            GET_SESSION, session_id, lambda store: store.get_session(session_id), absent=_nothing
        )

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        return await self._read(
            BATCH_GET_SESSIONS,
            None,
            lambda store: store.batch_get_sessions(session_ids),
            absent=lambda found: None in found,
        )

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        return await self._read(
            LIST_SESSIONS,
            None,
            lambda store: store.list_sessions(status=status, user_id=user_id, after=after, limit=limit),
            absent=lambda found: len(found) < limit,
        )

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        check_id(session_id, "session_id")
        return await self._read(
            GET_CONVERSATION_HISTORY,
            session_id,
            lambda store: store.get_conversation_history(session_id, limit, before=before, after=after),
            absent=_nothing,
        )

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        check_id(thread_id, "thread_id")
        return await self._read(
            GET_CHECKPOINT,
            thread_id,
            lambda store: store.get_checkpoint(thread_id, checkpoint_id),
            absent=_nothing,
        )

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        check_id(thread_id, "thread_id")
        return await self._read(
            LIST_CHECKPOINTS,
            thread_id,
            lambda store: store.list_checkpoints(thread_id, limit),
            absent=_nothing,
        )

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        return await self._read(
            LIST_THREADS,
            None,
            lambda store: store.list_threads(after=after, limit=limit),
            absent=lambda found: len(found) < limit,
        )

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        check_id(thread_id, "thread_id")
        return await self._read(
            GET_WRITES, thread_id, lambda store: store.get_writes(thread_id, checkpoint_id), absent=_nothing
        )

    async def get_task_context(self, session_id: str) -> Any | None:
        check_id(session_id, "session_id")
        return await self._read(
            GET_TASK_CONTEXT, session_id, lambda store: store.get_task_context(session_id), absent=_nothing
        )

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        check_id(session_id, "session_id")
        return await self._read(
            LIST_TASK_CONTEXTS,
            session_id,
            lambda store: store.list_task_contexts(session_id, limit),
            absent=_nothing,
        )

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        return await self._read(
            READ_IDLE, None, lambda store: store.read_idle(before, limit), absent=lambda _found: False
        )

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        """``applied`` if either store knows it; ``not_applied`` only when both say so."""
        self._require_open()
        context, token = begin(OPERATION_OUTCOME)
        try:
            answers = await asyncio.gather(
                *(leg.backend.operation_outcome(key, op_id) for leg in self._router.legs),
                return_exceptions=True,
            )
        finally:
            finish(token)
        if "applied" in answers:
            return "applied"
        for leg, answer in zip(self._router.legs, answers, strict=True):
            if isinstance(answer, StorageError):
                raise IncompleteStoreError(
                    f"{leg} cannot say whether {op_id!r} was applied: {answer}", backend=leg.name
                ) from answer
            if isinstance(answer, BaseException):
                raise answer
        context.degraded = context.degraded or self._router.degraded
        return "not_applied"

    # ------------------------------------------------------------------ health and metrics

    async def health_check(self) -> Json:
        return await health_report(self._router, is_open=self._open)

    async def get_metrics(self) -> Json:
        self._require_open()
        return await metrics_report(self._router)


def _nothing(answer: object) -> bool:
    return answer is None or answer == []
