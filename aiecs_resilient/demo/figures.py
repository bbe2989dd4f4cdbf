"""Numbers from the journal and the events: per phase, over time, and what each outage took.

Pure functions over what was recorded, so that table, picture and story tell the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .. import telemetry
from .journal import OK, UNKNOWN, Entry
from .phases import Fault, Phase, Span
from .watch import Happening

LEAD_MOVES: Final = frozenset({telemetry.FAILOVER_COMPLETED, telemetry.FAILBACK_COMPLETED})
BUCKET: Final = 0.5  # seconds: about a hundred operations at the default rate, enough for a p99


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds; zero where nothing was asked."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Latency:
        values = sorted(entry.latency for entry in entries)
        if not values:
            return cls(0.0, 0.0, 0.0)
        return cls(percentile(values, 0.5), percentile(values, 0.99), values[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: a value that was really measured."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Tally:
    """What was asked and answered in some stretch.

    Attributes:
        acknowledged: writes that were answered as done.
        failed: operations that ended in an error for the caller.
        unknown: of the failed ones, writes of which the caller could not know at once whether they were done.
        by_fallback: acknowledged writes that the fallback alone had led.
        one_store: acknowledged writes that only one store held at that moment.
    """

    operations: int
    acknowledged: int
    reads: int
    failed: int
    unknown: int
    by_fallback: int
    one_store: int
    latency: Latency
    errors: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, entries: Sequence[Entry], fallback: str) -> Tally:
        writes = [entry for entry in entries if entry.is_write and entry.outcome == OK]
        errors = Counter(entry.error for entry in entries if entry.error is not None)
        return cls(
            operations=len(entries),
            acknowledged=len(writes),
            reads=sum(not entry.is_write and entry.outcome == OK for entry in entries),
            failed=sum(entry.outcome != OK for entry in entries),
            unknown=sum(entry.is_write and entry.outcome == UNKNOWN for entry in entries),
            by_fallback=sum(entry.served_by == fallback for entry in writes),
            one_store=sum(entry.durability == "one" for entry in writes),
            latency=Latency.of(entries),
            errors=tuple(errors.most_common()),
        )


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    span: Span
    tally: Tally


def by_phase(spans: Sequence[Span], entries: Sequence[Entry], fallback: str) -> list[PhaseFigures]:
    """An operation belongs to the phase in which it began."""
    return [
        PhaseFigures(
            span, Tally.of([entry for entry in entries if entry.phase == span.phase.number], fallback)
        )
        for span in spans
    ]


@dataclass(frozen=True, slots=True)
class Bucket:
    """``BUCKET`` seconds of the timeline, by when operations ended."""

    at: float
    by_primary: int
    by_fallback: int
    failed: int
    latency: Latency

    @property
    def operations(self) -> int:
        return self.by_primary + self.by_fallback + self.failed


def over_time(entries: Sequence[Entry], fallback: str, end: float) -> list[Bucket]:
    """Whole buckets only: a part of one would look like a drop in throughput."""
    slots: list[list[Entry]] = [[] for _ in range(max(1, int(end / BUCKET)))]
    for entry in entries:
        number = int(entry.ended / BUCKET)
        if number < len(slots):
            slots[number].append(entry)
    return [
        Bucket(
            at=number * BUCKET,
            by_primary=sum(entry.outcome == OK and entry.served_by != fallback for entry in slot),
            by_fallback=sum(entry.outcome == OK and entry.served_by == fallback for entry in slot),
            failed=sum(entry.outcome != OK for entry in slot),
            latency=Latency.of(slot),
        )
        for number, slot in enumerate(slots)
    ]


@dataclass(frozen=True, slots=True)
class Outage:
    """One loss of the primary, from the fault to its leading again.

    Attributes:
        failed_at, returned_at: when the primary was harmed, and when it served (or could run) again.
        fail_over, fail_back: seconds from those to the takeover and to the primary leading again; None if it did not happen.
        caught: operations that were under way at the primary when it failed and were answered by the fallback after all.
        longest: the longest that any caller waited for an operation begun in the outage, in seconds.
        missed: acknowledged writes that only the fallback held until the primary led again.
        replayed: records that the primary was offered afterwards; what it had already, it recognised.
        led_already: the fallback led when the primary failed, so there was nothing to take over.
        late: writes that the frozen primary applied after the application had long been answered; None if not looked for.
    """

    phase: Phase
    failed_at: float
    returned_at: float
    fail_over: float | None
    fail_back: float | None
    caught: int
    longest: float
    missed: int
    replayed: int
    tally: Tally
    late: int | None = None
    led_already: bool = False

    @property
    def fault(self) -> Fault:
        return self.phase.fault


def outages(
    spans: Sequence[Span],
    entries: Sequence[Entry],
    happenings: Sequence[Happening],
    fallback: str,
    late: dict[int, int],
) -> list[Outage]:
    """Each outage phase with the recovery after it."""
    found: list[Outage] = []
    for number, span in enumerate(spans):
        if not span.phase.outage:
            continue
        after = spans[number + 1] if number + 1 < len(spans) else None
        returned = after.start if after is not None else span.end
        until = next((later.start for later in spans[number + 1 :] if later.phase.outage), math.inf)
        mine = [happening for happening in happenings if span.start <= happening.at < until]
        taken = _first(mine, telemetry.FAILOVER_COMPLETED, span.start)
        given_back = _first(mine, telemetry.FAILBACK_COMPLETED, returned)
        found.append(
            Outage(
                phase=span.phase,
                failed_at=span.start,
                returned_at=returned,
                fail_over=None if taken is None else taken - span.start,
                fail_back=None if given_back is None else given_back - returned,
                caught=len(caught_by(entries, taken, fallback)),
                longest=max((e.latency for e in entries if e.phase == span.phase.number), default=0.0),
                missed=sum(
                    entry.outcome == OK
                    and entry.is_write
                    and entry.served_by == fallback
                    and entry.durability != "both"
                    and span.start <= entry.ended < until
                    for entry in entries
                ),
                replayed=sum(
                    happening.number("replayed")
                    for happening in mine
                    if happening.name == telemetry.RECONCILE_PROGRESSED
                ),
                tally=Tally.of([e for e in entries if e.phase == span.phase.number], fallback),
                late=late.get(span.phase.number),
                led_already=_leader_at(happenings, span.start) == fallback,
            )
        )
    return found


def caught_by(entries: Sequence[Entry], taken: float | None, fallback: str) -> list[Entry]:
    """What was under way when the fallback took over, and was answered by it after all."""
    return [
        entry
        for entry in entries
        if taken is not None
        and entry.outcome == OK
        and entry.served_by == fallback
        and entry.started < taken < entry.ended
    ]


def _leader_at(happenings: Sequence[Happening], at: float) -> str | None:
    """Who had last been given the lead by then; None if nobody had."""
    moves = [h for h in happenings if h.name in LEAD_MOVES and h.at < at]
    return moves[-1].text("leader") if moves else None


def _first(happenings: Sequence[Happening], name: str, since: float) -> float | None:
    return next((h.at for h in happenings if h.name == name and h.at >= since), None)


@dataclass(frozen=True, slots=True)
class Band:
    """A state from one moment to another, for the picture's bands."""

    start: float
    end: float
    state: str


def bands(changes: Sequence[tuple[float, str]], first: str, end: float) -> list[Band]:
    """Stretches of equal state, from time 0 to ``end``."""
    found: list[Band] = []
    start, state = 0.0, first
    for at, new in sorted(changes, key=lambda change: change[0]):
        if new != state and at < end:
            if at > start:
                found.append(Band(start, at, state))
            start, state = max(0.0, at), new
    found.append(Band(start, end, state))
    return found


def breaker_bands(happenings: Sequence[Happening], backend: str, end: float) -> list[Band]:
    """The state of one leg's circuit breaker over time."""
    states = {event: state for state, event in telemetry.BREAKER_EVENTS.items()}
    changes = [
        (h.at, states[h.name]) for h in happenings if h.name in states and h.text("backend") == backend
    ]
    return bands(changes, "closed", end)


def leader_bands(happenings: Sequence[Happening], first: str, end: float) -> list[Band]:
    """Who led over time."""
    return bands([(h.at, h.text("leader")) for h in happenings if h.name in LEAD_MOVES], first, end)
