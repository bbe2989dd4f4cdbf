"""The layer `chaos`: faults that are what they say, where and when they are asked for, and the same each time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import ConfigurationError, StorageConnectionError, StorageTimeoutError
from aiecs_resilient.layers._faults import Dice, Schedule
from aiecs_resilient.layers.chaos import Chaos
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout

from .cancellation import cancel_everywhere
from .scripted import Delay, store

VIRTUAL_TIME = True


async def test_without_options_it_does_nothing() -> None:
    """A layer that is left in by mistake and not asked for anything harms nobody."""
    layer = Chaos(await store())
    await layer.create_session("s", "u")
    for _ in range(200):
        assert await layer.get_session("s") is not None
    assert layer.state.made == {}


async def test_an_error_before_leaves_the_store_unasked() -> None:
    """`not_applied` is the truth."""
    scripted = await store()
    with pytest.raises(StorageConnectionError, match="could not be reached") as caught:
        await Chaos(scripted, error_before=1.0).create_session("s", "u")
    assert (caught.value.outcome, caught.value.backend, scripted.calls) == ("not_applied", "memory", [])


async def test_an_error_after_hides_what_was_done() -> None:
    """The write is there, its answer is not: the fault that makes duplicates where identities are missing."""
    scripted = await store()
    with pytest.raises(StorageConnectionError, match="answer was lost") as caught:
        await Chaos(scripted, error_after=1.0).add_conversation_message("s", "user", "hello")
    assert caught.value.outcome == "unknown"
    assert len(await scripted.get_conversation_history("s")) == 1


async def test_lost_answers_make_no_duplicates() -> None:
    """What the layer is for: a retry over a store that loses a third of its answers appends each message once."""
    scripted = await store()
    chain = Retry(Chaos(scripted, seed=7, error_after=0.33), attempts=20, budget_ratio=1.0)
    for n in range(100):
        await chain.add_conversation_message("s", "user", f"{n}")
    assert [item["content"] for item in await scripted.get_conversation_history("s", 0)] == [
        f"{n}" for n in range(100)
    ]


async def test_a_hang_lasts_until_a_timeout() -> None:
    """It never answers by itself."""
    with pytest.raises(StorageTimeoutError):
        await Timeout(Chaos(await store(), hang=1.0), per_attempt=3600.0).get_session("s")
    assert monotonic() >= 3600.0


async def test_latency_is_bounded_and_varies() -> None:
    """Delays are random below the longest one."""
    layer = Chaos(await store(), latency_rate=1.0, latency=2.0)
    took: list[float] = []
    for _ in range(50):
        start = monotonic()
        await layer.get_session("s")
        took.append(monotonic() - start)
    assert max(took) <= 2.0
    assert len(set(took)) == 50


async def test_a_cancelled_caller_is_cancelled() -> None:
    """The task that called goes away in the middle of the call."""
    layer = Chaos(await store(then=Delay(1)), cancel=1.0)
    task = asyncio.create_task(layer.get_session("s"))
    await asyncio.wait([task])
    assert task.cancelled()
    assert layer.state.made == {"cancel": 1}


async def test_a_call_that_does_not_wait_is_not_cancelled_later() -> None:
    """The fault stays inside the call: what the caller does next is not hit by it."""
    layer = Chaos(await store(), cancel=1.0)
    assert await layer.get_session("s") is None
    await asyncio.sleep(1)
    assert layer.state.made == {}


async def test_a_rotten_answer_differs_in_one_value() -> None:
    """It is wrong without saying so, still of its shape, still about the right session; what is stored is not harmed."""
    scripted = await store()
    await scripted.create_session("s", "u", {"a": ["text", 5, b"bytes", True, None]})
    await scripted.add_conversation_message("s", "user", "hello")
    right = await scripted.get_session("s")
    layer = Chaos(scripted, corrupt=1.0)
    for _ in range(30):
        wrong = await layer.get_session("s")
        assert wrong != right
        assert wrong is not None
        assert wrong.keys() == right.keys()  # type: ignore[union-attr]
        assert wrong["session_id"] == "s"
    assert await scripted.get_session("s") == right
    assert await layer.get_conversation_history("s") != await scripted.get_conversation_history("s")
    assert await layer.get_session("nobody") is None
    assert await layer.end_session("s") is True


def test_what_is_made_rotten_is_a_copy() -> None:
    """A layer below that hands out what it keeps, such as a cache, is not spoilt for later."""
    answer = [{"content": "right", "metadata": {"a": [1, 2]}}]
    dice = Dice()
    assert all(dice.corrupted(answer) != answer for _ in range(20))
    assert answer == [{"content": "right", "metadata": {"a": [1, 2]}}]


async def test_the_same_seed_makes_the_same_faults() -> None:
    """A failure that was found can be looked at again."""

    async def run(seed: int) -> list[str]:
        layer = Chaos(
            await store(), seed=seed, error_before=0.2, error_after=0.2, corrupt=0.2, latency_rate=0.3
        )
        endings: list[str] = []
        await layer.inner.create_session("s", "u", {"a": "b"})
        for _ in range(100):
            try:
                endings.append(str((await layer.get_session("s"))["metadata"]))  # type: ignore[index]
            except StorageConnectionError as error:
                endings.append(error.message)
        return endings

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)


async def test_shares_are_kept() -> None:
    """A rate of 30 % is three in ten."""
    layer = Chaos(await store(), error_before=0.3, error_after=0.1)
    for _ in range(2_000):
        with contextlib.suppress(StorageConnectionError):
            await layer.get_session("s")
    assert layer.state.made["error_before"] == pytest.approx(600, rel=0.15)
    assert layer.state.made["error_after"] == pytest.approx(200, rel=0.25)


async def test_only_the_operations_named_take_part() -> None:
    """The others pass as if it were not there."""
    layer = Chaos(await store(), error_before=1.0, operations=["end_session"])
    await layer.create_session("s", "u")
    with pytest.raises(StorageConnectionError):
        await layer.end_session("s")


async def test_faults_keep_to_their_schedule() -> None:
    """An outage of two seconds, every ten, from the fifth on."""
    layer = Chaos(await store(), error_before=1.0, start_after=5.0, run_for=2.0, every=10.0)
    failed: list[int] = []
    for second in range(30):
        try:
            await layer.get_session("s")
        except StorageConnectionError:
            failed.append(second)
        await asyncio.sleep(1.0)
    assert failed == [5, 6, 15, 16, 25, 26]


def test_a_schedule_without_an_end_does_not_end() -> None:
    """Only what is said limits it."""
    assert Schedule().active(1e9)
    assert not Schedule(start_after=1.0).active(0.5)
    assert not Schedule(run_for=1.0).active(1.0)


@pytest.mark.parametrize("variable", ["AIECS_PROFILE", "AIECS_ENV"])
def test_production_is_spared(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A file for tests that gets there by mistake is refused; a game day says so."""
    monkeypatch.setenv(variable, "Production")
    with pytest.raises(ConfigurationError, match="allow_in_production"):
        Chaos(MemoryStorageBackend(), error_before=0.5)
    Chaos(MemoryStorageBackend(), error_before=0.5, allow_in_production=True)
    monkeypatch.setenv(variable, "staging")
    Chaos(MemoryStorageBackend(), error_before=0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hang": 1.5}, "hang must be at least 0 and at most 1"),
        ({"hang": 0.6, "cancel": 0.6}, "add up to 1.2"),
        ({"operations": ["get_sesion"]}, "nearest is 'get_session'"),
        ({"every": 5.0}, "needs a run_for"),
        ({"every": 5.0, "run_for": 6.0}, "needs a run_for"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, object], told: str) -> None:
    """Before anything is broken, and with the reason."""
    with pytest.raises(ConfigurationError, match=told):
        Chaos(MemoryStorageBackend(), **options)  # type: ignore[arg-type]


async def test_a_reload_goes_on_where_it_was() -> None:
    """A reload neither repeats the faults from the beginning nor forgets what was counted; another seed begins anew."""
    scripted = await store()
    old = Chaos(scripted, seed=3, error_before=1.0)
    with pytest.raises(StorageConnectionError):
        await old.get_session("s")
    assert Chaos(scripted, seed=3, state=old.state).state.made == {"error_before": 1}
    drawn = Dice(4).source.random()
    assert Chaos(scripted, seed=4, state=old.state).state.source.random() == drawn


async def test_it_says_what_it_did(events: list[telemetry.Event]) -> None:
    """Nobody should look for a fault in the store that was made on purpose."""
    layer = Chaos(await store(), seed=9, error_before=1.0)
    with pytest.raises(StorageConnectionError, match="chaos:"):
        await layer.get_session("s")
    assert [(event.name, event.attributes["reason"]) for event in events] == [
        (telemetry.CHAOS_INJECTED, "error_before")
    ]
    facts = {"seed": 9, "calls": 1, "injected": {"error_before": 1}}
    assert (await layer.get_metrics())["layers"]["chaos"] == facts
    assert (await layer.health_check())["layers"]["chaos"] == facts
    assert repr(layer).startswith("<Chaos seed 9, 1 calls: 1 error_before over ")


@pytest.mark.parametrize("fault", ["error_before", "error_after", "corrupt", "latency_rate"])
async def test_a_cancellation_passes(fault: str) -> None:
    """At whichever wait, also in a delay."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        options = {fault: 1.0}
        layer = Chaos(await store(Delay(1)), **options)  # type: ignore[arg-type]

        async def check() -> None:
            assert await layer.inner.get_session("s") is None

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) >= (0 if fault == "error_before" else 1)
