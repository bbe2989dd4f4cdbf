"""circuit_breaker: a store that fails or crawls is left alone for a while, and its callers get an answer at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..clock import monotonic
from ..errors import (
    CircuitOpenError,
    DeadlineExceededError,
    IncompleteStoreError,
    OverloadedError,
    StaleRouteError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from ..interface import Backend, Json
from ..operations import Operation
from ..units import Count, Ratio, Seconds
from ._base import UniformLayer, report_part
from ._breaker import Admission, BreakerPolicy, BreakerState, Listener, Mode, Phase, Share

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(telemetry.SCOPE)


class CircuitBreaker(UniformLayer):
    """Refuses calls to a store that fails or crawls.

    Closed, it watches the last calls; when too many failed or were slow, it opens, and calls are refused in microseconds
    instead of each waiting for its time limit. After a jittered period that doubles at each relapse, a few probes are let
    through, each on a lease; they decide whether it closes or opens again. It is judged when a call fails or is slow, never
    on a good one. A relapse is opening again from half-open, or before it was closed for as long as it had been open.

    What counts is the store's fault alone: a refused or lost connection, a time limit that struck, any other transient
    error of the store. A caller's mistake, a conflict, a refusal of our own and a cancelled call say nothing about the
    store and change nothing. A call that ran into the caller's deadline counts as slow if it had lasted that long. The
    call that trips the breaker raises its own error.

    It speaks aiobreaker's language: its listeners work, ``current_state`` and ``state.state`` are its states, and a refusal
    is its ``CircuitBreakerError`` as well as our ``CircuitOpenError``, with ``retry_after``. Its engine is not used: it lets
    everybody through half-open, takes late results for new ones and reads the wall clock.

    Place: inside ``retry``, so that each attempt counts and a refusal is not retried; outside ``timeout``, so that a hung
    call is a fault. One per store::

        dual_write{primary: retry → circuit_breaker → timeout → redis, fallback: … → postgresql}    right
        circuit_breaker → retry → redis        wrong: three failures look like one
        timeout → circuit_breaker → redis      wrong: a hung call is cancelled, which counts for nothing
        circuit_breaker → dual_write{…}        wrong: one store's faults would shut off both

    Events: ``breaker.opened``, ``breaker.half_opened``, ``breaker.closed``. Metrics: part ``circuit_breaker``, and the gauge
    ``aiecs.breaker.state``. Health: ``degraded`` while it is not closed.
    Cancellation passes untouched, counts for nothing, and frees the lease of a probe.

    Args:
        failure_rate: share of failed calls at which it opens.
        slow_after: seconds after which a call is slow.
        slow_rate: share of slow calls at which it opens.
        minimum_calls: fewer are no reason to open.
        window_calls: how many calls it looks back.
        window_time: seconds; looks back so long instead of a number of calls.
        open_for: seconds that it refuses at first, give or take ``jitter``; doubled at each relapse.
        max_open_for: seconds; the most that becomes.
        jitter: share by which the period varies, so that processes do not probe in step.
        probes: calls let through half-open; all must succeed.
        probe_lease: seconds after which a probe without a result gives its place to another.
        mode: auto works, open refuses all, closed never opens, observe only shows what it would do.
        listeners: aiobreaker's listeners. What they raise is logged and harms nobody.
        state: what it knows of its store; outlives a reload.
    """

    layer_name: ClassVar[str] = "circuit_breaker"

    def __init__(
        self,
        inner: Backend,
        *,
        failure_rate: Share = 0.5,
        slow_after: Seconds = 1.0,
        slow_rate: Share = 0.9,
        minimum_calls: Count = 5,
        window_calls: Count = 20,
        window_time: Seconds | None = None,
        open_for: Seconds = 5.0,
        max_open_for: Seconds = 60.0,
        jitter: Ratio = 0.2,
        probes: Count = 1,
        probe_lease: Seconds = 10.0,
        mode: Mode = "auto",
        listeners: Iterable[Listener] = (),
        state: BreakerState | None = None,
    ) -> None:
        super().__init__(inner)
        from . import (
            _aiobreaker,
        )  # here, because it takes 0.2 s; not at the first refusal, which is in an outage

        self._aiobreaker = _aiobreaker
        policy = BreakerPolicy(
            failure_rate=failure_rate,
            slow_after=slow_after,
            slow_rate=slow_rate,
            minimum_calls=minimum_calls,
            window_calls=window_calls,
            window_time=window_time,
            open_for=open_for,
            max_open_for=max_open_for,
            jitter=jitter,
            probes=probes,
            probe_lease=probe_lease,
        )
        self.state = BreakerState(policy) if state is None else state
        self.state.on_change = self._changed
        self.state.configure(policy, mode, _now() or 0.0)
        self.state.listeners.extend(held for held in listeners if held not in self.state.listeners)
        self._broken_listeners: set[int] = set()

    def describe(self) -> str:
        return self.state.describe(_now())

    async def health_check(self) -> Json:
        report = report_part(await self.inner.health_check(), self.layer_name, self._facts())
        if self.state.phase is not Phase.CLOSED and self.state.mode != "observe":
            report.setdefault("issues", []).append(f"circuit breaker of {self.name}: {self.describe()}")
            if report.get("status") == "healthy":
                report["status"] = "degraded"
        return report

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        state, now = self.state, monotonic()
        totals = state.totals(now)
        return {
            "state": state.phase.value,
            "mode": state.mode,
            "calls": totals.calls,
            "failed": totals.failed,
            "slow": totals.slow,
            "opened": state.opened,
            "refused": state.refused,
            "probe_in": None if state.phase is Phase.CLOSED else state.probe_in(now),
        }

    # ------------------------------------------------------------------ the way of every call

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        state = self.state
        clock = (
            asyncio.get_running_loop().time
        )  # `monotonic` finds the loop anew each time, and this is every call's way
        started = clock()
        admission = state.ordinary or self._admit(op, started)
        if state.listeners:
            self._tell("before_call", lambda listener: listener.before_call(self, call, *args, **kwargs))
        try:
            result = await call(*args, **kwargs)
        except StorageError as error:
            self._failed(admission, error, started)
            raise
        except BaseException:  # a cancelled call, or a bug: neither is the store's doing
            state.neutral(admission)
            raise
        now = clock()
        state.succeeded(admission, now - started, now)
        if state.listeners:
            self._tell("success", lambda listener: listener.success(self))
        return result

    def _admit(self, op: Operation, now: float) -> Admission:
        admission = self.state.admit(now)
        if admission is not None:
            return admission
        wait = self.state.probe_in(now)
        raise self._aiobreaker.BreakerOpenError(
            f"not asked: the circuit breaker is {self.state.describe(now)}",
            operation=op.name,
            backend=self.name,
            attempts=0,
            retry_after=wait,
        )

    def _failed(self, admission: Admission, error: StorageError, started: float) -> None:
        state, now = self.state, monotonic()
        elapsed = now - started
        if is_fault(error):
            state.failed(admission, elapsed, now)
            if state.listeners:
                self._tell("failure", lambda listener: listener.failure(self, error))
        elif isinstance(error, DeadlineExceededError) and elapsed >= state.policy.slow_after:
            state.succeeded(admission, elapsed, now)  # as a slow call
        else:
            state.neutral(admission)

    # ------------------------------------------------------------------ an operator's hand

    def force(self, mode: Mode | None) -> None:
        """Refuse all (``open``), never open (``closed``), only show (``observe``); None gives it back to the configuration."""
        self.state.force(mode, monotonic())

    # ------------------------------------------------------------------ aiobreaker's names

    @property
    def current_state(self) -> Any:
        """aiobreaker's ``CircuitBreakerState``."""
        return self.state.state

    @property
    def fail_counter(self) -> int:
        """Failed calls in the window."""
        return self.state.counter

    @property
    def timeout_duration(self) -> timedelta:
        """How long it stays open at first."""
        return timedelta(seconds=self.state.policy.open_for)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All of them."""
        return tuple(self.state.listeners)

    def add_listener(self, listener: Listener) -> None:
        """From now on tell this one too."""
        self.state.listeners.append(listener)

    def add_listeners(self, *listeners: Listener) -> None:
        """From now on tell these too."""
        self.state.listeners.extend(listeners)

    def remove_listener(self, listener: Listener) -> None:
        """Tell this one no more."""
        self.state.listeners.remove(listener)

    def _changed(self, old: Phase, new: Phase) -> None:
        """The state machine has entered another phase."""
        state, totals = self.state, self.state.tripped_by
        facts: Mapping[str, object] = {"backend": self.name, "mode": state.mode, "trips": state.trips}
        if totals is not None:
            facts = {**facts, "calls": totals.calls, "failed": totals.failed, "slow": totals.slow}
        telemetry.event(telemetry.BREAKER_EVENTS[new.value], probe_in=state.probe_in(_now() or 0.0), **facts)
        if state.listeners:
            before = self._aiobreaker.state_object(self, old)
            after = self._aiobreaker.state_object(self, new)
            self._tell("state_change", lambda listener: listener.state_change(self, before, after))

    def _tell(self, what: str, tell: Callable[[Listener], object]) -> None:
        for listener in tuple(self.state.listeners):
            try:
                tell(listener)
            except Exception:  # noqa: BLE001  somebody else's code, which must not break a call
                first = id(listener) not in self._broken_listeners
                self._broken_listeners.add(id(listener))
                level = logging.WARNING if first else logging.DEBUG
                _log.log(level, "a listener of the circuit breaker failed in %s", what, exc_info=True)


def is_fault(error: StorageError) -> bool:
    """Whether this error speaks against the store, rather than against its caller, its route or our own limits."""
    if isinstance(error, (StorageConnectionError, StorageTimeoutError)):
        return True
    ours = (CircuitOpenError, OverloadedError, StaleRouteError, IncompleteStoreError, DeadlineExceededError)
    return error.transient and not isinstance(error, ours)


def _now() -> float | None:
    """The loop's time; None outside of one, as where a chain is printed."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return None
