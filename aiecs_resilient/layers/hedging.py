"""hedging: a read that takes unusually long is asked a second time, and the first answer counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..errors import ConfigurationError
from ..interface import Backend, Json
from ..operations import OPERATIONS, READ_IDLE, Effect, Operation, OperationContext, begin, finish
from ..units import Count, CountOrZero, Ratio, Seconds
from ._base import UniformLayer, report_part
from ._budget import Funded, RetryBudget
from ._learned import Learned
from ._options import by_operation, checked
from ._race import Race
from ._tenancy import CONTROL

P = ParamSpec("P")
T = TypeVar("T")

_HEDGED = frozenset(
    name
    for name, op in OPERATIONS.items()
    if op.effect is Effect.READ and name not in CONTROL and op is not READ_IDLE
)


@dataclass(slots=True)
class HedgingState:
    """What is known of the store; outlives a reload.

    Attributes:
        learned: how long reads take.
        budget: what hedges are paid from where no ``retry`` stands above.
        reads: reads that could have been asked twice.
        started: of those, how many were.
        won: of those, how many the second call answered.
        refused: how many were due and not paid for.
    """

    learned: Learned = field(default_factory=Learned)
    budget: RetryBudget = field(default_factory=RetryBudget)
    reads: int = 0
    started: int = 0
    won: int = 0
    refused: int = 0


class Hedging(UniformLayer, Funded):
    """Asks a second time when a read takes longer than nearly all reads of its kind did of late.

    The second call goes to the same store over another connection, and so around whatever held up the first: a stalled
    connection, a slow standby, a lost packet. The first good answer is given; the other call is cancelled and gone by then. If
    the first fails for a passing reason while the second is under way, the second is waited for.

    Only reads are hedged, never a write, and none of the reads by which stores are watched and repaired. Each hedge is paid
    from the budget of the ``retry`` above it: both together stay below one share of the store's requests, so a store
    where everything is slow is not asked twice for everything.

    Place: in a leg, inside ``retry``, outside the breaker, the bulkhead and ``timeout``, so that each of the two calls counts
    and has a time limit of its own::

        retry → hedging → circuit_breaker → bulkhead → timeout → redis      right
        hedging → retry → redis           wrong: the second call repeats all attempts of the first
        circuit_breaker → hedging → …     wrong: second calls are made where the breaker does not see them
        hedging → dual_write{…}           wrong: the second call goes to the same leader, and a takeover is begun twice

    Events: ``hedge.started``, ``hedge.won``, ``hedge.refused``. Metrics and health: part ``hedging`` with the learned delays.
    Cancellation passes at once to both calls, and both are over when it leaves; a driver that needs time to let go of a
    cancelled command is waited for.

    Args:
        percentile: share of reads of a kind that are quicker than the delay after which a hedge starts.
        min_delay: seconds that it waits at least.
        max_delay: seconds that it waits at most, and as long as too little is known.
        operations: names of the reads that are hedged; all if empty.
        budget_ratio: hedges per read, where no ``retry`` above has a budget.
        budget_floor: hedges per second allowed in any case, where no ``retry`` above has a budget.
        state: what is known of the store; outlives a reload.
    """

    layer_name: ClassVar[str] = "hedging"

    def __init__(
        self,
        inner: Backend,
        *,
        percentile: Ratio = 0.95,
        min_delay: Seconds = 0.005,
        max_delay: Seconds = 1.0,
        operations: Sequence[str] = (),
        budget_ratio: Ratio = 0.1,
        budget_floor: CountOrZero = 5,
        state: HedgingState | None = None,
    ) -> None:
        super().__init__(inner)
        self._percentile = checked(self.layer_name, "percentile", percentile, Ratio)
        self._min_delay = checked(self.layer_name, "min_delay", min_delay, Seconds)
        self._max_delay = checked(self.layer_name, "max_delay", max_delay, Seconds)
        if max_delay < min_delay:
            raise ConfigurationError(
                f"hedging: max_delay ({max_delay:g} s) is below min_delay ({min_delay:g} s)"
            )
        named = frozenset(by_operation(self.layer_name, "operations", dict.fromkeys(operations, 1), Count))
        self._operations = named or _HEDGED
        if self._operations - _HEDGED:
            raise ConfigurationError(
                f"hedging: {', '.join(sorted(self._operations - _HEDGED))} cannot be asked twice; these can: "
                + ", ".join(sorted(_HEDGED))
            )
        self.state = HedgingState() if state is None else state
        self.state.budget.configure(budget_ratio, budget_floor)
        self._budget, self._earns = self.state.budget, True

    def fund(self, budget: RetryBudget) -> None:
        self._budget, self._earns = budget, False

    def describe(self) -> str:
        state = self.state
        return f"{state.started}/{state.reads} asked twice, {state.won} won, {state.refused} refused"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        state = self.state
        return {
            "reads": state.reads,
            "started": state.started,
            "won": state.won,
            "refused": state.refused,
            "delays": state.learned.shown(self._percentile),
        }

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if op.name not in self._operations:
            return await call(*args, **kwargs)
        context, token = begin(op)
        try:
            return await self._hedged(op, context, lambda: call(*args, **kwargs))
        finally:
            finish(token)

    async def _hedged(self, op: Operation, context: OperationContext, call: Callable[[], Awaitable[T]]) -> T:
        state, durations = self.state, self.state.learned.of(op.name)
        clock = asyncio.get_running_loop().time
        state.reads += 1
        if self._earns:
            self._budget.earn()
        started = clock()
        steps = call().__await__()
        try:
            waiting = steps.send(None)
        except StopIteration as done:
            answer: T = done.value
            return answer  # it did not wait: nothing to hedge, and nothing to learn from
        learned = durations.at(self._percentile)
        delay = min(max(learned or self._max_delay, self._min_delay), self._max_delay)
        race = Race(context, call, lambda: self._pay(op))
        try:
            result = await race.run(steps, waiting, started + delay)
            durations.add(clock() - started)  # where the second won, the first would have taken longer still
            return result
        finally:
            self._settle(op, race)

    def _pay(self, op: Operation) -> bool:
        """The second call is due: is it funded?"""
        paid = self._budget.spend()
        if paid:
            self.state.started += 1
        else:
            self.state.refused += 1
        name = telemetry.HEDGE_STARTED if paid else telemetry.HEDGE_REFUSED
        telemetry.event(name, backend=self.name, operation=op.name)
        return paid

    def _settle(self, op: Operation, race: Race[T]) -> None:
        if race.won:
            self.state.won += 1
            telemetry.event(telemetry.HEDGE_WON, backend=self.name, operation=op.name)
        elif race.started and race.unasked:
            self._budget.give_back()  # the store did not bear it
