"""rate_limit: so many operations a second, and none that its caller will not live to see answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, ParamSpec, TypeVar, cast

from .. import telemetry
from ..clock import monotonic
from ..errors import OverloadedError
from ..interface import Backend, Json
from ..operations import (
    APPLY,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    BATCH_GET_SESSIONS,
    Operation,
    OperationContext,
    begin,
    finish,
)
from ..units import Count, SecondsOrZero, Unit
from ._base import UniformLayer, report_part
from ._buckets import Buckets
from ._learned import Learned
from ._options import checked
from ._tenancy import CONTROL, GroupBy, group_of, is_replay

P = ParamSpec("P")
T = TypeVar("T")

PerSecond = Annotated[float, Unit("number", above=0)]
"""How often a second."""

_BATCHES = frozenset(
    op.name for op in (BATCH_CREATE_SESSIONS, BATCH_GET_SESSIONS, BATCH_ADD_CONVERSATION_MESSAGES, APPLY)
)
_HOPELESS = 0.1
"""Share of calls that are the quickest: with less time than these took, an answer in time is not to be expected."""

_PROBE_EVERY = 1.0
"""Seconds after which one call that looks hopeless is let through all the same: how else to learn that it is not?"""


@dataclass(slots=True)
class RateState:
    """Buckets, and how long operations take; outlive a reload."""

    buckets: Buckets = field(default_factory=Buckets)
    learned: Learned = field(default_factory=Learned)
    probed: dict[str, float] = field(default_factory=dict[str, float])


class RateLimit(UniformLayer):
    """Limits operations per second, for the store as a whole, for each tenant or for each session.

    A group that was quiet may make ``burst`` operations at once, then ``rate`` a second. A batch counts as many as it has
    items. What is over the rate waits up to ``max_wait``, no longer than its deadline, in order; what would wait longer is
    refused at once with OverloadedError, whose ``retry_after`` says when there is room.

    With ``shed`` it also refuses what cannot be answered in time: if less time is left until the deadline than the quickest
    tenth of such operations took of late, nobody is served by sending it. Under overload that keeps work for those who still
    wait. One a second is let through all the same, so that a store that has recovered is noticed.

    Calls by which ``dual_write`` watches and repairs pass freely.

    Place: inside ``deadline`` and ``namespace``, whose deadline and tenant it reads, outside all that does work::

        deadline → namespace → rate_limit → cache → dual_write{…}      right
        rate_limit → deadline → redis        wrong: it cannot know how much time is left
        dual_write{rate_limit → …, …}        wrong: it would refuse what the other store has accepted

    Errors: OverloadedError, not applied; ``retry`` leaves it, breakers do not count it.
    Events: ``rate.limited``, ``load.shed``. Metrics and health: part ``rate_limit``.
    Cancellation passes at once; what a cancelled call was waiting for goes back.

    Args:
        rate: operations a second of each group.
        burst: operations that a group may make at once after a pause.
        by: what a group is: all callers (none), each session or thread (key), or each tenant.
        rates: other rates by group: by tenant, or by key; operations a second.
        max_wait: seconds that an operation over the rate may wait; 0 refuses at once.
        max_groups: groups that are remembered.
        shed: refuse what cannot be answered before its deadline.
        state: buckets and what was learned; outlive a reload.
    """

    layer_name: ClassVar[str] = "rate_limit"

    def __init__(
        self,
        inner: Backend,
        *,
        rate: PerSecond = 1_000.0,
        burst: Count = 200,
        by: GroupBy = "none",
        rates: Mapping[str, PerSecond] | None = None,
        max_wait: SecondsOrZero = 0.0,
        max_groups: Count = 10_000,
        shed: bool = True,
        state: RateState | None = None,
    ) -> None:
        super().__init__(inner)
        checked(self.layer_name, "rate", rate, PerSecond)
        checked(self.layer_name, "burst", burst, Count)
        checked(self.layer_name, "max_groups", max_groups, Count)
        for group, own in (rates or {}).items():
            checked(self.layer_name, f"rates[{group!r}]", own, PerSecond)
        self._by: GroupBy = by
        self._max_wait = checked(self.layer_name, "max_wait", max_wait, SecondsOrZero)
        self._shed = shed
        self.state = RateState() if state is None else state
        buckets = self.state.buckets
        buckets.rate, buckets.burst, buckets.most = rate, burst, max_groups
        buckets.rates = dict(rates or {})

    def describe(self) -> str:
        buckets = self.state.buckets
        return f"{buckets.rate:g}/s, {buckets.refused} refused, {buckets.shed} shed"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        buckets = self.state.buckets
        return {
            "rate": buckets.rate,
            "groups": len(buckets),
            "admitted": buckets.admitted,
            "waited": buckets.waited,
            "refused": buckets.refused,
            "shed": buckets.shed,
        }

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if op.name in CONTROL or (op is APPLY and is_replay(op, args)):
            return await call(*args, **kwargs)
        context, token = begin(op)
        try:
            started = monotonic()
            if self._shed and context.deadline is not None:
                self._shed_if_hopeless(op, context.deadline - started, started)
            await self._admit(op, context, group_of(self._by, op, args, kwargs), _cost(op, args), started)
            if not self._shed:
                return await call(*args, **kwargs)
            started = monotonic()
            try:
                return await call(*args, **kwargs)
            finally:  # of one that was given up, how long it had lasted: it would have taken longer still
                self.state.learned.of(op.name).add(monotonic() - started)
        finally:
            finish(token)

    async def _admit(
        self, op: Operation, context: OperationContext, group: str, cost: int, now: float
    ) -> None:
        buckets, left = self.state.buckets, context.remaining()
        patience = self._max_wait if left is None else min(self._max_wait, max(0.0, left))
        taken, wait = buckets.take(group, cost, now, patience)
        if not taken:
            buckets.refused += 1
            telemetry.event(telemetry.RATE_LIMITED, backend=self.name, operation=op.name)
            raise OverloadedError(
                f"not asked: over the rate of {buckets.rates.get(group, buckets.rate):g} operations a second"
                f"{f' of each {self._by}' if self._by != 'none' else ''}; there is room in {wait:.3g} s",
                operation=op.name,
                backend=self.name,
                attempts=0,
                retry_after=wait,
            )
        if wait:
            buckets.waited += 1
            try:
                await asyncio.sleep(wait)
            except asyncio.CancelledError:
                buckets.give_back(group, cost)
                raise
        buckets.admitted += 1

    def _shed_if_hopeless(self, op: Operation, left: float, now: float) -> None:
        quickest = self.state.learned.of(op.name).at(_HOPELESS)
        if quickest is None or left >= quickest:
            return
        if now - self.state.probed.get(op.name, -_PROBE_EVERY) >= _PROBE_EVERY:
            self.state.probed[op.name] = now
            return
        self.state.buckets.shed += 1
        telemetry.event(telemetry.LOAD_SHED, backend=self.name, operation=op.name)
        raise OverloadedError(
            f"not asked: {max(0.0, left):.3g} s are left and the quickest of late took {quickest:.3g} s; "
            "the store is overloaded, or the deadline is too short for this operation",
            operation=op.name,
            backend=self.name,
            attempts=0,
        )


def _cost(op: Operation, args: Sequence[object]) -> int:
    """A batch counts as many as it has items."""
    if op.name not in _BATCHES or not args:
        return 1
    return max(1, len(cast("Sequence[object]", args[0])))
