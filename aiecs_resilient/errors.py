"""Every error that leaves this library, and whether trying again helps.

::

    StorageError
    ├── StorageConnectionError        the store cannot be reached or went away     transient
    ├── StorageTimeoutError           no answer in time                            transient, outcome unknown
    ├── StaleRouteError               another process moved the leader meanwhile   transient
    ├── IncompleteStoreError          the store that answers may lack operations   transient
    ├── DeadlineExceededError         the caller's total time is spent
    ├── CircuitOpenError              our own refusal: do not retry, do not count
    ├── OverloadedError               our own refusal: queue or limit full
    ├── ConflictError                 expected_version did not match, or an op_id reused with another payload
    ├── SessionNotFoundError          where a session is required; plain reads return None
    ├── DataCorruptionError           stored bytes that cannot be read: never answered as "not found"
    ├── InvalidValueError             what cannot be stored faithfully: refused before anything is written
    ├── OperationScopeError           an operation() scope names one write; this would have been its second
    ├── BackendClosedError            used before initialize() or after close()
    ├── UnsupportedOperationError     this backend cannot do that
    └── ConfigurationError            file:line:column, what is wrong, what is allowed, the nearest name

Not found is a value (``None``, ``False``, ``[]``, ``0``); failure is an exception. ``CancelledError`` always
passes untouched. This module imports the standard library only: ``CircuitOpenError``'s subclass that is also
aiobreaker's ``CircuitBreakerError`` lives with the layer that raises it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Outcome = Literal["not_applied", "unknown"]
"""What a failed write may have done. An operation that succeeded raises nothing."""


class StorageError(Exception):
    """Base of all errors of this library.

    Attributes:
        transient: may trying the same operation again help? Set per class, overridable per instance.
        outcome: ``not_applied`` only when it is certain that nothing was written, else ``unknown``.
        operation: name of the operation, as in :mod:`aiecs_resilient.operations`, if known.
        backend: name of the store that failed, if one did.
        attempts: how often the store was asked before this error was raised.
        retry_after: seconds the store asked us to wait, if it did.
        final: a layer below has already tried again and given up: an outer retry must not multiply.
    """

    default_transient: ClassVar[bool] = False
    default_outcome: ClassVar[Outcome] = "unknown"

    def __init__(
        self,
        message: str,
        *,
        transient: bool | None = None,
        outcome: Outcome | None = None,
        operation: str | None = None,
        backend: str | None = None,
        attempts: int = 1,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.transient = self.default_transient if transient is None else transient
        self.outcome: Outcome = self.default_outcome if outcome is None else outcome
        self.operation = operation
        self.backend = backend
        self.attempts = attempts
        self.retry_after = retry_after
        self.final = False

    @property
    def message(self) -> str:
        """The text alone, without the trailing facts that ``str()`` adds."""
        return str(self.args[0])

    def __str__(self) -> str:
        facts = [
            f"{name}={value}"
            for name, value in (("operation", self.operation), ("backend", self.backend))
            if value
        ]
        if self.attempts > 1:
            facts.append(f"attempts={self.attempts}")
        return f"{self.message} [{', '.join(facts)}]" if facts else self.message


class StorageConnectionError(StorageError):
    """The store cannot be reached, refused us, or went away in the middle."""

    default_transient = True


class StorageTimeoutError(StorageError):
    """No answer in time. A write may or may not have been applied."""

    default_transient = True


class StaleRouteError(StorageError):
    """This process routed by an old epoch: the store refused, and the new leader must be looked up first."""

    default_transient = True
    default_outcome = "not_applied"


class IncompleteStoreError(StorageError):
    """The only store that can answer may lack operations, so "not found" or an older value would be a guess."""

    default_transient = True
    default_outcome = "not_applied"


class DeadlineExceededError(StorageError):
    """The caller's total time is spent; trying again needs a new deadline."""


class CircuitOpenError(StorageError):
    """Refused by our own circuit breaker: the store was not asked. ``retry_after`` says when a probe is due."""

    default_outcome = "not_applied"


class OverloadedError(StorageError):
    """Refused by one of our own limits: a queue, a pool or a bulkhead is full."""

    default_outcome = "not_applied"


class ConflictError(StorageError):
    """``expected_version`` did not match, or an ``op_id`` came again with another payload."""

    default_outcome = "not_applied"


class SessionNotFoundError(StorageError):
    """A session is required here and there is none. Plain reads return ``None`` instead."""

    default_outcome = "not_applied"


class DataCorruptionError(StorageError):
    """Stored bytes that cannot be read. Never answered as "not found"."""


class InvalidValueError(StorageError, ValueError):
    """What cannot be stored faithfully; refused before anything is written. The message names the path inside the value."""

    default_outcome = "not_applied"


class OperationScopeError(StorageError, RuntimeError):
    """An ``operation()`` scope names exactly one write; raised before a second one is sent."""

    default_outcome = "not_applied"


class BackendClosedError(StorageError, RuntimeError):
    """The backend was used before ``initialize()`` or after ``close()``."""

    default_outcome = "not_applied"


class UnsupportedOperationError(StorageError, NotImplementedError):
    """This backend cannot do what was asked; nothing was sent."""

    default_outcome = "not_applied"


class ConfigurationError(StorageError, ValueError):
    """A configuration that cannot be used: says where, what is wrong, what is allowed and the nearest valid name."""

    default_outcome = "not_applied"
