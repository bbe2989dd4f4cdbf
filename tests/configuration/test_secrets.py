"""No password leaves a configuration, neither in an error nor in `explain`."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from configuration_fakes import REGISTRY
from rich.console import Console

from aiecs_resilient.assembly import build
from aiecs_resilient.cli.explain import draw
from aiecs_resilient.configuration.errors import Problem
from aiecs_resilient.configuration.models import Plan
from aiecs_resilient.configuration.secrets import is_secret_name, redact
from aiecs_resilient.errors import ConfigurationError

PASSWORD = "hunter2"
CHAIN = "backends:\n  m: {{type: remote, url: '{url}', pool_size: {size}}}\npipeline:\n  - {layer}\n  - backend: m\n"


@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{PASSWORD}@host:6379/0",
        f"redis://:{PASSWORD}@host",
        f"postgresql://u:a@b/{PASSWORD}@host/db",
        f"postgresql://host/db?user=u&password={PASSWORD}&x=1",
        f"host=h password={PASSWORD} user=u",
        f"host=h password='{PASSWORD} x' user=u",
        f"user:{PASSWORD}@host",
    ],
)
def test_addresses_are_shown_without_passwords(text: str) -> None:
    """In a URL, in its parameters, in a connection string, and where the scheme was forgotten."""
    assert PASSWORD not in redact(text)
    assert "h" in redact(text)


def test_telling_names_are_known() -> None:
    """Names of secrets, and names that only sound like it."""
    assert all(map(is_secret_name, ("password", "api_key", "auth_token", "headers", "client_secret")))
    assert not any(map(is_secret_name, ("max_tokens", "keys", "path", "tracked_keys")))


@pytest.mark.parametrize(
    "options",
    [
        {"url": f"redis://:{PASSWORD}@h", "size": "x", "layer": "tracing"},
        {"url": "x", "size": 1, "layer": "knobs: {password: [hunter2]}"},
        {"url": "x", "size": '"${SECRET}"', "layer": "tracing"},
        {"url": "x", "size": 1, "layer": 'knobs: {count: "${SECRET}", mode: "${SECRET}"}'},
        {"url": "x", "size": 1, "layer": f"redis://:{PASSWORD}@h"},
        {"url": "x", "size": 1, "layer": f"moody: {{least: 5, address: 'redis://u:{PASSWORD}@h'}}"},
    ],
    ids=str,
)
def test_errors_hold_no_secret(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing from the environment, no password of an address, no value of an option with a telling name."""
    monkeypatch.setenv("SECRET", PASSWORD)
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN.format(**options), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        build(path, registry=REGISTRY)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


def test_explain_holds_no_secret(read: Callable[..., Plan]) -> None:
    """The tree shows where a password stands, never the password."""
    text = CHAIN.format(
        url="redis://u:${SECRET}@host/0",
        size=1,
        layer='knobs: {password: "${SECRET}", label: "password=${SECRET}"}',
    )
    shown = StringIO()
    Console(file=shown, width=300).print(draw(read(text, SECRET=PASSWORD)))
    assert PASSWORD not in shown.getvalue()
    assert "password: ***" in shown.getvalue()
    assert "***@host/0" in shown.getvalue()


def test_a_problem_reads_well() -> None:
    """All parts in one line."""
    from aiecs_resilient.configuration.errors import Place

    problem = Problem(Place("a.yaml", 3, 7), "unknown layer 'x'", ("y", "z"), "y", "do it")
    assert str(problem) == "a.yaml:3:7: unknown layer 'x'; allowed: y, z; did you mean 'y'?; do it"
