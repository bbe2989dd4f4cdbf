"""The shipped configurations over other stores: what is tested is the file, only the addresses change."""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"

Mapped = dict[str, Any]


PATIENCE = {"deadline": {"total": "20s"}, "timeout": {"per_attempt": "5s"}}
"""The contract says what is answered, not how soon: on a busy machine a hundred calls at once may take their time."""


def production(*, hot: Mapped, cold: Mapped) -> Mapped:
    """``production.yaml`` over these stores, with more time for each call."""
    config = _read("production.yaml")
    return {**config, "backends": {"hot": hot, "cold": cold}, "pipeline": _patient(config["pipeline"])}


def _patient(part: Any) -> Any:
    match part:
        case list():
            return [_patient(item) for item in part]
        case dict():
            return {name: PATIENCE.get(name) or _patient(options) for name, options in part.items()}
        case _:
            return part


@cache
def _read(name: str) -> Mapped:
    """Once: hundreds of tests want it, and nobody changes it."""
    config: Mapped = yaml.safe_load((CONFIG / name).read_text())
    return config


def fresh_mark() -> str:
    """A prefix, schema or file name that nobody has used."""
    return f"t{uuid.uuid4().hex[:16]}"


def all_layers(store: Mapped) -> Mapped:
    """Everything that stands over a single store, in the order that ``check`` asks for."""
    layers: list[str | Mapped] = [
        "tracing",
        "metrics",
        "logging",
        {"deadline": PATIENCE["deadline"]},
        "retry",
        "circuit_breaker",
        {"timeout": PATIENCE["timeout"]},
        {"backend": "only"},
    ]
    return {"version": 1, "backends": {"only": store}, "pipeline": layers}
