"""The application: many users at once, each in one session after another, as an assistant would store them.

A user's steps come at drawn times that do not wait for the answers: a store that hangs makes a user late, and who is
late catches up, so an outage cannot hide by being asked less. Within one session steps are made one after another.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..interface import Backend
from ..operations import new_op_id
from ..testing.history import digest
from . import names
from .dialogues import Script
from .journal import Fact, Journal

USER: Final = "user"
ASSISTANT: Final = "assistant"
TASK: Final = "answer"

# Shares of exchanges after which an application does this.
RECALL: Final = 0.4
LOOK: Final = 0.3
MODEL_ERRORS: Final = 0.05

Step = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often each session does something: a step every ``interval`` seconds on average."""

    interval: float

    @classmethod
    def of(cls, *, sessions: int, rate: float) -> Pace:
        return cls(sessions / rate)

    def pauses(self, draw: random.Random) -> Iterator[float]:
        """Seconds between steps. Users arrive one after another, more and more: nobody opens for all at once."""
        yield 2 * self.interval * math.sqrt(draw.random())
        while True:
            yield self.interval * draw.uniform(0.5, 1.5)


class Workload:
    """Plays sessions until told to stop.

    Args:
        scripts: what is said; shared by all users, each takes the next one when a session has ended.
    """

    def __init__(
        self,
        storage: Backend,
        journal: Journal,
        scripts: Iterator[Script],
        *,
        sessions: int,
        pace: Pace,
        seed: int,
    ) -> None:
        self._storage, self._journal, self._scripts = storage, journal, scripts
        self._sessions, self._pace, self._seed = sessions, pace, seed
        self._stopped = asyncio.Event()
        self.completed = 0
        self.languages: set[str] = set()

    async def run(self) -> None:
        """Until :meth:`stop`; operations that have begun are waited for."""
        async with asyncio.TaskGroup() as users:
            for number in range(self._sessions):
                users.create_task(self._user(number), name=f"user {number}")

    def stop(self) -> None:
        self._stopped.set()

    async def _user(self, number: int) -> None:
        draw = random.Random(f"{self._seed}/{number}")  # noqa: S311  a repeatable pace, not a secret
        loop = asyncio.get_running_loop()
        due = loop.time()
        pauses = self._pace.pauses(draw)
        while True:
            script = next(self._scripts)
            self.languages.add(script.language)
            session = Session(self._storage, self._journal, script, draw)
            for step in session.steps():
                due += next(pauses)
                if await self._stopped_before(due):
                    return
                if not await step():
                    break
            else:
                self.completed += 1

    async def _stopped_before(self, due: float) -> bool:
        try:
            async with asyncio.timeout_at(due):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True


class Session:
    """One session's operations, in order. What each leaves behind is told to the journal before it is made."""

    def __init__(self, storage: Backend, journal: Journal, script: Script, draw: random.Random) -> None:
        self._storage, self._journal, self._script, self._draw = storage, journal, script, draw
        self._id = script.session_id
        self._said: list[str] = []

    def steps(self) -> Iterator[Step]:
        """Calls that say whether the session can go on."""
        yield self._create
        for number, lines in enumerate(self._script.exchanges, 1):
            for role, line in zip((USER, ASSISTANT), lines, strict=False):
                yield partial(self._say, role, line)
            yield self._count
            if number % 2 == 0:
                yield partial(self._store_checkpoint, number)
                yield partial(self._put_writes, number)
            if number % 3 == 0:
                yield partial(self._store_context, number)
            if self._draw.random() < RECALL:
                yield self._recall
            if self._draw.random() < LOOK:
                yield self._look
        yield self._end

    # ------------------------------------------------------------------ writes

    async def _create(self) -> bool:
        metadata = {"channel": "demo", "language": self._script.language}
        facts = [
            Fact("create", self._id, None),
            Fact("context", names.owner(self._id), digest([self._script.user_id, metadata])),
            Fact("context", names.status(self._id), digest("active")),
        ]
        return await self._write(
            "create_session",
            facts,
            lambda _op_id: self._storage.create_session(self._id, self._script.user_id, metadata),
        )

    async def _say(self, role: str, line: str) -> bool:
        self._said.append(line)
        number = len(self._said)
        await self._write(
            "add_conversation_message",
            [Fact("append", self._id, digest(line))],
            lambda op_id: self._storage.add_conversation_message(
                self._id, role, line, {names.REFERENCE: op_id, "n": number}
            ),
        )
        return True

    async def _count(self) -> bool:
        microseconds = self._draw.randint(20_000, 2_500_000)
        failed = self._draw.random() < MODEL_ERRORS
        await self._write(
            "update_session",
            [
                Fact("increment", names.requests(self._id), 1),
                Fact("increment", names.microseconds(self._id), microseconds),
                *([Fact("increment", names.errors(self._id), 1)] if failed else []),
            ],
            lambda _op_id: self._storage.update_session(
                self._id,
                increment_requests=True,
                add_processing_time=microseconds / 1_000_000,
                mark_error=failed,
            ),
        )
        return True

    async def _store_checkpoint(self, number: int) -> bool:
        data = {"step": number, "said": len(self._said), "state": {"last": self._said[-4:], "done": False}}
        await self._write(
            "store_checkpoint",
            [Fact("checkpoint", names.checkpoint(self._id, f"step-{number}"), digest(data))],
            lambda _op_id: self._storage.store_checkpoint(
                self._id, f"step-{number}", data, {"source": "loop"}
            ),
        )
        return True

    async def _put_writes(self, number: int) -> bool:
        writes = [("messages", self._said[-1]), ("cursor", number)]
        await self._write(
            "put_writes",
            [Fact("checkpoint", names.writes(self._id, f"step-{number}", TASK), digest(writes))],
            lambda _op_id: self._storage.put_writes(self._id, f"step-{number}", TASK, writes),
        )
        return True

    async def _store_context(self, number: int) -> bool:
        context = {"goal": self._script.exchanges[0][0], "step": number, "tools": ["search", "calendar"]}
        await self._write(
            "store_task_context",
            [Fact("context", names.context(self._id), digest(context))],
            lambda _op_id: self._storage.store_task_context(self._id, context),
        )
        return True

    async def _end(self) -> bool:
        await self._write(
            "end_session",
            [Fact("context", names.status(self._id), digest("completed"))],
            lambda _op_id: self._storage.end_session(self._id),
        )
        return True

    async def _write(self, what: str, facts: list[Fact], call: Callable[[str], Awaitable[object]]) -> bool:
        op_id = new_op_id()
        return await self._journal.write(what, self._id, op_id, facts, lambda: call(op_id))

    # ------------------------------------------------------------------ reads

    async def _recall(self) -> bool:
        """The whole conversation, as an assistant reads it before it answers."""
        await self._journal.read(
            "get_conversation_history",
            self._id,
            [("read_messages", self._id)],
            lambda: self._storage.get_conversation_history(self._id, 0),
            lambda history: [[(None, message["metadata"].get(names.REFERENCE)) for message in history]],
        )
        return True

    async def _look(self) -> bool:
        """The session with its counters, as a dashboard reads it."""
        await self._journal.read(
            "get_session",
            self._id,
            [("read_counter", names.requests(self._id)), ("read_counter", names.errors(self._id))],
            lambda: self._storage.get_session(self._id),
            lambda session: [session["request_count"], session["error_count"]] if session else [None, None],
        )
        return True
