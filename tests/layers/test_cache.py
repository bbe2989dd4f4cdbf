"""cache: one load for many, never an answer from before one's own write, never more than its share of memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

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
    InvalidValueError,
    StorageConnectionError,
    StorageError,
)
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer, UniformLayer
from aiecs_resilient.layers.cache import Cache
from aiecs_resilient.layers.cache._entries import OVERHEAD_BYTES, STEP, Entries, Entry
from aiecs_resilient.layers.cache._state import CacheState
from aiecs_resilient.layers.cache._tail import array, tail_of
from aiecs_resilient.operations import Effect, Operation, active, begin, deadline, finish, operation
from aiecs_resilient.records import Route

VIRTUAL_TIME = True

P = ParamSpec("P")
T = TypeVar("T")


class Slow(UniformLayer):
    """Takes ``before`` and ``after`` seconds around what it does, notes what it was asked, fails as it is told."""

    def __init__(self, inner: Backend | None = None) -> None:
        super().__init__(inner or MemoryStorageBackend(name="mem"))
        self.before = 0.0
        self.after = 0.0
        self.asked: list[str] = []
        self.errors: list[Exception] = []
        self.failing: StorageError | None = None
        self.stale = False
        self.clock: int | None = None

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context, token = begin(op)
        try:
            self.asked.append(op.name)
            before, after = self.before, self.after
            if before:
                await asyncio.sleep(before)
            if self.failing is not None:
                raise self.failing
            if self.errors:
                raise self.errors.pop(0)
            answer = await call(*args, **kwargs)
            context.stale = context.stale or self.stale
            if self.clock is not None and op.effect is Effect.READ:
                context.clock = self.clock
            if after:
                await asyncio.sleep(after)
            return answer
        finally:
            finish(token)


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    """A store of which the tests decide how long it takes."""
    async with Slow() as store:
        yield store


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------- hits


async def test_what_was_read_is_not_asked_for_again(slow: Slow) -> None:
    """One question to the store; the second answer says where it came from, and is good for ``expected_version=``."""
    async with Cache(slow) as layer:
        await slow.create_session("s", "u", {"tags": ["a"]})
        slow.asked.clear()
        first = await layer.get_session("s")
        async with operation() as op:
            assert await layer.get_session("s") == first
        assert slow.asked == ["get_session"]
        assert (op.served_by, op.attempts) == ("cache", 0)
        assert await layer.update_session("s", {"a": 1}, expected_version=op.position) is True


async def test_answers_are_copies(slow: Slow) -> None:
    """Whatever a caller does to one, no other sees it."""
    async with Cache(slow) as layer:
        await layer.create_session("s", "u", {"tags": ["a"]})
        await layer.add_conversation_message("s", "user", "x", {"n": [1]})
        await layer.store_task_context("s", {"steps": [1]})
        await layer.store_checkpoint("s", "c", {"deep": {"list": [1]}})
        for _ in range(3):
            session = await layer.get_session("s")
            history = await layer.get_conversation_history("s")
            context = await layer.get_task_context("s")
            checkpoint = await layer.get_checkpoint("s")
            assert session is not None
            assert checkpoint is not None
            assert session["metadata"] == {"tags": ["a"]}
            assert history[0]["metadata"] == {"n": [1]}
            assert context == {"steps": [1]}
            assert checkpoint["data"] == {"deep": {"list": [1]}}
            session["metadata"]["tags"].append("b")
            history[0]["metadata"]["n"].append(2)
            history.clear()
            context["steps"].append(2)
            checkpoint["data"]["deep"]["list"].append(2)


async def test_values_come_back_as_they_are(slow: Slow) -> None:
    """Tuples, bytes, large integers and floats from here are those of the store."""
    value = {"t": (1, (2, "x")), "b": b"\x00\xff", "i": 2**80, "f": -0.5, "n": None, "u": "\x00ü"}
    async with Cache(slow) as layer:
        await layer.store_task_context("s", value)
        assert await layer.get_task_context("s") == value
        again = await layer.get_task_context("s")
        assert again == value
        assert isinstance(again["t"], tuple)


async def test_that_there_is_nothing_is_known_for_a_shorter_time(slow: Slow) -> None:
    """``negative_ttl``; and with 0 it is asked each time."""
    async with Cache(slow, negative_ttl=2.0, jitter=0.0) as layer, Cache(slow, negative_ttl=0.0) as never:
        for _ in range(3):
            assert await layer.get_session("s") is None
            assert await layer.get_checkpoint("s") is None
            assert await layer.get_task_context("s") is None
            assert await layer.get_conversation_history("s") == []
        assert len(slow.asked) == 4
        await asyncio.sleep(2.0)
        assert await layer.get_session("s") is None
        assert len(slow.asked) == 5
        for _ in range(3):
            assert await never.get_session("s") is None
        assert len(slow.asked) == 8


async def test_an_answer_is_good_for_its_time(slow: Slow) -> None:
    """Then the store is asked; what was loaded together is not due together."""
    async with Cache(slow, ttl=100.0, jitter=0.5) as layer:
        for n in range(50):
            await slow.create_session(f"s{n}", "u")
            await layer.get_session(f"s{n}")
        slow.asked.clear()
        asked = []
        for _ in range(4):
            for n in range(50):
                await layer.get_session(f"s{n}")
            asked.append(len(slow.asked))
            slow.asked.clear()
            await asyncio.sleep(26.0 if len(asked) > 1 else 49.9)
        assert asked[0] == asked[1] == 0
        assert 5 < asked[2] < 45
        assert asked[2] + asked[3] >= 50


async def test_what_is_switched_off_is_not_kept(slow: Slow) -> None:
    """Each kind by itself."""
    async with Cache(slow, sessions=False, histories=False, contexts=False, checkpoints=False) as layer:
        for _ in range(2):
            await layer.get_session("s")
            await layer.get_conversation_history("s")
            await layer.get_task_context("s")
            await layer.get_checkpoint("s")
            await layer.batch_get_sessions(["s"])
        assert len(slow.asked) == 10
        assert len(layer.state.entries) == 0


async def test_many_at_once_ask_only_for_what_is_missing(slow: Slow) -> None:
    """``batch_get_sessions``: what is known from here, the rest in one request; and what it brought is known then."""
    seen: list[list[str]] = []

    class Look(Layer):
        async def batch_get_sessions(self, session_ids: Any) -> Any:
            seen.append(list(session_ids))
            return await self.inner.batch_get_sessions(session_ids)

    async with Cache(Look(slow)) as layer:
        for n in (1, 2, 3):
            await slow.create_session(f"s{n}", "u")
        await layer.get_session("s2")
        found = await layer.batch_get_sessions(["s3", "s2", "none", "s1"])
        assert [item and item["session_id"] for item in found] == ["s3", "s2", None, "s1"]
        assert seen == [["s3", "none", "s1"]]
        slow.asked.clear()
        assert await layer.batch_get_sessions(["s3", "s2", "none", "s1"]) == found
        assert await layer.get_session("s1") == found[3]
        assert slow.asked == []
        async with operation() as op:  # its position is not known from there, so the store is asked
            await layer.get_session("s1")
        assert slow.asked == ["get_session"]
        assert await layer.update_session("s1", {"a": 1}, expected_version=op.position) is True


async def test_only_the_latest_checkpoint_is_kept(slow: Slow) -> None:
    """It answers for its id too; another one is asked of the store."""
    async with Cache(slow) as layer:
        await layer.store_checkpoint("t", "a", {"n": 1})
        await layer.store_checkpoint("t", "b", {"n": 2})
        latest = await layer.get_checkpoint("t")
        slow.asked.clear()
        assert await layer.get_checkpoint("t", "b") == latest
        assert slow.asked == []
        older = await layer.get_checkpoint("t", "a")
        assert older is not None
        assert older["data"] == {"n": 1}
        assert await layer.get_checkpoint("t") == latest
        assert slow.asked == ["get_checkpoint"]


# ---------------------------------------------------------------------- one load for many


async def test_a_thousand_who_want_the_same_are_one_load(slow: Slow) -> None:
    """One question; each of them has an answer of its own, with its account."""
    async with Cache(slow) as layer:
        await slow.create_session("s", "u", {"n": []})
        slow.asked.clear()
        slow.before = 1.0
        found = await asyncio.gather(*(layer.get_session("s") for _ in range(1_000)))
        assert slow.asked == ["get_session"]
        assert all(item == found[0] for item in found)
        found[0]["metadata"]["n"].append(1)
        assert found[1]["metadata"] == {"n": []}
        assert (layer.state.counts.misses, layer.state.counts.joined) == (1, 999)


@pytest.mark.parametrize("gone", [0, 1, 9])
async def test_who_gives_up_waiting_disturbs_nobody(slow: Slow, gone: int) -> None:
    """Be it the one who loads: the next one goes on, and still it is one load at a time."""
    async with Cache(slow) as layer:
        await slow.create_session("s", "u")
        slow.asked.clear()
        slow.before = 1.0
        readers = [asyncio.ensure_future(layer.get_session("s")) for _ in range(10)]
        await asyncio.sleep(0.5)
        readers[gone].cancel()
        found = await asyncio.gather(*readers, return_exceptions=True)
        assert all(item for n, item in enumerate(found) if n != gone)
        assert len(slow.asked) == (2 if gone == 0 else 1)
        assert not layer.state.fences.flights
        assert not layer.state.fences._fences


async def test_a_deadline_is_its_owners_own(slow: Slow) -> None:
    """The one who loads runs out of time: the others are not told that they did."""
    async with Cache(slow) as layer:
        await slow.create_session("s", "u")
        slow.before, slow.errors = 1.0, [DeadlineExceededError("too late")]
        readers = [asyncio.ensure_future(layer.get_session("s")) for _ in range(5)]
        found = await asyncio.gather(*readers, return_exceptions=True)
        assert isinstance(found[0], DeadlineExceededError)
        assert all(isinstance(item, dict) for item in found[1:])


async def test_a_failure_is_told_to_each(slow: Slow) -> None:
    """A store that is away is asked once, and nobody shares an error object with another."""
    async with Cache(slow) as layer:
        slow.asked.clear()
        slow.before, slow.errors = 1.0, [StorageConnectionError("gone")]
        found = await asyncio.gather(*(layer.get_session("s") for _ in range(5)), return_exceptions=True)
        assert [type(item) for item in found] == [StorageConnectionError] * 5
        assert len({id(item) for item in found}) == 5
        assert slow.asked == ["get_session"]


async def test_a_mistake_is_nobody_elses(slow: Slow) -> None:
    """An error of one call's own does not reach the others."""
    async with Cache(slow) as layer:
        slow.before, slow.errors = 1.0, [ZeroDivisionError()]
        found = await asyncio.gather(*(layer.get_session("s") for _ in range(3)), return_exceptions=True)
        assert [type(item) for item in found] == [ZeroDivisionError, type(None), type(None)]
        with pytest.raises(InvalidValueError):
            await layer.get_session(["no", "id"])  # type: ignore[arg-type]


async def test_an_answer_that_cannot_be_kept_is_still_an_answer(slow: Slow) -> None:
    """A store of somebody else's may answer what we have no form for: everybody gets it, and nothing is kept."""
    strange = object()

    class Strange(Layer):
        async def get_task_context(self, session_id: str) -> Any:
            await asyncio.sleep(1.0)
            return {"value": strange}

    async with Cache(Strange(slow)) as layer:
        found = await asyncio.gather(*(layer.get_task_context("s") for _ in range(4)))
        assert found == [{"value": strange}] * 4
        assert monotonic() == 2.0
        assert len(layer.state.entries) == 0


# ---------------------------------------------------------------------- true after writes

WRITES: dict[str, Callable[[Backend], Awaitable[Any]]] = {
    "create_session": lambda s: s.create_session("k", "other", {"new": True}),
    "update_session": lambda s: s.update_session("k", {"step": 9}, increment_requests=True),
    "end_session": lambda s: s.end_session("k"),
    "delete_session": lambda s: s.delete_session("k"),
    "batch_create_sessions": lambda s: s.batch_create_sessions([{"session_id": "k", "user_id": "w"}]),
    "add_conversation_message": lambda s: s.add_conversation_message("k", "user", "new", {"a": (1,)}),
    "batch_add_conversation_messages": lambda s: s.batch_add_conversation_messages(
        [{"session_id": "k", "role": "user", "content": f"m{n}"} for n in range(3)]
    ),
    "store_checkpoint": lambda s: s.store_checkpoint("k", "c2", {"n": 2}),
    "put_checkpoint": lambda s: s.put_checkpoint("k", "c1", {"n": 2}),
    "prune_checkpoints": lambda s: s.prune_checkpoints("k", 0),
    "delete_thread": lambda s: s.delete_thread("k"),
    "store_task_context": lambda s: s.store_task_context("k", {"n": 2}),
    "cleanup_expired_sessions": lambda s: s.cleanup_expired_sessions(0),
}


async def everything(store: Backend) -> list[Any]:
    return [
        await store.get_session("k"),
        await store.batch_get_sessions(["k"]),
        *[await store.get_conversation_history("k", limit) for limit in (0, 1, 2, 50, 1_000)],
        await store.get_task_context("k"),
        await store.get_checkpoint("k"),
        await store.get_checkpoint("k", "c1"),
    ]


async def fill(store: Backend) -> None:
    await store.create_session("k", "u", {"old": True})
    for n in range(3):
        await store.add_conversation_message("k", "user", f"old {n}")
    await store.store_task_context("k", {"n": 1})
    await store.store_checkpoint("k", "c1", {"n": 1})


@pytest.mark.parametrize("named", [False, True], ids=["minted", "named"])
@pytest.mark.parametrize("name", WRITES)
async def test_after_a_write_every_answer_is_the_stores(slow: Slow, name: str, named: bool) -> None:
    """Whatever was known before: all that is read afterwards is what the store would answer."""
    async with Cache(slow) as layer:
        await fill(layer)
        await everything(layer)
        await asyncio.sleep(0.001)
        if named:
            async with operation("mine"):
                await WRITES[name](layer)
        else:
            await WRITES[name](layer)
        for _ in range(2):
            assert await everything(layer) == await everything(slow)
        assert not layer.state.fences._writers


@pytest.mark.parametrize("name", WRITES)
async def test_a_load_that_began_before_a_write_is_not_kept(slow: Slow, name: str) -> None:
    """It may have seen what was there before; its own caller called before too."""
    async with Cache(slow) as layer:
        await fill(slow)
        await asyncio.sleep(0.001)
        slow.after = 10.0  # they have seen it, and are long on the way back
        loads = [asyncio.ensure_future(everything(layer)) for _ in range(2)]
        loads += [
            asyncio.ensure_future(read)
            for read in (
                layer.get_conversation_history("k"),
                layer.get_task_context("k"),
                layer.get_checkpoint("k"),
            )
        ]
        await asyncio.sleep(1.0)
        slow.after = 0.0
        await WRITES[name](layer)
        assert await everything(layer) == await everything(slow)
        await asyncio.gather(*loads)
        assert await everything(layer) == await everything(slow)


@pytest.mark.parametrize("error", [StorageConnectionError("lost"), ZeroDivisionError(), None])
async def test_after_an_unknown_outcome_nothing_is_kept_for_a_while(
    slow: Slow, error: Exception | None
) -> None:
    """The write may still arrive: whoever reads meanwhile asks the store each time. Likewise when it was cancelled."""
    async with Cache(slow, settle=5.0, jitter=0.0) as layer:
        await fill(layer)
        await everything(layer)
        slow.before = 0.5
        slow.errors = [error] if error else []
        write = asyncio.ensure_future(layer.update_session("k", {"step": 1}))
        await asyncio.sleep(0.2)
        if error is None:
            write.cancel()
        await asyncio.wait([write])
        slow.before = 0.0
        slow.asked.clear()
        await layer.get_session("k")
        await slow.inner.update_session("k", {"step": 2})  # it arrives late
        session = await layer.get_session("k")
        assert session is not None
        assert session["step"] == 2
        assert slow.asked == ["get_session"] * 2
        await layer.get_task_context("k")
        assert slow.asked == ["get_session"] * 2, "another kind is not concerned"
        await asyncio.sleep(5.0)
        for _ in range(3):
            await layer.get_session("k")
        assert slow.asked == ["get_session"] * 3
        assert not layer.state.fences._unsettled


async def test_a_refused_write_is_certain(slow: Slow) -> None:
    """Not applied: what comes next may be kept at once. A conflict says that what was known is old."""
    async with Cache(slow) as layer:
        await fill(layer)
        await layer.get_session("k")
        await slow.inner.update_session("k", {"by": "another process"})
        with pytest.raises(ConflictError):
            await layer.update_session("k", {"a": 1}, expected_version=1)
        slow.asked.clear()
        for _ in range(2):
            session = await layer.get_session("k")
            assert session is not None
            assert session["by"] == "another process"
        assert slow.asked == ["get_session"]


async def test_what_create_returned_is_known(slow: Slow) -> None:
    """No question is needed for a session that was just made; its position is good too."""
    async with Cache(slow) as layer:
        created = await layer.create_session("s", "u", {"a": (1, 2)})
        slow.asked.clear()
        async with operation() as op:
            assert await layer.get_session("s") == created
        assert slow.asked == []
        assert await layer.update_session("s", {"a": 1}, expected_version=op.position) is True


async def test_a_repeated_create_is_not_taken_for_new(slow: Slow) -> None:
    """A repeat under its identity answers as at first, but the session has gone on."""
    async with Cache(slow) as layer:
        async with operation("once"):
            await layer.create_session("s", "u")
        await layer.update_session("s", increment_requests=True)
        async with operation("once"):
            await layer.create_session("s", "u")
        session = await layer.get_session("s")
        assert session is not None
        assert session["request_count"] == 1


async def test_two_writers_at_once_leave_nothing_assumed(slow: Slow) -> None:
    """Which of two was last is known to the store alone."""
    async with Cache(slow) as layer:
        slow.before = 1.0
        first = asyncio.ensure_future(layer.create_session("s", "one"))
        await asyncio.sleep(0.5)
        slow.before = 0.1
        await layer.create_session("s", "two")
        await first
        session = await layer.get_session("s")
        assert session is not None
        assert session["user_id"] == "one"


async def test_a_flagged_answer_is_not_kept(slow: Slow) -> None:
    """What a store itself calls stale is passed on as such, to all who wait, and asked for again."""
    async with Cache(slow) as layer:
        await slow.create_session("s", "u")
        slow.stale, slow.before = True, 0.1

        async def one() -> bool:
            async with operation() as op:
                await layer.get_session("s")
            return op.stale

        assert await asyncio.gather(one(), one()) == [True, True]
        slow.stale = False
        slow.asked.clear()
        assert await one() is False
        assert slow.asked == ["get_session"]


async def test_an_answer_from_a_copy_that_lacks_our_write_is_not_kept(slow: Slow) -> None:
    """After a takeover a store may be behind what this process has seen acknowledged: answered, but not kept."""
    async with Cache(slow) as layer:
        await layer.create_session("s", "u")
        await layer.update_session("s", {"a": 1})
        slow.clock = 5
        await layer.get_session("s")
        slow.clock = None
        slow.asked.clear()
        for _ in range(2):
            await layer.get_session("s")
        assert slow.asked == ["get_session"]
        assert layer.state.counts.fenced == 1


async def test_what_may_change_anything_makes_everything_unknown(slow: Slow) -> None:
    """Clean-up and a moved route; if their outcome is unknown nothing at all is kept for a while."""
    async with Cache(slow, settle=5.0) as layer:
        await fill(layer)
        await everything(layer)
        await layer.move_route(0, Route(1, "mem"))
        assert len(layer.state.entries) == 0
        await everything(layer)
        slow.errors = [StorageConnectionError("lost")]
        with pytest.raises(StorageConnectionError):
            await layer.cleanup_expired_sessions()
        await everything(layer)
        assert len(layer.state.entries) == 0
        await asyncio.sleep(5.0)
        await everything(layer)
        assert len(layer.state.entries) == 4


# ---------------------------------------------------------------------- histories


async def test_a_message_is_added_to_what_is_known(slow: Slow) -> None:
    """A conversation is read once, however long it goes on; its answers are the store's."""
    async with Cache(slow, history=10) as layer:
        await layer.get_conversation_history("s")
        slow.asked.clear()
        for n in range(30):
            await layer.add_conversation_message("s", "user", f"m{n}", {"n": (n,)} if n % 2 else None)
            for limit in (1, 5, 10):
                mine = await layer.get_conversation_history("s", limit)
                assert mine == await slow.inner.get_conversation_history("s", limit)
        assert set(slow.asked) == {"add_conversation_message"}
        assert layer.state.counts.extended == 30
        async with operation() as op:
            last = await layer.get_conversation_history("s", 3)
        assert op.position == last[-1]["position"]


async def test_more_than_is_known_is_asked_for(slow: Slow) -> None:
    """A longer history, an older page or what came after a position is the store's to answer."""
    async with Cache(slow, history=10) as layer:
        for n in range(20):
            await slow.add_conversation_message("s", "user", f"m{n}")
        five = await layer.get_conversation_history("s", 5)
        slow.asked.clear()
        assert await layer.get_conversation_history("s", 5) == five
        assert await layer.get_conversation_history("s", 2) == five[-2:]
        assert slow.asked == []
        assert len(await layer.get_conversation_history("s", 8)) == 8
        assert len(await layer.get_conversation_history("s", 0)) == 20
        assert len(await layer.get_conversation_history("s", 15)) == 15
        assert len(await layer.get_conversation_history("s", 5, before=five[0]["position"])) == 5
        assert await layer.get_conversation_history("s", 50, after=five[2]["position"]) == five[3:]
        assert len(slow.asked) == 5
        assert await layer.get_conversation_history("s", 8) == await slow.inner.get_conversation_history(
            "s", 8
        )
        assert len(slow.asked) == 5


async def test_a_history_that_is_all_there_answers_any_limit(slow: Slow) -> None:
    """Fewer than were asked for is all there are."""
    async with Cache(slow) as layer:
        for n in range(3):
            await slow.add_conversation_message("s", "user", f"m{n}")
        all_of_it = await layer.get_conversation_history("s", 50)
        slow.asked.clear()
        for limit in (0, 3, 100, 100_000):
            assert await layer.get_conversation_history("s", limit) == all_of_it
        assert slow.asked == []


async def test_messages_said_at_once_leave_the_order_to_the_store(slow: Slow) -> None:
    """Which came first is not known here: the history is read anew."""
    async with Cache(slow) as layer:
        await layer.get_conversation_history("s")
        slow.before = 0.1
        await asyncio.gather(*(layer.add_conversation_message("s", "user", f"m{n}") for n in range(5)))
        assert layer.state.counts.extended == 0
        assert await layer.get_conversation_history("s") == await slow.inner.get_conversation_history("s")


async def test_a_message_said_again_is_not_added_again(slow: Slow) -> None:
    """A repeat under its identity stands where it stood."""
    async with Cache(slow) as layer:
        for text in ("a", "b", "a"):
            async with operation(text):
                await layer.add_conversation_message("s", "user", text)
            await layer.get_conversation_history("s")
        assert [m["content"] for m in await layer.get_conversation_history("s")] == ["a", "b"]
        await layer.delete_session("s")
        assert await layer.get_conversation_history("s") == []
        async with operation("a"):
            await layer.add_conversation_message("s", "user", "a")
        assert await layer.get_conversation_history("s") == await slow.inner.get_conversation_history("s")


async def test_adding_makes_nothing_good_for_longer(slow: Slow) -> None:
    """What another process said meanwhile is seen in time, also in a busy conversation."""
    async with Cache(slow, ttl=10.0, jitter=0.0) as layer:
        await layer.add_conversation_message("s", "user", "first")
        await layer.get_conversation_history("s")
        await slow.inner.add_conversation_message("s", "user", "another process")
        for n in range(11):
            await asyncio.sleep(1.0)
            await layer.add_conversation_message("s", "user", f"m{n}")
        texts = [m["content"] for m in await layer.get_conversation_history("s")]
        assert texts[:2] == ["first", "another process"]


def test_a_tail_grows_at_its_end_only() -> None:
    """A message that does not come after all that are known makes the history unknown, not wrong."""
    message = {"message_id": "a", "position": 5, "role": "user", "content": "x", "metadata": {}}
    tail = tail_of([message], complete=True, position=5, clock=5)
    assert tail.followed_by({**message, "position": 5}, 10) is None
    assert tail.followed_by({**message, "position": 4}, 10) is None
    longer = tail.followed_by({**message, "position": 6}, 10)
    assert longer is not None
    assert [item["position"] for item in longer.last(0) or []] == [5, 6]
    shorter = tail.followed_by({**message, "position": 6}, 1)
    assert shorter is not None
    assert shorter.last(0) is None
    assert [item["position"] for item in shorter.last(1) or []] == [6]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_encoded_messages_joined_are_an_array(count: int) -> None:
    """What MessagePack says of arrays of any length."""
    import ormsgpack

    assert ormsgpack.unpackb(array([ormsgpack.packb(n % 100) for n in range(count)])) == [
        n % 100 for n in range(count)
    ]


# ---------------------------------------------------------------------- when the store fails


async def test_what_was_over_not_long_ago_stands_in_for_a_store_that_fails(
    slow: Slow, events: list[telemetry.Event]
) -> None:
    """Within ``stale_if_error``, flagged, told and counted; after that the error is the answer."""
    async with Cache(slow, ttl=10.0, jitter=0.0, stale_if_error=30.0) as layer:
        created = await layer.create_session("s", "u")
        await asyncio.sleep(11.0)
        slow.failing = CircuitOpenError("open")
        async with operation() as op:
            assert await layer.get_session("s") == created
        assert (op.stale, op.served_by) == (True, "cache")
        assert [event.name for event in events] == [telemetry.ANSWER_STALE]
        assert layer.state.counts.stale == 1
        found = await asyncio.gather(*(layer.get_session("s") for _ in range(3)))
        assert found == [created] * 3
        await asyncio.sleep(30.0)
        with pytest.raises(CircuitOpenError):
            await layer.get_session("s")


async def test_nothing_stands_in_for_what_is_not_true(slow: Slow) -> None:
    """Not after a write made it untrue, not for a caller's mistake, not on a closed store, and not unless allowed."""
    async with (
        Cache(slow, ttl=10.0, jitter=0.0, stale_if_error=30.0) as layer,
        Cache(slow, ttl=1.0) as strict,
    ):
        await slow.create_session("s", "u")
        await strict.get_session("s")
        await layer.get_session("s")
        await layer.get_task_context("none")
        await asyncio.sleep(11.0)
        for error in (InvalidValueError("no"), BackendClosedError("closed"), ConflictError("no")):
            slow.failing = error
            with pytest.raises(type(error)):
                await layer.get_session("s")
        slow.failing = StorageConnectionError("gone")
        with pytest.raises(StorageConnectionError):
            await strict.get_session("s")
        with pytest.raises(StorageConnectionError):
            await layer.get_task_context("none")  # "there is none" never stands in
        slow.failing = None
        await layer.update_session("s", {"a": 1})
        slow.failing = StorageConnectionError("gone")
        with pytest.raises(StorageConnectionError):
            await layer.get_session("s")


async def test_what_is_read_is_renewed_before_it_is_over(slow: Slow) -> None:
    """In the background, once, without anybody waiting; a failure there is nobody's."""
    async with Cache(slow, ttl=10.0, jitter=0.0, refresh_ahead=0.2) as layer:
        await layer.create_session("s", "u")
        await asyncio.sleep(8.5)
        await slow.inner.update_session("s", {"by": "another process"})
        slow.before = 0.5
        slow.asked.clear()
        async with deadline(60.0):
            before = monotonic()
            for _ in range(5):
                session = await layer.get_session("s")
                assert session is not None
                assert "by" not in session
            assert monotonic() == before
        await asyncio.sleep(0.6)
        assert slow.asked == ["get_session"]
        session = await layer.get_session("s")
        assert session is not None
        assert session["by"] == "another process"
        await asyncio.sleep(9.0)
        slow.errors = [StorageConnectionError("gone")]
        assert await layer.get_session("s") == session
        await asyncio.sleep(0.6)
        assert await layer.get_session("s") == session
        assert layer.state.counts.refreshed == 2
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_refresh_belongs_to_nobody(slow: Slow) -> None:
    """It carries neither the identity nor the deadline of the read that caused it."""
    seen: list[Any] = []

    class Look(Layer):
        async def get_session(self, session_id: str) -> Any:
            seen.append(active())
            return await self.inner.get_session(session_id)

    async with Cache(Look(slow), ttl=10.0, refresh_ahead=1.0) as layer:
        await layer.create_session("s", "u")
        async with deadline(5.0), operation() as op:
            await layer.get_session("s")
        await turns()
        assert seen[0] is not op
        assert seen[0].deadline is None


# ---------------------------------------------------------------------- bounds


async def test_it_holds_no_more_than_it_may(slow: Slow) -> None:
    """In entries and in bytes; those not used for longest leave first."""
    async with Cache(slow, max_entries=10) as layer, Cache(slow, max_bytes=20_000) as small:
        for n in range(50):
            await layer.get_session(f"s{n}")
            await layer.get_session("s0")
        assert len(layer.state.entries) == 10
        assert layer.state.entries.evicted == 40
        slow.asked.clear()
        await layer.get_session("s0")
        assert slow.asked == []
        for n in range(50):
            await slow.store_task_context(f"c{n}", "x" * 1_000)
            await small.get_task_context(f"c{n}")
        assert 8 < len(small.state.entries) < 13
        assert small.state.entries.bytes <= 20_000


async def test_what_is_larger_than_everything_leaves_no_old_value(slow: Slow) -> None:
    """It is answered and not kept, and what stood there before is gone."""
    async with Cache(slow, max_bytes=5_000) as layer:
        await layer.store_task_context("s", "old")
        assert await layer.get_task_context("s") == "old"
        await layer.store_task_context("s", "x" * 10_000)
        for _ in range(2):
            assert await layer.get_task_context("s") == "x" * 10_000
        assert len(layer.state.entries) == 0


def test_what_is_over_leaves_a_few_at_a_time() -> None:
    """A hundred thousand entries that are over at once: each new one makes room for some, never for all."""
    entries = Entries(200_000, 1 << 40)

    def put(n: int, now: float, until: float) -> int:
        entry = Entry(b"x", 1, 1)
        entry.kept_until = until
        before = len(entries)
        entries.put(("session", f"s{n}"), entry, now)
        return before + 1 - len(entries)

    for n in range(100_000):
        assert put(n, 0.0, 10.0) == 0
    left = [put(100_000 + n, 20.0, 30.0) for n in range(10_000)]
    assert max(left) == STEP
    assert len(entries) == 10_000
    assert entries.expired == 100_000


def test_bookkeeping_stays_in_proportion() -> None:
    """Entries that leave before their time do not pile up behind one that stays."""
    entries = Entries(1_000, 1 << 40)
    old = Entry(b"", 1, 1)
    old.kept_until = 1e9
    entries.put(("session", "old"), old, 0.0)
    for n in range(20_000):
        entry = Entry(b"x", 1, 1)
        entry.kept_until = 1e9
        entries.put(("session", f"s{n % 100}"), entry, float(n))
        if n % 3 == 0:
            entries.drop(("session", f"s{n % 100}"))
    assert len(entries._queue) <= 4 * len(entries) + 4 * STEP
    assert entries.get(("session", "old")) is old


def test_sizes_are_real() -> None:
    """What entries take beside their values is no more than is counted for them."""
    import tracemalloc

    entries = Entries(10_000, 1 << 40)
    tracemalloc.start()
    before, _peak = tracemalloc.get_traced_memory()
    for n in range(5_000):
        entry = Entry(bytes(100), 1_700_000_000_000_000 + n, 1_700_000_000_000_000 + n)
        entry.kept_until = 1e9 + n
        entries.put(("session", f"session-{n}"), entry, 0.0)
    after, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert entries.bytes == 5_000 * (OVERHEAD_BYTES + 100)
    assert 0.5 * entries.bytes < after - before < 1.05 * entries.bytes


# ---------------------------------------------------------------------- lifecycle


async def test_a_closed_cache_says_so(slow: Slow) -> None:
    """Also of what it knew a moment ago."""
    layer = Cache(slow)
    await layer.initialize()
    await layer.create_session("s", "u")
    await layer.close()
    with pytest.raises(BackendClosedError):
        await layer.get_session("s")
    await layer.initialize()
    assert len(layer.state.entries) == 0, "others may have written meanwhile"


async def test_a_reload_keeps_what_is_known_of_the_same_store(slow: Slow) -> None:
    """Two chains share it while one takes over; what another store answered is forgotten."""
    state = CacheState()
    old = Cache(slow, state=state)
    await old.initialize()
    await old.create_session("s", "u")
    new = Cache(Layer(slow), state=state)
    await new.initialize()
    slow.asked.clear()
    session = await new.get_session("s")
    assert session is not None
    await old.update_session("s", {"a": 1})
    assert (await new.get_session("s") or {})["a"] == 1
    old._open = False  # it goes, and the store stays
    state.users -= 1
    await new.get_session("s")
    assert slow.asked == ["update_session", "get_session"]
    assert len(Cache(slow, state=state, max_entries=5).state.entries) == 0
    await new.get_session("s")
    assert len(Cache(MemoryStorageBackend(), state=state).state.entries) == 0


async def test_options_are_checked(slow: Slow) -> None:
    """Out of range is said when the layer is built."""
    for options in (
        {"ttl": 0.0},
        {"jitter": 1.5},
        {"max_bytes": 0},
        {"stale_if_error": -1.0},
        {"history": 0},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            Cache(slow, **options)  # type: ignore[arg-type]


async def test_it_tells_how_well_it_works(slow: Slow) -> None:
    """Hit rate, size and evictions; in health, metrics and ``repr``."""
    async with Cache(slow) as layer:
        for _ in range(4):
            await layer.get_session("s")
        facts = (await layer.get_metrics())["layers"]["cache"]
        assert (facts["hits"], facts["misses"], facts["hit_rate"], facts["entries"]) == (3, 1, 0.75, 1)
        assert facts["bytes"] == layer.state.entries.bytes > 0
        assert (await layer.health_check())["layers"]["cache"]["hit_rate"] == 0.75
        assert "1 entries" in repr(layer)
        assert "hit rate 75%" in repr(layer)


# ---------------------------------------------------------------------- everything at once


@pytest.mark.parametrize("seed", range(10))
async def test_no_answer_is_from_before_an_acknowledged_write(seed: int) -> None:
    """Readers, writers, failures, lost replies, cancellations: a read never shows less than was acknowledged before it."""
    chance = random.Random(seed)
    slow = Slow()
    acknowledged: dict[str, int] = {}

    class Unsure(UniformLayer):
        async def around(
            self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
        ) -> T:
            await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.05:
                raise StorageConnectionError("refused", outcome="not_applied")
            answer = await call(*args, **kwargs)
            await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.05:
                raise StorageConnectionError("the reply was lost")
            return answer

    async with Cache(
        Unsure(slow), ttl=1.0, settle=0.5, max_entries=chance.choice([3, 100]), refresh_ahead=0.3
    ) as layer:
        await slow.create_session("a", "u", {})
        await slow.create_session("b", "u", {})

        async def writer(key: str) -> None:
            for n in range(1, 60):
                try:
                    match n % 3:
                        case 0:
                            await layer.update_session(key, {"n": n})
                        case 1:
                            await layer.store_task_context(key, {"n": n})
                        case _:
                            await layer.add_conversation_message(key, "user", str(n))
                except StorageError as error:
                    if error.outcome == "unknown":
                        await asyncio.sleep(0.1)
                else:
                    acknowledged[f"{key}{n % 3}"] = n

        async def reader() -> None:
            while True:
                key, kind = chance.choice("ab"), chance.choice([0, 1, 2])
                floor = acknowledged.get(f"{key}{kind}", 0)
                try:
                    if kind == 0:
                        found = ((await layer.get_session(key)) or {}).get("n", 0)
                    elif kind == 1:
                        found = ((await layer.get_task_context(key)) or {}).get("n", 0)
                    else:
                        texts = [int(m["content"]) for m in await layer.get_conversation_history(key, 5)]
                        assert texts == sorted(texts)
                        found = texts[-1] if texts else 0
                    assert found >= floor, f"{key}{kind}: {found}, but {floor} was acknowledged before"
                except StorageError:
                    pass
                await asyncio.sleep(chance.random() * 0.02)

        readers = [asyncio.ensure_future(reader()) for _ in range(12)]
        writers = [asyncio.ensure_future(writer(key)) for key in "ab"]
        while not all(task.done() for task in writers):
            await asyncio.sleep(0.1)
            chance.choice(readers).cancel()
            readers.append(asyncio.ensure_future(reader()))
        await asyncio.gather(*writers)
        for task in readers:
            task.cancel()
        ended = await asyncio.gather(*readers, return_exceptions=True)
        assert [item for item in ended if not isinstance(item, asyncio.CancelledError)] == []
        assert layer.state.counts.hits > 50
    assert not layer.state.fences.flights
    assert not layer.state.fences._fences
    assert not layer.state.fences._writers
