"""The layer `retry`: again only when it helps, is safe, is funded and is in time."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import (
    CircuitOpenError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    OverloadedError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._budget import RetryBudget
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import Operation, active, deadline, operation

from .cancellation import cancel_everywhere
from .scripted import Delay, Hang, Ignorant, Late, Lost, Scripted, store

VIRTUAL_TIME = True


def gone(**facts: Any) -> StorageConnectionError:
    return StorageConnectionError("gone", **facts)


def layer_over(inner: Scripted, **options: Any) -> Retry:
    """Without the budget's limits, unless they are what is tested."""
    return Retry(inner, **{"budget_ratio": 1.0, "budget_floor": 1_000, **options})


async def test_a_passing_failure_is_not_seen() -> None:
    """Three attempts at most, and the caller gets the answer of the one that succeeds."""
    scripted = await store(gone(), StorageTimeoutError("slow"))
    async with operation() as op:
        created = await layer_over(scripted).create_session("s", "u")
    assert op.attempts == 3
    assert created == await scripted.get_session("s")
    assert [call.operation for call in scripted.calls] == [*["create_session"] * 3, "get_session"]


async def test_a_lost_reply_has_one_effect() -> None:
    """All attempts carry one op_id, so a store that already has it answers again instead of doing it again."""
    scripted = await store(Lost(gone()), Lost(gone()))
    async with operation("order-7"):
        assert await layer_over(scripted).add_conversation_message("s", "user", "once") is True
    assert [call.op_id for call in scripted.calls] == ["order-7"] * 3
    assert [item["content"] for item in await scripted.get_conversation_history("s")] == ["once"]


async def test_without_a_callers_scope_the_attempts_share_an_identity_too() -> None:
    """The layer mints one if there is none, and leaves none behind."""
    scripted = await store(Lost(gone()))
    layer = layer_over(scripted)
    await layer.add_conversation_message("s", "user", "one")
    await layer.add_conversation_message("s", "user", "two")
    first, again, second = [call.op_id for call in scripted.calls]
    assert first == again != second
    assert active() is None


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("no"),
        CircuitOpenError("not asked"),
        OverloadedError("full"),
        DeadlineExceededError("late"),
        StorageError("permanent"),
        ValueError("a bug"),
        StorageConnectionError("wrong password", transient=False),
    ],
)
async def test_what_cannot_help_is_not_retried(error: Exception) -> None:
    """Only an error that says of itself that it may pass is worth another attempt; the others leave as they came."""
    scripted = await store(error)
    with pytest.raises(type(error)) as caught:
        await layer_over(scripted).get_session("s")
    assert caught.value is error
    assert len(scripted.calls) == 1


async def test_a_write_that_may_be_applied_is_not_repeated_on_a_store_without_op_ids() -> None:
    """There a repeat would be a second effect; what certainly was not applied, and every read, may be repeated."""

    async def ignorant(*script: Any) -> Ignorant:
        inner = Ignorant(MemoryStorageBackend(), script)
        await inner.initialize()
        return inner

    lost = await ignorant(Lost(gone()))
    with pytest.raises(StorageConnectionError) as caught:
        await layer_over(lost).add_conversation_message("s", "user", "once")
    assert (len(lost.calls), caught.value.final, caught.value.outcome) == (1, True, "unknown")
    refused = await ignorant(gone(outcome="not_applied"))
    assert await layer_over(refused).add_conversation_message("s", "user", "once")
    assert len(refused.calls) == 2
    reading = await ignorant(gone())
    assert await layer_over(reading).get_session("s") is None
    then_lost = await ignorant(gone(outcome="not_applied"), Lost(gone()))
    with pytest.raises(StorageConnectionError):
        await layer_over(then_lost).add_conversation_message("s", "user", "once")
    assert len(then_lost.calls) == 2


async def test_giving_up_is_final_and_accounted_for() -> None:
    """The last error, marked so that an outer retry does not multiply, with the number of all attempts."""
    last = gone(outcome="not_applied")
    scripted = await store(gone(outcome="not_applied"), gone(outcome="not_applied"), last)
    with pytest.raises(StorageConnectionError) as caught:
        await layer_over(layer_over(scripted)).end_session("s")  # type: ignore[arg-type]
    error = caught.value
    assert error is last
    assert (error.final, error.attempts, error.operation, error.outcome) == (
        True,
        3,
        "end_session",
        "not_applied",
    )
    assert error.__notes__ == ["retry gave up: all attempts failed"]
    assert len(scripted.calls) == 3


async def test_one_unknown_outcome_makes_the_whole_unknown() -> None:
    """The last attempt was certainly not applied, the first may have been: only "unknown" is honest."""
    for last in (gone(outcome="not_applied"), ConflictError("no")):
        scripted = await store(StorageTimeoutError("slow"), last)
        with pytest.raises(StorageError) as caught:
            await layer_over(scripted, attempts=2).end_session("s")
        assert (caught.value.outcome, caught.value.attempts) == ("unknown", 2)


async def test_pauses_are_random_below_a_growing_bound() -> None:
    """Full jitter: callers that failed together do not come back together. The bound doubles up to its own bound."""
    random.seed(7)
    pauses: list[list[float]] = []
    for _ in range(200):
        scripted = await store(then=gone())
        with pytest.raises(StorageConnectionError):
            await layer_over(scripted, attempts=5, base_delay=0.1, max_delay=0.3).get_session("s")
        times = [call.at for call in scripted.calls]
        pauses.append([later - earlier for earlier, later in itertools.pairwise(times)])
    for place, bound in enumerate((0.1, 0.2, 0.3, 0.3)):
        seen = [row[place] for row in pauses]
        assert max(seen) <= bound + 1e-9
        assert min(seen) < 0.1 * bound
        assert max(seen) > 0.9 * bound


async def test_a_store_that_asks_for_a_pause_gets_it() -> None:
    """``retry_after`` comes before the jitter."""
    scripted = await store(gone(retry_after=3.0))
    await layer_over(scripted, base_delay=0.1).get_session("s")
    assert 3.0 <= scripted.calls[1].at - scripted.calls[0].at <= 3.1


async def test_no_pause_that_would_outlast_the_deadline() -> None:
    """It gives up at once rather than sleep through the caller's time, and the error is the store's own."""
    scripted = await store(gone(retry_after=3.0))
    start = monotonic()
    async with deadline(2.0):
        with pytest.raises(StorageConnectionError) as caught:
            await layer_over(scripted).get_session("s")
    assert monotonic() == start
    assert caught.value.final
    assert caught.value.__notes__ == [
        "retry gave up: the next attempt would begin after the operation's deadline"
    ]


async def test_attempts_end_with_the_deadline() -> None:
    """However many attempts are allowed, none is in flight after the deadline."""
    scripted = await store(then=Late(0.3, gone()))
    start = monotonic()
    async with deadline(1.0):
        with pytest.raises(StorageError):
            await layer_over(Timeout(scripted), attempts=100, base_delay=0.01).get_session("s")  # type: ignore[arg-type]
    assert monotonic() - start <= 1.05
    assert scripted.running == 0
    assert len(scripted.calls) >= 3


async def test_a_full_outage_costs_a_tenth_more() -> None:
    """The budget: in the long run one repeat for ten requests, plus the few per second that are always allowed."""
    scripted = await store(then=gone())
    layer = Retry(scripted, budget_ratio=0.1, budget_floor=5)
    start = monotonic()
    requests = 5_000
    for _ in range(requests):
        with pytest.raises(StorageConnectionError):
            await layer.get_session("s")
    elapsed = monotonic() - start
    burst = 50
    assert len(scripted.calls) <= requests * 1.10 + 5 * elapsed + burst
    assert len(scripted.calls) >= requests * 1.10 - 1
    assert (layer.state.requests, layer.state.repeats) == (requests, len(scripted.calls) - requests)


class Brownout(Scripted):
    """Three of ten requests fail, at random but the same each time."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._source = random.Random(11)

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        if self._source.random() < 0.3:
            self.script.append(gone())
        return await super().around(op, call, *args, **kwargs)


async def brownout(requests: int, per_second: float) -> tuple[float, float]:
    """Share of requests that succeeded, and attempts for each of them."""
    store = Brownout(MemoryStorageBackend())
    await store.initialize()
    layer = Retry(store)
    served = 0

    async def ask(n: int) -> None:
        nonlocal served
        await asyncio.sleep(n / per_second)
        with contextlib.suppress(StorageConnectionError):
            await layer.get_session("s")
            served += 1

    await asyncio.gather(*(ask(n) for n in range(requests)))
    return served / requests, len(store.calls) / requests


async def test_a_brownout_is_ridden_through() -> None:
    """With three of ten requests failing, users see three in a hundred fail, and the store bears what that takes."""
    served, attempts = await brownout(1_000, per_second=10.0)
    assert served >= 0.96
    assert attempts <= 1.45


async def test_a_brownout_under_load_is_no_storm() -> None:
    """Where repeats would be a third more load, the budget holds them to a tenth; what is not repeated fails at once."""
    served, attempts = await brownout(20_000, per_second=2_000.0)
    assert attempts <= 1.10 + (5 * 10 + 50) / 20_000
    assert served >= 0.7 + 0.7 * 0.09


async def test_a_healthy_store_costs_nothing_more() -> None:
    """Attempts equal calls."""
    scripted = await store()
    layer = Retry(scripted)
    for _ in range(100):
        await layer.get_session("s")
    assert (len(scripted.calls), layer.state.repeats) == (100, 0)


async def test_the_floor_is_paid_by_time() -> None:
    """Where there are few requests a share of them is next to nothing, so time pays in too, up to ten seconds' worth."""
    budget = RetryBudget(0.0, 2)
    assert [budget.spend() for _ in range(21)] == [True] * 20 + [False]
    await asyncio.sleep(1.5)
    assert [budget.spend() for _ in range(4)] == [True] * 3 + [False]
    await asyncio.sleep(1_000)
    assert [budget.spend() for _ in range(21)] == [True] * 20 + [False]
    assert (budget.repeats, budget.refused) == (43, 3)


async def test_a_budget_can_be_shared_and_outlives_a_reload() -> None:
    """Whoever repeats requests to one store draws on one budget; new options take effect on it."""
    scripted = await store(then=gone())
    budget = RetryBudget(0.0, 0)
    first = Retry(scripted, budget_ratio=0.0, budget_floor=0, state=budget)
    with pytest.raises(StorageConnectionError) as caught:
        await first.get_session("s")
    assert (len(scripted.calls), caught.value.final) == (1, True)
    second = Retry(scripted, budget_ratio=0.5, budget_floor=1, state=budget)
    assert second.state is budget
    for _ in range(4):
        with pytest.raises(StorageConnectionError):
            await second.get_session("s")
    assert (budget.requests, budget.repeats, len(scripted.calls)) == (5, 2, 7)  # half of four


async def test_a_refusal_on_the_way_is_not_charged_to_the_budget() -> None:
    """An open breaker below answers for the store, which bears nothing."""
    scripted = await store(then=gone())
    layer = Retry(CircuitBreaker(scripted, minimum_calls=1), budget_floor=5)
    with pytest.raises(CircuitOpenError) as caught:
        await layer.end_session("s")
    assert (layer.state.repeats, len(scripted.calls)) == (0, 1)
    assert (caught.value.attempts, caught.value.outcome) == (1, "unknown")


async def test_the_number_of_attempts_can_differ_by_operation() -> None:
    """Some operations are worth more attempts than others, some none."""
    scripted = await store(then=gone())
    layer = layer_over(scripted, per_operation={"end_session": 1, "get_session": 5})
    for call, attempts in ((layer.end_session, 1), (layer.get_session, 5), (layer.get_task_context, 3)):
        with pytest.raises(StorageConnectionError) as caught:
            await call("s")
        assert caught.value.attempts == attempts
    assert len(scripted.calls) == 9


async def test_concurrent_failures_do_not_mix() -> None:
    """Each operation gets its own error and its own answer, however their retries interleave."""

    class ByName(Scripted):
        async def around(self, op: Any, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(random.random() / 100)
            name = args[0]
            if name.startswith("bad") or (name not in seen and not seen.add(name)):  # type: ignore[func-returns-value]
                raise gone(operation=name)
            return await call(*args, **kwargs)

    seen: set[str] = set()
    scripted = ByName(MemoryStorageBackend())
    await scripted.initialize()
    layer = layer_over(scripted)
    names = [f"{kind}-{n}" for n in range(50) for kind in ("bad", "good")]
    results = await asyncio.gather(
        *(layer.create_session(name, "u") for name in names), return_exceptions=True
    )
    for name, result in zip(names, results, strict=True):
        if name.startswith("good"):
            assert isinstance(result, dict)
            assert result["session_id"] == name
        else:
            assert isinstance(result, StorageConnectionError)
            assert result.operation == name


async def test_cancelled_anywhere_it_leaves_nothing_behind() -> None:
    """In an attempt and in a pause: the cancellation passes, nothing runs on, and no repeat is charged that was not made."""

    async def scenario() -> tuple[Awaitable[Any], Callable[[], Awaitable[None]]]:
        scripted = await store(Late(0.2, gone()), Late(0.2, gone()), Delay(0.2))
        layer = layer_over(scripted)

        async def check() -> None:
            assert scripted.running == 0
            calls = len(scripted.calls)
            assert layer.state.repeats == calls - 1
            await asyncio.sleep(5)
            assert len(scripted.calls) == calls
            scripted.script.clear()
            assert await layer.get_session("s") is None

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) == 5


async def test_a_hung_attempt_is_repeated_where_attempts_are_limited() -> None:
    """The right order: each attempt has a time limit of its own."""
    scripted = await store(Hang())
    assert await layer_over(Timeout(scripted, per_attempt=0.25)).get_session("s") is None  # type: ignore[arg-type]
    assert len(scripted.calls) == 2


async def test_it_is_seen_and_counted(events: list[telemetry.Event]) -> None:
    """Each repeat, each refusal and each exhaustion is an event; the metrics say how operations ended that had failed."""
    scripted = await store(gone(), None, gone(), gone(), gone())
    layer = layer_over(scripted)
    await layer.get_session("s")
    with pytest.raises(StorageConnectionError):
        await layer.get_session("s")
    assert [event.name for event in events] == [
        *[telemetry.RETRY_STARTED] * 3,
        telemetry.RETRY_EXHAUSTED,
    ]
    assert events[0].attributes["attempt"] == 2
    assert events[0].attributes["backend"] == "memory"
    assert events[0].attributes["error"] == "StorageConnectionError"
    events.clear()
    scripted.script.append(gone(retry_after=9.0))
    async with deadline(1.0):
        with pytest.raises(StorageConnectionError):
            await layer.get_session("s")
    assert [(event.name, event.attributes["reason"]) for event in events] == [
        (telemetry.RETRY_REFUSED, "deadline")
    ]
    facts = (await layer.get_metrics())["layers"]["retry"]
    assert {name: facts[name] for name in ("requests", "retries", "recovered", "given_up")} == {
        "requests": 3,
        "retries": 3,
        "recovered": 1,
        "given_up": {"unsafe": 0, "budget": 0, "deadline": 1, "attempts": 1},
    }
    assert repr(layer).startswith("<Retry 3 attempts, 3/3 repeated, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts must be at least 1, not 0"),
        ({"base_delay": 0}, "base_delay must be above 0 in seconds"),
        ({"base_delay": 2.0}, r"max_delay \(1 s\) is below base_delay \(2 s\)"),
        ({"budget_ratio": 1.5}, "budget_ratio must be at least 0 and at most 1, not 1.5"),
        ({"budget_floor": -1}, "budget_floor must be at least 0"),
        ({"per_operation": {"close": 1}}, "'close', which is no operation"),
    ],
)
async def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        Retry(await store(), **options)
