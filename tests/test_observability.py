"""Observability is set up when asked for and only then, exports what it should, and is taken down without a trace."""

from __future__ import annotations

import http.server
import importlib.util
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from aiecs_resilient.errors import ConfigurationError
from aiecs_resilient.observability import ObservabilityOptions, setup_observability

OTLP = importlib.util.find_spec("opentelemetry.exporter") is not None

CHAIN = """
    import asyncio, json, sys, threading
    from opentelemetry import metrics, trace
    from aiecs_resilient import telemetry
    from aiecs_resilient.backends.memory import MemoryStorageBackend
    from aiecs_resilient.errors import ConfigurationError
    from aiecs_resilient.layers.logging import Logging
    from aiecs_resilient.layers.metrics import Metrics
    from aiecs_resilient.layers.tracing import Tracing
    from aiecs_resilient.observability import ObservabilityOptions, setup_observability

    async def work():
        async with Tracing(Metrics(Logging(MemoryStorageBackend(), level="debug"))) as chain:
            await chain.create_session("s-1", "user-1")
            telemetry.event(telemetry.RETRY_STARTED, backend="hot", url="redis://u:hunter2@h/0")
"""


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: OpenTelemetry's global providers can be set only once in each."""
    script = textwrap.dedent(CHAIN) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_nothing_is_set_up_by_importing_or_by_default(tmp_path):
    """Neither the import nor empty options bring in the SDK, replace a provider or start a thread."""
    done = run(
        """
        setup_observability(ObservabilityOptions())()
        assert "opentelemetry.sdk" not in sys.modules
        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        assert threading.active_count() == 1
        asyncio.run(work())
        """,
        tmp_path,
    )
    assert done.stdout == ""


def test_console_shows_spans_measurements_and_lines_with_one_trace_id(tmp_path):
    """What an operation does is seen from three sides that name each other; standard output stays the program's."""
    done = run(
        """
        import structlog
        stop = setup_observability(ObservabilityOptions(
            service_name="my-assistant", traces="console", metrics="console", logs="json", log_level="debug"))
        assert structlog.is_configured()
        asyncio.run(work())
        structlog.get_logger().info("the application's own line", dsn="postgresql://app:hunter2@db/x")
        stop()
        assert not structlog.is_configured()
        assert threading.active_count() == 1
        """,
        tmp_path,
    )
    assert done.stdout == ""
    told = done.stderr
    line = next(line for line in told.splitlines() if "operation.completed" in line)
    trace_id = line.split('"trace_id": "')[1][:32]
    assert f'"trace_id": "0x{trace_id}"' in told
    assert '"db.client.operation.duration"' in told
    assert '"service.name": "my-assistant"' in told
    assert "retry.started" in told
    assert "postgresql://***@db/x" in told
    assert "hunter2" not in told


def test_after_shutdown_nothing_is_printed_or_recorded_and_it_can_be_set_up_again(tmp_path):
    """A storage that is closed and opened again is observed again, and not in between."""
    done = run(
        """
        options = ObservabilityOptions(traces="console", metrics="console")
        for name in ("first", "second"):
            stop = setup_observability(options)
            print(name, file=sys.stderr)
            asyncio.run(work())
            stop()
            stop()
            print("pause", file=sys.stderr)
            asyncio.run(work())
            assert not telemetry.current.tracer.start_span("x").is_recording()
        """,
        tmp_path,
    )
    _before, first, second = done.stderr.replace("second\n", "first\n").split("first\n")
    for part in (first, second):
        on, off = part.split("pause\n")
        assert on.count('"name": "create_session"') == 1
        assert "create_session" not in off


def test_sampling_keeps_its_share(tmp_path):
    """With `sample` at 0 no span is exported, and the chain works as ever."""
    done = run(
        """
        stop = setup_observability(ObservabilityOptions(traces="console", sample=0.0))
        asyncio.run(work())
        stop()
        """,
        tmp_path,
    )
    assert "create_session" not in done.stderr


def test_what_the_application_has_set_up_stays(tmp_path):
    """Its providers and its structlog are not replaced; our spans still are children of its spans."""
    done = run(
        """
        import structlog
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.metrics import MeterProvider
        from structlog.testing import LogCapture
        capture = LogCapture()
        structlog.configure(processors=[capture])
        tracers, meters = TracerProvider(), MeterProvider()
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(meters)
        stop = setup_observability(ObservabilityOptions(traces="console", metrics="console", logs="json"))
        assert trace.get_tracer_provider() is tracers
        assert metrics.get_meter_provider() is meters
        with tracers.get_tracer("app").start_as_current_span("request") as request:
            asyncio.run(work())
        assert capture.entries[0]["trace_id"] == format(request.get_span_context().trace_id, "032x")
        stop()
        assert structlog.is_configured()
        tracers.shutdown()
        meters.shutdown()
        """,
        tmp_path,
    )
    assert "Overriding" not in done.stderr  # what OpenTelemetry says to who tries


def test_two_storages_do_not_end_each_other(tmp_path):
    """Whichever of two set-ups is taken down first, the other goes on."""
    done = run(
        """
        first = setup_observability(ObservabilityOptions(traces="console"))
        second = setup_observability(ObservabilityOptions(traces="console"))
        first()
        asyncio.run(work())
        second()
        """,
        tmp_path,
    )
    assert done.stderr.count('"name": "create_session"') == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"traces": "zipkin"}, "traces must be one of none, console, otlp, not 'zipkin'"),
        ({"metrics": "statsd"}, "metrics must be one of none, console, otlp, prometheus"),
        ({"logs": "xml"}, "logs must be one of none, console, json"),
        ({"log_level": "loud"}, "log_level must be one of"),
        ({"sample": 1.5}, "sample must be from 0 to 1"),
        ({"sample": float("nan")}, "sample must be from 0 to 1"),
        ({"export_interval": 0}, "export_interval must be above 0 seconds"),
        ({"export_timeout": -1}, "export_timeout must be above 0 seconds"),
        ({"prometheus_port": 70_000}, "prometheus_port must be from 1 to 65535"),
        ({"endpoint": "127.0.0.1:4318"}, "endpoint must be an address such as http://127.0.0.1:4318"),
        ({"service_name": ""}, "service_name must not be empty"),
    ],
)
def test_a_wrong_option_is_told_with_what_is_allowed(options, said):
    """A mistake is found when the options are made, not when the first export fails."""
    with pytest.raises(ConfigurationError, match=said):
        ObservabilityOptions(**options)


def test_secrets_are_not_shown():
    """Neither headers nor credentials in the address appear in a repr or in an error."""
    options = ObservabilityOptions(
        headers={"api-key": "hunter2"}, endpoint="https://u:hunter2@collector:4318"
    )
    assert "hunter2" not in repr(options)
    with pytest.raises(ConfigurationError) as caught:
        ObservabilityOptions(endpoint="ftp://u:hunter2@collector")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "package", "module"),
    [
        ({"traces": "otlp"}, r"aiecs-resilient\[otlp\]", "opentelemetry.exporter"),
        ({"metrics": "otlp"}, r"aiecs-resilient\[otlp\]", "opentelemetry.exporter"),
        ({"metrics": "prometheus"}, "opentelemetry-exporter-prometheus", "opentelemetry.exporter"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, options, package, module):
    """What is optional says how to get it, and nothing is left half set up."""
    for name in ("otlp.proto.http.trace_exporter", "otlp.proto.http.metric_exporter", "prometheus"):
        monkeypatch.setitem(sys.modules, f"{module}.{name}", None)
    threads = threading.active_count()
    with pytest.raises(ConfigurationError, match=package):
        setup_observability(ObservabilityOptions(**options))
    assert threading.active_count() == threads


class _Collector(http.server.BaseHTTPRequestHandler):
    received: ClassVar[list[tuple[str, str | None, int]]]

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        self.rfile.read(size)
        self.received.append((self.path, self.headers["x-key"], size))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, str | None, int]]]]:
    """A collector on a free loopback port, and what it has received."""

    class Collector(_Collector):
        received: ClassVar[list[tuple[str, str | None, int]]] = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Collector.received
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not OTLP, reason="the extra aiecs-resilient[otlp] is not installed")
def test_otlp_delivers_what_is_left_at_shutdown(tmp_path, collector):
    """The last seconds before a shutdown are not lost: they are what one looks for."""
    address, received = collector
    run(
        f"""
        stop = setup_observability(ObservabilityOptions(
            traces="otlp", metrics="otlp", endpoint="{address}", headers={{"x-key": "k"}}, export_interval=3600.0))
        asyncio.run(work())
        stop()
        assert threading.active_count() == 1
        """,
        tmp_path,
    )
    assert sorted((path, key) for path, key, _size in received) == [("/v1/metrics", "k"), ("/v1/traces", "k")]
