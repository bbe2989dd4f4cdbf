"""metrics: how many, how long and how they ended, for OpenTelemetry and for the chain's own ``get_metrics``."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, ParamSpec, TypeVar

from .. import telemetry
from ..interface import Backend, Json
from ..latency import Latency
from ..operations import Operation, OperationContext, begin, finish
from ..telemetry import CANCELLED, ERROR, OK, Ending, Value
from ._base import UniformLayer
from ._observed import system_of

P = ParamSpec("P")
T = TypeVar("T")

_current = telemetry.current
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
            "min": latency.shortest,
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


class _Known:
    """What a success of one operation needs, found in one step: the way in which nearly all calls end."""

    __slots__ = ("add", "labels")

    def __init__(self, add: Callable[[float], None]) -> None:
        self.add = add
        self.labels: dict[str | None, Mapping[str, Value]] = {}  # by the store that answered


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
        clock: seconds; the processor's own by default, for the loop's costs three times as much.
    """

    layer_name: ClassVar[str] = "metrics"

    def __init__(
        self,
        inner: Backend,
        *,
        state: MetricsState | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(inner)
        self.state = state or MetricsState()
        self._clock = clock
        self._system = system_of(inner)
        self._known: dict[str, _Known] = {}

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
        started = self._clock()
        context, token = None, None
        try:
            context, token = begin(op)
            answer = await call(*args, **kwargs)
        except Exception as error:
            self._failed(op, started, context, error)
            raise
        except BaseException:
            self._failed(op, started, context, None)
            raise
        else:
            seconds = self._clock() - started
            known = self._known.get(op.name) or self._learn(op)
            known.add(seconds)
            labels = known.labels.get(context.served_by) or self._learn_store(op, known, context.served_by)
            if context.degraded or context.stale:
                self._flagged(op, context, labels)
            try:
                _current.instruments.duration.record(seconds, labels)
            except Exception:  # noqa: BLE001  telemetry that fails must not change how an operation ends
                _log.debug("metrics failed to record %s", op.name, exc_info=True)
            return answer
        finally:
            finish(token)

    def _failed(
        self, op: Operation, started: float, context: OperationContext | None, error: Exception | None
    ) -> None:
        seconds = self._clock() - started
        stats = self._stats(op)
        store = None if context is None else context.served_by
        if error is None:
            stats.cancelled += 1
            labels = self._label(op, store, CANCELLED)
        else:
            error_type = type(error).__name__
            stats.latency.add(seconds)
            stats.errors += 1
            stats.error_types[error_type] = stats.error_types.get(error_type, 0) + 1
            labels = self._label(op, store, ERROR)
            labels[telemetry.ERROR_TYPE] = error_type
        try:
            _current.instruments.duration.record(seconds, labels)
        except Exception:  # noqa: BLE001  telemetry that fails must not change how an operation ends
            _log.debug("metrics failed to record %s", op.name, exc_info=True)

    def _flagged(self, op: Operation, context: OperationContext, labels: Mapping[str, Value]) -> None:
        stats = self._stats(op)
        stats.degraded += context.degraded
        stats.stale += context.stale
        try:
            if context.degraded:
                _current.instruments.degraded.add(1, labels)
            if context.stale:
                _current.instruments.stale.add(1, labels)
        except Exception:  # noqa: BLE001  telemetry that fails must not change how an operation ends
            _log.debug("metrics failed to record %s", op.name, exc_info=True)

    def _stats(self, op: Operation) -> OperationStats:
        return self.state.operations.setdefault(op.name, OperationStats())

    def _learn(self, op: Operation) -> _Known:
        known = self._known[op.name] = _Known(self._stats(op).latency.add)
        return known

    def _learn_store(self, op: Operation, known: _Known, store: str | None) -> Mapping[str, Value]:
        labels = known.labels[store] = self._label(op, store, OK)
        return labels

    def _label(self, op: Operation, store: str | None, ending: Ending) -> dict[str, Value]:
        labels: dict[str, Value] = {
            telemetry.DB_SYSTEM_NAME: self._system,
            telemetry.DB_OPERATION_NAME: op.name,
            telemetry.ATTR_ENDING: ending,
        }
        if store is not None:
            labels[telemetry.ATTR_SERVED_BY] = store
        return labels


__all__ = ["Metrics", "MetricsState", "OperationStats"]
