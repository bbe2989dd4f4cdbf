"""namespace: tenants side by side in one store, each of which sees nothing but its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from ..clock import wall_us
from ..codec import MAX_ID_CHARACTERS, check_id, encode_key, fingerprint
from ..errors import InvalidValueError, StorageError
from ..interface import Backend, Json, OperationOutcome
from ..operations import (
    CLEANUP_EXPIRED_SESSIONS,
    LIST_SESSIONS,
    LIST_THREADS,
    OperationContext,
    begin,
    finish,
)
from ..records import Applied, IdleKey, Kind, Mutation, RecordPage, RecordRef
from ._base import Layer, report_part
from ._tenancy import prefix_of

T = TypeVar("T")

_tenant: ContextVar[str | None] = ContextVar("aiecs_tenant", default=None)

_HOUR_US = 3_600_000_000
_STEP = 200  # keys that clean-up removes at a time
_LEAST_PAGE = 50  # of a list, since some of it may be of others
_BEFORE_LONG_IDS = "\x1b"  # an id whose key sorts before those of ids that are too long to be keys themselves


@contextmanager
def tenant(name: str) -> Generator[None]:
    """All calls in the block are this tenant's, where the layer ``namespace`` has none of its own."""
    prefix_of(name)
    token = _tenant.set(name)
    try:
        yield
    finally:
        _tenant.reset(token)


class Namespace(Layer):
    """Gives a tenant a store of its own inside a shared one.

    Every session and thread id is kept under the tenant's prefix, and comes back without it: in answers, lists, batches
    and records. So one tenant can neither read, write, list, count on, nor clean up what belongs to another, and whatever
    stands inside (a cache, the associated data of encryption, a limit by tenant) keeps tenants apart as well.
    ``user_id`` is not changed. Totals in ``get_metrics`` are the whole store's.

    The tenant is the option ``tenant``, or that of the block in which a call is made::

        with tenant("acme"):
            await storage.get_session("s-1")

    A call without either is refused.

    Place: outside everything that remembers or hides by key, so that it does so per tenant::

        deadline → namespace → limits → cache → encryption → dual_write{…}      right
        cache → namespace → redis        wrong: one tenant is shown what the cache keeps for another
        encryption → namespace → redis   wrong: a row of one tenant could be passed off as another's
        dual_write{namespace → …, …}     wrong: the two stores would call the same session differently

    Errors: InvalidValueError for a call without a tenant, or an id that is too long: tenant, its length and the id share
    512 characters. Lists keep a stable order, by key; for ids of over about 190 bytes it differs from that of a store
    without tenants. Metrics and health: part ``namespace``.
    Cancellation passes untouched; a clean-up that is cut off has done whole steps.

    Args:
        tenant: whose calls these are, 1 to 64 bytes; by default the block says it.
    """

    layer_name: ClassVar[str] = "namespace"

    def __init__(self, inner: Backend, *, tenant: str | None = None) -> None:
        super().__init__(inner)
        self.tenant = tenant
        self._prefix = None if tenant is None else prefix_of(tenant)

    def describe(self) -> str:
        return "tenant of the call" if self.tenant is None else f"tenant {self.tenant!r}"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, {"tenant": self.tenant})

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, {"tenant": self.tenant})

    # ------------------------------------------------------------------ keys

    def prefix(self) -> str:
        """What the keys of the call's tenant begin with; InvalidValueError if nobody said whose call it is."""
        if self._prefix is not None:
            return self._prefix
        name = _tenant.get()
        if name is None:
            raise InvalidValueError(
                "namespace: nobody said whose call this is; make it inside `with tenant(name):`, or set the option tenant"
            )
        return prefix_of(name)

    def _key(self, id: str, what: str) -> str:
        check_id(id, what)
        key = self.prefix() + id
        if len(key) > MAX_ID_CHARACTERS:
            room = MAX_ID_CHARACTERS - len(self.prefix())
            raise InvalidValueError(f"{what} must have 1 to {room} characters for this tenant, not {len(id)}")
        return key

    def _items(self, items: Sequence[Json]) -> list[Json]:
        """A batch; what has no id is left for the store to refuse."""
        return [
            {**item, "session_id": self._key(item["session_id"], "session_id")}
            if "session_id" in item
            else item
            for item in items
        ]

    # ------------------------------------------------------------------ sessions

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        key = self._key(session_id, "session_id")
        return {**await self.inner.create_session(key, user_id, metadata), "session_id": session_id}

    async def get_session(self, session_id: str) -> Json | None:
        return _named(await self.inner.get_session(self._key(session_id, "session_id")), session_id)

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
            self._key(session_id, "session_id"),
            updates,
            increment_requests,
            add_processing_time,
            mark_error,
            expected_version=expected_version,
        )

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        return await self.inner.end_session(self._key(session_id, "session_id"), status)

    async def delete_session(self, session_id: str) -> bool:
        return await self.inner.delete_session(self._key(session_id, "session_id"))

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        prefix = self.prefix()

        async def page(cursor: str, size: int) -> list[Json]:
            return await self.inner.list_sessions(status=status, user_id=user_id, after=cursor, limit=size)

        _context, token = begin(LIST_SESSIONS)
        try:
            found = await _pages(page, _session_id, prefix, after, limit)
        finally:
            finish(token)
        return [{**session, "session_id": session["session_id"].removeprefix(prefix)} for session in found]

    async def batch_create_sessions(self, sessions: Sequence[Json]) -> list[bool]:
        return await self.inner.batch_create_sessions(self._items(sessions))

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        keys = [self._key(session_id, "session_id") for session_id in session_ids]
        found = await self.inner.batch_get_sessions(keys)
        return [_named(session, session_id) for session, session_id in zip(found, session_ids, strict=True)]

    # ------------------------------------------------------------------ conversations

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: Json | None = None
    ) -> bool:
        key = self._key(session_id, "session_id")
        return await self.inner.add_conversation_message(key, role, content, metadata)

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        key = self._key(session_id, "session_id")
        return await self.inner.get_conversation_history(key, limit, before=before, after=after)

    async def batch_add_conversation_messages(self, messages: Sequence[Json]) -> list[bool]:
        return await self.inner.batch_add_conversation_messages(self._items(messages))

    # ------------------------------------------------------------------ checkpoints

    async def store_checkpoint(
        self,
        thread_id: str,
        checkpoint_id: str,
        checkpoint_data: Json,
        metadata: Json | None = None,
        *,
        expected_version: int | None = None,
    ) -> bool:
        key = self._key(thread_id, "thread_id")
        return await self.inner.store_checkpoint(
            key, checkpoint_id, checkpoint_data, metadata, expected_version=expected_version
        )

    async def put_checkpoint(
        self, thread_id: str, checkpoint_id: str, checkpoint_data: Json, metadata: Json | None = None
    ) -> bool:
        key = self._key(thread_id, "thread_id")
        return await self.inner.put_checkpoint(key, checkpoint_id, checkpoint_data, metadata)

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        found = await self.inner.get_checkpoint(self._key(thread_id, "thread_id"), checkpoint_id)
        return None if found is None else {**found, "thread_id": thread_id}

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        found = await self.inner.list_checkpoints(self._key(thread_id, "thread_id"), limit)
        return [{**checkpoint, "thread_id": thread_id} for checkpoint in found]

    async def prune_checkpoints(self, thread_id: str, keep_last: int) -> int:
        return await self.inner.prune_checkpoints(self._key(thread_id, "thread_id"), keep_last)

    async def put_writes(
        self, thread_id: str, checkpoint_id: str, task_id: str, writes_data: Sequence[tuple[Any, ...]]
    ) -> bool:
        key = self._key(thread_id, "thread_id")
        return await self.inner.put_writes(key, checkpoint_id, task_id, writes_data)

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        return await self.inner.get_writes(self._key(thread_id, "thread_id"), checkpoint_id)

    async def delete_thread(self, thread_id: str) -> bool:
        return await self.inner.delete_thread(self._key(thread_id, "thread_id"))

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        prefix = self.prefix()

        async def page(cursor: str, size: int) -> list[str]:
            return await self.inner.list_threads(after=cursor, limit=size)

        _context, token = begin(LIST_THREADS)
        try:
            found = await _pages(page, str, prefix, after, limit)
        finally:
            finish(token)
        return [key.removeprefix(prefix) for key in found]

    # ------------------------------------------------------------------ task contexts

    async def store_task_context(
        self, session_id: str, context: Any, *, expected_version: int | None = None
    ) -> bool:
        key = self._key(session_id, "session_id")
        return await self.inner.store_task_context(key, context, expected_version=expected_version)

    async def get_task_context(self, session_id: str) -> Any | None:
        return await self.inner.get_task_context(self._key(session_id, "session_id"))

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        return await self.inner.list_task_contexts(self._key(session_id, "session_id"), limit)

    # ------------------------------------------------------------------ the rest

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        return await self.inner.operation_outcome(self._key(key, "key"), op_id)

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        """The tenant's own only: another one's idea of what is idle is not its business."""
        if max_idle_hours < 0:
            raise InvalidValueError(f"max_idle_hours must be 0 or more, not {max_idle_hours}")
        context, token = begin(CLEANUP_EXPIRED_SESSIONS)
        try:
            before, removed = wall_us() - int(max_idle_hours * _HOUR_US), 0
            while idle := await self.read_idle(before, _STEP):
                results = await self.apply([_removal(context, item) for item in idle])
                gone = sum(_was_there(result) for result in results)
                removed += gone
                if len(idle) < _STEP or not gone:  # what is left came alive in between
                    break
            return removed
        finally:
            finish(token)

    # ------------------------------------------------------------------ records

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        return await self.inner.apply([self._kept(mutation) for mutation in mutations])

    def _kept(self, mutation: Mutation) -> Mutation:
        key = self._key(mutation.key, "key")
        if mutation.replay:
            return replace(mutation, key=key)
        return replace(mutation, key=key, fingerprint=fingerprint(mutation.kind, key, mutation.body))

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        prefix = self.prefix()
        page = await self.inner.read_records(since=since, open_only=open_only, after=after, limit=limit)
        own = [
            replace(record, key=record.key.removeprefix(prefix))
            for record in page.records
            if record.key.startswith(prefix)
        ]
        return RecordPage(own, page.cursor)

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        return await self.inner.close_marks([replace(ref, key=self._key(ref.key, "key")) for ref in refs])

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        prefix, size = self.prefix(), limit
        while (
            True
        ):  # there is no cursor: what is idle of others is at the head of the list until they remove it
            found = await self.inner.read_idle(before, size)
            own = [
                item._replace(key=item.key.removeprefix(prefix))
                for item in found
                if item.key.startswith(prefix)
            ]
            if len(own) >= limit or len(found) < size:
                return own[:limit]
            size *= 4


def _named(session: Json | None, session_id: str) -> Json | None:
    return None if session is None else {**session, "session_id": session_id}


def _session_id(session: Json) -> str:
    key: str = session["session_id"]
    return key


def _removal(context: OperationContext, item: IdleKey) -> Mutation:
    body = {"scope": item.scope, "before": item.before}
    return Mutation(
        key=item.key,
        op_id=f"{context.op_id}/{item.before}",  # the same again if a retry of the whole finds it again
        kind=Kind.DELETE,
        body=body,
        fingerprint=fingerprint(Kind.DELETE, item.key, body),
        occurred_at=context.occurred_at,
        stamp=wall_us(),
    )


def _was_there(result: Applied | StorageError) -> bool:
    if isinstance(result, StorageError):
        raise result
    return bool(result.answer)


async def _pages(
    page: Callable[[str, int], Awaitable[list[T]]],
    key_of: Callable[[T], str],
    prefix: str,
    after: str | None,
    limit: int,
) -> list[T]:
    """A tenant's part of a list that is in the order of keys.

    Keys of one tenant stand together, twice: first those of long ids, which are kept as hashes, among those of others;
    then all others. What lies between is jumped over.
    """
    if limit <= 0:
        return await page("", limit)
    cursor = _BEFORE_LONG_IDS if after is None else prefix + after
    first, found = encode_key(prefix).encode(), list[T]()
    while len(found) < limit:
        size = max(limit - len(found), _LEAST_PAGE)
        items = await page(cursor, size)
        found += [item for item in items if key_of(item).startswith(prefix)]
        if len(items) < size:
            break
        cursor = key_of(items[-1])
        last = encode_key(cursor).encode()
        if last >= first and not cursor.startswith(prefix):
            break
        if not last.startswith(b"\x1bh") and last < first:
            cursor = prefix
    return found[:limit]


__all__ = ["Namespace", "tenant"]
