"""The layer `read_only`: not one write gets through, every read does, and an operator can switch it."""

from collections.abc import Awaitable, Callable

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.errors import UnsupportedOperationError
from aiecs_resilient.layers.read_only import ReadOnly
from aiecs_resilient.operations import OPERATIONS, Effect

from .cancellation import cancel_everywhere
from .scripted import Delay, store
from .test_guards import invoke

WRITES = [name for name, op in OPERATIONS.items() if op.effect is Effect.WRITE]
READS = [name for name, op in OPERATIONS.items() if op.effect is Effect.READ]


@pytest.mark.parametrize("name", WRITES)
async def test_every_write_is_refused(name: str) -> None:
    """Whatever changes something is not sent, is known not to be applied, and trying again is no help."""
    scripted = await store()
    layer = ReadOnly(scripted)
    with pytest.raises(UnsupportedOperationError, match="read-only") as caught:
        await invoke(layer, name)
    error = caught.value
    assert (error.operation, error.outcome, error.transient, error.attempts) == (
        name,
        "not_applied",
        False,
        0,
    )
    assert scripted.calls == []
    assert layer.state.refused == 1


@pytest.mark.parametrize("name", WRITES)
async def test_switched_off_every_write_passes(name: str) -> None:
    """Each reaches the same operation of the store, once."""
    scripted = await store()
    await invoke(ReadOnly(scripted, enabled=False), name)
    assert [call.operation for call in scripted.calls] == [name]


@pytest.mark.parametrize("name", READS)
async def test_reads_cost_nothing(name: str) -> None:
    """They are the store's own methods."""
    scripted = await store()
    assert getattr(ReadOnly(scripted), name).__self__ is scripted


async def test_an_operator_may_switch_it() -> None:
    """By hand, at run time, beyond a reload, and back to what the configuration says."""
    scripted = await store()
    layer = ReadOnly(scripted)
    layer.force(False)
    await layer.create_session("s", "u")
    reloaded = ReadOnly(scripted, state=layer.state)
    await reloaded.end_session("s")
    reloaded.force(None)
    with pytest.raises(UnsupportedOperationError):
        await reloaded.end_session("s")
    off = ReadOnly(scripted, enabled=False)
    off.force(True)
    with pytest.raises(UnsupportedOperationError):
        await off.end_session("s")


async def test_it_is_seen_in_reports(events: list[telemetry.Event]) -> None:
    """Nobody should wonder why nothing can be written."""
    layer = ReadOnly(await store())
    with pytest.raises(UnsupportedOperationError):
        await layer.delete_session("s")
    assert [(event.name, event.attributes["operation"]) for event in events] == [
        (telemetry.WRITE_REFUSED, "delete_session")
    ]
    facts = {"on": True, "refused": 1}
    assert (await layer.health_check())["layers"]["read_only"] == facts
    assert (await layer.get_metrics())["layers"]["read_only"] == facts
    assert repr(layer).startswith("<ReadOnly on, 1 refused over ")


async def test_a_cancellation_passes() -> None:
    """There is nothing to clean up."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = ReadOnly(await store(Delay(0.001)), enabled=False)

        async def check() -> None:
            assert await layer.get_session("s") is None

        return layer.create_session("s", "u"), check

    assert await cancel_everywhere(scenario) >= 1
