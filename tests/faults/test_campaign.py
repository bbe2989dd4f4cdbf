"""The campaign itself: what proves nothing must not pass, and whoever reads a failure must be able to repeat it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from aiecs_resilient.testing.campaign import SCENARIOS, Load, Scenario, Trouble, run
from aiecs_resilient.testing.campaign.watch import Outage, Sample, Watch

from .memory_stage import EVERYTHING, harm, leg_of, stage

LOAD = Load(sessions=8, pause=0.005)


async def idle(trouble: Trouble) -> None:
    """Harm nobody."""
    await trouble.wait(1.0)


async def brief(trouble: Trouble) -> None:
    """The least that counts."""
    await trouble.wait(0.3)
    await harm(trouble, {0: "refusing"}, 0.3)


BRIEF = Scenario("brief", brief, frozenset())


async def test_a_scenario_that_injected_nothing_fails() -> None:
    """A run without a fault proves nothing, however well it went."""
    verdict = await run(Scenario("idle", idle, frozenset()), stage(), seed=1, seconds=0.5, load=LOAD)
    assert not verdict.ok
    assert "no fault was injected" in str(verdict)


async def test_too_few_acknowledged_writes_fail() -> None:
    """Neither does a run in which next to nothing was written."""
    verdict = await run(BRIEF, stage(), seed=1, seconds=0.3, load=Load(sessions=2, pause=0.2))
    assert not verdict.ok
    assert "writes were acknowledged" in str(verdict)


async def test_a_failure_names_its_seed_and_keeps_what_is_needed(tmp_path: Path) -> None:
    """Seed, scenario, stage, and the folder with the history and what each store held."""
    impossible = replace(BRIEF, available=1.01)
    verdict = await run(impossible, stage(), seed=17, seconds=0.5, load=LOAD, folder=tmp_path)
    assert not verdict.ok
    text = str(verdict)
    assert "brief on memory → memory, seed 17" in text
    assert str(tmp_path) in text
    assert set(os.listdir(tmp_path)) == {"history.jsonl", "hot.json", "cold.json"}  # noqa: PTH208 - no coroutine waits


async def test_a_passed_run_leaves_nothing_behind() -> None:
    """Its temporary folder is deleted."""
    verdict = await run(BRIEF, stage(), seed=1, seconds=0.5, load=LOAD)
    assert verdict.ok, f"\n{verdict}"
    assert not verdict.folder.exists()


async def test_a_stage_that_cannot_be_harmed_so_says_what_it_lacks() -> None:
    """No server, no kill: an error before anything runs."""
    with pytest.raises(ValueError, match="primary server"):
        await run(SCENARIOS["primary killed"], stage(), seed=1)


async def test_a_history_that_proves_nothing_is_no_verdict() -> None:
    """Stores that are away from the first moment: the episode ends with an error and not with a pass."""
    place = stage()

    async def never(_trouble: Trouble) -> None:
        raise AssertionError("it must not come so far")

    for store in place.stores:
        leg_of(store).state = "refusing"
    with pytest.raises(Exception, match="neither store"):
        await run(Scenario("never", never, frozenset()), place, seed=1, seconds=0.2, load=LOAD)


def test_every_scenario_says_what_it_does() -> None:
    """Each has a docstring, and needs something that it can harm."""
    for scenario in SCENARIOS.values():
        assert scenario.play.__doc__
        assert scenario.needs
    assert EVERYTHING.name not in SCENARIOS


def test_what_this_process_slept_through_is_not_called_late() -> None:
    """A call that took long because nobody ran is the machine's matter; one that took long otherwise is ours."""
    watch = Watch(stage().chain())
    watch.stalls.append((10.0, 11.0))
    assert watch.late([(9.9, 12.05)], 2.0) == []
    assert len(watch.late([(9.0, 12.5)], 2.0)) == 1
    assert watch.late([(20.0, 22.05)], 2.0) == []
    assert len(watch.late([(20.0, 22.2)], 2.0)) == 1


def test_health_lies_only_if_it_had_time_to_notice() -> None:
    """Healthy is a lie within an outage and after the time that it has to notice it."""
    watch = Watch(stage().chain())
    watch.samples += [
        Sample(1.0, 1.01, "healthy"),
        Sample(4.0, 4.01, "healthy"),
        Sample(6.0, 6.01, "healthy"),
    ]
    assert len(watch.lies([Outage("hot", 0.5, 5.0)], 2.0)) == 1
    assert watch.lies([Outage("hot", 3.0, 5.0)], 2.0) == []
    assert len(watch.lies([Outage("hot", 0.5)], 2.0)) == 2


def test_repeats_beyond_the_budget_are_found() -> None:
    """A tenth of the calls to two stores and a few per second, no more."""
    watch = Watch(stage().chain())
    watch.retries["hot"] = 100
    assert watch.excess(200, 5.0) == []
    watch.retries["hot"] = 200
    assert len(watch.excess(200, 5.0)) == 1
