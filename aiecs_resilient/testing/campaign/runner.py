"""One episode from the first call to the verdict: load, faults, healing, reading back, judging."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from ...errors import StorageError, UnsupportedOperationError
from ...interface import Backend
from ..history import HistoryRecorder
from .readback import read_back
from .scenarios import Scenario, Trouble
from .stage import Stage
from .verdict import Verdict, judge
from .watch import Watch
from .workload import Load, Tally, Workload

HEAL_SECONDS = 15.0  # in which a chain has to be healthy again after the last fault, with the load kept on
WARM_SECONDS = 10.0  # in which every session has to exist, with nothing wrong yet
DRAIN_SECONDS = 10.0  # in which all marks have to be closed after the last call
POLL = 0.05
LEAST_ACKNOWLEDGED = 100  # fewer writes prove nothing


class NotHealedError(Exception):
    """The chain did not find back by itself in time."""


async def run(
    scenario: Scenario,
    stage: Stage,
    *,
    seed: int,
    seconds: float = 5.0,
    load: Load | None = None,
    folder: Path | None = None,
) -> Verdict:
    """Play a scenario on a stage and judge what came of it.

    Args:
        seed: decides load and faults, as far as the timing of a real machine lets it.
        seconds: how long the scenario takes, healing not included.
        folder: where history and states are written; None for a temporary one, which is kept only if the episode fails.

    Raises:
        ValueError: the stage lacks what the scenario harms.
    """
    missing = scenario.missing(stage)
    if missing:
        raise ValueError(
            f"{scenario.name!r} cannot be played on {stage.name}: it has no {', '.join(sorted(missing))}"
        )
    place = folder or Path(tempfile.mkdtemp(prefix="aiecs-campaign-"))
    verdict = Verdict(scenario.name, stage.name, seed, seconds, place)
    record = place / "history.jsonl"
    with HistoryRecorder(record) as recorder:
        sessions = await _play(scenario, stage, verdict, recorder, load or Load())
    states = [await read_back(store, sessions, place) for store in stage.stores]
    await judge(record, states, verdict)
    if folder is None and verdict.ok:
        shutil.rmtree(place)
    return verdict


async def _play(
    scenario: Scenario, stage: Stage, verdict: Verdict, recorder: HistoryRecorder, load: Load
) -> list[str]:
    """Load and faults, then the way back. The sessions that there should be."""
    chance = random.Random(verdict.seed)  # noqa: S311 - replayed from its seed, guards nothing
    async with stage.chain() as storage:
        async with Watch(storage) as watch:
            work = Workload(storage, recorder, load, seed=verdict.seed, name=f"s{verdict.seed}")
            trouble = Trouble(stage, verdict.seconds, chance, partial(until_healthy, storage))
            began = time.monotonic()
            running = asyncio.create_task(work.run())
            try:
                async with asyncio.timeout(WARM_SECONDS):
                    await work.ready.wait()
                await until_healthy(storage)
                work.tally.warm()
                await scenario.play(trouble)
                await stage.heal()
                verdict.figures["healthy again after"] = f"{await until_healthy(storage):.2f} s"
            except NotHealedError as error:
                verdict.findings.append(str(error))
            finally:
                await stage.heal()
                work.stop()
                await running
            observe(scenario, stage, verdict, work.tally, watch, trouble, time.monotonic() - began)
        try:
            await until_drained(stage, storage)
            await work.settle()
        except (NotHealedError, StorageError) as error:
            verdict.findings.append(f"after the last call: {error}")
    return work.sessions


async def until_healthy(storage: Backend) -> float:
    """Wait until the chain says that all is well; how long it took.

    Raises:
        NotHealedError: not within :data:`HEAL_SECONDS`.
    """
    began = time.monotonic()
    while True:
        report = await storage.health_check()
        if report["status"] == "healthy":
            return time.monotonic() - began
        if time.monotonic() - began > HEAL_SECONDS:
            raise NotHealedError(f"not healthy within {HEAL_SECONDS:g} s: {report['issues'] or report}")
        await asyncio.sleep(POLL)


async def until_drained(stage: Stage, storage: Backend) -> None:
    """Wait until no store holds a mark that its peer lacks something, asked directly and not through the chain.

    Raises:
        NotHealedError: not within :data:`DRAIN_SECONDS`.
    """
    async with AsyncExitStack() as opened:
        stores = [await opened.enter_async_context(store.alone()) for store in stage.stores]
        began = time.monotonic()
        while True:
            marks = {store.name: await open_marks(store) for store in stores}
            if not any(marks.values()):
                await until_healthy(storage)
                return
            if time.monotonic() - began > DRAIN_SECONDS:
                raise NotHealedError(f"marks still open after {DRAIN_SECONDS:g} s: {marks}")
            await asyncio.sleep(POLL)


async def open_marks(store: Backend) -> int:
    """How many records its peer lacks; 0 for a store that keeps no marks."""
    try:
        return (await store.store_state()).open_marks
    except UnsupportedOperationError:
        return 0


def observe(
    scenario: Scenario,
    stage: Stage,
    verdict: Verdict,
    tally: Tally,
    watch: Watch,
    trouble: Trouble,
    seconds: float,
) -> None:
    """Everything that can be said without reading the stores."""
    faults = trouble.faults()
    answered = 1 - tally.failed / max(1, tally.calls)
    verdict.faults = dict(faults)
    verdict.figures |= {
        "calls": tally.calls,
        "answered": f"{answered:.2%}",
        "errors": dict(tally.errors),
        "degraded, stale": (tally.degraded, tally.stale),
        "served by": dict(tally.served_by),
        "seconds p50, p99, max": percentiles([end - start for start, end in tally.spans]),
        "events": dict(watch.events),
    }
    if not faults.total():
        verdict.findings.append("no fault was injected: this proves nothing")
    verdict.findings += [
        f"the fault {kind} was asked for and never struck" for kind in trouble.never_struck()
    ]
    if tally.acknowledged < LEAST_ACKNOWLEDGED:
        verdict.findings.append(f"only {tally.acknowledged} writes were acknowledged: this proves nothing")
    if answered < scenario.available:
        examples = list(tally.examples.values())
        verdict.findings.append(f"{answered:.2%} of calls answered, not {scenario.available:.2%}: {examples}")
    verdict.findings += watch.late(tally.spans, stage.deadline)
    verdict.findings += watch.lies(trouble.outages, stage.health_within)
    verdict.findings += watch.excess(tally.calls, seconds)
    verdict.findings += tally.strange + tally.denied


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum, in seconds."""
    ordered = sorted(values) or [0.0]
    return (
        round(ordered[len(ordered) // 2], 4),
        round(ordered[int(len(ordered) * 0.99)], 4),
        round(ordered[-1], 4),
    )
