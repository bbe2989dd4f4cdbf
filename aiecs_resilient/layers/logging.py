"""logging: structured lines about operations and events, quiet while all is well and bounded when nothing is."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

from .. import telemetry
from ..errors import (
    ConfigurationError,
    ConflictError,
    InvalidValueError,
    OperationScopeError,
    SessionNotFoundError,
    UnsupportedOperationError,
)
from ..interface import Backend
from ..operations import Effect, Operation, OperationContext, begin, finish
from ..privacy import describe_error, show_id, show_op_id
from ..telemetry import Event, trace_ids
from ..throttle import Throttle
from ..units import Count, Seconds
from ._base import UniformLayer
from ._observed import key_of
from ._options import checked

P = ParamSpec("P")
T = TypeVar("T")

Level = Literal["debug", "info", "warning", "error"]
_RANK: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

CALLERS_OWN = (
    ConflictError,
    InvalidValueError,
    OperationScopeError,
    SessionNotFoundError,
    UnsupportedOperationError,
)
"""Errors that tell a caller about its call: nobody has to be woken for them."""

TOLD_BY_THE_OPERATION = frozenset({telemetry.ANSWER_STALE, telemetry.ANSWER_DEGRADED})
"""Events that the line of the operation itself tells, with its duration and who served it."""

_log = logging.getLogger(telemetry.SCOPE)

# Events are the process's, not one chain's. Of several open logging layers the newest writes them, so that two storages,
# or the old and the new chain during a reload, do not write each one twice.
_writers: list[Logging] = []


class Logging(UniformLayer):
    """Writes what operations and layers do as structlog events, with ``trace_id`` and ``span_id`` where there is a span.

    Place: below tracing (so that lines carry the span's ids), above all that may still heal a failure::

        tracing → metrics → logging → dual_write → retry        right: an error line is final, somebody got that error
        retry → logging → backend                               wrong: errors are written that a retry then heals

    - debug: each operation. Off by default, and then costs less than a microsecond.
    - info: breaker closed, fail-back; operations refused because of what the caller asked.
    - warning, while it may still heal: retries, breaker opened, failover, degraded and stale answers, slow operations.
    - error: the final failure of an operation, as its caller got it.

    A cancelled operation is a debug line: its caller went away. Lines carry no content, no metadata and no credentials;
    ids are hashed unless ``raw_ids``. Above debug, ``per_second`` lines of a kind are written at most; the next one to pass says how
    many were dropped (``dropped=…``).

    Writes through structlog if the application (or ``observability:``) has configured it, else to the standard library's
    logger ``aiecs_resilient``.

    Args:
        inner: the chain to be logged.
        level: what is less important is not written.
        slow: seconds from which an operation is worth a warning.
        per_second: lines per second and kind.
        raw_ids: show session and thread ids, and op_ids that callers chose, instead of their hashes.
    """

    layer_name: ClassVar[str] = "logging"

    def __init__(
        self,
        inner: Backend,
        *,
        level: Level = "info",
        slow: Seconds = 1.0,
        per_second: Count = 10,
        raw_ids: bool = False,
    ) -> None:
        super().__init__(inner)
        if level not in _RANK:
            raise ConfigurationError(f"logging: level must be one of {', '.join(_RANK)}, not {level!r}")
        self._level = _RANK[level]
        self._debug = level == "debug"
        self._slow = checked(self.layer_name, "slow", slow, Seconds)
        self._raw_ids = raw_ids
        self._throttle = Throttle(checked(self.layer_name, "per_second", per_second, Count))
        self._logger: Any = _structlog()  # Any: structlog's loggers are whatever the application configured
        self._unsubscribe: Callable[[], None] | None = None

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        self._logger = _structlog()  # it may have been configured since
        if self._unsubscribe is None:
            _writers.append(self)
            self._unsubscribe = telemetry.subscribe(self._listen)
        try:
            return await self.inner.initialize()
        except BaseException:
            self._stop_listening()
            raise

    async def close(self) -> None:
        try:
            await self.inner.close()
        finally:
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
            _writers.remove(self)

    # ------------------------------------------------------------------ operations

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        started = perf_counter()
        context, token = None, None
        try:
            context, token = begin(op)
            answer = await call(*args, **kwargs)
        except Exception as error:
            event, level = (
                (telemetry.OPERATION_REFUSED, "info")
                if isinstance(error, CALLERS_OWN)
                else (telemetry.OPERATION_FAILED, "error")
            )
            self._write(level, event, op, context, started, args, kwargs, error)
            raise
        except BaseException:
            if self._debug:
                self._write("debug", telemetry.OPERATION_CANCELLED, op, context, started, args, kwargs)
            raise
        else:
            slow = perf_counter() - started >= self._slow
            if slow or self._debug or context.degraded or context.stale:
                self._succeeded(op, context, slow, started, args, kwargs)
            return answer
        finally:
            finish(token)

    def _succeeded(
        self,
        op: Operation,
        context: OperationContext,
        slow: bool,
        started: float,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        if context.stale:
            self._write("warning", telemetry.ANSWER_STALE, op, context, started, args, kwargs)
        elif context.degraded:
            self._write("warning", telemetry.ANSWER_DEGRADED, op, context, started, args, kwargs)
        if slow:
            self._write("warning", telemetry.OPERATION_SLOW, op, context, started, args, kwargs)
        if self._debug:
            self._write("debug", telemetry.OPERATION_COMPLETED, op, context, started, args, kwargs)

    def _write(
        self,
        level: str,
        event: str,
        op: Operation,
        context: OperationContext | None,
        started: float,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        error: Exception | None = None,
    ) -> None:
        if _RANK[level] < self._level:
            return
        try:
            now = perf_counter()
            fields: dict[str, object] = {"operation": op.name, "ms": round((now - started) * 1_000, 3)}
            key = key_of(op, args, kwargs)
            if key is not None:
                fields["key"] = show_id(key, raw=self._raw_ids)
            if context is not None:
                self._account(fields, op, context)
            if error is not None:
                fields["error"] = type(error).__name__
                fields["message"] = describe_error(error) or None
            self._emit(level, event, (op.name, str(fields.get("error", ""))), now, fields)
        except Exception:  # noqa: BLE001  a log that fails must not change how an operation ends
            _log.debug("failed to log %s", event, exc_info=True)

    def _account(self, fields: dict[str, object], op: Operation, context: OperationContext) -> None:
        fields["served_by"] = context.served_by
        fields["attempts"] = context.attempts or None
        fields["durability"] = context.durability
        if op.effect is Effect.WRITE:
            fields["op_id"] = show_op_id(context.op_id, raw=self._raw_ids)

    # ------------------------------------------------------------------ events of other layers

    def _listen(self, event: Event) -> None:
        if not _writers or _writers[-1] is not self or event.name in TOLD_BY_THE_OPERATION:
            return
        level = telemetry.EVENTS.get(event.name, "info")
        if _RANK[level] < self._level:
            return
        told = event.attributes
        kind = (str(told.get("backend", told.get("store", ""))), str(told.get("operation", "")))
        self._emit(level, event.name, kind, perf_counter(), dict(told))

    def _emit(
        self, level: str, event: str, kind: tuple[str, ...], now: float, fields: dict[str, object]
    ) -> None:
        dropped = self._throttle.admit((event, *kind), now) if level != "debug" else 0
        if dropped is None:
            return
        shown = {name: value for name, value in fields.items() if value is not None}
        if dropped:
            shown["dropped"] = dropped
        shown.update(trace_ids())
        logger = self._logger
        if level == "error":
            logger.error(event, **shown)
        elif level == "warning":
            logger.warning(event, **shown)
        elif level == "info":
            logger.info(event, **shown)
        else:
            logger.debug(event, **shown)


def _structlog() -> Any:
    """A bound logger: the application's way of logging if it has configured structlog, else the standard library's."""
    import structlog

    if structlog.is_configured():
        return structlog.get_logger(telemetry.SCOPE).bind()
    return structlog.wrap_logger(
        _log,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    ).bind()


__all__ = ["Logging"]
