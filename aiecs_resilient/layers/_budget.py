"""How much repeating a store may be asked to bear: a share of its requests, and a few per second in any case.

Without it every caller's three attempts turn an outage into three times the load, just when the store comes back.
"""

from __future__ import annotations

from ..clock import monotonic
from ..interface import Backend
from ..units import CountOrZero, Ratio
from ._base import Layer
from ._options import checked

_BURST_SECONDS = 10
"""What the floor saves up while nothing fails; also the most that the share can save up."""

_LEAST_BURST = 10.0


class RetryBudget:
    """A token bucket: each request pays ``ratio`` in, time pays ``floor`` per second in, each repeat takes one out.

    One budget belongs to one store, whoever repeats (retries, hedges), and outlives a reload of the configuration.

    Args:
        ratio: repeats per request, in the long run.
        floor: repeats per second that are allowed however few requests there are.

    Attributes:
        requests: requests that paid in.
        repeats: repeats that were taken out.
        refused: repeats that there was nothing left for.
    """

    __slots__ = ("_capacity", "_floor", "_ratio", "_refilled_at", "_tokens", "refused", "repeats", "requests")

    def __init__(self, ratio: Ratio = 0.1, floor: CountOrZero = 5) -> None:
        self.requests = 0
        self.repeats = 0
        self.refused = 0
        self._refilled_at: float | None = None
        self._tokens = 0.0
        self._capacity = 0.0
        self.configure(ratio, floor)
        self._tokens = self._capacity

    def configure(self, ratio: Ratio, floor: CountOrZero) -> None:
        """Change the limits; what was saved up stays, as far as it fits."""
        self._ratio = checked("retry", "budget_ratio", ratio, Ratio)
        self._floor = checked("retry", "budget_floor", floor, CountOrZero)
        self._capacity = max(_LEAST_BURST, floor * _BURST_SECONDS) if ratio or floor else 0.0
        self._tokens = min(self._tokens, self._capacity)

    @property
    def tokens(self) -> float:
        """Repeats that could be taken out now (time since the last repeat is not yet paid in)."""
        return self._tokens

    def earn(self) -> None:
        """A request was made."""
        self.requests += 1
        if self._tokens < self._capacity:
            self._tokens = min(self._capacity, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Take out one repeat; False if there is none."""
        now = monotonic()
        if self._refilled_at is not None and now > self._refilled_at:
            self._tokens = min(self._capacity, self._tokens + (now - self._refilled_at) * self._floor)
        self._refilled_at = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        self.repeats += 1
        return True

    def give_back(self) -> None:
        """A repeat that was taken out was not made after all."""
        self._tokens = min(self._capacity, self._tokens + 1.0)
        self.repeats -= 1

    def __repr__(self) -> str:
        return (
            f"<RetryBudget {self._tokens:.1f} of {self._capacity:g}, {self.repeats}/{self.requests} repeated>"
        )


class Funded:
    """A layer that repeats requests too, and takes its means from the ``retry`` above it."""

    def fund(self, budget: RetryBudget) -> None:
        """Pay from this one from now on; what is paid in there is paid in already."""
        raise NotImplementedError


def share(budget: RetryBudget, inner: Backend) -> None:
    """Give all that repeat requests to the same store one budget: those below, down to the store or a branch."""
    while isinstance(inner, Layer):
        if isinstance(inner, Funded):
            inner.fund(budget)
        inner = inner.inner
