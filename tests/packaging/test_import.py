"""Importing the package is cheap and has no side effect: what is heavy is imported when it is used."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Each costs between 0.05 and 0.3 s in a fresh process; the promise is 0.3 s for everything.
HEAVY = [
    "aiobreaker",
    "asyncpg",
    "opentelemetry.sdk",
    "pydantic",
    "redis",
    "rich",
    "structlog",
    "tenacity",
    "typer",
]


@pytest.fixture(scope="module")
def imported(run: Run, python: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every module that `import aiecs_resilient` brings into a fresh interpreter."""
    code = "import json, sys; import aiecs_resilient; print(json.dumps(list(sys.modules)))"
    done = run([python, "-W", "error", "-c", code], cwd=tmp_path_factory.mktemp("import"))
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_leaves_the_heavy_out(imported: set[str], heavy: str) -> None:
    """`import aiecs_resilient` pays for no library before it is used."""
    assert "aiecs_resilient" in imported
    assert heavy not in imported


def test_import_starts_nothing(run: Run, python: str, tmp_path: Path) -> None:
    """`import aiecs_resilient` prints nothing, starts no thread and configures no logging."""
    code = (
        "import logging, threading; before = list(logging.root.handlers); import aiecs_resilient;"
        "assert threading.active_count() == 1; assert logging.root.handlers == before"
    )
    done = run([python, "-W", "error", "-c", code], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
