"""The names of everything that is measured, and the one way in which layers report what happened.

Spans, attributes, metrics and events are called only by the constants below, so that dashboards, alerts, tests and code
agree. A layer reports with :func:`event`: that adds an event to the current span if one is recording, counts it, and
tells whoever has subscribed in this process (the log, the demo, tests)::

    telemetry.event(telemetry.RETRY_STARTED, backend="hot", operation="get_session", attempt=2, error=error)

Nothing here raises into its caller or changes an exception; with no SDK set up and no subscriber an event costs about a
microsecond. OpenTelemetry's API is imported, its SDK never: ``aiecs_resilient.observability`` sets that up on request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace

from .clock import wall_us
from .errors import StorageError
from .privacy import describe_error, redact

SCOPE: Final = "aiecs_resilient"
"""Name of the instrumentation, and of the logger."""

# ------------------------------------------------------------------ spans
# The span of an operation is called as the operation is (OpenTelemetry's database conventions: `{db.operation.name}`).

SPAN_ATTEMPT: Final = "attempt"

# ------------------------------------------------------------------ attributes

DB_SYSTEM_NAME: Final = "db.system.name"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_OPERATION_BATCH_SIZE: Final = "db.operation.batch.size"
ERROR_TYPE: Final = "error.type"

ATTR_ENDING: Final = "aiecs.ending"
ATTR_SERVED_BY: Final = "aiecs.served_by"
ATTR_ATTEMPTS: Final = "aiecs.attempts"
ATTR_DEGRADED: Final = "aiecs.degraded"
ATTR_STALE: Final = "aiecs.stale"
ATTR_DURABILITY: Final = "aiecs.durability"
ATTR_OP_ID: Final = "aiecs.op_id"
ATTR_KEY: Final = "aiecs.key"
ATTR_KEY_HASH: Final = "aiecs.key_hash"
ATTR_OUTCOME: Final = "aiecs.error.outcome"
ATTR_TRANSIENT: Final = "aiecs.error.transient"
ATTR_EVENT: Final = "aiecs.event"
ATTR_PREFIX: Final = "aiecs."
"""Before the name of every attribute of an event, where it leaves this process."""

SYSTEM_CHAIN: Final = "aiecs_resilient"
"""``db.system.name`` of a chain that ends in more than one store; ``aiecs.served_by`` then names the one that answered."""

# ------------------------------------------------------------------ endings

Ending = Literal["ok", "error", "cancelled"]
OK: Final = "ok"
ERROR: Final = "error"
CANCELLED: Final = "cancelled"
"""The caller went away: neither a success nor a fault of the store."""

# ------------------------------------------------------------------ events

RETRY_STARTED: Final = "retry.started"
RETRY_REFUSED: Final = "retry.refused"
RETRY_EXHAUSTED: Final = "retry.exhausted"
BREAKER_OPENED: Final = "breaker.opened"
BREAKER_HALF_OPENED: Final = "breaker.half_opened"
BREAKER_CLOSED: Final = "breaker.closed"
TIMEOUT_EXPIRED: Final = "timeout.expired"
DEADLINE_EXPIRED: Final = "deadline.expired"
FAILOVER_COMPLETED: Final = "failover.completed"
FAILOVER_FAILED: Final = "failover.failed"
FAILBACK_STARTED: Final = "failback.started"
FAILBACK_COMPLETED: Final = "failback.completed"
FAILBACK_FAILED: Final = "failback.failed"
RECONCILE_STARTED: Final = "reconcile.started"
RECONCILE_PROGRESSED: Final = "reconcile.progressed"
RECONCILE_COMPLETED: Final = "reconcile.completed"
RECONCILE_FAILED: Final = "reconcile.failed"
ANSWER_STALE: Final = "answer.stale"
ANSWER_DEGRADED: Final = "answer.degraded"
FOLLOWER_MISSED: Final = "follower.missed"
BATCH_SPLIT: Final = "batch.split"
QUEUE_REFUSED: Final = "queue.refused"
STORE_LOST: Final = "store.lost"
STORE_RETURNED: Final = "store.returned"
STORE_RESTARTED: Final = "store.restarted"
BULKHEAD_REJECTED: Final = "bulkhead.rejected"
RATE_LIMITED: Final = "rate.limited"
LOAD_SHED: Final = "load.shed"
HEDGE_STARTED: Final = "hedge.started"
HEDGE_WON: Final = "hedge.won"
HEDGE_REFUSED: Final = "hedge.refused"
LIMIT_EXCEEDED: Final = "limit.exceeded"
WRITE_REFUSED: Final = "write.refused"
CHAOS_INJECTED: Final = "chaos.injected"
PLAINTEXT_READ: Final = "plaintext.read"
CIPHERTEXT_REFUSED: Final = "ciphertext.refused"

Severity = Literal["debug", "info", "warning"]

EVENTS: Final[Mapping[str, Severity]] = MappingProxyType(
    {
        RETRY_STARTED: "warning",
        RETRY_REFUSED: "warning",
        RETRY_EXHAUSTED: "warning",
        BREAKER_OPENED: "warning",
        BREAKER_HALF_OPENED: "info",
        BREAKER_CLOSED: "info",
        TIMEOUT_EXPIRED: "warning",
        DEADLINE_EXPIRED: "warning",
        FAILOVER_COMPLETED: "warning",
        FAILOVER_FAILED: "warning",
        FAILBACK_STARTED: "info",
        FAILBACK_COMPLETED: "info",
        FAILBACK_FAILED: "warning",
        RECONCILE_STARTED: "info",
        RECONCILE_PROGRESSED: "debug",
        RECONCILE_COMPLETED: "info",
        RECONCILE_FAILED: "warning",
        ANSWER_STALE: "warning",
        ANSWER_DEGRADED: "warning",
        FOLLOWER_MISSED: "warning",
        BATCH_SPLIT: "warning",
        QUEUE_REFUSED: "warning",
        STORE_LOST: "warning",
        STORE_RETURNED: "info",
        STORE_RESTARTED: "warning",
        BULKHEAD_REJECTED: "warning",
        RATE_LIMITED: "warning",
        LOAD_SHED: "warning",
        HEDGE_STARTED: "debug",
        HEDGE_WON: "info",
        HEDGE_REFUSED: "debug",
        LIMIT_EXCEEDED: "info",
        WRITE_REFUSED: "info",
        CHAOS_INJECTED: "warning",
        PLAINTEXT_READ: "info",
        CIPHERTEXT_REFUSED: "warning",
    }
)
"""Every event and how loud it is: a warning while it may still heal. Only the end of an operation is ever an error."""

# Log lines about whole operations; unlike the events above they are not reported by the layers inside.
OPERATION_COMPLETED: Final = "operation.completed"
OPERATION_CANCELLED: Final = "operation.cancelled"
OPERATION_REFUSED: Final = "operation.refused"
OPERATION_FAILED: Final = "operation.failed"
OPERATION_SLOW: Final = "operation.slow"

BREAKER_EVENTS: Final[Mapping[str, str]] = MappingProxyType(
    {"open": BREAKER_OPENED, "half-open": BREAKER_HALF_OPENED, "closed": BREAKER_CLOSED}
)
"""The event of entering a breaker's state, by the state's name in aiobreaker."""

# ------------------------------------------------------------------ metrics


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table of metrics."""

    name: str
    kind: Literal["histogram", "counter", "gauge"]
    unit: str
    description: str


OPERATION_DURATION: Final = Metric(
    "db.client.operation.duration", "histogram", "s", "Duration of storage operations, by how they ended."
)
EVENT_COUNT: Final = Metric("aiecs.events", "counter", "{event}", "What layers reported, by event.")
ANSWERS_DEGRADED: Final = Metric(
    "aiecs.answers.degraded",
    "counter",
    "{answer}",
    "Answers given while one of two stores was unavailable or behind.",
)
ANSWERS_STALE: Final = Metric(
    "aiecs.answers.stale", "counter", "{answer}", "Answers that may be older than an acknowledged write."
)
RECORDS_REPLAYED: Final = Metric(
    "aiecs.reconcile.replayed", "counter", "{record}", "Records replayed on the store that lacked them."
)
BREAKER_STATE: Final = Metric(
    "aiecs.breaker.state", "gauge", "", "0 closed, 1 half open, 2 open; by backend."
)
ROUTE_EPOCH: Final = Metric("aiecs.route.epoch", "gauge", "", "How often the leading store has changed.")
FAILED_OVER: Final = Metric("aiecs.route.failed_over", "gauge", "", "1 while the fallback leads, else 0.")

METRICS: Final[tuple[Metric, ...]] = (
    OPERATION_DURATION,
    EVENT_COUNT,
    ANSWERS_DEGRADED,
    ANSWERS_STALE,
    RECORDS_REPLAYED,
    BREAKER_STATE,
    ROUTE_EPOCH,
    FAILED_OVER,
)

DURATION_BOUNDARIES: Final = (
    *(0.0001, 0.00025, 0.0005),  # stores on the same host answer below the conventions' first boundary
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds."""

COUNTED_BY: Final = ("backend", "store", "operation", "leader", "cause", "reason")
"""Attributes of an event that its counter keeps: few values each. The others are told to spans and listeners only."""

_BREAKER_LEVELS: Final = {BREAKER_CLOSED: 0, BREAKER_HALF_OPENED: 1, BREAKER_OPENED: 2}


class Instruments:
    """The metrics as instruments of one meter."""

    def __init__(self, meter: metrics.Meter) -> None:
        def counter(metric: Metric) -> metrics.Counter:
            return meter.create_counter(metric.name, metric.unit, metric.description)

        self.duration = meter.create_histogram(
            OPERATION_DURATION.name,
            OPERATION_DURATION.unit,
            OPERATION_DURATION.description,
            explicit_bucket_boundaries_advisory=DURATION_BOUNDARIES,
        )
        self.events = counter(EVENT_COUNT)
        self.degraded = counter(ANSWERS_DEGRADED)
        self.stale = counter(ANSWERS_STALE)
        self.replayed = counter(RECORDS_REPLAYED)
        self.breaker = meter.create_gauge(BREAKER_STATE.name, BREAKER_STATE.unit, BREAKER_STATE.description)
        self.epoch = meter.create_gauge(ROUTE_EPOCH.name, ROUTE_EPOCH.unit, ROUTE_EPOCH.description)
        self.failed_over = meter.create_gauge(FAILED_OVER.name, FAILED_OVER.unit, FAILED_OVER.description)


class Current:
    """Where spans and measurements go now. Layers keep this object, not its parts, so that a change reaches them."""

    __slots__ = ("instruments", "tracer")

    def __init__(self, tracer: trace.Tracer, instruments: Instruments) -> None:
        self.tracer = tracer
        self.instruments = instruments


current: Final = Current(trace.get_tracer(SCOPE), Instruments(metrics.get_meter(SCOPE)))
"""At first OpenTelemetry's global providers, whatever the application makes of them, now or later."""


_global: Final = (current.tracer, current.instruments)
_uses: list[tuple[trace.Tracer | None, Instruments | None]] = []


def use(*, tracer: trace.Tracer | None = None, meter: metrics.Meter | None = None) -> Callable[[], None]:
    """Send spans or measurements elsewhere than to the global providers; returns how to undo that, in any order."""
    mine = (tracer, None if meter is None else Instruments(meter))
    _uses.append(mine)
    _choose()

    def undo() -> None:
        for place, held in enumerate(_uses):
            if held is mine:
                del _uses[place]
                break
        _choose()

    return undo


def _choose() -> None:
    """The latest use that is not undone counts."""
    current.tracer = next((tracer for tracer, _ in reversed(_uses) if tracer is not None), _global[0])
    current.instruments = next((found for _, found in reversed(_uses) if found is not None), _global[1])


# ------------------------------------------------------------------ reporting

Value = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened inside the chain.

    Attributes:
        name: one of :data:`EVENTS`.
        at: UTC microseconds.
        attributes: plain values, credentials removed; an exception has become ``error`` (its type) and ``message``.
    """

    name: str
    at: int
    attributes: Mapping[str, Value]


Listener = Callable[[Event], None]

_log = logging.getLogger(SCOPE)
_listeners: tuple[Listener, ...] = ()


def subscribe(listener: Listener) -> Callable[[], None]:
    """Have every event of this process told to ``listener``, at once and in the reporting task; returns how to stop it.

    A listener must be quick. If it raises, that is logged at debug level and harms nobody.
    """
    global _listeners
    _listeners = (*_listeners, listener)

    def unsubscribe() -> None:
        global _listeners
        _listeners = tuple(held for held in _listeners if held is not listener)

    return unsubscribe


def event(name: str, /, **attributes: object) -> None:
    """Report what happened. Never raises.

    Args:
        name: a constant of this module.
        attributes: plain values, or an exception; None is left out. Never content, metadata or raw ids.
    """
    try:
        _report(name, attributes)
    except Exception:  # noqa: BLE001  telemetry that fails must not harm the operation it tells about
        _log.debug("telemetry failed to report %s", name, exc_info=True)


def _report(name: str, attributes: Mapping[str, object]) -> None:
    instruments = current.instruments
    counted: dict[str, Value] = {ATTR_EVENT: name}
    for key in COUNTED_BY:
        value = attributes.get(key)
        if isinstance(value, str):
            counted[ATTR_PREFIX + key] = value
    instruments.events.add(1, counted)
    _measure(instruments, name, attributes)
    span = trace.get_current_span()
    recording = span.is_recording()
    if not recording and not _listeners:
        return
    shown = _plain(attributes)
    if recording:
        span.add_event(name, {ATTR_PREFIX + key: value for key, value in shown.items()})
    if _listeners:
        told = Event(name, wall_us(), MappingProxyType(shown))
        for listener in _listeners:
            try:
                listener(told)
            except Exception:  # noqa: BLE001  one listener's fault is no reason to skip the next
                _log.debug("a listener failed on %s", name, exc_info=True)


def _measure(instruments: Instruments, name: str, attributes: Mapping[str, object]) -> None:
    """Events from which a metric follows."""
    if name in _BREAKER_LEVELS:
        backend = attributes.get("backend", attributes.get("store"))
        labels = {ATTR_PREFIX + "backend": backend} if isinstance(backend, str) else {}
        instruments.breaker.set(_BREAKER_LEVELS[name], labels)
    elif name == RECONCILE_PROGRESSED:
        replayed = attributes.get("replayed")
        if isinstance(replayed, int) and replayed > 0:
            instruments.replayed.add(replayed)
    elif name in {FAILOVER_COMPLETED, FAILBACK_COMPLETED}:
        instruments.failed_over.set(int(name == FAILOVER_COMPLETED))
        epoch = attributes.get("epoch")
        if isinstance(epoch, int):
            instruments.epoch.set(epoch)


def _plain(attributes: Mapping[str, object]) -> dict[str, Value]:
    """Values that spans and logs can carry, without credentials."""
    shown: dict[str, Value] = {}
    for key, value in attributes.items():
        if isinstance(value, str):
            shown[key] = redact(value)
        elif isinstance(value, bool | int | float):
            shown[key] = value
        elif isinstance(value, BaseException):
            shown[key] = type(value).__name__
            message = describe_error(value)
            if message:
                shown["message"] = message
        elif value is not None:
            shown[key] = redact(str(value))
    return shown


# ------------------------------------------------------------------ spans below the operation's own

_NO_SPAN: Final[AbstractContextManager[None]] = nullcontext()


def span(name: str, /, **attributes: object) -> AbstractContextManager[None]:
    """A child span around a block (an attempt, a leg), if the current span is recording; else as good as nothing."""
    if not trace.get_current_span().is_recording():
        return _NO_SPAN
    return _child(name, attributes)


@contextmanager
def _child(name: str, attributes: Mapping[str, object]) -> Generator[None, None, None]:
    shown = {ATTR_PREFIX + key: value for key, value in _plain(attributes).items()}
    child = _start(name, shown)
    token = otel_context.attach(trace.set_span_in_context(child))
    try:
        yield
    except Exception as error:
        end_span(child, ERROR, error)
        raise
    except BaseException:
        end_span(child, CANCELLED)
        raise
    else:
        end_span(child, OK)
    finally:
        otel_context.detach(token)


def _start(name: str, attributes: Mapping[str, Value]) -> trace.Span:
    try:
        return current.tracer.start_span(name, attributes=attributes)
    except Exception:  # noqa: BLE001  telemetry that fails must not keep an attempt from being made
        _log.debug("telemetry failed to start a span", exc_info=True)
        return trace.INVALID_SPAN


def end_span(span: trace.Span, ending: Ending, error: BaseException | None = None) -> None:
    """Close a span in one of the three ways. Never raises, whatever an exporter does."""
    try:
        if ending != OK:
            span.set_attribute(ATTR_ENDING, ending)
        if error is not None:
            span.set_attribute(ERROR_TYPE, type(error).__name__)
            if isinstance(error, StorageError):
                span.set_attribute(ATTR_OUTCOME, error.outcome)
                span.set_attribute(ATTR_TRANSIENT, error.transient)
            span.set_status(trace.StatusCode.ERROR, describe_error(error) or type(error).__name__)
        span.end()
    except Exception:  # noqa: BLE001  telemetry that fails must not change how an operation ends
        _log.debug("telemetry failed to end a span", exc_info=True)


def trace_ids() -> dict[str, str]:
    """``trace_id`` and ``span_id`` of the current span in hexadecimal, for a log line; empty without one."""
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}
