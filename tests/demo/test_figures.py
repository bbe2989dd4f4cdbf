"""Table, picture and story tell the numbers that were measured."""

from __future__ import annotations

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.demo.figures import Band, Tally, bands, outages, over_time, percentile
from aiecs_resilient.demo.journal import Entry, Fact
from aiecs_resilient.demo.phases import PHASES, Span
from aiecs_resilient.demo.units import duration, plural
from aiecs_resilient.demo.watch import Happening

WRITE = (Fact("append", "s", None),)


def entry(
    started: float, ended: float, *, phase: int = 1, served_by: str = "hot", outcome: str = "ok"
) -> Entry:
    made = Entry("op", "add_conversation_message", "s", WRITE, phase, started, ended)
    made.outcome, made.served_by = outcome, served_by  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentiles_are_values_that_were_measured(share: float, expected: int) -> None:
    """Nearest rank: nothing is interpolated."""
    assert percentile(range(1, 101), share) == expected


def test_a_tally_counts_what_callers_were_told() -> None:
    """Acknowledged, failed and served by the fallback are different things."""
    entries = [entry(0, 1), entry(0, 1, served_by="cold"), entry(0, 2, outcome="unknown")]
    tally = Tally.of(entries, "cold")
    assert (tally.operations, tally.acknowledged, tally.by_fallback, tally.failed, tally.unknown) == (
        3,
        2,
        1,
        1,
        1,
    )
    assert (tally.latency.p50, tally.latency.max) == (1, 2)


def test_time_is_cut_into_whole_buckets() -> None:
    """What ends after the last whole bucket is left out of the picture, not squeezed into it."""
    buckets = over_time([entry(0.0, 0.1), entry(0.0, 0.7, served_by="cold"), entry(0.0, 1.2)], "cold", 1.3)
    assert [(bucket.by_primary, bucket.by_fallback, bucket.failed) for bucket in buckets] == [
        (1, 0, 0),
        (0, 1, 0),
    ]


def test_bands_cover_the_whole_time() -> None:
    """Each moment is in exactly one band; a change to the same state is none."""
    assert bands([(2.0, "open"), (3.0, "open"), (4.0, "closed")], "closed", 10.0) == [
        Band(0.0, 2.0, "closed"),
        Band(2.0, 4.0, "open"),
        Band(4.0, 10.0, "closed"),
    ]
    assert bands([], "closed", 10.0) == [Band(0.0, 10.0, "closed")]


def test_an_outage_is_measured_from_the_fault_and_from_the_return() -> None:
    """Time to fail over counts from the kill, time to fail back from the restart."""
    starts = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)
    spans = [Span(phase, start, end) for phase, start, end in zip(PHASES, starts, starts[1:], strict=False)]
    happenings = [
        Happening(10.25, telemetry.FAILOVER_COMPLETED, {"leader": "cold"}),
        Happening(21.0, telemetry.RECONCILE_PROGRESSED, {"replayed": 7}),
        Happening(22.5, telemetry.FAILBACK_COMPLETED, {"leader": "hot"}),
        Happening(40.5, telemetry.FAILOVER_COMPLETED, {"leader": "cold"}),
    ]
    entries = [
        entry(10.1, 10.3, phase=2, served_by="cold"),
        entry(11.0, 11.1, phase=2, served_by="cold"),
        entry(41.0, 41.1, phase=5, served_by="cold"),
    ]
    killed, frozen = outages(spans, entries, happenings, "cold", {5: 4})
    assert (killed.fail_over, killed.fail_back) == (0.25, 2.5)
    assert (killed.caught, killed.missed, killed.replayed, killed.late) == (1, 2, 7, None)
    assert killed.longest == pytest.approx(0.2)
    assert (frozen.fail_over, frozen.fail_back, frozen.caught, frozen.late) == (0.5, None, 0, 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0008, "0.8 ms"),
        (0.0431, "43 ms"),
        (1.239, "1.24 s"),
        (12.34, "12.3 s"),
        (None, "–"),
        (0.9999, "1.00 s"),
    ],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    """Two or three digits, and the unit that fits."""
    assert duration(seconds) == text


def test_one_is_singular() -> None:
    """``1 error``, ``2 errors``."""
    assert (plural(1, "error"), plural(1200, "error")) == ("1 error", "1,200 errors")
