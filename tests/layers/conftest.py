"""What tests of layers share: a chain's lower end whose behaviour a test decides, and spans and metrics kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.layers import UniformLayer
from aiecs_resilient.operations import Operation, OperationContext, begin, finish
from aiecs_resilient.testing.clock import VirtualTimeLoop

P = ParamSpec("P")
T = TypeVar("T")


class Probe(UniformLayer):
    """Calls ``act`` inside each operation, then lets it through to the memory backend."""

    def __init__(self, inner: MemoryStorageBackend) -> None:
        super().__init__(inner)
        self.act: Callable[[OperationContext], Awaitable[None]] | None = None

    def fail_with(self, error: BaseException) -> None:
        """Every operation from now on raises this."""

        async def act(_context: OperationContext) -> None:
            raise error

        self.act = act

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        context, token = begin(op)
        try:
            if self.act is not None:
                await self.act(context)
            return await call(*args, **kwargs)
        finally:
            finish(token)


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    """An open lower end of a chain."""
    async with MemoryStorageBackend(name="mem") as backend:
        yield Probe(backend)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Finished spans, all of them sampled."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    undo = telemetry.use(tracer=provider.get_tracer(telemetry.SCOPE))
    yield exporter
    undo()
    provider.shutdown()


@pytest.fixture
def measured() -> Iterator[InMemoryMetricReader]:
    """What the instruments have been told."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    undo = telemetry.use(meter=provider.get_meter(telemetry.SCOPE))
    yield reader
    undo()
    provider.shutdown()


@pytest.fixture
def events() -> Iterator[list[telemetry.Event]]:
    """What the layers report during the test."""
    told: list[telemetry.Event] = []
    stop = telemetry.subscribe(told.append)
    yield told
    stop()


def pytest_asyncio_loop_factories(
    item: pytest.Function,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Modules that say ``VIRTUAL_TIME = True`` run on a clock that jumps from timer to timer."""
    if getattr(item.module, "VIRTUAL_TIME", False):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}
