"""What an episode observes beside the answers: late calls, the caller's own stalls, repeats, and whether health told the truth."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ... import telemetry
from ...interface import Backend

TICK = 0.02
HEALTH_EVERY = 0.1
SLACK = 0.05  # seconds after the deadline in which a call has to have ended
NOISE = 0.03  # seconds that a busy machine may take to run a timer that is due
BUDGET_RATIO, BUDGET_FLOOR, BUDGET_BURST = 0.1, 5.0, 10.0  # the defaults of the layer `retry`, per store


@dataclass(slots=True)
class Outage:
    """A stretch in which a store could not be used at all."""

    store: str
    start: float
    end: float | None = None


@dataclass(slots=True)
class Sample:
    """Health at one moment; times are when it was asked and when it answered."""

    asked: float
    answered: float
    status: str


@dataclass
class Watch:
    """Runs beside the load: ``async with Watch(storage) as watch``. Times are ``time.monotonic()``."""

    storage: Backend
    samples: list[Sample] = field(default_factory=list[Sample])
    stalls: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    events: Counter[str] = field(default_factory=Counter[str])
    retries: Counter[str] = field(default_factory=Counter[str])

    async def __aenter__(self) -> Self:
        self._unsubscribe = telemetry.subscribe(self._note)
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._ask())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unsubscribe()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def late(self, spans: Iterable[tuple[float, float]], limit: float) -> list[str]:
        """Calls that outlived their deadline, by more than this process itself stood still meanwhile."""
        return [
            f"a call took {end - start:.3f} s, its deadline is {limit:g} s"
            for start, end in spans
            if end - start - self.stalled(start, end) > limit + SLACK + NOISE
        ]

    def stalled(self, start: float, end: float) -> float:
        """Seconds of this stretch in which the loop ran nobody."""
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in self.stalls)

    def lies(self, outages: Iterable[Outage], within: float) -> list[str]:
        """Answers "healthy" to questions asked when a store had been out of use for so long already."""
        return [
            f"health said healthy {sample.asked - outage.start:.2f} s into the outage of {outage.store}"
            for outage in outages
            for sample in self.samples
            if sample.status == "healthy"
            and sample.asked > outage.start + within
            and (outage.end is None or sample.answered < outage.end)
        ]

    def excess(self, calls: int, seconds: float) -> list[str]:
        """Stores that were asked again more often than a budget of repeats allows."""
        allowed = BUDGET_RATIO * calls * 2 + BUDGET_FLOOR * (
            seconds + BUDGET_BURST
        )  # a call may ask a store twice
        return [
            f"{store} was asked again {count} times in {calls} calls, at most {allowed:.0f} are allowed"
            for store, count in self.retries.items()
            if count > allowed
        ]

    def _note(self, event: telemetry.Event) -> None:
        self.events[event.name] += 1
        if event.name == telemetry.RETRY_STARTED:
            self.retries[str(event.attributes.get("backend"))] += 1

    async def _tick(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            after = time.monotonic()
            if after - before > TICK + NOISE / 2:
                self.stalls.append((before + TICK, after))

    async def _ask(self) -> None:
        while True:
            asked = time.monotonic()
            report = await self.storage.health_check()
            self.samples.append(Sample(asked, time.monotonic(), str(report["status"])))
            await asyncio.sleep(HEALTH_EVERY)
