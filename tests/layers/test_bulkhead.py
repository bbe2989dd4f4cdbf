"""The layer `bulkhead`: bounded calls at once, a line that is fair, and repair that nobody can keep waiting."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import ConfigurationError, OverloadedError, StorageConnectionError
from aiecs_resilient.layers._adaptive import GradientLimit
from aiecs_resilient.layers._permits import Permits
from aiecs_resilient.layers.bulkhead import Bulkhead
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import deadline, operation
from aiecs_resilient.records import Kind, Mutation, Route

from .cancellation import cancel_everywhere
from .scripted import Delay, Hang, Scripted, store

VIRTUAL_TIME = True


def replay(key: str, stamp: int = 1) -> Mutation:
    """A record that a store lacks."""
    return Mutation(
        key=key,
        op_id=f"{key}/{stamp}",
        kind=Kind.MESSAGE,
        body={"role": "user", "content": "x", "metadata": b"\x80"},
        fingerprint=bytes(16),
        occurred_at=stamp,
        stamp=stamp,
        replay=True,
    )


async def full(layer: Bulkhead, calls: int) -> list[asyncio.Task[object]]:
    """So many calls under way that do not end by themselves."""
    tasks = [asyncio.create_task(layer.get_session(f"held-{n}")) for n in range(calls)]
    await asyncio.sleep(0)
    return tasks


async def end(tasks: list[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_no_more_calls_than_permits_are_under_way() -> None:
    """However many callers there are, the store sees `limit` of them at once, and all are served."""
    scripted = await store(then=Delay(0.01))
    layer = Bulkhead(scripted, limit=3)
    most = 0

    async def watched(n: int) -> None:
        nonlocal most
        await layer.add_conversation_message("s", "user", f"m{n}")
        most = max(most, scripted.running)

    await asyncio.gather(*(watched(n) for n in range(20)))
    assert max(most, layer.state.limit) == 3
    assert (layer.state.running, layer.state.waiting, layer.state.refused) == (0, 0, 0)
    assert len(await layer.get_conversation_history("s")) == 20


async def test_reject_does_not_wait() -> None:
    """A full store is told at once: nothing was sent, it is not the store's fault, and a retry is no help."""
    scripted = await store(Hang())
    layer = Bulkhead(scripted, limit=1, mode="reject")
    held = await full(layer, 1)
    start = monotonic()
    with pytest.raises(OverloadedError, match="calls do not wait") as caught:
        await Retry(layer).create_session("s", "u")
    assert monotonic() == start
    error = caught.value
    assert (error.transient, error.outcome, error.attempts, error.backend) == (
        False,
        "not_applied",
        0,
        "memory",
    )
    assert len(scripted.calls) == 1
    await end(held)
    assert (await layer.create_session("s", "u"))["session_id"] == "s"


async def test_a_bounded_wait_ends() -> None:
    """Who finds no permit within max_wait is refused, and the line is empty again."""
    layer = Bulkhead(await store(Hang()), limit=1, max_wait=0.25)
    held = await full(layer, 1)
    start = monotonic()
    with pytest.raises(OverloadedError, match="within max_wait"):
        await layer.get_session("s")
    assert monotonic() - start == pytest.approx(0.25)
    assert layer.state.waiting == 0
    await end(held)


@pytest.mark.parametrize("mode", ["bounded_wait", "wait"])
async def test_nobody_waits_beyond_the_deadline(mode: str) -> None:
    """A permit that comes too late to be used is not waited for."""
    layer = Bulkhead(await store(Hang()), limit=1, max_wait=60.0, mode=mode)  # type: ignore[arg-type]
    held = await full(layer, 1)
    start = monotonic()
    with pytest.raises(OverloadedError, match="deadline"):
        async with deadline(0.4):
            await layer.get_session("s")
    assert monotonic() - start < 0.4
    await end(held)


async def test_the_line_is_bounded() -> None:
    """Memory and waiting time do not grow with the load: one more than max_waiting is refused."""
    layer = Bulkhead(await store(Hang()), limit=1, mode="wait", max_waiting=2)
    held = await full(layer, 3)
    with pytest.raises(OverloadedError, match="the line is full"):
        await layer.get_session("s")
    assert layer.state.waiting == 2
    await end(held)
    assert (layer.state.running, layer.state.waiting) == (0, 0)


async def test_the_line_is_in_order() -> None:
    """First come, first served."""
    scripted = await store(then=Delay(1))
    layer = Bulkhead(scripted, limit=1, mode="wait")
    await asyncio.gather(*(layer.add_conversation_message("s", "user", f"{n}") for n in range(5)))
    assert [message["content"] for message in await layer.get_conversation_history("s")] == list("01234")


async def test_a_loud_session_waits_behind_itself() -> None:
    """With fair_by sessions take turns: the quiet one is next, not behind a hundred of another."""
    scripted = await store(then=Delay(1))
    layer = Bulkhead(scripted, limit=1, mode="wait", fair_by="key")
    loud = [asyncio.create_task(layer.get_session("loud")) for _ in range(100)]
    await asyncio.sleep(0)
    start = monotonic()
    await layer.get_session("quiet")
    assert monotonic() - start <= 3
    await end(loud)


async def test_tenants_take_turns() -> None:
    """By tenant, all sessions of one are one."""
    layer = Bulkhead(await store(then=Delay(1)), limit=1, mode="wait", fair_by="tenant")
    loud = [asyncio.create_task(layer.get_session(f"4:loud:{n}")) for n in range(100)]
    await asyncio.sleep(0)
    start = monotonic()
    await layer.get_session("5:quiet:1")
    assert monotonic() - start <= 3
    await end(loud)


async def test_health_close_and_repair_are_never_held_up() -> None:
    """With all permits held by calls that hang, the store is watched, repaired, moved, asked for its health and closed."""
    scripted = await store(Hang(), Hang())
    layer = Bulkhead(scripted, limit=2, mode="reject", reserved=1)
    held = await full(layer, 2)
    start = monotonic()
    await layer.store_state()
    await layer.read_records()
    await layer.close_marks([])
    await layer.move_route(0, Route(1, "memory"))
    [applied] = await layer.apply([replay("k")])
    assert not isinstance(applied, Exception)
    assert (await layer.health_check())["status"] == "healthy"
    with pytest.raises(OverloadedError):
        await layer.get_session("s")
    assert monotonic() == start
    await end(held)
    await layer.close()


async def test_what_a_store_lacks_goes_before_what_is_new() -> None:
    """A record to be replayed is at the head of the line, so that load cannot keep a store from catching up."""
    scripted = await store(then=Delay(1))
    layer = Bulkhead(scripted, limit=1, mode="wait", reserved=1)
    calls: list[Awaitable[object]] = [layer.get_session(f"{n}") for n in range(10)]
    calls += [layer.apply([replay(f"k{n}")]) for n in range(3)]
    await asyncio.gather(*calls)
    assert [call.operation for call in scripted.calls[:5]] == ["get_session", *["apply"] * 3, "get_session"]
    assert (layer.state.running, layer.state.waiting) == (0, 0)


async def test_a_reload_keeps_the_count() -> None:
    """Calls of the old chain hold permits of the new one: together they do not exceed the limit."""
    scripted = await store(Hang(), Hang())
    old = Bulkhead(scripted, limit=1, mode="reject")
    held = await full(old, 1)
    new = Bulkhead(scripted, limit=2, mode="reject", state=old.state)
    another = await full(new, 1)
    with pytest.raises(OverloadedError):
        await new.get_session("s")
    await end([*held, *another])
    assert new.state.running == 0


async def test_a_raised_limit_lets_waiters_through() -> None:
    """Who waits does not wait for a call to end when a reload has made room."""
    scripted = await store(Hang())
    layer = Bulkhead(scripted, limit=1, mode="wait")
    held = await full(layer, 1)
    waiting = asyncio.create_task(layer.get_session("s"))
    await asyncio.sleep(0)
    Bulkhead(scripted, limit=2, state=layer.state)
    assert await waiting is None
    await end(held)


@pytest.mark.parametrize("adaptive", [False, True])
async def test_a_cancelled_call_leaves_nothing_behind(adaptive: bool) -> None:
    """At whichever wait it is cancelled, no permit is lost and nobody is left in the line."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = Bulkhead(
            await store(Delay(1), then=Delay(1)), limit=1, mode="wait", adaptive=adaptive, least=1
        )
        first = asyncio.ensure_future(layer.get_session("first"))
        await asyncio.sleep(0)

        async def check() -> None:
            await first
            assert (layer.state.running, layer.state.waiting) == (0, 0)
            assert await layer.get_session("s") is None

        return layer.end_session("s"), check

    assert await cancel_everywhere(scenario) >= 2


async def test_a_replay_that_is_cancelled_leaves_nothing_behind() -> None:
    """The line of those that go first is left as cleanly."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = Bulkhead(await store(then=Delay(1)), limit=1, mode="wait", reserved=1)
        held = [asyncio.ensure_future(layer.apply([replay(f"{n}")])) for n in range(2)]
        await asyncio.sleep(0)

        async def check() -> None:
            await asyncio.gather(*held)
            assert layer.state.running == 0
            await layer.apply([replay("k")])

        return layer.apply([replay("k")]), check

    assert await cancel_everywhere(scenario) >= 2


async def test_a_permit_that_meets_a_cancellation_is_not_lost() -> None:
    """Granted and cancelled in the same tick: the permit goes on to the next."""
    permits = Permits()
    permits.configure(1, 0, None)
    assert permits.take()
    waiting = asyncio.create_task(permits.wait("", None))
    await asyncio.sleep(0)
    permits.give()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert permits.running == 0
    assert permits.take()


async def test_an_outer_scope_names_one_write_also_when_it_waited() -> None:
    """Waiting in line is part of the one operation that the caller named."""
    layer = Bulkhead(await store(Delay(1)), limit=1, mode="wait")
    held = asyncio.create_task(layer.get_session("x"))
    await asyncio.sleep(0)
    async with operation("mine") as op:
        await layer.create_session("s", "u")
    assert op.op_id == "mine"
    assert op.attempts == 1
    await held


async def test_it_tells_of_a_refusal(events: list[telemetry.Event]) -> None:
    """An operator sees which store was full, and why a call did not wait."""
    layer = Bulkhead(await store(Hang()), limit=1, mode="reject")
    held = await full(layer, 1)
    with pytest.raises(OverloadedError):
        await layer.get_session("s")
    assert [(event.name, dict(event.attributes)) for event in events] == [
        (
            telemetry.BULKHEAD_REJECTED,
            {"backend": "memory", "operation": "get_session", "reason": "full"},
        )
    ]
    facts = (await layer.get_metrics())["layers"]["bulkhead"]
    assert facts == {"limit": 1, "running": 1, "waiting": 0, "admitted": 1, "refused": 1}
    assert (await layer.health_check())["layers"]["bulkhead"] == facts
    assert repr(layer).startswith("<Bulkhead 1/1 under way, 1 refused over ")
    await end(held)


async def test_impossible_options_are_refused() -> None:
    """A wrong value is found when the chain is built, with the range that is allowed."""
    with pytest.raises(ConfigurationError, match="limit must be at least 1"):
        Bulkhead(MemoryStorageBackend(), limit=0)
    with pytest.raises(ConfigurationError, match=r"least .* above limit"):
        Bulkhead(MemoryStorageBackend(), limit=2, least=3, adaptive=True)


class Queueing(Scripted):
    """A store that serves `width` calls at once in 10 ms each; the others queue inside it."""

    def __init__(self, width: int) -> None:
        super().__init__(MemoryStorageBackend())
        self._gate = asyncio.Semaphore(width)
        self.most = 0

    async def around(self, op, call, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.calls.append(op)
        self.most = max(self.most, self.running)
        try:
            async with self._gate:
                await asyncio.sleep(0.01)
                return await call(*args, **kwargs)
        finally:
            self.ended += 1


async def test_an_adaptive_limit_finds_the_stores_width() -> None:
    """Under any load it stays near what the store serves at once, instead of queueing a thousand calls in it."""
    queueing = Queueing(8)
    await queueing.initialize()
    layer = Bulkhead(queueing, limit=200, adaptive=True, least=2, mode="wait", max_waiting=10_000)
    layer.state.adaptive.limit = 8.0  # type: ignore[union-attr]
    layer.state.limit = 8
    for _ in range(30):
        await asyncio.gather(*(layer.get_session("s") for _ in range(100)))
    assert 6 <= layer.state.limit <= 40
    await layer.close()


def test_an_adaptive_limit_moves_both_ways() -> None:
    """Calls as fast as usual raise it, slow ones and faults lower it, and it stays within its bounds."""
    limit = GradientLimit(2, 100, 10.0)
    for _ in range(200):
        limit.succeeded("get_session", 0.01, 10)
    assert limit.limit > 12
    grown = limit.limit
    for _ in range(60):
        limit.succeeded("get_session", 0.2, 100)
    assert limit.limit < grown
    for _ in range(100):
        limit.failed()
    assert limit.limit == 2
    for _ in range(3_000):
        limit.succeeded("get_session", 0.01, 200)
    assert limit.limit == 100


def test_operations_are_compared_with_their_like() -> None:
    """A long one among short ones is no queue."""
    limit = GradientLimit(2, 100, 10.0)
    for n in range(400):
        limit.succeeded("list_sessions" if n % 2 else "get_session", 1.0 if n % 2 else 0.001, 100)
    assert limit.limit > 30


def test_a_store_that_is_slower_for_good_is_believed_in_the_end() -> None:
    """At the lowest limit there is no queue of ours: what calls take there becomes what is usual."""
    limit = GradientLimit(2, 100, 10.0)
    for _ in range(50):
        limit.succeeded("get_session", 0.01, 100)
    for _ in range(200):
        limit.succeeded("get_session", 0.2, 100)
    assert limit.limit == 2
    for _ in range(2_000):
        limit.succeeded("get_session", 0.2, 100)
    assert limit.limit > 20


async def test_a_limit_that_is_not_used_does_not_grow() -> None:
    """One call at a time says nothing about how many the store can take."""
    layer = Bulkhead(await store(then=Delay(0.01)), limit=100, adaptive=True, least=1)
    layer.state.adaptive.limit = 10.0  # type: ignore[union-attr]
    for _ in range(50):
        await layer.get_session("s")
    assert layer.state.adaptive is not None
    assert layer.state.adaptive.limit == 10.0


async def test_a_fault_lowers_an_adaptive_limit() -> None:
    """A store that fails gets less to do; a caller's mistake says nothing."""
    layer = Bulkhead(
        await store(StorageConnectionError("gone"), ValueError("bug"), OverloadedError("ours")),
        limit=100,
        adaptive=True,
    )
    for error in (StorageConnectionError, ValueError, OverloadedError):
        with pytest.raises(error):
            await layer.get_session("s")
    assert layer.state.limit == 90


async def test_a_leader_that_hangs_does_not_starve_the_takeover() -> None:
    """Each leg has its own permits: callers in the hung leader's line are served by the other store, and it catches up."""
    hung = await store()
    other = Scripted(MemoryStorageBackend(name="other"))

    def leg(inner: Scripted) -> Bulkhead:
        return Bulkhead(Timeout(inner, per_attempt=0.25), limit=4, mode="wait", reserved=1)

    async with DualWrite(leg(hung), leg(other), durable_at_least="volatile", dwell=0.0) as pair:
        hung.then = Hang
        async with deadline(5.0):
            answers = await asyncio.gather(*(pair.create_session(f"{n}", "u") for n in range(12)))
        assert [answer["session_id"] for answer in answers] == [f"{n}" for n in range(12)]
        hung.then = None
        await asyncio.sleep(20.0)
        assert (await pair.health_check())["status"] == "healthy"
        found = await hung.inner.batch_get_sessions([f"{n}" for n in range(12)])
        assert None not in found
