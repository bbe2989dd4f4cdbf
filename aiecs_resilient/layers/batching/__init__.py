"""batching: what many callers write at the same time shares one round trip and one commit, and nobody is told too early."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from ...backends._base import RecordingBackend
from ...codec import MAX_VALUE_BYTES, check_id
from ...errors import StorageError, UnsupportedOperationError
from ...interface import Backend, IStorageBackend, Json, OperationOutcome
from ...operations import APPLY, BATCH_GET_SESSIONS, GET_SESSION, begin, finish, is_observed
from ...records import Applied, Mutation
from ...units import Bytes, Count, Seconds, SecondsOrZero
from .._base import Layer, report_part
from .._options import checked
from ._coalesce import Coalescer, ReadCounts
from ._group_commit import CommitCounts, GroupCommit
from ._queue import QueueLimits


@dataclass(slots=True)
class BatchingCounts:
    """What survives a reload: how well writes and reads have been shared."""

    writes: CommitCounts = field(default_factory=CommitCounts)
    reads: ReadCounts = field(default_factory=ReadCounts)


class Batching(RecordingBackend, Layer):
    """Group commit: writes that come while others are under way are sent together.

    A caller's ``await`` returns when its own write is durable, with its own answer or its own error. A write that finds
    nobody before it is sent at once, as if this layer were not there; what comes meanwhile is the next batch, sent when that
    one has ended. There is no timer, so batches are as large as the load makes them and a lone caller waits for nobody.

    - Each write keeps its identity: a batch may be repeated by a ``retry`` below, and nothing happens twice.
    - Writes of one session keep their order, and sessions take turns.
    - A batch that fails for a reason that may lie in one of its writes is halved until that one is found; the others succeed.
    - The queue is bounded. Who finds no room waits outside for ``patience``, then gets OverloadedError: nothing was written.
    - Reads go to the store, which has everything that was acknowledged. ``get_session`` calls of the same turn of the loop
      become one ``batch_get_sessions``, except inside an ``operation()``, whose account is about one session.

    Place: inside ``cache``, outside whatever changes values and outside ``dual_write``, so that both stores get the same
    writes in the same order::

        deadline → cache → batching → dual_write{retry → circuit_breaker → timeout → redis, …}    right
        dual_write{batching → redis, …}      wrong: the two stores would be given their writes differently
        retry → batching → redis             wrong: each caller would repeat its part, where one repeat of the batch does
        batching → a store without op_id     refused: it cannot take writes as records with identities

    Errors: OverloadedError (no room; not applied), DeadlineExceededError (not applied while it waited, unknown once it was
    sent), BackendClosedError. Events: ``batch.split``, ``queue.refused``, ``deadline.expired``. Metrics: part ``batching``.
    Cancellation: what was not sent is not written; a batch under way goes on, and the outcome of the cancelled write is
    unknown until ``operation_outcome`` tells, which waits for that batch.

    Args:
        max_items: writes in one batch; also reads in one request.
        max_bytes: of one batch; a write that is larger goes alone.
        lanes: batches under way at once at the most; the second is sent when it is full.
        linger: seconds that a batch which is not full may wait for more, if it formed behind another one.
        max_pending: writes that may wait for their batch.
        max_pending_bytes: that they may take together.
        patience: seconds that a write waits for room among them.
        coalesce_reads: join ``get_session`` calls of the same turn; over SQLite alone, which reads in place, it saves nothing.
        close_timeout: seconds that ``close`` waits for what it has accepted; what is left then is refused.
        state: counts of the chain that this one replaces.
    """

    layer_name: ClassVar[str] = "batching"

    def __init__(
        self,
        inner: Backend,
        *,
        max_items: Count = 128,
        max_bytes: Bytes = 1024 * 1024,
        lanes: Count = 2,
        linger: SecondsOrZero = 0.0,
        max_pending: Count = 10_000,
        max_pending_bytes: Bytes = 64 * 1024 * 1024,
        patience: SecondsOrZero = 1.0,
        coalesce_reads: bool = True,
        close_timeout: Seconds = 10.0,
        state: BatchingCounts | None = None,
    ) -> None:
        store = _end_of(inner)
        if not inner.honours_op_id or type(store).apply is IStorageBackend.apply:
            raise UnsupportedOperationError(
                f"batching cannot stand over {inner.name!r}: it takes no writes as records with identities, so a batch could "
                "neither be told apart nor repeated; use one of our stores, or leave batching out"
            )
        RecordingBackend.__init__(
            self,
            name=inner.name,
            max_value_bytes=store.max_value_bytes if isinstance(store, RecordingBackend) else MAX_VALUE_BYTES,
        )
        Layer.__init__(self, inner)
        limits = QueueLimits(
            max_items=checked(self.layer_name, "max_items", max_items, Count),
            max_bytes=checked(self.layer_name, "max_bytes", max_bytes, Bytes),
            max_pending=checked(self.layer_name, "max_pending", max_pending, Count),
            max_pending_bytes=checked(self.layer_name, "max_pending_bytes", max_pending_bytes, Bytes),
            patience=checked(self.layer_name, "patience", patience, SecondsOrZero),
        )
        self.state = BatchingCounts() if state is None else state
        self._close_timeout = checked(self.layer_name, "close_timeout", close_timeout, Seconds)
        self._commits = GroupCommit(
            inner.apply,
            name=inner.name,
            limits=limits,
            lanes=checked(self.layer_name, "lanes", lanes, Count),
            linger=checked(self.layer_name, "linger", linger, SecondsOrZero),
            counts=self.state.writes,
        )
        self._sessions = Coalescer[Json | None](
            inner.get_session,
            inner.batch_get_sessions,
            operation=BATCH_GET_SESSIONS,
            most=max_items if coalesce_reads else 1,
            counts=self.state.reads,
        )
        self._coalesce_reads = coalesce_reads
        self._lifecycle = asyncio.Lock()

    def describe(self) -> str:
        counts = self.state.writes
        return f"{counts.batched} writes in {counts.batches} batches, {counts.alone} alone, {self._commits.queue.items} waiting"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        async with self._lifecycle:
            self._open = await self.inner.initialize()
            return self._open

    async def close(self) -> None:
        self._open = False  # nothing new from here on; what was accepted is still written
        async with self._lifecycle:
            await self._commits.drain(self._close_timeout)
            await self._sessions.drain()
            await self.inner.close()

    async def health_check(self) -> Json:
        queue = self._commits.queue
        facts = {"waiting": queue.items, "waiting_bytes": queue.bytes, "outside": queue.outside}
        return report_part(await self.inner.health_check(), self.layer_name, facts)

    async def get_metrics(self) -> Json:
        facts = {
            **asdict(self.state.writes),
            "waiting": self._commits.queue.items,
            "reads": asdict(self.state.reads),
        }
        return report_part(await self.inner.get_metrics(), self.layer_name, facts)

    # ------------------------------------------------------------------ operations

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._require_open()
        if not mutations:
            return await self.inner.apply(mutations)
        context, token = begin(APPLY)
        try:
            return await self._commits.write(context, mutations)
        finally:
            finish(token)

    async def get_session(self, session_id: str) -> Json | None:
        if not self._coalesce_reads or is_observed():
            return await self.inner.get_session(session_id)
        check_id(session_id, "session_id")
        self._require_open()
        context, token = begin(GET_SESSION)
        try:
            return await self._sessions.read(session_id, context)
        finally:
            finish(token)

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        check_id(key, "key")
        await self._commits.queue.settled(key)  # what is under way for it may be the one that is asked for
        return await self.inner.operation_outcome(key, op_id)


def _end_of(backend: Backend) -> Backend:
    """The store, or where the chain branches."""
    while isinstance(backend, Layer):
        backend = backend.inner
    return backend
