"""The picture: one time axis, and along it what was done to the primary, how fast answers came, who gave them, and what
the breakers and the health check said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .figures import BUCKET, Band, bands, breaker_bands, leader_bands
from .result import Moment, Result
from .svg import Svg
from .units import duration, plural

WIDTH: Final = 1160.0
LEFT, RIGHT = 134.0, 14.0
PHASES_TOP, PHASES_HEIGHT = 4.0, 30.0
PINS_TOP, PIN_STEP, PIN_ROWS = 52.0, 19.0, 2
LATENCY_TOP, LATENCY_HEIGHT = 96.0, 180.0
RATE_TOP, RATE_HEIGHT = 312.0, 110.0
BANDS_TOP, BAND_HEIGHT, BAND_STEP = 456.0, 15.0, 24.0
BAND_COUNT = 4
AXIS_TOP = BANDS_TOP + BAND_COUNT * BAND_STEP + 2
HEIGHT = AXIS_TOP + 24
PIN_RADIUS: Final = 8.0


@dataclass(frozen=True, slots=True)
class Axis:
    """Seconds to places from left to right."""

    end: float

    def __call__(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(seconds, 0.0), self.end) / self.end


@dataclass(frozen=True, slots=True)
class LogScale:
    """Latencies to places from bottom to top; each power of ten takes the same room."""

    low: float
    high: float

    def __call__(self, seconds: float) -> float:
        place = math.log(max(seconds, self.low) / self.low) / math.log(self.high / self.low)
        return LATENCY_TOP + LATENCY_HEIGHT * (1 - min(place, 1.0))


def draw(result: Result) -> str:
    """The whole picture as SVG."""
    svg = Svg(WIDTH, HEIGHT, label="Timeline: phases, latency, throughput, who served, breakers and health")
    x = Axis(result.end)
    _outages(svg, x, result)
    _time(svg, x)
    _phases(svg, x, result)
    _latency(svg, x, result)
    _rate(svg, x, result)
    _bands(svg, x, result)
    _pins(svg, x, result.moments)
    return str(svg)


def _outages(svg: Svg, x: Axis, result: Result) -> None:
    """The windows in which the primary could not serve, behind everything."""
    for span in result.spans:
        if span.phase.outage:
            svg.rect(x(span.start), PHASES_TOP, x(span.end) - x(span.start), AXIS_TOP - PHASES_TOP, "outage")
            middle = (x(span.start) + x(span.end)) / 2
            svg.text(
                middle, LATENCY_TOP + 13, f"{result.primary} is {_state(span.phase.title)}", "outage-label"
            )


def _state(title: str) -> str:
    return "dead" if "killed" in title else "frozen"


def _time(svg: Svg, x: Axis) -> None:
    step = next(size for size in (1, 2, 5, 10, 20, 30, 60, 120) if x.end / size <= 16)
    for second in range(0, int(x.end) + 1, step):
        svg.line((x(second), LATENCY_TOP), (x(second), AXIS_TOP), "grid")
        svg.text(x(second), AXIS_TOP + 15, f"{second} s", "tick middle")


def _phases(svg: Svg, x: Axis, result: Result) -> None:
    svg.text(LEFT - 10, PHASES_TOP + 20, "what happens", "row")
    for span in result.spans:
        style = "phase bad" if span.phase.outage else "phase back" if span.phase.until_healthy else "phase"
        start, width = x(span.start), x(span.end) - x(span.start)
        tip = f"phase {span.phase.number}: {span.phase.title}, {span.start:.1f} s to {span.end:.1f} s"
        svg.rect(start + 1, PHASES_TOP, width - 2, PHASES_HEIGHT, style, tip=tip, radius=4)
        fits = width > 6.6 * len(span.phase.title) + 16
        title = f"{span.phase.number}  {span.phase.title}" if fits else str(span.phase.number)
        svg.text(
            start + width / 2,
            PHASES_TOP + 20,
            title,
            "phase-label on" if span.phase.outage else "phase-label",
        )


def _latency(svg: Svg, x: Axis, result: Result) -> None:
    asked = [bucket for bucket in result.buckets if bucket.operations]
    slowest = max((bucket.latency.max for bucket in asked), default=1.0)
    quickest = min((bucket.latency.p50 for bucket in asked), default=0.001)
    scale = LogScale(
        10 ** math.floor(math.log10(max(quickest, 1e-4))), 10 ** math.ceil(math.log10(max(slowest, 0.1)))
    )
    power = scale.low
    while power <= scale.high * 1.01:
        svg.line((LEFT, scale(power)), (WIDTH - RIGHT, scale(power)), "grid")
        svg.text(LEFT - 10, scale(power) + 4, _power(power), "tick end")
        power *= 10
    middle = BUCKET / 2
    top = [(x(bucket.at + middle), scale(bucket.latency.p99)) for bucket in asked]
    half = [(x(bucket.at + middle), scale(bucket.latency.p50)) for bucket in asked]
    svg.path([*top, *reversed(half)], "spread", closed=True)
    svg.path(top, "p99")
    svg.path(half, "p50")
    for bucket in asked:
        if bucket.latency.max > 3 * bucket.latency.p99:
            svg.circle(
                (x(bucket.at + middle), scale(bucket.latency.max)),
                2,
                "max",
                tip=f"max {duration(bucket.latency.max)}",
            )
        tip = (
            f"{bucket.at:.1f} s: p50 {duration(bucket.latency.p50)}, p99 {duration(bucket.latency.p99)}, "
            f"max {duration(bucket.latency.max)}"
        )
        svg.rect(
            x(bucket.at), LATENCY_TOP, x(bucket.at + BUCKET) - x(bucket.at), LATENCY_HEIGHT, "hover", tip=tip
        )
    _key(
        svg,
        LATENCY_TOP - 7,
        "latency",
        [("p50", "half of all answers came within"), ("p99", "99 of 100 came within")],
    )


def _power(seconds: float) -> str:
    """``100 ms``, ``1 s``."""
    return f"{seconds:g} s" if seconds >= 0.999 else f"{seconds * 1000:g} ms"


def _key(svg: Svg, y: float, title: str, entries: Sequence[tuple[str, str]]) -> None:
    """A panel's title, and what its colours mean."""
    svg.text(LEFT, y, title, "panel")
    place = LEFT + 24 + 6.6 * len(title)
    for style, text in entries:
        svg.rect(place, y - 7, 16, 4, f"key-{style}", radius=2)
        svg.text(place + 22, y, text, "key")
        place += 40 + 6.1 * len(text)


def _rate(svg: Svg, x: Axis, result: Result) -> None:
    most = max((bucket.operations for bucket in result.buckets), default=1) / BUCKET
    step = next(size for size in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10**6) if most / size <= 4)
    limit = step * max(1, math.ceil(most / step))

    def y(rate: float) -> float:
        return RATE_TOP + RATE_HEIGHT * (1 - rate / limit)

    for level in range(0, limit + 1, step):
        svg.line((LEFT, y(level)), (WIDTH - RIGHT, y(level)), "grid")
        svg.text(LEFT - 10, y(level) + 4, str(level), "tick end")
    for bucket in result.buckets:
        start, width, base = x(bucket.at), x(bucket.at + BUCKET) - x(bucket.at), 0.0
        tip = (
            f"{bucket.at:.1f} s: {result.primary} {bucket.by_primary}, {result.fallback} {bucket.by_fallback}, "
            f"errors {bucket.failed} in {BUCKET:g} s"
        )
        for part, style in (
            (bucket.by_primary, "by-primary"),
            (bucket.by_fallback, "by-fallback"),
            (bucket.failed, "failed"),
        ):
            rate = part / BUCKET
            if part:
                svg.rect(start + 0.4, y(base + rate), width - 0.8, y(base) - y(base + rate), style, tip=tip)
            base += rate
    served = [("by-primary", f"served by {result.primary}"), ("by-fallback", f"served by {result.fallback}")]
    _key(
        svg,
        RATE_TOP - 7,
        "answers per second",
        [*served, ("failed", f"errors to callers ({result.total.failed})")],
    )


def _bands(svg: Svg, x: Axis, result: Result) -> None:
    names, happenings, end = result.names, result.happenings, result.end
    leaders = [
        Band(band.start, band.end, names.spoken(band.state))
        for band in leader_bands(happenings, names.primary, end)
    ]
    looks = bands([(look.at, look.status) for look in result.health], "healthy", end)
    rows = (
        ("who leads", leaders, {result.primary: "by-primary", result.fallback: "by-fallback"}),
        (f"breaker {result.primary}", breaker_bands(happenings, names.primary, end), BREAKER_STYLES),
        (f"breaker {result.fallback}", breaker_bands(happenings, names.fallback, end), BREAKER_STYLES),
        ("health says", looks, HEALTH_STYLES),
    )
    for number, (label, row, styles) in enumerate(rows):
        top = BANDS_TOP + number * BAND_STEP
        svg.text(LEFT - 10, top + 12, label, "row")
        for band in row:
            start, width = x(band.start), x(band.end) - x(band.start)
            tip = f"{label}: {band.state}, {band.start:.2f} s to {band.end:.2f} s"
            svg.rect(start, top, width, BAND_HEIGHT, f"band {styles.get(band.state, 'unknown')}", tip=tip)
            if width > 7 * len(band.state) + 12:
                svg.text(start + 6, top + 11.5, band.state, "band-label")


BREAKER_STYLES: Final = {"closed": "good", "half-open": "half", "open": "open"}
HEALTH_STYLES: Final = {"healthy": "good", "degraded": "half", "unhealthy": "open"}


def _pins(svg: Svg, x: Axis, moments: Sequence[Moment]) -> None:
    """Numbered marks; the list under the picture says what each is."""
    free = [-1e9] * PIN_ROWS
    svg.text(LEFT - 10, PINS_TOP + 4, "moments", "row")
    for number, moment in enumerate(moments, 1):
        place = x(moment.at)
        row = next((row for row in range(PIN_ROWS) if place - free[row] > 2 * PIN_RADIUS + 1), 0)
        centre = (
            max(place, free[row] + 2 * PIN_RADIUS + 1) if free[row] > place - 2 * PIN_RADIUS - 1 else place
        )
        free[row] = centre
        y = PINS_TOP + row * PIN_STEP
        svg.line((centre, y), (place, LATENCY_TOP - 16), f"stem {moment.kind}")
        svg.line((place, LATENCY_TOP - 16), (place, AXIS_TOP), f"stem {moment.kind}")
        svg.circle((centre, y), PIN_RADIUS, f"pin {moment.kind}", tip=f"{moment.at:.2f} s: {moment.text}")
        svg.text(centre, y + 3.5, str(number), "pin-label")


def summary(result: Result) -> str:
    """The picture in one sentence, for who cannot see it."""
    lost = sum(result.verdict.violations.values())
    return (
        f"{plural(result.total.operations, 'operation')} in {result.end:.0f} s through "
        f"{plural(len(result.outages), 'outage')}; {plural(lost, 'violation')}"
    )
