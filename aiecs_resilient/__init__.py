"""Resilient async storage for AI applications: one contract, small layers, real stores, one YAML file.

::

    from aiecs_resilient import open_storage

    async with open_storage("config/production.yaml") as storage:
        await storage.create_session("s-1", "user-1", {"channel": "web"})

Everything public is here and imported when it is first used: ``import aiecs_resilient`` itself costs a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.memory import MemoryStorageBackend
    from .backends.postgresql import PostgreSQLStorageBackend
    from .backends.redis import RedisStorageBackend
    from .backends.sqlite import SQLiteStorageBackend
    from .errors import (
        BackendClosedError,
        CircuitOpenError,
        ConfigurationError,
        ConflictError,
        DataCorruptionError,
        DeadlineExceededError,
        IncompleteStoreError,
        InvalidValueError,
        OperationScopeError,
        OverloadedError,
        SessionNotFoundError,
        StaleRouteError,
        StorageConnectionError,
        StorageError,
        StorageTimeoutError,
        UnsupportedOperationError,
    )
    from .factory import StorageFactory, StorageType
    from .interface import (
        Backend,
        ICheckpointerBackend,
        ICheckpointStorage,
        IConversationStorage,
        ISessionStorage,
        IStorageBackend,
        ITaskContextStorage,
    )
    from .operations import OperationContext, deadline, operation
    from .storage import Storage, open_storage

_HOMES = {
    ".storage": ("Storage", "open_storage"),
    ".operations": ("OperationContext", "deadline", "operation"),
    ".factory": ("StorageFactory", "StorageType"),
    ".backends.memory": ("MemoryStorageBackend",),
    ".backends.postgresql": ("PostgreSQLStorageBackend",),
    ".backends.redis": ("RedisStorageBackend",),
    ".backends.sqlite": ("SQLiteStorageBackend",),
    ".interface": (
        "Backend",
        "ICheckpointStorage",
        "ICheckpointerBackend",
        "IConversationStorage",
        "ISessionStorage",
        "IStorageBackend",
        "ITaskContextStorage",
    ),
    ".errors": (
        "BackendClosedError",
        "CircuitOpenError",
        "ConfigurationError",
        "ConflictError",
        "DataCorruptionError",
        "DeadlineExceededError",
        "IncompleteStoreError",
        "InvalidValueError",
        "OperationScopeError",
        "OverloadedError",
        "SessionNotFoundError",
        "StaleRouteError",
        "StorageConnectionError",
        "StorageError",
        "StorageTimeoutError",
        "UnsupportedOperationError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Backend",
    "BackendClosedError",
    "CircuitOpenError",
    "ConfigurationError",
    "ConflictError",
    "DataCorruptionError",
    "DeadlineExceededError",
    "ICheckpointStorage",
    "ICheckpointerBackend",
    "IConversationStorage",
    "ISessionStorage",
    "IStorageBackend",
    "ITaskContextStorage",
    "IncompleteStoreError",
    "InvalidValueError",
    "MemoryStorageBackend",
    "OperationContext",
    "OperationScopeError",
    "OverloadedError",
    "PostgreSQLStorageBackend",
    "RedisStorageBackend",
    "SQLiteStorageBackend",
    "SessionNotFoundError",
    "StaleRouteError",
    "Storage",
    "StorageConnectionError",
    "StorageError",
    "StorageFactory",
    "StorageTimeoutError",
    "StorageType",
    "UnsupportedOperationError",
    "deadline",
    "open_storage",
    "operation",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
