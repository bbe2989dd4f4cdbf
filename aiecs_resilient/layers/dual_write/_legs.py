"""One of the two stores behind ``dual_write``, and what this process knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from ...clock import monotonic
from ...errors import (
    CircuitOpenError,
    DeadlineExceededError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from ...interface import Backend
from ...operations import OperationContext
from ...records import Durability, StoreState

T = TypeVar("T")

MOST_UNSURE = 10_000  # keys; beyond, the whole store counts as behind until it has caught up


class Completeness(Enum):
    """Whether a store holds everything that was acknowledged, as far as this process knows."""

    COMPLETE = "complete"
    BEHIND = "behind"  # its peer holds records that it lacks
    UNKNOWN = "unknown"  # its peer cannot be read, so nobody can tell


@dataclass(slots=True)
class Leg:
    """A store, the chain of layers in front of it, and its state as last seen.

    Attributes:
        role: ``primary`` or ``fallback``, as configured; who leads is the route's matter.
        up: the last contact succeeded.
        state: what the store last said of itself; None until it has been reached once.
        seen_at: when that was, on the loop's clock.
        completeness: whether it may lack acknowledged operations.
        misses: how many live writes it missed; a drain that began at another count does not make it complete.
        unsure: keys of writes that this process left open (cancelled, no answer in time): the peer alone may have them.
        rebuild_since: stamp from which records must be offered to it anew, because it restarted and may have lost its tail.
    """

    role: str
    backend: Backend
    up: bool = True
    state: StoreState | None = None
    seen_at: float = 0.0
    completeness: Completeness = Completeness.UNKNOWN
    misses: int = 0
    unsure: dict[str, object] = field(default_factory=dict[str, object], repr=False)
    rebuild_since: int | None = None
    last_error: StorageError | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of its store: what routing in the stores refers to, so that roles can be swapped in the configuration."""
        return self.backend.name

    @property
    def durability(self) -> Durability:
        """What an acknowledgement of this store alone survives."""
        return self.state.durability if self.state is not None else Durability.VOLATILE

    @property
    def complete(self) -> bool:
        return self.completeness is Completeness.COMPLETE

    def may_lack(self, key: str | None) -> bool:
        """Whether an answer about that key could lack an operation that somebody has seen already."""
        return not self.complete or key in self.unsure

    def doubt(self, keys: Iterable[str]) -> None:
        """A write to these was left open."""
        self.unsure |= {key: object() for key in keys}
        if len(self.unsure) > MOST_UNSURE:
            self.missed()
            self.unsure.clear()

    def sure(self, doubts: dict[str, object]) -> None:
        """What the peer held alone has come over: these doubts are settled, unless they arose anew meanwhile."""
        self.unsure = {key: doubt for key, doubt in self.unsure.items() if doubts.get(key) is not doubt}

    def missed(self) -> None:
        """A live write did not reach it."""
        self.misses += 1
        self.completeness = Completeness.BEHIND

    def failed(self, error: StorageError) -> None:
        self.up = False
        self.last_error = error

    def answered(self, state: StoreState, loss_window_us: int) -> None:
        """It is there. A new incarnation may have lost the end of what it acknowledged: that is to be offered anew (R8)."""
        before = self.state
        if before is not None and before.incarnation != state.incarnation:
            since = 0 if state.durability is Durability.VOLATILE else max(0, before.now_us - loss_window_us)
            self.rebuild_since = since if self.rebuild_since is None else min(since, self.rebuild_since)
            self.missed()
        self.up = True
        self.last_error = None
        self.state = state
        self.seen_at = monotonic()

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


def means_unavailable(error: StorageError, silent_for: float, patience: float) -> bool:
    """Is this reason enough to let the other store lead?

    A refused or lost connection, spent time-outs and an open breaker are. Running into the caller's own deadline is only
    if the store was silent for at least ``patience`` seconds: a caller in a hurry must not move everybody's leader.
    """
    if isinstance(error, DeadlineExceededError):
        return silent_for >= patience
    return isinstance(error, (StorageConnectionError, StorageTimeoutError, CircuitOpenError))


async def within_half(context: OperationContext, leader: Leg, call: Callable[[Backend], Awaitable[T]]) -> T:
    """The leader's part, in at most half of what is left of the deadline: a hung leader must leave time for the other."""
    limit, start = context.deadline, monotonic()
    if limit is None:
        return await call(leader.backend)
    context.deadline = start + (limit - start) / 2
    try:
        async with asyncio.timeout_at(context.deadline):
            return await call(leader.backend)
    except TimeoutError as error:
        raise DeadlineExceededError(
            f"{leader} gave no answer within its half of the deadline", backend=leader.name
        ) from error
    finally:
        context.deadline = limit
