"""What all topics of the contract suite share: the fixture to override, fresh ids, and looking at everything of one key.

Tests never assume an empty store: each works on ids of its own and compares totals as differences, so that the suite
also runs against a server that holds other data.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from typing import Any, ClassVar, TypeVar

import pytest

from ...codec import MAX_VALUE_BYTES
from ...interface import Backend, Json
from ...operations import OperationContext, operation

T = TypeVar("T")


class ContractBase:
    """Base of every topic. Override :meth:`storage`; the class variables say what the backend was configured with.

    Attributes:
        max_value_bytes: the limit on one encoded value; one byte more must be refused.
        history_size: messages written to show that no number of them is too many.
        concurrency: calls made at once.
        cancellations: calls cancelled at random points.
    """

    pytestmark = pytest.mark.asyncio

    max_value_bytes: ClassVar[int] = MAX_VALUE_BYTES
    history_size: ClassVar[int] = 1_200
    concurrency: ClassVar[int] = 100
    cancellations: ClassVar[int] = 40

    @pytest.fixture
    def storage(self) -> Backend:
        """An open backend of any kind: a store, a layer over one, a whole chain, the handle of ``open_storage``."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture `storage`")

    def own_tasks(self) -> set[asyncio.Task[Any]]:
        """Tasks that the fixture itself keeps running and that ``close`` need not end."""
        return set()


def fresh(prefix: str = "s") -> str:
    """An id nobody has used."""
    return f"{prefix}-{uuid.uuid4().hex}"


async def named(op_id: str, call: Awaitable[T]) -> T:
    """Await one write under this identity."""
    async with operation(op_id):
        return await call


async def observed(call: Awaitable[T]) -> tuple[T, OperationContext]:
    """The answer and what the chain did for it."""
    async with operation() as context:
        return await call, context


async def version_of(call: Awaitable[object]) -> int:
    """The position that a read or write reports: what ``expected_version`` takes."""
    _answer, context = await observed(call)
    assert context.position is not None, "the chain must report a position"
    return context.position


async def snapshot(storage: Backend, key: str) -> Json:
    """Everything that can be read under one id, in the contract's shapes."""
    checkpoints = await storage.list_checkpoints(key, 1_000)
    return {
        "session": await storage.get_session(key),
        "messages": await storage.get_conversation_history(key, 0),
        "checkpoints": checkpoints,
        "latest": await storage.get_checkpoint(key),
        "writes": {
            item["checkpoint_id"]: await storage.get_writes(key, item["checkpoint_id"])
            for item in checkpoints
        },
        "contexts": await storage.list_task_contexts(key, 1_000),
    }


def contents(messages: list[Json]) -> list[str]:
    """What the messages say, in their order."""
    return [message["content"] for message in messages]


async def say(storage: Backend, session_id: str, *texts: str) -> None:
    """Append messages one after the other."""
    for text in texts:
        assert await storage.add_conversation_message(session_id, "user", text) is True
