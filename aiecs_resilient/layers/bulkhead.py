"""bulkhead: so many calls at once to one store, and the rest waits its turn or is told at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, Literal, ParamSpec, TypeVar

from .. import telemetry
from ..clock import monotonic
from ..errors import ConfigurationError, OverloadedError, StorageError
from ..interface import Backend, Json
from ..operations import APPLY, Operation, OperationContext, begin, finish
from ..units import Count, CountOrZero, SecondsOrZero
from ._base import UniformLayer, report_part
from ._options import checked
from ._permits import Permits
from ._tenancy import CONTROL, GroupBy, group_of, is_replay
from .circuit_breaker import is_fault

P = ParamSpec("P")
T = TypeVar("T")

Mode = Literal["reject", "bounded_wait", "wait"]

_MARGIN = 0.005
"""Seconds before the deadline from which on a permit is of no use."""


class Bulkhead(UniformLayer):
    """Limits the calls that are under way to one store.

    A store that hangs then holds this many callers and not all of them, and one that is slow is not buried. A call takes
    one permit and holds it for one attempt, so none waits for a second permit while it holds a first. Those that find none
    wait in line, no longer than their deadline, or are refused with OverloadedError (nothing was sent, ``retry`` leaves
    it, the breaker does not count it).

    Health, ``close`` and the calls by which ``dual_write`` watches, repairs and moves never need a permit. Records that a
    store lacks go before everything else and have ``reserved`` permits of their own, so that load cannot keep a store from
    catching up. With ``fair_by`` sessions or tenants take turns, and one with a thousand calls waits behind its own.

    With ``adaptive`` the limit follows the store: while calls take as long as usual it grows up to ``limit``, when they
    take longer, a queue has formed in the store, and it shrinks down to ``least``.

    Place: one in each leg, inside the breaker and outside ``timeout``::

        retry → hedging → circuit_breaker → bulkhead → timeout → redis      right
        timeout → bulkhead → redis              wrong: waiting for a permit uses up the time of the attempt
        bulkhead → circuit_breaker → redis      wrong: calls wait in line for a store that is known to be down
        bulkhead → dual_write{…}                wrong: a leader that hangs holds all permits, and nobody can take over

    Events: ``bulkhead.rejected`` with the reason. Metrics and health: part ``bulkhead``.
    Cancellation passes at once, gives the permit back and leaves the line.

    Args:
        limit: calls at once; the most that an adaptive limit becomes.
        mode: what a call does that finds no permit: reject at once, wait for ``max_wait``, or wait until its deadline.
        max_wait: seconds that it waits with ``bounded_wait``.
        max_waiting: calls that may wait; one more is refused in any mode.
        reserved: permits beyond ``limit`` for records that a store lacks.
        fair_by: who takes turns in the line: nobody in particular, each session or thread (key), or each tenant.
        adaptive: find the limit out.
        least: the least that an adaptive limit becomes.
        state: the store's permits; outlive a reload.
    """

    layer_name: ClassVar[str] = "bulkhead"

    def __init__(
        self,
        inner: Backend,
        *,
        limit: Count = 64,
        mode: Mode = "bounded_wait",
        max_wait: SecondsOrZero = 0.5,
        max_waiting: CountOrZero = 1_000,
        reserved: Count = 4,
        fair_by: GroupBy = "none",
        adaptive: bool = False,
        least: Count = 4,
        state: Permits | None = None,
    ) -> None:
        super().__init__(inner)
        checked(self.layer_name, "limit", limit, Count)
        checked(self.layer_name, "reserved", reserved, Count)
        if checked(self.layer_name, "least", least, Count) > limit and adaptive:
            raise ConfigurationError(f"bulkhead: least ({least}) is above limit ({limit})")
        self._mode: Mode = mode
        self._max_wait = checked(self.layer_name, "max_wait", max_wait, SecondsOrZero)
        self._max_waiting = checked(self.layer_name, "max_waiting", max_waiting, CountOrZero)
        self._fair_by: GroupBy = fair_by
        self.state = Permits() if state is None else state
        self.state.configure(limit, reserved, least if adaptive else None)

    def describe(self) -> str:
        state = self.state
        waiting = f", {state.waiting} waiting" if state.waiting else ""
        return f"{state.running}/{state.limit} under way{waiting}, {state.refused} refused"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        state = self.state
        return {
            "limit": state.limit,
            "running": state.running,
            "waiting": state.waiting,
            "admitted": state.admitted,
            "refused": state.refused,
        }

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if op.name in CONTROL:
            return await call(*args, **kwargs)
        if op is APPLY or not self.state.take():
            return await self._in_line(op, call, *args, **kwargs)
        return await self._admitted(op, call, *args, **kwargs)

    async def _in_line(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The call, as soon as it has a permit."""
        context, token = begin(op)
        try:
            if is_replay(op, args):
                if not self.state.take_first():
                    await self._wait_first(op, context)
            elif not self.state.take():
                await self._wait(op, context, group_of(self._fair_by, op, args, kwargs))
            return await self._admitted(op, call, *args, **kwargs)
        finally:
            finish(token)

    async def _admitted(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The call, which holds a permit."""
        if self.state.adaptive is not None:
            return await self._measured(op, call, *args, **kwargs)
        try:
            return await call(*args, **kwargs)
        finally:
            self.state.give()

    async def _measured(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The call under an adaptive limit, which learns from it."""
        started = monotonic()
        try:
            result = await call(*args, **kwargs)
            self.state.succeeded(op.name, monotonic() - started)
            return result
        except StorageError as error:
            if is_fault(error):
                self.state.failed()
            raise
        finally:
            self.state.give()

    async def _wait_first(self, op: Operation, context: OperationContext) -> None:
        if not await self.state.wait_first(_left(context)):
            raise self._refusal(op, "deadline")

    async def _wait(self, op: Operation, context: OperationContext, group: str) -> None:
        if self._mode == "reject":
            raise self._refusal(op, "full")
        if self.state.waiting >= self._max_waiting:
            raise self._refusal(op, "line")
        left = _left(context)
        bounded = self._mode == "bounded_wait" and (left is None or left > self._max_wait)
        if not await self.state.wait(group, self._max_wait if bounded else left):
            raise self._refusal(op, "waited" if bounded else "deadline")

    def _refusal(self, op: Operation, reason: str) -> OverloadedError:
        self.state.refused += 1
        telemetry.event(telemetry.BULKHEAD_REJECTED, backend=self.name, operation=op.name, reason=reason)
        return OverloadedError(
            f"not asked: {self.state.limit} calls are under way to it and {_MEANINGS[reason]}; "
            "is it slow, or is bulkhead.limit too low for this load?",
            operation=op.name,
            backend=self.name,
            attempts=0,
        )


def _left(context: OperationContext) -> float | None:
    """Seconds that waiting makes sense, None for any."""
    left = context.remaining()
    return None if left is None else left - _MARGIN


_MEANINGS = {
    "full": "calls do not wait (mode: reject)",
    "line": "the line is full (max_waiting)",
    "waited": "none ended within max_wait",
    "deadline": "none ended before this one's deadline",
}
