"""The file: damaged, foreign, locked, not writable, too new."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.backends.sqlite._tables import Batch
from aiecs_resilient.errors import (
    ConfigurationError,
    DataCorruptionError,
    InvalidValueError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def _fill(path: Path, messages: int = 300) -> None:
    async with SQLiteStorageBackend(path) as storage:
        items = [{"session_id": "s", "role": "user", "content": "x" * 500} for _ in range(messages)]
        await storage.batch_add_conversation_messages(items)


def _damage(path: Path, first_page: int, pages: int | None = None) -> None:
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(first_page * 4096)
        file.write(b"\xff" * (pages * 4096 if pages else whole - first_page * 4096))


async def test_what_was_stored_is_there_after_reopening(path: Path) -> None:
    """close and initialize again, also of the same object: everything is there, and the incarnation is the same."""
    await _fill(path)
    storage = SQLiteStorageBackend(path)
    incarnations = set()
    for _ in range(2):
        async with storage:
            assert len(await storage.get_conversation_history("s", 0)) == 300
            incarnations.add((await storage.store_state()).incarnation)
    assert len(incarnations) == 1


async def test_acknowledgements_are_durable(path: Path) -> None:
    """The connection that writes has a write-ahead log, syncs it fully at each commit, and those that read cannot write."""
    async with SQLiteStorageBackend(path) as storage:

        def settings(batch: Batch) -> list[object]:
            names = ("journal_mode", "synchronous", "fullfsync", "query_only")
            return [batch.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        assert await storage._writer.call(settings) == ["wal", 2, 1, 0]
        assert await storage._large_reads.call(settings) == ["wal", 2, 1, 1]
        assert (await storage.store_state()).durability.name == "HOST"


async def test_a_damaged_file_is_named_at_open(path: Path) -> None:
    """Bytes overwritten in the middle: refused at open with the file's name and what to do."""
    await _fill(path)
    _damage(path, first_page=3, pages=2)
    with pytest.raises(DataCorruptionError, match=r"store\.db is damaged.*\.recover"):
        await SQLiteStorageBackend(path).initialize()


async def test_damage_is_never_answered_as_not_found(path: Path) -> None:
    """Damage that appears while the file is open raises; it is not an empty history."""
    await _fill(path, 3_000)
    _damage(path, first_page=60)  # not looked for at open: as if the disk had turned bad afterwards
    async with SQLiteStorageBackend(path, check_on_open=False) as storage:
        with pytest.raises(DataCorruptionError, match=r"store\.db"):
            await storage.get_conversation_history("s", 0)
        with pytest.raises(DataCorruptionError, match=r"store\.db"):
            await storage.add_conversation_message("s", "user", "x")


async def test_damaged_values_are_reported(path: Path) -> None:
    """A value that cannot be decoded raises DataCorruptionError; the row is left as it is."""
    async with SQLiteStorageBackend(path) as storage:
        await storage.store_task_context("s", {"a": 1})
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE contexts SET value = x'c1'")
        with pytest.raises(DataCorruptionError):
            await storage.get_task_context("s")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            assert other.execute("SELECT value FROM contexts").fetchone() == (b"\xc1",)


async def test_what_is_no_database_is_refused(path: Path) -> None:
    """A text file is named as such and left untouched."""
    await asyncio.to_thread(path.write_text, "these are my notes, not a database\n" * 100)
    with pytest.raises(DataCorruptionError, match=r"store\.db is no SQLite database"):
        await SQLiteStorageBackend(path).initialize()
    assert (await asyncio.to_thread(path.read_text)).startswith("these are my notes")


async def test_the_database_of_another_application_is_refused(path: Path) -> None:
    """We do not create our tables among somebody else's."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(ConfigurationError, match="another application"):
        await SQLiteStorageBackend(path).initialize()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


async def test_a_newer_schema_is_refused(path: Path) -> None:
    """A file written by a later version is not touched."""
    await _fill(path, 1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 1000")
    with pytest.raises(ConfigurationError, match="schema version 1000"):
        await SQLiteStorageBackend(path).initialize()


async def test_another_process_that_holds_the_lock_is_waited_for_and_named(path: Path) -> None:
    """A write waits up to busy_timeout, then raises a transient error that is certain of not having written."""
    async with SQLiteStorageBackend(path, busy_timeout=0.2) as storage:
        await storage.create_session("s", "u")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageTimeoutError, match="busy_timeout") as caught:
                await storage.update_session("s", increment_requests=True)
            assert (caught.value.transient, caught.value.outcome) == (True, "not_applied")
            session = await storage.get_session("s")
            assert session is not None
            assert session["request_count"] == 0
            assert (await storage.health_check())["status"] == "unhealthy", "healthy means that a write works"
            other.execute("ROLLBACK")
        assert await storage.update_session("s", increment_requests=True) is True
        assert (await storage.health_check())["status"] == "healthy"


async def test_a_full_disk_refuses_writes_and_keeps_reading(path: Path) -> None:
    """No room: the write raises, nothing of it is there, reads go on; with room again writes work."""
    async with SQLiteStorageBackend(path) as storage:
        await storage.add_conversation_message("s", "user", "before")

        def limit(batch: Batch, pages: int) -> None:
            batch.connection.execute(f"PRAGMA max_page_count = {pages}")

        await storage._writer.call(lambda batch: limit(batch, 1))
        with pytest.raises(StorageConnectionError, match="full: free space") as caught:
            await storage.add_conversation_message("s", "user", "x" * 1_000_000)
        assert caught.value.outcome == "not_applied"
        assert [m["content"] for m in await storage.get_conversation_history("s")] == ["before"]
        await storage._writer.call(lambda batch: limit(batch, 1_000_000))
        assert await storage.add_conversation_message("s", "user", "x" * 1_000_000) is True


async def test_a_removed_file_is_noticed(path: Path) -> None:
    """Whoever deletes or replaces the file under us: health says so."""
    async with SQLiteStorageBackend(path) as storage:
        assert (await storage.health_check())["status"] == "healthy"
        await asyncio.to_thread(path.rename, path.with_suffix(".moved"))
        health = await storage.health_check()
        assert health["status"] == "unhealthy"
        assert "removed or replaced" in health["issues"][0]


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A path that cannot be opened is named, and nothing of the attempt remains."""
    with pytest.raises(StorageError, match="cannot be opened"):
        await SQLiteStorageBackend(tmp_path).initialize()
    await asyncio.to_thread((tmp_path / "file").touch)
    with pytest.raises(StorageError, match="cannot be opened"):
        await SQLiteStorageBackend(tmp_path / "file" / "store.db").initialize()


@pytest.mark.parametrize("path", ["", ":memory:", "a\x00b"])
def test_a_path_must_name_a_file(path: str) -> None:
    """What would silently be a private database is refused, with the way out."""
    with pytest.raises(InvalidValueError, match="memory backend"):
        SQLiteStorageBackend(path)


@pytest.mark.parametrize(
    "options", [{"busy_timeout": 0}, {"max_pending": 0}, {"retention": -1}, {"context_versions": 0}]
)
def test_impossible_options_are_refused(path: Path, options: dict[str, float]) -> None:
    """Each option has a range."""
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        SQLiteStorageBackend(path, **options)  # type: ignore[arg-type]
