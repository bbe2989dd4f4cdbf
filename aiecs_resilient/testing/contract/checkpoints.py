"""Checkpoints and pending writes: whole or not at all, latest, order (C7, C8)."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from ...clock import iso, use_wall_clock, wall_us
from ...errors import ConflictError, InvalidValueError
from ...interface import Backend, Json
from ...operations import operation
from ._base import ContractBase, fresh, named, version_of


class CheckpointContract(ContractBase):
    """What ``ICheckpointStorage`` and the checkpoints of ``ICheckpointerBackend`` promise."""

    async def test_a_checkpoint_has_the_whole_shape(self, storage: Backend) -> None:
        """Exactly checkpoint_id, thread_id, data, metadata and created_at, the time naive UTC."""
        thread, when = fresh("t"), 1_700_000_000_000_001
        async with operation(occurred_at=when):
            assert await storage.store_checkpoint(thread, "c1", {"step": 1}, {"source": "loop"}) is True
        checkpoint = await storage.get_checkpoint(thread, "c1")
        assert checkpoint is not None
        assert checkpoint == {
            "checkpoint_id": "c1",
            "thread_id": thread,
            "data": {"step": 1},
            "metadata": {"source": "loop"},
            "created_at": iso(when),
        }
        assert datetime.fromisoformat(checkpoint["created_at"]).tzinfo is None

    async def test_a_checkpoint_has_metadata_by_default(self, storage: Backend) -> None:
        """No metadata is an empty dict, never None."""
        thread = fresh("t")
        await storage.store_checkpoint(thread, "c", {})
        checkpoint = await storage.get_checkpoint(thread)
        assert checkpoint is not None
        assert checkpoint["metadata"] == {}

    async def test_unknown_threads_and_checkpoints_answer_nothing(self, storage: Backend) -> None:
        """None, [] and 0 for what is not there; never an exception."""
        thread = fresh("t")
        assert await storage.get_checkpoint(thread) is None
        assert await storage.get_checkpoint(thread, "c") is None
        assert await storage.list_checkpoints(thread) == []
        assert await storage.prune_checkpoints(thread, 1) == 0
        assert await storage.delete_thread(thread) is False
        await storage.store_checkpoint(thread, "c", {})
        assert await storage.get_checkpoint(thread, "other") is None

    async def test_the_latest_is_the_one_stored_last(self, storage: Backend) -> None:
        """get without an id gives the one stored last, whatever its id sorts like."""
        thread = fresh("t")
        for id in ("b", "c", "a"):
            await storage.store_checkpoint(thread, id, {"id": id})
        assert _id(await storage.get_checkpoint(thread)) == "a"

    async def test_storing_again_replaces_and_makes_it_the_latest(self, storage: Backend) -> None:
        """The same id again replaces data and metadata and moves to the front of the list."""
        thread = fresh("t")
        await storage.store_checkpoint(thread, "one", {"v": 1}, {"old": True})
        await storage.store_checkpoint(thread, "two", {"v": 2})
        await storage.store_checkpoint(thread, "one", {"v": 3})
        latest = await storage.get_checkpoint(thread)
        assert latest is not None
        assert (latest["checkpoint_id"], latest["data"], latest["metadata"]) == ("one", {"v": 3}, {})
        assert _ids(await storage.list_checkpoints(thread)) == ["one", "two"]

    async def test_the_list_is_newest_first_and_limited(self, storage: Backend) -> None:
        """Ten by default, newest first; limit 0 gives []; a negative limit is refused."""
        thread = fresh("t")
        for n in range(12):
            await storage.store_checkpoint(thread, f"c{n}", {"n": n})
        newest = [f"c{n}" for n in reversed(range(12))]
        assert _ids(await storage.list_checkpoints(thread)) == newest[:10]
        assert _ids(await storage.list_checkpoints(thread, 3)) == newest[:3]
        assert _ids(await storage.list_checkpoints(thread, 100)) == newest
        assert await storage.list_checkpoints(thread, 0) == []
        with pytest.raises(InvalidValueError):
            await storage.list_checkpoints(thread, -1)

    async def test_the_list_holds_what_get_gives(self, storage: Backend) -> None:
        """Entries of the list are the whole checkpoints."""
        thread = fresh("t")
        await storage.store_checkpoint(thread, "c", {"deep": [1, {"x": (1, 2)}]}, {"m": 1})
        assert await storage.list_checkpoints(thread) == [await storage.get_checkpoint(thread, "c")]

    async def test_clock_ties_do_not_decide_the_latest(self, storage: Backend) -> None:
        """Checkpoints of the same microsecond keep the order in which they were stored."""
        thread, now = fresh("t"), wall_us()
        with use_wall_clock(lambda: now):
            for n in range(10):
                await named(f"op{9 - n}", storage.store_checkpoint(thread, f"c{9 - n}", {}))
        assert _ids(await storage.list_checkpoints(thread)) == [f"c{n}" for n in range(10)]

    async def test_put_checkpoint_is_the_same_store(self, storage: Backend) -> None:
        """put_checkpoint and store_checkpoint write to one place."""
        thread = fresh("t")
        assert await storage.put_checkpoint(thread, "a", {"v": 1}, {"m": 1}) is True
        await storage.store_checkpoint(thread, "b", {"v": 2})
        assert _ids(await storage.list_checkpoints(thread)) == ["b", "a"]
        await storage.put_checkpoint(thread, "a", {"v": 3})
        assert _id(await storage.get_checkpoint(thread)) == "a"

    async def test_threads_do_not_see_each_other(self, storage: Backend) -> None:
        """The same checkpoint id in two threads is two checkpoints."""
        one, two = fresh("t"), fresh("t")
        await storage.store_checkpoint(one, "c", {"of": 1})
        await storage.store_checkpoint(two, "c", {"of": 2})
        assert [(await storage.list_checkpoints(thread))[0]["data"] for thread in (one, two)] == [
            {"of": 1},
            {"of": 2},
        ]

    async def test_a_checkpoint_is_stored_whole_or_not_at_all(self, storage: Backend) -> None:
        """A replacement that cannot be stored leaves the old checkpoint as it was."""
        thread = fresh("t")
        await storage.store_checkpoint(thread, "c", {"v": 1}, {"m": 1})
        before = await storage.get_checkpoint(thread)
        with pytest.raises(InvalidValueError):
            await storage.store_checkpoint(thread, "c", {"v": 2}, {"m": object()})
        with pytest.raises(InvalidValueError):
            await storage.store_checkpoint(thread, "c", {"v": object()}, {"m": 2})
        assert await storage.get_checkpoint(thread) == before

    async def test_racing_writers_never_mix(self, storage: Backend) -> None:
        """Data and metadata of one checkpoint always come from the same writer."""
        thread = fresh("t")
        await asyncio.gather(
            *(
                storage.store_checkpoint(thread, "c", {"writer": n, "fill": "x" * 500}, {"writer": n})
                for n in range(20)
            )
        )
        checkpoint = await storage.get_checkpoint(thread, "c")
        assert checkpoint is not None
        assert checkpoint["data"]["writer"] == checkpoint["metadata"]["writer"]

    async def test_a_checkpoint_expects_a_version(self, storage: Backend) -> None:
        """expected_version 0 means "none yet", a position "this one"; anything else is ConflictError and no write."""
        thread = fresh("t")
        version = await version_of(storage.store_checkpoint(thread, "c", {"v": 1}, expected_version=0))
        with pytest.raises(ConflictError):
            await storage.store_checkpoint(thread, "c", {"v": "lost"}, expected_version=0)
        assert await version_of(storage.get_checkpoint(thread, "c")) == version
        assert await storage.store_checkpoint(thread, "c", {"v": 2}, expected_version=version) is True
        with pytest.raises(ConflictError):
            await storage.store_checkpoint(thread, "c", {"v": "lost"}, expected_version=version)
        checkpoint = await storage.get_checkpoint(thread, "c")
        assert checkpoint is not None
        assert checkpoint["data"] == {"v": 2}

    async def test_pruning_keeps_the_newest(self, storage: Backend) -> None:
        """prune_checkpoints answers how many it removed and takes their pending writes with them."""
        thread = fresh("t")
        for n in range(5):
            await storage.store_checkpoint(thread, f"c{n}", {})
            await storage.put_writes(thread, f"c{n}", "task", [("channel", n)])
        assert await storage.prune_checkpoints(thread, 2) == 3
        assert _ids(await storage.list_checkpoints(thread)) == ["c4", "c3"]
        assert await storage.get_checkpoint(thread, "c0") is None
        assert await storage.get_writes(thread, "c0") == []
        assert await storage.get_writes(thread, "c4") == [("channel", 4)]
        assert await storage.prune_checkpoints(thread, 2) == 0
        assert await storage.prune_checkpoints(thread, 0) == 2
        assert await storage.get_checkpoint(thread) is None

    async def test_a_pruned_id_can_be_stored_again(self, storage: Backend) -> None:
        """Pruning voids what was there, not what comes later."""
        thread = fresh("t")
        await storage.store_checkpoint(thread, "c", {"v": 1})
        await storage.prune_checkpoints(thread, 0)
        await storage.store_checkpoint(thread, "c", {"v": 2}, expected_version=0)
        await storage.put_writes(thread, "c", "task", [("again", 1)])
        assert (await storage.list_checkpoints(thread))[0]["data"] == {"v": 2}
        assert await storage.get_writes(thread, "c") == [("again", 1)]

    async def test_a_negative_keep_is_refused(self, storage: Backend) -> None:
        """keep_last below zero is a mistake, not "none"."""
        with pytest.raises(InvalidValueError):
            await storage.prune_checkpoints(fresh("t"), -1)


class PendingWritesContract(ContractBase):
    """What ``put_writes`` and ``get_writes`` of ``ICheckpointerBackend`` promise."""

    async def test_writes_come_back_as_tuples_in_put_order(self, storage: Backend) -> None:
        """Tuples stay tuples, also inside values; tasks come in the order in which they were put."""
        thread = fresh("t")
        await storage.store_checkpoint(thread, "c", {})
        first: list[tuple[Any, ...]] = [("channel", {"k": (1, 2)}), ("other", b"\x00\xff", None)]
        assert await storage.put_writes(thread, "c", "task-z", first) is True
        assert await storage.put_writes(thread, "c", "task-a", [("last", 1)]) is True
        found = await storage.get_writes(thread, "c")
        assert found == [*first, ("last", 1)]
        assert all(type(write) is tuple for write in found)
        assert type(found[0][1]["k"]) is tuple

    async def test_clock_ties_do_not_decide_the_order_of_tasks(self, storage: Backend) -> None:
        """Tasks put in the same microsecond, with falling identities and names, keep their order."""
        thread, now = fresh("t"), wall_us()
        with use_wall_clock(lambda: now):
            for n in range(9):
                await named(f"op{9 - n}", storage.put_writes(thread, "c", f"task{9 - n}", [("n", n)]))
        assert await storage.get_writes(thread, "c") == [("n", n) for n in range(9)]

    async def test_the_same_task_again_replaces_its_writes(self, storage: Backend) -> None:
        """A task's writes are replaced as a whole and move to the end; other tasks keep theirs."""
        thread = fresh("t")
        await storage.put_writes(thread, "c", "one", [("a", 1), ("b", 2)])
        await storage.put_writes(thread, "c", "two", [("c", 3)])
        await storage.put_writes(thread, "c", "one", [("d", 4)])
        assert await storage.get_writes(thread, "c") == [("c", 3), ("d", 4)]
        await storage.put_writes(thread, "c", "two", [])
        assert await storage.get_writes(thread, "c") == [("d", 4)]

    async def test_writes_may_arrive_before_their_checkpoint(self, storage: Backend) -> None:
        """No checkpoint is needed, and none comes of it; storing or replacing it later keeps the writes."""
        thread = fresh("t")
        await storage.put_writes(thread, "c", "task", [("early", 1)])
        assert await storage.get_checkpoint(thread, "c") is None
        await storage.store_checkpoint(thread, "c", {"v": 1})
        await storage.store_checkpoint(thread, "c", {"v": 2})
        assert await storage.get_writes(thread, "c") == [("early", 1)]

    async def test_writes_belong_to_one_checkpoint_of_one_thread(self, storage: Backend) -> None:
        """The same task id under another checkpoint or thread is another task."""
        one, two = fresh("t"), fresh("t")
        await storage.put_writes(one, "c", "task", [("one", 1)])
        await storage.put_writes(one, "d", "task", [("two", 2)])
        await storage.put_writes(two, "c", "task", [("three", 3)])
        assert await storage.get_writes(one, "c") == [("one", 1)]
        assert await storage.get_writes(one, "d") == [("two", 2)]
        assert await storage.get_writes(two, "c") == [("three", 3)]

    async def test_unknown_checkpoints_have_no_writes(self, storage: Backend) -> None:
        """[] for what is not there."""
        assert await storage.get_writes(fresh("t"), "c") == []

    async def test_concurrent_tasks_all_keep_their_writes(self, storage: Backend) -> None:
        """Many tasks at once lose nothing."""
        thread = fresh("t")
        await asyncio.gather(*(storage.put_writes(thread, "c", f"task-{n}", [("n", n)]) for n in range(20)))
        assert sorted(await storage.get_writes(thread, "c")) == [("n", n) for n in range(20)]


def _ids(checkpoints: list[Json]) -> list[str]:
    return [checkpoint["checkpoint_id"] for checkpoint in checkpoints]


def _id(checkpoint: Json | None) -> str:
    assert checkpoint is not None
    return str(checkpoint["checkpoint_id"])
