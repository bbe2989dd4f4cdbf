"""Each layer has a page, and the page is true: its options, its events, its metrics, and which order is right."""

from __future__ import annotations

import re
import types
from collections import abc
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.configuration.annotations import unit_of
from aiecs_resilient.configuration.errors import InvalidConfigurationError
from aiecs_resilient.configuration.options import Option, options_of
from aiecs_resilient.configuration.reader import read_plan
from aiecs_resilient.configuration.rules import ABOVE, LEG, check_order
from aiecs_resilient.registry import LAYERS, Entry, Registry

PAGES = Path(__file__).resolve().parents[2] / "docs" / "layers"
BACKENDS = {
    "redis": {"type": "redis", "url": "redis://127.0.0.1:6379/0"},
    "postgresql": {"type": "postgresql", "url": "postgresql://127.0.0.1/aiecs"},
}
KEY = "0f" * 32
NEEDED: dict[str, dict[str, Any]] = {
    "encryption": {"secret_keys": {"a": KEY}},
    "namespace": {"tenant": "acme"},
    "dual_write": {"durable_at_least": "volatile"},
}
REGISTRY = Registry(
    layers={**{name: Entry(name, ".layers.tracing:Tracing") for name in (*ABOVE, *LEG)}, **LAYERS},
    plugins=False,
)
"""Names of the documented order that no class stands behind yet may be in examples."""


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """What stands under one heading."""
    return page(name).split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def kind(annotation: Any) -> str:
    """The unit, as the tables call it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return kind(next(item for item in arguments if item is not type(None)))
    if origin is Annotated and (unit := unit_of(annotation)) is not None:
        return {"number": "whole number" if arguments[0] is int else "number"}.get(unit.of, unit.of)
    if origin is Literal:
        return "word"
    if origin in (dict, abc.Mapping):
        return "mapping"
    if origin in (list, tuple, abc.Sequence):
        return "list"
    names: dict[Any, str] = {bool: "yes or no", str: "text", int: "whole number", float: "number"}
    return names[annotation]


def row(option: Option) -> tuple[str, str, str]:
    """Name, unit and default of one option, as they must stand in its table."""
    default = "none" if option.default is None else option.text(option.default)
    return option.key, kind(option.annotation), default


def test_each_layer_has_a_page_and_each_page_a_layer() -> None:
    """What can be configured is documented, and nothing else is."""
    assert {path.stem for path in PAGES.glob("*.md")} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_the_table_of_options_is_the_constructor(name: str) -> None:
    """Names, units and defaults, in the order of the signature; every one is explained."""
    options = options_of(LAYERS[name].load(), also_not=("primary", "fallback"))
    text = section(name, "Options")
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| `([^`]*)` \| (.+) \|$", text, re.MULTILINE)
    assert [found[:3] for found in rows] == [row(option) for option in options.all]
    assert text.count("\n| `") == len(rows)
    for option, found in zip(options.all, rows, strict=True):
        if kind(option.annotation) == "word":
            assert all(f"`{word}`" in found[3] + found[2] for word in _words(option.annotation)), option.key


def _words(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for item in get_args(annotation) for word in _words(item))


@pytest.mark.parametrize("name", LAYERS)
def test_its_events_exist(name: str) -> None:
    """An operator who looks for one finds it. What the layer's own docstring names is on the page."""
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", section(name, "Events")))
    lines = {
        value
        for key, value in vars(telemetry).items()
        if key.startswith("OPERATION_") and isinstance(value, str)
    }
    assert named <= {*telemetry.EVENTS, *lines, "aiecs.events"}
    told = (LAYERS[name].load().__doc__ or "").partition("Events:")[2].partition("\n    Cancellation")[0]
    assert {
        event for event in re.findall(r"``([a-z]+\.[a-z_]+)``", told) if event in telemetry.EVENTS
    } <= named


def test_every_event_is_on_a_page() -> None:
    """Each says by which layer it is told."""
    everywhere = " ".join(section(name, "Events") for name in LAYERS)
    missing = {event for event in telemetry.EVENTS if f"`{event}`" not in everywhere}
    unbuilt = {"cache"} - LAYERS.keys()
    assert {event for event in missing if not any(event.startswith(name) for name in unbuilt)} == set()


@pytest.mark.parametrize("name", LAYERS)
async def test_its_metrics_are_those_on_the_page(name: str) -> None:
    """Keys of its part in get_metrics, all of them and no others."""
    build: Any = LAYERS[name].load()
    options = NEEDED.get(name, {})
    stores = [MemoryStorageBackend(name="a")] + (
        [MemoryStorageBackend(name="b")] if name == "dual_write" else []
    )
    async with build(*stores, **options) as layer:
        metrics = await layer.get_metrics()
    text = section(name, "Metrics")
    part = metrics.get("layers", {}).get(name)
    if part is None:
        assert f'["layers"]["{name}"]' not in text
        return
    assert f'`get_metrics()["layers"]["{name}"]`' in text
    listed = re.findall(r"`(\w+)`", text.partition("]`:")[2].partition("OpenTelemetry")[0])
    assert listed == list(part)


def examples(name: str) -> list[tuple[str, str]]:
    """Verdict and YAML of each example."""
    return re.findall(r"```yaml\n# (right|wrong: \S+)\n(.*?)```", page(name), re.DOTALL)


@pytest.mark.parametrize("name", LAYERS)
def test_right_is_right_and_wrong_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` says of each example what the page says; every page shows a wrong one, and a right one where there is one."""
    monkeypatch.setenv("AIECS_KEY", KEY)
    found = examples(name)
    assert len(found) == page(name).count("```yaml")
    assert any(verdict.startswith("wrong") for verdict, _text in found)
    assert name == "chaos" or found[0][0] == "right"
    for verdict, text in found:
        backends = {store: options for store, options in BACKENDS.items() if f"backend: {store}" in text}
        source = {"version": 1, "backends": backends, **yaml.safe_load(text)}
        try:
            ids = {finding.rule.id for finding in check_order(read_plan(source, registry=REGISTRY))}
        except InvalidConfigurationError as error:
            ids = set(re.findall(r"\[([\w-]+)\]", str(error)))
        assert name in text
        if verdict == "right":
            assert not ids, text
        else:
            assert verdict.removeprefix("wrong: ") in ids, text
