"""Convergence: two stores that hold the same records are equal, in whatever order and however often they arrived (R4)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ...backends.memory import MemoryStorageBackend
from ...clock import wall_us
from ...interface import Backend
from ...records import Applied, Kind, Mutation, RecordRef
from . import _mutations as make
from ._base import ContractBase, fresh, snapshot
from ._mutations import apply, random_history, records, replays

SEEDS = range(12)
every_seed = pytest.mark.parametrize("seed", SEEDS)


class ConvergenceContract(ContractBase):
    """The store under test beside the reference in memory, each in turn leader and follower."""

    @every_seed
    async def test_a_follower_equals_its_leader(self, storage: Backend, seed: int) -> None:
        """Whatever the reference accepted, replayed here in any order and partly twice, gives the same store."""
        chooser = random.Random(seed)  # noqa: S311  reproducible, not secret
        key = fresh()
        async with MemoryStorageBackend() as leader:
            history = random_history(chooser, key, 60)
            replayed = replays(history, [await _one(leader, item) for item in history])
            arrivals = replayed + chooser.sample(replayed, len(replayed) // 3)
            chooser.shuffle(arrivals)
            await _apply_in_chunks(chooser, storage, arrivals)
            assert await state_of(storage, key, history) == await state_of(leader, key, history)

    @every_seed
    async def test_a_leader_equals_its_follower(self, storage: Backend, seed: int) -> None:
        """Whatever this store accepted, replayed to the reference in any order and partly twice, gives the same store."""
        chooser = random.Random(1_000 + seed)  # noqa: S311  reproducible, not secret
        key = fresh()
        history = random_history(chooser, key, 60)
        applied = await apply(storage, *history)
        async with MemoryStorageBackend() as follower:
            arrivals = replays(history, applied) * 2
            chooser.shuffle(arrivals)
            await _apply_in_chunks(chooser, follower, arrivals)
            assert await state_of(follower, key, history) == await state_of(storage, key, history)

    @every_seed
    async def test_this_store_decides_as_the_reference(self, storage: Backend, seed: int) -> None:
        """Given the same writes, this store and the reference give the same stamps, answers, effects and state."""
        chooser = random.Random(2_000 + seed)  # noqa: S311  reproducible, not secret
        key = fresh()
        history = random_history(chooser, key, 60)
        async with MemoryStorageBackend() as reference:
            theirs = await apply(reference, *history)
            mine = await apply(storage, *history)
            for item, one, two in zip(history, mine, theirs, strict=True):
                assert one == two, item
            assert await state_of(storage, key, history) == await state_of(reference, key, history)
            assert [_plain(record) for record in await records(storage, key)] == [
                _plain(record) for record in await records(reference, key)
            ]

    @every_seed
    async def test_records_carry_a_store_over(self, storage: Backend, seed: int) -> None:
        """read_records alone, replayed in any order, is enough to make an equal store; then all marks can be closed."""
        chooser = random.Random(3_000 + seed)  # noqa: S311  reproducible, not secret
        key = fresh()
        history = random_history(chooser, key, 60)
        for item in history:
            item.mark = True
        await apply(storage, *history)
        opened = await records(storage, key, open_only=True)
        shuffled = chooser.sample(opened, len(opened))
        async with MemoryStorageBackend() as peer:
            applied: list[Applied] = []
            for item in shuffled:
                applied += await apply(peer, item)
            assert await state_of(peer, key, history) == await state_of(storage, key, history)
        refs = [
            RecordRef(key, item.op_id, result.stamp, result.rank)
            for item, result in zip(shuffled, applied, strict=True)
        ]
        assert await storage.close_marks(refs) == len(opened)
        assert await records(storage, key, open_only=True) == []

    @every_seed
    async def test_a_split_heals(self, storage: Backend, seed: int) -> None:
        """Both stores accepted, some operations on both under two stamps: after each heard all of the other they are equal."""
        chooser = random.Random(4_000 + seed)  # noqa: S311  reproducible, not secret
        key = fresh()
        async with MemoryStorageBackend() as other:
            created = make.create(key)
            await apply(other, *replays([created], await apply(storage, created)))
            now, history = wall_us(), list[Mutation]()
            for n in range(30):
                item = chooser.choice(
                    [
                        make.update(key, 1, {f"f{n % 3}": n}),
                        make.message(key, f"m{n}"),
                        make.context(key, n),
                        make.checkpoint(key, f"c{n % 4}", n),
                        make.writes(key, f"c{n % 4}", "t", n),
                    ]
                )
                # What replaces something is stamped by one who has seen what it replaces; messages replace nothing.
                rising = 10_000 + 100 * n
                item.stamp = now + (chooser.randint(0, 3_000) if item.kind == Kind.MESSAGE else rising)
                item.mark = True
                history.append(item)
                first, second = chooser.choice([(storage, other), (other, storage)])
                await apply(first, item)
                if n % 3 == 0:  # its outcome was unknown there, so the coordinator went to the other store
                    item.rank = 1
                    await apply(second, item)
            for _ in range(3):
                await _pass_on(chooser, storage, other, key)
                await _pass_on(chooser, other, storage, key)
            assert await state_of(storage, key, history) == await state_of(other, key, history)
            stands = [
                [(r.op_id, r.stamp, r.rank) for r in await records(side, key)] for side in (storage, other)
            ]
            assert stands[0] == stands[1]


async def state_of(storage: Backend, key: str, history: list[Mutation]) -> dict[str, Any]:
    """Everything under one key, also pending writes whose checkpoint is gone."""
    ids = sorted({item.body["id"] for item in history if item.kind == Kind.WRITES})
    return {
        **await snapshot(storage, key),
        "all writes": {id: await storage.get_writes(key, id) for id in ids},
    }


async def _one(storage: Backend, item: Mutation) -> Applied:
    [result] = await apply(storage, item)
    return result


async def _apply_in_chunks(chooser: random.Random, storage: Backend, items: list[Mutation]) -> None:
    while items:
        size = chooser.randint(1, 12)
        await apply(storage, *items[:size])
        items = items[size:]


async def _pass_on(chooser: random.Random, source: Backend, target: Backend, key: str) -> None:
    opened = await records(source, key, open_only=True)
    for item in chooser.sample(opened, len(opened)):
        [result] = await apply(target, item)
        await source.close_marks([RecordRef(key, item.op_id, result.stamp, result.rank)])


def _plain(record: Mutation) -> tuple[Any, ...]:
    return (
        record.op_id,
        record.kind,
        dict(record.body),
        record.fingerprint,
        record.occurred_at,
        record.stamp,
        record.rank,
        record.answer,
        record.expires_at,
    )
