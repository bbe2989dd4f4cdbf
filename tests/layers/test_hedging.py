"""The layer `hedging`: a slow read is asked twice, once; a write never; and the call that lost is gone."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import (
    ConfigurationError,
    DataCorruptionError,
    StorageConnectionError,
    StorageTimeoutError,
)
from aiecs_resilient.layers.bulkhead import Bulkhead
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.hedging import Hedging
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import OPERATIONS, Effect, active, deadline, operation

from .cancellation import cancel_everywhere
from .scripted import Delay, Hang, Late, LateAnswer, Scripted, store
from .test_guards import invoke

VIRTUAL_TIME = True

DELAY = 0.1


async def hedged(*script: Any, then: Any = None, **options: Any) -> tuple[Hedging, Scripted]:
    """Asks a second time after 100 ms."""
    scripted = await store(*script, then=then)
    return Hedging(scripted, **{"min_delay": DELAY, "max_delay": DELAY, **options}), scripted


async def test_a_read_that_hangs_is_answered_by_the_second_call() -> None:
    """The caller waits for the delay and one ordinary answer, and the call that hung is over."""
    layer, scripted = await hedged(Hang(), Delay(0.02))
    await scripted.inner.create_session("s", "u")
    start = monotonic()
    session = await layer.get_session("s")
    assert session is not None
    assert session["session_id"] == "s"
    assert monotonic() - start == pytest.approx(DELAY + 0.02)
    assert (len(scripted.calls), scripted.running) == (2, 0)
    assert (layer.state.reads, layer.state.started, layer.state.won) == (1, 1, 1)


async def test_a_read_in_time_is_asked_once() -> None:
    """No second call, no task, nothing spent."""
    layer, scripted = await hedged(Delay(DELAY / 2))
    before = asyncio.all_tasks()
    await layer.get_session("s")
    await asyncio.sleep(10)
    assert asyncio.all_tasks() == before
    assert (len(scripted.calls), layer.state.started) == (1, 0)


async def test_the_first_answer_counts() -> None:
    """Where the first call comes in before the second, the second is cancelled and gone."""
    layer, scripted = await hedged(Delay(0.15), Delay(5))
    start = monotonic()
    await layer.get_session("s")
    assert monotonic() - start == pytest.approx(0.15)
    assert (len(scripted.calls), scripted.running) == (2, 0)
    assert (layer.state.started, layer.state.won) == (1, 0)


async def test_two_answers_in_the_same_moment_are_one() -> None:
    """A tie is no double answer, no error and no leak."""
    layer, scripted = await hedged(Delay(0.2), Delay(0.1))
    assert await layer.get_session("s") is None
    assert scripted.running == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if op.effect is Effect.WRITE])
async def test_a_write_is_never_asked_twice(name: str) -> None:
    """Its effect must not depend on how many calls meet the store."""
    layer, scripted = await hedged(Delay(3600))
    await invoke(layer, name)
    assert len(scripted.calls) == 1


@pytest.mark.parametrize("name", ["store_state", "read_records", "read_idle"])
async def test_what_watches_and_repairs_is_not_asked_twice(name: str) -> None:
    """Those who use it have limits of their own, and the budget is for users."""
    layer, scripted = await hedged(Delay(3600))
    await invoke(layer, name)
    assert len(scripted.calls) == 1


async def test_the_delay_is_learned() -> None:
    """It is the percentile of the last reads of the same kind, within its bounds."""
    scripted = await store(then=Delay(0.01))
    layer = Hedging(scripted, percentile=0.9, min_delay=0.001, max_delay=1.0)
    for _ in range(40):
        await layer.get_session("s")
    assert (await layer.get_metrics())["layers"]["hedging"]["delays"] == {"get_session": pytest.approx(0.01)}
    scripted.script.extend([Hang(), None])
    start = monotonic()
    await layer.get_session("s")
    assert monotonic() - start == pytest.approx(0.01)
    scripted.script.extend([Hang(), None])
    start = monotonic()
    await layer.list_sessions()  # of which nothing is known
    assert monotonic() - start == pytest.approx(1.0)


async def test_bounds_hold() -> None:
    """However quick a store is, it gets min_delay; however slow, no more than max_delay."""
    for seconds, expected in ((0.0001, 0.05), (30.0, 2.0)):
        scripted = await store(then=Delay(seconds))
        layer = Hedging(scripted, min_delay=0.05, max_delay=2.0, budget_floor=0, budget_ratio=0.0)
        for _ in range(40):
            await layer.get_session("s")
        layer = Hedging(scripted, min_delay=0.05, max_delay=2.0, state=layer.state)
        layer.state.budget.give_back()
        scripted.script.extend([Hang(), None])
        start = monotonic()
        await layer.get_session("s")
        assert monotonic() - start == pytest.approx(expected)


async def test_a_slow_store_is_not_asked_twice_for_everything() -> None:
    """When all reads are slow, hedges are limited to the budget's share."""
    layer, scripted = await hedged(then=Delay(1.0), budget_ratio=0.1, budget_floor=0)
    for _ in range(1_000):
        await layer.get_session("s")
    assert len(scripted.calls) <= 1_000 * 1.1 + 10
    assert layer.state.refused > 800


async def test_retry_and_hedge_spend_one_budget() -> None:
    """Both together stay below one share of the requests, and a request pays in once."""
    scripted = await store(then=Delay(1.0))
    leg = Hedging(Timeout(scripted, per_attempt=5.0), min_delay=DELAY, max_delay=DELAY)
    chain = Retry(Timeout(leg, per_attempt=60.0), budget_ratio=0.1, budget_floor=0)
    for _ in range(500):
        await chain.get_session("s")
    budget = chain.state
    assert budget.requests == 500
    assert len(scripted.calls) == 500 + budget.repeats <= 500 * 1.1 + 10
    scripted.then = StorageConnectionError("gone")
    for _ in range(200):
        with contextlib.suppress(StorageConnectionError):
            await chain.get_session("s")
    assert len(scripted.calls) <= 700 * 1.1 + 10


async def test_a_failure_waits_for_the_second_call() -> None:
    """If the first fails for a passing reason while the second is under way, its answer is the answer."""
    layer, scripted = await hedged(Late(0.15, StorageConnectionError("cut")), Delay(0.2))
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    start = monotonic()
    async with operation() as op:
        assert await layer.get_session("s") is None
    assert monotonic() - start == pytest.approx(0.3)
    assert op.attempts == 2
    assert layer.state.won == 1
    assert complaints == []
    assert scripted.running == 0


async def test_two_failures_are_the_first_one() -> None:
    """The caller gets one error, that counts both attempts."""
    layer, _scripted = await hedged(
        Late(0.15, StorageConnectionError("first")), Late(0.2, StorageTimeoutError("second"))
    )
    with pytest.raises(StorageConnectionError, match="first") as caught:
        await layer.get_session("s")
    assert caught.value.attempts == 2


async def test_a_second_call_that_fails_harms_nobody() -> None:
    """The first is still waited for."""
    layer, scripted = await hedged(Delay(1.0), StorageConnectionError("no connection left"))
    start = monotonic()
    assert await layer.get_session("s") is None
    assert monotonic() - start == pytest.approx(1.0)
    assert (len(scripted.calls), layer.state.won) == (2, 0)


@pytest.mark.parametrize(
    "error", [DataCorruptionError("broken"), ValueError("a bug")], ids=["final", "a bug"]
)
async def test_an_error_that_will_not_pass_is_raised_at_once(error: Exception) -> None:
    """The second call could say nothing else, and is cancelled."""
    layer, scripted = await hedged(Late(0.15, error), Hang())
    start = monotonic()
    with pytest.raises(type(error)):
        await layer.get_session("s")
    assert monotonic() - start == pytest.approx(0.15)
    assert scripted.running == 0


async def test_an_early_failure_starts_no_second_call() -> None:
    """That is what retry is for."""
    layer, scripted = await hedged(StorageConnectionError("gone"))
    with pytest.raises(StorageConnectionError):
        await layer.get_session("s")
    await asyncio.sleep(10)
    assert len(scripted.calls) == 1


class Account(Scripted):
    """Two connections of which one lags behind: each call leaves another account."""

    def __init__(self, slow: float) -> None:
        super().__init__(MemoryStorageBackend())
        self.slow = slow
        self.seen: list[Any] = []

    async def around(self, op: Any, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        context = active()
        assert context is not None
        self.seen.append(context)
        number = len(self.seen)
        await asyncio.sleep(self.slow if number == 1 else 0.01)
        context.position, context.clock, context.served_by = number, number, f"connection {number}"
        context.attempts += 1
        return {"answer": number}


@pytest.mark.parametrize(("slow", "winner"), [(5.0, 2), (0.105, 1)])
async def test_the_account_belongs_to_the_answer(slow: float, winner: int) -> None:
    """Position and clock are those of the call that was answered: what expected_version and monotonic reads rely on."""
    inner = Account(slow)
    layer = Hedging(inner, min_delay=DELAY, max_delay=DELAY)
    async with operation("mine") as op:
        assert await layer.get_session("s") == {"answer": winner}
    assert (op.position, op.clock, op.served_by) == (winner, winner, f"connection {winner}")
    assert op.attempts == 2
    assert [context.op_id for context in inner.seen] == ["mine", "mine"]
    assert inner.seen[0] is not inner.seen[1]


async def test_each_call_has_a_time_limit_and_a_permit_of_its_own() -> None:
    """Inside stand the layers that protect the store; a second call that they refuse costs no repeat."""
    scripted = await store(Hang(), Hang())
    bulkhead = Bulkhead(Timeout(scripted, per_attempt=0.3), limit=1, mode="reject")
    layer = Hedging(bulkhead, min_delay=DELAY, max_delay=DELAY)
    before = layer.state.budget.repeats
    with pytest.raises(StorageTimeoutError):
        await layer.get_session("s")
    assert bulkhead.state.refused == 1
    assert layer.state.budget.repeats == before
    assert bulkhead.state.running == 0
    wide = Hedging(Timeout(scripted, per_attempt=0.3), min_delay=DELAY, max_delay=DELAY)
    start = monotonic()
    assert await wide.get_session("s") is None
    assert monotonic() - start == pytest.approx(DELAY)


async def test_the_breaker_counts_no_call_that_lost() -> None:
    """To be cancelled says nothing about the store."""
    scripted = await store(*[step for _ in range(20) for step in (Hang(), None)])
    breaker = CircuitBreaker(scripted, minimum_calls=1)
    layer = Hedging(breaker, min_delay=DELAY, max_delay=DELAY, budget_ratio=1.0)
    for _ in range(20):
        await layer.get_session("s")
    assert breaker.state.opened == 0


async def test_the_deadline_ends_both() -> None:
    """Neither outlives its caller's time."""
    scripted = await store(Hang(), Hang())
    chain = Hedging(Timeout(scripted, per_attempt=60.0), min_delay=DELAY, max_delay=DELAY)
    start = monotonic()
    with pytest.raises(Exception, match="deadline"):
        async with deadline(0.5):
            await chain.get_session("s")
    assert monotonic() - start == pytest.approx(0.5)
    assert scripted.running == 0


@pytest.mark.parametrize(
    "script",
    [
        [Hang(), Delay(0.05)],
        [Delay(0.2), Hang()],
        [Late(0.15, StorageConnectionError("x")), Delay(0.2)],
        [Delay(0.05)],
    ],
    ids=["second wins", "first wins", "first fails", "in time"],
)
async def test_a_cancellation_ends_both(script: list[Any]) -> None:
    """At whichever wait, also while the loser is waited for: no call goes on, no task is left."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer, scripted = await hedged(*script)

        async def check() -> None:
            assert scripted.running == 0
            assert await layer.get_session("s") is None

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) >= 1


class Reluctant(Scripted):
    """A driver that needs a second to let go of a cancelled command."""

    async def around(self, op: Any, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().around(op, call, *args, **kwargs)
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)
            raise


@pytest.mark.parametrize("after", [0.05, 0.12, 0.3, 0.9, 1.3])
async def test_a_cancellation_at_any_time_leaves_nothing(after: float) -> None:
    """Before, while and after the second call runs, also while a driver is still letting go: it arrives, and both are over."""
    inner = Reluctant(MemoryStorageBackend(), [Hang(), Late(0.2, StorageConnectionError("x")), None])
    await inner.initialize()
    layer = Hedging(inner, min_delay=DELAY, max_delay=DELAY)
    task = asyncio.create_task(layer.get_session("s"))
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert inner.running == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancellation_while_the_loser_lets_go_is_not_lost() -> None:
    """The answer is there, the loser is not yet gone, the caller goes away: that is a cancellation, after the loser's end."""
    inner = Reluctant(MemoryStorageBackend(), [Delay(0.2), Hang()])
    await inner.initialize()
    layer = Hedging(inner, min_delay=DELAY, max_delay=DELAY)
    task = asyncio.create_task(layer.get_session("s"))
    await asyncio.sleep(0.5)
    task.cancel()
    start = monotonic()
    await asyncio.wait([task])
    assert task.cancelled()
    assert monotonic() - start == pytest.approx(0.7)
    assert inner.running == 0


async def test_a_timeout_of_somebody_else_is_left_as_it_is() -> None:
    """A TimeoutError from inside is not taken for the end of a race."""
    layer, _scripted = await hedged(Late(0.15, TimeoutError("theirs")), Hang())
    with pytest.raises(TimeoutError, match="theirs"):
        await layer.get_session("s")


async def test_hundreds_at_once_leave_nothing_behind() -> None:
    """Random delays, failures and hangs: every read ends, every call is over."""
    source = random.Random(5)
    steps = [
        source.choice(
            [None, Delay(0.05), Delay(0.3), LateAnswer(0.2), Late(0.12, StorageConnectionError("x"))]
        )
        for _ in range(2_000)
    ]
    layer, scripted = await hedged(*steps, budget_ratio=1.0)
    outcomes = await asyncio.gather(*(layer.get_session("s") for _ in range(500)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), StorageConnectionError}
    assert scripted.running == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_it_is_seen_in_reports_and_kept_by_a_reload(events: list[telemetry.Event]) -> None:
    """What was learned goes on; events tell which reads were slow and whether it helped."""
    layer, scripted = await hedged(Hang(), None)
    await layer.get_session("s")
    told = {"backend": "memory", "operation": "get_session"}
    assert [(event.name, dict(event.attributes)) for event in events] == [
        (telemetry.HEDGE_STARTED, told),
        (telemetry.HEDGE_WON, told),
    ]
    reloaded = Hedging(scripted, budget_ratio=0.0, budget_floor=0, state=layer.state)
    facts = {"reads": 1, "started": 1, "won": 1, "refused": 0, "delays": {}}
    assert (await reloaded.get_metrics())["layers"]["hedging"] == facts
    assert (await reloaded.health_check())["layers"]["hedging"] == facts
    assert repr(reloaded).startswith("<Hedging 1/1 asked twice, 1 won, 0 refused over ")
    scripted.script.append(Delay(5))
    await reloaded.get_session("s")
    assert events[-1].name == telemetry.HEDGE_REFUSED


async def test_only_the_reads_named_are_hedged() -> None:
    """Heavy ones can be left out."""
    layer, scripted = await hedged(Delay(1), Hang(), None, operations=["get_session"])
    await layer.list_sessions()
    assert len(scripted.calls) == 1
    await layer.get_session("s")
    assert len(scripted.calls) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"percentile": 1.5}, "percentile"),
        ({"min_delay": 0}, "min_delay"),
        ({"min_delay": 2.0, "max_delay": 1.0}, r"max_delay \(1 s\) is below min_delay"),
        ({"operations": ["get_sesion"]}, "nearest is 'get_session'"),
        ({"operations": ["create_session"]}, "cannot be asked twice"),
        ({"operations": ["store_state"]}, "cannot be asked twice"),
        ({"budget_ratio": 2.0}, "budget_ratio"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], told: str) -> None:
    """When the chain is built, with what is allowed."""
    with pytest.raises(ConfigurationError, match=told):
        Hedging(MemoryStorageBackend(), **options)
