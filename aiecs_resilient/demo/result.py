"""Everything a run has to tell, for the table, the picture and the story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .. import telemetry
from .figures import (
    Bucket,
    Latency,
    Outage,
    PhaseFigures,
    Tally,
    by_phase,
    outages,
    over_time,
)
from .journal import Entry
from .options import DemoOptions
from .outside_check import Holding
from .phases import Fault, Span
from .verdict import Verdict
from .watch import Happening, Health, StoreNames


@dataclass(frozen=True, slots=True)
class Setting:
    """What the run was made with.

    Attributes:
        conversations, languages: in the corpus; ``spoken`` is how many of the languages took part.
        completed: sessions played to their end.
        setup, quiesce, check: seconds before the load, until both stores were level, and for reading them back.
    """

    conversations: int
    languages: int
    spoken: int
    completed: int
    setup: float
    quiesce: float
    check: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Something worth a mark in the picture. ``kind``: fault, return, takeover, giveback, breaker, level."""

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class Result:
    options: DemoOptions
    names: StoreNames
    setting: Setting
    spans: Sequence[Span]
    entries: Sequence[Entry]
    happenings: Sequence[Happening]
    health: Sequence[Health]
    holdings: Sequence[Holding]
    verdict: Verdict
    late: dict[int, int]
    end: float

    @property
    def primary(self) -> str:
        """As people call it."""
        return self.names.spoken(self.names.primary)

    @property
    def fallback(self) -> str:
        return self.names.spoken(self.names.fallback)

    @cached_property
    def total(self) -> Tally:
        return Tally.of(self.entries, self.names.fallback)

    @cached_property
    def phases(self) -> list[PhaseFigures]:
        return by_phase(self.spans, self.entries, self.names.fallback)

    @cached_property
    def buckets(self) -> list[Bucket]:
        return over_time(self.entries, self.names.fallback, self.end)

    @cached_property
    def outages(self) -> list[Outage]:
        return outages(self.spans, self.entries, self.happenings, self.names.fallback, self.late)

    @cached_property
    def healthy_latency(self) -> Latency:
        return self.phases[0].tally.latency

    @cached_property
    def sessions(self) -> int:
        """How many were begun."""
        return sum(entry.what == "create_session" for entry in self.entries)

    @cached_property
    def settled(self) -> int:
        """Writes whose outcome the caller had to ask for afterwards, and was told."""
        return sum(entry.settled is not None for entry in self.entries)

    @cached_property
    def moments(self) -> list[Moment]:
        """In their order; of breakers only what changed between open and closed."""
        found = [
            Moment(span.start, *_inflicted(span, self.primary))
            for span in self.spans
            if span.phase.fault is not Fault.NONE
        ]
        opened: set[str] = set()
        for happening in self.happenings:
            store = self.names.spoken(
                happening.text("backend") or happening.text("store") or happening.text("leader")
            )
            if happening.name == telemetry.FAILOVER_COMPLETED:
                found.append(
                    Moment(
                        happening.at, "takeover", f"{store} takes over (epoch {happening.number('epoch')})"
                    )
                )
            elif happening.name == telemetry.FAILBACK_COMPLETED:
                found.append(
                    Moment(
                        happening.at, "giveback", f"{store} leads again (epoch {happening.number('epoch')})"
                    )
                )
            elif happening.name == telemetry.BREAKER_OPENED and store not in opened:
                opened.add(store)
                found.append(Moment(happening.at, "breaker", f"circuit breaker of {store} opens"))
            elif happening.name == telemetry.BREAKER_CLOSED and store in opened:
                opened.discard(store)
                found.append(Moment(happening.at, "breaker", f"circuit breaker of {store} closes"))
        return sorted(found, key=lambda moment: moment.at)


def _inflicted(span: Span, primary: str) -> tuple[str, str]:
    return ("fault" if span.phase.outage else "return"), f"{primary} {span.phase.fault.value}"
