"""The layer `rate_limit`: no more than agreed, no group at another's cost, and no work for callers who are gone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import ConfigurationError, DeadlineExceededError, OverloadedError
from aiecs_resilient.layers._buckets import Buckets
from aiecs_resilient.layers._learned import Durations
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.rate_limit import RateLimit
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.operations import deadline, operation

from .cancellation import cancel_everywhere
from .scripted import Delay, store
from .test_bulkhead import replay

VIRTUAL_TIME = True


async def test_a_burst_then_the_rate() -> None:
    """After a pause a burst passes at once, then as many a second as agreed."""
    layer = RateLimit(await store(), rate=10.0, burst=5)
    served = 0
    for _ in range(100):
        try:
            await layer.get_session("s")
            served += 1
        except OverloadedError:
            pass
        await asyncio.sleep(0.01)
    assert served == pytest.approx(5 + 10, abs=1)


async def test_a_refusal_says_when_there_is_room() -> None:
    """Nothing was sent, nobody retries at once, and `retry_after` is the truth."""
    scripted = await store()
    layer = Retry(RateLimit(scripted, rate=2.0, burst=1))
    await layer.create_session("s", "u")
    with pytest.raises(OverloadedError, match="2 operations a second") as caught:
        await layer.end_session("s")
    error = caught.value
    assert (error.outcome, error.transient, error.attempts, error.backend) == (
        "not_applied",
        False,
        0,
        "memory",
    )
    assert len(scripted.calls) == 1
    assert error.retry_after == pytest.approx(0.5)
    await asyncio.sleep(0.5)
    assert await layer.end_session("s")


async def test_over_the_rate_may_wait() -> None:
    """With max_wait a crowd is spread out in order; who would wait longer is refused at once."""
    scripted = await store()
    layer = RateLimit(scripted, rate=10.0, burst=1, max_wait=0.45)
    outcomes = await asyncio.gather(
        *(layer.add_conversation_message("s", "user", f"{n}") for n in range(10)), return_exceptions=True
    )
    assert [isinstance(outcome, OverloadedError) for outcome in outcomes] == [False] * 5 + [True] * 5
    assert [call.at for call in scripted.calls] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    history = await layer.inner.get_conversation_history("s")
    assert [message["content"] for message in history] == list("01234")


async def test_nobody_waits_beyond_the_deadline() -> None:
    """What cannot be sent in time is refused while it is certain that nothing was written."""
    layer = RateLimit(await store(), rate=1.0, burst=1, max_wait=60.0)
    await layer.get_session("s")
    start = monotonic()
    with pytest.raises(OverloadedError):
        async with deadline(0.5):
            await layer.end_session("s")
    assert monotonic() == start


async def test_a_batch_counts_its_items() -> None:
    """A batch is no way round the limit; one that is larger than a burst costs a burst and is not impossible."""
    layer = RateLimit(await store(), rate=1.0, burst=10)
    await layer.batch_create_sessions([{"session_id": f"{n}", "user_id": "u"} for n in range(10)])
    with pytest.raises(OverloadedError):
        await layer.get_session("0")
    await asyncio.sleep(10)
    await layer.batch_get_sessions([f"{n}" for n in range(500)])


async def test_groups_do_not_pay_for_each_other() -> None:
    """By session or by tenant, each has its own; some have rates of their own."""
    layer = RateLimit(await store(), rate=1.0, burst=2, by="tenant", rates={"big": 100.0})
    for _ in range(2):
        await layer.get_session("4:loud:1")
    with pytest.raises(OverloadedError, match="of each tenant"):
        await layer.get_session("4:loud:2")
    await layer.get_session("5:quiet:1")
    for _ in range(2):
        await layer.get_session("3:big:1")
    await asyncio.sleep(0.02)
    for _ in range(2):
        await layer.get_session("3:big:1")
    by_key = RateLimit(layer.inner, rate=1.0, burst=1, by="key")
    await by_key.get_session("a")
    await by_key.get_session("b")
    with pytest.raises(OverloadedError):
        await by_key.get_session("a")


async def test_a_batch_counts_for_its_own_group() -> None:
    """Sessions of a batch are one tenant's, as `namespace` has made them."""
    layer = RateLimit(await store(), rate=1.0, burst=2, by="tenant")
    sessions = [{"session_id": f"4:loud:{n}", "user_id": "u"} for n in range(2)]
    await layer.batch_create_sessions(sessions)
    with pytest.raises(OverloadedError):
        await layer.batch_get_sessions(["4:loud:0"])
    await layer.batch_get_sessions(["5:quiet:0"])


def test_memory_is_bounded() -> None:
    """However many groups appear, so many are remembered."""
    buckets = Buckets(rate=1.0, burst=1, most=100)
    for n in range(1_000):
        buckets.take(f"{n}", 1, 0.0, 0.0)
    assert len(buckets) == 100
    assert buckets.take("999", 1, 0.0, 0.0)[0] is False


async def test_repair_passes_freely() -> None:
    """A store that is behind catches up however busy it is."""
    layer = RateLimit(await store(), rate=0.001, burst=1)
    await layer.get_session("s")
    await layer.store_state()
    await layer.read_records()
    await layer.apply([replay("k")])
    with pytest.raises(OverloadedError):
        await layer.get_session("s")


async def overloaded(seconds: float) -> tuple[Deadline, RateLimit]:
    """A chain whose store takes so long, and is known to."""
    layer = RateLimit(await store(then=Delay(seconds)), rate=1e6, burst=10_000)
    for _ in range(30):
        await layer.get_session("s")
    return Deadline(layer, total=seconds / 2), layer


async def test_what_cannot_be_answered_in_time_is_not_sent() -> None:
    """With less time left than the quickest tenth took, the store is spared; one a second looks whether that is still so."""
    chain, layer = await overloaded(1.0)
    endings: list[str] = []
    start = monotonic()
    while monotonic() < start + 5:
        try:
            await chain.get_session("s")
        except (OverloadedError, DeadlineExceededError) as error:
            endings.append(type(error).__name__)
        await asyncio.sleep(0.01)
    assert 4 <= endings.count("DeadlineExceededError") <= 6
    assert endings.count("OverloadedError") > 100
    assert layer.state.buckets.shed == endings.count("OverloadedError")


async def test_shedding_ends_with_the_overload() -> None:
    """Probes notice that answers are quick again."""
    chain, layer = await overloaded(1.0)
    layer.inner.then = None  # type: ignore[attr-defined]
    served = 0
    for _ in range(100):
        try:
            await chain.get_session("s")
            served += 1
        except OverloadedError:
            await asyncio.sleep(1.0)
    assert served > 50


async def test_it_sheds_nothing_that_can_be_done() -> None:
    """Time enough, no deadline, an operation that is not known yet, or switched off: all of that passes."""
    _chain, layer = await overloaded(1.0)
    assert await layer.get_session("s") is None
    async with deadline(1.5):
        await layer.get_session("s")
    async with deadline(1.5):
        await layer.list_sessions()
    off = RateLimit(layer.inner, shed=False, state=layer.state)
    for _ in range(3):
        with pytest.raises(DeadlineExceededError):
            await Deadline(off, total=0.5).get_session("s")


def test_a_percentile_follows_the_last_calls() -> None:
    """Nothing is said of too few; what was long ago does not count."""
    durations = Durations()
    for n in range(19):
        durations.add(float(n))
    assert durations.at(0.5) is None
    for n in range(200):
        durations.add(float(n))
    assert (durations.at(0.0), durations.at(0.5), durations.at(0.95), durations.at(1.0)) == (
        0.0,
        100.0,
        190.0,
        199.0,
    )
    for _ in range(200):
        durations.add(7.0)
    assert durations.at(0.99) == 7.0


async def test_a_cancelled_call_gives_back_what_it_waited_for() -> None:
    """Callers who went away do not use up the rate."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = RateLimit(await store(Delay(0.001), then=Delay(0.001)), rate=1.0, burst=1, max_wait=60.0)
        await layer.get_session("s")

        async def check() -> None:
            start = monotonic()
            await layer.get_session("s")
            assert monotonic() - start <= 1.01

        return layer.get_session("s"), check

    assert await cancel_everywhere(scenario) >= 2


async def test_a_scope_names_one_write() -> None:
    """Waiting is part of the operation that the caller named."""
    layer = RateLimit(await store(), rate=10.0, burst=1, max_wait=1.0)
    await layer.get_session("s")
    async with operation("mine") as op:
        await layer.create_session("s", "u")
    assert (op.op_id, op.attempts) == ("mine", 1)


async def test_it_is_seen_in_reports_and_kept_by_a_reload(events: list[telemetry.Event]) -> None:
    """Counts and buckets go on; new rates hold at once."""
    scripted = await store()
    layer = RateLimit(scripted, rate=1.0, burst=1)
    await layer.get_session("s")
    reloaded = RateLimit(scripted, rate=2.0, burst=1, state=layer.state)
    with pytest.raises(OverloadedError) as caught:
        await reloaded.get_session("s")
    assert caught.value.retry_after == pytest.approx(0.5)
    assert [(event.name, dict(event.attributes)) for event in events] == [
        (telemetry.RATE_LIMITED, {"backend": "memory", "operation": "get_session"})
    ]
    facts = {"rate": 2.0, "groups": 1, "admitted": 1, "waited": 0, "refused": 1, "shed": 0}
    assert (await reloaded.get_metrics())["layers"]["rate_limit"] == facts
    assert (await reloaded.health_check())["layers"]["rate_limit"] == facts
    assert repr(reloaded).startswith("<RateLimit 2/s, 1 refused, 0 shed over ")


@pytest.mark.parametrize(
    "options", [{"rate": 0}, {"burst": 0}, {"max_wait": -1}, {"max_groups": 0}, {"rates": {"a": 0}}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    """When the chain is built."""
    with pytest.raises(ConfigurationError, match="rate_limit: "):
        RateLimit(MemoryStorageBackend(), **options)  # type: ignore[arg-type]
