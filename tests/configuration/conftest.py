"""What tests of a configuration share: text in, plan or complaint out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from configuration_fakes import REGISTRY

from aiecs_resilient.configuration.errors import InvalidConfigurationError, Problem
from aiecs_resilient.configuration.models import Plan
from aiecs_resilient.configuration.reader import read_plan

Read = Callable[..., Plan]
Complaints = Callable[..., list[Problem]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads YAML text as a file, with the fakes' names and only the variables given."""

    def read_text(text: str | bytes, **environment: str) -> Plan:
        path = tmp_path / "chain.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_plan(path, registry=REGISTRY, environment=environment)

    return read_text


@pytest.fixture
def complaints(read: Read) -> Complaints:
    """Everything that is wrong with YAML text."""

    def read_badly(text: str | bytes, **environment: str) -> list[Problem]:
        with pytest.raises(InvalidConfigurationError) as caught:
            read(text, **environment)
        return list(caught.value.problems)

    return read_badly


@pytest.fixture
def knobs(read: Read) -> Callable[..., dict[str, object]]:
    """The values that the layer `knobs` gets for these options, written as a flow mapping."""

    def values(options: str, **environment: str) -> dict[str, object]:
        plan = read(
            f"backends: {{m: memory}}\npipeline:\n  - knobs: {options}\n  - backend: m\n", **environment
        )
        return {name: value.value for name, value in plan.pipeline.layers[0].options.items()}

    return values
