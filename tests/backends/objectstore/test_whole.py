"""Beside the reference in memory, with tiny pages: the same store, and no object more than it needs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.objectstore import ObjectStorageBackend, _rows
from aiecs_resilient.backends.objectstore._names import CONTENT, HEADS, INDEX, shard_of
from aiecs_resilient.backends.objectstore._prepare import Sizes
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.records import Scope
from aiecs_resilient.testing.clock import FakeWallClock
from aiecs_resilient.testing.contract import _mutations as make
from aiecs_resilient.testing.contract.convergence import state_of

KEYS = ("a", "b", "c:d")
TINY = Sizes(tail_bytes=500, page_bytes=600)
TOTALS = ("total_sessions", "active_sessions", "total_messages", "total_checkpoints")


@pytest.fixture(autouse=True)
def _large_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "LARGE_BYTES", 40)


async def needed_and_there(storage: ObjectStorageBackend) -> tuple[set[str], set[str]]:
    """Paths of immutable objects that heads name, and of those that are there; the same for index entries."""
    loader, needed = storage._loader, set[str]()
    for item in await loader.objects.list_after(HEADS, "", 10_000):
        shard = item.path.removeprefix(f"{HEADS}/")
        head = (await loader.head(shard)).head
        assert head is not None
        ids = await storage._collector._needed(shard, head)
        assert len(ids) == head.objects, "the head counts its objects"
        needed |= {f"{CONTENT}/{shard}/{id}" for id in ids} | set(head.entries.values())
    there = [item for name in (CONTENT, INDEX) for item in await loader.objects.list_after(name, "", 100_000)]
    return needed, {item.path for item in there}


async def _settled(storage: ObjectStorageBackend) -> None:
    while storage._committer._tasks:
        await asyncio.gather(*storage._committer._tasks)


@pytest.mark.parametrize("seed", range(8))
async def test_decides_as_memory_across_restarts(folder: Path, seed: int) -> None:
    """A long mixed past on three keys, reopened now and then: stamps, answers, effects, state, totals; no object too many."""
    chooser = random.Random(seed)
    histories = {key: make.random_history(chooser, key, 120) for key in KEYS}
    mixed = [key for key in KEYS for _ in range(120)]
    chooser.shuffle(mixed)
    turns = {key: iter(history) for key, history in histories.items()}
    items = [next(turns[key]) for key in mixed]
    storage = ObjectStorageBackend(f"file://{folder}/store", cache_size=4_000, _sizes=TINY)
    async with MemoryStorageBackend() as reference:
        while items:
            size = chooser.randint(1, 60)
            now, items = items[:size], items[size:]
            async with storage:
                mine, theirs = await make.apply(storage, *now), await make.apply(reference, *now)
                assert mine == theirs
        async with storage:
            for key in KEYS:
                assert await state_of(storage, key, histories[key]) == await state_of(
                    reference, key, histories[key]
                )
            assert await storage.list_sessions() == await reference.list_sessions()
            assert await storage.list_threads() == await reference.list_threads()
            mine_now, theirs_now = await storage.get_metrics(), await reference.get_metrics()
            assert [mine_now[name] for name in TOTALS] == [theirs_now[name] for name in TOTALS]
            for key in KEYS:  # so that garbage of the last delete is collected
                await storage.add_conversation_message(key, "user", "x")
            await _settled(storage)
            needed, there = await needed_and_there(storage)
            assert there == needed


@pytest.mark.parametrize("seed", range(6))
async def test_shuffled_replays_give_equal_stores(folder: Path, seed: int) -> None:
    """Records of one store, replayed in any order and partly twice into another: equal, down to the records."""
    chooser = random.Random(100 + seed)
    async with (
        ObjectStorageBackend(f"file://{folder}/one", _sizes=TINY) as one,
        ObjectStorageBackend(f"file://{folder}/two", cache_size=1, _sizes=TINY) as two,
    ):
        histories = {key: make.random_history(chooser, key, 80) for key in KEYS}
        for history in histories.values():
            await make.apply(one, *history)
        replays = await make.records(one, *KEYS)
        arrivals = [*replays, *chooser.sample(replays, len(replays) // 2)]
        chooser.shuffle(arrivals)
        for start in range(0, len(arrivals), 7):
            await make.apply(two, *arrivals[start : start + 7])
        for key, history in histories.items():
            assert await state_of(one, key, history) == await state_of(two, key, history)
        assert await make.records(two, *KEYS) == replays
        await _settled(two)
        needed, there = await needed_and_there(two)
        assert there == needed


@pytest.fixture
async def storage(folder: Path) -> AsyncIterator[ObjectStorageBackend]:
    async with ObjectStorageBackend(f"file://{folder}/store", retention=3600, _sizes=TINY) as backend:
        yield backend


async def test_a_deleted_session_leaves_a_tombstone_and_nothing_else(storage: ObjectStorageBackend) -> None:
    """Pages and large values go at once, identities after their retention; what stays says only what is void."""
    clock = FakeWallClock()
    with use_wall_clock(clock):
        await storage.create_session("s", "u", {"large": "x" * 100})
        await storage.batch_add_conversation_messages(
            [{"session_id": "s", "role": "user", "content": f"{n} " * 30} for n in range(300)]
        )
        await storage.store_checkpoint("s", "c", {"v": "y" * 100})
        _needed, before = await needed_and_there(storage)
        assert len(before) > 300
        await storage.delete_session("s")
        await storage.delete_thread("s")
        await _settled(storage)
        needed, there = await needed_and_there(storage)
        assert there == needed
        assert len([path for path in there if path.startswith(CONTENT)]) < 150, "records are remembered"
        for _hour in range(3):
            clock.advance(4_000)
            await storage.cleanup_expired_sessions()
            await _settled(storage)
        needed, there = await needed_and_there(storage)
        assert (needed, there) == (set(), set())
        [head] = await storage._loader.objects.list_after(HEADS, "", 10)
        held = (await storage._loader.head(head.path.removeprefix(f"{HEADS}/"))).head
        assert held is not None
        assert held.tail == {}
        assert held.row.session_dead > 0
        [late] = await storage.apply(
            [make.message("s", "late", stamp=held.row.session_dead - 1, replay=True)]
        )
        assert not isinstance(late, Exception)
        assert await storage.get_conversation_history("s") == []


async def test_identities_of_deleted_messages_are_forgotten(storage: ObjectStorageBackend) -> None:
    """Records were looked at while their messages lived, and kept; once the messages are deleted they go too."""
    clock = FakeWallClock(tick_us=1)
    with use_wall_clock(clock):
        said = make.message("s", "said")
        await make.apply(storage, said, *(make.message("s", f"m{n}") for n in range(50)))
        clock.advance(7_200)
        for n in range(50):
            await storage.add_conversation_message("s", "user", f"later {n}")
        assert await storage.operation_outcome("s", said.op_id) == "applied"
        head = storage._loader.last_seen(shard_of("s"))
        assert head is not None
        assert head.head is not None
        assert head.head.walked > said.stamp
        await storage.delete_session("s")
        for n in range(50):
            await storage.add_conversation_message("s", "user", f"new {n}")
        assert await storage.operation_outcome("s", said.op_id) == "not_applied"
        assert len(await storage.get_conversation_history("s", 0)) == 50


async def test_old_identities_are_forgotten(storage: ObjectStorageBackend) -> None:
    """Past retention counters go, messages and stored checkpoints are known as long as they live, marks until they close."""
    clock = FakeWallClock(tick_us=1)
    with use_wall_clock(clock):
        await storage.create_session("s", "u")
        counted, said, marked = (
            make.update("s"),
            make.message("s", "said"),
            make.update("s", mark=True),
        )
        stored, replaced = make.checkpoint("s", "c", 1), make.checkpoint("s", "d", 1)
        await make.apply(storage, counted, said, marked, stored, replaced, make.checkpoint("s", "d", 2))
        clock.advance(7_200)
        for n in range(300):
            await storage.update_session("s", {"n": n})
        known = {
            item.op_id: await storage.operation_outcome("s", item.op_id)
            for item in (counted, said, marked, stored, replaced)
        }
        assert known[counted.op_id] == known[replaced.op_id] == "not_applied"
        assert known[said.op_id] == known[marked.op_id] == known[stored.op_id] == "applied"
        assert (await storage.store_state()).open_marks == 1
        [opened] = await make.records(storage, "s", open_only=True)
        assert opened.op_id == marked.op_id
        from aiecs_resilient.records import RecordRef

        assert await storage.close_marks([RecordRef("s", opened.op_id, opened.stamp, opened.rank)]) == 1
        clock.advance(7_200)
        for n in range(300):
            await storage.update_session("s", {"n": n})
        assert await storage.operation_outcome("s", marked.op_id) == "not_applied"
        assert await storage.operation_outcome("s", said.op_id) == "applied"
        session = await storage.get_session("s")
        assert session is not None
        assert session["request_count"] == 2
        head = storage._loader.last_seen(shard_of("s"))
        assert head is not None
        assert head.head is not None
        assert len(head.head.tail) < 100


async def test_busy_keys_move_on_in_the_wheel(folder: Path) -> None:
    """Clean-up looks at a busy key once an hour, not at every run; an idle one is found however late."""
    clock = FakeWallClock(tick_us=1)
    with use_wall_clock(clock):
        async with ObjectStorageBackend(f"file://{folder}/store", session_ttl=10 * 3600) as storage:
            for key in ("busy", "idle"):
                await storage.add_conversation_message(key, "user", "x")
            entries = await _entries(storage)
            for _hour in range(12):
                clock.advance(3_600)
                await storage.add_conversation_message("busy", "user", "x")
            assert await _entries(storage) == entries, "a write moves no entry"
            idle = await storage.read_idle(wall_us() - 2 * 3_600_000_000, 100)
            assert [(item.key, item.scope) for item in idle] == [("idle", Scope.ALL)]
            moved = await _entries(storage)
            assert len(moved - entries) == 2, "the busy key's, in both wheels"
            assert [item.key for item in await storage.read_idle(wall_us() - 2 * 3_600_000_000, 100)] == [
                "idle"
            ]
            assert await _entries(storage) == moved
            assert await storage.cleanup_expired_sessions(2) == 1
            assert len(await storage.get_conversation_history("busy")) == 13
            clock.advance(11 * 3_600)
            assert [(item.key, item.scope) for item in await storage.read_idle(0, 100)] == [
                ("busy", Scope.SESSION)
            ]


async def _entries(storage: ObjectStorageBackend) -> set[str]:
    return {item.path for item in await storage._loader.objects.list_after(INDEX, "", 1_000)}


async def test_leftovers_are_swept(storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed writer left is removed once it is old, with and without a head; what is needed or young stays."""
    texts = [f"{n} " * 30 for n in range(50)]
    await storage.batch_add_conversation_messages(
        [{"session_id": "s", "role": "user", "content": text} for text in texts]
    )
    await _settled(storage)
    _needed, there = await needed_and_there(storage)
    shard = next(iter(there)).split("/")
    strays = [f"{CONTENT}/{'/'.join(_shard_of(there))}/{n:024x}" for n in range(5)] + [
        f"{CONTENT}/00/{'0' * 64}/{n:024x}" for n in range(5)
    ]
    entry = next(path for path in there if path.startswith(f"{INDEX}/idle"))
    strays.append(f"{entry[:-12]}{'0' * 12}")
    assert shard
    await storage._loader.objects.put([(path, b"") for path in strays])
    assert await storage._collector.sweep() == 0, "they are young"
    monkeypatch.setattr(storage._collector, "_age_us", -60_000_000)
    assert await storage._collector.sweep() == len(strays)
    _needed, left = await needed_and_there(storage)
    assert left == there
    assert [item["content"] for item in await storage.get_conversation_history("s", 0)] == texts


def _shard_of(there: set[str]) -> Sequence[str]:
    return next(path for path in there if path.startswith(CONTENT)).split("/")[1:3]


async def test_a_large_sweep_goes_in_steps(
    storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call looks at a bounded number of objects and goes on where the last one stopped, round and round."""
    from aiecs_resilient.backends.objectstore import _garbage

    monkeypatch.setattr(_garbage, "SWEEP_STEP", 7)
    monkeypatch.setattr(_garbage, "ENTRIES_STEP", 3)
    monkeypatch.setattr(storage._collector, "_age_us", -60_000_000)
    await storage.batch_add_conversation_messages(
        [{"session_id": f"s{n % 9}", "role": "user", "content": "x" * 99} for n in range(40)]
    )
    strays = [f"{CONTENT}/{n:02x}/{n:02x}{'0' * 62}/{n:024x}" for n in range(40)]
    await storage._loader.objects.put([(path, b"") for path in strays])
    removed = [await storage._collector.sweep() for _ in range(30)]
    assert sum(removed) == len(strays)
    assert max(removed) <= 7
    needed, there = await needed_and_there(storage)
    assert there == needed
