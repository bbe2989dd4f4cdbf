"""The layer `timeout`: an attempt ends in time, and a write that was cut off is not said to have failed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import (
    ConfigurationError,
    DeadlineExceededError,
    StorageTimeoutError,
)
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import Operation, active, deadline, operation
from aiecs_resilient.testing.clock import VirtualTimeLoop

from .cancellation import cancel_everywhere
from .scripted import Delay, Hang, Late, LateAnswer, Scripted, store

VIRTUAL_TIME = True

P = ParamSpec("P")
T = TypeVar("T")


async def test_an_answer_in_time_comes_through() -> None:
    """The limit changes nothing about a call that keeps to it."""
    layer = Timeout(await store(Delay(0.9)), per_attempt=1.0)
    assert (await layer.create_session("s", "u"))["session_id"] == "s"


async def test_a_call_that_does_not_wait_arms_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is the expensive part, so an answer from memory does without."""
    layer = Timeout(await store())
    armed: list[object] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", lambda *args, **_more: armed.append(args))
    assert await layer.get_session("s") is None
    assert not armed


async def test_a_hung_read_ends_at_the_limit() -> None:
    """No answer in time is a transient error that names the store; a read has written nothing."""
    layer = Timeout(await store(Hang()), per_attempt=0.25)
    start = monotonic()
    with pytest.raises(StorageTimeoutError, match=r"no answer within 0\.25 s") as caught:
        await layer.get_session("s")
    assert monotonic() - start == pytest.approx(0.25)
    error = caught.value
    assert (error.transient, error.outcome, error.operation, error.backend) == (
        True,
        "not_applied",
        "get_session",
        "memory",
    )


async def test_a_write_that_was_cut_off_has_an_unknown_outcome() -> None:
    """It may be on its way: here it was applied and only its answer came too late."""
    scripted = await store(LateAnswer(5))
    with pytest.raises(StorageTimeoutError) as caught:
        await Timeout(scripted, per_attempt=1.0).add_conversation_message("s", "user", "hello")
    assert caught.value.outcome == "unknown"
    assert len(await scripted.get_conversation_history("s")) == 1


async def test_an_operation_can_have_its_own_limit() -> None:
    """Walking through the whole store takes longer than a read, and says so."""
    layer = Timeout(
        await store(Delay(1.5), Delay(1.5), Delay(59)), per_attempt=1, per_operation={"get_session": 2.0}
    )
    assert await layer.get_session("s") is None
    with pytest.raises(StorageTimeoutError):
        await layer.end_session("s")
    assert await layer.cleanup_expired_sessions() == 0


async def test_the_operations_deadline_strikes_first_when_it_is_earlier() -> None:
    """What struck decides the error: a deadline does not come back by trying again."""
    layer = Timeout(await store(Hang()), per_attempt=1.0)
    start = monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        async with deadline(0.4):
            await layer.end_session("s")
    assert monotonic() - start == pytest.approx(0.4)
    assert (caught.value.transient, caught.value.outcome) == (False, "unknown")


async def test_after_the_deadline_nothing_is_sent() -> None:
    """A write that cannot be answered in time is refused while it is still certain that nothing was written."""
    scripted = await store()
    layer = Timeout(scripted)
    async with deadline(1.0):
        await asyncio.sleep(2.0)
        with pytest.raises(DeadlineExceededError) as caught:
            await layer.end_session("s")
    assert (caught.value.outcome, caught.value.attempts, scripted.calls) == ("not_applied", 0, [])


async def test_a_timeout_of_somebody_else_is_left_as_it_is() -> None:
    """A TimeoutError that this layer did not cause, before or after its limit, is not renamed."""
    layer = Timeout(await store(Late(0.1, TimeoutError("theirs"))), per_attempt=1.0)
    with pytest.raises(TimeoutError, match="theirs"):
        await layer.get_session("s")
    with pytest.raises(TimeoutError, match=r"^$"):
        async with asyncio.timeout(0.1):
            await Timeout(await store(Hang()), per_attempt=1.0).get_session("s")


async def test_two_limits_at_the_same_moment_end_the_call_once() -> None:
    """An enclosing limit that strikes in the same tick neither hides nor doubles the cancellation."""
    layer = Timeout(await store(Hang(), Hang()), per_attempt=1.0)
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await layer.get_session("s")
    assert task.cancelling() == 0
    await asyncio.sleep(1)


async def test_a_cancellation_that_meets_the_limit_is_not_swallowed() -> None:
    """The caller went away in the very tick in which the limit strikes: it must see its cancellation."""
    layer = Timeout(await store(Hang()), per_attempt=1.0)
    task = asyncio.create_task(layer.get_session("s"))
    asyncio.get_running_loop().call_at(monotonic() + 1.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_is_seen_and_counted(events: list[telemetry.Event]) -> None:
    """Each limit that strikes is an event and a number in the metrics; the limit itself is in the repr."""
    layer = Timeout(await store(Hang(), Hang()), per_attempt=0.25)
    with pytest.raises(StorageTimeoutError):
        await layer.get_session("s")
    with pytest.raises(DeadlineExceededError):
        async with deadline(0.1):
            await layer.get_session("s")
    assert [event.name for event in events] == [telemetry.TIMEOUT_EXPIRED, telemetry.DEADLINE_EXPIRED]
    assert events[0].attributes == {"backend": "memory", "operation": "get_session", "seconds": 0.25}
    facts = (await layer.get_metrics())["layers"]["timeout"]
    assert facts == {"per_attempt": 0.25, "expired": 1, "deadline": 1}
    assert repr(layer).startswith("<Timeout 0.25 s over ")


async def test_cancelled_anywhere_it_leaves_nothing_behind() -> None:
    """At every wait: the cancellation passes, the call inside has ended, no timer strikes later."""

    async def scenario() -> tuple[Awaitable[Any], Callable[[], Awaitable[None]]]:
        scripted = await store(Delay(0.2))
        layer = Timeout(scripted, per_attempt=1.0)

        async def check() -> None:
            assert scripted.running == 0
            await asyncio.sleep(5)
            assert await layer.get_session("s") is None

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) == 1


async def test_the_callers_operation_is_the_same_inside() -> None:
    """It adds no operation of its own where there is one, and leaves none behind where there was none."""
    scripted = await store()
    async with operation("mine"):
        await Timeout(scripted).end_session("s")
    assert [call.op_id for call in scripted.calls] == ["mine"]
    assert active() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_attempt": 0}, "per_attempt must be above 0 in seconds, not 0"),
        ({"per_attempt": float("nan")}, "per_attempt must be above 0"),
        (
            {"per_operation": {"get_sesion": 1}},
            "'get_sesion', which is no operation; the nearest is 'get_session'",
        ),
        ({"per_operation": {"get_session": -1}}, r"per_operation\['get_session'\] must be above 0"),
    ],
)
async def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    """Wrong numbers and unknown operations are refused when the layer is built, with what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        Timeout(await store(), **options)


class Reader(UniformLayer):
    """As drivers do it: from the socket to the caller an answer takes several turns of the loop."""

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        answer = await call(*args, **kwargs)
        for _turn in range(5):
            await asyncio.sleep(0)
        return answer


async def test_a_stall_of_our_own_loop_is_not_held_against_the_store() -> None:
    """The answer came in time and this process was too busy to take it: it is taken, not thrown away as a time-out."""
    layer = Timeout(Reader(await store(Delay(0.9))), per_attempt=1.0)
    call = asyncio.create_task(layer.create_session("s", "u"))
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.stall(0.6)
    assert (await call)["session_id"] == "s"


async def test_a_stall_gives_a_hung_store_no_more_than_a_moment() -> None:
    """Who does not answer is cut off all the same, within 50 ms."""
    layer = Timeout(await store(Hang()), per_attempt=1.0)
    call = asyncio.create_task(layer.get_session("s"))
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.stall(10)
    with pytest.raises(StorageTimeoutError):
        await call
    assert monotonic() <= 10.5 + 0.05 + 1e-9


# ------------------------------------------------------------------ learned limits


async def quick(seconds: float = 0.01, **options: Any) -> tuple[Timeout, Scripted]:
    """A layer that knows how quick its store is."""
    scripted = await store(then=Delay(seconds))
    layer = Timeout(scripted, learned=True, **{"per_attempt": 2.0, "factor": 3.0, "least": 0.02, **options})
    for _ in range(40):
        await layer.get_session("s")
    return layer, scripted


async def limit_of(layer: Timeout, scripted: Scripted, call: Callable[[], Awaitable[object]]) -> float:
    """Seconds after which a call that hangs is given up."""
    scripted.script.append(Hang())
    start = monotonic()
    with pytest.raises(StorageTimeoutError):
        await call()
    return monotonic() - start


async def test_a_learned_limit_follows_the_store() -> None:
    """A hung attempt at a quick store is given up soon; of what is not known yet, after per_attempt."""
    layer, scripted = await quick()
    assert await limit_of(layer, scripted, lambda: layer.get_session("s")) == pytest.approx(0.03)
    assert await limit_of(layer, scripted, lambda: layer.list_sessions()) == pytest.approx(2.0)
    facts = (await layer.get_metrics())["layers"]["timeout"]
    assert facts["learned"] == {"get_session": pytest.approx(0.09, abs=0.07)}
    assert repr(layer).startswith("<Timeout at most 2 s over ")


async def test_a_learned_limit_keeps_within_its_bounds() -> None:
    """Never below `least`, never above `per_attempt`; what per_operation says holds."""
    layer, scripted = await quick(0.001)
    assert await limit_of(layer, scripted, lambda: layer.get_session("s")) == pytest.approx(0.02)
    layer, scripted = await quick(1.5)
    assert await limit_of(layer, scripted, lambda: layer.get_session("s")) == pytest.approx(2.0)
    layer, scripted = await quick(per_operation={"get_session": 0.7})
    assert await limit_of(layer, scripted, lambda: layer.get_session("s")) == pytest.approx(0.7)


async def test_a_store_that_becomes_slower_is_given_more_time() -> None:
    """What was cut off counts with the time that it had: the limit rises until answers come in again."""
    layer, scripted = await quick()
    scripted.then = Delay(0.5)
    failed = 0
    for _ in range(100):
        try:
            await layer.get_session("s")
        except StorageTimeoutError:
            failed += 1
    assert failed <= 40
    for _ in range(50):
        await layer.get_session("s")


async def test_what_was_learned_outlives_a_reload() -> None:
    """A new chain does not begin as one that knows nothing."""
    layer, scripted = await quick()
    reloaded = Timeout(scripted, learned=True, per_attempt=2.0, least=0.02, state=layer.state)
    assert await limit_of(reloaded, scripted, lambda: reloaded.get_session("s")) == pytest.approx(0.03)
    off = Timeout(scripted, per_attempt=2.0, state=layer.state)
    assert await limit_of(off, scripted, lambda: off.get_session("s")) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "options", [{"factor": 0.5}, {"least": 0.0}, {"learned": True, "least": 2.0}], ids=str
)
async def test_impossible_learned_limits_are_refused(options: dict[str, Any]) -> None:
    """When the chain is built."""
    with pytest.raises(ConfigurationError, match="timeout: "):
        Timeout(await store(), per_attempt=1.0, **options)
