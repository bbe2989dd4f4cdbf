"""Two stores, one truth: no acknowledged write lost, none doubled, the same order on both sides.

A write goes to the leader, which stamps it and keeps, in the same atomic step, a mark "the peer lacks this"; then its
effect is replayed on the follower, and the mark is closed lazily. A crash anywhere leaves a mark, never a loss. When the
leader is unavailable the other store takes over for all processes, by epoch; when it has returned and caught up, the
primary leads again. The rules (R1 to R12) and what is honestly promised are in ``docs/dual-write.md``.

Place: below cache and batching (one coherent cache over both stores), above each leg's own ``retry``,
``circuit_breaker`` and ``timeout`` (their state is about one store)::

    right   deadline -> dual_write{primary: retry -> circuit_breaker -> timeout -> redis, fallback: … -> postgresql}
    wrong   retry -> dual_write{…}     a takeover would be repeated instead of the attempt that failed

Events: ``failover.completed``, ``failback.started``, ``failback.completed``, ``follower.missed``, ``reconcile.*``.
Cancellation: outcome ``unknown``; if the leader has the write, its mark finishes the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

from cachetools import LRUCache

from .. import telemetry
from ..backends._base import RecordingBackend
from ..clock import monotonic
from ..codec import check_id
from ..errors import (
    DeadlineExceededError,
    IncompleteStoreError,
    InvalidValueError,
    StaleRouteError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
    UnsupportedOperationError,
)
from ..interface import Backend, Json, OperationOutcome
from ..operations import (
    APPLY,
    BATCH_GET_SESSIONS,
    GET_CHECKPOINT,
    GET_CONVERSATION_HISTORY,
    GET_SESSION,
    GET_TASK_CONTEXT,
    GET_WRITES,
    LIST_CHECKPOINTS,
    LIST_SESSIONS,
    LIST_TASK_CONTEXTS,
    LIST_THREADS,
    OPERATION_OUTCOME,
    READ_IDLE,
    Operation,
    OperationContext,
    begin,
    finish,
)
from ..records import Applied, Durability, IdleKey, Mutation, RecordRef, Route
from ..units import Count, Seconds, SecondsOrZero
from ._guesses import finds_nothing
from ._legs import Leg, means_unavailable
from ._replication import Settler
from ._routing import Router

T = TypeVar("T")
_ROUTE_CHANGES = 4  # within one operation; more means that the lead flaps faster than a call takes
_MARGIN = 0.01  # seconds before the deadline at which a call settles for what it has
_HEALTH_LIMIT = 1.0  # seconds that health waits for one store: what hangs for so long is not well


class DualWrite(RecordingBackend):
    """A primary and a fallback store as one backend.

    Args:
        primary: leads whenever it can.
        fallback: leads while the primary cannot. Both must be our own backends (or chains over them): a store that knows
            no ``op_id`` cannot replay safely.
        poll: seconds between two looks at both stores, and the bound within which another process's takeover is seen.
        dwell: seconds that the fallback leads at least before the primary leads again, against flapping.
        lag: seconds after which a record that the follower lacks counts as missed, and health says so.
        patience: seconds of silence after which running into the caller's own deadline counts against the leader.
        settle_after: seconds that closed marks are collected before they are written.
        loss_window: seconds of its last writes that a restarted store may have lost; they are offered to it anew.
        page: records per step of reconciliation.
        tracked_keys: sessions and threads whose last seen stamp this process remembers, for monotonic reads.
        durable_at_least: what one store must survive for its acknowledgement alone to count:
            ``volatile`` nothing, ``process`` a killed server, ``host`` a power loss, ``replicated`` a lost machine.
        on_incomplete: what a read does when the only store that can answer may lack operations and the answer would be
            "not found" or older than one seen before: ``raise`` IncompleteStoreError, or answer and ``flag`` it as stale.
    """

    layer_name: ClassVar[str] = "dual_write"
    branches: ClassVar[tuple[str, str]] = ("primary", "fallback")
    kind = "dual_write"

    def __init__(
        self,
        primary: Backend,
        fallback: Backend,
        *,
        poll: Seconds = 1.0,
        dwell: SecondsOrZero = 5.0,
        lag: Seconds = 2.0,
        patience: Seconds = 0.5,
        settle_after: SecondsOrZero = 0.05,
        loss_window: SecondsOrZero = 5.0,
        page: Count = 200,
        tracked_keys: Count = 100_000,
        durable_at_least: Literal["volatile", "process", "host", "replicated"] = "process",
        on_incomplete: Literal["raise", "flag"] = "raise",
    ) -> None:
        super().__init__(name=f"{primary.name}+{fallback.name}")
        if primary.name == fallback.name:
            raise InvalidValueError(
                f"both stores are called {primary.name!r}; routing is kept in them by name, so give them different ones"
            )
        for leg in (primary, fallback):
            if not leg.honours_op_id:
                raise UnsupportedOperationError(
                    f"{leg.name!r} cannot be a leg of dual_write: it knows no op_id, so a replay would be a second effect"
                )
        self._router = Router(
            Leg("primary", primary),
            Leg("fallback", fallback),
            poll=poll,
            dwell=dwell,
            lag=lag,
            loss_window=loss_window,
            page=page,
        )
        self._settler = Settler(interval=settle_after)
        self._patience = patience
        self._floor = Durability[durable_at_least.upper()]
        self._flag_incomplete = on_incomplete == "flag"
        self._seen: LRUCache[str, int] = LRUCache(tracked_keys)

    @property
    def router(self) -> Router:
        """Who leads, and the state of both legs; for health, tools and tests."""
        return self._router

    def __repr__(self) -> str:
        router = self._router
        state = f"epoch {router.route.epoch}, {router.leader} leads{', degraded' if router.degraded else ''}"
        return f"<DualWrite {state} over {router.primary.backend!r} and {router.fallback.backend!r}>"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        if self._open:
            return True
        legs = self._router.legs
        results = await asyncio.gather(*(leg.backend.initialize() for leg in legs), return_exceptions=True)
        for leg, result in zip(legs, results, strict=True):
            if isinstance(
                result, StorageConnectionError
            ):  # one may be away: its schema is made when it is back
                leg.failed(result)
            elif isinstance(result, BaseException):
                raise result
        await self._router.start()
        self._settler.start()
        self._open = True
        return True

    async def close(self) -> None:
        if self._open:
            self._open = False
            await self._settler.stop()
            await self._router.stop()
        await asyncio.gather(*(leg.backend.close() for leg in self._router.legs))

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._require_open()
        context, token = begin(APPLY)
        asked: list[Leg] = []
        try:
            return await self._apply(context, mutations, asked)
        except BaseException as error:
            if not isinstance(error, StorageError) or error.outcome == "unknown":
                # Each store that was asked may have it alone, and show it, until its mark has brought it to the other.
                for leg in asked:
                    self._router.peer_of(leg).doubt(mutation.key for mutation in mutations)
            raise
        finally:
            finish(token)

    async def _apply(
        self, context: OperationContext, mutations: Sequence[Mutation], asked: list[Leg]
    ) -> list[Applied | StorageError]:
        """To the leader, then to its follower; again elsewhere, under a higher rank, if the lead moved meanwhile."""
        results: list[Applied | StorageError | None] = [None] * len(mutations)
        open_items = list(range(len(mutations)))
        maybe_applied = False
        problem: StorageError | None = None
        for rank in range(_ROUTE_CHANGES):
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
                if not self._counts_against(leader, error, start):
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
            await self._router.refresh(route, self._patience)
        raise StorageConnectionError(
            f"the lead moved {_ROUTE_CHANGES} times during this write; try again ({problem})",
            outcome="unknown" if maybe_applied else "not_applied",
        ) from problem

    def _certain(
        self,
        context: OperationContext,
        leader: Leg,
        key: str,
        answer: Applied | StorageError,
        maybe_applied: bool,
    ) -> Applied | StorageError:
        """ "There is no such session" from a store that may lack it is no answer to a write either (R7)."""
        if isinstance(answer, IncompleteStoreError):
            _settle_outcome(answer, maybe_applied)
        if not isinstance(answer, Applied) or answer.answer or not leader.may_lack(key):
            return answer
        context.stale = True
        if self._flag_incomplete:
            telemetry.event(telemetry.ANSWER_STALE, store=leader.name, behind=False)
            return answer
        refused = _no_guess(leader)
        _settle_outcome(refused, maybe_applied)
        return refused

    async def _ask_to_lead(
        self, context: OperationContext, leader: Leg, staged: Sequence[Mutation]
    ) -> list[Applied | StorageError]:
        """The leader's part. What it could only answer by a guess it is not asked: it would record that under the identity."""
        guesses: set[int] = set()
        if not self._flag_incomplete:
            for place, mutation in enumerate(staged):
                if leader.may_lack(mutation.key) and await self._is_guess(context, leader, mutation):
                    guesses.add(place)
        if not guesses:
            return await self._lead(context, leader, staged)
        context.stale = True
        rest = [mutation for place, mutation in enumerate(staged) if place not in guesses]
        answers = iter(await self._lead(context, leader, rest) if rest else ())
        return [_no_guess(leader) if place in guesses else next(answers) for place in range(len(staged))]

    async def _is_guess(self, context: OperationContext, leader: Leg, mutation: Mutation) -> bool:
        if not await finds_nothing(leader.backend, mutation):
            return False
        wait = min(context.remaining() or self._patience, self._patience)
        return not await self._router.caught_up(leader, mutation.key, wait)

    def _staged(self, mutation: Mutation, route: Route, leader: Leg, rank: int) -> Mutation:
        proposal = max(mutation.stamp, self._seen.get(mutation.key, 0) + 1)
        return replace(mutation, epoch=route.epoch, home=leader.name, mark=True, rank=rank, stamp=proposal)

    async def _lead(
        self, context: OperationContext, leader: Leg, staged: Sequence[Mutation]
    ) -> list[Applied | StorageError]:
        """The leader's part, in at most half of what is left of the deadline: a hung leader must leave time for the other."""
        limit, start = context.deadline, monotonic()
        if limit is None:
            return await leader.backend.apply(staged)
        context.deadline = start + (limit - start) / 2
        try:
            async with asyncio.timeout_at(context.deadline):
                return await leader.backend.apply(staged)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{leader} gave no answer within its half of the deadline", backend=leader.name
            ) from error
        finally:
            context.deadline = limit

    def _counts_against(self, leader: Leg, error: StorageError, start: float) -> bool:
        silent_for = monotonic() - start if leader.up else self._patience
        return means_unavailable(error, silent_for, self._patience)

    async def _take_over(self, route: Route, cause: StorageError, maybe_applied: bool) -> None:
        try:
            await self._router.take_over(route, cause)
        except StorageError as error:
            _settle_outcome(error, maybe_applied)
            raise

    def _require_durable(self, leader: Leg, follower: Leg, maybe_applied: bool) -> None:
        """An acknowledgement must not rest on a store that forgets everything when it is restarted."""
        if leader.durability >= self._floor or (follower.up and follower.durability >= self._floor):
            return
        raise StorageConnectionError(
            f"only {leader} can take the write, and what it holds survives {leader.durability.name.lower()} failures at most; "
            f"durable_at_least is {self._floor.name.lower()}",
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
                self._saw(mutation.key, answer.stamp)
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
            if means_unavailable(error, 0.0, self._patience):
                follower.failed(error)
            return None

    def _missed(self, context: OperationContext, leader: Leg, follower: Leg, count: int) -> None:
        follower.missed()
        context.durability = "one"
        context.degraded = True
        telemetry.event(telemetry.FOLLOWER_MISSED, store=follower.name, operations=count)
        if leader.durability < self._floor:
            raise StorageConnectionError(
                f"{follower} did not take the write, and {leader} alone is not durable enough "
                f"(durable_at_least is {self._floor.name.lower()})",
                backend=follower.name,
            )

    def _saw(self, key: str, stamp: int) -> None:
        if stamp > self._seen.get(key, 0):
            self._seen[key] = stamp

    # ------------------------------------------------------------------ reads

    async def _read(
        self,
        operation: Operation,
        key: str | None,
        call: Callable[[Backend], Awaitable[T]],
        *,
        absent: Callable[[T], bool],
    ) -> T:
        """From the leader; from the other store if it takes over. Never "not found" from a store that may lack it (R7)."""
        self._require_open()
        context, token = begin(operation)
        try:
            problem: StorageError | None = None
            for _attempt in range(_ROUTE_CHANGES):
                route, leader, start = self._router.route, self._router.leader, monotonic()
                # What was seen before it is asked: a write that overtakes this read is not missing from its answer.
                seen = 0 if key is None else self._seen.get(key, 0)
                try:
                    answer = await self._ask_leader(context, leader, call)
                except StorageError as error:
                    if not self._counts_against(leader, error, start):
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
                    wait = min(context.remaining() or self._patience, self._patience)
                    if unsure and await self._router.caught_up(leader, key, wait):
                        continue
                    self._doubt(context, leader, behind=behind, refuse=behind or absent(answer))
                if key is not None and context.clock is not None:
                    self._saw(key, context.clock)
                return answer
            raise StorageConnectionError(
                f"no store could answer ({problem})", outcome="not_applied"
            ) from problem
        finally:
            finish(token)

    async def _ask_leader(
        self, context: OperationContext, leader: Leg, call: Callable[[Backend], Awaitable[T]]
    ) -> T:
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

    def _doubt(self, context: OperationContext, leader: Leg, *, behind: bool, refuse: bool) -> None:
        """The answer may lack operations: it is flagged; "not found", or less than was seen before, is refused."""
        context.stale = True
        telemetry.event(telemetry.ANSWER_STALE, store=leader.name, behind=behind)
        if refuse and not self._flag_incomplete:
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

    async def get_session(self, session_id: str) -> Json | None:
        check_id(session_id, "session_id")
        return await self._read(
            GET_SESSION, session_id, lambda store: store.get_session(session_id), absent=_nothing
        )

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        return await self._read(
            BATCH_GET_SESSIONS,
            None,
            lambda store: store.batch_get_sessions(session_ids),
            absent=lambda found: None in found,
        )

    async def list_sessions(
        self,
        *,
        status: str | None = None,
        user_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Json]:
        return await self._read(
            LIST_SESSIONS,
            None,
            lambda store: store.list_sessions(status=status, user_id=user_id, after=after, limit=limit),
            absent=lambda found: len(found) < limit,
        )

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        check_id(session_id, "session_id")
        return await self._read(
            GET_CONVERSATION_HISTORY,
            session_id,
            lambda store: store.get_conversation_history(session_id, limit, before=before, after=after),
            absent=_nothing,
        )

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        check_id(thread_id, "thread_id")
        return await self._read(
            GET_CHECKPOINT,
            thread_id,
            lambda store: store.get_checkpoint(thread_id, checkpoint_id),
            absent=_nothing,
        )

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        check_id(thread_id, "thread_id")
        return await self._read(
            LIST_CHECKPOINTS,
            thread_id,
            lambda store: store.list_checkpoints(thread_id, limit),
            absent=_nothing,
        )

    async def list_threads(self, *, after: str | None = None, limit: int = 100) -> list[str]:
        return await self._read(
            LIST_THREADS,
            None,
            lambda store: store.list_threads(after=after, limit=limit),
            absent=lambda found: len(found) < limit,
        )

    async def get_writes(self, thread_id: str, checkpoint_id: str) -> list[tuple[Any, ...]]:
        check_id(thread_id, "thread_id")
        return await self._read(
            GET_WRITES, thread_id, lambda store: store.get_writes(thread_id, checkpoint_id), absent=_nothing
        )

    async def get_task_context(self, session_id: str) -> Any | None:
        check_id(session_id, "session_id")
        return await self._read(
            GET_TASK_CONTEXT, session_id, lambda store: store.get_task_context(session_id), absent=_nothing
        )

    async def list_task_contexts(self, session_id: str, limit: int = 10) -> list[Json]:
        check_id(session_id, "session_id")
        return await self._read(
            LIST_TASK_CONTEXTS,
            session_id,
            lambda store: store.list_task_contexts(session_id, limit),
            absent=_nothing,
        )

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        return await self._read(
            READ_IDLE, None, lambda store: store.read_idle(before, limit), absent=lambda _found: False
        )

    async def operation_outcome(self, key: str, op_id: str) -> OperationOutcome:
        """``applied`` if either store knows it; ``not_applied`` only when both say so."""
        self._require_open()
        context, token = begin(OPERATION_OUTCOME)
        try:
            answers = await asyncio.gather(
                *(leg.backend.operation_outcome(key, op_id) for leg in self._router.legs),
                return_exceptions=True,
            )
        finally:
            finish(token)
        if "applied" in answers:
            return "applied"
        for leg, answer in zip(self._router.legs, answers, strict=True):
            if isinstance(answer, StorageError):
                raise IncompleteStoreError(
                    f"{leg} cannot say whether {op_id!r} was applied: {answer}", backend=leg.name
                ) from answer
            if isinstance(answer, BaseException):
                raise answer
        context.degraded = context.degraded or self._router.degraded
        return "not_applied"

    # ------------------------------------------------------------------ health and metrics

    async def health_check(self) -> Json:
        router = self._router
        reports = await asyncio.gather(*(_leg_health(leg) for leg in router.legs), return_exceptions=True)
        legs: Json = {}
        issues: list[str] = []
        usable = 0
        for leg, answer in zip(router.legs, reports, strict=True):
            report: Json
            if isinstance(answer, StorageError):
                report = {"status": "unhealthy", "redis_connected": False, "issues": [str(answer)]}
            elif isinstance(answer, BaseException):
                raise answer
            else:
                report = answer
            usable += report["status"] != "unhealthy"
            issues += [f"{leg}: {issue}" for issue in report["issues"]]
            legs[leg.role] = {
                **report,
                "name": leg.name,
                "up": leg.up,
                "completeness": leg.completeness.value,
            }
            if leg.up and not leg.complete:
                issues.append(f"{leg} may lack operations that its peer holds; reconciliation is under way")
        if router.leader is router.fallback:
            issues.append(
                f"{router.fallback} leads since the primary became unavailable (epoch {router.route.epoch})"
            )
        issues += [f"a record could not be replayed: {error}" for error in router.refused[:3]]
        if router.problem is not None:
            issues.append(f"the stores cannot be reconciled: {router.problem!r}")
        healthy = self._open and usable == 2 and not issues and not router.degraded
        return {
            "status": "healthy" if healthy else "degraded" if self._open and usable else "unhealthy",
            "storage_backend": self.kind,
            "redis_connected": any(report["redis_connected"] for report in legs.values()),
            "issues": issues,
            "leader": router.leader.name,
            "epoch": router.route.epoch,
            "legs": legs,
        }

    async def get_metrics(self) -> Json:
        self._require_open()
        router = self._router
        try:
            metrics = await router.leader.backend.get_metrics()
        except StorageError:
            metrics = await router.follower.backend.get_metrics()
        metrics["layers"] = {
            **metrics.get("layers", {}),
            self.layer_name: {
                "epoch": router.route.epoch,
                "leader": router.leader.name,
                "degraded": router.degraded,
                "replayed": router.replayed,
                "open_marks": {
                    leg.name: leg.state.open_marks if leg.state is not None else None for leg in router.legs
                },
            },
        }
        return metrics


async def _leg_health(leg: Leg) -> Json:
    """A store that hangs must not make health hang: it is unhealthy, and that is the answer."""
    try:
        async with asyncio.timeout(_HEALTH_LIMIT):
            return await leg.backend.health_check()
    except TimeoutError as error:
        raise StorageTimeoutError(
            f"no answer to a health check within {_HEALTH_LIMIT:g} s", backend=leg.name
        ) from error


def _nothing(answer: object) -> bool:
    return answer is None or answer == []


def _no_guess(leader: Leg) -> IncompleteStoreError:
    telemetry.event(telemetry.ANSWER_STALE, store=leader.name, behind=False)
    return IncompleteStoreError(
        f"{leader} found nothing to write to, and may lack what only its peer holds. "
        "Try again, or set on_incomplete: flag to be answered all the same",
        backend=leader.name,
    )


def _settle_outcome(error: StorageError, maybe_applied: bool) -> None:
    """``not_applied`` only if every attempt on every leg was (R10)."""
    if maybe_applied:
        error.outcome = "unknown"
