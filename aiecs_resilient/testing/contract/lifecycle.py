"""Lifecycle: open, close, health, metrics, and the exact signatures (C14, C18)."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest

from ...errors import BackendClosedError
from ...interface import Backend, ICheckpointerBackend, IStorageBackend
from ._base import ContractBase, fresh, say

Call = Callable[[Backend, str], Awaitable[object]]

EVERY_CALL: dict[str, Call] = {
    "create_session": lambda s, k: s.create_session(k, "u"),
    "get_session": lambda s, k: s.get_session(k),
    "update_session": lambda s, k: s.update_session(k, increment_requests=True),
    "end_session": lambda s, k: s.end_session(k),
    "delete_session": lambda s, k: s.delete_session(k),
    "list_sessions": lambda s, k: s.list_sessions(user_id=k),
    "batch_create_sessions": lambda s, k: s.batch_create_sessions([{"session_id": k, "user_id": "u"}]),
    "batch_get_sessions": lambda s, k: s.batch_get_sessions([k]),
    "add_conversation_message": lambda s, k: s.add_conversation_message(k, "user", "x"),
    "get_conversation_history": lambda s, k: s.get_conversation_history(k),
    "batch_add_conversation_messages": lambda s, k: s.batch_add_conversation_messages(
        [{"session_id": k, "role": "user", "content": "x"}]
    ),
    "store_checkpoint": lambda s, k: s.store_checkpoint(k, "c", {}),
    "put_checkpoint": lambda s, k: s.put_checkpoint(k, "c", {}),
    "get_checkpoint": lambda s, k: s.get_checkpoint(k),
    "list_checkpoints": lambda s, k: s.list_checkpoints(k),
    "prune_checkpoints": lambda s, k: s.prune_checkpoints(k, 1),
    "put_writes": lambda s, k: s.put_writes(k, "c", "t", [("a", 1)]),
    "get_writes": lambda s, k: s.get_writes(k, "c"),
    "delete_thread": lambda s, k: s.delete_thread(k),
    "list_threads": lambda s, k: s.list_threads(after=k),
    "store_task_context": lambda s, k: s.store_task_context(k, {}),
    "get_task_context": lambda s, k: s.get_task_context(k),
    "list_task_contexts": lambda s, k: s.list_task_contexts(k),
    "cleanup_expired_sessions": lambda s, k: s.cleanup_expired_sessions(1_000_000),
    "operation_outcome": lambda s, k: s.operation_outcome(k, "x"),
}
"""One harmless call of every operation an application may make."""


class LifecycleContract(ContractBase):
    """Opening, closing and telling how it is."""

    async def test_signatures_are_the_contract(self, storage: Backend) -> None:
        """Every method has exactly the interface's parameter names, order, kinds and defaults."""
        for interface in (IStorageBackend, ICheckpointerBackend):
            for name, method in inspect.getmembers(interface, inspect.iscoroutinefunction):
                if name.startswith("_") or (
                    interface is ICheckpointerBackend and hasattr(IStorageBackend, name)
                ):
                    continue
                mine = list(inspect.signature(getattr(storage, name)).parameters.values())
                theirs = list(inspect.signature(method).parameters.values())[1:]
                assert [(p.name, p.kind, p.default) for p in mine] == [
                    (p.name, p.kind, p.default) for p in theirs
                ], name

    async def test_initialize_is_idempotent(self, storage: Backend) -> None:
        """Again, and several at once: True each time, and what was stored stays."""
        key = fresh()
        await say(storage, key, "kept")
        assert await storage.initialize() is True
        assert await asyncio.gather(*(storage.initialize() for _ in range(5))) == [True] * 5
        assert len(await storage.get_conversation_history(key)) == 1

    async def test_close_is_idempotent(self, storage: Backend) -> None:
        """Again, and several at once: no error."""
        await storage.close()
        await storage.close()
        await asyncio.gather(*(storage.close() for _ in range(5)))

    @pytest.mark.parametrize("name", EVERY_CALL)
    async def test_a_closed_backend_says_so(self, storage: Backend, name: str) -> None:
        """After close every operation raises BackendClosedError, certain that nothing was written."""
        await storage.close()
        with pytest.raises(BackendClosedError) as caught:
            await EVERY_CALL[name](storage, fresh())
        assert caught.value.outcome == "not_applied"

    @pytest.mark.parametrize("name", EVERY_CALL)
    async def test_every_operation_is_offered(self, storage: Backend, name: str) -> None:
        """Each operation of the contract answers on an unknown id without an error."""
        await EVERY_CALL[name](storage, fresh())

    async def test_close_drains_what_is_under_way(self, storage: Backend) -> None:
        """A write under way while close is called is applied, or it raises; it never hangs and never lies."""
        key = fresh()
        calls = [
            asyncio.ensure_future(storage.add_conversation_message(key, "user", f"m{n}")) for n in range(20)
        ]
        await asyncio.sleep(0)
        await storage.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(result is True or isinstance(result, Exception) for result in results)

    async def test_close_leaves_no_task_behind(self, storage: Backend) -> None:
        """After close nothing of the chain runs any more."""
        for name, call in EVERY_CALL.items():
            if name != "delete_session":
                await call(storage, fresh())
        await storage.close()
        mine = {asyncio.current_task(), *self.own_tasks()}
        assert [task for task in asyncio.all_tasks() if task not in mine] == []

    async def test_close_works_through_the_chain_as_a_context(self, storage: Backend) -> None:
        """`async with` opens and closes, and an error inside passes through."""

        async def fail_inside() -> None:
            async with storage:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_inside()
        with pytest.raises(BackendClosedError):
            await storage.get_session(fresh())

    async def test_health_has_its_shape(self, storage: Backend) -> None:
        """status, storage_backend, redis_connected and issues are there; an open, working backend is healthy."""
        health = await storage.health_check()
        assert health["status"] == "healthy", health
        assert health["issues"] == []
        assert isinstance(health["storage_backend"], str)
        assert isinstance(health["redis_connected"], bool)
        json.dumps(health)

    async def test_health_of_a_closed_backend_is_not_healthy(self, storage: Backend) -> None:
        """health_check answers rather than raises, and gives the reason."""
        await storage.close()
        health = await storage.health_check()
        assert health["status"] != "healthy"
        assert health["issues"]

    async def test_metrics_have_their_shape(self, storage: Backend) -> None:
        """Totals are integers, the timestamp is naive UTC, and it all is plain data."""
        metrics = await storage.get_metrics()
        for name in ("total_sessions", "active_sessions", "total_messages", "total_checkpoints"):
            assert type(metrics[name]) is int
            assert metrics[name] >= 0
        assert isinstance(metrics["storage_backend"], str)
        assert isinstance(metrics["redis_connected"], bool)
        assert datetime.fromisoformat(metrics["timestamp"]).tzinfo is None
        json.dumps(metrics)

    async def test_totals_follow_what_is_stored(self, storage: Backend) -> None:
        """Totals are the store's: they rise with creates and fall with ends and deletes."""
        names = ("total_sessions", "active_sessions", "total_messages", "total_checkpoints")

        async def totals() -> list[int]:
            metrics = await storage.get_metrics()
            return [metrics[name] for name in names]

        async def risen(since: list[int]) -> list[int]:
            return [now - then for now, then in zip(await totals(), since, strict=True)]

        start, one, two = await totals(), fresh(), fresh()
        for key in (one, two):
            await storage.create_session(key, "u")
            await say(storage, key, "a", "b")
            await storage.store_checkpoint(key, "c", {})
            await storage.store_checkpoint(key, "c", {"again": 1})
        assert await risen(start) == [2, 2, 4, 2]
        await storage.end_session(one)
        await storage.create_session(two, "again")
        assert await risen(start) == [2, 1, 4, 2]
        await storage.delete_session(one)
        await storage.delete_thread(two)
        assert await risen(start) == [1, 1, 2, 1]
