"""All that touches aiobreaker: its words for the states and its error. Imported when a breaker is built: it takes 0.2 s.

Its time helpers are not used: they subtract naive local time from naive UTC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from aiobreaker import CircuitBreakerError, CircuitBreakerState

from ..errors import CircuitOpenError
from ._breaker import Phase

STATES: Mapping[Phase, CircuitBreakerState] = MappingProxyType(
    {
        Phase.CLOSED: CircuitBreakerState.CLOSED,
        Phase.OPEN: CircuitBreakerState.OPEN,
        Phase.HALF_OPEN: CircuitBreakerState.HALF_OPEN,
    }
)


def state_object(breaker: object, phase: Phase) -> Any:  # Any: aiobreaker is untyped
    """What aiobreaker's listeners are given for a state: an object whose ``.state`` is the enumeration's member."""
    return STATES[phase].value(breaker)


class _Named(CircuitBreakerError):  # type: ignore[misc]  # aiobreaker is untyped
    """aiobreaker's error without its constructor, which takes a time of the wall clock."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class BreakerOpenError(CircuitOpenError, _Named):
    """Refused by the circuit breaker. Caught as ours (``CircuitOpenError``) and as aiobreaker's (``CircuitBreakerError``)."""

    @property
    def time_remaining(self) -> timedelta:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Until a probe was due when this was raised; zero if that was not a matter of time."""
        return timedelta(seconds=self.retry_after or 0.0)

    @property
    def reopen_time(self) -> datetime:  # pyright: ignore[reportIncompatibleVariableOverride]
        """About when a probe is due, in naive local time as aiobreaker tells it."""
        return datetime.now() + self.time_remaining

    async def sleep_until_open(self) -> None:
        """Wait until a probe is due."""
        await asyncio.sleep(self.retry_after or 0.0)
