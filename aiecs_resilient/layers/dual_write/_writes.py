"""The way of a write: to the leader, which stamps and marks it, then to its follower (dual-write.md, R1 to R7, R10)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from ... import telemetry
from ...clock import monotonic
from ...errors import IncompleteStoreError, StaleRouteError, StorageConnectionError, StorageError
from ...operations import OperationContext
from ...records import Applied, Mutation, RecordRef, Route
from ._legs import Leg, means_unavailable, within_half
from ._policy import ROUTE_CHANGES, Policy
from ._replication import Settler
from ._routing import Router

_MARGIN = 0.01  # seconds before the deadline at which a call settles for what it has


class Writer:
    """Applies mutations through the two legs.

    Args:
        router: who leads.
        settler: closes the marks of what both stores have.
        policy: patience, durability, frankness.
    """

    def __init__(self, router: Router, settler: Settler, policy: Policy) -> None:
        self._router, self._settler, self._policy = router, settler, policy

    async def apply(
        self, context: OperationContext, mutations: Sequence[Mutation]
    ) -> list[Applied | StorageError]:
        """Each mutation's result. Raises if neither store could take them."""
        asked: list[Leg] = []
        try:
            return await self._apply(context, mutations, asked)
        except BaseException as error:
            if not isinstance(error, StorageError) or error.outcome == "unknown":
                # Each store that was asked may have it alone, and show it, until its mark has brought it to the other.
                for leg in asked:
                    self._router.peer_of(leg).doubt(mutation.key for mutation in mutations)
            raise

    async def _apply(
        self, context: OperationContext, mutations: Sequence[Mutation], asked: list[Leg]
    ) -> list[Applied | StorageError]:
        """To the leader, then to its follower; again elsewhere, under a higher rank, if the lead moved meanwhile."""
        results: list[Applied | StorageError | None] = [None] * len(mutations)
        open_items = list(range(len(mutations)))
        maybe_applied = False
        problem: StorageError | None = None
        for rank in range(ROUTE_CHANGES):
            await self._router.passable()
            route, leader = self._router.route, self._router.leader
            self._require_durable(leader, self._router.peer_of(leader), maybe_applied)
            staged = [self._staged(mutations[index], route, leader, rank) for index in open_items]
            start = monotonic()
            asked.append(leader)
            try:
                answers = await self._ask_to_lead(context, leader, staged)
            except StorageError as error:
                maybe_applied |= error.outcome == "unknown"
                _settle_outcome(error, maybe_applied)
                if not self._policy.counts_against(leader, error, start):
                    raise
                problem = error
                await self._take_over(route, error, maybe_applied)
                continue
            context.attempts += 1
            stale = await self._follow(context, route, leader, staged, answers)
            for index, answer, moved in zip(open_items, answers, stale, strict=True):
                key = mutations[index].key
                results[index] = None if moved else self._certain(context, leader, key, answer, maybe_applied)
            open_items = [index for index in open_items if results[index] is None]
            if not open_items:
                context.served_by = leader.name
                context.degraded = context.degraded or self._router.degraded
                return [result for result in results if result is not None]
            problem = next((answer for answer in answers if isinstance(answer, StaleRouteError)), None)
            maybe_applied |= any(
                moved and isinstance(answer, Applied) for answer, moved in zip(answers, stale, strict=True)
            )
            await self._router.refresh(route, self._policy.patience)
        raise StorageConnectionError(
            f"the lead moved {ROUTE_CHANGES} times during this write; try again ({problem})",
            outcome="unknown" if maybe_applied else "not_applied",
        ) from problem

    async def _ask_to_lead(
        self, context: OperationContext, leader: Leg, staged: Sequence[Mutation]
    ) -> list[Applied | StorageError]:
        """The leader's part. What it could only answer by a guess it refuses, and is asked again once it has caught up."""
        answers = await within_half(context, leader, lambda store: store.apply(staged))
        refused = [place for place, answer in enumerate(answers) if isinstance(answer, IncompleteStoreError)]
        if not refused:
            return answers
        wait = min(context.remaining() or self._policy.patience, self._policy.patience)
        keys = {staged[place].key for place in refused}
        if not all([await self._router.caught_up(leader, key, wait) for key in keys]):
            context.stale = True
            telemetry.event(telemetry.ANSWER_STALE, store=leader.name, behind=False)
            return answers
        sure = [replace(staged[place], must_act=False) for place in refused]
        again = await within_half(context, leader, lambda store: store.apply(sure))
        for place, answer in zip(refused, again, strict=True):
            answers[place] = answer
        return answers

    def _certain(
        self,
        context: OperationContext,
        leader: Leg,
        key: str,
        answer: Applied | StorageError,
        maybe_applied: bool,
    ) -> Applied | StorageError:
        """Whoever prefers a guess to a refusal is told that it is one (R7)."""
        if isinstance(answer, IncompleteStoreError):
            _settle_outcome(answer, maybe_applied)
        elif isinstance(answer, Applied) and not answer.answer and leader.may_lack(key):
            context.stale = True
            telemetry.event(telemetry.ANSWER_STALE, store=leader.name, behind=False)
        return answer

    def _staged(self, mutation: Mutation, route: Route, leader: Leg, rank: int) -> Mutation:
        return replace(
            mutation,
            epoch=route.epoch,
            home=leader.name,
            mark=True,
            rank=rank,
            stamp=max(mutation.stamp, self._policy.seen.get(mutation.key, 0) + 1),
            must_act=leader.may_lack(mutation.key) and not self._policy.flag_incomplete,
        )

    async def _take_over(self, route: Route, cause: StorageError, maybe_applied: bool) -> None:
        try:
            await self._router.take_over(route, cause)
        except StorageError as error:
            _settle_outcome(error, maybe_applied)
            raise

    def _require_durable(self, leader: Leg, follower: Leg, maybe_applied: bool) -> None:
        """An acknowledgement must not rest on a store that forgets everything when it is restarted."""
        if leader.durability >= self._policy.floor or (
            follower.up and follower.durability >= self._policy.floor
        ):
            return
        raise StorageConnectionError(
            f"only {leader} can take the write, and what it holds survives {leader.durability.name.lower()} failures at most; "
            f"durable_at_least is {self._policy.floor.name.lower()}",
            outcome="unknown" if maybe_applied else "not_applied",
            backend=leader.name,
        )

    async def _follow(
        self,
        context: OperationContext,
        route: Route,
        leader: Leg,
        staged: Sequence[Mutation],
        answers: Sequence[Applied | StorageError],
    ) -> list[bool]:
        """Replay on the follower what the leader accepted. Per item: must it be sent again, because the lead moved?"""
        stale = [isinstance(answer, StaleRouteError) and answer.transient for answer in answers]
        replays: list[tuple[int, Mutation]] = []
        for index, (mutation, answer) in enumerate(zip(staged, answers, strict=True)):
            if isinstance(answer, Applied) and (effect := answer.replay_of(mutation)) is not None:
                replays.append((index, effect))
                self._policy.saw(mutation.key, answer.stamp)
        if not replays:
            return stale
        follower = self._router.peer_of(leader)
        outcomes = (
            await self._replay(context, follower, [effect for _index, effect in replays])
            if follower.up
            else None
        )
        if outcomes is None:
            self._missed(context, leader, follower, len(replays))
            return stale
        context.attempts += 1
        context.durability = "both"
        done: list[RecordRef] = []
        for (index, effect), outcome in zip(replays, outcomes, strict=True):
            if isinstance(outcome, Applied):
                done.append(RecordRef(effect.key, effect.op_id, effect.stamp, effect.rank))
            elif isinstance(outcome, StaleRouteError):
                stale[index] = True
            else:
                self._missed(context, leader, follower, 1)
        self._settler.add(leader.backend, done)
        return stale

    async def _replay(
        self, context: OperationContext, follower: Leg, effects: Sequence[Mutation]
    ) -> list[Applied | StorageError] | None:
        """The follower's part. None if it did not answer: the write is durable on the leader and marked there."""
        remaining = context.remaining()
        try:
            async with asyncio.timeout(None if remaining is None else max(0.0, remaining - _MARGIN)):
                return await follower.backend.apply(effects)
        except TimeoutError:
            return None
        except StorageError as error:
            if means_unavailable(error, 0.0, self._policy.patience):
                follower.failed(error)
            return None

    def _missed(self, context: OperationContext, leader: Leg, follower: Leg, count: int) -> None:
        follower.missed()
        context.durability = "one"
        context.degraded = True
        telemetry.event(telemetry.FOLLOWER_MISSED, store=follower.name, operations=count)
        if leader.durability < self._policy.floor:
            raise StorageConnectionError(
                f"{follower} did not take the write, and {leader} alone is not durable enough "
                f"(durable_at_least is {self._policy.floor.name.lower()})",
                backend=follower.name,
            )


def _settle_outcome(error: StorageError, maybe_applied: bool) -> None:
    """``not_applied`` only if every attempt on every leg was (R10)."""
    if maybe_applied:
        error.outcome = "unknown"
