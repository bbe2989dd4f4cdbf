"""Options are checked before anything connects, secrets are never shown, and nothing is quietly sent in plain text."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.backends.postgresql._options import read_address
from aiecs_resilient.errors import ConfigurationError, InvalidValueError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSSLMODE", "PGHOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost/db",
        "postgres://127.0.0.1:5432/db",
        "postgresql://u:p@[::1]:5432/db",
        "postgresql:///db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://u:p@%2Frun%2Fpostgresql/db",
        "postgresql://db.example/db?sslmode=verify-full",
        "postgresql://db.example/db?sslmode=require",
        "postgresql://db.example/db?sslmode=disable",
        "postgresql://a.example:1,b.example:2/db?sslmode=verify-full",
    ],
)
def test_a_clear_choice_is_accepted(url: str) -> None:
    """Loopback and sockets need no encryption; over a network the URL says what it wants."""
    PostgreSQLStorageBackend(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@db.example/db",
        "postgresql://u:s3cret@db.example/db?sslmode=prefer",
        "postgresql://u:s3cret@db.example/db?sslmode=allow",
        "postgresql://u:s3cret@localhost,db.example/db",
        "postgresql://u:s3cret@/db?host=10.0.0.7",
    ],
)
def test_plain_text_over_a_network_is_never_a_default(url: str) -> None:
    """``prefer`` falls back to plain text without a word: refused, with the fix and without the password."""
    with pytest.raises(ConfigurationError, match="sslmode=verify-full") as caught:
        PostgreSQLStorageBackend(url)
    assert "s3cret" not in str(caught.value)


def test_the_environment_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGSSLMODE is a choice as good as the URL's."""
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    PostgreSQLStorageBackend("postgresql://db.example/db")


@pytest.mark.parametrize(
    "url", ["", "db", "mysql://localhost/db", "postgresql+asyncpg://u:s3cret@localhost/db", "http://[x"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """The error shows what one looks like, and repeats no secret."""
    with pytest.raises(ConfigurationError, match="PostgreSQL URL") as caught:
        PostgreSQLStorageBackend(url)
    assert "s3cret" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    """Neither password nor query appear in repr."""
    url = "postgresql://me:s3cret@localhost:1/db?password=s3cret&sslkey=s3cret"
    assert read_address(url).shown == "postgresql://me@localhost:1/db"
    assert "s3cret" not in repr(read_address(url)) + repr(PostgreSQLStorageBackend(url))


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 0},
        {"max_overflow": -1},
        {"connect_timeout": 0},
        {"acquire_timeout": -1},
        {"command_timeout": 0},
        {"statement_timeout": -1},
        {"statement_cache_size": -1},
        {"health_timeout": 0},
        {"close_timeout": 0},
        {"retention": 0},
        {"session_ttl": -1},
        {"context_versions": 0},
    ],
)
def test_every_option_has_its_range(options: dict[str, Any]) -> None:
    """An option out of its range is refused at once, by name."""
    with pytest.raises((ConfigurationError, InvalidValueError), match=next(iter(options))):
        PostgreSQLStorageBackend("postgresql://localhost/db", **options)


def test_the_driver_is_imported_on_use() -> None:
    """Importing the backend does not import asyncpg: it costs 0.12 s."""
    code = "import sys, aiecs_resilient.backends.postgresql; sys.exit('asyncpg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
