"""logging: quiet when all is well, one error line per final failure, bounded in an outage, and nothing private."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from aiecs_resilient import telemetry
from aiecs_resilient.errors import (
    ConfigurationError,
    ConflictError,
    StorageConnectionError,
    StorageTimeoutError,
)
from aiecs_resilient.layers.logging import Logging
from aiecs_resilient.layers.tracing import Tracing
from aiecs_resilient.operations import OperationContext, operation
from aiecs_resilient.privacy import hash_id
from aiecs_resilient.throttle import Throttle

Lines = list[dict[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What an application that has configured structlog gets."""
    capture = structlog.testing.LogCapture()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.reset_defaults()


async def test_a_success_is_not_worth_a_line(probe, lines):
    """A healthy chain says nothing at the default level."""
    await Logging(probe).create_session("s-1", "user-1")
    assert lines == []


async def test_debug_tells_each_operation(probe, lines):
    """With level debug every operation is one line: what, how long, who served it."""
    await Logging(probe, level="debug").get_session("s-1")
    [line] = lines
    assert (line["event"], line["log_level"]) == ("operation.completed", "debug")
    assert (line["operation"], line["served_by"], line["key"]) == ("get_session", "mem", hash_id("s-1"))
    assert line["ms"] >= 0


async def test_a_final_failure_is_an_error_with_the_trace(probe, lines, spans):
    """The line leads to the trace; the caller gets the same exception as without logging."""
    error = StorageConnectionError("cannot reach postgresql://app:pa55@db/x", backend="mem")
    probe.fail_with(error)
    with pytest.raises(StorageConnectionError) as caught:
        await Tracing(Logging(probe)).create_session("s-1", "user-1")
    assert caught.value is error
    [line] = lines
    assert (line["event"], line["log_level"], line["error"]) == (
        "operation.failed",
        "error",
        "StorageConnectionError",
    )
    assert line["message"] == "cannot reach postgresql://***@db/x [backend=mem]"
    [span] = spans.get_finished_spans()
    assert line["trace_id"] == f"{span.context.trace_id:032x}"
    assert line["span_id"] == f"{span.context.span_id:016x}"


async def test_what_the_caller_asked_wrongly_wakes_nobody(probe, lines):
    """A conflict is the caller's to handle: info, and without the message, which may quote what was stored."""
    probe.fail_with(ConflictError("alice has another payload"))
    with pytest.raises(ConflictError):
        await Logging(probe).create_session("s-1", "user-1")
    [line] = lines
    assert (line["event"], line["log_level"], line["error"]) == ("operation.refused", "info", "ConflictError")
    assert "alice" not in str(line)


async def test_a_cancelled_operation_is_a_debug_line(probe, lines):
    """The caller went away: nothing failed."""
    inside = asyncio.Event()

    async def act(_context: OperationContext) -> None:
        inside.set()
        await asyncio.Event().wait()

    probe.act = act
    for level in ("info", "debug"):
        inside.clear()
        task = asyncio.create_task(Logging(probe, level=level).get_session("s-1"))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [(line["event"], line["log_level"]) for line in lines] == [("operation.cancelled", "debug")]


@pytest.mark.parametrize(
    ("flag", "event"), [("degraded", telemetry.ANSWER_DEGRADED), ("stale", telemetry.ANSWER_STALE)]
)
async def test_a_flagged_answer_is_a_warning(probe, lines, flag, event):
    """Users are served, but not by the store that should: somebody may want to look."""

    async def act(context: OperationContext) -> None:
        setattr(context, flag, True)

    probe.act = act
    await Logging(probe).get_session("s-1")
    assert [(line["event"], line["log_level"]) for line in lines] == [(event, "warning")]


async def test_a_slow_operation_is_a_warning(probe, lines):
    """Slow is from `slow` on, not before."""
    await Logging(probe, slow=3600.0).get_session("s-1")
    assert lines == []
    await Logging(probe, slow=1e-9).get_session("s-1")
    assert [(line["event"], line["log_level"]) for line in lines] == [("operation.slow", "warning")]


async def test_events_of_other_layers_are_written_while_open(probe, lines):
    """A retry is a warning: it may still heal. After close nothing is listened to."""
    chain = Logging(probe)
    telemetry.event(telemetry.BREAKER_OPENED, backend="before")
    await chain.initialize()
    await chain.initialize()
    telemetry.event(telemetry.RETRY_STARTED, backend="hot", attempt=2, error=StorageTimeoutError("too slow"))
    telemetry.event(telemetry.FAILBACK_COMPLETED, leader="hot", epoch=3)
    telemetry.event(telemetry.RECONCILE_PROGRESSED, store="cold", replayed=5)
    await chain.close()
    telemetry.event(telemetry.BREAKER_OPENED, backend="after")
    assert lines == [
        {
            "event": "retry.started",
            "log_level": "warning",
            "backend": "hot",
            "attempt": 2,
            "error": "StorageTimeoutError",
            "message": "too slow",
        },
        {"event": "failback.completed", "log_level": "info", "leader": "hot", "epoch": 3},
    ]


async def test_two_open_chains_write_an_event_once(probe, lines):
    """Events are the process's: during a reload the new chain writes them, and the old one does not repeat them."""
    old, new = Logging(probe), Logging(probe)
    await old.initialize()
    await new.initialize()
    telemetry.event(telemetry.BREAKER_OPENED, backend="hot")
    await new.close()
    telemetry.event(telemetry.BREAKER_CLOSED, backend="hot")
    await old.close()
    assert [line["event"] for line in lines] == ["breaker.opened", "breaker.closed"]


async def test_a_chain_that_could_not_open_does_not_listen(probe, lines):
    """Nobody calls close on what did not open."""

    class Unreachable(type(probe)):
        async def initialize(self) -> bool:
            raise StorageConnectionError("down")

    with pytest.raises(StorageConnectionError):
        await Logging(Unreachable(probe.inner)).initialize()
    telemetry.event(telemetry.BREAKER_OPENED, backend="hot")
    assert lines == []


async def test_an_outage_does_not_fill_the_disk(probe, lines):
    """A thousand equal failures are ten lines a second, and the next to pass says how many were dropped."""
    probe.fail_with(StorageConnectionError("down"))
    chain = Logging(probe, per_second=10)
    for _ in range(1_000):
        with pytest.raises(StorageConnectionError):
            await chain.get_session("s-1")
    assert len(lines) <= 10 * 4  # seconds that a slow machine may need
    throttle = Throttle(2)
    assert [throttle.admit(("a",), 0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert throttle.admit(("b",), 0.5) == 0
    assert throttle.admit(("a",), 1.0) == 3
    assert throttle.admit(("a",), 1.1) == 0


def test_the_throttle_is_bounded():
    """However many kinds of lines appear, memory does not grow with them."""
    throttle = Throttle(1, kinds=10)
    for n in range(1_000):
        throttle.admit((str(n),), 0.0)
    assert len(throttle._windows) <= 10


async def test_nothing_private_is_in_a_line(probe, lines):
    """Content, metadata and ids stay out, also at level debug."""
    chain = Logging(probe, level="debug")
    await chain.create_session("alice@example.org", "bob", {"channel": "secret-channel"})
    async with operation(op_id="order-of-alice"):
        await chain.add_conversation_message("alice@example.org", "user", "my-private-words")
    assert len(lines) == 2
    for private in ("alice", "bob", "secret-channel", "my-private"):
        assert private not in str(lines)
    assert lines[1]["op_id"] == hash_id("order-of-alice")


async def test_raw_ids_are_shown_on_request(probe, lines):
    """Where ids are harmless, a line may name them."""
    await Logging(probe, level="debug", raw_ids=True).get_session("s-1")
    assert lines[0]["key"] == "s-1"


async def test_without_structlog_configured_the_standard_logger_is_used(probe, caplog):
    """A library does not print by itself: lines go to the logger `aiecs_resilient`, whatever is done with it."""
    assert not structlog.is_configured()
    probe.fail_with(StorageConnectionError("down"))
    with caplog.at_level(logging.INFO, "aiecs_resilient"), pytest.raises(StorageConnectionError):
        await Logging(probe).get_session("s-1")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("aiecs_resilient", "ERROR")
    assert record.getMessage().startswith("event='operation.failed'")
    assert "operation='get_session'" in record.getMessage()


async def test_a_log_that_fails_harms_nobody(probe):
    """A full disk changes neither an answer nor an exception."""

    def broken(*_args: object) -> Any:
        raise OSError("disk full")

    structlog.configure(processors=[broken])
    try:
        chain = Logging(probe, level="debug")
        assert await chain.get_session("s-1") is None
        error = StorageTimeoutError("too slow")
        probe.fail_with(error)
        with pytest.raises(StorageTimeoutError) as caught:
            await chain.get_session("s-1")
        assert caught.value is error
        await chain.initialize()
        telemetry.event(telemetry.BREAKER_OPENED, backend="hot")
        await chain.close()
    finally:
        structlog.reset_defaults()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": "loud"}, "debug, info, warning, error"),
        ({"slow": 0}, "slow"),
        ({"per_second": 0}, "per_second"),
    ],
)
async def test_options_out_of_range_are_refused(probe, options, said):
    """A wrong option is told when the layer is built, with what is allowed."""
    with pytest.raises(ConfigurationError, match=said):
        Logging(probe, **options)


def test_structlog_is_imported_by_who_logs_only():
    """Importing the module costs no structlog; building the layer does."""
    code = (
        "import sys; from aiecs_resilient.layers.logging import Logging; assert 'structlog' not in sys.modules;"
        "from aiecs_resilient.backends.memory import MemoryStorageBackend; Logging(MemoryStorageBackend());"
        "assert 'structlog' in sys.modules; assert 'opentelemetry.sdk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
