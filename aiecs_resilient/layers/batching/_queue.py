"""Writes that wait to be sent together: what fits, whose turn it is, and who has waited for too long. No I/O, no tasks.

Writes of one key keep their order and are never in two batches at once; keys take turns, so that a busy session delays no
other. The queue is bounded: who finds no room waits outside, in line, and is refused when that takes too long.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

from ...errors import DeadlineExceededError, OverloadedError, StorageError
from ...operations import OperationContext
from ...records import Applied, Mutation

OVERHEAD_BYTES = 256
"""What a write takes beside its values: ids, stamps, names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How much goes together, and how much may wait.

    Attributes:
        max_items, max_bytes: of one batch.
        max_pending, max_pending_bytes: that may wait for their batch.
        patience: seconds that a write waits for room among them.
    """

    max_items: int
    max_bytes: int
    max_pending: int
    max_pending_bytes: int
    patience: float


class Call:
    """One caller's writes, and who waits for them.

    Attributes:
        context: of the caller's operation; told who served it.
        future: done when every write has its result, or the call is given up.
        results: as far as they are known, in the order of the writes.
        failure: why a part of it could not be written; the store failed, it refused nothing.
        due: seconds on the loop's clock at which it is given up, or None.
        sent: a part of it has left the queue.
    """

    __slots__ = ("bytes", "context", "due", "failure", "future", "items", "left", "results", "sent")

    def __init__(self, context: OperationContext, mutations: Sequence[Mutation]) -> None:
        self.context = context
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.items = [Item(mutation, self, index) for index, mutation in enumerate(mutations)]
        self.bytes = sum(item.bytes for item in self.items)
        self.results: list[Applied | StorageError | None] = [None] * len(self.items)
        self.left = len(self.items)
        self.failure: BaseException | None = None
        self.due = context.deadline
        self.sent = False

    def settle(
        self, item: Item, result: Applied | StorageError | None, failure: BaseException | None
    ) -> None:
        """One of its writes has an end: a result, or the store's failure."""
        self.results[item.index] = result
        self.failure = self.failure or failure
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)

    def give_up(self, error: BaseException) -> None:
        """Nobody waits any longer."""
        if not self.future.done():
            self.failure = error
            self.future.set_result(None)

    @property
    def waiting(self) -> bool:
        """Somebody still waits."""
        return not self.future.done()


class Item:
    """One write of a call."""

    __slots__ = ("bytes", "call", "index", "mutation")

    def __init__(self, mutation: Mutation, call: Call, index: int) -> None:
        self.mutation = mutation
        self.call = call
        self.index = index
        self.bytes = size_of(mutation)


def size_of(mutation: Mutation) -> int:
    """About how many bytes it takes on its way: exact enough to bound memory and messages."""
    size = OVERHEAD_BYTES + len(mutation.key)
    for value in mutation.body.values():
        if isinstance(value, (bytes, str)):
            size += len(value)
        elif isinstance(value, dict):
            fields = cast("dict[str, bytes]", value)
            size += sum(len(name) + len(held) for name, held in fields.items())
    return size


class CommitQueue:
    """Calls in order of arrival, handed out in batches.

    Attributes:
        items, bytes: that wait for their batch.
    """

    def __init__(self, name: str, limits: QueueLimits) -> None:
        self._name = name
        self._limits = limits
        self._waiting: dict[str, dict[Item, None]] = {}  # by key; dicts, because any of them may be given up
        self._ready: OrderedDict[str, None] = OrderedDict()  # keys with writes that may be sent now, in turn
        self._sendable = 0  # writes of those keys
        self._busy: set[str] = set()  # keys with writes under way
        self._watched: dict[str, asyncio.Future[None]] = {}  # who wants to know when such a key is free
        self._outside: OrderedDict[Call, None] = OrderedDict()
        self._live: dict[Call, None] = {}  # every call that somebody waits for
        self.items = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        """Somebody waits, inside or outside."""
        return bool(self.items or self._outside)

    @property
    def outside(self) -> int:
        """Calls that wait for room."""
        return len(self._outside)

    @property
    def full(self) -> bool:
        """A batch that is sent now is as large as one may be."""
        return self._sendable >= self._limits.max_items or bool(
            self._sendable and self.bytes >= self._limits.max_bytes
        )

    def add(self, call: Call, now: float) -> None:
        """Let it in, or have it wait outside for its turn."""
        self._live[call] = None
        if not self._outside and self._fits(call):
            self._admit(call)
            return
        room_by = now + self._limits.patience
        call.due = room_by if call.due is None else min(call.due, room_by)
        self._outside[call] = None

    def remove(self, call: Call) -> None:
        """Its caller has gone: what was not sent is not written."""
        if self._live.pop(call, _GONE) is _GONE:
            return
        if self._outside.pop(call, _GONE) is _GONE:
            for item in call.items:
                self._withdraw(item)
        self._let_in()

    def claim(self, keys: Iterable[str]) -> None:
        """Writes of these keys are under way without having been queued."""
        self._busy.update(keys)

    def release(self, keys: Iterable[str]) -> None:
        """They have ended: what waits for them may be sent."""
        for key in keys:
            self._busy.discard(key)
            if key in self._waiting and key not in self._ready:
                self._ready[key] = None
                self._sendable += len(self._waiting[key])
            if key in self._watched:
                self._watched.pop(key).set_result(None)

    async def settled(self, key: str) -> None:
        """Wait for what is under way for this key now."""
        if key in self._busy:
            if key not in self._watched:
                self._watched[key] = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._watched[key])

    def take(self) -> list[Item]:
        """The next batch, whose keys are busy until they are released; empty if nothing may be sent now."""
        batch: list[Item] = []
        size = 0
        while self._ready and len(batch) < self._limits.max_items and size < self._limits.max_bytes:
            key = next(iter(self._ready))
            before = len(batch)
            for item in list(islice(self._waiting[key], self._limits.max_items - before)):
                if batch and size + item.bytes > self._limits.max_bytes:
                    break
                self._withdraw(item)
                item.call.sent = True
                batch.append(item)
                size += item.bytes
            if len(batch) == before:
                break  # it does not fit any more, and is the first of the next batch
            if key in self._ready:  # not all of it was taken
                del self._ready[key]
                self._sendable -= len(self._waiting[key])
            self._busy.add(key)
        self._let_in()
        return batch

    def settle(
        self, item: Item, result: Applied | StorageError | None, failure: BaseException | None
    ) -> None:
        """A write that was taken has an end."""
        item.call.settle(item, result, failure)
        if not item.call.left:
            self._live.pop(item.call, None)

    def expire(self, now: float) -> list[Call]:
        """Give up the calls whose time has come."""
        late = [call for call in self._live if call.due is not None and call.due <= now]
        for call in late:
            self.refuse(call, self._too_late(call, now))
        return late

    def next_due(self) -> float | None:
        """When the next call has to be given up."""
        return min((call.due for call in self._live if call.due is not None), default=None)

    def refuse(self, call: Call, error: BaseException) -> None:
        """Give up this call with an error; what was not sent is not written."""
        self.remove(call)
        call.give_up(error)

    def calls(self) -> list[Call]:
        """All that somebody waits for."""
        return list(self._live)

    # ------------------------------------------------------------------ inside

    def _fits(self, call: Call) -> bool:
        if not self.items:
            return True  # alone it may be larger than the limits
        return (
            self.items + len(call.items) <= self._limits.max_pending
            and self.bytes + call.bytes <= self._limits.max_pending_bytes
        )

    def _admit(self, call: Call) -> None:
        for item in call.items:
            key = item.mutation.key
            queue = self._waiting.get(key)
            if queue is None:
                queue = self._waiting[key] = {}
                if key not in self._busy:
                    self._ready[key] = None
            queue[item] = None
            self._sendable += key in self._ready
        self.items += len(call.items)
        self.bytes += call.bytes

    def _let_in(self) -> None:
        while self._outside and self._fits(next(iter(self._outside))):
            call, _ = self._outside.popitem(last=False)
            call.due = call.context.deadline
            self._admit(call)

    def _withdraw(self, item: Item) -> None:
        key = item.mutation.key
        queue = self._waiting.get(key)
        if queue is None or item not in queue:
            return  # sent already
        del queue[item]
        self.items -= 1
        self.bytes -= item.bytes
        self._sendable -= key in self._ready
        if not queue:
            del self._waiting[key]
            self._ready.pop(key, None)

    def _too_late(self, call: Call, now: float) -> StorageError:
        if call in self._outside:
            return OverloadedError(
                f"{self.items:,} writes ({self.bytes:,} bytes) wait for {self._name} already, and there was no room in time: "
                "slow down, or raise max_pending and max_pending_bytes",
                backend=self._name,
                attempts=0,
            )
        if not call.sent:
            return DeadlineExceededError(
                "the deadline passed while the write waited for its batch; the store is slow, or the deadline too short",
                outcome="not_applied",
                backend=self._name,
                attempts=0,
            )
        return DeadlineExceededError(
            "the deadline passed while the batch of this write was under way", backend=self._name
        )


_GONE = object()
