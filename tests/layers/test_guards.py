"""What holds the layers together: equal signatures, true names, no operation forgotten, nothing paid for nothing."""

import asyncio
import importlib
import inspect
import pkgutil
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import aiecs_resilient.layers
from aiecs_resilient.backends._base import RecordingBackend
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer, UniformLayer
from aiecs_resilient.operations import LIFECYCLE, OPERATIONS, Effect, Operation
from aiecs_resilient.records import RecordPage, Route

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "create_session": ("s", "u"),
    "list_sessions": (),
    "batch_create_sessions": ([],),
    "batch_get_sessions": ([],),
    "add_conversation_message": ("s", "user", "hello"),
    "batch_add_conversation_messages": ([],),
    "store_checkpoint": ("t", "c", {}),
    "put_checkpoint": ("t", "c", {}),
    "prune_checkpoints": ("t", 1),
    "put_writes": ("t", "c", "task", []),
    "get_writes": ("t", "c"),
    "list_threads": (),
    "store_task_context": ("s", {}),
    "cleanup_expired_sessions": (),
    "operation_outcome": ("s", "op"),
    "apply": ([],),
    "read_records": (),
    "close_marks": ([],),
    "read_idle": (0, 1),
    "store_state": (),
    "move_route": (0, Route(1, "memory")),
}
"""How to call each operation; the others take one id."""


def all_layers() -> list[type[Layer]]:
    """Every layer that this package ships."""
    for module in pkgutil.iter_modules(aiecs_resilient.layers.__path__):
        importlib.import_module(f"aiecs_resilient.layers.{module.name}")

    def below(base: type[Layer]) -> Iterator[type[Layer]]:
        for found in base.__subclasses__():
            package, _, module = found.__module__.rpartition(".")
            if package == "aiecs_resilient.layers" and not module.startswith("_"):  # else a base of several
                yield found
            yield from below(found)

    return sorted(set(below(Layer)) - {UniformLayer}, key=lambda found: found.__name__)


LAYERS = all_layers()
UNIFORM = [found for found in LAYERS if issubclass(found, UniformLayer)]


class Spy(UniformLayer):
    """Notes each operation that passes, and the method it would call."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.seen: list[tuple[Operation, str]] = []

    async def around(
        self, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        self.seen.append((op, call.__name__))  # type: ignore[attr-defined]
        return await call(*args, **kwargs)


async def invoke(backend: Backend, name: str) -> Any:
    return await getattr(backend, name)(*ARGUMENTS.get(name, ("id",)))


def test_the_layers_are_found() -> None:
    """The guards below would hold over an empty list too."""
    assert {"Retry", "CircuitBreaker", "Timeout", "Deadline"} <= {found.__name__ for found in UNIFORM}


@pytest.mark.parametrize("name", [*OPERATIONS, *LIFECYCLE])
def test_signatures_are_equal(name: str) -> None:
    """A layer can stand wherever a backend does: names, order, defaults, kinds and types of every parameter."""
    interface = inspect.signature(getattr(Backend, name))
    assert inspect.signature(getattr(Layer, name)) == interface
    assert inspect.signature(getattr(UniformLayer, name)) == interface
    for found in [*LAYERS, MemoryStorageBackend]:
        own = inspect.signature(getattr(found, name))
        assert own.parameters == interface.parameters, found


def test_every_operation_of_the_interface_is_in_the_table() -> None:
    """A method that is not in the table would pass all policies unseen."""
    coroutines = {
        name
        for name, value in inspect.getmembers(Backend, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert coroutines == {*OPERATIONS, *LIFECYCLE}
    for name, op in OPERATIONS.items():
        assert op.name == name
        assert op.key is None or op.key in inspect.signature(getattr(Backend, name)).parameters


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_uniform_layer_passes_the_operation_that_was_called(name: str) -> None:
    """`op.name` is the method called on the layer and the method it calls on the backend: one and the same, once."""
    async with MemoryStorageBackend() as memory:
        spy = Spy(memory)
        await invoke(spy, name)
    assert spy.seen == [(OPERATIONS[name], name)]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("found", UNIFORM, ids=lambda found: found.__name__)
async def test_every_uniform_layer_sees_every_operation(found: type[UniformLayer], name: str) -> None:
    """No operation goes round the layer, and the layer calls the same one inside, once."""
    seen: list[str] = []
    original = found.around

    async def around(
        self: UniformLayer, op: Operation, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        seen.append(op.name)
        return await original(self, op, call, *args, **kwargs)

    watched = type(f"Watched{found.__name__}", (found,), {"around": around, "__module__": __name__})
    async with MemoryStorageBackend() as memory:
        spy = Spy(memory)
        answer = await invoke(watched(spy), name)
        assert seen == [name]
        assert [op.name for op, _called in spy.seen] == [name]
        if OPERATIONS[name].effect is Effect.READ and name not in {"store_state", "read_records"}:
            assert answer == await invoke(memory, name)
        elif name == "read_records":
            assert isinstance(answer, RecordPage)


@pytest.mark.parametrize("found", UNIFORM, ids=lambda found: found.__name__)
async def test_lifecycle_never_passes_around(found: type[UniformLayer]) -> None:
    """An open breaker must not block close."""

    async def around(*_args: Any, **_more: Any) -> Any:
        raise AssertionError("lifecycle went through `around`")

    layer: UniformLayer = type(f"Deaf{found.__name__}", (found,), {"around": around, "__module__": __name__})(
        MemoryStorageBackend()
    )
    assert await layer.initialize() is True
    assert (await layer.health_check())["status"] == "healthy"
    assert (await layer.get_metrics())["total_sessions"] == 0
    await layer.close()
    await layer.close()


async def test_what_a_layer_leaves_alone_costs_nothing() -> None:
    """Through any number of such layers the method is the store's own: not one frame is added."""

    class Idle(Layer):
        """Changes one operation."""

        async def get_session(self, session_id: str) -> dict[str, Any] | None:
            return {"asked": session_id}

    memory = MemoryStorageBackend()
    chain: Backend = memory
    for _ in range(7):
        chain = Idle(chain)
    for name in (*OPERATIONS, *LIFECYCLE):
        bound = getattr(chain, name)
        assert bound.__self__ is (chain if name == "get_session" else memory), name
    assert await chain.get_session("s") == {"asked": "s"}


def test_lifecycle_that_a_layer_leaves_alone_costs_nothing_either() -> None:
    """A uniform layer claims the operations, not the lifecycle."""
    memory = MemoryStorageBackend()
    spy = Spy(memory)
    assert all(getattr(spy, name).__self__ is memory for name in LIFECYCLE)
    assert all(getattr(spy, name).__self__ is spy for name in OPERATIONS)


@pytest.mark.parametrize("found", LAYERS, ids=lambda found: found.__name__)
def test_the_two_names_of_storing_a_checkpoint_go_together(found: type[Layer]) -> None:
    """Whoever changes one of store_checkpoint and put_checkpoint changes the other, or callers of one get round it."""
    base = UniformLayer if issubclass(found, UniformLayer) else Layer
    changed = {
        name
        for name in ("store_checkpoint", "put_checkpoint")
        if getattr(found, name) is not getattr(base, name)
    }
    assert len(changed) != 1


async def test_the_two_names_of_storing_a_checkpoint_are_one_operation_of_the_store() -> None:
    """What one stores the other replaces, through any backend of ours."""
    assert "put_checkpoint" in vars(RecordingBackend)
    async with MemoryStorageBackend() as memory:
        await memory.store_checkpoint("t", "c", {"n": 1})
        await memory.put_checkpoint("t", "c", {"n": 2})
        assert [item["data"] for item in await memory.list_checkpoints("t")] == [{"n": 2}]


@pytest.mark.parametrize("found", LAYERS, ids=lambda found: found.__name__)
def test_a_layer_is_what_its_form_says(found: type[Layer]) -> None:
    """One file, one sentence, a name for YAML; `inner` first, then keywords that all have defaults."""
    assert found.layer_name != Layer.layer_name
    assert found.layer_name == found.__module__.rpartition(".")[2]
    text = (inspect.getdoc(found) or "").lower()
    for word in ("place:", "right", "wrong", "cancel", "args:"):
        assert word in text, f"its docstring says nothing of {word!r}"
    first, *others = list(inspect.signature(found).parameters.values())
    assert first.name == "inner"
    assert all(other.kind is other.KEYWORD_ONLY and other.default is not other.empty for other in others)


@pytest.mark.parametrize("found", UNIFORM, ids=lambda found: found.__name__)
async def test_building_a_layer_starts_nothing(found: type[UniformLayer]) -> None:
    """No I/O and no tasks before initialize."""
    before = asyncio.all_tasks()
    layer = found(MemoryStorageBackend())  # type: ignore[call-arg]
    assert asyncio.all_tasks() == before
    assert (layer.name, layer.honours_op_id) == ("memory", True)
    assert repr(layer).startswith(f"<{found.__name__}")
