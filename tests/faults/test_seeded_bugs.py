"""Broken on purpose: the campaign, or the contract, must catch each of these bugs, else a passed run means nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.testing.campaign import Load, Verdict, run
from aiecs_resilient.testing.contract import StorageContract

from . import broken
from .memory_stage import EVERYTHING, nothing, stage
from .subjects import Wrap

BUSY = Load(sessions=12, pause=0.01, cancelled=0.1)


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
    Bug("swallow a cancel", {"lost", "counters"}, above=broken.SwallowsCancels, inside=broken.Slow),
    Bug("mix up callers", {"foreign"}, above=broken.ForgetsWhoAsked),
]


def caught(verdict: Verdict) -> set[str]:
    """By what, in a word each."""
    found = {kind for kind, count in verdict.violations.items() if count}
    words = {"health said": "health lied", "marks still open": "not healed", "not healthy": "not healed"}
    return found | {word for text, word in words.items() if any(text in line for line in verdict.findings)}


async def episode(bug: Bug, **kwargs: Any) -> Verdict:
    place = stage(above=bug.above, inside=bug.inside)
    return await run(EVERYTHING, place, seed=1, seconds=1.5, load=BUSY, **kwargs)


@pytest.mark.parametrize("inside", [nothing, broken.Slow])
async def test_without_a_bug_the_same_episode_passes(inside: Wrap) -> None:
    """What is caught below is the bug and not the episode."""
    verdict = await episode(Bug("none", set(), inside=inside))
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
