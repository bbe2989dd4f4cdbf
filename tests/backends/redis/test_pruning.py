"""Old identities are forgotten, living rows keep theirs, and nothing that the peer lacks is lost."""

from __future__ import annotations

from typing import Any

from aiecs_resilient.backends.redis import RedisStorageBackend, _pruning
from aiecs_resilient.backends.redis._pruning import Pruner
from aiecs_resilient.clock import wall_us
from aiecs_resilient.records import Kind, Mutation
from aiecs_resilient.testing.servers import ValkeyServer

HOUR = 3_600_000_000


def _old(number: int, kind: str, **facts: Any) -> Mutation:
    bodies: dict[str, dict[str, Any]] = {
        Kind.CREATE: {"user_id": "u", "metadata": b"\x80"},
        Kind.UPDATE: {"fields": {}, "requests": 1, "time_us": 0, "errors": 0, "inc": "0"},
        Kind.MESSAGE: {"role": "user", "content": "x", "metadata": b"\x80"},
        Kind.CHECKPOINT: {"ns": "", "id": "c", "data": b"\x80", "metadata": b"\x80", "parent": ""},
        Kind.CONTEXT: {"value": b"\x01"},
    }
    stamp = wall_us() - 2 * HOUR + number
    return Mutation(
        key=f"k{number % 3}\x00",
        op_id=str(number),
        kind=kind,
        body=bodies[kind],
        fingerprint=b"0" * 16,
        occurred_at=stamp,
        stamp=stamp,
        replay=True,
        **facts,
    )


async def _known(backend: RedisStorageBackend, items: list[Mutation]) -> set[str]:
    return {item.op_id for item in items if await backend._read_outcome(item.key, item.op_id)}


def _pruner(backend: RedisStorageBackend) -> Pruner:
    return Pruner(backend._use(), backend._keys, backend._scripts, HOUR)


async def test_what_is_forgotten(backend: RedisStorageBackend) -> None:
    """Counters past retention go; messages, live checkpoints, open marks and everything young stay."""
    old = [
        _old(0, Kind.CREATE),
        _old(3, Kind.UPDATE),
        _old(6, Kind.UPDATE, mark=True),
        _old(9, Kind.MESSAGE),
        _old(12, Kind.CHECKPOINT),  # replaced by the next
        _old(15, Kind.CHECKPOINT),
        _old(18, Kind.CONTEXT),
    ]
    await backend.apply(old)
    await backend.update_session(old[0].key, increment_requests=True)
    pruner = _pruner(backend)
    assert await pruner.walk() == 4
    assert await _known(backend, old) == {"6", "9", "15"}
    session = await backend.get_session(old[0].key)
    assert session is not None
    assert session["request_count"] == 3
    page = await backend.read_records(open_only=False)
    assert [record.op_id for record in page.records][:3] == ["6", "9", "15"]
    assert len(page.records) == 4
    assert (await backend.store_state()).open_marks == 1


async def test_walks_of_many_steps(backend: RedisStorageBackend) -> None:
    """More records than one step looks at, living ones in between: all that can go is gone after one walk."""
    size = 3 * _pruning.PAGE
    old = [_old(0, Kind.CREATE)]
    old += [_old(3 * n, Kind.MESSAGE if n % 2 else Kind.UPDATE) for n in range(1, size)]
    await backend.apply(old)
    pruner = _pruner(backend)
    forgotten = await pruner.walk()
    known = await _known(backend, old)
    assert forgotten == len(old) - len(known)
    assert known == {item.op_id for item in old if item.kind == Kind.MESSAGE}
    assert await pruner.walk() == 0


async def test_messages_that_died_are_forgotten_on_the_next_full_walk(backend: RedisStorageBackend) -> None:
    """What a walk passed over because it lived goes when it no longer does."""
    item = _old(1, Kind.MESSAGE)
    await backend.apply([item])
    pruner = _pruner(backend)
    assert await pruner.walk() == 0
    await backend.delete_session(item.key)
    assert await pruner.walk() == 0  # it goes on from where it was
    assert await _pruner(backend).walk() == 1


async def test_one_process_prunes(server: ValkeyServer, prefix: str) -> None:
    """A lease keeps the others from doing the same work."""
    async with RedisStorageBackend(server.url, prefix=prefix) as backend:
        first, second = _pruner(backend), _pruner(backend)
        assert [await first._lease(), await second._lease(), await first._lease()] == [True, False, True]
