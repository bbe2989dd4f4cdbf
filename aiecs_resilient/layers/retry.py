"""retry: the same operation again, when that helps, cannot double its effect, is funded and is in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Literal, ParamSpec, TypeVar

from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_random_exponential

from .. import telemetry
from ..errors import ConfigurationError, StorageError
from ..interface import Backend, Json
from ..operations import Effect, Operation, OperationContext, begin, finish
from ..units import Count, CountOrZero, Ratio, Seconds
from ._base import UniformLayer, report_part
from ._budget import RetryBudget, share
from ._options import by_operation, checked

P = ParamSpec("P")
T = TypeVar("T")

Reason = Literal["unsafe", "budget", "deadline", "attempts"]
"""Why a transient error was not retried."""

_LEAST_ATTEMPT = 0.001
"""Seconds before the deadline after which no attempt can be of use."""


class Retry(UniformLayer):
    """Repeats an operation that failed for a passing reason.

    An error is retried if it is all of these:

    - transient, and not already given up by a retry further in (``final``);
    - safe: a read, a write over a store that knows operations by their ``op_id``, or a write that was certainly not applied;
    - funded: the store's budget has a repeat left;
    - in time: attempts are left, and the pause ends before the operation's deadline.

    All attempts are one operation with one ``op_id``. The first runs as if this layer were not there; only its failure
    brings in tenacity, whose strategies are the policy: exponential back-off with full jitter, on top of a pause that the
    store asked for (``retry_after``). When it gives up, the error is marked ``final``, ``attempts`` counts all of them, and
    ``outcome`` is ``not_applied`` only if every attempt's was.

    Place: outermost in a store's chain, so that each attempt passes the breaker and has a time limit of its own::

        dual_write{retry → circuit_breaker → timeout → redis, …}      right
        circuit_breaker → retry → redis      wrong: the breaker sees one failure where there were three
        retry → redis                        wrong: a hung attempt is never repeated, because it never ends
        retry → … → retry                    wrong: attempts multiply; ``final`` prevents the worst

    Events: ``retry.started``, ``retry.refused`` (with the reason), ``retry.exhausted``. Metrics: part ``retry``. A span
    ``attempt`` around each attempt but the first, where a span is recording.
    Cancellation passes at once, in an attempt and in a pause; a repeat that was not made is given back to the budget.

    Args:
        attempts: in all, the first included; 1 never retries.
        base_delay: seconds; the first pause is random between 0 and this, each further one doubles the bound.
        max_delay: seconds; the most that bound may become.
        budget_ratio: repeats per request that the store is asked to bear.
        budget_floor: repeats per second that are allowed however few requests there are.
        per_operation: other numbers of attempts by operation name.
        state: the store's budget, shared by whoever repeats requests to it; outlives a reload.
    """

    layer_name: ClassVar[str] = "retry"

    def __init__(
        self,
        inner: Backend,
        *,
        attempts: Count = 3,
        base_delay: Seconds = 0.05,
        max_delay: Seconds = 1.0,
        budget_ratio: Ratio = 0.1,
        budget_floor: CountOrZero = 5,
        per_operation: Mapping[str, Count] | None = None,
        state: RetryBudget | None = None,
    ) -> None:
        super().__init__(inner)
        self.attempts = checked(self.layer_name, "attempts", attempts, Count)
        checked(self.layer_name, "base_delay", base_delay, Seconds)
        if checked(self.layer_name, "max_delay", max_delay, Seconds) < base_delay:
            raise ConfigurationError(
                f"retry: max_delay ({max_delay:g} s) is below base_delay ({base_delay:g} s)"
            )
        self._stops = {
            name: stop_after_attempt(number)
            for name, number in by_operation(self.layer_name, "per_operation", per_operation, Count).items()
        }
        self._stop = stop_after_attempt(attempts)
        self._backoff = wait_random_exponential(multiplier=base_delay, max=max_delay)
        self.state = RetryBudget(budget_ratio, budget_floor) if state is None else state
        self.state.configure(budget_ratio, budget_floor)
        share(self.state, inner)
        self._recovered = 0
        self._given_up: dict[Reason, int] = {"unsafe": 0, "budget": 0, "deadline": 0, "attempts": 0}

    def describe(self) -> str:
        budget = self.state
        return f"{self.attempts} attempts, {budget.repeats}/{budget.requests} repeated, {budget.tokens:.0f} in the budget"

    async def get_metrics(self) -> Json:
        budget = self.state
        facts: Json = {
            "requests": budget.requests,
            "retries": budget.repeats,
            "recovered": self._recovered,
            "given_up": dict(self._given_up),
            "budget": round(budget.tokens, 1),
        }
        return report_part(await self.inner.get_metrics(), self.layer_name, facts)

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context, token = begin(op)
        try:
            self.state.earn()
            try:
                return await call(*args, **kwargs)
            except StorageError as error:
                if not error.transient or error.final:
                    raise
                repeats = _Repeats(self, op, context, error)
            return await repeats.run(call, *args, **kwargs)
        finally:
            finish(token)

    def stop_for(self, op: Operation) -> stop_after_attempt:
        """When the attempts at ``op`` are spent."""
        return self._stops.get(op.name, self._stop)

    def safe(self, op: Operation, error: StorageError) -> bool:
        """Whether repeating can have no second effect."""
        return op.effect is Effect.READ or self.inner.honours_op_id or error.outcome == "not_applied"

    def pause(self, attempt: RetryCallState) -> float:
        """Seconds until the next attempt."""
        error = attempt.outcome.exception() if attempt.outcome is not None else None
        asked = error.retry_after if isinstance(error, StorageError) else None
        return (asked or 0.0) + self._backoff(attempt)

    def ended(self, reason: Reason | None) -> None:
        """Count how an operation ended that had failed at first; None for well."""
        if reason is None:
            self._recovered += 1
        else:
            self._given_up[reason] += 1


class _Repeats:
    """One operation after its first failure: tenacity's loop, and what our strategies need to know in it."""

    def __init__(self, layer: Retry, op: Operation, context: OperationContext, first: StorageError) -> None:
        self._layer = layer
        self._op = op
        self._context = context
        self._first: StorageError | None = first
        self._number = 1
        self._asked = 0
        self._maybe_applied = False
        self._reason: Reason | None = None
        self._paid = False

    async def run(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def attempt() -> T:
            first, self._first = self._first, None
            if first is not None:  # made before tenacity was entered; its loop begins with the verdict on it
                raise first
            self._paid = False
            self._number += 1
            with telemetry.span(telemetry.SPAN_ATTEMPT, attempt=self._number, backend=self._layer.name):
                return await call(*args, **kwargs)

        loop = AsyncRetrying(  # one per operation: loops that share one swap their exceptions
            sleep=asyncio.sleep,
            retry=self._worth_it,
            wait=self._layer.pause,
            stop=self._enough,
            before_sleep=self._report,
            reraise=True,
        )
        try:
            result: T = await loop(attempt)
        except StorageError as error:
            self._finish(error)
            raise
        finally:
            if self._paid:
                self._layer.state.give_back()
        self._layer.ended(None)
        return result

    def _worth_it(self, attempt: RetryCallState) -> bool:
        """Tenacity's ``retry``: only our own errors, so that a cancellation or a bug passes at once."""
        error = attempt.outcome.exception() if attempt.outcome is not None else None
        if not isinstance(error, StorageError):
            return False
        self._asked += error.attempts
        self._context.attempts += error.attempts
        if not error.attempts and self._number > 1:  # refused on the way: the store did not bear this repeat
            self._layer.state.give_back()
        self._maybe_applied |= error.outcome == "unknown"
        if not error.transient or error.final:
            return False
        if not self._layer.safe(self._op, error):
            self._reason = "unsafe"
            return False
        return True

    def _enough(self, attempt: RetryCallState) -> bool:
        """Tenacity's ``stop``; it knows the coming pause already."""
        left = self._context.remaining()
        if self._layer.stop_for(self._op)(attempt):
            self._reason = "attempts"
        elif left is not None and attempt.upcoming_sleep + _LEAST_ATTEMPT >= left:
            self._reason = "deadline"
        elif self._layer.state.spend():  # last, because it takes something
            self._paid = True
        else:
            self._reason = "budget"
        return self._reason is not None

    def _report(self, attempt: RetryCallState) -> None:
        telemetry.event(
            telemetry.RETRY_STARTED,
            backend=self._layer.name,
            operation=self._op.name,
            attempt=self._number + 1,
            pause=round(attempt.upcoming_sleep, 6),
            error=attempt.outcome.exception() if attempt.outcome is not None else None,
        )

    def _finish(self, error: StorageError) -> None:
        """What the caller gets is the last error, with the account of all attempts."""
        error.attempts = self._asked
        error.operation = error.operation or self._op.name
        if self._maybe_applied and self._op.effect is Effect.WRITE:
            error.outcome = "unknown"
        if self._reason is None:
            return
        error.final = True
        error.add_note(f"retry gave up: {_MEANINGS[self._reason]}")
        self._layer.ended(self._reason)
        telemetry.event(
            telemetry.RETRY_EXHAUSTED if self._reason == "attempts" else telemetry.RETRY_REFUSED,
            backend=self._layer.name,
            operation=self._op.name,
            reason=self._reason,
            attempts=self._asked,
            error=error,
        )


_MEANINGS: Mapping[Reason, str] = {
    "unsafe": "the store does not know operations by their op_id, and this write may have been applied",
    "budget": "the store's budget of repeats is spent (budget_ratio, budget_floor)",
    "deadline": "the next attempt would begin after the operation's deadline",
    "attempts": "all attempts failed",
}
