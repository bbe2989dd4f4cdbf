"""Broken on purpose: the campaign, or the contract, must catch each of these bugs, else a passed run means nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.testing.campaign import Load, Scenario, Stage, Store, Trouble, Verdict, run
from aiecs_resilient.testing.contract import StorageContract

from . import broken
from .subjects import Leg, Wrap, chain

PACE = 0.1
BUSY = Load(sessions=12, pause=0.01, cancelled=0.1)


def nothing(inner: Backend) -> Backend:
    return inner


@dataclass(frozen=True)
class Bug:
    """Where it sits, and by which findings it is to be caught: any of them will do."""

    name: str
    caught_by: set[str]
    above: Wrap = nothing
    inside: Wrap = nothing


BUGS = [
    Bug("drop the op_id", {"duplicated", "counters"}, inside=broken.DropsTheIdentity),
    Bug("retry under a new op_id", {"duplicated", "counters"}, inside=broken.RetriesUnderANewIdentity),
    Bug("acknowledge before durable", {"lost"}, above=broken.AnswersBeforeItIsDurable),
    Bug("close a mark too early", {"lost", "differing"}, inside=broken.ClosesMarksTooEarly),
    Bug("never reconcile", {"not healed"}, inside=broken.NeverReconciles),
    Bug("reconcile out of order", {"out_of_order"}, inside=broken.ReconcilesOutOfOrder),
    Bug("health is a ping", {"health lied"}, above=broken.CallsAPingHealth),
    Bug("swallow a cancel", {"lost", "counters"}, above=broken.SwallowsCancels),
    Bug("mix up callers", {"foreign"}, above=broken.ForgetsWhoAsked),
]


class Kept(Layer):
    """A store in memory that outlives the chain: closing the chain does not empty it."""

    layer_name = "kept"

    async def close(self) -> None:
        """It stays open."""


@asynccontextmanager
async def stage(bug: Bug | None) -> AsyncIterator[tuple[Stage, Scenario]]:
    """The chain over two stores in memory, with a bug or without one, and what happens to it."""
    legs = hot, cold = Leg("hot"), Leg("cold")
    above, inside = (bug.above, bug.inside) if bug else (nothing, nothing)

    def made() -> Backend:
        return chain(*legs, above=above, inside=inside, pace=PACE)

    async def play(trouble: Trouble) -> None:
        await harm(trouble, hot, cold)

    stores = tuple(Store(leg.store.name, lambda leg=leg: Kept(leg.store)) for leg in legs)  # type: ignore[misc]
    yield (
        Stage("memory → memory", made, stores, deadline=4.0, health_within=0.3),
        Scenario("everything, in a second", play, frozenset(), available=0.2),
    )


async def harm(trouble: Trouble, hot: Leg, cold: Leg) -> None:
    """Replies lost, each store away for a while, both away for a moment."""
    store = dict(zip((hot, cold), trouble.stage.stores, strict=True))
    await trouble.wait(0.1)
    for legs, state, share in (
        ([hot], "losing replies", 0.1),
        ([cold], "refusing", 0.25),
        ([hot], "hanging", 0.15),
        ([hot, cold], "refusing", 0.1),
    ):
        for leg in legs:
            leg.state = state  # type: ignore[assignment]
            trouble.lost(store[leg])
            trouble.struck[state] += 1
        await trouble.wait(share)
        for leg in legs:
            leg.state = "up"
            trouble.returned(store[leg])
        await trouble.wait(0.06)


def caught(verdict: Verdict) -> set[str]:
    """By what, in a word each."""
    found = {kind for kind, count in verdict.violations.items() if count}
    words = {"health said": "health lied", "marks still open": "not healed", "not healthy": "not healed"}
    return found | {word for text, word in words.items() if any(text in line for line in verdict.findings)}


async def episode(bug: Bug | None, **kwargs: Any) -> Verdict:
    async with stage(bug) as (place, scenario):
        return await run(scenario, place, seed=1, seconds=1.5, load=BUSY, **kwargs)


async def test_without_a_bug_the_same_episode_passes() -> None:
    """What is caught below is the bug and not the episode."""
    verdict = await episode(None)
    assert verdict.ok, f"\n{verdict}"


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
async def test_the_campaign_catches(bug: Bug, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Each bug, by what it does to callers or stores."""
    monkeypatch.setattr("aiecs_resilient.testing.campaign.runner.HEAL_SECONDS", 2.0)
    monkeypatch.setattr("aiecs_resilient.testing.campaign.runner.DRAIN_SECONDS", 1.0)
    verdict = await episode(bug, folder=tmp_path)
    assert not verdict.ok
    assert caught(verdict) & bug.caught_by, f"caught, but not by what was expected:\n{verdict}"


# The load has no callers who make mistakes; the contract has.


class Anything(StorageContract):
    """The suite, to be called test by test."""

    __test__ = False


@pytest.mark.parametrize(
    ("breaker", "passes"), [(CircuitBreaker, True), (broken.BlamesTheStoreForItsCallers, False)]
)
async def test_the_contract_catches_a_breaker_that_counts_callers_errors(
    breaker: Callable[..., Backend], passes: bool
) -> None:
    """Nine callers lose a race, which says nothing about the store: the tenth must still be answered."""
    async with breaker(MemoryStorageBackend()) as storage:
        call = Anything().test_of_concurrent_compare_and_sets_one_wins(storage)
        assert await held(call) is passes


async def held(call: Any) -> bool:
    """Did that test of the suite pass?"""
    try:
        await call
    except Exception:  # noqa: BLE001 - a test fails in whatever way it likes
        return False
    return True
