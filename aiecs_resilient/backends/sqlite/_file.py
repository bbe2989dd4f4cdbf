"""Opening the database file: settings, integrity, schema; safe for many processes that do it at once."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from ...errors import ConfigurationError, DataCorruptionError
from ._errors import corrupt, is_busy
from ._sql import SQL, migrations

T = TypeVar("T")

APPLICATION_ID = 0x41454353  # "AECS": tells our files from those of other applications
CACHE_KIB = 16_384


class DatabaseFile:
    """Where the data is, and how long to wait for other processes.

    Args:
        path: of the file; it and its folder are created if missing.
        busy_timeout: seconds to wait for the lock while another process writes.
        check: look at the whole file when it is opened.
    """

    def __init__(self, path: Path, *, busy_timeout: float, check: bool) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        self._check = check

    def open(self) -> tuple[sqlite3.Connection, sqlite3.Connection, sqlite3.Connection]:
        """Create the file, check it, bring its schema up to date; connections for writing, large reads, reads in place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._retry(self._prepare)
        opened: list[sqlite3.Connection] = []
        try:
            for read_only, wait in ((False, False), (True, True), (True, False)):
                opened.append(self._retry(partial(self._connect, read_only=read_only, wait=wait)))
        except BaseException:
            for connection in opened:
                connection.close()
            raise
        writer, large, reader = opened
        return writer, large, reader

    def _prepare(self) -> None:
        with closing(self._connect()) as connection:
            self._refuse_strangers(connection)
            if self._check:
                [problem] = connection.execute("PRAGMA quick_check(1)").fetchone()
                if problem != "ok":
                    raise DataCorruptionError(f"{corrupt(self.path)} ({problem})")
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise ConfigurationError(
                    f"{self.path} cannot use a write-ahead log (journal mode {mode}): put it on a local file system"
                )
            self._migrate(connection)

    def _connect(self, *, read_only: bool = False, wait: bool = False) -> sqlite3.Connection:
        """A connection with our settings; transactions are begun and ended expressly. ``wait``: for locks, inside SQLite."""
        connection = sqlite3.connect(
            self.path,
            timeout=self.busy_timeout if wait else 0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for setting in (
                "synchronous = FULL",  # an acknowledgement survives a power loss
                "fullfsync = ON",  # also where fsync alone does not reach the disk
                f"cache_size = -{CACHE_KIB}",
                "temp_store = MEMORY",
                "trusted_schema = OFF",
                f"query_only = {'ON' if read_only else 'OFF'}",
            ):
                connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin to write, as soon as no other process does."""
        self._retry(lambda: connection.execute(SQL["begin"]))

    def _retry(self, work: Callable[[], T]) -> T:
        """Do it, again while other processes hold a lock that it needs, up to ``busy_timeout``.

        SQLite's own waiting grows to 100 ms between looks, which can starve a process beside a busy one, and it does
        not wait at all for some locks; short looks at uneven intervals find the gap between two transactions.
        """
        until = time.monotonic() + self.busy_timeout
        looks = 0
        while True:
            try:
                return work()
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() >= until:
                    raise
            looks += 1
            time.sleep((1 + looks * 7 % 5) / 1_000)

    def _refuse_strangers(self, connection: sqlite3.Connection) -> None:
        [owner] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION_ID and (owner or version or tables):
            raise ConfigurationError(f"{self.path} is the database of another application: name another file")
        newest = max(migrations())
        if version > newest:
            raise ConfigurationError(
                f"{self.path} has schema version {version}, this version of the library knows {newest}: update it"
            )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute(SQL["begin"])
        try:
            [version] = connection.execute("PRAGMA user_version").fetchone()
            for number, script in migrations().items():
                if number > version:
                    for statement in _statements(script):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {number}")
            if not version:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(SQL["save_meta"], ("incarnation", uuid.uuid4().hex))
            connection.execute(SQL["commit"])
        except BaseException:
            if connection.in_transaction:
                connection.execute(SQL["rollback"])
            raise


def _statements(script: str) -> list[str]:
    """The script's statements, so that they run inside our transaction (``executescript`` would commit it)."""
    found, begun = list[str](), ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return found
