"""The shipped configurations over other stores: what is tested is the file, only the addresses change."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"

Mapped = dict[str, Any]


def production(*, hot: Mapped, cold: Mapped) -> Mapped:
    """``production.yaml`` over these stores."""
    config: Mapped = yaml.safe_load((CONFIG / "production.yaml").read_text())
    config["backends"] = {"hot": hot, "cold": cold}
    return config


def fresh_mark() -> str:
    """A prefix, schema or file name that nobody has used."""
    return f"t{uuid.uuid4().hex[:16]}"
