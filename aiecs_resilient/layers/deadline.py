"""deadline: one total time for an operation, whatever happens inside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..clock import monotonic
from ..errors import DeadlineExceededError
from ..interface import Backend, Json
from ..operations import CLEANUP_EXPIRED_SESSIONS, Effect, Operation, begin, finish
from ..units import Seconds
from ._base import UniformLayer, report_part
from ._options import by_operation, checked
from ._steps import resumed

P = ParamSpec("P")
T = TypeVar("T")

LONG_OPERATIONS: Mapping[str, float] = {CLEANUP_EXPIRED_SESSIONS.name: 60.0}
"""Operations that walk through the store, with the time they get unless the options say otherwise, in seconds."""

_GRACE = 0.01
"""Seconds after the deadline at which this layer strikes itself: a ``timeout`` inside strikes first, and it knows the store."""


class Deadline(UniformLayer):
    """Gives each operation one total time.

    It sets the operation's absolute deadline, ``now + total`` or an earlier one that the caller set with
    ``deadline(seconds)``, refuses at once when that has passed, and ends what is still running then. Layers inside read
    it: ``retry`` starts nothing that cannot finish, ``timeout`` gives an attempt at most what is left.

    Place: once per chain, outside everything that takes time; below ``logging``, which shall see its errors::

        logging → deadline → cache → dual_write{retry → circuit_breaker → timeout → redis, …}    right
        retry → deadline → redis      wrong: each attempt gets the whole time again, so there is no total
        dual_write{deadline → …}      wrong: a leg cannot know how much time the other one needs

    Errors: DeadlineExceededError. Refused before anything was sent: ``not_applied``. Struck later: ``unknown`` for a write.
    Events: ``deadline.expired``. Metrics: part ``deadline`` with ``refused`` and ``expired``.
    Cancellation passes untouched; the deadline that was in force outside is in force again afterwards. A driver that
    needs time to let go of a cancelled command is waited for.

    Args:
        total: seconds for the whole operation, all attempts and both stores together.
        per_operation: other totals by operation name, in seconds; ``cleanup_expired_sessions`` has 60 unless named.
    """

    layer_name: ClassVar[str] = "deadline"

    def __init__(
        self, inner: Backend, *, total: Seconds = 2.0, per_operation: Mapping[str, Seconds] | None = None
    ) -> None:
        super().__init__(inner)
        self.total = checked(self.layer_name, "total", total, Seconds)
        self._totals = {
            **LONG_OPERATIONS,
            **by_operation(self.layer_name, "per_operation", per_operation, Seconds),
        }
        self._refused = 0
        self._expired = 0

    def describe(self) -> str:
        return f"{self.total:g} s"

    async def get_metrics(self) -> Json:
        facts = {"total": self.total, "refused": self._refused, "expired": self._expired}
        return report_part(await self.inner.get_metrics(), self.layer_name, facts)

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context, token = begin(op)
        outer = context.deadline
        try:
            now = monotonic()
            limit = now + self._totals.get(op.name, self.total)
            if outer is not None and outer < limit:
                if outer <= now:
                    raise self._refusal(op)
                limit = outer
            context.deadline = limit
            steps = call(*args, **kwargs).__await__()
            try:
                waiting = steps.send(None)
            except StopIteration as done:
                result: T = done.value
                return result
            scope = asyncio.timeout_at(limit + _GRACE)
            try:
                async with scope:
                    return await resumed(steps, waiting)
            except TimeoutError as error:
                if not scope.expired():  # somebody else's
                    raise
                raise self._expiry(op, limit - now) from error
        finally:
            context.deadline = outer
            finish(token)

    def _refusal(self, op: Operation) -> DeadlineExceededError:
        self._refused += 1
        telemetry.event(telemetry.DEADLINE_EXPIRED, backend=self.name, operation=op.name, sent=False)
        return DeadlineExceededError(
            "the deadline had passed before anything was sent; give the block of calls more time",
            outcome="not_applied",
            operation=op.name,
            attempts=0,
        )

    def _expiry(self, op: Operation, given: float) -> DeadlineExceededError:
        self._expired += 1
        telemetry.event(
            telemetry.DEADLINE_EXPIRED, backend=self.name, operation=op.name, sent=True, seconds=given
        )
        return DeadlineExceededError(
            f"not finished within its {given:.3g} s; the store is slow, or the deadline is too short for this operation",
            outcome="not_applied" if op.effect is Effect.READ else "unknown",
            operation=op.name,
        )
