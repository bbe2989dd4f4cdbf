"""cache: what was read is not asked for again, and what was written is never answered from before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, Literal

from ...clock import monotonic
from ...codec import decode, encode
from ...errors import InvalidValueError, StorageError
from ...interface import Backend, Json
from ...operations import (
    ADD_CONVERSATION_MESSAGE,
    APPLY,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    BATCH_GET_SESSIONS,
    CLEANUP_EXPIRED_SESSIONS,
    CREATE_SESSION,
    DELETE_SESSION,
    DELETE_THREAD,
    END_SESSION,
    GET_CHECKPOINT,
    GET_CONVERSATION_HISTORY,
    GET_SESSION,
    GET_TASK_CONTEXT,
    MOVE_ROUTE,
    PRUNE_CHECKPOINTS,
    PUT_CHECKPOINT,
    STORE_CHECKPOINT,
    STORE_TASK_CONTEXT,
    UPDATE_SESSION,
    OperationContext,
    begin,
    finish,
    is_observed,
)
from ...records import Applied, Mutation, Route, message_dict
from ...units import Bytes, Count, Ratio, Seconds, SecondsOrZero
from .._base import Layer, report_part
from .._options import checked
from ._entries import Entry, Kind, Lifetimes, Place
from ._reading import MISS, Miss, Reading
from ._state import CacheState
from ._tail import Tail, tail_of

SESSION: tuple[Kind, ...] = ("session",)
HISTORY: tuple[Kind, ...] = ("history",)
CONTEXT: tuple[Kind, ...] = ("context",)
CHECKPOINT: tuple[Kind, ...] = ("checkpoint",)
OF_SESSION: tuple[Kind, ...] = ("session", "history", "context")
EVERYTHING: tuple[Kind, ...] = (*OF_SESSION, "checkpoint")


class Cache(Layer):
    """Answers sessions, recent history, task contexts and latest checkpoints from memory, as long as they are true.

    - What this process writes is never answered from before: as a write ends, well or not, what was known of it goes, and a
      load that began earlier is not kept. After a write of unknown outcome nothing is kept there for ``settle``.
    - Many who want the same wait for one load; whoever gives up waiting disturbs nobody.
    - "There is none" is known too, for ``negative_ttl``. A new message is added to the history that is known.
    - Every answer is a copy. ``op.served_by`` says ``cache``, and ``op.position`` is good for ``expected_version=``.
    - If the store fails, what was over less than ``stale_if_error`` ago may stand in for it, flagged ``op.stale``.
    - Bounded in entries and in bytes; what is over leaves a few at a time.

    What *other* processes write is seen when an entry's time is over, ``ttl`` at the latest: ``check`` says so unless
    ``exclusive`` says that no other process writes what this one reads. An answer that a store flagged as stale is not kept.

    Place: outermost of what talks to stores, so that one cache stands over both legs and reads wait for no batch::

        tracing → metrics → deadline → cache → batching → dual_write{…}     right
        cache → metrics → dual_write{…}      wrong: hits are not measured
        dual_write{cache → redis, …}         wrong: each leg has a cache, and after a takeover they disagree
        batching → cache → dual_write{…}     wrong: reads are gathered that would have cost nothing

    Errors: none of its own. Events: ``answer.stale``. Metrics: part ``cache``.
    Cancellation: a cancelled load is taken over by the next who waits; a cancelled write counts as of unknown outcome.

    Args:
        ttl: seconds that an answer is good for.
        negative_ttl: seconds that "there is none" is good for; 0 never keeps it.
        jitter: share by which these are shorter at random, so that what was loaded together is not due together.
        refresh_ahead: share of its time, at the end, in which a read renews an entry in the background; 0 never.
        stale_if_error: seconds beyond its time that an entry may stand in for a store that fails; 0 never.
        settle: seconds after a write of unknown outcome in which nothing is kept there.
        max_entries: answers that are kept.
        max_bytes: that they may take together.
        history: messages of a session that are kept; a longer history is asked of the store.
        sessions: keep sessions.
        histories: keep recent histories.
        contexts: keep task contexts.
        checkpoints: keep latest checkpoints.
        exclusive: no other process writes what this one reads.
        state: entries and counts of the chain that this one replaces.
    """

    layer_name: ClassVar[str] = "cache"

    def __init__(
        self,
        inner: Backend,
        *,
        ttl: Seconds = 60.0,
        negative_ttl: SecondsOrZero = 5.0,
        jitter: Ratio = 0.1,
        refresh_ahead: Ratio = 0.0,
        stale_if_error: SecondsOrZero = 0.0,
        settle: Seconds = 10.0,
        max_entries: Count = 10_000,
        max_bytes: Bytes = 64 * 1024 * 1024,
        history: Count = 200,
        sessions: bool = True,
        histories: bool = True,
        contexts: bool = True,
        checkpoints: bool = True,
        exclusive: bool = False,
        state: CacheState | None = None,
    ) -> None:
        super().__init__(inner)
        lifetimes = Lifetimes(
            ttl=checked(self.layer_name, "ttl", ttl, Seconds),
            negative_ttl=checked(self.layer_name, "negative_ttl", negative_ttl, SecondsOrZero),
            jitter=checked(self.layer_name, "jitter", jitter, Ratio),
            refresh_ahead=checked(self.layer_name, "refresh_ahead", refresh_ahead, Ratio),
            stale_if_error=checked(self.layer_name, "stale_if_error", stale_if_error, SecondsOrZero),
        )
        self.state = CacheState() if state is None else state
        self.state.configure(
            _end_of(inner),
            checked(self.layer_name, "max_entries", max_entries, Count),
            checked(self.layer_name, "max_bytes", max_bytes, Bytes),
            checked(self.layer_name, "settle", settle, Seconds),
        )
        self.exclusive = exclusive
        self._history = checked(self.layer_name, "history", history, Count)
        switches = {
            "session": sessions,
            "history": histories,
            "context": contexts,
            "checkpoint": checkpoints,
        }
        self._kinds = frozenset(kind for kind in EVERYTHING if switches[kind])
        self._reading = Reading(self.state, lifetimes, self.name)
        self._open = False

    def describe(self) -> str:
        state = self.state
        return f"{len(state.entries)} entries, {state.entries.bytes:,} bytes, hit rate {state.counts.hit_rate:.0%}"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        opened = await self.inner.initialize()
        if not self._open:
            self._open = opened
            if not self.state.users:
                self.state.clear()  # it was closed for a while: others may have written
            self.state.users += 1
        return opened

    async def close(self) -> None:
        if self._open:
            self._open = False
            self.state.users -= 1
            await self._reading.close()
        await self.inner.close()

    async def health_check(self) -> Json:
        entries = self.state.entries
        return report_part(
            await self.inner.health_check(),
            self.layer_name,
            {
                "entries": len(entries),
                "bytes": entries.bytes,
                "hit_rate": round(self.state.counts.hit_rate, 4),
            },
        )

    async def get_metrics(self) -> Json:
        counts, entries = self.state.counts, self.state.entries
        facts = {
            **asdict(counts),
            "hit_rate": round(counts.hit_rate, 4),
            "entries": len(entries),
            "bytes": entries.bytes,
            "evicted": entries.evicted,
            "expired": entries.expired,
        }
        return report_part(await self.inner.get_metrics(), self.layer_name, facts)

    # ------------------------------------------------------------------ reads

    def _keeps(self, kind: Kind, key: object) -> bool:
        return self._open and kind in self._kinds and isinstance(key, str)

    async def get_session(self, session_id: str) -> Json | None:
        if not self._keeps("session", session_id):
            return await self.inner.get_session(session_id)
        return await self._reading.read(
            ("session", session_id), GET_SESSION, _kept, _seen, self.inner.get_session, session_id
        )

    async def get_task_context(self, session_id: str) -> Any | None:
        if not self._keeps("context", session_id):
            return await self.inner.get_task_context(session_id)
        return await self._reading.read(
            ("context", session_id), GET_TASK_CONTEXT, _kept, _seen, self.inner.get_task_context, session_id
        )

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        if not self._keeps("checkpoint", thread_id):
            return await self.inner.get_checkpoint(thread_id, checkpoint_id)
        place: Place = ("checkpoint", thread_id)
        if checkpoint_id is None:
            return await self._reading.read(
                place, GET_CHECKPOINT, _kept_checkpoint, _seen, self.inner.get_checkpoint, thread_id
            )
        entry = self.state.entries.get(place)
        if entry is None or entry.tag != checkpoint_id:  # not the latest, which alone is kept
            return await self.inner.get_checkpoint(thread_id, checkpoint_id)
        return await self._reading.read(
            place,
            GET_CHECKPOINT,
            _never_kept,
            partial(_seen_checkpoint, checkpoint_id),
            self.inner.get_checkpoint,
            thread_id,
            checkpoint_id,
        )

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        if before is not None or after is not None or limit < 0 or not self._keeps("history", session_id):
            return await self.inner.get_conversation_history(session_id, limit, before=before, after=after)
        return await self._reading.read(
            ("history", session_id),
            GET_CONVERSATION_HISTORY,
            partial(_kept_history, self._history, limit),
            partial(_seen_history, limit),
            self.inner.get_conversation_history,
            session_id,
            limit,
        )

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        if not all(self._keeps("session", session_id) for session_id in session_ids):
            return await self.inner.batch_get_sessions(session_ids)
        context, token = begin(BATCH_GET_SESSIONS)
        try:
            return await self._reading.read_many(
                [("session", session_id) for session_id in session_ids],
                context,
                _kept,
                _seen,
                lambda places: self.inner.batch_get_sessions([key for _kind, key in places]),
            )
        finally:
            finish(token)

    # ------------------------------------------------------------------ writes

    def _places(self, kinds: Iterable[Kind], *keys: object) -> list[Place]:
        return [
            (kind, key)
            for key in dict.fromkeys(key for key in keys if isinstance(key, str))
            for kind in kinds
            if kind in self._kinds
        ]

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        return await self._reading.write(
            CREATE_SESSION,
            self._places(OF_SESSION, session_id),
            _created,
            self.inner.create_session,
            session_id,
            user_id,
            metadata,
        )

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
        return await self._reading.write(
            UPDATE_SESSION,
            self._places(SESSION, session_id),
            None,
            self.inner.update_session,
            session_id,
            updates,
            increment_requests,
            add_processing_time,
            mark_error,
            expected_version=expected_version,
        )

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        return await self._reading.write(
            END_SESSION, self._places(SESSION, session_id), None, self.inner.end_session, session_id, status
        )

    async def delete_session(self, session_id: str) -> bool:
        return await self._reading.write(
            DELETE_SESSION,
            self._places(OF_SESSION, session_id),
            None,
            self.inner.delete_session,
            session_id,
        )

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        return await self._reading.write(
            BATCH_CREATE_SESSIONS,
            self._places(OF_SESSION, *(item.get("session_id") for item in sessions)),
            None,
            self.inner.batch_create_sessions,
            sessions,
        )

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        return await self._reading.write(
            ADD_CONVERSATION_MESSAGE,
            self._places(HISTORY, session_id),
            partial(self._extended, role, content, metadata),
            self.inner.add_conversation_message,
            session_id,
            role,
            content,
            metadata,
        )

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        return await self._reading.write(
            BATCH_ADD_CONVERSATION_MESSAGES,
            self._places(HISTORY, *(item.get("session_id") for item in messages)),
            None,
            self.inner.batch_add_conversation_messages,
            messages,
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
        return await self._reading.write(
            STORE_CHECKPOINT,
            self._places(CHECKPOINT, thread_id),
            None,
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
        return await self._reading.write(
            PUT_CHECKPOINT,
            self._places(CHECKPOINT, thread_id),
            None,
            self.inner.put_checkpoint,
            thread_id,
            checkpoint_id,
            checkpoint_data,
            metadata,
        )

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        return await self._reading.write(
            PRUNE_CHECKPOINTS,
            self._places(CHECKPOINT, thread_id),
            None,
            self.inner.prune_checkpoints,
            thread_id,
            keep_last,
        )

    async def delete_thread(self, thread_id: str) -> bool:
        return await self._reading.write(
            DELETE_THREAD, self._places(CHECKPOINT, thread_id), None, self.inner.delete_thread, thread_id
        )

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        return await self._reading.write(
            STORE_TASK_CONTEXT,
            self._places(CONTEXT, session_id),
            None,
            self.inner.store_task_context,
            session_id,
            context,
            expected_version=expected_version,
        )

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        places = self._places(EVERYTHING, *(mutation.key for mutation in mutations))
        return await self._reading.write(APPLY, places, None, self.inner.apply, mutations)

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        return await self._reading.clear(
            CLEANUP_EXPIRED_SESSIONS, self.inner.cleanup_expired_sessions, max_idle_hours
        )

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        return await self._reading.clear(MOVE_ROUTE, self.inner.move_route, expected_epoch, route)

    # ------------------------------------------------------------------ what is true after a write

    def _extended(
        self,
        role: str,
        content: str,
        metadata: Json | None,
        place: Place,
        answer: object,
        context: OperationContext,
    ) -> Entry | None:
        """The history that is known, and this message. Not if the identity was named: it may be a repeat."""
        tail = self.state.entries.get(place)
        if (
            not isinstance(tail, Tail)
            or answer is not True
            or context.position is None
            or is_observed()
            or monotonic() >= tail.fresh_until
        ):
            return None
        message = message_dict(
            context.op_id, context.position, role, content, context.occurred_at, metadata or {}
        )
        longer = tail.followed_by(message, self._history)
        self.state.counts.extended += longer is not None
        return longer


def _created(place: Place, answer: object, context: OperationContext) -> Entry | None:
    """What ``create_session`` returned is what ``get_session`` will. Not if the identity was named: it may be a repeat."""
    if place[0] != "session" or context.position is None or is_observed():
        return None
    return _kept(answer, context)


# ---------------------------------------------------------------------- between answers and entries


def _kept(answer: object, context: OperationContext) -> Entry:
    data = b"" if answer is None else encode(answer, "an answer")
    return Entry(data, context.position, context.clock)


def _seen(entry: Entry) -> Any:
    return None if entry.negative else decode(entry.data, "an answer")


def _kept_checkpoint(answer: Json | None, context: OperationContext) -> Entry:
    entry = _kept(answer, context)
    if answer is not None:
        entry.tag = answer["checkpoint_id"]
    return entry


def _seen_checkpoint(checkpoint_id: str, entry: Entry) -> Any:
    return _seen(entry) if entry.tag == checkpoint_id else MISS


def _never_kept(answer: object, context: OperationContext) -> Entry:
    raise InvalidValueError("only the latest checkpoint is kept")


def _kept_history(most: int, limit: int, answer: list[Json], context: OperationContext) -> Entry:
    if len(answer) > most:
        raise InvalidValueError(f"more than {most} messages are not kept")
    return tail_of(
        answer,
        complete=not limit or len(answer) < limit,
        position=context.position,
        clock=context.clock,
    )


def _seen_history(limit: int, entry: Entry) -> list[Json] | Literal[Miss.MISS]:
    found = entry.last(limit) if isinstance(entry, Tail) else None
    return MISS if found is None else found


def _end_of(backend: Backend) -> Backend:
    """The store, or where the chain branches."""
    while isinstance(backend, Layer):
        backend = backend.inner
    return backend
