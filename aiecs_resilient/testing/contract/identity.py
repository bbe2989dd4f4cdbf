"""Identity: an operation repeated under the same op_id has one effect; a scope names one write (C13, C17)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ...errors import ConflictError, OperationScopeError
from ...interface import Backend
from ...operations import operation
from ._base import ContractBase, fresh, named, say, snapshot

Call = Callable[[Backend, str], Awaitable[Any]]


@dataclass(frozen=True)
class WriteCase:
    """One kind of write on a key that holds something: the call, and the same call with another payload."""

    name: str
    call: Call
    other: Call
    settles: bool = True  # its identity is op_id itself, not op_id/n


WRITE_CASES = [
    WriteCase(
        "create_session",
        lambda s, k: s.create_session(k, "u", {"a": 1}),
        lambda s, k: s.create_session(k, "v"),
    ),
    WriteCase(
        "update_session",
        lambda s, k: s.update_session(k, {"x": 1}, True, 0.5, True),
        lambda s, k: s.update_session(k, {"x": 2}, True, 0.5, True),
    ),
    WriteCase("end_session", lambda s, k: s.end_session(k, "done"), lambda s, k: s.end_session(k, "failed")),
    WriteCase("delete_session", lambda s, k: s.delete_session(k), lambda s, k: s.delete_thread(k)),
    WriteCase(
        "add_conversation_message",
        lambda s, k: s.add_conversation_message(k, "user", "one", {"n": 1}),
        lambda s, k: s.add_conversation_message(k, "user", "two", {"n": 1}),
    ),
    WriteCase(
        "store_checkpoint",
        lambda s, k: s.store_checkpoint(k, "c1", {"v": 1}),
        lambda s, k: s.store_checkpoint(k, "c1", {"v": 2}),
    ),
    WriteCase(
        "put_checkpoint",
        lambda s, k: s.put_checkpoint(k, "c1", {"v": 1}),
        lambda s, k: s.put_checkpoint(k, "c2", {"v": 1}),
    ),
    WriteCase(
        "prune_checkpoints", lambda s, k: s.prune_checkpoints(k, 1), lambda s, k: s.prune_checkpoints(k, 0)
    ),
    WriteCase(
        "put_writes",
        lambda s, k: s.put_writes(k, "c0", "task", [("a", 1)]),
        lambda s, k: s.put_writes(k, "c0", "task", [("a", 2)]),
    ),
    WriteCase("delete_thread", lambda s, k: s.delete_thread(k), lambda s, k: s.delete_session(k)),
    WriteCase(
        "store_task_context",
        lambda s, k: s.store_task_context(k, {"v": 1}),
        lambda s, k: s.store_task_context(k, {"v": 2}),
    ),
    WriteCase(
        "batch_create_sessions",
        lambda s, k: s.batch_create_sessions([{"session_id": k, "user_id": "u"}]),
        lambda s, k: s.batch_create_sessions([{"session_id": k, "user_id": "v"}]),
        settles=False,
    ),
    WriteCase(
        "batch_add_conversation_messages",
        lambda s, k: s.batch_add_conversation_messages([{"session_id": k, "role": "user", "content": "one"}]),
        lambda s, k: s.batch_add_conversation_messages([{"session_id": k, "role": "user", "content": "two"}]),
        settles=False,
    ),
]
every_write = pytest.mark.parametrize("case", WRITE_CASES, ids=lambda case: str(case.name))


async def prepare(storage: Backend, key: str) -> None:
    """A key with one of everything, so that every kind of write has something to do."""
    await storage.create_session(key, "u")
    await storage.update_session(key, {"before": 1}, True)
    await say(storage, key, "zero")
    for n in range(3):
        await storage.store_checkpoint(key, f"c{n}", {"v": 0})
    await storage.put_writes(key, "c2", "other", [("z", 0)])
    await storage.store_task_context(key, {"v": 0})


class IdentityContract(ContractBase):
    """What ``operation()`` promises for every write."""

    @every_write
    async def test_a_repeat_has_one_effect_and_the_same_answer(
        self, storage: Backend, case: WriteCase
    ) -> None:
        """The same op_id and payload again changes nothing and answers what it answered first."""
        key, op_id = fresh(), fresh("op")
        await prepare(storage, key)
        answer = await named(op_id, case.call(storage, key))
        after = await snapshot(storage, key)
        for _ in range(3):
            assert await named(op_id, case.call(storage, key)) == answer
            assert await snapshot(storage, key) == after

    @every_write
    async def test_a_late_repeat_undoes_nothing(self, storage: Backend, case: WriteCase) -> None:
        """A repeat that arrives after later writes answers as the first time and leaves the later writes alone."""
        key, op_id = fresh(), fresh("op")
        await prepare(storage, key)
        answer = await named(op_id, case.call(storage, key))
        await prepare(storage, key)
        await storage.store_checkpoint(key, "c1", {"v": "later"})
        await storage.put_writes(key, "c0", "task", [("later", 1)])
        after = await snapshot(storage, key)
        assert await named(op_id, case.call(storage, key)) == answer
        assert await snapshot(storage, key) == after

    @every_write
    async def test_another_payload_is_a_conflict(self, storage: Backend, case: WriteCase) -> None:
        """The same op_id with another payload raises ConflictError, not applied, and changes nothing."""
        key, op_id = fresh(), fresh("op")
        await prepare(storage, key)
        await named(op_id, case.call(storage, key))
        after = await snapshot(storage, key)
        with pytest.raises(ConflictError) as caught:
            await named(op_id, case.other(storage, key))
        assert caught.value.outcome == "not_applied"
        assert caught.value.transient is False
        assert await snapshot(storage, key) == after

    @every_write
    async def test_concurrent_repeats_have_one_effect(self, storage: Backend, case: WriteCase) -> None:
        """Ten arrivals of the same operation at once: one effect, one answer."""
        key, op_id = fresh(), fresh("op")
        await prepare(storage, key)
        answers = await asyncio.gather(*(named(op_id, case.call(storage, key)) for _ in range(10)))
        reference = fresh()
        await prepare(storage, reference)
        await case.call(storage, reference)
        assert all(answer == answers[0] for answer in answers)
        assert _shape(await snapshot(storage, key)) == _shape(await snapshot(storage, reference))

    @every_write
    async def test_the_outcome_can_be_asked(self, storage: Backend, case: WriteCase) -> None:
        """operation_outcome knows an operation that took place from one that did not."""
        key, op_id = fresh(), fresh("op")
        await prepare(storage, key)
        stored_as = op_id if case.settles else f"{op_id}/0"
        assert await storage.operation_outcome(key, stored_as) == "not_applied"
        await named(op_id, case.call(storage, key))
        assert await storage.operation_outcome(key, stored_as) == "applied"
        assert await storage.operation_outcome(fresh(), stored_as) == "not_applied"

    async def test_a_write_that_found_nothing_did_not_take_place(self, storage: Backend) -> None:
        """Answered False, or 0: whoever settles an unknown outcome must not count what changed nothing."""
        writes: dict[str, Callable[[str], Awaitable[object]]] = {
            "update_session": lambda key: storage.update_session(key, increment_requests=True),
            "end_session": storage.end_session,
            "delete_session": storage.delete_session,
            "prune_checkpoints": lambda key: storage.prune_checkpoints(key, 1),
        }
        for name, write in writes.items():
            key, op_id = fresh(), fresh("op")
            assert not await named(op_id, write(key)), name
            assert await storage.operation_outcome(key, op_id) == "not_applied", name

    async def test_a_refused_write_leaves_its_identity_free(self, storage: Backend) -> None:
        """A write refused by expected_version did not take place: its op_id may be used for the decision made anew."""
        key, op_id = fresh(), fresh("op")
        await storage.store_task_context(key, "one")
        with pytest.raises(ConflictError):
            await named(op_id, storage.store_task_context(key, "two", expected_version=1))
        assert await storage.operation_outcome(key, op_id) == "not_applied"
        assert await named(op_id, storage.store_task_context(key, "three")) is True
        assert await storage.get_task_context(key) == "three"

    async def test_negative_answers_are_remembered_too(self, storage: Backend) -> None:
        """A write that found nothing answers False again, even if there would be something by now."""
        key, op_id = fresh(), fresh("op")
        assert await named(op_id, storage.update_session(key, increment_requests=True)) is False
        created = await storage.create_session(key, "u")
        assert await named(op_id, storage.update_session(key, increment_requests=True)) is False
        assert await storage.get_session(key) == created

    async def test_an_identity_belongs_to_one_key(self, storage: Backend) -> None:
        """The same op_id on two sessions names two operations."""
        one, two, op_id = fresh(), fresh(), fresh("op")
        await named(op_id, storage.add_conversation_message(one, "user", "first"))
        await named(op_id, storage.add_conversation_message(two, "user", "second"))
        assert (
            len(await storage.get_conversation_history(one))
            == len(await storage.get_conversation_history(two))
            == 1
        )

    @pytest.mark.parametrize(
        "op_id", ["x", "order-7/ack", "a:b:c", "{tag}", "*", "\n", "ü" * 512, "x" * 512, "a\x00b"]
    )
    async def test_any_text_is_an_identity(self, storage: Backend, op_id: str) -> None:
        """op_id is any string of 1 to 512 characters."""
        key = fresh()
        for _ in range(2):
            await named(op_id, storage.add_conversation_message(key, "user", "once"))
        [message] = await storage.get_conversation_history(key)
        assert message["message_id"] == op_id
        assert await storage.operation_outcome(key, op_id) == "applied"

    async def test_writes_without_a_scope_are_distinct(self, storage: Backend) -> None:
        """Each call outside a scope has an identity of its own."""
        key = fresh()
        await say(storage, key, *["same"] * 10)
        assert len({message["message_id"] for message in await storage.get_conversation_history(key)}) == 10

    async def test_a_scope_names_one_write(self, storage: Backend) -> None:
        """A second write in one operation() scope raises before anything is sent."""
        key = fresh()
        async with operation():
            await storage.add_conversation_message(key, "user", "first")
            with pytest.raises(OperationScopeError):
                await storage.add_conversation_message(key, "user", "second")
            with pytest.raises(OperationScopeError):
                await storage.create_session(key, "u")
        assert len(await storage.get_conversation_history(key)) == 1
        assert await storage.get_session(key) is None

    async def test_a_scope_may_read_as_often_as_it_likes(self, storage: Backend) -> None:
        """Reads do not use up a scope."""
        key = fresh()
        async with operation() as op:
            assert await storage.get_session(key) is None
            assert await storage.get_conversation_history(key) == []
            await storage.create_session(key, "u")
            assert await storage.get_session(key) is not None
        assert op.served_by

    async def test_the_account_says_who_served(self, storage: Backend) -> None:
        """After a write and after a read the scope names the store, the attempts and the position."""
        key = fresh()
        async with operation() as write:
            await storage.create_session(key, "u")
        async with operation() as read:
            await storage.get_session(key)
        assert write.position == read.position
        assert read.served_by
        assert read.attempts >= 1
        assert not read.stale


def _shape(state: dict[str, Any]) -> dict[str, Any]:
    """What two keys with the same past have in common: everything but ids, times and positions."""
    session = state["session"]
    return {
        "session": session
        and {name: session[name] for name in session if not name.endswith(("_id", "_at", "_activity"))},
        "messages": [message["content"] for message in state["messages"]],
        "checkpoints": [(item["checkpoint_id"], item["data"]) for item in state["checkpoints"]],
        "writes": state["writes"],
        "contexts": [item["context"] for item in state["contexts"]],
    }
