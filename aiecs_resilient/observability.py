"""Sets up where spans, measurements and log lines go, if the configuration asks for it::

    observability:
      service_name: my-assistant
      traces: otlp                      # none, console or otlp
      metrics: otlp                     # none, console, otlp or prometheus
      logs: json                        # none, console or json
      endpoint: "${OTLP_ENDPOINT:-http://127.0.0.1:4318}"

Importing this module does nothing. What the application has set up itself is never replaced: if it has OpenTelemetry
providers of its own, ours serve this library's spans and measurements only; if it has configured structlog, that stays.
Console output goes to standard error, for standard output is the program's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from . import telemetry
from .errors import ConfigurationError
from .privacy import redact
from .units import Count, Ratio, Seconds

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.sampling import Sampler

Shutdown = Callable[[], None]
"""Sends what is left and takes everything down again. Any number of calls; one may take up to ``export_timeout`` per signal,
so call it from a thread where an event loop is running. Never raises."""

Traces = Literal["none", "console", "otlp"]
Metrics = Literal["none", "console", "otlp", "prometheus"]
Logs = Literal["none", "console", "json"]
Level = Literal["debug", "info", "warning", "error"]

_RANK: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_DEFAULT_ENDPOINT: Final = "http://127.0.0.1:4318"

_log = logging.getLogger(telemetry.SCOPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservabilityOptions:
    """What to set up; by default nothing.

    Args:
        service_name: how this process is called in traces and metrics.
        traces: where spans go.
        metrics: where measurements go.
        logs: how log lines are written to standard error.
        endpoint: where a collector listens for OTLP over HTTP, without ``/v1/...``.
        headers: sent with every export, such as an API key; never shown.
        sample: the share of traces that is kept; traces that began elsewhere keep the decision made there.
        export_interval: how often measurements are sent.
        export_timeout: how long one export may take.
        log_level: what is less important is not written.
        prometheus_host: the address on which Prometheus may fetch metrics.
        prometheus_port: the port on which Prometheus may fetch metrics.
    """

    service_name: str = "aiecs-resilient"
    traces: Traces = "none"
    metrics: Metrics = "none"
    logs: Logs = "none"
    endpoint: str = field(default=_DEFAULT_ENDPOINT, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    sample: Ratio = 1.0
    export_interval: Seconds = 15.0
    export_timeout: Seconds = 10.0
    log_level: Level = "info"
    prometheus_host: str = "127.0.0.1"
    prometheus_port: Count = 9464

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("traces", self.traces, get_args(Traces)),
            ("metrics", self.metrics, get_args(Metrics)),
            ("logs", self.logs, get_args(Logs)),
            ("log_level", self.log_level, get_args(Level)),
        ):
            if value not in allowed:
                raise ConfigurationError(
                    f"observability: {name} must be one of {', '.join(allowed)}, not {value!r}"
                )
        if not self.service_name:
            raise ConfigurationError(
                "observability: service_name must not be empty; it names this process in traces"
            )
        if not 0 <= self.sample <= 1:
            raise ConfigurationError(f"observability: sample must be from 0 to 1, not {self.sample!r}")
        for name, seconds in (
            ("export_interval", self.export_interval),
            ("export_timeout", self.export_timeout),
        ):
            if not seconds > 0:
                raise ConfigurationError(f"observability: {name} must be above 0 seconds, not {seconds!r}")
        if not 1 <= self.prometheus_port <= 65_535:
            raise ConfigurationError(
                f"observability: prometheus_port must be from 1 to 65535, not {self.prometheus_port!r}"
            )
        address = urlsplit(self.endpoint)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ConfigurationError(
                f"observability: endpoint must be an address such as {_DEFAULT_ENDPOINT}, not {redact(self.endpoint)!r}"
            )


def setup_observability(options: ObservabilityOptions) -> Shutdown:
    """Set up what ``options`` ask for; returns how to take it down.

    Raises:
        ConfigurationError: a package is missing (the message says which to install), or a port is taken. Nothing is set up then.
    """
    stack = ExitStack()
    try:
        if options.traces != "none":
            _set_up_traces(options, stack)
        if options.metrics != "none":
            _set_up_metrics(options, stack)
        if options.logs != "none":
            _set_up_logs(options, stack)
    except BaseException:
        stack.close()
        raise
    return stack.close


def _later(stack: ExitStack, close: Callable[[], object]) -> None:
    """Have ``close`` run at shutdown; that it fails then is told and harms nobody."""

    def closing() -> None:
        try:
            close()
        except Exception:  # noqa: BLE001  an exporter that cannot say goodbye is no reason for a program to fail
            _log.warning("telemetry could not be shut down cleanly", exc_info=True)

    stack.callback(closing)


def _resource(options: ObservabilityOptions) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    return Resource.create({SERVICE_NAME: options.service_name})


# ------------------------------------------------------------------ traces


def _set_up_traces(options: ObservabilityOptions, stack: ExitStack) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    processor = _span_processor(options)
    provider = TracerProvider(resource=_resource(options), sampler=_sampler(options, stack))
    provider.add_span_processor(processor)
    _later(stack, provider.shutdown)
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # nobody has set one up
        trace.set_tracer_provider(provider)  # so that instrumented drivers' spans come along
    stack.callback(telemetry.use(tracer=provider.get_tracer(telemetry.SCOPE)))


def _sampler(options: ObservabilityOptions, stack: ExitStack) -> Sampler:
    """Drops everything once it was shut down: a global provider cannot be replaced, and must not cost or print any more."""
    from opentelemetry.sdk.trace.sampling import (
        Decision,
        ParentBased,
        Sampler,
        SamplingResult,
        TraceIdRatioBased,
    )

    class UntilShutdown(Sampler):
        def __init__(self) -> None:
            self.inner: Sampler | None = ParentBased(TraceIdRatioBased(options.sample))

        def should_sample(
            self, *args: Any, **kwargs: Any
        ) -> SamplingResult:  # Any: handed through as it comes
            inner = self.inner
            return SamplingResult(Decision.DROP) if inner is None else inner.should_sample(*args, **kwargs)

        def get_description(self) -> str:
            return "none, shut down" if self.inner is None else self.inner.get_description()

        def stop(self) -> None:
            self.inner = None

    sampler = UntilShutdown()
    stack.callback(sampler.stop)
    return sampler


def _span_processor(options: ObservabilityOptions) -> SpanProcessor:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    if options.traces == "console":
        return SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr))
    otlp = _imported(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter", "traces: otlp", "aiecs-resilient[otlp]"
    )
    exporter = otlp.OTLPSpanExporter(**_otlp(options, "/v1/traces"))
    return BatchSpanProcessor(exporter, export_timeout_millis=options.export_timeout * 1_000)


def _otlp(options: ObservabilityOptions, path: str) -> dict[str, Any]:
    return {
        "endpoint": options.endpoint.rstrip("/") + path,
        "headers": dict(options.headers or {}),
        "timeout": options.export_timeout,
    }


# ------------------------------------------------------------------ metrics


def _set_up_metrics(options: ObservabilityOptions, stack: ExitStack) -> None:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider

    reader = _prometheus(options, stack) if options.metrics == "prometheus" else _metric_reader(options)
    provider = MeterProvider([reader], resource=_resource(options))
    _later(stack, provider.shutdown)
    if not isinstance(metrics.get_meter_provider(), MeterProvider):  # nobody has set one up
        metrics.set_meter_provider(provider)
    stack.callback(telemetry.use(meter=provider.get_meter(telemetry.SCOPE)))


def _metric_reader(options: ObservabilityOptions) -> MetricReader:
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        MetricExporter,
        PeriodicExportingMetricReader,
    )

    exporter: MetricExporter
    if options.metrics == "console":
        exporter = ConsoleMetricExporter(out=sys.stderr)
    else:
        otlp = _imported(
            "opentelemetry.exporter.otlp.proto.http.metric_exporter", "metrics: otlp", "aiecs-resilient[otlp]"
        )
        exporter = otlp.OTLPMetricExporter(**_otlp(options, "/v1/metrics"))
    return PeriodicExportingMetricReader(
        exporter,
        export_interval_millis=options.export_interval * 1_000,
        export_timeout_millis=options.export_timeout * 1_000,
    )


def _prometheus(options: ObservabilityOptions, stack: ExitStack) -> MetricReader:
    needs = "opentelemetry-exporter-prometheus"
    exporter = _imported("opentelemetry.exporter.prometheus", "metrics: prometheus", needs)
    client = _imported("prometheus_client", "metrics: prometheus", needs)
    try:
        server, thread = client.start_http_server(options.prometheus_port, addr=options.prometheus_host)
    except OSError as error:
        raise ConfigurationError(
            f"observability: Prometheus cannot be served on {options.prometheus_host}:{options.prometheus_port} "
            f"({error.strerror}); set prometheus_port to a free one"
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    _later(stack, stop)
    reader: MetricReader = exporter.PrometheusMetricReader()
    return reader


# ------------------------------------------------------------------ logs


def _set_up_logs(options: ObservabilityOptions, stack: ExitStack) -> None:
    import structlog

    if structlog.is_configured():  # the application's own way of logging
        return
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(default=str)
        if options.logs == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace_ids,
            structlog.processors.format_exc_info if options.logs == "json" else _as_it_is,
            _without_credentials,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_RANK[options.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    stack.callback(structlog.reset_defaults)


def _as_it_is(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return line


def _add_trace_ids(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    line.update(telemetry.trace_ids())
    return line


def _without_credentials(
    _logger: object, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in line.items():
        if isinstance(value, str):
            line[key] = redact(value)
    return line


def _imported(module: str, option: str, package: str) -> Any:  # Any: packages that need not be installed
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"observability: {option} needs a package that is not installed; run: pip install '{package}'"
        ) from error


__all__ = ["ObservabilityOptions", "Shutdown", "setup_observability"]
