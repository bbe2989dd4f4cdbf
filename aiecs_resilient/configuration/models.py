"""A validated configuration: what is to be built, and for every value where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..registry import Build, Entry
from .errors import Place
from .options import Value


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One store.

    Attributes:
        name: its name under ``backends:``; in errors, health and routing too.
        adapted: it is no :class:`~aiecs_resilient.interface.Backend` of ours, only the specification's sixteen methods.
    """

    name: str
    entry: Entry
    target: Build
    options: dict[str, Value]
    place: Place
    adapted: bool = False

    @property
    def type(self) -> str:
        """What kind of store, as under ``type:``."""
        return self.entry.name

    def same_as(self, other: BackendPlan) -> bool:
        """Whether an open store of one can serve as the other."""
        mine = {name: value.value for name, value in self.options.items()}
        return (self.name, self.entry.target, mine) == (
            other.name,
            other.entry.target,
            {name: value.value for name, value in other.options.items()},
        )


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer.

    Attributes:
        path: where it stands in the chain (``pipeline/dual_write/primary/retry``): the key of state that survives a reload.
        branches: of a branching layer, by the parameter that takes each.
    """

    name: str
    target: Build
    options: dict[str, Value]
    place: Place
    path: str
    branches: dict[str, PipelinePlan] = field(default_factory=dict[str, "PipelinePlan"])


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """Layers outermost first, and the store below them; none if the last layer branches."""

    place: Place
    layers: tuple[LayerPlan, ...]
    backend: BackendPlan | None

    def routes(
        self, above: tuple[LayerPlan, ...] = ()
    ) -> Iterator[tuple[tuple[LayerPlan, ...], BackendPlan]]:
        """Every way from the top to a store: the layers passed, and the store."""
        passed = (*above, *self.layers)
        if self.backend is not None:
            yield passed, self.backend
        elif self.layers:
            for branch in self.layers[-1].branches.values():
                yield from branch.routes(passed)


@dataclass(frozen=True, slots=True)
class ObservabilityPlan:
    """What to set up for traces, metrics and logs."""

    options: dict[str, Value]
    place: Place


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole configuration.

    Attributes:
        source: the file's name, or what stands for a mapping.
        observability: keywords for ``ObservabilityOptions``, None if the section is absent.
    """

    source: str
    pipeline: PipelinePlan
    observability: ObservabilityPlan | None = None
