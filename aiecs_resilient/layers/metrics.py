"""metrics: how many, how long and how they ended, for OpenTelemetry and for the chain's own ``get_metrics``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..clock import monotonic
from ..interface import Backend, Json
from ..latency import Latency
from ..operations import Operation, OperationContext, begin, finish
from ..telemetry import CANCELLED, ERROR, OK, Ending, Value
from ._base import UniformLayer
from ._observed import system_of

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(telemetry.SCOPE)


class OperationStats:
    """How one kind of operation has gone since the start of this process."""

    __slots__ = ("cancelled", "degraded", "error_types", "errors", "latency", "stale")

    def __init__(self) -> None:
        self.errors = 0
        self.cancelled = 0
        self.degraded = 0
        self.stale = 0
        self.error_types: dict[str, int] = {}
        self.latency = Latency()

    def report(self) -> Json:
        """Counts, and seconds of those that came to an end by themselves: a cancelled one only tells of its caller."""
        latency = self.latency
        total = latency.count + self.cancelled
        p50, p95, p99 = latency.quantiles(0.5, 0.95, 0.99)
        return {
            "total": total,
            "errors": self.errors,
            "error_rate": self.errors / total if total else 0.0,
            "cancelled": self.cancelled,
            "degraded": self.degraded,
            "stale": self.stale,
            "avg": latency.mean(),
            "min": latency.shortest if latency.count else 0.0,
            "max": latency.longest,
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "error_types": dict(self.error_types),
        }


class MetricsState:
    """What survives a reload: the statistics of every operation."""

    def __init__(self) -> None:
        self.operations: dict[str, OperationStats] = {}

    def report(self) -> Json:
        """By operation; only those that took place."""
        return {name: stats.report() for name, stats in sorted(self.operations.items())}


class Metrics(UniformLayer):
    """Counts and times each operation.

    Place: below tracing, above everything that may answer in the store's stead or make it wait::

        tracing → metrics → cache → dual_write        right: what users get
        cache → metrics → dual_write                  wrong: cache hits are missing, latency looks worse than it is

    Metrics: ``db.client.operation.duration`` (seconds; by operation, store that answered, ending and error type),
    ``aiecs.answers.degraded``, ``aiecs.answers.stale``. Events of other layers are counted by ``aiecs.events``. No ids, so
    that the number of time series stays small.

    ``get_metrics`` gains ``performance``: per operation ``total, errors, error_rate, cancelled, degraded, stale, avg, min,
    max, p50, p95, p99`` (seconds; percentiles within 2 %) and ``error_types``. There are three endings: ok, error,
    cancelled. Those cancelled count, but not in the latencies.

    Args:
        inner: the chain to be measured.
        state: statistics of the chain that this one replaces.
    """

    layer_name: ClassVar[str] = "metrics"

    def __init__(self, inner: Backend, *, state: MetricsState | None = None) -> None:
        super().__init__(inner)
        self.state = state or MetricsState()
        self._system = system_of(inner)
        self._labels: dict[tuple[str, str | None, str, str], Mapping[str, Value]] = {}

    def describe(self) -> str:
        total = sum(stats.latency.count + stats.cancelled for stats in self.state.operations.values())
        return f"{total} operations"

    async def get_metrics(self) -> Json:
        report = await self.inner.get_metrics()
        report["performance"] = self.state.report()
        return report

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        started = monotonic()
        context, token = None, None
        try:
            context, token = begin(op)
            answer = await call(*args, **kwargs)
        except Exception as error:
            self._ended(op, started, context, ERROR, type(error).__name__)
            raise
        except BaseException:
            self._ended(op, started, context, CANCELLED, "")
            raise
        else:
            self._ended(op, started, context, OK, "")
            return answer
        finally:
            finish(token)

    def _ended(
        self, op: Operation, started: float, context: OperationContext | None, ending: Ending, error_type: str
    ) -> None:
        seconds = monotonic() - started
        stats = self.state.operations.get(op.name)
        if stats is None:
            stats = self.state.operations[op.name] = OperationStats()
        if ending == CANCELLED:
            stats.cancelled += 1
        else:
            stats.latency.add(seconds)
            if error_type:
                stats.errors += 1
                stats.error_types[error_type] = stats.error_types.get(error_type, 0) + 1
        served_by = None if context is None else context.served_by
        place = (op.name, served_by, ending, error_type)
        labels = self._labels.get(place)
        if labels is None:
            labels = self._labels[place] = self._label(*place)
        degraded = stale = False
        if context is not None and ending == OK:
            degraded, stale = context.degraded, context.stale
        stats.degraded += degraded
        stats.stale += stale
        instruments = telemetry.current.instruments
        try:
            instruments.duration.record(seconds, labels)
            if degraded:
                instruments.degraded.add(1, labels)
            if stale:
                instruments.stale.add(1, labels)
        except Exception:  # noqa: BLE001  telemetry that fails must not change how an operation ends
            _log.debug("metrics failed to record %s", op.name, exc_info=True)

    def _label(
        self, operation: str, served_by: str | None, ending: Ending | str, error_type: str
    ) -> Mapping[str, Value]:
        labels: dict[str, Value] = {
            telemetry.DB_SYSTEM_NAME: self._system,
            telemetry.DB_OPERATION_NAME: operation,
            telemetry.ATTR_ENDING: ending,
        }
        if served_by is not None:
            labels[telemetry.ATTR_SERVED_BY] = served_by
        if error_type:
            labels[telemetry.ERROR_TYPE] = error_type
        return labels


__all__ = ["Metrics", "MetricsState", "OperationStats"]
