"""What is kept for how long: identities, expiry, versions; and nothing of ours after close."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.clock import use_wall_clock
from aiecs_resilient.errors import BackendClosedError, InvalidValueError
from aiecs_resilient.operations import operation
from aiecs_resilient.testing.clock import FakeWallClock

HOUR = 3600


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def _records(storage: SQLiteStorageBackend) -> int:
    rows = await storage._large_reads.call(
        lambda batch: batch.connection.execute("SELECT count(*) FROM records").fetchone()
    )
    return int(rows[0])


async def test_old_identities_are_forgotten(path: Path) -> None:
    """Records of counters past retention go; those of messages and of stored checkpoints stay as long as these live."""
    clock = FakeWallClock()
    with use_wall_clock(clock):
        async with SQLiteStorageBackend(path, retention=HOUR) as storage:
            await storage.create_session("s", "u")
            for _ in range(5):
                await storage.update_session("s", increment_requests=True)
            async with operation("said"):
                await storage.add_conversation_message("s", "user", "x")
            async with operation("kept"):
                await storage.store_checkpoint("t", "c", {"v": 1})
            async with operation("replaced"):
                await storage.store_checkpoint("t", "d", {"v": 1})
            await storage.store_checkpoint("t", "d", {"v": 2})
            assert await _records(storage) == 10
            clock.advance(2 * HOUR)
            await storage.create_session("other", "u")
            assert await _records(storage) == 4, "the message, two checkpoints, and the new session"
            assert await storage.operation_outcome("s", "said") == "applied"
            assert await storage.operation_outcome("t", "kept") == "applied"
            assert await storage.operation_outcome("t", "replaced") == "not_applied"
            session = await storage.get_session("s")
            assert session is not None
            assert session["request_count"] == 5
            async with operation("said"):
                await storage.add_conversation_message("s", "user", "x")
            assert len(await storage.get_conversation_history("s")) == 1
            await storage.delete_session("s")
            await storage.delete_thread("t")
            clock.advance(2 * HOUR)
            await storage.create_session("other", "u")
            assert await _records(storage) == 1


async def test_marked_records_are_never_forgotten(path: Path) -> None:
    """What the peer still lacks stays until its mark is closed, however old."""
    from aiecs_resilient.records import RecordRef
    from aiecs_resilient.testing.contract import _mutations as make

    clock = FakeWallClock()
    with use_wall_clock(clock):
        async with SQLiteStorageBackend(path, retention=HOUR) as storage:
            item = make.create("s", mark=True)
            [applied] = await make.apply(storage, item)
            clock.advance(100 * HOUR)
            await storage.create_session("other", "u")
            assert await storage.operation_outcome("s", item.op_id) == "applied"
            await storage.close_marks([RecordRef("s", item.op_id, applied.stamp, applied.rank)])
            clock.advance(HOUR)
            await storage.create_session("other", "u")
            assert await storage.operation_outcome("s", item.op_id) == "not_applied"


async def test_forgetting_is_done_in_bounded_steps(path: Path) -> None:
    """A mountain of old records goes a thousand at a time, each with a later write."""
    clock = FakeWallClock()
    with use_wall_clock(clock):
        async with SQLiteStorageBackend(path, retention=HOUR) as storage:
            sessions = [{"session_id": f"s{n}", "user_id": "u"} for n in range(2_500)]
            await storage.batch_create_sessions(sessions)
            clock.advance(2 * HOUR)
            left = []
            for _ in range(4):
                await storage.create_session("other", "u")
                left.append(await _records(storage))
                clock.advance(2)
            assert left == [1_501, 502, 3, 4]


async def test_sessions_and_threads_expire_on_their_own(path: Path) -> None:
    """session_ttl and checkpoint_ttl: each write renews its own; what expired is gone, and clean-up removes it."""
    clock = FakeWallClock()
    with use_wall_clock(clock):
        async with SQLiteStorageBackend(path, session_ttl=60, checkpoint_ttl=600) as storage:
            for key in ("idle", "busy"):
                await storage.create_session(key, "u")
                await storage.add_conversation_message(key, "user", "x")
                await storage.store_checkpoint(key, "c", {})
            clock.advance(50)
            await storage.update_session("busy", increment_requests=True)
            clock.advance(50)
            assert await storage.get_session("idle") is None
            assert await storage.get_conversation_history("idle") == []
            assert [session["session_id"] for session in await storage.list_sessions()] == ["busy"]
            assert len(await storage.get_conversation_history("busy")) == 1
            assert len(await storage.list_checkpoints("idle")) == 1
            assert (await storage.get_metrics())["total_sessions"] == 1
            await storage.add_conversation_message("idle", "user", "again")
            assert [m["content"] for m in await storage.get_conversation_history("idle")] == ["again"]
            assert await storage.get_session("idle") is None
            clock.advance(550)
            assert await storage.list_threads() == []
            assert await storage.cleanup_expired_sessions(1_000) >= 2
            assert (await storage.get_metrics())["total_messages"] == 0
            assert (await storage.get_metrics())["total_checkpoints"] == 0


async def test_expiry_that_was_switched_off_hides_nothing_new(path: Path) -> None:
    """A key that had expired under session_ttl shows what is written to it after session_ttl was removed."""
    clock = FakeWallClock()
    with use_wall_clock(clock):
        async with SQLiteStorageBackend(path, session_ttl=60, checkpoint_ttl=60) as storage:
            await storage.add_conversation_message("s", "user", "old")
            await storage.store_checkpoint("s", "old", {})
        clock.advance(100)
        async with SQLiteStorageBackend(path) as storage:
            await storage.add_conversation_message("s", "user", "new")
            await storage.store_checkpoint("s", "new", {})
            assert [m["content"] for m in await storage.get_conversation_history("s")] == ["new"]
            assert [c["checkpoint_id"] for c in await storage.list_checkpoints("s")] == ["new"]


async def test_versions_of_a_context_are_bounded(path: Path) -> None:
    """The newest context_versions are kept."""
    async with SQLiteStorageBackend(path, context_versions=3) as storage:
        for n in range(7):
            await storage.store_task_context("s", n)
        assert [item["context"] for item in await storage.list_task_contexts("s")] == [6, 5, 4]


@pytest.mark.parametrize("count", [999, 1_000, 1_001, 2_500])
async def test_long_histories_are_read_whole(path: Path, count: int) -> None:
    """Below, at and above what is read in place."""
    async with SQLiteStorageBackend(path) as storage:
        items = [{"session_id": "s", "role": "user", "content": f"m{n}"} for n in range(count)]
        await storage.batch_add_conversation_messages(items)
        texts = [f"m{n}" for n in range(count)]
        for limit in (0, count, count + 5, 2**70):
            found = await storage.get_conversation_history("s", limit)
            assert [message["content"] for message in found] == texts
            found = await storage.get_conversation_history("s", limit, after=-(2**70), before=2**70)
            assert [message["content"] for message in found] == texts
        found = await storage.get_conversation_history("s", count - 1)
        assert [message["content"] for message in found] == texts[1:]
        assert len(await storage.list_sessions(limit=2**70)) == 0
        assert await storage.list_checkpoints("s", 2**70) == []


async def test_nothing_is_left_after_close(path: Path) -> None:
    """No thread, no open file, and no -wal file: the last one out has put everything into the database."""
    threads, files = set(threading.enumerate()), set(_open_files())
    storage = SQLiteStorageBackend(path, name="leaky")
    for _ in range(5):
        async with storage:
            await asyncio.gather(*(storage.create_session(f"s{n}", "u") for n in range(20)))
            await storage.get_metrics()
            assert any(thread.name.startswith("leaky") for thread in threading.enumerate())
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not any(name.startswith("leaky") for name in left)
    assert set(_open_files()) - files == set()
    assert sorted(file.name for file in path.parent.iterdir()) == ["store.db"]


async def test_a_failed_open_leaves_nothing(path: Path) -> None:
    """After an error at open no thread and no file remain, and a later attempt can succeed."""
    await asyncio.to_thread(path.mkdir)
    before = set(_open_files())
    storage = SQLiteStorageBackend(path, name="failed")
    for _ in range(3):
        with pytest.raises(Exception, match="cannot be opened"):
            await storage.initialize()
    assert not any(thread.name.startswith("failed") for thread in threading.enumerate())
    assert set(_open_files()) - before == set()
    await asyncio.to_thread(path.rmdir)
    async with storage:
        assert await storage.add_conversation_message("s", "user", "x") is True


async def test_a_cancelled_open_leaves_nothing(path: Path) -> None:
    """initialize cancelled at any point can be repeated, and close works."""
    for turns in range(12):
        storage = SQLiteStorageBackend(path, name="cancelled")
        task = asyncio.ensure_future(storage.initialize())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with storage:
            assert await storage.add_conversation_message("s", "user", "x") is True
    assert not any(thread.name.startswith("cancelled") for thread in threading.enumerate())


async def test_a_backend_must_be_opened_first(path: Path) -> None:
    """Before initialize every use says so, and no file is made."""
    storage = SQLiteStorageBackend(path)
    with pytest.raises(BackendClosedError):
        await storage.get_session("s")
    with pytest.raises(BackendClosedError):
        await storage.create_session("s", "u")
    assert (await storage.health_check())["status"] == "unhealthy"
    await storage.close()
    assert not await asyncio.to_thread(path.exists)


async def test_an_identity_that_has_no_encoding_is_refused(path: Path) -> None:
    """An op_id with half a character is refused before anything is written."""
    async with SQLiteStorageBackend(path) as storage:
        with pytest.raises(InvalidValueError, match="lone surrogate"):
            async with operation("\ud800"):
                await storage.create_session("s", "u")
        assert await storage.get_session("s") is None


async def test_text_filters_are_data(path: Path) -> None:
    """What lists are filtered by is a parameter, never part of a statement."""
    async with SQLiteStorageBackend(path) as storage:
        hostile = "x' OR '1'='1"
        await storage.create_session("a", hostile)
        await storage.create_session("b", "u")
        assert [s["session_id"] for s in await storage.list_sessions(user_id=hostile)] == ["a"]
        assert await storage.list_sessions(status=hostile) == []


def _open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return []
    found = []
    for entry in folder.iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return [name for name in found if "store.db" in name]
