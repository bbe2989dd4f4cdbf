"""The circuit breaker as a state machine: who is let through, and what a result means. It knows no store and no asyncio.

Three phases. *Closed*: everybody passes, results go into a sliding window. *Open*: nobody passes until a jittered period
is over, which doubles while the store keeps failing. *Half-open*: as many calls as there are probes pass, each on a lease;
if all succeed the breaker closes, at the first that fails it opens again.

Each stay in a phase is a period that gives out admissions of its own and knows no others: the late result of a call that
was admitted in another period is a stranger's and changes nothing. Everything that takes time is told the time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from ..clock import wall_us
from ..errors import ConfigurationError
from ..units import Count, Ratio, Seconds, Unit
from ._options import checked
from ._window import CountWindow, TimeWindow, Totals, Window

if TYPE_CHECKING:
    from aiobreaker import CircuitBreakerState

Mode = Literal["auto", "open", "closed", "observe"]
"""``auto`` works; ``open`` refuses all; ``closed`` never opens; ``observe`` goes through the phases and refuses nobody."""


Share = Annotated[float, Unit("number", above=0, le=1)]
"""A share of calls, above 0 and at most 1."""


class Phase(Enum):
    """Called as in aiobreaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """The numbers; their meaning is told at :class:`.circuit_breaker.CircuitBreaker`. Durations are seconds."""

    failure_rate: Share = 0.5
    slow_after: Seconds = 1.0
    slow_rate: Share = 0.9
    minimum_calls: Count = 5
    window_calls: Count = 20
    window_time: Seconds | None = None
    open_for: Seconds = 5.0
    max_open_for: Seconds = 60.0
    jitter: Ratio = 0.2
    probes: Count = 1
    probe_lease: Seconds = 10.0

    def __post_init__(self) -> None:
        owner = "circuit_breaker"
        for share, part in (("failure_rate", self.failure_rate), ("slow_rate", self.slow_rate)):
            checked(owner, share, part, Share)
        for duration, seconds in (
            ("slow_after", self.slow_after),
            ("window_time", self.window_time),
            ("open_for", self.open_for),
            ("max_open_for", self.max_open_for),
            ("probe_lease", self.probe_lease),
        ):
            if seconds is not None:
                checked(owner, duration, seconds, Seconds)
        for count, number in (
            ("minimum_calls", self.minimum_calls),
            ("window_calls", self.window_calls),
            ("probes", self.probes),
        ):
            checked(owner, count, number, Count)
        checked(owner, "jitter", self.jitter, Ratio)
        if self.window_time is None and self.minimum_calls > self.window_calls:
            raise ConfigurationError(
                f"{owner}: minimum_calls ({self.minimum_calls}) is above window_calls ({self.window_calls}), so it would never open"
            )
        if self.max_open_for < self.open_for:
            raise ConfigurationError(
                f"{owner}: max_open_for ({self.max_open_for:g} s) is below open_for ({self.open_for:g} s)"
            )

    def window(self) -> Window:
        """An empty one of this form."""
        return CountWindow(self.window_calls) if self.window_time is None else TimeWindow(self.window_time)

    def exceeded(self, totals: Totals) -> bool:
        """Whether this is reason to open."""
        calls, failed, slow = totals
        return calls >= self.minimum_calls and (
            failed >= self.failure_rate * calls or slow >= self.slow_rate * calls
        )

    def open_period(self, trips: int, jitter: float) -> float:
        """How long to stay open for the ``trips``-th time in a row; ``jitter`` from -1 to 1."""
        grown = self.open_for * 2.0 ** min(trips - 1, 60)
        return min(grown, self.max_open_for) * (1.0 + self.jitter * jitter)


class Listener(Protocol):
    """aiobreaker's ``CircuitBreakerListener``, or anything with its methods. What it raises is logged and harms nobody."""

    def before_call(self, breaker: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None: ...

    def failure(self, breaker: Any, exception: Any) -> None: ...

    def success(self, breaker: Any) -> None: ...

    def state_change(self, breaker: Any, old: Any, new: Any) -> None: ...


class Admission:
    """Leave to make one call, told apart by identity; a probe's also knows when its lease ends."""

    __slots__ = ("expires",)

    def __init__(self, expires: float = math.inf) -> None:
        self.expires = expires


class BreakerState:
    """What a breaker knows of its store. Outlives the layer, so that a reload of the configuration forgets nothing.

    Attributes:
        phase: closed, open or half-open.
        ordinary: the admission of all calls of this period while closed, else None.
        trips: how often it has opened in a row, without the store having done well for as long as it was open.
        opened: how often it has opened in all.
        refused: calls not let through; in observe mode, calls that would not have been.
        listeners: aiobreaker's listeners.
        on_change: told (old, new) after each change of phase.
    """

    __slots__ = (
        "_closed_at", "_forced", "_leases", "_mode", "_open_period", "_policy", "_random", "_slow_after",
        "_successes", "_until", "_window", "listeners", "on_change", "opened", "opened_at", "ordinary", "phase", "refused",
        "tripped_by", "trips",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy | None = None, *, source: random.Random | None = None) -> None:
        self._policy = policy or BreakerPolicy()
        self._slow_after = self._policy.slow_after  # looked at in every call
        self._window = self._policy.window()
        self._random = source or random.Random()  # noqa: S311  spreads load, keeps no secret
        self._mode: Mode = "auto"
        self._forced: Mode | None = None
        self._leases: set[Admission] = set()
        self._successes = 0
        self._until = 0.0
        self._open_period = 0.0
        self._closed_at = -math.inf
        self.phase = Phase.CLOSED
        self.ordinary: Admission | None = Admission()
        self.trips = 0
        self.opened = 0
        self.refused = 0
        self.opened_at: datetime | None = None
        self.tripped_by: Totals | None = None
        self.listeners: list[Listener] = []
        self.on_change: Callable[[Phase, Phase], None] | None = None

    # ------------------------------------------------------------------ set-up

    @property
    def policy(self) -> BreakerPolicy:
        return self._policy

    def configure(self, policy: BreakerPolicy, mode: Mode, now: float) -> None:
        """Take over other numbers; a window of another form begins empty."""
        if (policy.window_calls, policy.window_time) != (self._policy.window_calls, self._policy.window_time):
            self._window = policy.window()
        self._policy = policy
        self._slow_after = policy.slow_after
        if mode != self._mode:
            before = self.mode
            self._mode = mode
            self._settle_mode(before, now)

    @property
    def mode(self) -> Mode:
        """The one in force: an operator's, else the configured one."""
        return self._mode if self._forced is None else self._forced

    def force(self, mode: Mode | None, now: float) -> None:
        """An operator's decision; it holds, also over a reload, until it is taken back with None."""
        before = self.mode
        self._forced = mode
        self._settle_mode(before, now)

    def _settle_mode(self, before: Mode, now: float) -> None:
        mode = self.mode
        if mode == before:
            return
        if mode == "open":
            self._until = math.inf
            self._enter(Phase.OPEN)
        elif before == "open" or mode == "closed":
            self._close(now)

    # ------------------------------------------------------------------ who may pass

    def admit(self, now: float) -> Admission | None:
        """Leave for one call, to be handed to exactly one of :meth:`succeeded`, :meth:`failed` and :meth:`neutral`; or None."""
        if self.ordinary is not None:
            return self.ordinary
        if self.phase is Phase.OPEN and now >= self._until:
            self._successes = 0
            self._enter(Phase.HALF_OPEN)
        if self.phase is Phase.HALF_OPEN:
            for lease in [lease for lease in self._leases if lease.expires <= now]:
                self._leases.discard(lease)  # it hangs; the next one may have better luck
            if len(self._leases) + self._successes < self._policy.probes:
                lease = Admission(now + self._policy.probe_lease)
                self._leases.add(lease)
                return lease
        self.refused += 1
        return Admission() if self.mode == "observe" else None

    def probe_in(self, now: float) -> float | None:
        """Seconds until the next call may pass; None while that is not a matter of time."""
        if self.phase is Phase.OPEN:
            return None if math.isinf(self._until) else max(0.0, self._until - now)
        if self.phase is Phase.HALF_OPEN and len(self._leases) + self._successes >= self._policy.probes:
            return max(0.0, min((lease.expires for lease in self._leases), default=now) - now)
        return 0.0

    # ------------------------------------------------------------------ what came of it

    def succeeded(self, admission: Admission, elapsed: float, now: float) -> None:
        """The store answered, well or slowly."""
        slow = elapsed >= self._slow_after
        if admission is self.ordinary:
            self._window.add(False, slow, now)
            if slow:
                self._judge(now)
        elif admission in self._leases:
            self._leases.discard(admission)
            if slow:
                self._trip(now)
                return
            self._successes += 1
            if self._successes >= self._policy.probes:
                self._close(now)

    def failed(self, admission: Admission, elapsed: float, now: float) -> None:
        """The store is at fault."""
        if admission is self.ordinary:
            self._window.add(True, elapsed >= self._slow_after, now)
            self._judge(now)
        elif admission in self._leases:
            self._trip(now)

    def neutral(self, admission: Admission) -> None:
        """This says nothing about the store; a probe's lease is free again."""
        self._leases.discard(admission)

    def _judge(self, now: float) -> None:
        if self.mode != "closed" and self._policy.exceeded(self._window.totals(now)):
            self._trip(now)

    def _trip(self, now: float) -> None:
        relapse = self.phase is Phase.HALF_OPEN or now - self._closed_at < self._open_period
        self.trips = self.trips + 1 if relapse else 1
        self.opened += 1
        self._open_period = self._policy.open_period(self.trips, self._random.uniform(-1.0, 1.0))
        self._until = now + self._open_period
        self.opened_at = datetime.fromtimestamp(wall_us() / 1e6, UTC).replace(tzinfo=None)
        if self.phase is Phase.CLOSED:
            self.tripped_by = self._window.totals(now)
        self._enter(Phase.OPEN)

    def _close(self, now: float) -> None:
        self._window.clear()
        self._closed_at = now
        self.tripped_by = None
        self._enter(Phase.CLOSED)

    def _enter(self, phase: Phase) -> None:
        before = self.phase
        self.phase = phase
        self._leases.clear()
        self.ordinary = Admission() if phase is Phase.CLOSED else None
        if self.on_change is not None and before is not phase:
            self.on_change(before, phase)  # last: whoever is told may look, and even act

    # ------------------------------------------------------------------ to be read

    def totals(self, now: float) -> Totals:
        """The window; while open, as it was when the breaker opened."""
        return self.tripped_by or self._window.totals(now)

    def describe(self, now: float | None) -> str:
        """``open, 3/5 failed, probe in 4.2 s``; without the time, what does not depend on it."""
        forced = "forced " if self.mode == self.phase.value else ""
        words = [forced + self.phase.value]
        if now is not None:
            totals = self.totals(now)
            words.append(f"{totals.failed}/{totals.calls} failed")
            if totals.slow:
                words.append(f"{totals.slow} slow")
            wait = self.probe_in(now)
            if self.phase is not Phase.CLOSED and wait is not None:
                words.append(f"probe in {wait:.1f} s" if wait else "probe due")
        if self.mode == "observe":
            words.append("observe only")
        return ", ".join(words)

    # aiobreaker's names for the same, so that its listeners can read them

    @property
    def state(self) -> CircuitBreakerState:
        """aiobreaker's word for the phase."""
        from ._aiobreaker import STATES

        return STATES[self.phase]

    @property
    def counter(self) -> int:
        """Failed calls in the window (aiobreaker counts consecutive ones)."""
        return self._window.failed if self.tripped_by is None else self.tripped_by.failed
