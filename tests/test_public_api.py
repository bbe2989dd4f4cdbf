"""What applications import stands at the top of the package, and costs nothing until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aiecs_resilient
from aiecs_resilient import errors, interface

SPECIFIED = {
    "ISessionStorage",
    "IConversationStorage",
    "ICheckpointStorage",
    "ITaskContextStorage",
    "IStorageBackend",
    "ICheckpointerBackend",
    "StorageFactory",
    "StorageType",
    "RedisStorageBackend",
    "PostgreSQLStorageBackend",
    "MemoryStorageBackend",
}


@pytest.mark.parametrize("name", aiecs_resilient.__all__)
def test_each_public_name_is_there(name: str) -> None:
    """It is found, and is called what it says."""
    assert getattr(aiecs_resilient, name).__name__ == name


def test_the_specifications_names_are_public() -> None:
    """Applications written after the specification find what they import."""
    assert set(aiecs_resilient.__all__) >= SPECIFIED


def test_all_errors_are_public() -> None:
    """Whoever catches one need not know in which module it lives."""
    ours = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert ours <= set(aiecs_resilient.__all__)
    assert {name for name in interface.__all__ if name[0] == "I"} <= set(aiecs_resilient.__all__)


def test_checkers_see_what_runs() -> None:
    """The imports that type checkers read name exactly what is imported on use."""
    tree = ast.parse(Path(aiecs_resilient.__file__).read_text(encoding="utf-8"))
    seen = {
        (f".{node.module}", alias.name)
        for guarded in tree.body
        if isinstance(guarded, ast.If)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(home, name) for name, home in aiecs_resilient._HOME_OF.items()}
    assert {name for _home, name in seen} == set(aiecs_resilient.__all__)
    assert set(dir(aiecs_resilient)) >= set(aiecs_resilient.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As with every module."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        aiecs_resilient.Nothing  # noqa: B018


def test_import_stays_cheap() -> None:
    """The promise is 0.3 s; the names that every program uses bring none of the heavy libraries either."""
    code = (
        "import sys, time; start = time.perf_counter(); import aiecs_resilient; took = time.perf_counter() - start;"
        "from aiecs_resilient import StorageError, operation, deadline, StorageType, IStorageBackend;"
        "heavy = {'pydantic', 'redis', 'asyncpg', 'structlog', 'typer', 'rich', 'yaml', 'opentelemetry', 'tenacity'};"
        "print(took); print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    took, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert float(took) < 0.3
