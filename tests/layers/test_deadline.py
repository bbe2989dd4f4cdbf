"""The layer `deadline`: one total time, known to everything inside."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import ConfigurationError, DeadlineExceededError, StorageTimeoutError
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import active, deadline, operation

from .cancellation import cancel_everywhere
from .scripted import Delay, Hang, Late, store

VIRTUAL_TIME = True
MARGIN = 0.05


async def test_everything_inside_knows_the_deadline() -> None:
    """It is an absolute time on the loop's clock, so that each layer can work out what is left."""
    scripted = await store()
    start = monotonic()
    await Deadline(scripted, total=2.0, per_operation={"end_session": 0.5}).get_session("s")
    await Deadline(scripted, per_operation={"end_session": 0.5}).end_session("s")
    await Deadline(scripted).cleanup_expired_sessions()
    assert [call.deadline for call in scripted.calls] == [start + 2.0, start + 0.5, start + 60.0]


async def test_an_earlier_deadline_of_the_caller_stays_in_force() -> None:
    """The layer's total never gives more time than the caller has."""
    scripted = await store()
    start = monotonic()
    async with deadline(1.0):
        await Deadline(scripted, total=5.0).get_session("s")
    assert scripted.calls[0].deadline == start + 1.0


async def test_a_hung_call_ends_at_the_total() -> None:
    """Whatever hangs inside, the caller gets its answer; whether a write took effect is then unknown."""
    layer = Deadline(await store(Hang(), Hang()), total=2.0)
    for call, outcome in ((layer.get_session, "not_applied"), (layer.end_session, "unknown")):
        start = monotonic()
        with pytest.raises(DeadlineExceededError, match="not finished within its 2 s") as caught:
            await call("s")
        assert 2.0 <= monotonic() - start <= 2.0 + MARGIN
        assert caught.value.outcome == outcome


async def test_once_it_has_passed_nothing_is_sent() -> None:
    """Refused at once, and certainly not applied."""
    scripted = await store()
    layer = Deadline(scripted)
    async with deadline(1.0):
        await asyncio.sleep(1.0)
        with pytest.raises(DeadlineExceededError) as caught:
            await layer.end_session("s")
    assert (caught.value.outcome, caught.value.attempts) == ("not_applied", 0)
    assert scripted.calls == []


async def test_a_timeout_inside_tells_what_struck() -> None:
    """The layer next to the store strikes first, because it knows the store; it is reported once."""
    told: list[str] = []
    stop = telemetry.subscribe(lambda event: told.append(event.name))
    layer = Deadline(Timeout(await store(Hang(), Hang()), per_attempt=0.5), total=2.0)
    with pytest.raises(StorageTimeoutError):
        await layer.get_session("s")
    with pytest.raises(DeadlineExceededError) as caught:
        async with deadline(0.2):
            await layer.get_session("s")
    stop()
    assert caught.value.backend == "memory"
    assert told == [telemetry.TIMEOUT_EXPIRED, telemetry.DEADLINE_EXPIRED]


async def test_the_total_of_one_call_is_not_the_next_ones() -> None:
    """Several reads in one operation() scope each have their own total, also after a failure."""
    scripted = await store(Hang())
    layer = Deadline(scripted, total=1.0)
    async with operation() as scope:
        with pytest.raises(DeadlineExceededError):
            await layer.get_session("s")
        assert scope.deadline is None
        await asyncio.sleep(5)
        assert await layer.get_session("s") is None


async def test_a_call_that_does_not_wait_arms_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is the expensive part, so an answer from memory does without."""
    layer = Deadline(await store())
    armed: list[object] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", lambda *args, **_more: armed.append(args))
    assert await layer.get_session("s") is None
    assert not armed


async def test_a_timeout_of_somebody_else_is_left_as_it_is() -> None:
    """A TimeoutError that this layer did not cause is not renamed."""
    with pytest.raises(TimeoutError, match="theirs"):
        await Deadline(await store(Late(0.1, TimeoutError("theirs")))).get_session("s")


async def test_cancelled_anywhere_it_leaves_nothing_behind() -> None:
    """At every wait: the cancellation passes, the call inside has ended, no timer strikes later."""

    async def scenario() -> tuple[Awaitable[Any], Callable[[], Awaitable[None]]]:
        scripted = await store(Delay(0.2))
        layer = Deadline(scripted, total=1.0)

        async def check() -> None:
            assert scripted.running == 0
            await asyncio.sleep(5)
            assert await layer.get_session("s") is None

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) == 1
    assert active() is None


async def test_it_is_seen_and_counted(events: list[telemetry.Event]) -> None:
    """Refusals and expiries are events and numbers in the metrics."""
    layer = Deadline(await store(Hang()), total=0.5)
    with pytest.raises(DeadlineExceededError):
        await layer.get_session("s")
    async with deadline(0.1):
        await asyncio.sleep(0.2)
        with pytest.raises(DeadlineExceededError):
            await layer.get_session("s")
    assert [(event.name, event.attributes["sent"]) for event in events] == [
        (telemetry.DEADLINE_EXPIRED, True),
        (telemetry.DEADLINE_EXPIRED, False),
    ]
    assert (await layer.get_metrics())["layers"]["deadline"] == {"total": 0.5, "refused": 1, "expired": 1}
    assert repr(layer).startswith("<Deadline 0.5 s over ")


async def test_bad_options_are_refused() -> None:
    """A total of nothing would refuse everything."""
    with pytest.raises(ConfigurationError, match="total must be above 0"):
        Deadline(await store(), total=0)
