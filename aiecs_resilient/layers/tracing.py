"""tracing: one OpenTelemetry span per operation; what happens on the way are its events and children."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sized
from typing import ClassVar, ParamSpec, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace

from .. import telemetry
from ..interface import Backend
from ..operations import (
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    BATCH_GET_SESSIONS,
    OPERATIONS,
    Effect,
    Operation,
    OperationContext,
    begin,
    finish,
)
from ..privacy import show_id, show_op_id
from ..telemetry import CANCELLED, ERROR, OK, Ending, Value, end_span
from ._base import UniformLayer
from ._observed import key_of, system_of

P = ParamSpec("P")
T = TypeVar("T")

BATCHES = frozenset({BATCH_ADD_CONVERSATION_MESSAGES, BATCH_CREATE_SESSIONS, BATCH_GET_SESSIONS})

_CLIENT = trace.SpanKind.CLIENT
_current = telemetry.current
_log = logging.getLogger(telemetry.SCOPE)


class Tracing(UniformLayer):
    """A span around each operation, called as the operation is, by OpenTelemetry's conventions for database clients.

    Place: outermost, so that the span covers retries, both legs and the time spent waiting for them::

        tracing → metrics → … → dual_write → retry → backend      right: one span, with the whole story in it
        retry → tracing → backend                                 wrong: one span per attempt, none for the operation

    Attributes: ``db.system.name``, ``db.operation.name``, ``db.operation.batch.size``, ``error.type`` and, as far as the
    chain says so, ``aiecs.served_by``, ``.attempts``, ``.degraded``, ``.stale``, ``.durability``, ``.op_id`` (writes),
    ``.key_hash``. Never content or metadata. Retries, breaker transitions, failover and stale answers are events of the
    span (:func:`aiecs_resilient.telemetry.event`); spans of drivers below become its children.

    A span ends in one of three ways: ok; error, with status and ``error.type``; cancelled (``aiecs.ending``), which is no
    error: the caller went away. With no SDK set up a call costs one ``start_span`` more, and no attribute is computed.

    Args:
        inner: the chain to be traced.
        raw_ids: show session and thread ids, and op_ids that callers chose, instead of their hashes.
    """

    layer_name: ClassVar[str] = "tracing"

    def __init__(self, inner: Backend, *, raw_ids: bool = False) -> None:
        super().__init__(inner)
        self._raw_ids = raw_ids
        system = system_of(inner)
        self._known: dict[str, Mapping[str, Value]] = {
            name: {telemetry.DB_SYSTEM_NAME: system, telemetry.DB_OPERATION_NAME: name} for name in OPERATIONS
        }

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            span = _current.tracer.start_span(op.name, None, _CLIENT, self._known[op.name])
        except Exception:  # noqa: BLE001  a sampler's fault must not keep an operation from running
            _log.debug("tracing failed to start a span", exc_info=True)
            span = trace.INVALID_SPAN
        if span is trace.INVALID_SPAN:  # no SDK is set up
            return await call(*args, **kwargs)
        # Also where the sampler said no: without this span the drivers' own would begin traces of their own.
        entered = otel_context.attach(trace.set_span_in_context(span))
        try:
            if not span.is_recording():
                return await call(*args, **kwargs)
            return await self._recorded(span, op, call, *args, **kwargs)
        finally:
            otel_context.detach(entered)

    async def _recorded(
        self,
        span: trace.Span,
        op: Operation,
        call: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        context, token, asked = None, None, 0
        try:
            context, token = begin(op)
            asked = context.attempts  # by earlier calls in the same operation() scope
            answer = await call(*args, **kwargs)
        except Exception as error:
            self._end(span, op, context, ERROR, error, asked, args, kwargs)
            raise
        except BaseException:
            self._end(span, op, context, CANCELLED, None, asked, args, kwargs)
            raise
        else:
            self._end(span, op, context, OK, None, asked, args, kwargs)
            return answer
        finally:
            finish(token)

    def _end(
        self,
        span: trace.Span,
        op: Operation,
        context: OperationContext | None,
        ending: Ending,
        error: Exception | None,
        asked: int,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        try:
            span.set_attributes(self._facts(op, context, asked, args, kwargs))
        except Exception:  # noqa: BLE001  telemetry that fails must not change how an operation ends
            _log.debug("tracing failed to describe %s", op.name, exc_info=True)
        end_span(span, ending, error)

    def _facts(
        self,
        op: Operation,
        context: OperationContext | None,
        asked: int,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> dict[str, Value]:
        facts: dict[str, Value] = {}
        key = key_of(op, args, kwargs)
        if key is not None:
            name = telemetry.ATTR_KEY if self._raw_ids else telemetry.ATTR_KEY_HASH
            facts[name] = show_id(key, raw=self._raw_ids)
        if op in BATCHES and args and isinstance(args[0], Sized):
            facts[telemetry.DB_OPERATION_BATCH_SIZE] = len(args[0])
        if context is None:
            return facts
        if op.effect is Effect.WRITE:
            facts[telemetry.ATTR_OP_ID] = show_op_id(context.op_id, raw=self._raw_ids)
        if context.durability is not None:
            facts[telemetry.ATTR_DURABILITY] = context.durability
        if context.served_by is not None:
            facts[telemetry.ATTR_SERVED_BY] = context.served_by
        if context.attempts > asked:
            facts[telemetry.ATTR_ATTEMPTS] = context.attempts - asked
        if context.degraded:
            facts[telemetry.ATTR_DEGRADED] = True
        if context.stale:
            facts[telemetry.ATTR_STALE] = True
        return facts


__all__ = ["Tracing"]
