"""The layer `circuit_breaker`: what counts, who is refused, and aiobreaker's language."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import aiobreaker
import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import (
    BackendClosedError,
    CircuitOpenError,
    ConfigurationError,
    ConflictError,
    DataCorruptionError,
    DeadlineExceededError,
    IncompleteStoreError,
    InvalidValueError,
    OverloadedError,
    StaleRouteError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
    UnsupportedOperationError,
)
from aiecs_resilient.layers._breaker import Phase
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.operations import deadline

from .cancellation import cancel_everywhere
from .scripted import Delay, Hang, Scripted, store

VIRTUAL_TIME = True


def gone() -> StorageConnectionError:
    return StorageConnectionError("gone")


async def fail(layer: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(StorageConnectionError):
            await layer.get_session("s")


async def opened(*script: Any, **options: Any) -> tuple[CircuitBreaker, Scripted]:
    """Open since now; the script begins with the first call after that."""
    scripted = await store(gone(), *script)
    layer = CircuitBreaker(scripted, **{"minimum_calls": 1, "jitter": 0.0, **options})
    await fail(layer, 1)
    assert layer.state.phase is Phase.OPEN
    scripted.calls.clear()
    scripted.ended = 0
    return layer, scripted


async def test_the_call_that_trips_raises_its_own_error() -> None:
    """It was asked and the store failed: that is what its caller must hear. Only the next one is refused."""
    scripted = await store(then=gone())
    layer = CircuitBreaker(scripted)
    await fail(layer, 5)
    with pytest.raises(CircuitOpenError):
        await layer.get_session("s")
    assert len(scripted.calls) == 5


async def test_a_refusal_says_when_to_come_back_and_that_nothing_was_sent() -> None:
    """Ours and aiobreaker's error in one; final for this moment, certain about the outcome."""
    layer, scripted = await opened(open_for=5.0)
    await asyncio.sleep(0.8)
    with pytest.raises(aiobreaker.CircuitBreakerError) as caught:
        await layer.end_session("s")
    error = caught.value
    assert isinstance(error, CircuitOpenError)
    assert (error.transient, error.outcome, error.attempts) == (False, "not_applied", 0)
    assert (error.operation, error.backend) == ("end_session", "memory")
    assert error.retry_after == pytest.approx(4.2)
    assert error.time_remaining == timedelta(seconds=error.retry_after)
    assert abs(error.reopen_time - datetime.now() - error.time_remaining) < timedelta(seconds=5)
    assert str(error).startswith("not asked: the circuit breaker is open, 1/1 failed, probe in 4.2 s")
    assert scripted.calls == []
    start = monotonic()
    await error.sleep_until_open()
    assert monotonic() - start == pytest.approx(4.2)
    assert await layer.end_session("s") is False


@pytest.mark.parametrize(
    "fault",
    [
        StorageConnectionError("gone"),
        StorageTimeoutError("slow"),
        StorageError("loading", transient=True),
        StorageConnectionError("wrong password", transient=False),
    ],
)
async def test_faults_of_the_store_count(fault: StorageError) -> None:
    """Whatever says that the store cannot do its work now."""
    layer = CircuitBreaker(await store(fault), minimum_calls=1)
    with pytest.raises(StorageError):
        await layer.get_session("s")
    assert layer.state.phase is Phase.OPEN


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("x"),
        InvalidValueError("x"),
        UnsupportedOperationError("x"),
        BackendClosedError("x"),
        DataCorruptionError("x"),
        DeadlineExceededError("x"),
        CircuitOpenError("x"),
        OverloadedError("x"),
        StaleRouteError("x"),
        IncompleteStoreError("x"),
        StorageError("x"),
        ValueError("a bug"),
    ],
)
async def test_what_is_not_the_stores_fault_counts_for_nothing(error: Exception) -> None:
    """Callers' mistakes, refusals of our own and bugs: a hundred of them neither open it nor fill its window."""
    layer = CircuitBreaker(await store(*[error] * 100), minimum_calls=1)
    for _ in range(100):
        with pytest.raises(type(error)):
            await layer.get_session("s")
    assert layer.state.phase is Phase.CLOSED
    assert layer.state.totals(monotonic()).calls == 0


async def test_a_neutral_probe_decides_nothing() -> None:
    """The probe's caller made a mistake: the place is free again and the next call is the probe."""
    layer, scripted = await opened(ConflictError("x"), open_for=5.0)
    await asyncio.sleep(5)
    with pytest.raises(ConflictError):
        await layer.get_session("s")
    assert layer.state.phase is Phase.HALF_OPEN
    await layer.get_session("s")
    assert layer.state.phase is Phase.CLOSED
    assert len(scripted.calls) == 2


async def test_cancelled_calls_count_for_nothing() -> None:
    """Callers that lose patience are no proof against the store."""
    layer = CircuitBreaker(await store(then=Hang()), minimum_calls=1)
    tasks = [asyncio.create_task(layer.get_session("s")) for _ in range(50)]
    await asyncio.sleep(9)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert layer.state.phase is Phase.CLOSED
    assert layer.state.totals(monotonic()).calls == 0


async def test_a_hung_store_opens_it_when_calls_have_time_limits() -> None:
    """The right order: the limit inside turns a hung call into a fault."""
    layer = CircuitBreaker(Timeout(await store(then=Hang()), per_attempt=0.25))
    for _ in range(5):
        with pytest.raises(StorageTimeoutError):
            await layer.get_session("s")
    assert layer.state.phase is Phase.OPEN


async def test_callers_in_a_hurry_open_it_only_if_the_store_is_slow() -> None:
    """A deadline too short for any store says nothing; one that a slow store missed counts as a slow call."""
    layer = CircuitBreaker(Timeout(await store(then=Hang()), per_attempt=60), slow_after=1.0)
    for seconds, phase in ((0.01, Phase.CLOSED), (1.5, Phase.OPEN)):
        for _ in range(5):
            async with deadline(seconds):
                with pytest.raises(DeadlineExceededError):
                    await layer.get_session("s")
        assert layer.state.phase is phase


async def test_half_open_a_hundred_callers_send_one_probe() -> None:
    """And when it succeeds, everybody passes again."""
    layer, scripted = await opened(Delay(1.0), open_for=5.0, slow_after=2.0)
    await asyncio.sleep(5)
    results = await asyncio.gather(*(layer.get_session("s") for _ in range(100)), return_exceptions=True)
    assert len(scripted.calls) == 1
    refused = [result for result in results if isinstance(result, CircuitOpenError)]
    assert len(refused) == 99
    assert {error.retry_after for error in refused} == {10.0}  # when the probe's lease ends
    assert await asyncio.gather(*(layer.get_session("s") for _ in range(100))) == [None] * 100


async def test_a_late_failure_of_the_old_period_does_not_open_the_new_one() -> None:
    """A call that hung through outage and recovery ends at last: that is old news."""
    scripted = await store(Hang(), gone())
    layer = CircuitBreaker(Timeout(scripted, per_attempt=60.0), minimum_calls=1, jitter=0.0)
    hung = asyncio.create_task(layer.get_session("s"))
    await asyncio.sleep(1)
    await fail(layer, 1)
    await asyncio.sleep(5)
    await layer.get_session("s")
    assert layer.state.phase is Phase.CLOSED
    with pytest.raises(StorageTimeoutError):
        await hung
    assert layer.state.phase is Phase.CLOSED


async def test_it_heals_by_itself() -> None:
    """While the store is down one probe per period goes through; when it is back, all calls do."""
    scripted = await store(then=gone())
    layer = CircuitBreaker(scripted, open_for=1.0, max_open_for=4.0)
    for _ in range(600):
        with pytest.raises(StorageError):
            await layer.get_session("s")
        await asyncio.sleep(0.1)
    assert 5 + 10 <= len(scripted.calls) <= 5 + 25
    scripted.then = None
    await asyncio.sleep(4.8)
    assert [await layer.get_session("s") for _ in range(3)] == [None] * 3


async def test_retry_above_it_does_not_retry_a_refusal() -> None:
    """Each attempt passes the breaker; its refusal ends the attempts."""
    scripted = await store(then=gone())
    layer = Retry(CircuitBreaker(scripted, minimum_calls=2), attempts=10)
    with pytest.raises(CircuitOpenError) as caught:
        await layer.get_session("s")
    assert (len(scripted.calls), caught.value.attempts) == (2, 2)


async def test_lifecycle_passes_an_open_breaker() -> None:
    """Closing, health and metrics are never refused; health says what is wrong."""
    layer, _scripted = await opened()
    health = await layer.health_check()
    assert health["status"] == "degraded"
    assert health["issues"] == ["circuit breaker of memory: open, 1/1 failed, probe in 5.0 s"]
    assert health["layers"]["circuit_breaker"]["state"] == "open"
    facts = (await layer.get_metrics())["layers"]["circuit_breaker"]
    assert facts == {
        "state": "open",
        "mode": "auto",
        "calls": 1,
        "failed": 1,
        "slow": 0,
        "opened": 1,
        "refused": 0,
        "probe_in": 5.0,
    }
    await layer.close()
    assert (await layer.health_check())["status"] == "unhealthy"


async def test_a_closed_breaker_leaves_health_alone() -> None:
    """Nothing is wrong, so nothing is added but its facts."""
    layer = CircuitBreaker(await store())
    health = await layer.health_check()
    assert (health["status"], health["issues"]) == ("healthy", [])
    assert health["layers"]["circuit_breaker"]["probe_in"] is None


async def test_its_state_can_be_read() -> None:
    """In one line."""
    layer, _scripted = await opened(Delay(0))
    await asyncio.sleep(0.8)
    assert repr(layer).startswith("<CircuitBreaker open, 1/1 failed, probe in 4.2 s over ")
    await asyncio.sleep(4.2)
    assert repr(layer).startswith("<CircuitBreaker open, 1/1 failed, probe due over ")


def test_its_state_can_be_read_where_no_loop_runs() -> None:
    """As when a chain is printed by `explain`: what does not depend on the time."""
    assert repr(CircuitBreaker(MemoryStorageBackend())).startswith("<CircuitBreaker closed over ")


class Recorder(aiobreaker.CircuitBreakerListener):  # type: ignore[misc]
    """A listener written for aiobreaker."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def before_call(self, breaker: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(("before", func.__name__, args))

    def success(self, breaker: Any) -> None:
        self.told.append("success")

    def failure(self, breaker: Any, exception: Exception) -> None:
        self.told.append(("failure", type(exception).__name__, breaker.fail_counter))

    def state_change(self, breaker: Any, old: Any, new: Any) -> None:
        assert breaker.current_state is breaker.state.state is new.state
        self.told.append((breaker.name, old.state.name, new.state.name))


async def test_listeners_of_aiobreaker_work() -> None:
    """Same calls, same arguments, its own states."""
    listener = Recorder()
    layer, _scripted = await opened(listeners=[listener], open_for=5.0)
    with pytest.raises(CircuitOpenError):
        await layer.get_session("s")
    await asyncio.sleep(5)
    await layer.get_session("s")
    assert listener.told == [
        ("before", "get_session", ("s",)),
        ("memory", "CLOSED", "OPEN"),
        ("failure", "StorageConnectionError", 1),
        ("memory", "OPEN", "HALF_OPEN"),
        ("before", "get_session", ("s",)),
        ("memory", "HALF_OPEN", "CLOSED"),
        "success",
    ]
    assert layer.listeners == (listener,)
    layer.remove_listener(listener)
    layer.add_listeners(listener)
    assert layer.timeout_duration == timedelta(seconds=5)


async def test_a_listener_cannot_break_a_call(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises, results and errors are the call's own; the first time it is a warning in the log."""

    class Broken(aiobreaker.CircuitBreakerListener):  # type: ignore[misc]
        def before_call(self, *_args: Any, **_more: Any) -> None:
            raise RuntimeError("before")

        success = failure = state_change = before_call

    recorder = Recorder()
    scripted = await store(None, gone())
    layer = CircuitBreaker(scripted, minimum_calls=2, listeners=[Broken(), recorder])
    with caplog.at_level(logging.WARNING):
        assert await layer.get_session("s") is None
        await fail(layer, 1)
    assert layer.state.phase is Phase.OPEN
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert ("memory", "CLOSED", "OPEN") in recorder.told


async def test_it_outlives_a_reload() -> None:
    """A new layer over the same state goes on where the old one was, with its listeners, and tells of changes once."""
    listener = Recorder()
    layer, scripted = await opened(listeners=[listener], open_for=5.0)
    listener.told.clear()
    again = CircuitBreaker(scripted, open_for=5.0, listeners=[listener], state=layer.state)
    with pytest.raises(CircuitOpenError):
        await again.get_session("s")
    await asyncio.sleep(5)
    await again.get_session("s")
    assert listener.told.count(("memory", "HALF_OPEN", "CLOSED")) == 1
    assert layer.state.phase is Phase.CLOSED


async def test_modes_by_option_and_by_hand() -> None:
    """The configuration forces it, and an operator more so; taken back, the configuration holds again."""
    scripted = await store(then=gone())
    layer = CircuitBreaker(scripted, minimum_calls=1, mode="closed")
    await fail(layer, 20)
    layer.force("open")
    with pytest.raises(CircuitOpenError) as caught:
        await layer.get_session("s")
    assert caught.value.retry_after is None
    assert repr(layer).startswith("<CircuitBreaker forced open")
    layer.force(None)
    await fail(layer, 20)
    watching = CircuitBreaker(scripted, minimum_calls=1, mode="observe", state=layer.state)
    await fail(watching, 20)
    assert (await watching.health_check())["status"] == "healthy"
    assert (await watching.get_metrics())["layers"]["circuit_breaker"][
        "refused"
    ] == 1 + 19  # forced open, then observed


async def test_it_is_seen(events: list[telemetry.Event]) -> None:
    """Each change of phase is an event that says why."""
    layer, _scripted = await opened(open_for=5.0)
    await asyncio.sleep(5)
    await layer.get_session("s")
    assert [event.name for event in events] == [
        telemetry.BREAKER_OPENED,
        telemetry.BREAKER_HALF_OPENED,
        telemetry.BREAKER_CLOSED,
    ]
    assert events[0].attributes == {
        "backend": "memory",
        "mode": "auto",
        "trips": 1,
        "calls": 1,
        "failed": 1,
        "slow": 0,
        "probe_in": 5.0,
    }


@pytest.mark.parametrize("half_open", [False, True])
async def test_cancelled_anywhere_it_leaves_nothing_behind(half_open: bool) -> None:
    """At every wait: the cancellation passes, nothing is counted, and a probe's place is free again."""

    async def scenario() -> tuple[Awaitable[Any], Callable[[], Awaitable[None]]]:
        if half_open:
            layer, scripted = await opened(Delay(0.2), open_for=5.0)
            await asyncio.sleep(5)
        else:
            scripted = await store(Delay(0.2))
            layer = CircuitBreaker(scripted, minimum_calls=1)

        async def check() -> None:
            assert scripted.running == 0
            assert layer.state.phase is (Phase.HALF_OPEN if half_open else Phase.CLOSED)
            assert await layer.get_session("s") is None
            assert layer.state.phase is Phase.CLOSED

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) == 1


async def test_bad_options_are_refused() -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match="probes must be at least 1"):
        CircuitBreaker(MemoryStorageBackend(), probes=0)


def test_aiobreaker_is_imported_by_who_builds_a_breaker_only() -> None:
    """It takes 0.2 s and brings in redis: not at import, but before the first outage."""
    script = (
        "import sys; from aiecs_resilient.layers.circuit_breaker import CircuitBreaker; assert 'aiobreaker' not in sys.modules;"
        "from aiecs_resilient.backends.memory import MemoryStorageBackend; CircuitBreaker(MemoryStorageBackend());"
        "assert 'aiobreaker' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)
