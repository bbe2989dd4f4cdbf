"""Growth: what a request costs does not depend on how much there is already. Counted in requests and bytes, not in time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend
from aiecs_resilient.backends.objectstore._objects import Found, Listed, Unchanged


class Meter:
    """Counts what a backend asks of its objects."""

    def __init__(self, storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        objects = storage._objects
        self._get, self._put, self._swap, self._list = (
            objects.get,
            objects.put,
            objects.swap,
            objects.list_after,
        )
        for name in ("get", "put", "swap", "list_after"):
            monkeypatch.setattr(objects, name, getattr(self, name))
        self.reset()

    def reset(self) -> None:
        self.reads = self.writes = self.lists = self.read_bytes = self.written_bytes = 0

    async def get(self, path: str, known: str | None = None) -> Found | Unchanged | None:
        found = await self._get(path, known)
        self.reads += 1
        self.read_bytes += len(found.data) if isinstance(found, Found) else 0
        return found

    async def put(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.writes += len(items)
        self.written_bytes += sum(len(data) for _path, data in items)
        await self._put(items)

    async def swap(self, path: str, data: bytes, version: str | None) -> str:
        self.writes += 1
        self.written_bytes += len(data)
        return await self._swap(path, data, version)

    async def list_after(self, prefix: str, after: str, limit: int) -> list[Listed]:
        self.lists += 1
        return await self._list(prefix, after, limit)


@pytest.fixture
async def storage(folder: Path) -> AsyncIterator[ObjectStorageBackend]:
    async with ObjectStorageBackend(f"file://{folder}/store") as backend:
        yield backend


@pytest.fixture
def meter(storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(storage, monkeypatch)


async def _say(storage: ObjectStorageBackend, start: int, count: int) -> None:
    await storage.batch_add_conversation_messages(
        [
            {"session_id": "s", "role": "user", "content": f"message {n} " * 8}
            for n in range(start, start + count)
        ]
    )


async def test_an_append_costs_the_same_at_any_length(storage: ObjectStorageBackend, meter: Meter) -> None:
    """Two hundred appends to twenty thousand messages write about as much as to one thousand, and read nothing old."""
    costs: dict[int, tuple[int, int, int]] = {}
    length = 0
    for target in (1_000, 20_000):
        while length < target:
            await _say(storage, length, 1_000)
            length += 1_000
        meter.reset()
        for n in range(200):
            await storage.add_conversation_message("s", "user", f"message {n} " * 8)
        costs[target] = (meter.written_bytes, meter.writes, meter.reads)
        length += 200
    assert costs[20_000][0] <= 1.3 * costs[1_000][0]
    assert costs[20_000][1] <= 1.3 * costs[1_000][1]
    assert costs[20_000][1] < 230, "mostly one request each"
    assert costs[20_000][2] <= 5
    assert costs[20_000][0] / 200 < 100_000


async def test_recent_history_costs_the_same_at_any_length(
    storage: ObjectStorageBackend, meter: Meter
) -> None:
    """The newest fifty, and fifty before a cursor in the middle, of twenty thousand as of one thousand; cold and warm."""
    costs: dict[int, tuple[int, int]] = {}
    length = 0
    for target in (1_000, 20_000):
        while length < target:
            await _say(storage, length, 1_000)
            length += 1_000
        [middle] = (await storage.get_conversation_history("s", length // 2))[:1]
        storage._loader.clear()
        meter.reset()
        newest = await storage.get_conversation_history("s", 50)
        older = await storage.get_conversation_history("s", 50, before=middle["position"])
        costs[target] = (meter.reads, meter.read_bytes)
        assert newest[-1]["content"].startswith(f"message {length - 1} ")
        assert older[-1]["position"] < middle["position"]
        meter.reset()
        assert await storage.get_conversation_history("s", 50) == newest
        assert (meter.reads, meter.read_bytes) == (1, 0), "one look whether the head is still the same"
    assert costs[20_000][0] <= costs[1_000][0] + 4, "a level more"
    assert costs[20_000][1] <= 2 * costs[1_000][1]


async def test_latest_checkpoint_costs_the_same_at_any_length(
    storage: ObjectStorageBackend, meter: Meter
) -> None:
    """The latest of two thousand checkpoints as of twenty; large values are fetched only where they are asked for."""
    costs: dict[int, int] = {}
    length = 0
    for target in (20, 2_000):
        for n in range(length, target):
            await storage.store_checkpoint(
                "t", f"c{n}", {"n": n, "large": "x" * 10_000 if n % 100 == 99 else ""}
            )
        length = target
        storage._loader.clear()
        meter.reset()
        latest = await storage.get_checkpoint("t")
        assert latest is not None
        assert latest["data"]["n"] == target - 1
        costs[target] = meter.reads
    assert costs[2_000] <= costs[20] + 6
    meter.reset()
    await storage.store_checkpoint("t", "c1999", {"n": "again"})
    assert meter.read_bytes < 200_000


async def test_a_page_of_a_list_looks_at_a_page_of_heads(storage: ObjectStorageBackend, meter: Meter) -> None:
    """Ten of a thousand sessions cost ten heads, with and without a filter; another's sessions are not looked at."""
    await storage.batch_create_sessions(
        [{"session_id": f"s{n:04d}", "user_id": f"u{n % 10}"} for n in range(1_000)]
    )
    for n in range(0, 1_000, 100):
        await storage.end_session(f"s{n:04d}")
    storage._loader.clear()
    for filters, expected in (
        ({}, [f"s{n:04d}" for n in range(501, 511)]),
        ({"user_id": "u3"}, [f"s{n:04d}" for n in range(503, 603, 10)]),
        ({"status": "completed"}, [f"s{n:04d}" for n in range(600, 1_000, 100)]),
        ({"user_id": "u3", "status": "completed"}, []),
    ):
        meter.reset()
        found = await storage.list_sessions(after="s0500", limit=10, **filters)  # type: ignore[arg-type]
        assert [session["session_id"] for session in found] == expected
        assert meter.reads <= 10
        assert meter.lists <= 2


async def test_totals_read_only_what_changed(storage: ObjectStorageBackend, meter: Meter) -> None:
    """The second report of totals reads the heads that were written since the first one."""
    await storage.batch_create_sessions([{"session_id": f"s{n}", "user_id": "u"} for n in range(200)])
    await storage.get_metrics()
    await storage.add_conversation_message("s7", "user", "x")
    meter.reset()
    metrics = await storage.get_metrics()
    assert (metrics["total_sessions"], metrics["total_messages"]) == (200, 1)
    assert meter.reads == 1


async def test_concurrent_writes_of_a_key_share_commits(storage: ObjectStorageBackend, meter: Meter) -> None:
    """A hundred increments at once are a few commits, a lone one is one request."""
    import asyncio

    await storage.create_session("s", "u")
    meter.reset()
    await asyncio.gather(*(storage.update_session("s", increment_requests=True) for _ in range(100)))
    assert meter.writes <= 3
    meter.reset()
    await storage.update_session("s", increment_requests=True)
    assert (meter.writes, meter.reads, meter.lists) == (1, 0, 0)
    metrics = await storage.get_metrics()
    assert metrics["group_commit"]["largest"] >= 50
