"""tracing: one span per operation with the whole story in it, nothing private, and never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from aiecs_resilient import telemetry
from aiecs_resilient.errors import (
    ConflictError,
    OperationScopeError,
    StorageConnectionError,
    StorageTimeoutError,
)
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers.tracing import Tracing
from aiecs_resilient.operations import OperationContext, operation
from aiecs_resilient.privacy import hash_id


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    """The one span that was finished."""
    [span] = spans.get_finished_spans()
    return span


def facts(span: ReadableSpan) -> Mapping[str, object]:
    """A span's attributes."""
    assert span.attributes is not None
    return span.attributes


@pytest.fixture
def use_provider() -> Iterator[Callable[[TracerProvider], None]]:
    """Send spans through a provider of the test's own."""
    undone: list[Callable[[], None]] = []

    def use(provider: TracerProvider) -> None:
        undone.append(telemetry.use(tracer=provider.get_tracer(telemetry.SCOPE)))

    yield use
    for undo in reversed(undone):
        undo()


async def test_an_operation_is_one_client_span_by_the_database_conventions(probe, spans):
    """Who knows OpenTelemetry's conventions reads our spans without a manual."""
    await Tracing(probe).create_session("s-1", "user-1")
    span = only(spans)
    assert (span.name, span.kind) == ("create_session", SpanKind.CLIENT)
    assert facts(span)["db.system.name"] == "memory"
    assert facts(span)["db.operation.name"] == "create_session"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_chain_that_branches_is_named_after_the_library():
    """Where two stores may answer, db.system.name must not claim one of them."""

    class Branching(Backend):
        name = "both"

    Branching.__abstractmethods__ = frozenset()
    assert Tracing(Branching())._known["get_session"]["db.system.name"] == telemetry.SYSTEM_CHAIN


async def test_nothing_private_is_in_a_span(probe, spans):
    """Content, metadata values, ids and op_ids chosen by callers never leave with a trace."""
    chain = Tracing(probe)
    await chain.create_session("alice@example.org", "bob-the-user", {"channel": "secret-channel"})
    async with operation(op_id="order-of-alice"):
        await chain.add_conversation_message(
            "alice@example.org", "user", "my-private-words", {"mood": "hidden"}
        )
    probe.fail_with(ConflictError("alice@example.org has another payload"))
    with pytest.raises(ConflictError):
        await chain.store_checkpoint(
            "alice@example.org", "checkpoint-of-alice", {"state": "my-private-state"}
        )
    everything = "".join(span.to_json() for span in spans.get_finished_spans())
    for private in ("alice", "bob", "secret-channel", "my-private", "hidden", "mood"):
        assert private not in everything
    assert hash_id("alice@example.org") in everything
    assert hash_id("order-of-alice") in everything


async def test_raw_ids_are_shown_on_request(probe, spans):
    """Where ids are harmless, a trace may name them."""
    async with operation(op_id="order-7"):
        await Tracing(probe, raw_ids=True).create_session("s-1", "user-1")
    assert facts(only(spans))["aiecs.key"] == "s-1"
    assert facts(only(spans))["aiecs.op_id"] == "order-7"


async def test_a_minted_op_id_is_shown_for_writes_only(probe, spans):
    """A write can be found again in the stores by its trace; a read has no identity and mints none for the trace."""
    chain = Tracing(probe)
    async with operation() as written:
        await chain.create_session("s-1", "user-1")
    await chain.get_session("s-1")
    write, read = spans.get_finished_spans()
    assert facts(write)["aiecs.op_id"] == written.op_id
    assert "aiecs.op_id" not in facts(read)


async def test_the_span_tells_what_the_chain_did(probe, spans):
    """Who served, how often stores were asked, and whether the answer was degraded, stale or on one store only."""

    async def act(context: OperationContext) -> None:
        context.attempts += 2
        context.degraded = context.stale = True
        context.durability = "one"

    probe.act = act
    await Tracing(probe).get_session("s-1")
    told = facts(only(spans))
    assert told["aiecs.served_by"] == "mem"
    assert told["aiecs.attempts"] == 3
    assert told["aiecs.degraded"] is True
    assert told["aiecs.stale"] is True
    assert told["aiecs.durability"] == "one"


async def test_attempts_are_those_of_this_call(probe, spans):
    """Two reads in one operation() scope share their context, not their attempts."""
    chain = Tracing(probe)
    async with operation():
        await chain.get_session("s-1")
        await chain.get_session("s-1")
    assert [facts(span)["aiecs.attempts"] for span in spans.get_finished_spans()] == [1, 1]


async def test_a_batch_tells_its_size(probe, spans):
    """A slow call of a thousand items is not a slow call of one."""
    await Tracing(probe).batch_get_sessions(["a", "b", "c"])
    assert facts(only(spans))["db.operation.batch.size"] == 3


async def test_an_error_ends_the_span_and_leaves_as_it_came(probe, spans):
    """The span carries type, outcome and a message without password; the caller gets the very same exception."""
    error = StorageConnectionError("cannot reach redis://:pa/ss@127.0.0.1:1/0", outcome="not_applied")
    probe.fail_with(error)
    with pytest.raises(StorageConnectionError) as caught:
        await Tracing(probe).create_session("s-1", "user-1")
    assert caught.value is error
    assert error.__context__ is None
    span = only(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "cannot reach redis://***@127.0.0.1:1/0"
    told = facts(span)
    assert told["error.type"] == "StorageConnectionError"
    assert (told["aiecs.error.outcome"], told["aiecs.error.transient"]) == ("not_applied", True)
    assert told["aiecs.ending"] == "error"


async def test_a_refused_second_write_is_traced_too(probe, spans):
    """What is refused before it is sent still ends its span."""
    chain = Tracing(probe)
    async with operation():
        await chain.create_session("s-1", "user-1")
        with pytest.raises(OperationScopeError):
            await chain.end_session("s-1")
    assert facts(spans.get_finished_spans()[1])["error.type"] == "OperationScopeError"


async def test_a_cancelled_operation_is_no_error(probe, spans):
    """The caller went away: the span says so, has no error status, and the cancellation passes."""
    inside = asyncio.Event()

    async def act(_context: OperationContext) -> None:
        inside.set()
        await asyncio.Event().wait()

    probe.act = act
    task = asyncio.create_task(Tracing(probe).get_session("s-1"))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = only(spans)
    assert span.status.status_code is StatusCode.UNSET
    assert facts(span)["aiecs.ending"] == "cancelled"
    assert "error.type" not in facts(span)


async def test_spans_of_drivers_below_become_children(probe, spans):
    """Context reaches the store's own instrumentation, and is given back afterwards."""

    async def act(_context: OperationContext) -> None:
        telemetry.current.tracer.start_span("HGETALL").end()

    probe.act = act
    await Tracing(probe).get_session("s-1")
    driver, outer = spans.get_finished_spans()
    assert driver.parent is not None
    assert driver.parent.span_id == outer.context.span_id
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_what_layers_report_is_an_event_of_the_span(probe, spans):
    """A retry deep in the chain is seen in the operation's own span."""

    async def act(_context: OperationContext) -> None:
        telemetry.event(
            telemetry.RETRY_STARTED, backend="mem", attempt=2, error=StorageTimeoutError("too slow")
        )

    probe.act = act
    await Tracing(probe).get_session("s-1")
    [event] = only(spans).events
    assert event.name == "retry.started"
    assert dict(event.attributes or {}) == {
        "aiecs.backend": "mem",
        "aiecs.attempt": 2,
        "aiecs.error": "StorageTimeoutError",
        "aiecs.message": "too slow",
    }


async def test_an_attempt_is_a_child_with_an_ending_of_its_own(probe, spans):
    """A failed attempt inside an operation that succeeded is red; the operation is not."""

    async def act(_context: OperationContext) -> None:
        for attempt in (1, 2):
            try:
                with telemetry.span(telemetry.SPAN_ATTEMPT, attempt=attempt, backend="mem"):
                    if attempt == 1:
                        raise StorageTimeoutError("too slow")
            except StorageTimeoutError:
                continue

    probe.act = act
    await Tracing(probe).get_session("s-1")
    first, second, outer = spans.get_finished_spans()
    assert [span.status.status_code for span in (first, second, outer)] == [
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.UNSET,
    ]
    assert first.parent is not None
    assert first.parent.span_id == outer.context.span_id


class Observed(Tracing):
    """Counts how often attributes were computed."""

    computed = 0

    def _facts(self, *args):
        self.computed += 1
        return super()._facts(*args)


async def test_a_span_that_is_not_sampled_costs_no_attributes_and_still_is_the_parent(probe, use_provider):
    """Drivers below an unsampled operation must not begin traces of their own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    use_provider(provider)
    seen: list[trace.SpanContext] = []

    async def act(_context: OperationContext) -> None:
        seen.append(trace.get_current_span().get_span_context())

    probe.act = act
    chain = Observed(probe)
    await chain.get_session("s-1")
    assert chain.computed == 0
    assert seen[0].is_valid
    assert not seen[0].trace_flags.sampled
    assert exporter.get_finished_spans() == ()
    provider.shutdown()


async def test_without_an_sdk_nothing_is_entered_or_computed(probe, use_provider):
    """The price of tracing that nobody asked for is one start_span."""
    telemetry_off = trace.NoOpTracerProvider()
    use_provider(telemetry_off)
    seen: list[trace.Span] = []

    async def act(_context: OperationContext) -> None:
        seen.append(trace.get_current_span())

    probe.act = act
    chain = Observed(probe)
    await chain.get_session("s-1")
    assert chain.computed == 0
    assert seen == [trace.INVALID_SPAN]


class Broken(SpanProcessor):
    """An exporter's front end that fails wherever it can."""

    def __init__(self, at: str) -> None:
        self.at = at

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.at == "start":
            raise RuntimeError("broken on start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.at == "end":
            raise RuntimeError("broken on end")


@pytest.mark.parametrize("at", ["start", "end"])
async def test_telemetry_that_fails_harms_nobody(probe, use_provider, at):
    """An exporter's fault changes neither an answer nor an error."""
    provider = TracerProvider()
    provider.add_span_processor(Broken(at))
    use_provider(provider)
    chain = Tracing(probe)
    assert await chain.get_session("s-1") is None
    error = StorageTimeoutError("too slow")
    probe.fail_with(error)
    with pytest.raises(StorageTimeoutError) as caught:
        await chain.get_session("s-1")
    assert caught.value is error
    provider.shutdown()
