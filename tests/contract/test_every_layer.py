"""The contract over a chain of every layer that this package has, as YAML describes it, and a reload of that chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from namespaced import NamespacedContract

from aiecs_resilient import open_storage
from aiecs_resilient.assembly import Chain, build
from aiecs_resilient.configuration.reader import read_plan
from aiecs_resilient.configuration.rules import ABOVE, LEG, check_order
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import Layer
from aiecs_resilient.registry import LAYERS

OPTIONS = {
    "deadline": "{total: 60s}",
    "read_only": "{enabled: false}",
    "namespace": "{tenant: 'a:b'}",
    "limits": "{max_value: 64MiB, max_content: 64MiB, max_items: 10000, max_session_ttl: 1d}",
    "rate_limit": "{rate: 1000000, burst: 10000, by: tenant, max_wait: 5s}",
    "compression": "{min_size: 100B}",
    "encryption": "{secret_keys: {a: '${KEY_A}', b: '${KEY_B}'}, active_key: b}",
    "hedging": "{min_delay: 5ms}",
    "bulkhead": "{limit: 16, mode: wait, fair_by: tenant, adaptive: true}",
    "timeout": "{per_attempt: 30s}",
    "chaos": "{latency_rate: 0.01, latency: 1ms}",
}
KEYS = {"KEY_A": "0f" * 32, "KEY_B": "f0" * 32}


def every_layer() -> str:
    """In the documented order, two legs over memory."""

    def listed(names: tuple[str, ...], indent: str) -> str:
        return "".join(f"{indent}- {name}: {OPTIONS.get(name, '{}')}\n" for name in names if name in LAYERS)

    above = listed(ABOVE[:-1], "  ")
    legs = "".join(
        f"      {branch}:\n{listed(LEG, '        ')}        - backend: {store}\n"
        for branch, store in (("primary", "one"), ("fallback", "two"))
    )
    return (
        "version: 1\nbackends: {one: memory, two: memory}\npipeline:\n"
        f"{above}  - dual_write:\n      durable_at_least: volatile\n{legs}"
    )


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets come from the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def path(tmp_path: Path, keys: None) -> Path:
    """The chain as a file."""
    file = tmp_path / "every.yaml"
    file.write_text(every_layer())
    return file


class TestEveryLayer(NamespacedContract):
    """None of them breaks what another one promises."""

    cancellations = 20

    @pytest.fixture
    async def storage(self, path: Path) -> AsyncIterator[Backend]:
        async with open_storage(path) as storage:
            yield storage


def layers_of(chain: Chain) -> list[Layer]:
    """Those of the chain, from the top and down the first leg."""
    found: list[Layer] = []
    backend: Backend | None = chain.backend
    while backend is not None:
        if isinstance(backend, Layer):
            found.append(backend)
            backend = backend.inner
        else:
            backend = backend.router.primary.backend if hasattr(backend, "router") else None
    return found


def test_every_layer_stands_in_it(path: Path) -> None:
    """A layer that is added to the package and not to the documented order would be tested nowhere in a whole chain."""
    assert set(LAYERS) == {name for name in (*ABOVE, *LEG) if name in LAYERS}
    chain = build(path)
    names = {layer.layer_name for layer in layers_of(chain)} - {"lease"}
    assert names | {"dual_write"} == set(LAYERS)


def test_the_documented_order_breaks_no_rule_but_that_of_chaos(path: Path) -> None:
    """What `check` says of it, once for each leg."""
    assert [
        finding.rule.id for finding in check_order(read_plan(path)) if finding.rule.id != "volatile-leg"
    ] == ["chaos-in-chain"] * 2


async def test_a_reload_keeps_the_state_of_every_layer(path: Path) -> None:
    """Whatever a layer has learned or counts is the new chain's too."""
    old = build(path)
    new = build(path, previous=old)
    for before, after in zip(layers_of(old), layers_of(new), strict=True):
        assert before is not after
        assert getattr(before, "state", None) is getattr(after, "state", None), after.layer_name


async def test_no_report_shows_a_key(path: Path) -> None:
    """Health, metrics and repr of the whole chain."""
    async with open_storage(path) as storage:
        await storage.create_session("s", "u")
        shown = (
            repr(await storage.health_check()) + repr(await storage.get_metrics()) + repr(build(path).backend)
        )
    for key in KEYS.values():
        assert key not in shown
