"""The dashboard and the alerts we ship speak of metrics, labels and events that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiecs_resilient import telemetry

FOLDER = Path(__file__).resolve().parent.parent / "config" / "observability"
DASHBOARD = FOLDER / "grafana-dashboard.json"
ALERTS = FOLDER / "alerts.yaml"

METRIC = re.compile(r"\b(?:aiecs|db)_[a-z_]+")
LABEL = re.compile(r"\b([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")
GROUPED = re.compile(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)")
OF_PROMETHEUS = {"job", "le"}


def exported() -> set[str]:
    """Our metrics as OpenTelemetry's Prometheus exporter calls them."""
    names: set[str] = set()
    for metric in telemetry.METRICS:
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        if metric.kind == "histogram":
            names |= {name + suffix for suffix in ("_bucket", "_count", "_sum")}
        else:
            names.add(name + "_total" if metric.kind == "counter" else name)
    return names


def labels() -> set[str]:
    """Every label that one of our metrics can have."""
    keys = {
        telemetry.DB_SYSTEM_NAME,
        telemetry.DB_OPERATION_NAME,
        telemetry.ERROR_TYPE,
        telemetry.ATTR_ENDING,
        telemetry.ATTR_SERVED_BY,
        telemetry.ATTR_EVENT,
        *(telemetry.ATTR_PREFIX + key for key in telemetry.COUNTED_BY),
    }
    return {key.replace(".", "_") for key in keys} | OF_PROMETHEUS


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON document with the key it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, key)
    elif isinstance(value, str):
        yield key, value


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Every query of the dashboard and of the alerts."""
    dashboard = json.loads(DASHBOARD.read_text())
    shown = [text for key, text in texts(dashboard) if key == "expr" or text.startswith("label_values(")]
    return shown + [rule["expr"] for rule in rules()]


@pytest.mark.parametrize("expression", expressions())
def test_a_query_asks_for_what_exists(expression):
    """Metrics, labels and events in it are those of telemetry.py, and its brackets close."""
    bare = re.sub(r'"[^"]*"', '""', GROUPED.sub("", expression))
    found = set(METRIC.findall(re.sub(r"\{[^}]*\}", "", bare)))
    assert found
    assert found <= exported()
    matched = LABEL.findall(expression)
    grouped = {name.strip() for names in GROUPED.findall(expression) for name in names.split(",")}
    assert {name for name, _value in matched} | grouped <= labels()
    assert {value for name, value in matched if name == "aiecs_event"} <= set(telemetry.EVENTS)
    assert {value for name, value in matched if name == "aiecs_ending"} <= {"ok", "error", "cancelled"}
    for opening, closing in ("()", "{}", "[]"):
        assert bare.count(opening) == bare.count(closing)


def test_every_metric_is_shown():
    """A metric that nobody sees is not worth its price."""
    asked = " ".join(expressions())
    for metric in telemetry.METRICS:
        assert metric.name.replace(".", "_") in asked


def test_alerts_say_what_is_at_risk_and_what_to_do():
    """Who is woken at night finds summary, description and urgency in the alert itself."""
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert len(rule["annotations"]["description"]) > 80
        assert "$labels.job" in rule["annotations"]["summary"]


def test_the_dashboard_is_whole():
    """Panels have titles, explanations and places that do not overlap."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in panels)
