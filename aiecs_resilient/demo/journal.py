"""What the application asked for and what it was told: one entry per operation, and the same in a history file.

The entries feed the table and the picture. The history file is for the checker of :mod:`aiecs_resilient.testing`, a
separate program that never imports this library; what it finds is the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from ..errors import StorageError
from ..interface import Backend
from ..operations import operation
from ..testing.history import HistoryRecorder, Kind, Outcome

T = TypeVar("T")

OK: Final = "ok"
NOT_APPLIED: Final = "not_applied"
UNKNOWN: Final = "unknown"


class Fact(NamedTuple):
    """What a write leaves behind, in the checker's words: a message, a counter's increment, a value by name."""

    kind: Kind
    name: str
    value: str | int | None


@dataclass(slots=True)
class Entry:
    """One operation. Times are seconds since the load began.

    Attributes:
        what: the method that was called.
        key: session or thread.
        facts: what a write leaves behind; empty for a read.
        outcome: ``ok``, ``not_applied`` or ``unknown``; what it was settled as afterwards is in ``settled``.
        served_by: name of the store that answered.
        degraded: answered while one of two stores was unavailable or behind, and the answer said so.
    """

    op_id: str
    what: str
    key: str
    facts: Sequence[Fact]
    phase: int
    started: float
    ended: float = 0.0
    outcome: Outcome = UNKNOWN
    settled: Outcome | None = None
    error: str | None = None
    served_by: str | None = None
    degraded: bool = False
    stale: bool = False
    durability: str | None = None
    history: list[str] = field(default_factory=list[str])

    @property
    def is_write(self) -> bool:
        return bool(self.facts)

    @property
    def latency(self) -> float:
        return self.ended - self.started


class Journal:
    """Records operations as they are made. ``phase`` is set by whoever conducts the run."""

    def __init__(self, recorder: HistoryRecorder) -> None:
        self.entries: list[Entry] = []
        self.phase = 1
        self.in_flight = 0
        self._recorder = recorder
        self._zero = time.perf_counter()

    def start(self) -> None:
        """The load begins now."""
        self._zero = time.perf_counter()

    def now(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._zero

    async def write(
        self, what: str, key: str, op_id: str, facts: Sequence[Fact], call: Callable[[], Awaitable[object]]
    ) -> bool:
        """Make a write under its own identity. Whether it was acknowledged; a refusal is recorded, not raised."""
        entry = Entry(op_id, what, key, facts, self.phase, self.now())
        entry.history = [
            self._recorder.invoke(fact.kind, fact.name, op_id=op_id, value=fact.value) for fact in facts
        ]
        answer = await self._make(entry, call)
        if entry.outcome == OK and answer is False:
            # The session was acknowledged, so "no such session" is a lie: the checker will miss this write.
            entry.error = "answered False"
        for identifier in entry.history:
            self._end(identifier, entry)
        return entry.outcome == OK

    async def read(
        self,
        what: str,
        key: str,
        asks: Sequence[tuple[Kind, str]],
        call: Callable[[], Awaitable[T]],
        seen: Callable[[T], Sequence[object]],
    ) -> None:
        """Make a read; ``seen`` picks from its answer what the checker compares with what was known before."""
        history = [self._recorder.invoke(kind, name) for kind, name in asks]
        entry = Entry("", what, key, (), self.phase, self.now())
        answer = await self._make(entry, call)
        shown = seen(answer) if answer is not None else [None] * len(asks)
        for identifier, value in zip(history, shown, strict=True):
            self._end(identifier, entry, value)

    async def settle(self, storage: Backend) -> None:
        """Ask the storage what became of every write whose outcome was left unknown."""
        for entry in self.entries:
            if entry.is_write and entry.outcome == UNKNOWN:
                try:
                    applied = await storage.operation_outcome(entry.key, entry.op_id) == "applied"
                except StorageError:
                    continue  # it stays unknown: the checker then allows both
                entry.settled = OK if applied else NOT_APPLIED
                for identifier in entry.history:
                    self._recorder.outcome(identifier, entry.settled)

    def _end(self, identifier: str, entry: Entry, answer: object = None) -> None:
        self._recorder.outcome(
            identifier,
            entry.outcome,
            answer=answer,
            served_by=entry.served_by,
            degraded=entry.degraded,
            stale=entry.stale,
        )

    async def _make(self, entry: Entry, call: Callable[[], Awaitable[T]]) -> T | None:
        answer: T | None = None
        self.in_flight += 1
        async with operation(entry.op_id or None) as account:
            try:
                answer = await call()
                entry.outcome = OK
            except StorageError as error:
                entry.outcome = error.outcome
                entry.error = type(error).__name__
            finally:
                self.in_flight -= 1
                entry.ended = self.now()
                entry.served_by = account.served_by
                entry.degraded, entry.stale = account.degraded, account.stale
                entry.durability = account.durability
                self.entries.append(entry)
        return answer
