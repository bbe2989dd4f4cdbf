"""Group commit: shared fsyncs, separate fates."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.backends.sqlite._tables import Batch
from aiecs_resilient.errors import BackendClosedError, ConflictError, OverloadedError
from aiecs_resilient.operations import operation


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SQLiteStorageBackend]:
    async with SQLiteStorageBackend(tmp_path / "store.db", max_pending=500) as backend:
        yield backend


class Gate:
    """Holds the writer inside a job until it is opened."""

    def __init__(self, storage: SQLiteStorageBackend) -> None:
        self._reached, self._open = threading.Event(), threading.Event()
        self._job = asyncio.ensure_future(storage._writer.call(self._hold))

    def _hold(self, _batch: Batch) -> None:
        self._reached.set()
        assert self._open.wait(30)

    async def closed(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 30)

    async def open(self) -> None:
        self._open.set()
        await self._job


async def test_what_waits_shares_a_commit(storage: SQLiteStorageBackend) -> None:
    """A hundred writes that wait while one commit is under way go into one transaction."""
    gate = Gate(storage)
    await gate.closed()
    before = storage._writer.counts.commits
    calls = [
        asyncio.ensure_future(storage.add_conversation_message("s", "user", f"m{n}")) for n in range(100)
    ]
    await asyncio.sleep(0)
    assert storage._writer.pending == 100
    await gate.open()
    assert await asyncio.gather(*calls) == [True] * 100
    assert storage._writer.counts.commits - before == 2, "the gate's own, and one for all hundred"
    group = (await storage.get_metrics())["group_commit"]
    assert group["largest"] == 100
    history = await storage.get_conversation_history("s", 0)
    assert [message["content"] for message in history] == [f"m{n}" for n in range(100)]


async def test_a_lone_write_does_not_wait_for_company(storage: SQLiteStorageBackend) -> None:
    """One write, one commit, at once."""
    before = storage._writer.counts.commits
    await storage.add_conversation_message("s", "user", "x")
    assert storage._writer.counts.commits == before + 1


async def test_concurrent_writers_share_commits(storage: SQLiteStorageBackend) -> None:
    """Without any gate: 32 writers need far fewer commits than writes."""
    before = storage._writer.counts.commits

    async def write(n: int) -> None:
        for _ in range(10):
            await storage.add_conversation_message(f"s{n}", "user", "x")

    await asyncio.gather(*(write(n) for n in range(32)))
    assert storage._writer.counts.commits - before <= 320 // 4


async def test_a_refused_item_does_not_disturb_its_neighbours(storage: SQLiteStorageBackend) -> None:
    """A conflict in the middle of a shared transaction is its caller's alone."""
    await storage.store_task_context("c", "one")
    gate = Gate(storage)
    await gate.closed()
    calls = [
        asyncio.ensure_future(storage.add_conversation_message("s", "user", "a")),
        asyncio.ensure_future(storage.store_task_context("c", "two", expected_version=1)),
        asyncio.ensure_future(storage.add_conversation_message("s", "user", "b")),
    ]
    await asyncio.sleep(0)
    await gate.open()
    one, two, three = await asyncio.gather(*calls, return_exceptions=True)
    assert (one, three) == (True, True)
    assert isinstance(two, ConflictError)
    assert [message["content"] for message in await storage.get_conversation_history("s")] == ["a", "b"]


async def test_a_failing_item_does_not_disturb_its_neighbours(storage: SQLiteStorageBackend) -> None:
    """An item that fails half-way is rolled back alone; those before and behind it are applied, once."""

    def half_way(batch: Batch) -> None:
        batch.connection.execute("INSERT INTO meta (name, value) VALUES ('half', 1)")
        raise ZeroDivisionError

    gate = Gate(storage)
    await gate.closed()
    calls: list[asyncio.Future[object]] = [
        asyncio.ensure_future(storage.add_conversation_message("s", "user", "a")),
        asyncio.ensure_future(storage._writer.call(half_way)),
        asyncio.ensure_future(storage.add_conversation_message("s", "user", "b")),
    ]
    await asyncio.sleep(0)
    await gate.open()
    one, two, three = await asyncio.gather(*calls, return_exceptions=True)
    assert (one, three) == (True, True)
    assert isinstance(two, ZeroDivisionError)
    assert [message["content"] for message in await storage.get_conversation_history("s")] == ["a", "b"]
    left = await storage._fetch_large("load_meta", ("half",))
    assert left == []


async def test_cancelling_one_does_not_disturb_the_batch(storage: SQLiteStorageBackend) -> None:
    """A waiter that gives up before its turn has written nothing; the others are applied."""
    gate = Gate(storage)
    await gate.closed()

    async def say(n: int) -> bool:
        async with operation(f"op{n}"):
            return await storage.add_conversation_message("s", "user", f"m{n}")

    calls = [asyncio.ensure_future(say(n)) for n in range(10)]
    await asyncio.sleep(0)
    for n in (0, 4, 9):
        calls[n].cancel()
    await asyncio.sleep(0)
    await gate.open()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [n for n, result in enumerate(results) if result is True] == [1, 2, 3, 5, 6, 7, 8]
    history = await storage.get_conversation_history("s")
    assert [message["content"] for message in history] == [f"m{n}" for n in (1, 2, 3, 5, 6, 7, 8)]
    assert await storage.operation_outcome("s", "op4") == "not_applied"


async def test_the_queue_is_bounded(storage: SQLiteStorageBackend) -> None:
    """One write more than max_pending is refused, certain that it was not applied; the waiting ones are applied."""
    gate = Gate(storage)
    await gate.closed()
    calls = [asyncio.ensure_future(storage.add_conversation_message("s", "user", "x")) for _ in range(500)]
    await asyncio.sleep(0)
    assert storage._writer.pending == 500
    with pytest.raises(OverloadedError, match="max_pending") as caught:
        await storage.add_conversation_message("s", "user", "one too many")
    assert caught.value.outcome == "not_applied"
    await gate.open()
    assert await asyncio.gather(*calls) == [True] * 500
    assert len(await storage.get_conversation_history("s", 0)) == 500


async def test_close_applies_what_waits(storage: SQLiteStorageBackend) -> None:
    """Writes that were accepted before close are applied and acknowledged; later ones are refused."""
    gate = Gate(storage)
    await gate.closed()
    calls = [asyncio.ensure_future(storage.add_conversation_message("s", "user", f"m{n}")) for n in range(20)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(storage.close())
    await asyncio.sleep(0)
    with pytest.raises(BackendClosedError):
        await storage.add_conversation_message("s", "user", "late")
    await gate.open()
    assert await asyncio.gather(*calls) == [True] * 20
    await closing
    async with storage:
        assert len(await storage.get_conversation_history("s", 0)) == 20
