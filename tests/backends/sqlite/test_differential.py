"""Beside the reference in memory: the same decisions, also across restarts, and equal stores whatever the order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.testing.contract import _mutations as make
from aiecs_resilient.testing.contract.convergence import state_of

KEYS = ("a", "b", "c:d")


@pytest.mark.parametrize("seed", range(6))
async def test_decides_as_memory_across_restarts(tmp_path: Path, seed: int) -> None:
    """A long mixed past on three keys, the file closed and opened again now and then: stamps, answers, effects, state."""
    chooser = random.Random(seed)
    histories = {key: make.random_history(chooser, key, 120) for key in KEYS}
    mixed = [key for key in KEYS for _ in range(120)]
    chooser.shuffle(mixed)
    turns = {key: iter(history) for key, history in histories.items()}
    items = [next(turns[key]) for key in mixed]
    storage = SQLiteStorageBackend(tmp_path / "store.db")
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
            totals = ("total_sessions", "active_sessions", "total_messages", "total_checkpoints")
            mine_now, theirs_now = await storage.get_metrics(), await reference.get_metrics()
            assert [mine_now[name] for name in totals] == [theirs_now[name] for name in totals]


@pytest.mark.parametrize("seed", range(6))
async def test_shuffled_replays_give_equal_stores(tmp_path: Path, seed: int) -> None:
    """Records of one file, replayed in any order and partly twice into another file: equal, down to the records."""
    chooser = random.Random(100 + seed)
    async with (
        SQLiteStorageBackend(tmp_path / "one.db") as one,
        SQLiteStorageBackend(tmp_path / "two.db") as two,
    ):
        histories = {key: make.random_history(chooser, key, 80) for key in KEYS}
        for history in histories.values():
            await make.apply(one, *history)
        replays = await make.records(one, *KEYS)
        arrivals = [*replays, *chooser.sample(replays, len(replays) // 2)]
        chooser.shuffle(arrivals)
        await make.apply(two, *arrivals)
        for key, history in histories.items():
            assert await state_of(one, key, history) == await state_of(two, key, history)
            assert await make.records(one, key) == await make.records(two, key)
