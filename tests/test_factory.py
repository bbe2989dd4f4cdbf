"""Single stores, created as the specification shows it."""

from __future__ import annotations

from typing import Any

import pytest

from aiecs_resilient import (
    ConfigurationError,
    MemoryStorageBackend,
    PostgreSQLStorageBackend,
    RedisStorageBackend,
    SQLiteStorageBackend,
    StorageFactory,
    StorageType,
)
from aiecs_resilient.configuration.reader import read_backend

# The specification's own example: one `config` for all stores.
CONFIG = {
    "redis_url": "redis://localhost:6379/0",
    "postgresql_url": "postgresql://user:password@localhost/aiecs",
    "sqlite_path": "sessions.db",
}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (StorageType.REDIS, RedisStorageBackend),
        (StorageType.POSTGRESQL, PostgreSQLStorageBackend),
        (StorageType.MEMORY, MemoryStorageBackend),
        (StorageType.SQLITE, SQLiteStorageBackend),
    ],
)
def test_the_specifications_example_works(kind: StorageType, wanted: type) -> None:
    """Each type gives its class, from one `config`, without connecting; by its value, too."""
    assert type(StorageFactory.create_storage_backend(kind, CONFIG)) is wanted
    assert type(StorageFactory.create_storage_backend(kind.value, CONFIG)) is wanted


def test_the_values_are_the_specifications() -> None:
    """Names and values that applications already have in their settings."""
    assert {kind.name: kind.value for kind in StorageType} == {
        "REDIS": "redis",
        "POSTGRESQL": "postgresql",
        "MEMORY": "memory",
        "SQLITE": "sqlite",
    }


def test_memory_needs_no_configuration() -> None:
    """None, and none of the others' is harmful."""
    assert type(StorageFactory.create_storage_backend(StorageType.MEMORY)) is MemoryStorageBackend


@pytest.mark.parametrize(
    ("kind", "key"), [("redis", "redis_url"), ("postgresql", "postgresql_url"), ("sqlite", "sqlite_path")]
)
@pytest.mark.parametrize(
    "config", [{}, None, {"redis_url": "", "postgresql_url": "", "sqlite_path": ""}], ids=str
)
def test_a_missing_address_is_named(kind: str, key: str, config: Any) -> None:
    """The error says which key is missing."""
    with pytest.raises(ConfigurationError, match=f"config needs '{key}'"):
        StorageFactory.create_storage_backend(kind, config)


def test_an_unsupported_type_is_a_value_error() -> None:
    """As the specification's factory raises it; it says what is supported."""
    with pytest.raises(ValueError, match="unsupported storage type: 'cassandra'; allowed: redis, postgresql"):
        StorageFactory.create_storage_backend("cassandra", CONFIG)


def test_options_are_passed_and_checked() -> None:
    """An option of this store is used, another store's is left alone, a misspelt or wrong one is refused."""
    create = StorageFactory.create_storage_backend
    create(StorageType.POSTGRESQL, {**CONFIG, "pool_size": 5, "max_overflow": 2})
    create(StorageType.MEMORY, {**CONFIG, "pool_size": 5})
    with pytest.raises(
        ConfigurationError, match=r"unknown key 'pool_sise' in config; allowed: .*did you mean 'pool_size'\?"
    ):
        create(StorageType.POSTGRESQL, {**CONFIG, "pool_sise": 5})
    with pytest.raises(ConfigurationError, match="'pool_size' of backend 'postgresql'"):
        create(StorageType.POSTGRESQL, {**CONFIG, "pool_size": "five"})


def test_what_code_gives_is_not_substituted() -> None:
    """A `$` in a password that code passes is a dollar sign."""
    plan = read_backend("sqlite", {"type": "sqlite", "path": "$${HOME}.db"})
    assert plan.options["path"].value == "$${HOME}.db"
