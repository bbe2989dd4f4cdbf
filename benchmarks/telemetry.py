"""What tracing, metrics and logging cost: one read through each combination, beside the same read without them.

    python benchmarks/telemetry.py [--rounds 9] [--calls 2000] [--store]

Variants run interleaved, so that a noisy machine disturbs all of them alike; what is printed are medians over the rounds,
and beside them the least of all rounds, which other programs disturb less.
The first line is the inner backend twice (A/A): its ratio is the error of this measurement. Without ``--store`` the inner
backend answers at once, so that only the layers are seen; with it, it reads from a real Valkey on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer
from aiecs_resilient.layers.logging import Logging
from aiecs_resilient.layers.metrics import Metrics
from aiecs_resilient.layers.tracing import Tracing
from aiecs_resilient.operations import GET_SESSION, begin, finish

SESSION = {"session_id": "s-1", "user_id": "user-1", "status": "active", "metadata": {}}


class Inner(Layer):
    """As little as an inner backend can do."""

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        return SESSION


class Read(Layer):
    """A read from a real store with a plain client."""

    client: Any = None

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        return json.loads(await self.client.get(session_id))


class Handle(Layer):
    """The identity that the stable handle gives to each call, so that layers find one as they do in use."""

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        _context, token = begin(GET_SESSION)
        try:
            return await self.inner.get_session(session_id)
        finally:
            finish(token)


@dataclass
class Variant:
    """A chain and what must be set up while it is measured."""

    name: str
    chain: Backend
    sdk: Callable[[ExitStack], None] = lambda _stack: None


def tracing_sdk(stack: ExitStack) -> None:
    """Every span sampled and batched to an exporter that throws it away."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    provider = TracerProvider()
    exporter = ConsoleSpanExporter(out=io.StringIO(), formatter=lambda _span: "")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=100_000))
    stack.callback(provider.shutdown)
    stack.callback(telemetry.use(tracer=provider.get_tracer(telemetry.SCOPE)))


def metrics_sdk(stack: ExitStack) -> None:
    """Measurements aggregated, and never exported."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider([InMemoryMetricReader()])
    stack.callback(provider.shutdown)
    stack.callback(telemetry.use(meter=provider.get_meter(telemetry.SCOPE)))


def both(stack: ExitStack) -> None:
    """Spans and measurements."""
    tracing_sdk(stack)
    metrics_sdk(stack)


def logging_json(inner: Backend) -> Logging:
    """A line of JSON per operation, written to memory."""
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(io.StringIO()),
    )
    layer = Logging(inner, level="debug")
    structlog.reset_defaults()
    return layer


def variants(inner: Backend) -> list[Variant]:
    """From nothing to everything."""
    handle = Handle
    return [
        Variant("inner alone", handle(inner)),
        Variant("inner alone again (A/A)", handle(inner)),
        Variant("no SDK: tracing", handle(Tracing(inner))),
        Variant("no SDK: metrics", handle(Metrics(inner))),
        Variant("no SDK: logging (filtered)", handle(Logging(inner))),
        Variant("no SDK: all three", handle(Tracing(Metrics(Logging(inner))))),
        Variant("sampled span", handle(Tracing(Metrics(Logging(inner)))), tracing_sdk),
        Variant("sampled span + SDK metrics", handle(Tracing(Metrics(Logging(inner)))), both),
        Variant(
            "sampled span + SDK metrics + JSON line", handle(Tracing(Metrics(logging_json(inner)))), both
        ),
    ]


async def measure(variant: Variant, calls: int) -> float:
    """Microseconds per call."""
    with ExitStack() as stack:
        variant.sdk(stack)
        read = variant.chain.get_session
        for _ in range(calls // 10):
            await read("s-1")
        started = time.perf_counter()
        for _ in range(calls):
            await read("s-1")
        return (time.perf_counter() - started) / calls * 1e6


async def compare(inner: Backend, rounds: int, calls: int) -> None:
    """Interleaved rounds, then medians."""
    found: dict[str, list[float]] = {}
    all_variants = variants(inner)
    for _ in range(rounds):
        for variant in all_variants:
            found.setdefault(variant.name, []).append(await measure(variant, calls))
    bases = found["inner alone"]
    print(
        f"{'µs per call':40} {'median':>8} {'added':>8} {'ratio':>7} {'least':>8} {'added':>8} {'ratio':>7}"
    )
    for name, times in found.items():
        figures = [
            f"{pick(times):8.2f} {pick(times) - pick(bases):8.2f} {pick(times) / pick(bases):7.2f}"
            for pick in (statistics.median, min)
        ]
        print(f"{name:40} {' '.join(figures)}")


async def against_store(rounds: int, calls: int) -> None:
    """The same over a plain client's read from a real server."""
    from redis.asyncio import Redis

    from aiecs_resilient.testing.servers import ValkeyServer

    with ValkeyServer() as server:
        async with Redis.from_url(server.url) as client:
            await client.set("s-1", json.dumps(SESSION))
            inner = Read(MemoryStorageBackend())
            inner.client = client
            await compare(inner, rounds, calls)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--store", action="store_true", help="read from a real Valkey")
    options = parser.parse_args()
    if options.store:
        asyncio.run(against_store(options.rounds, options.calls))
    else:
        asyncio.run(compare(Inner(MemoryStorageBackend()), options.rounds, options.calls))


if __name__ == "__main__":
    main()
