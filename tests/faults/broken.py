"""The bugs that this library exists to prevent, each as a small layer: what does not catch them proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from aiecs_resilient.errors import StorageError
from aiecs_resilient.interface import Backend, Json
from aiecs_resilient.layers import Layer, UniformLayer
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.operations import CREATE_SESSION, Effect, Operation, new_op_id
from aiecs_resilient.records import Applied, Mutation, RecordPage, RecordRef

Results = list[Applied | StorageError]


class DropsTheIdentity(Layer):
    """What reaches the store has an identity of its own each time, so it recognises nothing."""

    layer_name = "drops_the_identity"

    async def apply(self, mutations: Sequence[Mutation]) -> Results:
        return await self.inner.apply([replace(mutation, op_id=new_op_id()) for mutation in mutations])


class RetriesUnderANewIdentity(Layer):
    """It tries again, and says that it is something else."""

    layer_name = "retries_under_a_new_identity"

    async def apply(self, mutations: Sequence[Mutation]) -> Results:
        try:
            return await self.inner.apply(mutations)
        except StorageError:
            return await self.inner.apply(
                [replace(mutation, op_id=f"{mutation.op_id}/again") for mutation in mutations]
            )


class AnswersBeforeItIsDurable(UniformLayer):
    """True at once, and the write is made later, if at all."""

    layer_name = "answers_before_it_is_durable"

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.later: set[asyncio.Task[Any]] = set()

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        if op.effect is Effect.READ or op is CREATE_SESSION:
            return await call(*args, **kwargs)
        task = asyncio.ensure_future(call(*args, **kwargs))
        self.later.add(task)
        task.add_done_callback(self._forget)
        return True

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.later.discard(task)
        if not task.cancelled():
            task.exception()


class ClosesMarksTooEarly(Layer):
    """The mark goes when the store has the write, not when its peer has it."""

    layer_name = "closes_marks_too_early"

    async def apply(self, mutations: Sequence[Mutation]) -> Results:
        results = await self.inner.apply(mutations)
        done = [
            RecordRef(mutation.key, mutation.op_id, result.stamp, result.rank)
            for mutation, result in zip(mutations, results, strict=True)
            if isinstance(result, Applied) and mutation.mark
        ]
        await self.inner.close_marks(done)
        return results


class NeverReconciles(Layer):
    """Whoever asks for what the peer lacks is told that there is nothing."""

    layer_name = "never_reconciles"

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        return RecordPage([], None)


class ReconcilesOutOfOrder(Layer):
    """Of several records that are replayed together, the last gets the place of the first."""

    layer_name = "reconciles_out_of_order"

    async def apply(self, mutations: Sequence[Mutation]) -> Results:
        replays = [mutation for mutation in mutations if mutation.replay]
        stamps = sorted((mutation.stamp for mutation in replays), reverse=True)
        shuffled = iter(
            [replace(mutation, stamp=stamp) for mutation, stamp in zip(replays, stamps, strict=True)]
        )
        return await self.inner.apply(
            [next(shuffled) if mutation.replay else mutation for mutation in mutations]
        )


class CallsAPingHealth(Layer):
    """It answers, so it is healthy."""

    layer_name = "calls_a_ping_health"

    async def health_check(self) -> Json:
        return {"status": "healthy", "storage_backend": "any", "redis_connected": True, "issues": []}


class SwallowsCancels(UniformLayer):
    """Whoever goes away is told that all went well."""

    layer_name = "swallows_cancels"

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return await call(*args, **kwargs)
        except asyncio.CancelledError:
            if op.effect is Effect.READ:
                raise
            return True


class Slow(UniformLayer):
    """No bug: a store that takes its time, so that callers can go away before it has done anything."""

    layer_name = "slow"

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        await asyncio.sleep(0.004)
        return await call(*args, **kwargs)


class ForgetsWhoAsked(Layer):
    """Now and then a reader gets what belongs to somebody else."""

    layer_name = "forgets_who_asked"
    other: ClassVar[str | None] = None

    async def get_conversation_history(
        self, session_id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> list[Json]:
        mine, ForgetsWhoAsked.other = ForgetsWhoAsked.other or session_id, session_id
        return await self.inner.get_conversation_history(mine, limit, before=before, after=after)


class BlamesTheStoreForItsCallers(CircuitBreaker):
    """Every error counts, also a caller's mistake."""

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        async def judged() -> Any:
            try:
                return await call(*args, **kwargs)
            except StorageError as error:
                error.transient = True
                raise

        return await super().around(op, judged)
