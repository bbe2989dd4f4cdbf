"""metrics: counts that are right in all three endings, percentiles in bounded memory, and few time series."""

from __future__ import annotations

import asyncio
import random

import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint

from aiecs_resilient import telemetry
from aiecs_resilient.errors import StorageTimeoutError
from aiecs_resilient.latency import Latency
from aiecs_resilient.layers.metrics import Metrics
from aiecs_resilient.operations import OperationContext


def points(
    reader: InMemoryMetricReader, metric: telemetry.Metric
) -> list[NumberDataPoint | HistogramDataPoint]:
    """Everything recorded for one metric."""
    data = reader.get_metrics_data()
    if data is None:
        return []
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for found in scope.metrics
        if found.name == metric.name
        for point in found.data.data_points
    ]


async def hang(chain: Metrics, probe) -> asyncio.Task[object]:
    """An operation that waits inside the store."""
    inside = asyncio.Event()

    async def act(_context: OperationContext) -> None:
        inside.set()
        await asyncio.Event().wait()

    probe.act = act
    task = asyncio.create_task(chain.get_session("s-1"))
    await inside.wait()
    return task


async def test_get_metrics_reports_performance_per_operation(probe):
    """Count, errors and seconds of each operation stand beside the store's own totals."""
    now = [1_000.0]
    chain = Metrics(probe, clock=lambda: now[0])

    async def act(context: OperationContext) -> None:
        now[0] += 0.010

    probe.act = act
    for _ in range(9):
        await chain.get_session("s-1")

    async def slow(context: OperationContext) -> None:
        now[0] += 1.0
        raise StorageTimeoutError("too slow")

    probe.act = slow
    with pytest.raises(StorageTimeoutError):
        await chain.get_session("s-1")
    metrics = await chain.get_metrics()
    assert metrics["total_sessions"] == 0
    report = metrics["performance"]["get_session"]
    assert (report["total"], report["errors"], report["error_rate"]) == (10, 1, 0.1)
    assert report["error_types"] == {"StorageTimeoutError": 1}
    assert report["avg"] == pytest.approx(0.109)
    assert report["min"] == pytest.approx(0.010)
    assert report["max"] == pytest.approx(1.0)
    assert report["p50"] == pytest.approx(0.010, rel=0.02)
    assert report["p99"] == pytest.approx(1.0, rel=0.02)


async def test_a_cancelled_operation_counts_as_cancelled_only(probe, measured):
    """It is neither success nor error, and how long its caller had patience says nothing of the store."""
    chain = Metrics(probe)
    task = await hang(chain, probe)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    report = (await chain.get_metrics())["performance"]["get_session"]
    assert (report["total"], report["errors"], report["cancelled"]) == (1, 0, 1)
    assert (report["max"], report["p99"]) == (0.0, 0.0)
    [point] = points(measured, telemetry.OPERATION_DURATION)
    assert point.attributes == {
        "db.system.name": "memory",
        "db.operation.name": "get_session",
        "aiecs.ending": "cancelled",
    }


async def test_the_histogram_tells_operation_store_and_ending_and_no_ids(probe, measured):
    """A time series per operation, store, ending and error type: never one per session."""
    chain = Metrics(probe)
    for n in range(20):
        await chain.get_session(f"s-{n}")
    probe.fail_with(StorageTimeoutError("too slow"))
    with pytest.raises(StorageTimeoutError):
        await chain.get_session("s-1")
    ok, failed = points(measured, telemetry.OPERATION_DURATION)
    assert ok.attributes == {
        "db.system.name": "memory",
        "db.operation.name": "get_session",
        "aiecs.ending": "ok",
        "aiecs.served_by": "mem",
    }
    assert isinstance(ok, HistogramDataPoint)
    assert ok.count == 20
    assert ok.explicit_bounds == telemetry.DURATION_BOUNDARIES
    assert failed.attributes == {
        "db.system.name": "memory",
        "db.operation.name": "get_session",
        "aiecs.ending": "error",
        "error.type": "StorageTimeoutError",
    }


async def test_degraded_and_stale_answers_are_counted(probe, measured):
    """How many users were served from a store that may lack something is a number, not a guess."""

    async def act(context: OperationContext) -> None:
        context.degraded = context.stale = True

    probe.act = act
    chain = Metrics(probe)
    await chain.get_session("s-1")
    report = (await chain.get_metrics())["performance"]["get_session"]
    assert (report["degraded"], report["stale"]) == (1, 1)
    for metric in (telemetry.ANSWERS_DEGRADED, telemetry.ANSWERS_STALE):
        [point] = points(measured, metric)
        assert isinstance(point, NumberDataPoint)
        assert point.value == 1


async def test_statistics_survive_a_reload(probe):
    """A new chain goes on counting where the old one stopped, while the old one still drains."""
    old = Metrics(probe)
    await old.get_session("s-1")
    new = Metrics(probe, state=old.state)
    await new.get_session("s-1")
    await old.get_session("s-1")
    assert (await new.get_metrics())["performance"]["get_session"]["total"] == 3


async def test_an_instrument_that_fails_harms_nobody(probe):
    """Neither an answer nor an exception changes because measuring failed; the chain's own counts go on."""

    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("broken instrument")

    before = telemetry.current.instruments
    telemetry.current.instruments = Broken()  # type: ignore[assignment]
    try:
        chain = Metrics(probe)
        assert await chain.get_session("s-1") is None
        error = StorageTimeoutError("too slow")
        probe.fail_with(error)
        with pytest.raises(StorageTimeoutError) as caught:
            await chain.get_session("s-1")
        assert caught.value is error
    finally:
        telemetry.current.instruments = before
    assert (await chain.get_metrics())["performance"]["get_session"]["total"] == 2


def test_percentiles_are_within_two_percent():
    """Buckets are exact enough for every decision that a percentile is used for."""
    source = random.Random(7)
    values = sorted(source.lognormvariate(-7, 2) for _ in range(20_000))
    latency = Latency()
    for value in values:
        latency.add(value)
    for share, found in zip((0.5, 0.95, 0.99), latency.quantiles(0.5, 0.95, 0.99), strict=True):
        assert found == pytest.approx(values[int(share * len(values)) - 1], rel=0.02)
    assert latency.mean() == pytest.approx(sum(values) / len(values))
    assert (latency.shortest, latency.longest) == (values[0], values[-1])


def test_memory_is_bounded_whatever_is_measured():
    """A million different durations, zero and a year among them, take no more than 700 buckets."""
    latency = Latency()
    for exponent in range(-200, 200):
        for step in range(100):
            latency.add((1 + step / 100) * 10 ** (exponent / 10))
    latency.add(0.0)
    latency.add(3.2e7)
    assert len(latency._buckets) <= 710
    assert latency.quantiles(0.0, 1.0)[1] <= 3.2e7


def test_no_measurement_is_no_number():
    """An operation that was only ever cancelled has zeros, not infinities, in its report."""
    latency = Latency()
    assert latency.quantiles(0.5, 0.99) == [0.0, 0.0]
    assert latency.mean() == 0.0
