"""What PostgreSQL, its driver or the network says, as one of our errors: the only place where this is decided.

By SQLSTATE (PostgreSQL documentation, appendix A). ``not_applied`` is said only where it is certain: each call is one
statement and one transaction, so an ERROR from the server means that it was rolled back, while a FATAL may come after
the commit; before anything was sent, nothing was applied.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ...errors import (
    ConfigurationError,
    DataCorruptionError,
    InvalidValueError,
    Outcome,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
    UnsupportedOperationError,
)

Phase = Literal["connect", "run"]


class _Meaning(NamedTuple):
    error: type[StorageError]
    transient: bool
    fix: str
    outcome: Outcome | None = None  # None: by phase and severity


_GONE = _Meaning(StorageConnectionError, True, "the server ended or lost the connection")
_MEANINGS: dict[str, _Meaning] = {
    # The first of five, three or two characters that is found here counts.
    "08": _GONE,
    "0A": _Meaning(UnsupportedOperationError, False, "this server or its settings cannot do that"),
    "22": _Meaning(InvalidValueError, False, "the value cannot be stored"),
    "25006": _Meaning(
        StorageConnectionError, True, "the server is read-only (a standby?): name the primary", "not_applied"
    ),
    "28": _Meaning(StorageConnectionError, False, "check user and password, and the server's pg_hba.conf"),
    "3D000": _Meaning(StorageConnectionError, False, "create the database, or correct its name in the URL"),
    "3F000": _Meaning(StorageConnectionError, False, "the schema is gone: initialize() creates it"),
    "40001": _Meaning(StorageError, True, "rolled back, try again", "not_applied"),
    "40P01": _Meaning(StorageError, True, "rolled back, try again", "not_applied"),
    "40003": _Meaning(StorageConnectionError, True, "the server does not know how it ended", "unknown"),
    "42501": _Meaning(StorageConnectionError, False, "grant the right to this user"),
    "42P01": _Meaning(StorageConnectionError, False, "the tables are gone: initialize() creates them"),
    "42883": _Meaning(StorageConnectionError, False, "the functions are gone: initialize() creates them"),
    "53": _Meaning(StorageConnectionError, True, "the server is out of disk, memory or connections"),
    "54": _Meaning(InvalidValueError, False, "over one of the server's limits"),
    "55P03": _Meaning(StorageTimeoutError, True, "a lock was not to be had in time"),
    "57014": _Meaning(
        StorageTimeoutError, True, "the server ended the statement (statement_timeout, or an administrator)"
    ),
    "57P03": _Meaning(StorageConnectionError, True, "the server is starting or stopping", "not_applied"),
    "57P04": _Meaning(StorageConnectionError, False, "the database was dropped"),
    "57P": _GONE,
    "58": _Meaning(StorageConnectionError, True, "the server's disk or system failed"),
    "XX001": _Meaning(DataCorruptionError, False, "the server found damaged data: restore it from a copy"),
    "XX002": _Meaning(DataCorruptionError, False, "the server found a damaged index: REINDEX"),
}
_OTHER = _Meaning(StorageError, False, "not expected from our statements; please report it")


def translate(error: BaseException, *, backend: str, phase: Phase, place: str) -> StorageError:
    """The error to raise ``from`` this one.

    Args:
        error: what the driver or the network raised.
        backend: name of the store.
        phase: ``connect`` (nothing has been sent) or ``run`` (a statement was on its way).
        place: the server's address without secrets, for errors about reaching it.
    """
    if isinstance(error, StorageError):
        return error
    unsent: Outcome = "not_applied" if phase == "connect" else "unknown"
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return _from_server(error, state, backend, phase, place)
    if isinstance(error, TimeoutError):
        what = "no connection to" if phase == "connect" else "no answer from"
        return StorageTimeoutError(f"{what} PostgreSQL at {place} in time", backend=backend, outcome=unsent)
    if isinstance(error, OSError | EOFError):
        return StorageConnectionError(
            f"PostgreSQL at {place} cannot be reached ({_reason(error)}): is it running, and is the address right?",
            backend=backend,
            outcome=unsent,
        )
    if type(error).__name__ in {"ClientConfigurationError", "UnsupportedClientFeatureError"}:
        return ConfigurationError(
            f"PostgreSQL at {place}: {_reason(error)}", backend=backend, outcome="not_applied"
        )
    closed = "connection is closed" in str(error)  # said before anything is sent
    return StorageConnectionError(
        f"the connection to PostgreSQL at {place} cannot be used: {_reason(error)}",
        backend=backend,
        outcome="not_applied" if closed else unsent,
    )


def _from_server(error: BaseException, state: str, backend: str, phase: Phase, place: str) -> StorageError:
    meaning = next((_MEANINGS[state[:n]] for n in (5, 3, 2) if state[:n] in _MEANINGS), _OTHER)
    # The driver makes some of these itself, without a severity: 08xxx when a connection breaks under a statement, and
    # 22000 when it cannot encode an argument, before sending anything.
    severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
    certain = phase == "connect" or severity == "ERROR" or (severity is None and state.startswith("22"))
    outcome: Outcome = "not_applied" if certain else "unknown"
    return meaning.error(
        f"PostgreSQL at {place}: {_reason(error)} (SQLSTATE {state}): {meaning.fix}",
        backend=backend,
        transient=meaning.transient,
        outcome=meaning.outcome or outcome,
    )


def _reason(error: BaseException) -> str:
    """The first line: further ones may quote values."""
    return (str(error) or type(error).__name__).splitlines()[0]
