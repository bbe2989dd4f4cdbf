"""batching: nobody is told too early, nobody pays for another, and what comes together goes together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import (
    BackendClosedError,
    CircuitOpenError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    IncompleteStoreError,
    InvalidValueError,
    OverloadedError,
    StorageConnectionError,
    StorageError,
    UnsupportedOperationError,
)
from aiecs_resilient.interface import IStorageBackend, Json
from aiecs_resilient.layers import Layer
from aiecs_resilient.layers.batching import Batching, BatchingCounts
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.operations import active, deadline, operation
from aiecs_resilient.records import Applied, Mutation, StoreState

VIRTUAL_TIME = True


class Slow(Layer):
    """Takes ``seconds`` for a batch, notes what came, and fails as it is told."""

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__(MemoryStorageBackend(name="mem"))
        self.seconds = seconds
        self.batches: list[list[Mutation]] = []
        self.deadlines: list[float | None] = []
        self.started: list[float] = []
        self.now: set[str] = set()
        self.reads: list[list[str]] = []
        self.errors: list[Exception] = []
        self.poison = ""

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self.batches.append(list(mutations))
        self.started.append(monotonic())
        context = active()
        self.deadlines.append(context.deadline if context else None)
        keys = {mutation.key for mutation in mutations}
        assert not keys & self.now, "writes of one session are under way in two batches"
        self.now |= keys
        try:
            await asyncio.sleep(self.seconds)
            if self.errors:
                raise self.errors.pop(0)
            if self.poison and any(self.poison in mutation.op_id for mutation in mutations):
                raise InvalidValueError("poisoned")
            return await self.inner.apply(mutations)
        finally:
            self.now -= keys

    async def batch_get_sessions(self, session_ids: Sequence[str]) -> list[Json | None]:
        self.reads.append(list(session_ids))
        if self.errors:
            raise self.errors.pop(0)
        return await self.inner.batch_get_sessions(session_ids)

    async def get_session(self, session_id: str) -> Json | None:
        self.reads.append([session_id])
        return await self.inner.get_session(session_id)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    """A store that takes a second for every batch."""
    store = Slow()
    yield store
    await store.close()


def say(layer: Batching, session: str, text: str) -> asyncio.Task[bool]:
    """A caller of its own, whose message is its identity too."""

    async def call() -> bool:
        async with operation(text[:40]):
            return await layer.add_conversation_message(session, "user", text)

    return asyncio.ensure_future(call())


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def said(store: Slow, session: str) -> list[str]:
    return [message["content"] for message in await store.inner.get_conversation_history(session, 0)]


# ---------------------------------------------------------------------- together


async def test_a_lone_caller_waits_for_nobody(slow: Slow) -> None:
    """Its write starts in the same turn, without a task or a timer, with its own identity and context."""
    async with Batching(slow) as layer:
        tasks = asyncio.all_tasks()
        for n in range(3):
            before = monotonic()
            async with operation(f"m{n}") as op:
                assert await layer.add_conversation_message("s", "user", "x") is True
            assert (slow.started[n], monotonic()) == (before, before + 1.0)
            assert (op.served_by, op.attempts) == ("mem", 1)
            assert op.position is not None
        assert asyncio.all_tasks() == tasks
    assert slow.sizes == [1, 1, 1]
    assert [mutation.op_id for batch in slow.batches for mutation in batch] == ["m0", "m1", "m2"]


async def test_what_comes_meanwhile_is_the_next_batch(slow: Slow) -> None:
    """Ten callers cost two round trips; each has its own identity and its own account."""
    async with Batching(slow) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(10)]
        assert await asyncio.gather(*calls) == [True] * 10
    assert slow.sizes == [1, 9]
    assert [mutation.op_id for mutation in slow.batches[1]] == [f"m{n}" for n in range(1, 10)]
    assert slow.started == [0.0, 1.0]


async def test_those_who_were_answered_come_along_at_once(slow: Slow) -> None:
    """Callers that write one message after the other stay together: no batch of one between two of many."""
    async with Batching(slow) as layer:

        async def talk(number: int) -> None:
            for n in range(5):
                await layer.add_conversation_message(f"s{number}", "user", f"m{n}")

        await asyncio.gather(*(talk(number) for number in range(20)))
    assert slow.sizes == [1, 20, 20, 20, 20, 19]


async def test_nobody_is_told_before_it_is_durable(slow: Slow) -> None:
    """While the batch is under way none of its callers has an answer."""
    async with Batching(slow) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(5)]
        await asyncio.sleep(1.5)
        assert [call.done() for call in calls] == [True] + [False] * 4
        assert await said(slow, "s1") == []
        await asyncio.sleep(0.6)
        assert all(call.done() for call in calls)
        assert await said(slow, "s1") == ["m1"]


async def test_all_kinds_of_writes_go_together(slow: Slow) -> None:
    """Sessions, messages, checkpoints, pending writes and contexts: one batch, each with its own answer."""
    async with Batching(slow) as layer:
        await layer.create_session("s", "u")
        calls = [
            layer.update_session("other", increment_requests=True),
            layer.create_session("new", "u"),
            layer.update_session("s", {"step": 2}, increment_requests=True),
            layer.add_conversation_message("s", "user", "hello"),
            layer.store_checkpoint("t", "c", {"n": 1}),
            layer.put_checkpoint("t", "d", {"n": 2}),
            layer.put_writes("t", "c", "task", [("a", 1)]),
            layer.store_task_context("s", {"k": "v"}),
            layer.end_session("s"),
            layer.prune_checkpoints("t", 1),
            layer.delete_session("nobody"),
        ]
        answers = await asyncio.gather(*calls)
        assert slow.sizes == [1, 1, 10]
        assert answers[1] == await layer.get_session("new")
        assert [answer for n, answer in enumerate(answers) if n != 1] == [
            *(False, True, True, True, True, True, True, True, 1, False)
        ]
        session = await layer.get_session("s")
        assert session is not None
        assert (session["step"], session["request_count"], session["status"]) == (2, 1, "completed")


async def test_one_reads_what_one_wrote(slow: Slow) -> None:
    """After the acknowledgement every read has it, whatever else is waiting."""
    async with Batching(slow) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(20)]
        for n, call in enumerate(calls):
            await call
            assert [m["content"] for m in await layer.get_conversation_history(f"s{n}")] == [f"m{n}"]
            assert await layer.operation_outcome(f"s{n}", f"m{n}") == "applied"


# ---------------------------------------------------------------------- order and limits


async def test_the_order_of_a_session_is_kept(slow: Slow) -> None:
    """Messages of one session stand as they were said, through batches of any size and two lanes."""
    async with Batching(slow, max_items=7, lanes=2) as layer:
        calls = [say(layer, f"s{n % 3}", f"m{n}") for n in range(100)]
        await asyncio.gather(*calls)
        for session in range(3):
            assert await said(slow, f"s{session}") == [f"m{n}" for n in range(session, 100, 3)]
    assert max(slow.sizes) == 7


async def test_a_batch_is_limited_in_bytes(slow: Slow) -> None:
    """No batch is larger than allowed, but a write that is larger by itself goes alone."""
    async with Batching(slow, max_bytes=5_000, lanes=1) as layer:
        calls = [say(layer, "first", "x")]
        calls += [say(layer, f"s{n}", f"{n}" + "x" * 1_000) for n in range(9)]
        calls += [say(layer, "large", "y" * 20_000), say(layer, "last", "z")]
        await asyncio.gather(*calls)
    assert slow.sizes == [1, 3, 3, 3, 1, 1]


async def test_sessions_take_turns(slow: Slow) -> None:
    """A session that writes without end does not hold up another one."""
    async with Batching(slow, max_items=10, lanes=1) as layer:
        busy = [say(layer, "busy", f"b{n}") for n in range(60)]
        await turns()
        other = say(layer, "other", "o")
        await asyncio.sleep(3.5)
        assert other.done()
        assert sum(call.done() for call in busy) < 30
        await asyncio.gather(*busy)
        assert await said(slow, "busy") == [f"b{n}" for n in range(60)]


async def test_a_second_lane_opens_for_a_full_batch_only(slow: Slow) -> None:
    """A small load shares one batch; a large one does not wait for a store that could take more."""
    async with Batching(slow, max_items=10, lanes=2) as layer:
        few = [say(layer, f"s{n}", f"m{n}") for n in range(10)]
        await asyncio.gather(*few)
        assert slow.started == [0.0, 1.0]
        many = [say(layer, f"s{n}", f"n{n}") for n in range(31)]
        await asyncio.gather(*many)
    assert slow.started[2:] == [2.0, 2.0, 3.0, 3.0]
    assert slow.sizes[2:] == [1, 10, 10, 10]


async def test_a_busy_session_opens_no_second_lane(slow: Slow) -> None:
    """However much waits for a session whose writes are under way, it cannot be sent beside them."""
    async with Batching(slow, max_items=1, lanes=2) as layer:
        calls = [say(layer, "s", f"m{n}") for n in range(5)]
        await asyncio.gather(*calls)
    assert slow.started == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_lingering_waits_for_company_but_not_for_long(slow: Slow) -> None:
    """A batch behind another waits up to ``linger`` for more, goes as soon as it is full, and a lone caller never waits."""
    async with Batching(slow, max_items=4, linger=0.5, lanes=1) as layer:
        await say(layer, "s", "alone")
        assert monotonic() == 1.0
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(3)]  # at 1, and the two others at 2
        await asyncio.sleep(1.5)
        calls.append(say(layer, "late", "l0"))  # its batch would begin at 3, and lingers
        await asyncio.gather(*calls)
        assert slow.started == [0.0, 1.0, 2.0, 3.5]
        calls = [say(layer, f"s{n}", f"n{n}") for n in range(3)]
        await asyncio.sleep(1.5)
        calls.append(say(layer, "late", "l1"))
        await asyncio.sleep(0.6)
        calls += [say(layer, f"t{n}", f"o{n}") for n in range(3)]
        await asyncio.gather(*calls)
        assert slow.started[4:] == pytest.approx([4.5, 5.5, 6.6])


# ---------------------------------------------------------------------- a bounded queue


async def test_who_finds_no_room_waits_and_gets_in(slow: Slow) -> None:
    """Back-pressure: more callers than the queue holds are slowed down, not refused, and keep their order."""
    async with Batching(slow, max_items=5, max_pending=10, patience=60.0, lanes=1) as layer:
        calls = [say(layer, "s", f"m{n}") for n in range(50)]
        await turns()
        health = (await layer.health_check())["layers"]["batching"]
        assert (health["waiting"], health["outside"]) == (10, 39)
        assert await asyncio.gather(*calls) == [True] * 50
        assert await said(slow, "s") == [f"m{n}" for n in range(50)]


async def test_who_finds_no_room_in_time_is_refused(slow: Slow, events: list[telemetry.Event]) -> None:
    """OverloadedError after ``patience``, and then it is certain that nothing was written."""
    slow.seconds = 10.0
    async with Batching(slow, max_pending=3, patience=0.5) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(6)]
        await asyncio.sleep(0.6)
        for refused in calls[4:]:
            error = refused.exception()
            assert isinstance(error, OverloadedError)
            assert (error.outcome, error.attempts) == ("not_applied", 0)
            assert "max_pending" in str(error)
        assert await asyncio.gather(*calls[:4]) == [True] * 4
        assert await said(slow, "s5") == []
        assert [event.name for event in events] == [telemetry.QUEUE_REFUSED] * 2
        assert (await layer.get_metrics())["layers"]["batching"]["refused"] == 2


async def test_the_queue_is_bounded_in_bytes(slow: Slow) -> None:
    """A few large writes fill it as many small ones do; one that is larger than all of it gets in alone."""
    async with Batching(slow, max_pending_bytes=10_000, patience=0.1, lanes=1) as layer:
        calls = [
            say(layer, "s", "first"),
            *(say(layer, f"s{n}", f"{n}" + "x" * 40_000) for n in range(2)),
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[:2] == [True, True]
        assert isinstance(results[2], OverloadedError)


async def test_room_is_given_back_by_those_who_leave(slow: Slow) -> None:
    """A cancelled caller's place is taken by the next in line."""
    async with Batching(slow, max_pending=2, patience=60.0, lanes=1) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(4)]
        await turns()
        assert layer._commits.queue.outside == 1
        calls[1].cancel()
        await turns()
        assert layer._commits.queue.outside == 0
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[2:] == [True, True]
    assert slow.sizes == [1, 2]


# ---------------------------------------------------------------------- deadlines


async def test_a_deadline_that_passes_in_the_queue_is_certain(slow: Slow) -> None:
    """It was not sent, so it is not written, and the caller is told so at its time."""
    async with Batching(slow) as layer:
        first = say(layer, "s0", "m0")
        await turns()
        async with deadline(0.3):
            with pytest.raises(DeadlineExceededError) as caught:
                await layer.add_conversation_message("s1", "user", "late")
        assert monotonic() == pytest.approx(0.3, abs=0.01)
        assert (caught.value.outcome, caught.value.attempts) == ("not_applied", 0)
        await first
        assert await said(slow, "s1") == []


async def test_a_deadline_that_passes_under_way_is_unknown(slow: Slow) -> None:
    """The batch goes on for the others; ``operation_outcome`` waits for it and tells."""
    async with Batching(slow) as layer:
        first, other = say(layer, "s0", "m0"), say(layer, "s1", "m1")
        await turns()

        async def hurried() -> None:
            async with deadline(1.5), operation("hurried"):
                await layer.add_conversation_message("s2", "user", "x")

        with pytest.raises(DeadlineExceededError) as caught:
            await hurried()
        assert monotonic() == pytest.approx(1.5, abs=0.01)
        assert caught.value.outcome == "unknown"
        assert await layer.operation_outcome("s2", "hurried") == "applied"
        assert await asyncio.gather(first, other) == [True, True]


async def test_a_batch_has_as_much_time_as_any_of_its_callers(slow: Slow) -> None:
    """One in a hurry does not end it for the others; without a deadline among them it has none."""
    async with Batching(slow) as layer:
        first = say(layer, "s", "m")
        await turns()

        async def within(seconds: float, session: str) -> None:
            async with deadline(seconds):
                await layer.add_conversation_message(session, "user", "x")

        calls = [asyncio.ensure_future(within(seconds, f"s{seconds}")) for seconds in (3.0, 9.0, 5.0)]
        await asyncio.gather(first, *calls)
        calls = [asyncio.ensure_future(within(60.0, "a")), asyncio.ensure_future(within(3.0, "b"))]
        await asyncio.gather(*calls, say(layer, "c", "no deadline"))
    assert slow.deadlines == [None, 9.0, 62.0, None]


async def test_the_deadline_layer_above_gets_the_certain_outcome(slow: Slow) -> None:
    """Batching gives up before the layer above strikes, because it knows what was sent."""
    async with Deadline(Batching(slow), total=0.5) as chain:
        slow.seconds = 0.4
        first = asyncio.ensure_future(chain.add_conversation_message("s", "user", "a"))
        await turns()
        slow.seconds = 10.0
        second = asyncio.ensure_future(chain.add_conversation_message("s1", "user", "b"))
        await first
        third = asyncio.ensure_future(chain.add_conversation_message("s2", "user", "c"))
        await asyncio.wait([second, third])
        outcomes = [call.exception() for call in (second, third)]
        assert [error.outcome for error in outcomes if isinstance(error, StorageError)] == [
            "unknown",
            "not_applied",
        ]


# ---------------------------------------------------------------------- cancelled


async def test_a_cancelled_caller_takes_back_what_was_not_sent(slow: Slow) -> None:
    """Nothing is written, and the others do not notice."""
    async with Batching(slow) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(5)]
        await turns()
        calls[2].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[2], asyncio.CancelledError)
        assert [result for n, result in enumerate(results) if n != 2] == [True] * 4
        assert await said(slow, "s2") == []
        assert await layer.operation_outcome("s2", "m2") == "not_applied"


async def test_a_caller_cancelled_under_way_disturbs_nobody(slow: Slow) -> None:
    """The batch goes on; what became of its write is known when it has ended."""
    async with Batching(slow) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(5)]
        await asyncio.sleep(1.5)
        calls[2].cancel()
        await turns()
        assert calls[2].cancelled()
        assert await layer.operation_outcome("s2", "m2") == "applied"
        assert monotonic() == 2.0
        assert await asyncio.gather(*calls[3:]) == [True, True]


async def test_a_lone_caller_that_is_cancelled_leaves_the_way_free(slow: Slow) -> None:
    """What came meanwhile is sent, though its sender has gone."""
    async with Batching(slow) as layer:
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(4)]
        await turns()
        calls[0].cancel()
        assert await asyncio.gather(*calls[1:]) == [True] * 3
        assert monotonic() == 1.0
        assert await say(layer, "s0", "again") is True


# ---------------------------------------------------------------------- errors


async def test_errors_are_of_one_item(slow: Slow) -> None:
    """A conflict is told to the one who caused it."""
    async with Batching(slow) as layer:
        await layer.create_session("s", "u")
        calls = [
            layer.update_session("x", increment_requests=True),
            layer.update_session("s", {"a": 1}, expected_version=1),
            layer.update_session("s", {"b": 2}),
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert slow.sizes[1:] == [1, 2]
        assert isinstance(results[1], ConflictError)
        assert results[1].operation == "update_session"
        assert results[2] is True


@pytest.mark.parametrize("poisoned", [0, 6, 12])
async def test_a_poisoned_write_is_found(slow: Slow, events: list[telemetry.Event], poisoned: int) -> None:
    """It fails alone, with its own error; its neighbours are written, once."""
    slow.poison = "poison"
    async with Batching(slow, lanes=1) as layer:
        calls = [say(layer, "first", "m")]
        calls += [say(layer, f"s{n % 4}", "poison" if n == poisoned else f"m{n}") for n in range(13)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[poisoned + 1], InvalidValueError)
        assert [result for n, result in enumerate(results) if n != poisoned + 1] == [True] * 13
        for session in range(4):
            wanted = [f"m{n}" for n in range(session, 13, 4) if n != poisoned]
            assert await said(slow, f"s{session}") == wanted
        assert {event.name for event in events} == {telemetry.BATCH_SPLIT}
        assert len(slow.batches) < 13


async def test_a_mistake_of_the_store_is_found_too(slow: Slow) -> None:
    """Also an error that is none of ours is narrowed down, and reaches its caller as it is."""
    slow.errors = [ZeroDivisionError("a bug"), ZeroDivisionError("a bug")]
    async with Batching(slow, lanes=1) as layer:
        slow.seconds = 0.0
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[0], ZeroDivisionError)
        assert results[1:] == [True, True]


@pytest.mark.parametrize(
    "error",
    [
        StorageConnectionError("gone", backend="mem"),
        CircuitOpenError("open", retry_after=3.0),
        DeadlineExceededError("too late"),
        OverloadedError("full"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_befalls_all_is_told_to_each(slow: Slow, error: StorageError) -> None:
    """A store that is away is not asked for each write again, and nobody shares an error object with another."""
    async with Batching(slow) as layer:
        first = say(layer, "s", "m")
        await turns()
        slow.errors = []
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(4)]
        await first
        slow.errors = [error]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert len(slow.batches) == 2
    told = [result for result in results if isinstance(result, StorageError)]
    assert [type(result) for result in told] == [type(error)] * 4
    assert len({id(result) for result in told}) == 4
    for result in told:
        assert (result.outcome, result.retry_after, result.message) == (
            error.outcome,
            error.retry_after,
            error.message,
        )
        assert result.__cause__ is error


async def test_a_repeat_below_has_no_second_effect(slow: Slow) -> None:
    """A batch whose reply was lost is repeated as it is: same identities, one effect."""

    class Lost(Layer):
        lost = 0

        async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
            results = await self.inner.apply(mutations)
            if len(mutations) > 1 and not self.lost:
                self.lost = 1
                raise StorageConnectionError("the reply was lost")
            return results

    async with Batching(Retry(Lost(slow), base_delay=0.01)) as layer:
        calls = [say(layer, "s", f"m{n}") for n in range(10)]
        assert await asyncio.gather(*calls) == [True] * 10
        assert await said(slow, "s") == [f"m{n}" for n in range(10)]
    assert slow.sizes == [1, 9, 9]


async def test_a_call_of_many_writes_is_one_call(slow: Slow) -> None:
    """A bulk call goes in parts of a batch's size among the others, and is answered when all of it is durable."""
    async with Batching(slow, max_items=10, lanes=1) as layer:
        first = say(layer, "s", "m")
        await turns()
        bulk = layer.batch_add_conversation_messages(
            [{"session_id": f"b{n % 5}", "role": "user", "content": f"{n}"} for n in range(25)]
        )
        answers, _first, other = await asyncio.gather(bulk, first, say(layer, "s1", "o"))
        assert answers == [True] * 25
        assert other is True
        for session in range(5):
            assert await said(slow, f"b{session}") == [f"{n}" for n in range(session, 25, 5)]
    assert max(slow.sizes) == 10


async def test_a_bulk_call_that_failed_in_part_is_unknown(slow: Slow) -> None:
    """A part was written, so the whole is not ``not_applied``."""
    async with Batching(slow, max_items=10, lanes=1) as layer:
        first = say(layer, "s", "m")
        await turns()
        bulk = asyncio.ensure_future(
            layer.batch_add_conversation_messages(
                [{"session_id": "b", "role": "user", "content": f"{n}"} for n in range(20)]
            )
        )
        await first
        await asyncio.sleep(1.5)
        slow.errors = [StorageConnectionError("refused", outcome="not_applied")]
        with pytest.raises(StorageConnectionError) as caught:
            await bulk
        assert caught.value.outcome == "unknown"
        assert len(await said(slow, "b")) == 10


# ---------------------------------------------------------------------- identity and place


async def test_the_sender_of_a_batch_is_nobody(slow: Slow) -> None:
    """A batch does not carry the identity or the deadline of whoever happened to start it."""
    seen: list[Any] = []

    class Look(Layer):
        async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
            seen.append(active())
            return await self.inner.apply(mutations)

    async with Batching(Look(slow)) as layer:
        async with operation("mine") as mine, deadline(60.0):
            calls = [asyncio.ensure_future(layer.get_session("x"))]
            assert await layer.add_conversation_message("s", "user", "x") is True
            await asyncio.gather(*calls)
        calls = [say(layer, f"s{n}", f"m{n}") for n in range(3)]
        await asyncio.gather(*calls)
    assert seen[0] is mine
    assert seen[2] is not mine
    assert len({id(context) for context in seen}) == 3


async def test_callers_learn_what_the_chain_did() -> None:
    """Who served, how often stores were asked, whether it was degraded: for each write of a batch as for one alone."""
    hot, cold = MemoryStorageBackend(name="hot"), MemoryStorageBackend(name="cold")
    async with Batching(DualWrite(hot, cold, durable_at_least="volatile")) as layer:

        async def one(number: int) -> Any:
            async with operation() as op:
                await layer.add_conversation_message(f"s{number}", "user", "x")
            return op.served_by, op.attempts, op.durability, op.degraded

        accounts = await asyncio.gather(*(one(number) for number in range(4)))
    assert accounts == [("hot", 2, "both", False)] * 4


async def test_a_store_without_identities_is_refused() -> None:
    """A batch over it could neither be told apart nor repeated: said when the layer is built."""

    class Foreign(Layer):
        def __init__(self) -> None:
            super().__init__(MemoryStorageBackend())
            self.honours_op_id = False

    with pytest.raises(UnsupportedOperationError, match="identities"):
        Batching(Foreign())
    bare = type("Bare", (MemoryStorageBackend,), {"apply": IStorageBackend.apply})
    with pytest.raises(UnsupportedOperationError, match="theirs"):
        Batching(Layer(bare(name="theirs")))


async def test_options_are_checked() -> None:
    """Out of range is said when the layer is built."""
    for options in ({"max_items": 0}, {"linger": -1.0}, {"patience": -0.1}, {"max_pending": 0}, {"lanes": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            Batching(MemoryStorageBackend(), **options)  # type: ignore[arg-type]


async def test_the_limit_on_values_is_the_stores() -> None:
    """What the store would refuse is refused before it is queued."""
    async with Batching(Layer(MemoryStorageBackend(max_value_bytes=100))) as layer:
        with pytest.raises(InvalidValueError, match="100"):
            await layer.store_task_context("s", "x" * 200)


async def test_what_was_counted_outlives_a_reload(slow: Slow) -> None:
    """Counts are in the state, and in the metrics."""
    state = BatchingCounts()
    async with Batching(slow, state=state) as layer:
        await asyncio.gather(*(say(layer, f"s{n}", f"m{n}") for n in range(5)))
    async with Batching(slow, state=state) as layer:
        await layer.add_conversation_message("s", "user", "x")
        facts = (await layer.get_metrics())["layers"]["batching"]
        assert (facts["batches"], facts["batched"], facts["alone"], facts["largest"]) == (1, 4, 2, 4)
        assert layer.describe() == "4 writes in 1 batches, 2 alone, 0 waiting"


# ---------------------------------------------------------------------- closing


async def test_close_writes_what_it_has_accepted(slow: Slow) -> None:
    """Whoever was let in gets its answer; whoever comes after is refused."""
    layer = Batching(slow, max_items=3, max_pending=5, patience=60.0)
    await layer.initialize()
    calls = [say(layer, f"s{n}", f"m{n}") for n in range(12)]
    await turns()
    closing = asyncio.ensure_future(layer.close())
    await turns()
    with pytest.raises(BackendClosedError):
        await layer.add_conversation_message("late", "user", "x")
    await closing
    assert await asyncio.gather(*calls) == [True] * 12
    with pytest.raises(BackendClosedError):
        await layer.get_session("s0")


async def test_close_does_not_wait_for_ever(slow: Slow) -> None:
    """What is left after ``close_timeout`` is told what may have become of it."""
    slow.seconds = 100.0
    layer = Batching(slow, close_timeout=2.0, lanes=1, max_items=2)
    await layer.initialize()
    calls = [say(layer, f"s{n}", f"m{n}") for n in range(2)]
    await turns()
    calls[0].cancel()
    await turns()
    calls += [say(layer, f"t{n}", f"n{n}") for n in range(2)]
    await turns()
    await layer.close()
    assert monotonic() == pytest.approx(2.0)
    errors = [call.exception() for call in calls[1:]]
    assert all(isinstance(error, BackendClosedError) for error in errors)
    assert [error.outcome for error in errors if isinstance(error, StorageError)] == [
        "unknown",
        "not_applied",
        "not_applied",
    ]


# ---------------------------------------------------------------------- reads


async def test_reads_of_one_turn_are_one_request(slow: Slow) -> None:
    """Sixty-four tasks that want a session cost one round trip, and each gets a copy of its own."""
    async with Batching(slow) as layer:
        await layer.create_session("s1", "u", {"tags": []})
        found = await asyncio.gather(*(layer.get_session(f"s{n % 2}") for n in range(64)))
        assert [len(read) for read in slow.reads] == [64]
        assert found[0] is None
        assert found[1] == found[3]
        found[1]["metadata"]["tags"].append("mine")
        assert found[3] is not None
        assert found[3]["metadata"] == {"tags": []}
        facts = (await layer.get_metrics())["layers"]["batching"]["reads"]
        assert facts == {"requests": 1, "shared": 64, "alone": 0}


async def test_a_read_alone_goes_alone(slow: Slow) -> None:
    """As ``get_session``, whose account is about one session; likewise where it is switched off."""
    async with Batching(slow) as layer, Batching(slow, coalesce_reads=False) as off:
        await layer.get_session("a")
        await asyncio.gather(off.get_session("b"), off.get_session("c"))
    assert slow.reads == [["a"], ["b"], ["c"]]


async def test_a_read_whose_account_is_wanted_goes_alone(slow: Slow) -> None:
    """Inside ``operation()`` the position is this session's, for ``expected_version=``."""
    async with Batching(slow) as layer:
        await layer.create_session("s", "u")
        others = [asyncio.ensure_future(layer.get_session("s")) for _ in range(3)]
        async with operation() as op:
            await layer.get_session("s")
        await asyncio.gather(*others)
        assert await layer.update_session("s", {"a": 1}, expected_version=op.position) is True


async def test_no_request_is_larger_than_a_batch(slow: Slow) -> None:
    """More readers than ``max_items`` are several requests."""
    async with Batching(slow, max_items=10) as layer:
        await asyncio.gather(*(layer.get_session(f"s{n}") for n in range(25)))
    assert sorted(len(read) for read in slow.reads) == [5, 10, 10]


@pytest.mark.parametrize("gone", [0, 1, 3])
async def test_a_cancelled_reader_disturbs_no_other(slow: Slow, gone: int) -> None:
    """Be it the first of the turn, who gathered the others, or the last."""
    async with Batching(slow) as layer:
        await layer.create_session("s", "u")
        for pause in range(3):
            readers = [asyncio.ensure_future(layer.get_session("s")) for _ in range(4)]
            await turns(pause)
            readers[gone].cancel()
            found = await asyncio.gather(*readers, return_exceptions=True)
            assert all(item for n, item in enumerate(found) if n != gone)


async def test_a_failed_request_is_told_to_each_or_asked_again(slow: Slow) -> None:
    """A store that is away is told to all; a fault that may lie in one id is looked for by asking one by one."""
    async with Batching(slow) as layer:
        await layer.create_session("s1", "u")
        slow.errors = [StorageConnectionError("gone")]
        found = await asyncio.gather(*(layer.get_session(f"s{n}") for n in range(3)), return_exceptions=True)
        assert [type(item) for item in found] == [StorageConnectionError] * 3
        assert len({id(item) for item in found}) == 3
        slow.errors, slow.reads = [IncompleteStoreError("one of them may be missing")], []
        found = await asyncio.gather(*(layer.get_session(f"s{n}") for n in range(3)))
        assert [item is not None for item in found] == [False, True, False]
        assert [len(read) for read in slow.reads] == [3, 1, 1, 1]


async def test_a_wrong_id_is_refused_before_it_joins(slow: Slow) -> None:
    """Its caller's mistake is nobody else's."""
    async with Batching(slow) as layer:
        found = await asyncio.gather(
            layer.get_session("a"), layer.get_session(""), layer.get_session("b"), return_exceptions=True
        )
        assert [type(item) for item in found] == [type(None), InvalidValueError, type(None)]
    assert slow.reads == [["a", "b"]]


# ---------------------------------------------------------------------- over two stores


@pytest.mark.parametrize("seed", range(4))
async def test_through_a_takeover_every_acknowledged_write_is_there_once_in_order(seed: int) -> None:
    """The leader goes away under batches and comes back: each item has one identity, so both stores end up equal."""
    chance = random.Random(seed)

    class Away(Layer):
        gone = lost = False

        async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
            await asyncio.sleep(0.01)
            if self.gone:
                raise StorageConnectionError("refused", outcome="not_applied", backend=self.name)
            results = await self.inner.apply(mutations)
            if self.lost:
                raise StorageConnectionError("the reply was lost", backend=self.name)
            return results

        async def store_state(self) -> StoreState:
            if self.gone:
                raise StorageConnectionError("refused", outcome="not_applied", backend=self.name)
            return await self.inner.store_state()

    hot, cold = MemoryStorageBackend(name="hot"), MemoryStorageBackend(name="cold")
    leader = Away(hot)
    acknowledged: dict[int, list[str]] = {}

    async with Batching(
        DualWrite(leader, cold, durable_at_least="volatile", poll=0.1, dwell=0.2), max_items=16
    ) as layer:

        async def talk(number: int) -> None:
            for n in range(40):
                try:
                    assert await layer.add_conversation_message(f"s{number}", "user", f"m{n}") is True
                    acknowledged.setdefault(number, []).append(f"m{n}")
                except StorageError:
                    await asyncio.sleep(0.05)

        talkers = [asyncio.ensure_future(talk(number)) for number in range(50)]
        await asyncio.sleep(0.1 + chance.random() * 0.1)
        leader.lost = True
        await asyncio.sleep(chance.random() * 0.05)
        leader.gone = True
        await asyncio.sleep(1.0)
        leader.gone = leader.lost = False
        await asyncio.gather(*talkers)
        await asyncio.sleep(10.0)
        assert (await layer.health_check())["status"] == "healthy"
        for number, texts in acknowledged.items():
            both = [await store.get_conversation_history(f"s{number}", 0) for store in (hot, cold)]
            assert both[0] == both[1]
            held = [message["content"] for message in both[0]]
            assert len(held) == len(set(held))
            assert [text for text in held if text in set(texts)] == texts
    assert sum(map(len, acknowledged.values())) > 1_500
    assert layer.state.writes.largest == 16


# ---------------------------------------------------------------------- everything at once


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_each_acknowledged_write_is_there_once_in_order(seed: int) -> None:
    """Random loads, pauses, failures, cancellations and deadlines, on small queues and several lanes."""
    chance = random.Random(seed)
    slow = Slow()

    class Unreliable(Layer):
        async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
            slow.seconds = chance.choice([0.0, 0.01, 0.1])
            if chance.random() < 0.1:
                raise StorageConnectionError("refused", outcome="not_applied")
            results = await self.inner.apply(mutations)
            if chance.random() < 0.1:
                raise StorageConnectionError("the reply was lost")
            return results

    acknowledged: dict[str, list[str]] = {}
    refused: list[tuple[str, str]] = []
    layer = Batching(
        Unreliable(slow), max_items=chance.choice([1, 5, 30]), max_pending=20, patience=0.05, lanes=3
    )

    async def talk(number: int) -> None:
        session = f"s{number % 12}"
        for n in range(12):
            text = f"{number}/{n}"
            try:
                async with deadline(chance.choice([0.03, 1.0, 60.0])), operation(text):
                    await layer.add_conversation_message(session, "user", text)
                acknowledged.setdefault(f"{session} {number}", []).append(text)
            except StorageError as error:
                if error.outcome == "not_applied":
                    refused.append((session, text))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.1)

    async with layer:
        talkers = [asyncio.ensure_future(talk(number)) for number in range(60)]
        for _ in range(10):
            await asyncio.sleep(0.05)
            chance.choice(talkers).cancel()
        await asyncio.gather(*talkers, return_exceptions=True)
    await slow.initialize()
    held = {f"s{n}": await said(slow, f"s{n}") for n in range(12)}
    for session, texts in held.items():
        assert len(texts) == len(set(texts))
        assert not {text for where, text in refused if where == session} & set(texts)
    for place, texts in acknowledged.items():
        session, number = place.split()
        mine = [text for text in held[session] if text.startswith(f"{number}/")]
        assert [text for text in mine if text in set(texts)] == texts
    queue = layer._commits.queue
    assert queue.items == queue.bytes == queue.outside == queue._sendable == len(queue.calls()) == 0
    assert not queue._busy
    assert not queue._ready
    assert not queue._waiting
    await slow.close()
