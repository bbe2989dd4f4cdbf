"""timeout: a time limit for one attempt at one store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..clock import monotonic
from ..errors import ConfigurationError, DeadlineExceededError, Outcome, StorageError, StorageTimeoutError
from ..interface import Backend, Json
from ..operations import Effect, Operation, begin, finish
from ..units import Seconds, Unit
from ._base import UniformLayer, report_part
from ._learned import Learned
from ._options import by_operation, checked
from ._steps import resumed
from .deadline import LONG_OPERATIONS

P = ParamSpec("P")
T = TypeVar("T")

Factor = Annotated[float, Unit("number", ge=1)]
"""At least as much again."""

_PERCENTILE = 0.99
_STALL = 0.02  # seconds by which a timer is late when not the store but our own loop was held up
_STALL_GRACE = 0.05  # seconds for taking the answers that came meanwhile, at the most


class Timeout(UniformLayer):
    """Limits the time of one attempt.

    An attempt gets ``per_attempt`` or what is left of the operation's deadline, whichever is less. The timer is armed only
    when the call really waits, so an answer from memory costs none.

    Place: inside ``retry`` and ``circuit_breaker``, next to the store::

        retry → circuit_breaker → timeout → redis      right
        timeout → retry → redis                        wrong: the first hung attempt eats the time of all others
        timeout → circuit_breaker → redis              wrong: the breaker sees cancelled calls, which tell it nothing

    With ``learned`` the limit of each kind of operation follows the store: ``factor`` times the 99th percentile of its last
    200, between ``least`` and ``per_attempt``. A hung attempt at a quick store is then given up in milliseconds, and tried
    again in time. An attempt that was cut off counts with the time that it had lasted, so a store that becomes slower is
    given more time, up to ``per_attempt``. Operations named in ``per_operation`` keep what is said there.

    Errors: StorageTimeoutError (transient), or DeadlineExceededError when it was the deadline that struck. A write that was
    cut off has outcome ``unknown``: a command that is on its way is usually applied all the same.
    Events: ``timeout.expired``, ``deadline.expired``. Metrics: part ``timeout`` with ``expired`` and ``deadline``.
    Cancellation passes untouched. A driver that needs time to let go of a cancelled command is waited for.

    Args:
        per_attempt: seconds for one attempt; less if the operation's deadline comes first.
        per_operation: other limits by operation name, in seconds; ``cleanup_expired_sessions`` has 60 unless named.
        learned: let the limit follow what operations take, with ``per_attempt`` as the most.
        factor: how often the 99th percentile a learned limit is.
        least: seconds; the least that a learned limit becomes.
        state: what was learned; outlives a reload.
    """

    layer_name: ClassVar[str] = "timeout"

    def __init__(
        self,
        inner: Backend,
        *,
        per_attempt: Seconds = 1.0,
        per_operation: Mapping[str, Seconds] | None = None,
        learned: bool = False,
        factor: Factor = 3.0,
        least: Seconds = 0.05,
        state: Learned | None = None,
    ) -> None:
        super().__init__(inner)
        self.per_attempt = checked(self.layer_name, "per_attempt", per_attempt, Seconds)
        self._factor = checked(self.layer_name, "factor", factor, Factor)
        self._least = checked(self.layer_name, "least", least, Seconds)
        if learned and least > per_attempt:
            raise ConfigurationError(f"timeout: least ({least:g} s) is above per_attempt ({per_attempt:g} s)")
        self._learns = learned
        self.state = Learned() if state is None else state
        self._limits = {
            **LONG_OPERATIONS,
            **by_operation(self.layer_name, "per_operation", per_operation, Seconds),
        }
        self._expired = 0
        self._deadline = 0

    def describe(self) -> str:
        return f"{'at most ' if self._learns else ''}{self.per_attempt:g} s"

    async def get_metrics(self) -> Json:
        facts: Json = {"per_attempt": self.per_attempt, "expired": self._expired, "deadline": self._deadline}
        if self._learns:
            facts["learned"] = {
                name: self._bounded(seconds) for name, seconds in self.state.shown(_PERCENTILE).items()
            }
        return report_part(await self.inner.get_metrics(), self.layer_name, facts)

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context, token = begin(op)
        try:
            deadline = context.deadline
            if deadline is not None and deadline <= monotonic():
                raise self._late(op, sent=False)
            steps = call(*args, **kwargs).__await__()
            try:
                waiting = steps.send(None)
            except StopIteration as done:
                result: T = done.value
                return result
            learns = self._learns and op.name not in self._limits
            durations = self.state.of(op.name) if learns else None
            seconds = self._limits.get(op.name, self.per_attempt)
            if durations is not None and (usual := durations.at(_PERCENTILE)) is not None:
                seconds = self._bounded(usual)
            started = monotonic()
            when = started + seconds
            hurried = deadline is not None and deadline < when
            due = deadline if hurried and deadline is not None else when
            loop, scope = asyncio.get_running_loop(), asyncio.timeout(None)
            timer = loop.call_at(due, _strike, loop, scope, due)
            try:
                async with scope:
                    return await resumed(steps, waiting)
            except TimeoutError as error:
                if not scope.expired():  # somebody else's
                    raise
                raise (self._late(op, sent=True) if hurried else self._expiry(op, seconds)) from error
            finally:
                timer.cancel()
                if durations is not None:
                    durations.add(monotonic() - started)
        finally:
            finish(token)

    def _bounded(self, usual: float) -> float:
        """The limit that follows from the 99th percentile."""
        return min(max(self._factor * usual, self._least), self.per_attempt)

    def _expiry(self, op: Operation, seconds: float) -> StorageError:
        self._expired += 1
        telemetry.event(telemetry.TIMEOUT_EXPIRED, backend=self.name, operation=op.name, seconds=seconds)
        return StorageTimeoutError(
            f"no answer within {seconds:g} s; is the store stopped or overloaded? If it is only slow, raise timeout.per_attempt",
            outcome=_outcome(op),
            operation=op.name,
            backend=self.name,
        )

    def _late(self, op: Operation, *, sent: bool) -> StorageError:
        self._deadline += 1
        telemetry.event(telemetry.DEADLINE_EXPIRED, backend=self.name, operation=op.name, sent=sent)
        if not sent:
            return DeadlineExceededError(
                "the deadline had passed before this attempt was sent",
                outcome="not_applied",
                operation=op.name,
                backend=self.name,
                attempts=0,
            )
        return DeadlineExceededError(
            "no answer before the operation's deadline; the store is slow, or the deadline is too short",
            outcome=_outcome(op),
            operation=op.name,
            backend=self.name,
        )


def _strike(loop: asyncio.AbstractEventLoop, scope: asyncio.Timeout, due: float) -> None:
    """Time is up. But where the loop itself was late, answers have come that nobody could take: they go first.

    Otherwise every call that is under way while this process stalls would count as the store's failure, and open its breaker.
    """
    late = loop.time() - due
    scope.reschedule(loop.time() + min(late, _STALL_GRACE) if late > _STALL else due)


def _outcome(op: Operation) -> Outcome:
    """Of a call that was cut off."""
    return "not_applied" if op.effect is Effect.READ else "unknown"
