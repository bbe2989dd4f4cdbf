"""What SQLite says, as what this library says: the one place where its errors are mapped.

A write that failed before its COMMIT has been rolled back: ``not_applied`` is certain. Only a COMMIT that failed, or a
file whose reads fail, leaves the outcome unknown.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ...errors import (
    DataCorruptionError,
    InvalidValueError,
    Outcome,
    OverloadedError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 if the driver itself complained."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Another connection holds the lock that is needed."""
    return isinstance(error, sqlite3.Error) and code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def map_error(error: Exception, path: Path, name: str, outcome: Outcome) -> Exception:
    """Ours for what came of the driver; anything else, such as our own errors, as it is."""
    if isinstance(error, (UnicodeEncodeError, OverflowError)):
        return InvalidValueError(f"SQLite cannot hold a value that was given: {error}", backend=name)
    if not isinstance(error, sqlite3.Error):
        return error
    kind, what = _meaning(error, path)
    return kind(f"{what} ({error})", outcome=outcome, backend=name)


def _meaning(error: sqlite3.Error, path: Path) -> tuple[type[StorageError], str]:
    match code_of(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return (
                StorageTimeoutError,
                f"another process held the lock of {path} for too long: end it, or raise busy_timeout",
            )
        case sqlite3.SQLITE_CORRUPT:
            return DataCorruptionError, corrupt(path)
        case sqlite3.SQLITE_NOTADB:
            return (
                DataCorruptionError,
                f"{path} is no SQLite database: name another file, or restore it from a backup",
            )
        case sqlite3.SQLITE_FULL:
            return StorageConnectionError, f"the disk that holds {path} is full: free space on it"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return (
                StorageConnectionError,
                f"{path} may not be written: give this user write access to it and to its folder",
            )
        case sqlite3.SQLITE_CANTOPEN:
            return (
                StorageConnectionError,
                f"{path} cannot be opened: check that folder and file exist and are ours",
            )
        case sqlite3.SQLITE_IOERR:
            return (
                StorageConnectionError,
                f"the disk that holds {path} reports an error: look at the system's log",
            )
        case sqlite3.SQLITE_NOMEM:
            return OverloadedError, f"SQLite has no memory left to work on {path}"
        case sqlite3.SQLITE_TOOBIG:
            return InvalidValueError, "a value is larger than SQLite can hold: store it in parts"
        case 0 if "decode to UTF-8" in str(error):
            return DataCorruptionError, corrupt(path)
        case 0:
            return StorageError, f"the connection to {path} was misused"
        case _:
            return (
                StorageError,
                f"SQLite cannot do this on {path}: is the file of another version or application?",
            )


def corrupt(path: Path) -> str:
    """What to do about a damaged file."""
    return (
        f"{path} is damaged: stop all processes that use it, restore it from a backup, or save what can be read with "
        f"`sqlite3 {path.name} .recover`"
    )
