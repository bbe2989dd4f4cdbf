"""Group commit: writes that come while others are under way go together, in one round trip and one commit.

Nothing waits for company: a write that finds nobody before it is sent at once, by its own caller. What comes meanwhile is
the next batch, sent when that one has ended. So batches are as large as the load makes them, and there is no timer.

Every caller waits until its own write is durable, and learns of its own write only. A caller that goes away takes back what
was not sent, and disturbs nobody. If a batch fails for a reason that may lie in one of its writes, it is halved until that
one is found; all of them carry their identities, so what was applied before is not applied again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ... import telemetry
from ...clock import monotonic, spawn
from ...errors import BackendClosedError, OverloadedError, StorageError
from ...operations import APPLY, OperationContext, begin, finish
from ...records import Applied, Mutation
from .._sharing import account, befalls_all, longest, own_copy, tell
from ._queue import Call, CommitQueue, Item, QueueLimits

Results = list[Applied | StorageError]

TURNS = 2
"""Turns of the loop between two batches: callers that were just answered get to send their next write along."""

EXPIRY_STEP = 0.005
"""Seconds by which a call may be given up late, so that thousands of deadlines need one timer."""


@dataclass(slots=True)
class CommitCounts:
    """How well commits are shared.

    Attributes:
        batches: sent together, of two writes or more.
        batched: writes in them.
        alone: writes that found nobody to go with.
        largest: writes in the largest batch.
        isolated: batches that failed and were halved to find the write at fault.
        refused: calls that found no room in time.
        expired: calls whose deadline passed.
    """

    batches: int = 0
    batched: int = 0
    alone: int = 0
    largest: int = 0
    isolated: int = 0
    refused: int = 0
    expired: int = 0


class Apply(Protocol):
    """How a store takes many writes at once."""

    def __call__(self, mutations: Sequence[Mutation]) -> Awaitable[Results]: ...


class GroupCommit:
    """Sends writes together.

    Args:
        apply: the store's.
        name: the store's, for errors.
        limits: of batches and of the queue.
        lanes: batches under way at once at the most. The second is sent when it is full, so that small loads share one.
        linger: seconds that a batch which is not full may wait for more, if it formed behind another one.
        counts: where to count.
    """

    def __init__(
        self,
        apply: Apply,
        *,
        name: str,
        limits: QueueLimits,
        lanes: int,
        linger: float,
        counts: CommitCounts,
    ) -> None:
        self._apply = apply
        self._name = name
        self._most_lanes = lanes
        self._linger = linger
        self._counts = counts
        self._queue = CommitQueue(name, limits)
        self._lanes = 0  # of callers and tasks that send
        self._runners: set[asyncio.Task[None]] = set()
        self._full: asyncio.Event | None = None
        self._idle: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queue(self) -> CommitQueue:
        """What waits."""
        return self._queue

    async def write(self, context: OperationContext, mutations: Sequence[Mutation]) -> Results:
        """Returns when all of these are durable or refused; raises if the store failed."""
        if not self._lanes:
            return await self._at_once(context, mutations)
        call = Call(context, mutations)
        self._queue.add(call, monotonic())
        if call.due is not None:
            self._watch(call.due)
        if self._queue.full:
            if self._full is not None:
                self._full.set()
            self._widen()
        try:
            await call.future
        except asyncio.CancelledError:
            self._queue.remove(call)
            raise
        if call.failure is not None:
            if isinstance(call.failure, StorageError) and any(
                isinstance(held, Applied) for held in call.results
            ):
                call.failure.outcome = "unknown"
            raise call.failure
        return [result for result in call.results if result is not None]

    async def drain(self, seconds: float) -> None:
        """Wait until everything that was accepted has its end, but no longer than this; the rest is refused."""
        if not self._lanes:
            return
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            for call in self._queue.calls():
                error = BackendClosedError(
                    f"closed {seconds:g} s after close() was called, while this write was "
                    + ("under way" if call.sent else "waiting"),
                    outcome="unknown" if call.sent else "not_applied",
                    backend=self._name,
                )
                self._queue.refuse(call, error)
            for runner in self._runners:
                runner.cancel()
            if self._runners:
                await asyncio.wait(self._runners)
        finally:
            self._idle = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    # ------------------------------------------------------------------ one at a time

    async def _at_once(self, context: OperationContext, mutations: Sequence[Mutation]) -> Results:
        """Nobody is before it: its caller sends it, in its own context, as if this layer were not there."""
        self._lanes += 1
        keys = {mutation.key for mutation in mutations}
        self._queue.claim(keys)
        self._counts.alone += len(mutations)
        before, context.served_by = context.served_by, None
        try:
            results = await self._apply(mutations)
            account(context, self._name)
            return results
        finally:
            context.served_by = context.served_by or before
            self._queue.release(keys)
            self._leave()

    def _start(self) -> None:
        """What has come is sent by a task of nobody's."""
        self._lanes += 1
        runner = spawn(self._run(), name=f"{self._name}: group commit")
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    def _widen(self) -> None:
        if self._queue.full and self._lanes < self._most_lanes:
            self._start()

    def _leave(self) -> None:
        self._lanes -= 1
        if self._lanes:
            self._widen()
        elif self._queue:
            self._start()
        elif self._idle is not None:
            self._idle.set()

    # ------------------------------------------------------------------ many together

    async def _run(self) -> None:
        try:
            while (self._lanes == 1 or self._queue.full) and (batch := self._queue.take()):
                self._widen()
                self._count(len(batch))
                try:
                    await self._send(batch)
                finally:
                    self._queue.release({item.mutation.key for item in batch})
                if len(batch) == 1 and not self._queue:
                    break  # a lone caller again: its next write goes at once
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                if self._linger and self._lanes == 1:
                    await self._company()
        except Exception as error:  # noqa: BLE001  should we be at fault, nobody may wait for ever
            for call in self._queue.calls():
                self._queue.refuse(call, own_copy(error))
        finally:
            self._leave()

    def _count(self, size: int) -> None:
        if size == 1:
            self._counts.alone += 1
            return
        self._counts.batches += 1
        self._counts.batched += size
        self._counts.largest = max(self._counts.largest, size)

    async def _company(self) -> None:
        if not self._queue or self._queue.full:
            return
        self._full = asyncio.Event()
        try:
            async with asyncio.timeout(self._linger):
                await self._full.wait()
        except TimeoutError:
            return
        finally:
            self._full = None

    async def _send(self, batch: Sequence[Item]) -> None:
        """Give each write its result; look for the one at fault if the batch failed for a reason that may lie in one."""
        context, token = begin(APPLY)
        context.deadline = longest(item.call.context for item in batch)
        try:
            results = await self._apply([item.mutation for item in batch])
        except asyncio.CancelledError:
            raise  # close() has given up, and told everybody
        except Exception as error:  # noqa: BLE001  whatever it is, it is told to those who wait
            problem = error
        else:
            account(context, self._name)
            self._settle(batch, results, context)
            return
        finally:
            finish(token)
        if len(batch) == 1 or befalls_all(problem):
            for item in batch:
                self._queue.settle(item, None, own_copy(problem))
            return
        self._counts.isolated += 1
        telemetry.event(telemetry.BATCH_SPLIT, backend=self._name, operations=len(batch), error=problem)
        middle = len(batch) // 2
        await self._send(batch[:middle])
        await self._send(batch[middle:])

    def _settle(
        self, batch: Sequence[Item], results: Sequence[Applied | StorageError], facts: OperationContext
    ) -> None:
        told: OperationContext | None = None
        for item, result in zip(batch, results, strict=True):
            if item.call.context is not told and item.call.waiting:  # the writes of a call stand together
                told = item.call.context
                tell(told, facts)
            self._queue.settle(item, result, None)

    # ------------------------------------------------------------------ deadlines

    def _watch(self, due: float) -> None:
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for call in self._queue.expire(monotonic()):
            if isinstance(call.failure, OverloadedError):
                self._counts.refused += 1
                telemetry.event(telemetry.QUEUE_REFUSED, backend=self._name, pending=self._queue.items)
            else:
                self._counts.expired += 1
                telemetry.event(telemetry.DEADLINE_EXPIRED, backend=self._name, sent=call.sent)
        due = self._queue.next_due()
        if due is not None:
            self._watch(max(due, monotonic() + EXPIRY_STEP))


__all__ = ["Call", "CommitCounts", "GroupCommit", "Item"]
