"""The JSON Schema of a configuration, from the same signatures that validate it: editors complete and check with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..registry import Registry
from .options import Options, options_of

JsonSchema = dict[str, Any]

_VARIABLE: JsonSchema = {"type": "string", "pattern": r"\$\{"}
"""Any scalar may come from the environment instead."""


def schema(registry: Registry) -> JsonSchema:
    """The schema of a whole file."""
    layers = {name: _layer(name, registry) for name in registry.all_layers()}
    simple = [name for name, form in layers.items() if not form.get("required")]
    items: list[JsonSchema] = [{"enum": simple, "description": "A layer with its default options."}]
    items += [_single(name, form, optional=name in simple) for name, form in layers.items()]
    items.append(_single("backend", {"type": "string", "description": "A name under `backends`."}))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aiecs-resilient configuration",
        "type": "object",
        "additionalProperties": False,
        "required": ["backends", "pipeline"],
        "properties": {
            "version": {"const": 1},
            "backends": {
                "type": "object",
                "minProperties": 1,
                "description": "Name → store.",
                "additionalProperties": {"$ref": "#/$defs/backend"},
            },
            "pipeline": {"$ref": "#/$defs/pipeline"},
            "observability": _observability(),
        },
        "$defs": {
            "pipeline": {
                "type": "array",
                "minItems": 1,
                "description": "Layers, outermost first; the last is `backend: NAME` or a branching layer.",
                "items": {"$ref": "#/$defs/layer"},
            },
            "layer": {"anyOf": items},
            "backend": {"anyOf": _backends(registry)},
        },
    }


def _single(name: str, form: JsonSchema, *, optional: bool = False) -> JsonSchema:
    value = {"anyOf": [form, {"type": "null"}]} if optional else form
    return {"type": "object", "additionalProperties": False, "required": [name], "properties": {name: value}}


def _layer(name: str, registry: Registry) -> JsonSchema:
    target = registry.all_layers()[name].load()
    branches = cast("tuple[str, ...]", getattr(target, "branches", ()))
    form = _object(options_of(target, also_not=branches), target.__doc__)
    for branch in branches:
        form["properties"][branch] = {"$ref": "#/$defs/pipeline"}
        form.setdefault("required", []).append(branch)
    return form


def _backends(registry: Registry) -> list[JsonSchema]:
    forms: list[JsonSchema] = []
    simple: list[str] = []
    for name, entry in registry.all_backends().items():
        target = entry.load()
        form = _object(options_of(target, aliases=entry.aliases()), target.__doc__)
        if not form.get("required"):
            simple.append(name)
        form["properties"] = {"type": {"const": name}, **form["properties"]}
        form["required"] = ["type", *form.get("required", [])]
        forms.append(form)
    named = {
        "type": "object",
        "additionalProperties": False,
        "required": ["pipeline"],
        "properties": {"pipeline": {"$ref": "#/$defs/pipeline"}},
        "description": "A chain under a name.",
    }
    return [{"enum": simple, "description": "A store with its default options."}, *forms, named]


def _observability() -> JsonSchema:
    from ..observability import ObservabilityOptions

    return _object(options_of(ObservabilityOptions), ObservabilityOptions.__doc__)


def _object(options: Options, doc: str | None) -> JsonSchema:
    made = options.model.model_json_schema(by_alias=True)
    found = cast("Mapping[str, JsonSchema]", made.get("properties", {}))
    form: JsonSchema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _property(value) for key, value in found.items()},
    }
    if made.get("required"):
        form["required"] = made["required"]
    if doc:
        form["description"] = doc.strip().splitlines()[0].replace("``", "`")
    return form


def _property(made: Mapping[str, Any]) -> JsonSchema:
    """One option: as the model has it, or a variable from the environment."""
    kept = {key: made[key] for key in ("description", "default") if key in made}
    form = {key: value for key, value in made.items() if key not in ("title", "description", "default")}
    if form.get("type") == "string" and not {"enum", "const", "pattern"} & form.keys():
        return {**form, **kept}
    return {"anyOf": [*(form["anyOf"] if form.keys() == {"anyOf"} else [form]), _VARIABLE], **kept}
