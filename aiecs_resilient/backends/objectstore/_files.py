"""Objects as files under one folder, which several processes of one machine may use at once.

obstore's local disk has neither compare-and-set nor fsync, so this scheme is written on the standard library: a head is
compared and replaced under a lock that the kernel takes back when its holder dies; every file is written beside its place,
flushed, renamed, and its folder flushed. Paths are made of hashes and base32 by ourselves: no id can lead out of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ...errors import ConfigurationError, StorageConnectionError, StorageTimeoutError
from ...records import Durability
from ._file_errors import map_error
from ._names import STORE, token
from ._objects import HEADER_BYTES, UNCHANGED, Found, Listed, Outdated, Unchanged, Version

T = TypeVar("T")

_TEMPORARY = "tmp"
_LOCKS = "locks"
_SEGMENT = re.compile(r"[a-z0-9_-][a-z0-9._-]*")
_STALE_SECONDS = 3600  # a temporary file this old is a dead writer's
_LOCK_PAUSE = 0.001
_FOLDERS_KNOWN = 20_000


class FileObjects:
    """Files under ``root``.

    Args:
        root: the folder; created if missing.
        name: of the backend, for errors.
        lock_timeout: seconds to wait while another process replaces a head.
        threads: how many calls to the disk may be under way at once.
    """

    durability = Durability.HOST

    def __init__(self, root: Path, *, name: str, lock_timeout: float, threads: int) -> None:
        self.root = root
        self._name = name
        self._lock_timeout = lock_timeout
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._folders: set[Path] = set()

    async def open(self) -> None:
        if sys.platform == "win32":
            raise ConfigurationError(
                "file:// needs POSIX locks, which this system has not: use s3://, gs:// or sqlite"
            )
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=f"{self._name}-files")
        try:
            await self._call(self._open, write=False)
        except BaseException:
            await self.close()
            raise

    def _open(self) -> None:
        self._folders.clear()
        for folder in (self.root, self.root / _TEMPORARY, self.root / _LOCKS):
            self._make(folder)
        horizon = time.time() - _STALE_SECONDS
        for entry in os.scandir(self.root / _TEMPORARY):
            with contextlib.suppress(FileNotFoundError):  # another process cleans up too
                if entry.stat().st_mtime < horizon:
                    Path(entry.path).unlink()

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    async def _call(self, work: Callable[[], T], *, write: bool) -> T:
        assert self._pool is not None, "the backend checks that it is open"
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except OSError as error:
            raise map_error(error, self.root, self._name, "unknown" if write else "not_applied") from error

    # ------------------------------------------------------------------ reading

    async def get(self, path: str, known: Version | None = None) -> Found | Unchanged | None:
        return await self._call(lambda: self._get(path, known), write=False)

    def _get(self, path: str, known: Version | None) -> Found | Unchanged | None:
        try:
            with self._at(path).open("rb", buffering=0) as file:
                header = file.read(HEADER_BYTES)
                version = header.hex()
                return UNCHANGED if version == known else Found(header + file.read(), version)
        except FileNotFoundError:
            if path != STORE:
                self._must_be_there()
            return None

    def _must_be_there(self) -> None:
        """What is not found may be elsewhere with its disk: then nothing is known."""
        if not (self.root / STORE).exists():
            raise StorageConnectionError(
                f"{self.root} does not hold the store any more: is its disk mounted, was it removed?",
                outcome="not_applied",
                backend=self._name,
            )

    async def list_after(self, prefix: str, after: str, limit: int) -> list[Listed]:
        return await self._call(lambda: self._list(prefix, after, limit), write=False)

    def _list(self, prefix: str, after: str, limit: int) -> list[Listed]:
        found = list[Listed]()
        if not self._at(prefix).is_dir():
            self._must_be_there()
        for path, entry in _walk(self._at(prefix), prefix, after):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                state = entry.stat()
                mark = f"{state.st_ino}.{state.st_mtime_ns}.{state.st_size}"
                found.append(Listed(path, mark, state.st_mtime_ns // 1_000))
                if len(found) == limit:
                    break
        return found

    # ------------------------------------------------------------------ writing

    async def put(self, items: Sequence[tuple[str, bytes]]) -> None:
        await self._call(lambda: self._put(items), write=True)

    def _put(self, items: Sequence[tuple[str, bytes]]) -> None:
        """All files first, then each folder once: a flushed name leads to a flushed file."""
        folders = set[Path]()
        for path, data in items:
            place = self._at(path)
            self._write(place, data)
            folders.add(place.parent)
        for folder in folders:
            _flush(folder)

    def _write(self, place: Path, data: bytes) -> None:
        temporary = self.root / _TEMPORARY / token()
        try:
            with temporary.open("xb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                if data:
                    os.fsync(file.fileno())
            self._make(place.parent)
            try:
                temporary.rename(place)
            except FileNotFoundError:  # somebody removed the folder meanwhile
                self._folders.clear()
                self._make(place.parent)
                temporary.rename(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    async def swap(self, path: str, data: bytes, version: Version | None) -> Version:
        return await self._call(lambda: self._swap(path, data, version), write=True)

    def _swap(self, path: str, data: bytes, version: Version | None) -> Version:
        place = self._at(path)
        with self._locked(path):
            try:
                with place.open("rb", buffering=0) as file:
                    present = file.read(HEADER_BYTES).hex()
            except FileNotFoundError:
                present = None
            if present != version:
                raise Outdated
            self._write(place, data)
            _flush(place.parent)
        return data[:HEADER_BYTES].hex()

    @contextlib.contextmanager
    def _locked(self, path: str) -> Generator[None]:
        """One of few locks: they are never removed, so that nobody can hold a lock on a file that is gone."""
        import fcntl  # not on Windows: open() has refused there

        with (self.root / _LOCKS / (path.split("/")[1] if "/" in path else path)).open("ab") as file:
            give_up = time.monotonic() + self._lock_timeout
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                if time.monotonic() > give_up:
                    raise StorageTimeoutError(
                        f"another process held the lock {file.name} for over {self._lock_timeout:g} s: end it, or raise "
                        "lock_timeout",
                        outcome="not_applied",
                        backend=self._name,
                    )
                time.sleep(_LOCK_PAUSE)
            yield

    async def delete(self, paths: Sequence[str]) -> None:
        if paths:
            await self._call(lambda: self._delete(paths), write=True)

    def _delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._at(path).unlink(missing_ok=True)

    # ------------------------------------------------------------------ places

    def _at(self, path: str) -> Path:
        for segment in path.split("/"):
            if not _SEGMENT.fullmatch(segment):
                raise AssertionError(f"{path!r} is no path of ours")
        return self.root / path

    def _make(self, folder: Path) -> None:
        """Create it with its parents, each flushed into its own parent: a name that is not on the disk leads nowhere."""
        if folder in self._folders:
            return
        if len(self._folders) > _FOLDERS_KNOWN:
            self._folders.clear()
        if not folder.is_dir():
            if folder != folder.parent:
                self._make(folder.parent)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            _flush(folder.parent)
        self._folders.add(folder)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, path: str, after: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below the folder in the order of their whole paths' bytes, those after ``after``."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    named = sorted((f"{path}/{entry.name}{'/' if entry.is_dir() else ''}", entry) for entry in entries)
    for name, entry in named:
        if not name.endswith("/"):
            if name > after:
                yield name, entry
        elif name > after or after.startswith(name):
            yield from _walk(folder / entry.name, name[:-1], after)
