"""The JSON Schema is made from the constructors, and says of a file what loading it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from configuration_fakes import REGISTRY

from aiecs_resilient.configuration.schema import schema
from aiecs_resilient.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def fits(value: Any, form: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a schema: the part of the standard that ours uses, and an error for any other keyword."""
    known = {"title", "description", "default", "$schema", "$defs", "propertyNames"}
    for word, wanted in sorted(form.items(), key=lambda item: item[0] != "type"):  # the others rely on it
        match word:
            case "$ref":
                good = fits(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
            case "anyOf":
                good = any(fits(value, option, root) for option in wanted)
            case "type":
                good = isinstance(value, TYPES[wanted]) and (
                    wanted == "boolean" or not isinstance(value, bool)
                )
            case "enum":
                good = value in wanted
            case "const":
                good = value == wanted
            case "pattern":
                good = not isinstance(value, str) or re.search(wanted, value) is not None
            case "minimum":
                good = not isinstance(value, int | float) or value >= wanted
            case "maximum":
                good = not isinstance(value, int | float) or value <= wanted
            case "exclusiveMinimum":
                good = not isinstance(value, int | float) or value > wanted
            case "minItems" | "minProperties":
                good = len(value) >= wanted
            case "uniqueItems":
                good = len(set(value)) == len(value)
            case "items":
                good = all(fits(item, wanted, root) for item in value)
            case "required":
                good = set(wanted) <= value.keys()
            case "properties":
                good = all(fits(value[key], inner, root) for key, inner in wanted.items() if key in value)
            case "additionalProperties":
                extra = value.keys() - form.get("properties", {}).keys()
                good = not extra if wanted is False else all(fits(value[key], wanted, root) for key in extra)
            case _:
                assert word in known, word
                good = True
        if not good:
            return False
    return True


def test_the_committed_schema_is_current() -> None:
    """`aiecs-resilient schema --output config/schema.json` after an option has changed."""
    committed = json.loads((CONFIG / "schema.json").read_text(encoding="utf-8"))
    assert committed == schema(Registry(plugins=False)), (
        "run: aiecs-resilient schema --output config/schema.json"
    )


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_fit_it(path: Path) -> None:
    """An editor that uses the schema finds nothing wrong with them."""
    made = schema(Registry(plugins=False))
    assert fits(yaml.safe_load(path.read_text(encoding="utf-8")), made, made)


@pytest.mark.parametrize(
    ("options", "good"),
    [
        ({"wait": "250ms"}, True),
        ({"wait": 2}, True),
        ({"wait": "${W:-1s}"}, True),
        ({"wait": "soon"}, False),
        ({"wait": 0}, False),
        ({"size": "64KiB"}, True),
        ({"size": "64"}, False),
        ({"count": "${N:-10}"}, True),
        ({"count": "10"}, False),
        ({"count": 0}, False),
        ({"share": 1.5}, False),
        ({"mode": "fast"}, True),
        ({"mode": "quick"}, False),
        ({"pause": None}, True),
        ({"hosts": ["a"]}, True),
        ({"hosts": "a"}, False),
        ({"waits": {"x": "1s"}}, True),
        ({"waits": {"x": "soon"}}, False),
        ({"cuont": 1}, False),
        ({}, True),
        (None, True),
    ],
    ids=str,
)
def test_it_accepts_what_loading_accepts(options: dict[str, object] | None, good: bool) -> None:
    """Types, ranges, units, words, and a variable in place of any value."""
    made = schema(REGISTRY_WITHOUT_MISSING)
    source = {"backends": {"m": "memory"}, "pipeline": [{"knobs": options}, {"backend": "m"}]}
    assert fits(source, made, made) is good


REGISTRY_WITHOUT_MISSING = Registry(
    {name: entry for name, entry in REGISTRY.layers.items() if name != "missing"},
    REGISTRY.backends,
    plugins=False,
)


@pytest.mark.parametrize(
    ("pipeline", "good"),
    [
        (["tracing", {"backend": "m"}], True),
        ([{"needy": {"key": "x"}}, {"backend": "m"}], True),
        (["needy", {"backend": "m"}], False),
        (["trasing"], False),
        ([], False),
        ([{"knobs": {}, "tracing": {}}], False),
        ([{"dual_write": {"primary": [{"backend": "m"}], "fallback": [{"backend": "n"}]}}], True),
        ([{"dual_write": {"primary": [{"backend": "m"}]}}], False),
    ],
    ids=str,
)
def test_it_knows_the_shape_of_a_pipeline(pipeline: list[object], good: bool) -> None:
    """Names, one layer per item, options that must be given, branches."""
    made = schema(REGISTRY_WITHOUT_MISSING)
    assert fits({"backends": {"m": "memory"}, "pipeline": pipeline}, made, made) is good
