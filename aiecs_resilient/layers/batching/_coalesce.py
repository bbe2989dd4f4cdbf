"""Reads of one turn of the event loop become one: sixty-four tasks that each want a session cost one round trip.

Nobody waits for a timer: the first read of a turn lets the others of that turn come along, and alone it goes alone, in its
caller's own context. The store is asked after every one of them has called, so none gets an answer older than its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...clock import spawn
from ...operations import Operation, OperationContext, begin, finish
from .._sharing import befalls_all, longest, own_copy, tell

T = TypeVar("T")


@dataclass(slots=True)
class ReadCounts:
    """How well reads are shared.

    Attributes:
        requests: that answered several reads.
        shared: reads that were answered by them.
        alone: reads that went alone.
    """

    requests: int = 0
    shared: int = 0
    alone: int = 0


class _Reader(Generic[T]):
    """One who waits. Afterwards ``answered`` and ``answer``, or ``error``, or neither: then it asks alone."""

    __slots__ = ("answer", "answered", "context", "error", "future", "key")

    answer: T

    def __init__(self, key: str, context: OperationContext) -> None:
        self.key = key
        self.context = context
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered = False
        self.error: BaseException | None = None

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Coalescer(Generic[T]):
    """Joins the reads of one kind.

    Args:
        one: reads for one key.
        many: reads for many keys, answers in their order.
        operation: what ``many`` is called.
        most: keys in one request.
        counts: where to count.
    """

    def __init__(
        self,
        one: Callable[[str], Awaitable[T]],
        many: Callable[[Sequence[str]], Awaitable[list[T]]],
        *,
        operation: Operation,
        most: int,
        counts: ReadCounts,
    ) -> None:
        self._one, self._many = one, many
        self._operation = operation
        self._most = most
        self._counts = counts
        self._turn: list[_Reader[T]] | None = None  # who came in this turn after the first
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, key: str, context: OperationContext) -> T:
        """The answer for this key."""
        turn = self._turn
        if turn is not None and len(turn) + 1 < self._most:
            reader: _Reader[T] = _Reader(key, context)  # not _Reader[T](…), which costs as much as the rest
            turn.append(reader)
            await reader.future
            return await self._answer(reader)
        turn = self._turn = []
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._send(turn, turn)  # the others go without the one who gathered them
            raise
        if not turn:
            self._send(turn, [])
            self._counts.alone += 1
            return await self._one(key)
        reader = _Reader(key, context)
        self._send(turn, [reader, *turn])
        await reader.future
        return await self._answer(reader)

    async def drain(self) -> None:
        """Wait for the reads under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _answer(self, reader: _Reader[T]) -> T:
        if reader.error is not None:
            raise reader.error
        if reader.answered:
            return reader.answer
        self._counts.alone += 1
        return await self._one(reader.key)

    def _send(self, turn: list[_Reader[T]], readers: list[_Reader[T]]) -> None:
        if self._turn is turn:
            self._turn = None
        if readers:
            task = spawn(self._ask(readers), name=f"aiecs: {self._operation.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, readers: list[_Reader[T]]) -> None:
        context, token = begin(self._operation)
        context.deadline = longest(reader.context for reader in readers)
        try:
            answers = await self._many([reader.key for reader in readers])
            for reader, answer in zip(readers, answers, strict=True):
                reader.answer, reader.answered = answer, True
                tell(reader.context, context)
            self._counts.requests += 1
            self._counts.shared += len(readers)
        except Exception as error:  # noqa: BLE001  told to each; or each asks alone, and raises what it then meets
            for reader in readers:
                reader.error = own_copy(error) if befalls_all(error) else None
        finally:
            finish(token)
            for reader in readers:
                reader.wake()
