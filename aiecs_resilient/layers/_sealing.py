"""What ``compression`` and ``encryption`` have in common: where values are in a write and in an answer, and their envelopes.

A value is sealed once, above ``dual_write``, so both stores hold equal bytes. Writes become records here, so there is one
place that seals them, whether they come one by one, in a batch or as records of ``batching``. An envelope is itself a value
that any store can keep: a map with one entry, the layer's mark and the sealed bytes.

===========  ===========================================================================================================
in           what is sealed
===========  ===========================================================================================================
a session    ``metadata`` and each custom field; ids, user, status, counters and times stay as they are, to be listed by
a message    role, content and metadata in one envelope, which takes the place of the metadata; the role is also left outside
a checkpoint data and metadata, one each
a write      a task's writes as a whole
a context    the value
===========  ===========================================================================================================
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, cast

from ..backends._base import RecordingBackend
from ..codec import MAX_VALUE_BYTES, decode, encode
from ..errors import DataCorruptionError, StorageError, UnsupportedOperationError
from ..interface import Backend, IStorageBackend, Json
from ..operations import APPLY, begin, finish
from ..records import Applied, Kind, Mutation
from ._base import Layer
from ._sharing import account

T = TypeVar("T")
Address = tuple[str, ...]
"""Where a value belongs: kind of row, its ids, and the place in it. No two places share one."""

_SHAPE = frozenset(
    {
        "session_id",
        "user_id",
        "status",
        "request_count",
        "total_processing_time",
        "error_count",
        "created_at",
        "updated_at",
        "last_activity",
    }
)
_READABLE_FIELDS = frozenset({"status", "user_id"})
_IN_A_THREAD = 1024 * 1024
"""Bytes from which on a value is worked on in a thread, so that it does not hold up the loop."""


class Sealing(RecordingBackend, Layer):
    """Seals every value on its way in and opens it on its way out."""

    mark: ClassVar[str]
    """The name of the one entry of an envelope."""

    def __init__(self, inner: Backend) -> None:
        store = inner
        while isinstance(store, Layer):
            store = store.inner
        if type(store).apply is IStorageBackend.apply:
            raise UnsupportedOperationError(
                f"{self.layer_name} cannot stand over {inner.name!r}: it takes no writes as records; use one of our stores"
            )
        own = store.max_value_bytes if isinstance(store, RecordingBackend) else MAX_VALUE_BYTES
        RecordingBackend.__init__(self, name=inner.name, max_value_bytes=own)
        Layer.__init__(self, inner)
        name = self.mark.encode()
        self._head = b"\x81" + bytes([0xA0 | len(name)]) + name  # how an envelope begins in MessagePack

    # ------------------------------------------------------------------ what a layer supplies

    @abstractmethod
    def seal(self, address: Address, op_id: str, data: bytes, *, force: bool) -> bytes | None:
        """The sealed bytes, or None to leave the value as it is. With ``force`` it may not be left."""

    @abstractmethod
    def unseal(self, address: Address, data: bytes) -> bytes:
        """What was sealed under that address. Raises DataCorruptionError for anything else."""

    def unsealed(self, address: Address) -> None:
        """A value was met that is not sealed."""

    def fingerprint_of(self, mutation: Mutation) -> bytes:
        """What the sealed record is known by; that of the unsealed one, unless it tells too much."""
        return mutation.fingerprint

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        sealed = [mutation if mutation.replay else await self._sealed(mutation) for mutation in mutations]
        context, token = begin(APPLY)
        before, context.served_by = context.served_by, None
        try:
            results = await self.inner.apply(sealed)
            account(context, self.name)
            return results
        finally:
            context.served_by = context.served_by or before
            finish(token)

    async def _sealed(self, mutation: Mutation) -> Mutation:
        body = await self._body(mutation, mutation.body)
        if body is mutation.body:
            return mutation
        return replace(mutation, body=body, fingerprint=self.fingerprint_of(mutation))

    async def _body(self, m: Mutation, body: Mapping[str, Any]) -> Mapping[str, Any]:
        match m.kind:
            case Kind.CREATE:
                metadata = await self._value(m, ("session", m.key, "metadata"), body["metadata"])
                return {**body, "metadata": metadata}
            case Kind.UPDATE:
                fields: dict[str, bytes] = {
                    name: value
                    if name in _READABLE_FIELDS
                    else await self._value(m, _field(m.key, name), value)
                    for name, value in body["fields"].items()
                }
                return {**body, "fields": fields}
            case Kind.MESSAGE:
                return await self._message(m, body)
            case Kind.CONTEXT:
                return {**body, "value": await self._value(m, ("context", m.key), body["value"])}
            case Kind.CHECKPOINT:
                place = ("checkpoint", m.key, body["ns"], body["id"])
                data = await self._value(m, (*place, "data"), body["data"])
                metadata = await self._value(m, (*place, "metadata"), body["metadata"])
                return {**body, "data": data, "metadata": metadata}
            case Kind.WRITES:
                address = ("writes", m.key, body["ns"], body["id"])
                value: bytes = body["value"]
                force = value.startswith(b"\x91" + self._head)
                sealed = await self._work(len(value), self._enveloped, m, address, value, force)
                return body if sealed is None else {**body, "value": b"\x91" + sealed}
            case _:
                return body

    async def _value(self, m: Mutation, address: Address, data: bytes) -> bytes:
        force = data.startswith(self._head)  # a value that looks like an envelope must be in one
        return await self._work(len(data), self._enveloped, m, address, data, force) or data

    async def _message(self, m: Mutation, body: Mapping[str, Any]) -> Mapping[str, Any]:
        payload = encode(
            [body["role"], body["content"], body["metadata"]], "message", limit=2 * MAX_VALUE_BYTES + 4096
        )
        force = body["metadata"].startswith(self._head)
        sealed = await self._work(
            len(payload), self._enveloped, m, ("message", m.key, m.op_id), payload, force
        )
        return body if sealed is None else {**body, "content": "", "metadata": sealed}

    def _enveloped(self, m: Mutation, address: Address, data: bytes, force: bool) -> bytes | None:
        sealed = self.seal(address, m.op_id, data, force=force)
        if sealed is None:
            return None
        return encode({self.mark: sealed}, "envelope", limit=3 * MAX_VALUE_BYTES)

    async def _work(self, size: int, call: Callable[..., T], /, *args: object) -> T:
        return call(*args) if size < _IN_A_THREAD else await asyncio.to_thread(call, *args)

    # ------------------------------------------------------------------ reads

    async def _opened(self, address: Address, value: Any) -> Any:
        data = self._envelope(value)
        if data is None:
            self.unsealed(address)
            return value
        return decode(await self._work(len(data), self.unseal, address, data), address[0])

    def _envelope(self, value: Any) -> bytes | None:
        """The sealed bytes, if this is an envelope."""
        if not isinstance(value, dict):
            return None
        found = cast("dict[str, Any]", value)
        data = found.get(self.mark)
        return data if len(found) == 1 and isinstance(data, bytes) else None

    async def _session(self, session: Json | None) -> Json | None:
        if session is None:
            return None
        key = session["session_id"]
        return {
            name: value if name in _SHAPE else await self._opened(_field(key, name), value)
            for name, value in session.items()
        }

    async def get_session(self, session_id: str) -> Json | None:
        return await self._session(await self.inner.get_session(session_id))

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        found = await self.inner.batch_get_sessions(session_ids)
        return [await self._session(session) for session in found]

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        found = await self.inner.list_sessions(status=status, user_id=user_id, after=after, limit=limit)
        return [opened for session in found if (opened := await self._session(session)) is not None]

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        found = await self.inner.get_conversation_history(session_id, limit, before=before, after=after)
        return [await self._opened_message(session_id, message) for message in found]

    async def _opened_message(self, session_id: str, message: Json) -> Json:
        address = ("message", session_id, message["message_id"])
        data = self._envelope(message["metadata"])
        if data is None:
            self.unsealed(address)
            return message
        payload = decode(await self._work(len(data), self.unseal, address, data), "message")
        try:
            role, content, metadata = payload
        except (TypeError, ValueError) as error:
            raise DataCorruptionError("a sealed message does not hold what a message is") from error
        return {**message, "role": role, "content": content, "metadata": decode(metadata, "metadata")}

    async def _checkpoint(self, checkpoint: Json) -> Json:
        place = ("checkpoint", checkpoint["thread_id"], "", checkpoint["checkpoint_id"])
        data = await self._opened((*place, "data"), checkpoint["data"])
        metadata = await self._opened((*place, "metadata"), checkpoint["metadata"])
        return {**checkpoint, "data": data, "metadata": metadata}

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        found = await self.inner.get_checkpoint(thread_id, checkpoint_id)
        return None if found is None else await self._checkpoint(found)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        found = await self.inner.list_checkpoints(thread_id, limit)
        return [await self._checkpoint(checkpoint) for checkpoint in found]

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        address, opened = ("writes", thread_id, "", checkpoint_id), list[tuple[Any, ...]]()
        for item in await self.inner.get_writes(thread_id, checkpoint_id):
            if self._envelope(item) is None:
                self.unsealed(address)
                opened.append(item)
            else:  # one task's, all of them
                opened += await self._opened(address, item)
        return opened

    async def get_task_context(self, session_id: str) -> Any | None:
        found = await self.inner.get_task_context(session_id)
        return None if found is None else await self._opened(("context", session_id), found)

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        return [
            {**item, "context": await self._opened(("context", session_id), item["context"])}
            for item in await self.inner.list_task_contexts(session_id, limit)
        ]


def _field(key: str, name: str) -> Address:
    return ("session", key, "metadata") if name == "metadata" else ("session", key, "field", name)
