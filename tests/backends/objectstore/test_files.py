"""file://: what lies where, what survives, and what the disk may do to us."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend, _files
from aiecs_resilient.backends.objectstore._file_errors import map_error
from aiecs_resilient.backends.objectstore._files import FileObjects
from aiecs_resilient.backends.objectstore._names import head_path, ordered, read_entry, shard_of
from aiecs_resilient.codec import encode_key
from aiecs_resilient.errors import (
    DataCorruptionError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from aiecs_resilient.testing.contract import HOSTILE_IDS

PATHS = [
    "../../x",
    "..",
    "/etc/passwd",
    "a/../../b",
    "~",
    "con",
    "NUL",
    "aux.txt",
    "a" * 512,
    "A" * 512,
    "ß",
    "ẞ",
    "é",
    "é",
    "\x00",
]


@pytest.fixture
def root(folder: Path) -> Path:
    return folder / "store"


@pytest.fixture
async def storage(root: Path) -> AsyncIterator[ObjectStorageBackend]:
    async with ObjectStorageBackend(f"file://{root}", lock_timeout=0.2) as backend:
        yield backend


def _random_ids(count: int) -> list[str]:
    chooser = random.Random(7)
    alphabet = "aAbBäÄ:{}*/.%\\\n\x00\x1beh0_é😀İıſ~"
    return list(
        {
            "".join(chooser.choices(alphabet, k=chooser.choice([1, 2, 3, 5, 9, 60, 300, 512])))
            for _ in range(count)
        }
    )


# ---------------------------------------------------------------------- what lies where


def test_no_two_ids_share_a_place_and_order_is_kept() -> None:
    """Five thousand hostile ids: distinct places, also where case is folded; short segments; sorted as every store sorts."""
    ids = list(dict.fromkeys([*HOSTILE_IDS, *PATHS, *_random_ids(5_000)]))
    places = {ordered(id) for id in ids}
    assert len(places) == len({place.casefold() for place in places}) == len(ids)
    assert len({shard_of(id) for id in ids}) == len(ids)
    for id in ids:
        place = ordered(id)
        assert all(re.fullmatch(r"[0-9a-v]{1,200}", segment) for segment in place.split("/"))
        assert read_entry(f"index/sessions/{place}-0123.0.ab").shard == shard_of(id)
        assert read_entry(f"index/owners/99/{place}-0123.0.ab").order == place
    by_bytes = sorted(ids, key=lambda id: encode_key(id).encode())
    assert sorted(ids, key=lambda id: f"{ordered(id)}-0123") == by_bytes


async def test_nothing_is_written_outside_of_the_folder(storage: ObjectStorageBackend, root: Path) -> None:
    """Whatever the id: every file is in the folder, with a name that any file system can hold."""
    ids = list(dict.fromkeys([*HOSTILE_IDS, *PATHS, *_random_ids(300)]))
    await storage.batch_create_sessions([{"session_id": id, "user_id": id} for id in ids])
    await storage.batch_add_conversation_messages(
        [{"session_id": id, "role": "user", "content": id} for id in ids]
    )
    for id in PATHS:
        await storage.store_checkpoint(id, id, {"id": id * 1_000})
    assert [path.name for path in root.parent.iterdir()] == ["store"]
    names = [name for _folder, folders, files in os.walk(root) for name in (*folders, *files)]
    assert all(re.fullmatch(r"[a-z0-9_-][a-z0-9._-]{0,249}", name) for name in names)
    for id, session in zip(ids, await storage.batch_get_sessions(ids), strict=True):
        assert session is not None
        assert (session["session_id"], session["user_id"]) == (id, id)


def test_a_path_that_is_not_ours_is_a_fault(root: Path) -> None:
    """Even a mistake of this library cannot lead out of the folder."""
    files = FileObjects(root, name="x", lock_timeout=1, threads=1)
    for path in ("../x", "a/../../b", "/etc", "a//b", ".", "", "A", "a\x00", "a/.hidden"):
        with pytest.raises(AssertionError):
            files._at(path)


# ---------------------------------------------------------------------- what survives


async def test_everything_is_flushed_before_it_counts(
    storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is flushed before it gets its name, each folder after; content and index come before the head."""
    await storage.create_session("s", "u")
    events = list[tuple[str, str]]()
    real_fsync, real_flush, real_rename = os.fsync, _files._flush, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(("flushed", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        flushed = ("flushed", str(self)) in events
        events.append(("named" if flushed or not self.stat().st_size else "named too early", str(target)))
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(
        _files, "_flush", lambda folder: (events.append(("folder", str(folder))), real_flush(folder))
    )
    await storage.store_checkpoint("s", "c", {"large": "x" * 20_000})
    head = str(storage._objects.root / head_path(shard_of("s")))  # type: ignore[attr-defined]
    named = [n for n, (what, place) in enumerate(events) if what == "named"]
    contents = [n for n in named if "/content/" in events[n][1]]
    [last] = [n for n in named if events[n][1] == head]
    assert len(contents) == 1
    assert any("/index/threads" in events[n][1] for n in named)
    assert last == named[-1]
    for n in named:
        folder = str(Path(events[n][1]).parent)
        assert any(what == "folder" and place == folder for what, place in events[n:])
        if n != last:
            assert any(what == "folder" and place == folder for what, place in events[n:last])
    assert "named too early" not in dict(events)


async def test_what_a_killed_writer_left_beside_is_removed(root: Path) -> None:
    """A temporary file of a dead writer goes when the store is opened; a young one may be somebody's."""
    async with ObjectStorageBackend(f"file://{root}"):
        pass
    old, young = root / "tmp" / "old", root / "tmp" / "young"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7_200,) * 2)
    async with ObjectStorageBackend(f"file://{root}") as storage:
        assert not old.exists()
        assert young.exists()
        assert await storage.get_session("s") is None


# ---------------------------------------------------------------------- what the disk may do


async def test_a_full_disk_has_changed_nothing(
    storage: ObjectStorageBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space: said so, certain that nothing was applied, no temporary file left; with space again it goes on."""
    await storage.add_conversation_message("s", "user", "before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageConnectionError, match=r"is full: free space") as caught:
            await storage.add_conversation_message("s", "user", "too much")
        assert (caught.value.outcome, caught.value.transient) == ("not_applied", True)
        health = await storage.health_check()
        assert health["status"] == "unhealthy"
        assert "is full" in health["issues"][0]
    assert list((root / "tmp").iterdir()) == []
    assert [m["content"] for m in await storage.get_conversation_history("s")] == ["before"]
    assert await storage.add_conversation_message("s", "user", "after") is True
    assert (await storage.health_check())["status"] == "healthy"


@pytest.mark.parametrize(
    ("code", "outcome", "words"),
    [
        (errno.EACCES, "not_applied", "write access"),
        (errno.EROFS, "not_applied", "mount it writable"),
        (errno.EDQUOT, "not_applied", "quota"),
        (errno.EIO, "unknown", "system's log"),
        (errno.EMFILE, "not_applied", "raise its limit"),
        (errno.ENOLCK, "not_applied", "use a local disk"),
        (errno.EXDEV, "unknown", "cannot do"),
    ],
)
def test_what_the_file_system_says_is_passed_on(code: int, outcome: str, words: str) -> None:
    """Each error names its cause and what to do, and whether the write may have happened."""
    error = map_error(OSError(code, os.strerror(code)), Path("/data"), "files", "unknown")
    assert isinstance(error, StorageConnectionError)
    assert error.outcome == outcome
    assert words in error.message
    assert "/data" in error.message or code == errno.EMFILE
    assert error.backend == "files"


async def test_a_damaged_head_is_told_and_left_alone(storage: ObjectStorageBackend, root: Path) -> None:
    """A flipped bit, a cut file, a foreign file: never "not found", never overwritten; other keys go on."""
    await storage.create_session("s", "u")
    head = root / head_path(shard_of("s"))
    whole = head.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 4
    for damaged in (
        bytes(flipped),
        whole[: len(whole) // 2],
        whole[:5],
        b"something else altogether, not ours",
    ):
        head.write_bytes(damaged)
        for call in (
            lambda: storage.get_session("s"),
            lambda: storage.add_conversation_message("s", "user", "x"),
            lambda: storage.create_session("s", "u"),
        ):
            storage._loader.clear()
            with pytest.raises(DataCorruptionError, match=head_path(shard_of("s"))):
                await call()
        assert head.read_bytes() == damaged
        assert await storage.add_conversation_message("other", "user", "x") is True
    head.write_bytes(whole)
    assert await storage.get_session("s") is not None


async def test_a_damaged_value_is_told(storage: ObjectStorageBackend, root: Path) -> None:
    """Content that was damaged or removed behind our back is an error that names it, not an empty answer."""
    await storage.store_checkpoint("t", "c", {"large": "x" * 20_000})
    await storage.store_checkpoint("t", "d", {"small": 1})
    [value] = [path for path in (root / "content").rglob("*") if path.is_file()]
    whole = value.read_bytes()
    for damage in (lambda: value.write_bytes(whole[:-1]), value.unlink):
        storage._loader.clear()
        damage()
        with pytest.raises(DataCorruptionError, match=value.name):
            await storage.get_checkpoint("t", "c")
        assert await storage.get_checkpoint("t", "d") is not None
    value.write_bytes(whole)
    assert await storage.get_checkpoint("t", "c") is not None


async def test_a_head_under_another_name_is_refused(storage: ObjectStorageBackend, root: Path) -> None:
    """A head that was copied over another one is not taken for that key's."""
    await storage.create_session("one", "u")
    await storage.create_session("two", "u")
    storage._loader.clear()
    (root / head_path(shard_of("two"))).write_bytes((root / head_path(shard_of("one"))).read_bytes())
    with pytest.raises(DataCorruptionError, match="'one'"):
        await storage.get_session("two")
    with pytest.raises(DataCorruptionError, match="'one'"):
        await storage.add_conversation_message("two", "user", "x")


async def test_a_store_that_went_away_is_not_empty(storage: ObjectStorageBackend, root: Path) -> None:
    """The disk was unmounted, the folder moved: reads and writes raise, and nothing is made anew in its place."""
    await storage.create_session("s", "u")
    elsewhere = root.with_name("elsewhere")
    os.rename(root, elsewhere)  # noqa: PTH104
    with pytest.raises(StorageConnectionError, match="mounted"):
        await storage.get_session("s")
    with pytest.raises(StorageConnectionError, match="mounted"):
        await storage.get_session("unknown")
    with pytest.raises(StorageConnectionError, match="mounted"):
        await storage.list_sessions()
    with pytest.raises(StorageError):
        await storage.create_session("t", "u")
    assert not os.path.exists(root)  # noqa: ASYNC240, PTH110
    assert (await storage.health_check())["status"] == "unhealthy"
    os.rename(elsewhere, root)  # noqa: PTH104
    assert await storage.get_session("s") is not None


async def test_a_lock_that_is_held_too_long_is_told(storage: ObjectStorageBackend, root: Path) -> None:
    """Another process stands still with the lock in its hand: a timeout, nothing applied; reads do not need it."""
    await storage.create_session("s", "u")
    with (root / "locks" / shard_of("s")[:2]).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageTimeoutError, match="lock_timeout") as caught:
            await storage.update_session("s", increment_requests=True)
        assert caught.value.outcome == "not_applied"
        session = await storage.get_session("s")
        assert session is not None
        assert session["request_count"] == 0
    assert await storage.update_session("s", increment_requests=True) is True


async def test_close_leaves_no_thread(root: Path) -> None:
    """Threads that worked on the disk have ended."""
    import threading

    before = set(threading.enumerate())
    async with ObjectStorageBackend(f"file://{root}") as storage:
        await asyncio.gather(*(storage.create_session(f"s{n}", "u") for n in range(50)))
        assert set(threading.enumerate()) > before
    assert {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio")} <= before
