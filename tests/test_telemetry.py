"""Telemetry: one table of names, events that reach span, counter and listeners, and never a word too much."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv.attributes import db_attributes, error_attributes

from aiecs_resilient import telemetry
from aiecs_resilient.errors import (
    InvalidValueError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from aiecs_resilient.privacy import describe_error, hash_id, redact, show_op_id
from aiecs_resilient.telemetry import Event


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    """Every event reported during the test."""
    events: list[Event] = []
    unsubscribe = telemetry.subscribe(events.append)
    yield events
    unsubscribe()


@pytest.fixture
def values() -> Iterator[InMemoryMetricReader]:
    """What the instruments have been told."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    undo = telemetry.use(meter=provider.get_meter(telemetry.SCOPE))
    yield reader
    undo()
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> dict[tuple[str, tuple[tuple[str, object], ...]], float]:
    """(metric, labels) → value."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, tuple(sorted((point.attributes or {}).items()))): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


# ------------------------------------------------------------------ names


def test_names_of_the_conventions_are_those_of_the_conventions():
    """What OpenTelemetry has a name for is not called otherwise."""
    assert telemetry.DB_SYSTEM_NAME == db_attributes.DB_SYSTEM_NAME
    assert telemetry.DB_OPERATION_NAME == db_attributes.DB_OPERATION_NAME
    assert telemetry.DB_OPERATION_BATCH_SIZE == db_attributes.DB_OPERATION_BATCH_SIZE
    assert telemetry.ERROR_TYPE == error_attributes.ERROR_TYPE
    assert telemetry.OPERATION_DURATION.name == "db.client.operation.duration"
    assert telemetry.OPERATION_DURATION.unit == "s"


def test_every_event_is_a_thing_and_what_happened_to_it():
    """Events read `thing.happened`, each constant is in the table, and none is an error: only an operation's end is."""
    constants = {
        value
        for name, value in vars(telemetry).items()
        if isinstance(value, str)
        and name.isupper()
        and re.fullmatch(r"[a-z]+\.[a-z_]+", value)
        and name.split("_")[0] not in {"ATTR", "DB", "ERROR", "OPERATION"}
    }
    assert constants == set(telemetry.EVENTS)
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in telemetry.EVENTS)
    assert set(telemetry.EVENTS.values()) <= {"debug", "info", "warning"}
    assert set(telemetry.BREAKER_EVENTS.values()) <= set(telemetry.EVENTS)


def test_every_metric_is_in_the_table_once():
    """A metric that is not in the table could not be on a dashboard."""
    declared = [value for value in vars(telemetry).values() if isinstance(value, telemetry.Metric)]
    assert sorted(metric.name for metric in declared) == sorted(metric.name for metric in telemetry.METRICS)
    assert len({metric.name for metric in declared}) == len(declared)


def test_importing_the_names_imports_no_sdk():
    """Names and events cost the API, never the SDK or structlog; the package itself costs neither."""
    code = (
        "import sys, aiecs_resilient; assert 'opentelemetry' not in sys.modules;"
        "import aiecs_resilient.telemetry; assert 'opentelemetry.sdk' not in sys.modules;"
        "assert 'structlog' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ------------------------------------------------------------------ events


def test_a_listener_hears_events_until_it_leaves():
    """subscribe gives back how to stop it, and that works twice and out of order."""
    first: list[Event] = []
    second: list[Event] = []
    leave_first, leave_second = telemetry.subscribe(first.append), telemetry.subscribe(second.append)
    telemetry.event(telemetry.FAILOVER_COMPLETED, leader="cold", epoch=2)
    leave_first()
    leave_first()
    telemetry.event(telemetry.FAILBACK_COMPLETED, leader="hot", epoch=3)
    leave_second()
    telemetry.event(telemetry.FAILBACK_STARTED)
    assert [event.name for event in first] == ["failover.completed"]
    assert [event.name for event in second] == ["failover.completed", "failback.completed"]
    assert dict(second[0].attributes) == {"leader": "cold", "epoch": 2}
    assert second[0].at > 1_700_000_000_000_000


def test_an_exception_becomes_type_and_message(heard):
    """An event says what failed in words that leave no password behind."""
    telemetry.event(
        telemetry.RETRY_STARTED, error=StorageConnectionError("no redis://u:pw@h:1"), nothing=None, delay=0.5
    )
    assert dict(heard[0].attributes) == {
        "error": "StorageConnectionError",
        "message": "no redis://***@h:1",
        "delay": 0.5,
    }


def test_text_is_told_without_credentials(heard):
    """Also where a layer hands on a text instead of an exception."""
    telemetry.event(telemetry.RECONCILE_FAILED, error="no answer from postgresql://app:hunter2@db/x")
    assert dict(heard[0].attributes) == {"error": "no answer from postgresql://***@db/x"}


def test_a_listener_that_fails_harms_nobody(heard):
    """Neither the reporter nor the other listeners notice."""

    def broken(_event: Event) -> None:
        raise RuntimeError("broken listener")

    leave = telemetry.subscribe(broken)
    late: list[Event] = []
    leave_late = telemetry.subscribe(late.append)
    telemetry.event(telemetry.STORE_LOST, backend="hot")
    leave()
    leave_late()
    assert len(heard) == len(late) == 1


def test_reporting_never_raises_and_never_changes_an_exception():
    """An attribute that cannot even be shown is the telemetry's own trouble."""

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    leave = telemetry.subscribe(lambda _event: None)
    error = StorageTimeoutError("too slow")

    def fail() -> None:
        try:
            raise error
        except StorageTimeoutError:
            telemetry.event(telemetry.RETRY_STARTED, what=Unprintable())
            raise

    with pytest.raises(StorageTimeoutError) as caught:
        fail()
    leave()
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None


def test_events_are_counted_by_few_labels(values):
    """An event counts by backend and operation; what varies freely (delays, messages) makes no time series."""
    for attempt in range(5):
        telemetry.event(
            telemetry.RETRY_STARTED,
            backend="hot",
            operation="get_session",
            attempt=attempt,
            delay=attempt / 7,
            error=f"no answer to {attempt}",
        )
    assert read(values) == {
        (
            "aiecs.events",
            (("aiecs.backend", "hot"), ("aiecs.event", "retry.started"), ("aiecs.operation", "get_session")),
        ): 5
    }


def test_gauges_follow_from_events(values):
    """Breaker state, who leads and what was replayed can be drawn without asking the chain."""
    telemetry.event(telemetry.BREAKER_OPENED, backend="hot")
    telemetry.event(telemetry.BREAKER_CLOSED, backend="cold")
    telemetry.event(telemetry.FAILOVER_COMPLETED, leader="cold", epoch=4)
    telemetry.event(telemetry.RECONCILE_PROGRESSED, store="hot", replayed=30)
    telemetry.event(telemetry.RECONCILE_PROGRESSED, store="hot", replayed=12)
    found = read(values)
    assert found["aiecs.breaker.state", (("aiecs.backend", "hot"),)] == 2
    assert found["aiecs.breaker.state", (("aiecs.backend", "cold"),)] == 0
    assert found["aiecs.route.failed_over", ()] == 1
    assert found["aiecs.route.epoch", ()] == 4
    assert found["aiecs.reconcile.replayed", ()] == 42
    telemetry.event(telemetry.FAILBACK_COMPLETED, leader="hot", epoch=5)
    found = read(values)
    assert found["aiecs.route.failed_over", ()] == 0
    assert found["aiecs.route.epoch", ()] == 5


def test_a_child_span_costs_nothing_where_none_is_recording():
    """Without a recording parent there is no child, and the block is left as it would be anyway."""
    with telemetry.span(telemetry.SPAN_ATTEMPT, attempt=1):
        assert trace.get_current_span() is trace.INVALID_SPAN
    with pytest.raises(StorageTimeoutError), telemetry.span(telemetry.SPAN_ATTEMPT):
        raise StorageTimeoutError("too slow")


def test_trace_ids_are_those_of_the_current_span():
    """A log line finds its trace; without a span it has no ids rather than zeros."""
    assert telemetry.trace_ids() == {}
    provider = TracerProvider()
    with provider.get_tracer("t").start_as_current_span("outer") as span:
        found = telemetry.trace_ids()
    assert found["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    provider.shutdown()


# ------------------------------------------------------------------ privacy


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("postgresql://app:p%40ss@db/x?sslmode=require", "postgresql://***@db/x?sslmode=require"),
        ("rediss://user:a/b@c@host", "rediss://***@host"),
        ("host=db password=hunter2 user=app", "host=db password=*** user=app"),
        ("dsn 'password'='a b', next", "dsn 'password'=***, next"),
        ("url?user=a&password=b&x=1", "url?user=a&password=***&x=1"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("aws_secret_access_key=abc", "aws_secret_access_key=***"),
        ("no answer within 2 s", "no answer within 2 s"),
        ("127.0.0.1:6379 refused", "127.0.0.1:6379 refused"),
    ],
)
def test_credentials_are_removed_from_text(text, shown):
    """Whatever form a secret comes in, it does not go out; the rest stays readable."""
    assert redact(text) == shown


def test_messages_that_may_quote_what_was_stored_are_not_shown():
    """An error about a value shows its type only; foreign exceptions may say anything, so they do too."""
    assert describe_error(InvalidValueError("metadata['alice'] is a set")) == ""
    assert describe_error(KeyError("alice")) == ""
    assert describe_error(StorageError("store is full")) == "store is full"


def test_ids_are_hashed_alike_everywhere():
    """The hash is stable, so that two machines' telemetry can be joined, and takes any text."""
    assert hash_id("s-1") == hash_id("s-1") != hash_id("s-2")
    assert re.fullmatch(r"[0-9a-f]{16}", hash_id("\ud800 \x00 日本"))
    minted = "0190a4f2-7b1c-7def-8123-456789abcdef"
    assert show_op_id(minted, raw=False) == minted
    assert show_op_id(f"{minted}/12", raw=False) == f"{minted}/12"
    assert show_op_id("order-7", raw=False) == hash_id("order-7")
    assert show_op_id("order-7", raw=True) == "order-7"
