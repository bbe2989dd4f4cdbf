"""What callers do during an episode, and what they were told: sessions that talk, count, keep checkpoints and contexts.

Each write has an identity of its own and every payload carries its session, so that whatever turns up in a store can be
traced to one call. Some callers go away in the middle, some repeat an unknown write under its identity, as applications do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ...errors import StorageError
from ...interface import Backend
from ...operations import OperationContext, operation
from ..history import HistoryRecorder, Kind, Outcome, digest, payload, tags

T = TypeVar("T")

CHECKPOINTS = 3  # ids per session: they are replaced again and again
BURST = 3  # messages that one caller sends at once


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked of the chain.

    Attributes:
        sessions: held at the same time.
        pause: mean seconds between two steps of one session.
        cancelled: share of calls whose caller goes away meanwhile.
        repeated: share of unknown writes that the caller repeats under the same identity.
    """

    sessions: int = 16
    pause: float = 0.04
    cancelled: float = 0.01
    repeated: float = 0.5

    def __post_init__(self) -> None:
        if (
            self.sessions < 1
            or self.pause <= 0
            or not 0 <= self.cancelled <= 1
            or not 0 <= self.repeated <= 1
        ):
            raise ValueError(
                f"sessions is at least 1, pause above 0 seconds, cancelled and repeated are shares: {self}"
            )


@dataclass(frozen=True, slots=True)
class Write:
    """One call whose outcome is open."""

    identifier: str
    session: str
    op_id: str


@dataclass(slots=True)
class Tally:
    """What callers were told, in figures."""

    calls: int = 0
    acknowledged: int = 0
    degraded: int = 0
    stale: int = 0
    cancelled: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, str] = field(default_factory=dict[str, str])
    served_by: Counter[str | None] = field(default_factory=Counter[str | None])
    denied: list[str] = field(default_factory=list[str])
    strange: list[str] = field(default_factory=list[str])
    spans: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    unknown: list[Write] = field(default_factory=list[Write])

    def warm(self) -> None:
        """From here on it counts: what was slow or failed while everything was new is no answer to a fault."""
        self.calls = 0
        self.errors.clear()
        self.examples.clear()
        self.spans.clear()

    @property
    def failed(self) -> int:
        """Calls that ended in an error."""
        return self.errors.total()


class Workload:
    """The callers of one process."""

    def __init__(
        self, storage: Backend, recorder: HistoryRecorder, load: Load, *, seed: int, name: str
    ) -> None:
        self.tally = Tally()
        self.sessions = [f"{name}-{number}" for number in range(load.sessions)]
        self._storage, self._recorder, self._load = storage, recorder, load
        self._seed = seed
        self._stop = asyncio.Event()
        self._created = 0
        self.ready = asyncio.Event()
        """Every session exists: from now on it is known what must not be lost."""

    async def run(self) -> None:
        """Work until :meth:`stop`; calls under way then are finished."""
        async with asyncio.TaskGroup() as group:
            for session in self.sessions:
                group.create_task(self._live(session))

    def stop(self) -> None:
        self._stop.set()

    async def settle(self) -> None:
        """Ask the chain what became of the writes whose outcome is open, and write that down: it can be held against it."""
        for write in self.tally.unknown:
            outcome = await self._storage.operation_outcome(write.session, write.op_id)
            self._recorder.outcome(write.identifier, "ok" if outcome == "applied" else "not_applied")

    async def _live(self, session: str) -> None:
        caller = Caller(
            session, self._storage, self._recorder, self._load, self.tally, f"{self._seed}/{session}"
        )
        while not self._stop.is_set():
            if not caller.created:
                await caller.create()
                self._created += caller.created
                if self._created == len(self.sessions):
                    self.ready.set()
            else:
                await caller.step()
            try:
                async with asyncio.timeout(caller.chance.expovariate(1 / self._load.pause)):
                    await self._stop.wait()
            except TimeoutError:
                continue


class Caller:
    """One session's application."""

    def __init__(
        self,
        session: str,
        storage: Backend,
        recorder: HistoryRecorder,
        load: Load,
        tally: Tally,
        seed: str,
    ) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - replayed from its seed, guards nothing
        self._session, self._storage, self._recorder = session, storage, recorder
        self._load, self._tally = load, tally
        self._number = 0
        self.created = False

    async def step(self) -> None:
        """One thing that an application does."""
        await self.chance.choices(
            (self._append, self._burst, self._increment, self._checkpoint, self._context,
             self._recall, self._look, self._load_checkpoint, self._load_context),
            (40, 3, 17, 10, 10, 8, 4, 4, 4),
        )[0]()  # fmt: skip

    # Writes.

    async def create(self) -> None:
        """Begin the session; again, if that failed."""
        op_id = f"{self._session}/create"  # the same each time: however often it is tried, it is one session
        self.created = await self._write("create", self._session, op_id, None, self._do_create)

    async def _do_create(self) -> bool:
        return bool(await self._storage.create_session(self._session, "user", {"of": self._session}))

    async def _append(self) -> None:
        op_id = self._next()
        content = payload(self._session, op_id, "said")

        async def call() -> bool:
            return await self._storage.add_conversation_message(self._session, "user", content)

        await self._write("append", self._session, op_id, digest(content), call)

    async def _burst(self) -> None:
        await asyncio.gather(*(self._append() for _ in range(BURST)))

    async def _increment(self) -> None:
        async def call() -> bool:
            counted = await self._storage.update_session(self._session, increment_requests=True)
            if not counted:
                self._tally.denied.append(f"update_session says that {self._session} does not exist")
            return counted

        await self._write("increment", self._session, self._next(), 1, call)

    async def _checkpoint(self) -> None:
        op_id, name = self._next(), f"c{self.chance.randrange(CHECKPOINTS)}"
        data = {"of": self._session, "by": op_id}

        async def call() -> bool:
            return await self._storage.store_checkpoint(self._session, name, data)

        await self._write("checkpoint", f"{self._session}/{name}", op_id, digest(data), call)

    async def _context(self) -> None:
        op_id = self._next()
        value = {"of": self._session, "by": op_id}

        async def call() -> bool:
            return await self._storage.store_task_context(self._session, value)

        await self._write("context", self._session, op_id, digest(value), call)

    # Reads.

    async def _recall(self) -> None:
        await self._read(
            "read_messages",
            self._session,
            lambda: self._storage.get_conversation_history(self._session, 0),
            lambda found: tags(message["content"] for message in found),
        )

    async def _look(self) -> None:
        await self._read(
            "read_counter",
            self._session,
            lambda: self._storage.get_session(self._session),
            lambda found: found["request_count"],
            must_exist=True,
        )

    async def _load_checkpoint(self) -> None:
        name = f"c{self.chance.randrange(CHECKPOINTS)}"
        await self._read(
            "read_checkpoint",
            f"{self._session}/{name}",
            lambda: self._storage.get_checkpoint(self._session, name),
            lambda found: digest(found["data"]),
        )

    async def _load_context(self) -> None:
        await self._read(
            "read_context",
            self._session,
            lambda: self._storage.get_task_context(self._session),
            digest,
        )

    # The way of every call.

    async def _write(
        self, kind: Kind, key: str, op_id: str, value: str | int | None, call: Callable[[], Awaitable[bool]]
    ) -> bool:
        identifier = self._recorder.invoke(kind, key, op_id=op_id, value=value)
        async with operation(op_id) as op:
            done, error = await self._call(call)
        outcome: Outcome = "unknown"
        if error is None:
            self._account(op)
            self._tally.acknowledged += bool(done)
            outcome = "ok" if done else "not_applied"
        elif isinstance(error, StorageError) and error.outcome == "not_applied":
            outcome = "not_applied"
        self._recorder.outcome(
            identifier, outcome, served_by=op.served_by, degraded=op.degraded, stale=op.stale
        )
        if outcome != "unknown":
            return outcome == "ok"
        if self.chance.random() < self._load.repeated and await self._write(kind, key, op_id, value, call):
            return True
        self._tally.unknown.append(Write(identifier, self._session, op_id))
        return False

    async def _read(
        self,
        kind: Kind,
        key: str,
        call: Callable[[], Awaitable[T | None]],
        shown: Callable[[T], object],
        *,
        must_exist: bool = False,
    ) -> None:
        identifier = self._recorder.invoke(kind, key)
        async with operation() as op:
            found, error = await self._call(call)
        if error is not None:
            self._recorder.outcome(identifier, "error")
            return
        self._account(op)
        answer = None if found is None else shown(found)
        self._recorder.outcome(
            identifier,
            "ok",
            answer=answer,
            served_by=op.served_by,
            degraded=op.degraded,
            stale=op.stale,
        )
        if found is None and must_exist and not op.stale:
            self._tally.denied.append(f"{kind} says that {key} does not exist")

    async def _call(self, call: Callable[[], Awaitable[T]]) -> tuple[T | None, BaseException | None]:
        """Make it, time it, and go away in the middle now and then. The answer, or what came instead."""
        self._tally.calls += 1
        started = time.monotonic()
        task = asyncio.ensure_future(call())
        if self.chance.random() < self._load.cancelled:
            await asyncio.wait({task}, timeout=self.chance.random() * 0.005)
            task.cancel()
        await asyncio.wait({task})
        self._tally.spans.append((started, time.monotonic()))
        if task.cancelled():
            self._tally.cancelled += 1
            return None, asyncio.CancelledError()
        error = task.exception()
        if error is not None:
            self._failed(error)
            return None, error
        return task.result(), None

    def _failed(self, error: BaseException) -> None:
        name = type(error).__name__
        self._tally.errors[name] += 1
        self._tally.examples.setdefault(name, str(error))
        if not isinstance(error, StorageError):
            self._tally.strange.append(f"{name} left the chain: {error}")

    def _account(self, op: OperationContext) -> None:
        self._tally.degraded += op.degraded
        self._tally.stale += op.stale
        self._tally.served_by[op.served_by] += 1

    def _next(self) -> str:
        self._number += 1
        return f"{self._session}/{self._number}"
