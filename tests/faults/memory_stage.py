"""A stage without servers: the shipped chain over two stores in memory that can be told to fail, for tests of the campaign itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer
from aiecs_resilient.testing.campaign import Scenario, Stage, Store, Trouble

from .subjects import Leg, State, Wrap, chain

PACE = 0.1


def nothing(inner: Backend) -> Backend:
    """No layer."""
    return inner


class Kept(Layer):
    """A store in memory that outlives the chain: closing the chain does not empty it."""

    layer_name = "kept"

    async def close(self) -> None:
        """It stays open."""


@dataclass(frozen=True, slots=True)
class MemoryStore(Store):
    """A store whose way can be blocked."""

    leg: Leg = None  # type: ignore[assignment]


def stage(*, above: Wrap = nothing, inside: Wrap = nothing) -> Stage:
    """The chain, with something more around it or inside each leg."""
    legs = Leg("hot"), Leg("cold")

    def store(leg: Leg) -> Store:
        return MemoryStore(leg.name, lambda: Kept(leg.store), leg=leg)

    return Stage(
        "memory → memory",
        lambda: chain(*legs, above=above, inside=inside, pace=PACE),
        tuple(store(leg) for leg in legs),
        deadline=4.0,
        health_within=0.3,
    )


async def harm(trouble: Trouble, states: Mapping[int, State], share: float) -> None:
    """Let stores be so for a while, and then give the chain a moment."""
    stores = trouble.stage.stores
    for place, state in states.items():
        leg_of(stores[place]).state = state
        trouble.lost(stores[place])
        trouble.struck[state] += 1
    await trouble.wait(share)
    for place in states:
        leg_of(stores[place]).state = "up"
        trouble.returned(stores[place])
    await trouble.wait(0.06)


def leg_of(store: Store) -> Leg:
    """The way to that store."""
    assert isinstance(store, MemoryStore)
    return store.leg


async def everything(trouble: Trouble) -> None:
    """Replies lost, each store away for a while, both away for a moment."""
    await trouble.wait(0.1)
    await harm(trouble, {0: "losing replies"}, 0.1)
    await harm(trouble, {1: "refusing"}, 0.5)
    await harm(trouble, {0: "hanging"}, 0.15)
    await harm(trouble, {0: "refusing", 1: "refusing"}, 0.1)


EVERYTHING = Scenario("everything, in a second", everything, frozenset(), available=0.2)
