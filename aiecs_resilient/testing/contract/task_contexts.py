"""Task contexts: versions, newest first (C9)."""

from __future__ import annotations

from datetime import datetime

import pytest

from ...clock import use_wall_clock, wall_us
from ...errors import ConflictError, InvalidValueError
from ...interface import Backend
from ._base import ContractBase, fresh, named, version_of


class TaskContextContract(ContractBase):
    """What ``ITaskContextStorage`` promises."""

    async def test_the_newest_context_counts(self, storage: Backend) -> None:
        """get gives what was stored last; the session need not exist and none comes of it."""
        key = fresh()
        assert await storage.get_task_context(key) is None
        assert await storage.store_task_context(key, {"step": 1}) is True
        assert await storage.store_task_context(key, {"step": 2}) is True
        assert await storage.get_task_context(key) == {"step": 2}
        assert await storage.get_session(key) is None

    @pytest.mark.parametrize(
        "value", [{"a": 1}, [1, 2], (1, 2), "text", 7, 1.5, True, b"\x00", {}, [], "", 0, False]
    )
    async def test_a_context_may_be_any_value(self, storage: Backend, value: object) -> None:
        """Not only dicts; what is falsy is a value too."""
        key = fresh()
        await storage.store_task_context(key, value)
        found = await storage.get_task_context(key)
        assert found == value
        assert type(found) is type(value)

    async def test_versions_are_listed_newest_first(self, storage: Backend) -> None:
        """list_task_contexts gives version, context and created_at; limit 0 gives []."""
        key = fresh()
        versions = [await version_of(storage.store_task_context(key, {"n": n})) for n in range(4)]
        listed = await storage.list_task_contexts(key)
        assert [set(entry) for entry in listed] == [{"version", "context", "created_at"}] * 4
        assert [entry["version"] for entry in listed] == versions[::-1]
        assert [entry["context"] for entry in listed] == [{"n": n} for n in (3, 2, 1, 0)]
        assert datetime.fromisoformat(listed[0]["created_at"]).tzinfo is None
        assert await storage.list_task_contexts(key, 2) == listed[:2]
        assert await storage.list_task_contexts(key, 0) == []
        assert await storage.list_task_contexts(fresh()) == []
        with pytest.raises(InvalidValueError):
            await storage.list_task_contexts(key, -1)

    async def test_old_versions_are_pruned_in_the_end(self, storage: Backend) -> None:
        """The number of kept versions is bounded, and those kept are the newest."""
        key = fresh()
        for n in range(40):
            await storage.store_task_context(key, n)
        kept = [entry["context"] for entry in await storage.list_task_contexts(key, 1_000)]
        assert kept == list(range(39, 39 - len(kept), -1))
        assert 1 <= len(kept) < 40

    async def test_clock_ties_do_not_decide_the_newest(self, storage: Backend) -> None:
        """Versions of the same microsecond keep the order in which they were stored."""
        key, now = fresh(), wall_us()
        with use_wall_clock(lambda: now):
            for n in range(5):
                await named(f"op{9 - n}", storage.store_task_context(key, n))
        assert await storage.get_task_context(key) == 4

    async def test_a_context_expects_a_version(self, storage: Backend) -> None:
        """expected_version 0 means "none yet", a version "this is the newest"; else ConflictError and no write."""
        key = fresh()
        first = await version_of(storage.store_task_context(key, "one", expected_version=0))
        with pytest.raises(ConflictError):
            await storage.store_task_context(key, "lost", expected_version=0)
        assert await version_of(storage.get_task_context(key)) == first
        await storage.store_task_context(key, "two", expected_version=first)
        with pytest.raises(ConflictError):
            await storage.store_task_context(key, "lost", expected_version=first)
        assert await storage.get_task_context(key) == "two"
