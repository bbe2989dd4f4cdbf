"""A plan → the chain it describes. Constructors do no I/O: everything that needs a server is ``initialize``.

What outlives a reload is kept here by name: a layer's ``state`` (breaker windows, retry budgets) by its path in the
chain, and a store whose configuration did not change together with its connections.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, cast

from .configuration.errors import InvalidConfigurationError, Place, Problem
from .configuration.models import BackendPlan, LayerPlan, ObservabilityPlan, PipelinePlan, Plan
from .configuration.options import Value
from .configuration.reader import Source, read_plan
from .configuration.rules import check_order
from .interface import Backend
from .layers._base import Layer
from .registry import Build, Registry

if TYPE_CHECKING:
    from .observability import ObservabilityOptions

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Store:
    """An open store and how many chains stand on it: during a reload two do, and the last one closes it."""

    plan: BackendPlan
    backend: Backend
    users: int = 0


class Lease(Layer):
    """A chain's hold on a store. Operations are bound straight to the store; only closing asks whether it is the last."""

    layer_name = "lease"

    def __init__(self, store: Store) -> None:
        super().__init__(store.backend)
        self._store = store
        self._held = False

    def __repr__(self) -> str:
        return repr(self.inner)

    async def initialize(self) -> bool:
        if not self._held:
            self._held = True
            self._store.users += 1
        return await self.inner.initialize()

    async def close(self) -> None:
        if not self._held:
            return
        self._held = False
        self._store.users -= 1
        if not self._store.users:
            await self.inner.close()


@dataclass(slots=True)
class Chain:
    """A built chain.

    Attributes:
        backend: the outermost layer.
        states: what its layers want to find again after a reload, by path.
        stores: by name.
        observability: what is to be set up before the chain is opened, if the configuration asks for it.
    """

    plan: Plan
    backend: Backend
    states: dict[str, object] = field(default_factory=dict[str, object])
    stores: dict[str, Store] = field(default_factory=dict[str, Store])
    leases: list[Lease] = field(default_factory=list[Lease])
    observability: ObservabilityOptions | None = None

    async def close(self) -> None:
        """Close it from the top. Its hold on the stores ends even where a layer did not get so far as to open."""
        try:
            await self.backend.close()
        finally:
            for lease in self.leases:
                await lease.close()


def build(source: Source, *, registry: Registry | None = None, previous: Chain | None = None) -> Chain:
    """Read, check and build; ConfigurationError if it cannot be used. Warnings of the order rules go to the log."""
    plan = read_plan(source, registry=registry)
    for finding in check_order(plan):
        _log.warning("%s", finding)
    return assemble(plan, previous=previous)


def assemble(plan: Plan, *, previous: Chain | None = None) -> Chain:
    """The chain of a validated plan; state and unchanged stores of ``previous`` are taken over."""
    builder = _Builder(previous)
    backend = builder.pipeline(plan.pipeline)
    return Chain(
        plan, backend, builder.states, builder.stores, builder.leases, _observability(plan.observability)
    )


def _observability(section: ObservabilityPlan | None) -> ObservabilityOptions | None:
    if section is None:
        return None
    from .observability import ObservabilityOptions  # only a file that asks for it pays for it

    made = _construct(ObservabilityOptions, "observability", section.place, (), _values(section.options))
    return cast("ObservabilityOptions", made)


class _Builder:
    def __init__(self, previous: Chain | None) -> None:
        self._previous = previous
        self.states: dict[str, object] = {}
        self.stores: dict[str, Store] = {}
        self.leases: list[Lease] = []

    def pipeline(self, plan: PipelinePlan) -> Backend:
        layers = list(plan.layers)
        if plan.backend is not None:
            lease = Lease(self._store(plan.backend))
            self.leases.append(lease)
            chain: Backend = lease
        else:
            branching = layers.pop()
            branches = {name: self.pipeline(branch) for name, branch in branching.branches.items()}
            chain = self._layer(branching, (), branches)
        for layer in reversed(layers):
            chain = self._layer(layer, (chain,), {})
        return chain

    def _layer(self, plan: LayerPlan, inner: tuple[Backend, ...], branches: Mapping[str, Backend]) -> Backend:
        keywords: dict[str, object] = {**branches, **_values(plan.options)}
        kept = None if self._previous is None else self._previous.states.get(plan.path)
        if kept is not None and "state" in signature(plan.target).parameters:
            keywords["state"] = kept
        layer = cast("Backend", _construct(plan.target, plan.name, plan.place, inner, keywords))
        state = cast("object", getattr(layer, "state", None))
        if state is not None:
            self.states[plan.path] = state
        return layer

    def _store(self, plan: BackendPlan) -> Store:
        kept = None if self._previous is None else self._previous.stores.get(plan.name)
        if kept is None or not kept.plan.same_as(plan):
            kept = Store(plan, open_backend(plan))
        self.stores[plan.name] = kept
        return kept


def open_backend(plan: BackendPlan) -> Backend:
    """The store alone, not yet connected; one that is not ours is adapted."""
    keywords: dict[str, object] = {**_values(plan.options)}
    if "name" in signature(plan.target).parameters:
        keywords["name"] = plan.name
    backend = _construct(plan.target, f"backend {plan.name!r}", plan.place, (), keywords)
    if not plan.adapted:
        return cast("Backend", backend)
    from .backends.foreign import adapt  # only who brings a class of their own pays for it

    what = f"backend {plan.name!r} of {plan.entry.target}"
    return cast("Backend", _construct(adapt, what, plan.place, (backend,), {"name": plan.name}))


def _values(options: Mapping[str, Value]) -> dict[str, object]:
    return {name: value.value for name, value in options.items() if value.place is not None}


def _construct(
    target: Build, what: str, place: Place, below: tuple[object, ...], keywords: Mapping[str, object]
) -> object:
    try:
        return target(*below, **keywords)
    except (ValueError, TypeError, NotImplementedError) as error:
        # Without the cause: a driver's own text about a URL may quote its password.
        message = f"{what} refuses its options: {error}"
        raise InvalidConfigurationError([Problem(place, message)]) from None
