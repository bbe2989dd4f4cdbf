"""The layer `limits`: what is too large is refused whole and before it is sent; what is written dies in time."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.errors import ConfigurationError, InvalidValueError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers.batching import Batching
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.limits import Limits
from aiecs_resilient.operations import operation
from aiecs_resilient.records import Kind, Mutation

from .cancellation import cancel_everywhere
from .scripted import Delay, store

BIG = "x" * 1_001
SMALL = "x" * 900
MANY = [("a", n) for n in range(11)]

Call = Callable[[Backend, Any], Awaitable[object]]

VALUES: dict[str, Call] = {
    "create": lambda s, v: s.create_session("s", "u", {"v": v}),
    "update": lambda s, v: s.update_session("s", {"custom": v}),
    "update metadata": lambda s, v: s.update_session("s", {"metadata": {"v": v}}),
    "batch_create": lambda s, v: s.batch_create_sessions([{"session_id": "s", "user_id": "u", "metadata": {"v": v}}]),
    "message": lambda s, v: s.add_conversation_message("s", "user", "hi", {"v": v}),
    "batch_add": lambda s, v: s.batch_add_conversation_messages(
        [{"session_id": "s", "role": "user", "content": "hi", "metadata": {"v": v}}]
    ),
    "checkpoint": lambda s, v: s.store_checkpoint("t", "c", {"v": v}),
    "checkpoint metadata": lambda s, v: s.store_checkpoint("t", "c", {}, {"v": v}),
    "put_checkpoint": lambda s, v: s.put_checkpoint("t", "c", {"v": v}),
    "put_checkpoint metadata": lambda s, v: s.put_checkpoint("t", "c", {}, {"v": v}),
    "writes": lambda s, v: s.put_writes("t", "c", "task", [("a", v)]),
    "context": lambda s, v: s.store_task_context("s", v),
}  # fmt: skip


def message(content: str = "hello", metadata: bytes = b"\x80", **more: Any) -> Mutation:
    """As `batching` makes them."""
    return Mutation(
        key="s",
        op_id="op",
        kind=Kind.MESSAGE,
        body={"role": "user", "content": content, "metadata": metadata},
        fingerprint=bytes(16),
        occurred_at=wall_us(),
        stamp=wall_us(),
        **more,
    )


@pytest.mark.parametrize("what", VALUES, ids=str)
async def test_a_value_that_is_too_large_is_not_sent(what: str) -> None:
    """Wherever a value can be; the error says what, how large and how large it may be. A smaller one passes."""
    scripted = await store()
    layer = Limits(scripted, max_value=1_000)
    with pytest.raises(
        InvalidValueError, match=r"takes 1,0\d\d bytes, the limit is 1,000.*raise limits\.max_value"
    ) as caught:
        await VALUES[what](layer, BIG)
    assert (caught.value.outcome, scripted.calls) == ("not_applied", [])
    assert layer.state.by_limit == {"max_value": 1}
    await VALUES[what](layer, SMALL)
    assert len(scripted.calls) == 1


async def test_content_has_its_own_limit_in_bytes() -> None:
    """What counts is what is stored, not the number of characters."""
    scripted = await store()
    layer = Limits(scripted, max_content=1_000, max_value=100)
    await layer.add_conversation_message("s", "user", "é" * 500)
    for call in (
        layer.add_conversation_message("s", "user", "é" * 501),
        layer.batch_add_conversation_messages([{"session_id": "s", "role": "user", "content": BIG}]),
        layer.apply([message("é" * 501)]),
    ):
        with pytest.raises(InvalidValueError, match=r"limits\.max_content"):
            await call
    assert len(scripted.calls) == 1


async def test_the_number_of_items_is_limited() -> None:
    """A batch, and the writes of one task."""
    scripted = await store()
    layer = Limits(scripted, max_items=10)
    sessions = [{"session_id": f"{n}", "user_id": "u"} for n in range(11)]
    messages = [{"session_id": "s", "role": "user", "content": f"{n}"} for n in range(11)]
    for call in (
        layer.batch_create_sessions(sessions),
        layer.batch_add_conversation_messages(messages),
        layer.put_writes("t", "c", "task", MANY),
    ):
        with pytest.raises(InvalidValueError, match="has 11 items, the limit is 10"):
            await call
    assert scripted.calls == []
    assert await layer.batch_create_sessions(sessions[:10]) == [True] * 10


@pytest.mark.parametrize("between", ["nothing", "batching", "dual_write"])
async def test_what_is_written_lives_no_longer_than_that(between: str) -> None:
    """Sessions and threads each have their own longest life after their last write, through whatever stands below."""
    backend: Backend = MemoryStorageBackend(name="one")
    if between == "batching":
        backend = Batching(backend)
    elif between == "dual_write":
        backend = DualWrite(backend, MemoryStorageBackend(name="two"), durable_at_least="volatile")
    now = [wall_us()]
    with use_wall_clock(lambda: now[0]):
        async with Limits(backend, max_session_ttl=60.0, max_checkpoint_ttl=600.0) as layer:
            await layer.create_session("s", "u")
            await layer.store_checkpoint("s", "c", {})
            now[0] += 50_000_000
            await layer.add_conversation_message("s", "user", "hello")
            now[0] += 50_000_000
            assert await layer.get_session("s") is not None
            now[0] += 20_000_000
            assert await layer.get_session("s") is None
            assert await layer.get_conversation_history("s") == []
            assert await layer.get_checkpoint("s") is not None
            now[0] += 600_000_000
            assert await layer.get_checkpoint("s") is None


async def test_the_shorter_life_counts() -> None:
    """A store's own, or the layer's; also for the writes that carry no value."""
    now = [wall_us()]
    with use_wall_clock(lambda: now[0]):
        async with MemoryStorageBackend(session_ttl=10.0, checkpoint_ttl=1_000.0) as memory:
            layer = Limits(memory, max_session_ttl=100.0, max_checkpoint_ttl=100.0)
            await layer.create_session("s", "u")
            await layer.end_session("s")
            await layer.store_checkpoint("t", "c", {})
            await layer.prune_checkpoints("t", 1)
            now[0] += 11_000_000
            assert await layer.get_session("s") is None
            assert await layer.get_checkpoint("t") is not None
            now[0] += 90_000_000
            assert await layer.get_checkpoint("t") is None


async def test_records_are_limited_too_but_not_replays() -> None:
    """What was accepted elsewhere must be taken, or the two stores would differ for ever."""
    now = [wall_us()]
    with use_wall_clock(lambda: now[0]):
        scripted = await store()
        layer = Limits(scripted, max_value=1_000, max_session_ttl=60.0)
        big = b"\xc4\x80" + bytes(1_001)
        with pytest.raises(InvalidValueError, match="message metadata"):
            await layer.apply([message(metadata=big)])
        update = message()
        update.kind, update.body = (
            Kind.UPDATE,
            {"fields": {"custom": big}, "requests": 0, "time_us": 0, "errors": 0},
        )
        with pytest.raises(InvalidValueError, match="custom"):
            await layer.apply([update])
        [applied] = await layer.apply([message(expires_at=wall_us() + 1_000_000)])
        assert not isinstance(applied, Exception)
        assert applied.expires_at == wall_us() + 1_000_000
        replayed = message(replay=True, mark=False)
        replayed.op_id, replayed.key = "other", "other"
        await layer.apply([replayed])
        now[0] += 3_600_000_000
        assert await layer.get_conversation_history("s") == []
        assert len(await layer.get_conversation_history("other")) == 1


async def test_a_scope_gets_its_account_and_no_leftovers() -> None:
    """The limit belongs to the call under this layer, not to what the caller's scope does elsewhere."""
    layer = Limits(await store(), max_session_ttl=60.0)
    async with operation("mine") as op:
        await layer.create_session("s", "u")
    assert (op.op_id, op.served_by, op.max_session_ttl) == ("mine", "memory", None)


async def test_reads_cost_nothing() -> None:
    """They are the store's own methods."""
    scripted = await store()
    assert Limits(scripted).get_session.__self__ is scripted  # type: ignore[attr-defined]


async def test_it_tells_what_it_refused(events: list[telemetry.Event]) -> None:
    """An operator sees which limit is met; a reload does not forget it."""
    scripted = await store()
    layer = Limits(scripted, max_value=1_000)
    with pytest.raises(InvalidValueError):
        await layer.store_task_context("s", BIG)
    assert [(event.name, dict(event.attributes)) for event in events] == [
        (
            telemetry.LIMIT_EXCEEDED,
            {"backend": "memory", "operation": "store_task_context", "reason": "max_value"},
        )
    ]
    reloaded = Limits(scripted, max_value=2_000, state=layer.state)
    facts = {"refused": {"max_value": 1}}
    assert (await reloaded.health_check())["layers"]["limits"] == facts
    assert (await reloaded.get_metrics())["layers"]["limits"] == facts
    assert repr(reloaded).startswith("<Limits 2,000 bytes a value, 1 refused over ")


@pytest.mark.parametrize(
    "option", ["max_value", "max_content", "max_items", "max_session_ttl", "max_checkpoint_ttl"]
)
def test_impossible_options_are_refused(option: str) -> None:
    """When the chain is built."""
    with pytest.raises(ConfigurationError, match=f"limits: {option} must be"):
        Limits(MemoryStorageBackend(), **{option: 0})  # type: ignore[arg-type]


async def test_a_cancellation_passes() -> None:
    """And leaves no limit behind in the caller's scope."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = Limits(await store(Delay(0.001)), max_session_ttl=60.0)

        async def check() -> None:
            assert await layer.get_session("s") is None

        return layer.create_session("s", "u"), check

    assert await cancel_everywhere(scenario) >= 1
