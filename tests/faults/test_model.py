"""Random histories, each step compared with plain dicts: a store in memory, a file, and the chain over stores that fail.

In an outage a call may fail, honestly: then everything is healed and the call is repeated under its identity, and from
there on nobody may be able to tell that it was repeated. ``AIECS_MODEL_EXAMPLES=1000`` plays more of them.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiecs_resilient.errors import ConflictError, StorageError
from aiecs_resilient.interface import Backend
from aiecs_resilient.operations import OperationContext, operation

from .model import Model
from .subjects import ChainSubject, MemorySubject, SQLiteSubject, State, Subject

T = TypeVar("T")

EXAMPLES = int(os.environ.get("AIECS_MODEL_EXAMPLES", "20"))
TIMES = frozenset({"created_at", "updated_at", "last_activity"})

KEYS = st.sampled_from(["a", "b:{c}*/..", "ключ\n\x00"])
NAMES = st.sampled_from(["one", "two", "three"])
TEXTS = st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=3,
)
OBJECTS = st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=2)


class Against(RuleBasedStateMachine):
    """The rules; subclasses say what is held against the model."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = self.make()
        self.model = Model()
        self.count = 0
        self.touched = "a"
        self.past: list[tuple[str, str, Callable[[Backend], Awaitable[Any]], object]] = []

    def make(self) -> Subject:
        raise NotImplementedError

    def teardown(self) -> None:
        self.subject.close()

    # ------------------------------------------------------------------ how calls are made

    def write(
        self, key: str, call: Callable[[Backend], Awaitable[Any]], expected: Callable[[str], object]
    ) -> None:
        """Make it, and compare the answer with the model's."""
        self.count += 1
        op_id, self.touched = f"op-{self.count}", key
        answer = self.ask(op_id, call)
        wanted = expected(op_id)
        if wanted is not None:
            assert answer == wanted
        if self.remembers(answer):
            self.past.append((op_id, key, call, answer))

    def remembers(self, answer: object) -> bool:
        """Is this write still known by its identity whatever happens?"""
        return True

    def ask(self, op_id: str, call: Callable[[Backend], Awaitable[T]]) -> T:
        return self.once(op_id, call)[0]

    def once(self, op_id: str | None, call: Callable[[Backend], Awaitable[T]]) -> tuple[T, OperationContext]:
        async def do() -> tuple[T, OperationContext]:
            async with operation(op_id) as op:
                return await call(self.subject.storage), op

        return self.subject.run(do())

    # ------------------------------------------------------------------ writes

    @rule(key=KEYS, user=NAMES, metadata=OBJECTS)
    def create(self, key: str, user: str, metadata: dict[str, Any]) -> None:
        self.write(
            key,
            lambda s: s.create_session(key, user, metadata),
            lambda _op: self.model.create(key, user, metadata),
        )

    @rule(
        key=KEYS,
        updates=OBJECTS
        | st.fixed_dictionaries({"status": NAMES})
        | st.fixed_dictionaries({"metadata": OBJECTS}),
        requests=st.booleans(),
        micros=st.integers(0, 5_000_000),
        error=st.booleans(),
    )
    def update(self, key: str, updates: dict[str, Any], requests: bool, micros: int, error: bool) -> None:
        seconds = micros / 1_000_000
        self.write(
            key,
            lambda s: s.update_session(key, updates, requests, seconds, error),
            lambda _op: self.model.update(key, updates, requests, seconds, error),
        )

    @rule(key=KEYS, status=NAMES)
    def end(self, key: str, status: str) -> None:
        self.write(key, lambda s: s.end_session(key, status), lambda _op: self.model.end(key, status))

    @rule(key=KEYS)
    def delete_session(self, key: str) -> None:
        self.write(key, lambda s: s.delete_session(key), lambda _op: self.model.delete_session(key))

    @rule(key=KEYS, role=NAMES, content=TEXTS, metadata=OBJECTS)
    def append(self, key: str, role: str, content: str, metadata: dict[str, Any]) -> None:
        self.write(
            key,
            lambda s: s.add_conversation_message(key, role, content, metadata),
            lambda op: self.model.append(key, op, role, content, metadata),
        )

    @rule(key=KEYS, value=VALUES.filter(lambda value: value is not None))
    def store_context(self, key: str, value: Any) -> None:
        self.write(
            key, lambda s: s.store_task_context(key, value), lambda _op: self.model.store_context(key, value)
        )

    @rule(key=KEYS, id=NAMES, data=OBJECTS, metadata=OBJECTS)
    def checkpoint(self, key: str, id: str, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.write(
            key,
            lambda s: s.store_checkpoint(key, id, data, metadata),
            lambda _op: self.model.checkpoint(key, id, data, metadata),
        )

    @rule(key=KEYS, id=NAMES, task=NAMES, values=st.lists(VALUES, min_size=1, max_size=2))
    def put_writes(self, key: str, id: str, task: str, values: list[Any]) -> None:
        writes = [("channel", value) for value in values]
        self.write(
            key,
            lambda s: s.put_writes(key, id, task, writes),  # type: ignore[attr-defined]
            lambda _op: self.model.put_writes(key, id, task, writes),
        )

    @rule(key=KEYS, keep=st.integers(0, 2))
    def prune(self, key: str, keep: int) -> None:
        self.write(key, lambda s: s.prune_checkpoints(key, keep), lambda _op: self.model.prune(key, keep))

    @rule(key=KEYS)
    def delete_thread(self, key: str) -> None:
        self.write(key, lambda s: s.delete_thread(key), lambda _op: self.model.delete_thread(key))

    # ------------------------------------------------------------------ identity

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Whatever was done under an identity is not done again, and answered as it was."""
        op_id, key, call, answer = data.draw(st.sampled_from(self.past))
        self.touched = key
        assert self.ask(op_id, call) == answer

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def reuse(self, data: st.DataObject) -> None:
        """An identity with another payload is refused."""
        op_id, key, _call, _answer = data.draw(st.sampled_from(self.past))
        self.touched = key
        with pytest.raises(ConflictError):
            self.ask(op_id, lambda s: s.add_conversation_message(key, "system", "another payload"))

    # ------------------------------------------------------------------ reads

    @invariant()
    def reads_as_the_model(self) -> None:
        """After each step, everything under the id that was touched."""
        assert self.look(self.touched) == self.model.view(self.touched)

    def look(self, key: str) -> dict[str, Any]:
        return self.view_of(self.subject.storage, key)[0]

    def view_of(self, storage: Backend, key: str) -> tuple[dict[str, Any], bool]:
        return self.subject.run(view(storage, key, list(self.model.view(key)["writes"])))


async def view(storage: Backend, key: str, checkpoints: list[str]) -> tuple[dict[str, Any], bool]:
    """What the storage shows under one id, in the model's words; and whether any of it was flagged as stale."""
    stale = False

    async def seen(call: Awaitable[T]) -> T:
        nonlocal stale
        async with operation() as op:
            answer = await call
        stale = stale or op.stale
        return answer

    session = await seen(storage.get_session(key))
    latest = await seen(storage.get_checkpoint(key))
    return {
        "session": session and {name: value for name, value in session.items() if name not in TIMES},
        "messages": [
            [item["message_id"], item["role"], item["content"], item["metadata"]]
            for item in await seen(storage.get_conversation_history(key, 0))
        ],
        "context": await seen(storage.get_task_context(key)),
        "contexts": [item["context"] for item in await seen(storage.list_task_contexts(key, 3))],
        "latest": latest and latest["checkpoint_id"],
        "checkpoints": [
            [item["checkpoint_id"], item["data"], item["metadata"]]
            for item in await seen(storage.list_checkpoints(key, 100))
        ],
        "writes": {id: await seen(storage.get_writes(key, id)) for id in checkpoints},
    }, stale


class AgainstMemory(Against):
    def make(self) -> Subject:
        return MemorySubject()


class AgainstSQLite(Against):
    def make(self) -> Subject:
        self.folder = tempfile.TemporaryDirectory()
        return SQLiteSubject(Path(self.folder.name) / "model.db")

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


class AgainstChain(Against):
    """Stores fail and come back between the steps; whatever fails is repeated after healing."""

    def make(self) -> Subject:
        self.chain = ChainSubject()
        self.sick = False
        return self.chain

    @rule(leg=st.integers(0, 1), state=st.sampled_from(["refusing", "losing replies", "hanging"]))
    def outage(self, leg: int, state: State) -> None:
        self.chain.legs[leg].state = state
        self.sick = True

    @rule(leg=st.integers(0, 1))
    def back(self, leg: int) -> None:
        self.chain.legs[leg].state = "up"

    @rule(seconds=st.floats(0.1, 10))
    def time_passes(self, seconds: float) -> None:
        self.chain.run(asyncio.sleep(seconds))

    @rule()
    def healed(self) -> None:
        self.chain.heal()
        self.sick = False

    def ask(self, op_id: str, call: Callable[[Backend], Awaitable[T]]) -> T:
        try:
            return super().ask(op_id, call)
        except ConflictError:
            raise
        except StorageError:
            assert self.sick, "nothing was wrong, so nothing may fail"
            self.healed()
            return super().ask(op_id, call)

    def remembers(self, answer: object) -> bool:
        """What changed nothing is not replicated, so after a takeover the other store decides anew."""
        return bool(answer)

    def look(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            found, doubtful = self.view_of(self.chain.storage, key)
        except StorageError:
            doubtful = True
        if doubtful:
            assert self.sick, "nothing was wrong, so nothing may fail or be stale"
            self.healed()
            found, doubtful = self.view_of(self.chain.storage, key)
            assert not doubtful
        return found

    def teardown(self) -> None:
        """In the end both stores hold what the model holds, each read on its own."""
        self.chain.heal()
        for key in self.model.keys:
            for leg in self.chain.legs:
                assert self.view_of(leg.store, key)[0] == self.model.view(key)
        health = self.chain.run(self.chain.storage.health_check())
        assert health["status"] == "healthy", health
        super().teardown()


@pytest.mark.parametrize("machine", [AgainstMemory, AgainstSQLite, AgainstChain])
def test_no_history_shows_a_difference(machine: type[Against]) -> None:
    """Whatever callers do, and whatever fails meanwhile, answers are those of plain dicts."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            derandomize="AIECS_MODEL_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
