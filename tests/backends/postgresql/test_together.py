"""Many messages in one call are written set by set: nothing tells the result from the reference's, one by one."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.codec import encode, fingerprint
from aiecs_resilient.errors import ConflictError, StorageError
from aiecs_resilient.records import Applied, Kind, Mutation, Route, Scope

SECOND = 1_000_000


def message(key: str, op_id: str, stamp: int, **more: Any) -> Mutation:
    body = {"role": "user", "content": f"{op_id} \x00 ü", "metadata": encode({"n": op_id}, "metadata")}
    return Mutation(
        key=key,
        op_id=op_id,
        kind=Kind.MESSAGE,
        body=body,
        fingerprint=fingerprint(Kind.MESSAGE, key, body),
        occurred_at=stamp - 3,
        stamp=stamp,
        **more,
    )


async def _ways(backend: PostgreSQLStorageBackend) -> list[bool]:
    """Whether each call of the short way was taken, from now on."""
    taken: list[bool] = []
    short = backend._append_many

    async def noted(*args: Any) -> Any:
        result = await short(*args)
        taken.append(result is not None)
        return result

    backend._append_many = noted  # type: ignore[method-assign]
    return taken


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_tells_them_apart(backend: PostgreSQLStorageBackend, seed: int) -> None:
    """New keys and old ones, stamps in any order, repeats, expiry, deletes, fences, replays: the reference's answers."""
    chance = random.Random(seed)
    taken = await _ways(backend)
    keys = [f"k{seed}/{n}{'x' * 300 * (n % 2)}" for n in range(5)]
    now, number, past = wall_us(), 0, list[Mutation]()
    async with MemoryStorageBackend() as memory:
        for store in (backend, memory):
            await store.move_route(0, Route(2, "here"))
        for _round in range(25):
            now += chance.choice([0, 50, 200_000])
            batch: list[Mutation] = []
            fence: dict[str, Any] = chance.choice(
                [
                    {},
                    {},
                    {"epoch": 2, "home": "here"},
                    {"epoch": 1, "home": "there"},
                    {"replay": True, "epoch": 2},
                ]
            )
            for _ in range(chance.randint(2, 9)):
                number += 1
                if past and chance.random() < 0.03:
                    batch.append(replace(chance.choice(past), replay=False, epoch=0, home=""))
                    continue
                stamp = now + chance.choice([-40, -3, 0, 0, 0, 2, 40, 5 * SECOND])
                item = message(chance.choice(keys), f"op{number}", stamp, mark=chance.random() < 0.5, **fence)
                if chance.random() < 0.05:
                    item.expires_at = now + chance.randint(1, 300_000)
                if chance.random() < 0.01:
                    item.stamp -= 7_200 * SECOND
                batch.append(item)
            past += batch
            if chance.random() < 0.1:
                batch = [_delete(chance.choice(keys), f"gone{number}", now)]
            with use_wall_clock(lambda now=now: now):  # type: ignore[misc]
                mine, theirs = [await store.apply(batch) for store in (backend, memory)]
            for item, left, right in zip(batch, mine, theirs, strict=True):
                assert type(left) is type(right), item
                if isinstance(left, Applied):
                    assert left == right, item
        with use_wall_clock(lambda: now):
            for key in keys:
                assert await backend.get_conversation_history(
                    key, 0
                ) == await memory.get_conversation_history(key, 0)
            states = [await store.store_state() for store in (backend, memory)]
            assert states[0].open_marks == states[1].open_marks
    assert taken.count(True) > 3
    assert taken.count(False) > 3


def _delete(key: str, op_id: str, stamp: int) -> Mutation:
    body = {"scope": Scope.SESSION, "before": 0}
    return Mutation(
        key=key,
        op_id=op_id,
        kind=Kind.DELETE,
        body=body,
        fingerprint=fingerprint(Kind.DELETE, key, body),
        occurred_at=stamp,
        stamp=stamp,
    )


async def test_a_repeat_inside_one_call_has_one_effect(backend: PostgreSQLStorageBackend) -> None:
    """The same identity twice among many, also for a key that nobody knew: once, and the second is a duplicate."""
    taken = await _ways(backend)
    now = wall_us()
    one, two = message("new", "a", now), message("new", "b", now)
    results = await backend.apply([one, two, one])
    assert [isinstance(item, Applied) and item.duplicate for item in results] == [False, False, True]
    assert len(await backend.get_conversation_history("new", 0)) == 2
    other = replace(two, fingerprint=b"another payload!")
    [again, wrong] = await backend.apply([one, other])
    assert isinstance(again, Applied)
    assert again.duplicate
    assert isinstance(wrong, ConflictError)
    assert taken == [False, False]


async def test_a_refused_call_leaves_no_key_behind(backend: PostgreSQLStorageBackend) -> None:
    """What is refused has changed nothing, not even made a key."""
    old = wall_us() - 7_200 * SECOND
    results = await backend.apply([message("never", "a", old), message("nor this", "b", old)])
    assert all(isinstance(result, StorageError) for result in results)
    [row] = await backend._opened().fetch(f'SELECT count(*) FROM "{backend._schema}".keys')
    assert row[0] == 0


async def test_many_at_once_do_not_lock_each_other_out(backend: PostgreSQLStorageBackend) -> None:
    """Calls over the same keys in different orders, new and old ones, wait for each other and never deadlock."""
    chance = random.Random(1)
    now = wall_us()

    async def one(number: int) -> list[Applied | StorageError]:
        keys = [f"k{n}" for n in range(20)]
        chance.shuffle(keys)
        return await backend.apply([message(key, f"{number}/{key}", now) for key in keys])

    for results in await asyncio.gather(*(one(number) for number in range(20))):
        assert all(isinstance(result, Applied) for result in results)
    for n in range(20):
        held = await backend.get_conversation_history(f"k{n}", 0)
        assert len(held) == 20
        assert [item["position"] for item in held] == sorted({item["position"] for item in held})


async def test_it_is_the_short_way(backend: PostgreSQLStorageBackend) -> None:
    """Messages alone take it, for new keys and old ones; among other writes they take the general way."""
    taken = await _ways(backend)
    now = wall_us()
    for run in range(2):
        await backend.apply([message(f"s{n % 3}", f"{run}/{n}", now) for n in range(10)])
    await backend.apply([message("s", "m", now), _delete("t", "d", now)])
    assert taken == [True, True, False]
