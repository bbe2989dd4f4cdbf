"""The order of layers: what is always wrong is refused, what is usually wrong is told, and each says why and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiecs_resilient.configuration.errors import Problem
from aiecs_resilient.configuration.models import Plan
from aiecs_resilient.configuration.rules import RULES, Finding, check_order
from aiecs_resilient.configuration.survival import survival

Read = Callable[..., Plan]
Complaints = Callable[..., list[Problem]]

LEG = "[retry, circuit_breaker, timeout, backend: %s]"


def chain(*layers: str, end: str = "a") -> str:
    """One store under these layers."""
    return f"backends: {{{end}: {STORE[end]}}}\npipeline: [{', '.join((*layers, f'backend: {end}'))}]\n"


STORE = {"a": "{type: remote, url: x}", "b": "{type: remote, url: y}", "m": "memory", "f": "foreign"}


def pair(primary: str, fallback: str, *above: str, ends: str = "ab") -> str:
    """Two legs under these layers."""
    backends = ", ".join(f"{name}: {STORE[name]}" for name in ends)
    legs = f"dual_write: {{primary: {primary}, fallback: {fallback}}}"
    return f"backends: {{{backends}}}\npipeline: [{', '.join((*above, legs))}]\n"


ALWAYS_WRONG = {
    "layer-twice": chain("deadline", "metrics", "deadline"),
    "dual-write-in-leg": pair(
        "[{dual_write: {primary: [backend: m], fallback: [backend: f]}}]", LEG % "b", ends="mfb"
    ),
    "retry-needs-timeout": chain("deadline", "retry"),
    "foreign-leg": pair("[backend: f]", LEG % "b", ends="fb"),
    "foreign-batching": chain("batching", end="f"),
    "deadline-outside-retry": chain("retry", "deadline", "timeout"),
    "retry-outside-circuit_breaker": chain("circuit_breaker", "retry", "timeout"),
    "retry-outside-timeout": chain("timeout", "retry"),
    "circuit_breaker-outside-timeout": chain("timeout", "circuit_breaker"),
    "circuit_breaker-outside-bulkhead": chain("bulkhead", "circuit_breaker"),
    "bulkhead-outside-timeout": chain("timeout", "bulkhead"),
    "cache-outside-dual_write": pair("[cache, retry, circuit_breaker, timeout, backend: a]", LEG % "b"),
    "batching-outside-dual_write": pair("[batching, retry, circuit_breaker, timeout, backend: a]", LEG % "b"),
    "compression-outside-dual_write": pair(
        "[compression, retry, circuit_breaker, timeout, backend: a]", LEG % "b"
    ),
    "encryption-outside-dual_write": pair(
        LEG % "a", "[encryption, retry, circuit_breaker, timeout, backend: b]"
    ),
    "retry-outside-hedging": chain("hedging", "retry", "timeout"),
    "hedging-outside-circuit_breaker": chain("circuit_breaker", "hedging"),
    "hedging-outside-timeout": chain("timeout", "hedging"),
    "namespace-outside-cache": chain("cache", "namespace"),
    "namespace-outside-encryption": chain("encryption", "namespace"),
    "namespace-outside-dual_write": pair(
        "[namespace, retry, circuit_breaker, timeout, backend: a]", LEG % "b"
    ),
    "read_only-outside-batching": chain("batching", "read_only"),
    "read_only-outside-dual_write": pair(
        "[read_only, retry, circuit_breaker, timeout, backend: a]", LEG % "b"
    ),
    "limits-outside-batching": chain("batching", "limits"),
    "limits-outside-compression": chain("compression", "limits"),
    "limits-outside-dual_write": pair("[limits, retry, circuit_breaker, timeout, backend: a]", LEG % "b"),
    "rate_limit-outside-dual_write": pair(
        "[rate_limit, retry, circuit_breaker, timeout, backend: a]", LEG % "b"
    ),
    "dual_write-outside-hedging": pair("[backend: a]", "[backend: b]", "hedging"),
    "compression-outside-encryption": chain("encryption", "compression"),
    "cache-outside-batching": chain("batching", "cache"),
    "dual_write-outside-retry": pair("[backend: a]", "[backend: b]", "retry"),
    "dual_write-outside-circuit_breaker": pair("[backend: a]", "[backend: b]", "circuit_breaker"),
    "dual_write-outside-bulkhead": pair("[backend: a]", "[backend: b]", "bulkhead"),
    "dual_write-outside-timeout": pair("[backend: a]", "[backend: b]", "timeout"),
}

USUALLY_WRONG = {
    "leg-without-breaker": pair("[retry, timeout, backend: a]", LEG % "b"),
    "leg-without-timeout": pair("[circuit_breaker, backend: a]", LEG % "b"),
    "volatile-leg": pair(LEG % "a", "[backend: m]", ends="am"),
    "foreign-retry": chain("retry", "timeout", end="f"),
    "cache-across-processes": chain("cache"),
    "usual-order": chain("metrics", "tracing"),
    "chaos-in-chain": chain("timeout", "chaos"),
    "namespace-outside-rate_limit": chain("rate_limit", "namespace"),
    "read_only-outside-cache": chain("cache: {exclusive: true}", "read_only"),
    "deadline-outside-rate_limit": chain("rate_limit", "deadline"),
    "cache-outside-compression": chain("compression", "cache: {exclusive: true}"),
    "cache-outside-encryption": chain("encryption", "cache: {exclusive: true}"),
}


@pytest.mark.parametrize("rule", ALWAYS_WRONG, ids=str)
def test_what_is_always_wrong_is_refused(complaints: Complaints, rule: str) -> None:
    """The error has a place and names rule, consequence and fix."""
    wanted = next(item for item in RULES if item.id == rule)
    found = [problem for problem in complaints(ALWAYS_WRONG[rule]) if f"[{rule}]" in str(problem)]
    assert len(found) == 1
    assert found[0].place.line == 2
    assert wanted.consequence in str(found[0])
    assert wanted.fix in str(found[0])


@pytest.mark.parametrize("rule", USUALLY_WRONG, ids=str)
def test_what_is_usually_wrong_is_told(read: Read, rule: str) -> None:
    """A warning does not prevent the use."""
    assert {finding.rule.id for finding in check_order(read(USUALLY_WRONG[rule]))} == {rule}


def test_each_rule_is_broken_by_a_test() -> None:
    """A rule that no chain here breaks may have no effect at all."""
    assert {rule.id for rule in RULES} == ALWAYS_WRONG.keys() | USUALLY_WRONG.keys()
    assert {rule.id for rule in RULES if rule.severity == "error"} == ALWAYS_WRONG.keys()


@pytest.mark.parametrize(
    "text",
    [
        chain(),
        chain("retry", end="m"),
        chain("cache", end="m"),
        chain(
            "tracing",
            "metrics",
            "logging",
            "deadline",
            "cache: {exclusive: true}",
            "batching",
            "retry",
            "circuit_breaker",
            "timeout",
        ),
        chain("deadline", "retry", "knobs", "timeout"),
        pair(LEG % "a", LEG % "b", "tracing", "metrics", "logging", "deadline", "compression", "encryption"),
        pair("[retry, hedging, circuit_breaker, bulkhead, timeout, backend: a]", LEG % "b", "deadline"),
    ],
    ids=str,
)
def test_the_documented_order_is_accepted_in_silence(read: Read, text: str) -> None:
    """The order of the documentation, whole or in part, gives no warning; layers of others stand anywhere."""
    assert check_order(read(text)) == []


def test_a_layer_above_and_in_a_leg_is_twice(complaints: Complaints) -> None:
    """Rules hold across a branch: the way to one store is what counts."""
    text = pair("[metrics, retry, circuit_breaker, timeout, backend: a]", LEG % "b", "metrics")
    assert "[layer-twice]" in str(complaints(text)[0])


def test_the_same_layer_in_both_legs_is_right(read: Read) -> None:
    """Each leg has its own retry and breaker."""
    assert check_order(read(pair(LEG % "a", LEG % "b"))) == []


def test_a_named_pipeline_is_checked_in_its_place(complaints: Complaints) -> None:
    """A chain under a name is no hiding place."""
    text = (
        "backends:\n  leg: {pipeline: [timeout, backend: a]}\n  a: {type: remote, url: x}\n"
        "pipeline: [deadline, timeout, backend: leg]\n"
    )
    assert "[layer-twice]" in str(complaints(text)[0])


def test_findings_read_well(read: Read) -> None:
    """Place, severity, what, why, what to do, rule."""
    [finding] = check_order(read(USUALLY_WRONG["leg-without-breaker"]))
    assert isinstance(finding, Finding)
    text = str(finding)
    assert (
        "chain.yaml:2:34: warning: the primary leg ('a', remote) has no circuit_breaker: while this" in text
    )
    assert "; fix: add `- circuit_breaker`" in text
    assert text.endswith("[leg-without-breaker]")


def test_it_says_what_an_acknowledgement_survives(read: Read) -> None:
    """For a single store what it declares; for a pair what both together and what one alone gives."""
    assert survival(read(chain(end="m")).pipeline) == ["nothing (m, memory: it is gone with the process)"]
    lines = survival(read(pair(LEG % "a", LEG % "b")).pipeline)
    assert "either store" in lines[0]
    assert "at least `process`" in lines[1]
    assert lines[2:] == [
        "primary: a killed server process (a, remote: if asked)",
        "fallback: a killed server process (b, remote: if asked)",
    ]
    lagging = pair(LEG % "a", LEG % "b").replace("fallback:", "write: primary, fallback:")
    assert "may cost its last writes" in survival(read(lagging).pipeline)[0]
