"""The way of a read: from the leader, and never a guess that looks like knowledge (dual-write.md, R6 and R7)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ... import telemetry
from ...clock import monotonic
from ...errors import IncompleteStoreError, StorageConnectionError, StorageError
from ...interface import Backend
from ...operations import Operation, OperationContext, begin, finish
from ._legs import Leg, within_half
from ._policy import ROUTE_CHANGES, Policy
from ._routing import Router

T = TypeVar("T")


class Reader:
    """Reads from whoever leads.

    Args:
        router: who leads.
        policy: patience, frankness, and what this process has seen.
    """

    def __init__(self, router: Router, policy: Policy) -> None:
        self._router, self._policy = router, policy

    async def read(
        self,
        operation: Operation,
        key: str | None,
        call: Callable[[Backend], Awaitable[T]],
        *,
        absent: Callable[[T], bool],
    ) -> T:
        """From the leader; from the other store if it takes over. Never "not found" from a store that may lack it (R7)."""
        context, token = begin(operation)
        try:
            problem: StorageError | None = None
            for _attempt in range(ROUTE_CHANGES):
                route, leader, start = self._router.route, self._router.leader, monotonic()
                # What was seen before it is asked: a write that overtakes this read is not missing from its answer.
                seen = 0 if key is None else self._policy.seen.get(key, 0)
                try:
                    answer = await within_half(context, leader, call)
                except StorageError as error:
                    if not self._policy.counts_against(leader, error, start):
                        raise
                    problem = error
                    await self._router.take_over(route, error)
                    continue
                context.served_by = leader.name
                context.degraded = context.degraded or self._router.degraded
                behind = context.clock is not None and context.clock < seen
                if behind and self._router.route != route:
                    continue
                unsure = leader.may_lack(key)
                if behind or unsure:
                    wait = min(context.remaining() or self._policy.patience, self._policy.patience)
                    if unsure and await self._router.caught_up(leader, key, wait):
                        continue
                    self._doubt(context, leader, behind=behind, refuse=behind or absent(answer))
                if key is not None and context.clock is not None:
                    self._policy.saw(key, context.clock)
                return answer
            raise StorageConnectionError(
                f"no store could answer ({problem})", outcome="not_applied"
            ) from problem
        finally:
            finish(token)

    def _doubt(self, context: OperationContext, leader: Leg, *, behind: bool, refuse: bool) -> None:
        """The answer may lack operations: it is flagged; "not found", or less than was seen before, is refused."""
        context.stale = True
        telemetry.event(telemetry.ANSWER_STALE, store=leader.name, behind=behind)
        if refuse and not self._policy.flag_incomplete:
            what = (
                "is behind what this process has seen of it"
                if behind
                else "may lack operations that only its peer holds"
            )
            raise IncompleteStoreError(
                f"{leader} {what}; {self._router.peer_of(leader)} is {'up' if self._router.peer_of(leader).up else 'unavailable'}. "
                "Try again, or set on_incomplete: flag to be answered all the same",
                backend=leader.name,
            )
