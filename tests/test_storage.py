"""The stable handle: what an application holds keeps working while the chain behind it is replaced."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import pytest

from aiecs_resilient import ConfigurationError, OperationScopeError, Storage, open_storage, operation
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import UniformLayer
from aiecs_resilient.operations import LIFECYCLE, OPERATIONS, Operation, active
from aiecs_resilient.registry import BACKENDS, Entry, Registry
from aiecs_resilient.testing.contract import ReplicaContract, StorageContract
from aiecs_resilient.units import Count

P = ParamSpec("P")
T = TypeVar("T")
MEMORY: Mapping[str, object] = {"backends": {"m": "memory"}, "pipeline": [{"backend": "m"}]}


class Gate(UniformLayer):
    """Calls wait at it for as long as it is shut; counts them in state that outlives a reload."""

    layer_name: ClassVar[str] = "gate"
    gates: ClassVar[list[Gate]] = []

    def __init__(self, inner: Backend, *, width: Count = 1, state: list[str] | None = None) -> None:
        super().__init__(inner)
        self.width = width
        self.state: list[str] = [] if state is None else state
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.closed = asyncio.Event()
        Gate.gates.append(self)

    async def close(self) -> None:
        self.closed.set()
        await super().close()

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context = active()
        assert context is not None
        self.state.append(context.op_id)
        self.entered.set()
        await self.open.wait()
        return await call(*args, **kwargs)


class Server(MemoryStorageBackend):
    """A store whose address may lead nowhere; counts how often it was opened and closed."""

    made: ClassVar[list[Server]] = []

    def __init__(self, url: str, *, name: str = "server") -> None:
        super().__init__(name=name)
        self.url = url
        self.opened = self.closings = 0
        Server.made.append(self)

    async def initialize(self) -> bool:
        if self.url == "nowhere":
            raise ConnectionError("nobody there")
        self.opened += 1
        return await super().initialize()

    async def close(self) -> None:
        self.closings += 1
        await super().close()


REGISTRY = Registry(
    layers={"gate": Entry("gate", f"{__name__}:Gate")},
    backends={**BACKENDS, "server": Entry("server", f"{__name__}:Server")},
    plugins=False,
)


@pytest.fixture(autouse=True)
def nothing_made_yet() -> None:
    """Each test sees its own layers and stores."""
    Gate.gates.clear()
    Server.made.clear()


def configuration(url: str = "here", width: int = 1, name: str = "a") -> dict[str, object]:
    """A gate over a server."""
    return {
        "backends": {name: {"type": "server", "url": url}},
        "pipeline": [{"gate": {"width": width}}, {"backend": name}],
    }


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    """The handle over a gate over a server."""
    async with open_storage(configuration(), registry=REGISTRY) as handle:
        yield handle


class TestHandle(StorageContract, ReplicaContract):
    """The handle keeps the whole contract."""

    @pytest.fixture
    async def storage(self) -> AsyncIterator[Storage]:
        async with open_storage(MEMORY) as handle:
            yield handle


def test_every_operation_goes_through_the_handle() -> None:
    """None is bound to the chain of the moment: a reload would not reach it."""
    handle = open_storage(MEMORY)
    assert not set(vars(handle)) & {*OPERATIONS, *LIFECYCLE}


def test_it_is_used_in_either_way() -> None:
    """`open_storage` is no coroutine: it can stand in `async with` or be initialized later."""
    assert not inspect.iscoroutinefunction(open_storage)


async def test_it_can_be_initialized_and_closed_by_hand() -> None:
    """Both are idempotent."""
    handle = open_storage(configuration(), registry=REGISTRY)
    assert await handle.initialize()
    assert await handle.initialize()
    await handle.create_session("s", "u")
    await handle.close()
    await handle.close()
    assert (Server.made[0].opened, Server.made[0].closings) == (1, 1)


async def test_a_path_is_opened(tmp_path: Path) -> None:
    """A file, by its name or as a path."""
    path = tmp_path / "m.yaml"
    path.write_text("backends: {m: memory}\npipeline: [backend: m]\n", encoding="utf-8")
    for source in (path, str(path)):
        async with open_storage(source) as handle:
            assert await handle.get_session("s") is None


async def test_a_call_has_its_identity_from_the_handle(storage: Storage) -> None:
    """Every layer below sees one operation; a caller's own id is used, and a scope names one write."""
    await storage.create_session("s", "u")
    async with operation(op_id="mine") as op:
        await storage.end_session("s")
        with pytest.raises(OperationScopeError):
            await storage.end_session("s")
    assert Gate.gates[0].state[1] == "mine"
    assert op.position is not None
    assert active() is None


async def test_reload_keeps_store_and_state(storage: Storage) -> None:
    """An unchanged store keeps its connections and what it holds, a layer its state; options are new."""
    await storage.create_session("s", "u")
    await storage.reload(configuration(width=2))
    assert await storage.get_session("s") is not None
    old, new = Gate.gates
    assert (old.width, new.width) == (1, 2)
    assert old.state is new.state
    assert len(new.state) == 2
    assert len(Server.made) == 1
    assert Server.made[0].closings == 0


async def test_reload_replaces_a_changed_store(storage: Storage) -> None:
    """Another address is another store; the old one is closed."""
    await storage.create_session("s", "u")
    await storage.reload(configuration(url="there"))
    old, new = Server.made
    assert (old.closings, new.opened) == (1, 1)
    assert await storage.get_session("s") is None


async def test_calls_under_way_finish_on_the_old_chain(storage: Storage) -> None:
    """New calls go to the new chain at once; the old one is closed when its last call has ended."""
    gate = Gate.gates[0]
    gate.open.clear()
    slow = asyncio.create_task(storage.create_session("s", "u"))
    await gate.entered.wait()
    reload = asyncio.create_task(storage.reload(configuration(url="there")))
    while storage.inner is gate:  # noqa: ASYNC110  # the swap is no event anywhere
        await asyncio.sleep(0)
    await storage.create_session("new", "u")
    assert not gate.closed.is_set()
    assert not reload.done()
    gate.open.set()
    assert (await slow)["session_id"] == "s"
    await reload
    assert gate.closed.is_set()
    assert await Server.made[1].get_session("new") is not None


async def test_a_call_that_hangs_does_not_keep_the_old_chain_for_ever(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Draining is bounded, and the log says that it was cut short."""
    gate = Gate.gates[0]
    gate.open.clear()
    hanging = asyncio.create_task(storage.create_session("s", "u"))
    await gate.entered.wait()
    await storage.reload(configuration(width=2), drain_seconds=0.01)
    assert gate.closed.is_set()
    assert "under 1 calls" in caplog.text
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


@pytest.mark.parametrize(
    "bad",
    [{"backends": {}}, {**MEMORY, "pipelin": 1}, "no/such/file.yaml"],
    ids=["empty", "unknown key", "no file"],
)
async def test_an_invalid_configuration_changes_nothing(storage: Storage, bad: Any) -> None:
    """The error is raised and the old chain serves on."""
    before = storage.inner
    with pytest.raises(ConfigurationError):
        await storage.reload(bad)
    assert storage.inner is before
    await storage.create_session("s", "u")


async def test_a_chain_that_cannot_be_opened_changes_nothing(storage: Storage) -> None:
    """What was opened of the new chain is closed again, and the shared store stays open."""
    await storage.create_session("s", "u")
    with pytest.raises(ConnectionError):
        await storage.reload(configuration(url="nowhere"))
    assert await storage.get_session("s") is not None
    assert [server.closings for server in Server.made] == [0, 1]
    await storage.reload(configuration(url="there"))
    assert [server.closings for server in Server.made] == [1, 1, 0]


async def test_reload_reads_the_same_file_again(tmp_path: Path) -> None:
    """Without an argument the file is what counts."""
    path = tmp_path / "chain.yaml"
    text = "backends: {a: {type: server, url: x}}\npipeline:\n  - gate: {width: %d}\n  - backend: a\n"
    path.write_text(text % 1, encoding="utf-8")
    async with open_storage(path, registry=REGISTRY) as handle:
        path.write_text(text % 7, encoding="utf-8")
        await handle.reload()
    assert [gate.width for gate in Gate.gates] == [1, 7]


async def test_giving_up_a_reload_does_not_leave_the_old_chain_open(storage: Storage) -> None:
    """Whoever is cancelled while the old chain drains does not stop the draining."""
    gate = Gate.gates[0]
    gate.open.clear()
    slow = asyncio.create_task(storage.create_session("s", "u"))
    await gate.entered.wait()
    reload = asyncio.create_task(storage.reload(configuration(width=2)))
    while storage.inner is gate:  # noqa: ASYNC110  # the swap is no event anywhere
        await asyncio.sleep(0)
    reload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reload
    gate.open.set()
    await slow
    await asyncio.wait_for(gate.closed.wait(), 5)


async def test_a_store_that_cannot_be_opened_leaves_nothing_open() -> None:
    """A failed start closes what it had opened, and can be tried again."""
    handle = open_storage(configuration(url="nowhere"), registry=REGISTRY)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await handle.initialize()
    assert Server.made[0].closings == 2


async def test_observability_is_set_up_only_on_request_and_taken_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The section is set up when the storage is opened; a reload that changes it says that it has no effect yet."""
    import structlog

    assert not structlog.is_configured()
    source: dict[str, object] = {**MEMORY, "observability": {"logs": "json", "log_level": "error"}}
    async with open_storage(source) as handle:
        assert structlog.is_configured()
        await handle.reload({**source, "observability": {"logs": "json", "log_level": "info"}})
    assert "takes effect at the next start" in caplog.text
    assert not structlog.is_configured()


async def test_health_and_metrics_come_from_the_chain_in_force(storage: Storage) -> None:
    """After a reload they are the new chain's."""
    await storage.reload({"backends": {"other": "memory"}, "pipeline": [{"backend": "other"}]})
    assert (await storage.health_check())["storage_backend"] == "memory"
    assert (await storage.get_metrics())["total_sessions"] == 0
    assert storage.name == "other"


async def test_the_handle_costs_about_a_microsecond() -> None:
    """An order of magnitude above the goal would be a mistake, whatever machine this runs on."""

    class Nothing(MemoryStorageBackend):
        async def get_session(self, session_id: str) -> None:
            return None

    async def cost(backend: Backend) -> float:
        call, best = backend.get_session, float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(5_000):
                await call("s")
            best = min(best, time.perf_counter() - start)
        return best / 5_000 * 1e6

    async with open_storage(MEMORY) as handle:
        inner = Nothing()
        handle.inner = inner
        gc.disable()
        try:
            assert await cost(handle) - await cost(inner) < 10
        finally:
            gc.enable()
            handle.inner = MemoryStorageBackend()
