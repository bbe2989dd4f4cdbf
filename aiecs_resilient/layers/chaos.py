"""chaos: faults on purpose, the same ones each time, for tests and game days."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, ParamSpec, TypeVar, cast

from .. import telemetry
from ..clock import monotonic
from ..errors import ConfigurationError, StorageConnectionError
from ..interface import Backend, Json
from ..operations import Effect, Operation
from ..units import CountOrZero, Ratio, Seconds, SecondsOrZero
from ._base import UniformLayer, report_part
from ._faults import Dice, Fault, Schedule
from ._options import by_operation, checked

P = ParamSpec("P")
T = TypeVar("T")

PRODUCTION_VARIABLES = ("AIECS_PROFILE", "AIECS_ENV")
"""Environment variables by which a deployment says that it is for real."""


class Chaos(UniformLayer):
    """Makes faults where a store would: errors before and after the effect, delays, hangs, cancellations, rotten answers.

    Each call draws one fault at most, from a seeded source: the same calls in the same order meet the same faults. Besides,
    each may be delayed. ``operations`` says which calls take part, ``start_after``, ``run_for`` and ``every`` when.

    - ``error_before``: StorageConnectionError, and the store was not asked: ``not_applied``.
    - ``error_after``: the store did it, and the answer is lost: StorageConnectionError, ``unknown``.
    - ``hang``: no answer, ever; a ``timeout`` above ends it.
    - ``cancel``: the caller goes away while the store works.
    - ``corrupt``: one value in what a read answers is changed, as by a rotten disk; ids are not.

    It refuses to be built where the environment says production (``AIECS_PROFILE`` or ``AIECS_ENV``), unless
    ``allow_in_production`` is set; ``check`` warns wherever it stands.

    Place: innermost, next to the store, so that all layers meet its faults as they would meet the store's::

        retry → circuit_breaker → timeout → chaos → redis      right
        chaos → retry → redis         wrong: nothing is tried again, and nothing is tested
        timeout → retry → chaos → …   wrong order of the others: see there

    Events: ``chaos.injected`` with the reason. Metrics and health: part ``chaos``, which counts each kind.
    Cancellation passes at once, also during a delay and a hang.

    Args:
        seed: of the source; the same seed, the same faults.
        error_before, error_after, hang, cancel, corrupt: share of calls that meet it; together at most 1.
        latency_rate: share of calls that are delayed.
        latency: seconds of the longest delay; each is random below it.
        operations: names of the operations that take part; all if empty.
        start_after: seconds after the first call until faults begin.
        run_for: seconds that they last; for ever if not given.
        every: seconds after which they begin again.
        allow_in_production: make faults there too.
        state: source and counts; outlive a reload.
    """

    layer_name: ClassVar[str] = "chaos"

    def __init__(
        self,
        inner: Backend,
        *,
        seed: CountOrZero = 0,
        error_before: Ratio = 0.0,
        error_after: Ratio = 0.0,
        hang: Ratio = 0.0,
        cancel: Ratio = 0.0,
        corrupt: Ratio = 0.0,
        latency_rate: Ratio = 0.0,
        latency: SecondsOrZero = 0.1,
        operations: Sequence[str] = (),
        start_after: SecondsOrZero = 0.0,
        run_for: Seconds | None = None,
        every: Seconds | None = None,
        allow_in_production: bool = False,
        state: Dice | None = None,
    ) -> None:
        super().__init__(inner)
        _refuse_in_production(allow_in_production)
        rates = {
            Fault.ERROR_BEFORE: error_before,
            Fault.ERROR_AFTER: error_after,
            Fault.HANG: hang,
            Fault.CANCEL: cancel,
            Fault.CORRUPT: corrupt,
        }
        for fault, rate in rates.items():
            checked(self.layer_name, fault.value, rate, Ratio)
        if sum(rates.values()) > 1:
            raise ConfigurationError(
                f"chaos: the shares add up to {sum(rates.values()):g}; a call meets one fault at most, so at most 1"
            )
        self._rates = {fault: rate for fault, rate in rates.items() if rate}
        self._latency_rate = checked(self.layer_name, "latency_rate", latency_rate, Ratio)
        self._latency = checked(self.layer_name, "latency", latency, SecondsOrZero)
        self._operations = frozenset(
            by_operation(self.layer_name, "operations", dict.fromkeys(operations, 0), CountOrZero)
        )
        self._schedule = Schedule(start_after, run_for, every)
        self.state = Dice(seed) if state is None else state
        if self.state.seed != seed:
            self.state.reseed(seed)

    def describe(self) -> str:
        made = ", ".join(f"{count} {what}" for what, count in sorted(self.state.made.items()))
        return f"seed {self.state.seed}, {self.state.calls} calls{': ' + made if made else ''}"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        return {"seed": self.state.seed, "calls": self.state.calls, "injected": dict(self.state.made)}

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._operations and op.name not in self._operations:
            return await call(*args, **kwargs)
        dice, now = self.state, monotonic()
        dice.started = now if dice.started is None else dice.started
        if not self._schedule.active(now - dice.started):
            return await call(*args, **kwargs)
        dice.calls += 1
        delayed = dice.source.random() < self._latency_rate
        fault = dice.draw(self._rates)
        if delayed:
            self._made(op, "latency")
            await asyncio.sleep(dice.source.uniform(0.0, self._latency))
        if fault is None:
            return await call(*args, **kwargs)
        if fault is Fault.CANCEL:
            return await self._cancelled(op, call, *args, **kwargs)
        if fault is Fault.CORRUPT:
            return self._rotten(op, await call(*args, **kwargs))
        self._made(op, fault.value)
        if fault is Fault.HANG:
            await asyncio.Event().wait()
        if fault is Fault.ERROR_AFTER:
            await call(*args, **kwargs)
        raise StorageConnectionError(
            "chaos: the answer was lost, after the store had done it"
            if fault is Fault.ERROR_AFTER
            else "chaos: the store could not be reached",
            outcome="unknown" if fault is Fault.ERROR_AFTER and op.effect is Effect.WRITE else "not_applied",
            operation=op.name,
            backend=self.name,
        )

    async def _cancelled(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The caller's task is cancelled at the first wait of the call; not at all if it does not wait."""
        task = asyncio.current_task()

        def go_away() -> None:
            if task is not None:
                self._made(op, Fault.CANCEL.value)
                task.cancel()

        handle = asyncio.get_running_loop().call_soon(go_away)
        try:
            return await call(*args, **kwargs)
        finally:
            handle.cancel()

    def _rotten(self, op: Operation, answer: T) -> T:
        if op.effect is not Effect.READ or not isinstance(answer, (dict, list)):
            return answer
        rotten = self.state.corrupted(answer)
        if rotten is not answer:
            self._made(op, Fault.CORRUPT.value)
        return cast("T", rotten)

    def _made(self, op: Operation, what: str) -> None:
        self.state.count(what)
        telemetry.event(telemetry.CHAOS_INJECTED, backend=self.name, operation=op.name, reason=what)


def _refuse_in_production(allowed: bool) -> None:
    for variable in PRODUCTION_VARIABLES:
        if os.environ.get(variable, "").lower().startswith("prod") and not allowed:
            raise ConfigurationError(
                f"chaos: {variable} says this is production, where faults on purpose are refused; "
                "remove the layer, or set allow_in_production: true for a game day"
            )
