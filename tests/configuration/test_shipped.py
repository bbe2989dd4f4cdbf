"""Every configuration in `config/` is assembled: what we ship is right, and says what we say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiecs_resilient.assembly import Chain, build
from aiecs_resilient.configuration.models import Plan
from aiecs_resilient.configuration.reader import read_plan
from aiecs_resilient.configuration.rules import check_order
from aiecs_resilient.registry import Registry
from aiecs_resilient.storage import open_storage

CONFIG = Path(__file__).resolve().parents[2] / "config"
SHIPPED = sorted(CONFIG.glob("*.yaml"))
OURS = Registry(plugins=False)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They work without any variable set."""
    for name in ("REDIS_URL", "DATABASE_URL", "AIECS_SQLITE_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_it_assembles_without_a_warning(path: Path) -> None:
    """No server is needed for it, and no order rule has anything to say."""
    chain = build(path, registry=OURS)
    assert isinstance(chain, Chain)
    assert check_order(chain.plan) == []


def test_there_are_three() -> None:
    """A glob that finds nothing would prove nothing."""
    assert [path.name for path in SHIPPED] == ["development.yaml", "memory.yaml", "production.yaml"]


async def test_memory_and_development_open_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no server: a newcomer's first try works."""
    monkeypatch.setenv("AIECS_SQLITE_PATH", str(tmp_path / "aiecs.db"))
    for name in ("memory.yaml", "development.yaml"):
        async with open_storage(CONFIG / name) as storage:
            await storage.create_session("s", "u")
            assert (await storage.health_check())["status"] == "healthy"
    assert (tmp_path / "aiecs.db").is_file()


def test_production_is_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers in their order, Redis first, PostgreSQL behind it, addresses from the usual variables."""
    monkeypatch.setenv("REDIS_URL", "redis://one:1/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://two/db")
    plan = read_plan(CONFIG / "production.yaml", registry=OURS)
    assert [layer.name for layer in plan.pipeline.layers] == [
        "tracing",
        "metrics",
        "logging",
        "deadline",
        "dual_write",
    ]
    legs = plan.pipeline.layers[-1].branches
    for leg in legs.values():
        assert [layer.name for layer in leg.layers] == ["retry", "circuit_breaker", "timeout"]
    assert [_url(plan, name) for name in ("primary", "fallback")] == [
        ("redis", "redis://one:1/0"),
        ("postgresql", "postgresql://two/db"),
    ]


def _url(plan: Plan, leg: str) -> tuple[str, object]:
    backend = plan.pipeline.layers[-1].branches[leg].backend
    assert backend is not None
    return backend.type, next(value.value for value in backend.options.values() if value.option.key == "url")
