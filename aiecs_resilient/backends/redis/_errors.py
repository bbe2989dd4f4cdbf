"""The one place where errors of the driver and of the server become ours.

What matters is whether the write may have happened. A server that refuses (READONLY, LOADING, OOM, MISCONF, NOAUTH, …) does so
before a script has written anything; a connection that could not be made carried nothing; anything later is unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import redis.exceptions as driver

from ...errors import (
    DataCorruptionError,
    Outcome,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What the server means by an error code, and what helps."""

    meaning: str
    transient: bool = True
    reconnect: bool = False


_REFUSALS = {
    "READONLY": _Refusal("is a read-only replica: it was demoted, or the URL names the wrong server", reconnect=True),
    "LOADING": _Refusal("is loading its data and will serve when done", reconnect=True),
    "OOM": _Refusal("is out of memory: raise maxmemory or remove data"),
    "MISCONF": _Refusal("refuses writes because it cannot persist them: look at its disk and its log"),
    "NOREPLICAS": _Refusal("refuses writes because too few replicas are connected"),
    "CLUSTERDOWN": _Refusal("belongs to a cluster that is down"),
    "MASTERDOWN": _Refusal("has lost its master", reconnect=True),
    "TRYAGAIN": _Refusal("belongs to a cluster that is moving these keys"),
    "BUSY": _Refusal("is busy running another script"),
    "NOSCRIPT": _Refusal("keeps forgetting the scripts we load: is somebody calling SCRIPT FLUSH?"),
    "MOVED": _Refusal("is one node of a Redis Cluster, which this backend does not route to", transient=False),
    "ASK": _Refusal("is one node of a Redis Cluster, which this backend does not route to", transient=False),
    "CROSSSLOT": _Refusal("is one node of a Redis Cluster, which this backend does not route to", transient=False),
    "NOAUTH": _Refusal("wants a password: put user and password into the URL", transient=False, reconnect=True),
    "WRONGPASS": _Refusal("does not accept this user and password", transient=False, reconnect=True),
    "NOPERM": _Refusal("does not permit this user the command: grant +@read +@write +@scripting +info +time on our keys", transient=False),
}  # fmt: skip

_IN_SCRIPT = re.compile(rf"-({'|'.join(_REFUSALS)}) ")

_CODES: tuple[tuple[type[driver.RedisError], str], ...] = (
    (driver.ReadOnlyError, "READONLY"),
    (driver.BusyLoadingError, "LOADING"),
    (driver.OutOfMemoryError, "OOM"),
    (driver.ClusterDownError, "CLUSTERDOWN"),
    (driver.MasterDownError, "MASTERDOWN"),
    (driver.TryAgainError, "TRYAGAIN"),
    (driver.NoScriptError, "NOSCRIPT"),
    (driver.MovedError, "MOVED"),
    (driver.AskError, "ASK"),
    (driver.ClusterCrossSlotError, "CROSSSLOT"),
    (driver.NoPermissionError, "NOPERM"),
    (driver.AuthenticationWrongNumberOfArgsError, "WRONGPASS"),
    (driver.AuthenticationError, "NOAUTH"),
)
"""The driver takes the code out of the text of those it has classes for; MovedError is an AskError, so it comes first."""


def code_of(error: Exception) -> str:
    """The server's error code, such as READONLY; empty for errors of the connection."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if not isinstance(error, driver.ResponseError):
        return ""
    inside = _IN_SCRIPT.search(str(error))  # before Redis 7 a script's error hides the code of its cause
    code = inside[1] if inside is not None else str(error).partition(" ")[0]
    return code if code.isupper() else "ERR"


def _text(error: Exception) -> str:
    """What the server said, with its code, which the driver takes away from some."""
    code = code_of(error)
    return str(error) if code in str(error) else f"{code} {error}"


def needs_new_connection(error: Exception) -> bool:
    """After this the address may lead to another server, or the session is worth nothing."""
    refusal = _REFUSALS.get(code_of(error))
    return refusal is not None and refusal.reconnect


def _refusal(error: Exception, backend: str, outcome: Outcome) -> StorageError | None:
    refusal = _REFUSALS.get(code_of(error))
    if refusal is None:
        return None
    return StorageConnectionError(
        f"{backend} {refusal.meaning} ({_text(error)})",
        transient=refusal.transient,
        outcome=outcome,
        backend=backend,
    )


def refused(error: Exception, backend: str, outcome: Outcome = "not_applied") -> StorageError:
    """An error that the server answered with. ``outcome``: of a refusal; other calls may have been applied before it."""
    refusal = _refusal(error, backend, outcome)
    if refusal is not None:
        return refusal
    if "WRONGTYPE" in str(error) or "data string too short" in str(error):
        return DataCorruptionError(
            f"{backend} holds something else where ours belongs: does another program write under this prefix? ({error})",
            backend=backend,
        )
    return StorageError(f"{backend} could not do it: {_text(error)}", backend=backend)


def not_connected(error: Exception, backend: str) -> StorageError:
    """No connection was made, so nothing was sent."""
    refusal = _refusal(error, backend, "not_applied")
    if refusal is not None:
        return refusal
    if isinstance(error, driver.ResponseError):
        return StorageConnectionError(
            f"{backend} refused the connection ({_text(error)}): look at the database number and the client options",
            transient=False,
            outcome="not_applied",
            backend=backend,
        )
    if isinstance(error, (driver.TimeoutError, TimeoutError)):
        return StorageTimeoutError(
            f"{backend} did not accept a connection in time: is it running, and is the address right?",
            outcome="not_applied",
            backend=backend,
        )
    return StorageConnectionError(
        f"{backend} cannot be reached: is it running, and is the address right? ({error})",
        outcome="not_applied",
        backend=backend,
    )


def connection_lost(error: Exception, backend: str, outcome: Outcome) -> StorageError:
    """The connection broke after something was sent, or the server ended it with a refusal."""
    return _refusal(error, backend, outcome) or StorageConnectionError(
        f"the connection to {backend} broke before it answered ({error})", outcome="unknown", backend=backend
    )
