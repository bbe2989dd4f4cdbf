"""The order of layers, as data: what is always wrong is refused, what is usually wrong is told; each with its reason.

A rule is looked for on every *route*: the layers passed on the way from the top to one store. So a rule about two layers
holds inside a leg, above the branch and across both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

from .errors import Place
from .models import BackendPlan, LayerPlan, PipelinePlan, Plan

Severity = Literal["error", "warning"]
Route = tuple[LayerPlan, ...]

ABOVE = (
    "tracing",
    "metrics",
    "logging",
    "deadline",
    "read_only",
    "namespace",
    "limits",
    "rate_limit",
    "cache",
    "batching",
    "compression",
    "encryption",
    "dual_write",
)
"""The usual order above the stores, outermost first."""

LEG = ("retry", "hedging", "circuit_breaker", "bulkhead", "timeout", "chaos")
"""The usual order inside each leg, or directly over a single store."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: how it is called in reports.
        layers: what it is about.
        consequence: what goes wrong when it is broken.
        fix: how to keep it.
    """

    id: str
    layers: tuple[str, ...]
    severity: Severity
    consequence: str
    fix: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a chain breaks, and where."""

    rule: Rule
    place: Place
    what: str

    @property
    def message(self) -> str:
        """What is wrong and what follows from it."""
        return f"{self.what}: {self.rule.consequence}"

    def __str__(self) -> str:
        return f"{self.place}: {self.rule.severity}: {self.message}; fix: {self.rule.fix} [{self.rule.id}]"


def _outside(outer: str, inner: str, consequence: str, severity: Severity = "error") -> Rule:
    return Rule(
        f"{outer}-outside-{inner}",
        (outer, inner),
        severity,
        consequence,
        f"list {outer} before {inner}",
    )


OUTSIDE: tuple[Rule, ...] = (
    _outside(
        "deadline", "retry", "each attempt would get the whole time anew, so the total is never bounded"
    ),
    _outside(
        "retry",
        "circuit_breaker",
        "the breaker would count one failure for a whole series of attempts, and attempts would go on while it is open",
    ),
    _outside(
        "retry",
        "timeout",
        "the time of one attempt would cut off the whole series, so nothing is ever tried again (a total time is `deadline`)",
    ),
    _outside(
        "circuit_breaker",
        "timeout",
        "the breaker would see a cancelled call instead of a slow store, and a store that hangs would never open it",
    ),
    _outside(
        "circuit_breaker", "bulkhead", "a full bulkhead would make calls wait for a store known to be down"
    ),
    _outside("bulkhead", "timeout", "waiting for a permit would use up the time of the attempt"),
    _outside("retry", "hedging", "each second call would repeat all attempts, so attempts multiply"),
    _outside(
        "hedging",
        "circuit_breaker",
        "the breaker would count two calls as one, and could not keep the second from a store that is known to be down",
    ),
    _outside(
        "hedging", "timeout", "the second call would get only what the first has left of the attempt's time"
    ),
    _outside(
        "cache",
        "dual_write",
        "each leg would hold a cache of its own, and they would disagree after a takeover",
    ),
    _outside("batching", "dual_write", "the two legs would batch differently and lose the order they share"),
    _outside(
        "compression", "dual_write", "the two stores would not hold equal bytes, so they cannot be compared"
    ),
    _outside(
        "encryption", "dual_write", "the two stores would not hold equal bytes, so they cannot be compared"
    ),
    _outside("compression", "encryption", "encrypted bytes do not compress"),
    _outside("namespace", "cache", "one tenant would be shown what the cache keeps for another"),
    _outside(
        "namespace",
        "encryption",
        "the address that is authenticated would lack the tenant, so a row of one could be passed off as another's",
    ),
    _outside("namespace", "dual_write", "the two stores would call the same session differently"),
    _outside(
        "namespace",
        "rate_limit",
        "keys there do not have a tenant yet, so tenants share one limit",
        "warning",
    ),
    _outside("read_only", "cache", "a write would change the cache before it is refused", "warning"),
    _outside("read_only", "batching", "a write would be accepted and queued before it is refused"),
    _outside(
        "read_only", "dual_write", "a leg that may not be written to is never brought up to date by its peer"
    ),
    _outside(
        "limits",
        "batching",
        "writes become records there: one that is too large spoils its batch, and none can be given a longest life",
    ),
    _outside("limits", "compression", "sizes would be measured after compression"),
    _outside("limits", "dual_write", "what one store takes the other would refuse"),
    _outside("rate_limit", "dual_write", "what one store has accepted would be refused by the other's limit"),
    _outside(
        "deadline", "rate_limit", "it would not know how much time is left, and could shed nothing", "warning"
    ),
    _outside("cache", "compression", "each hit would be decompressed again", "warning"),
    _outside("cache", "encryption", "each hit would be decrypted again", "warning"),
    _outside("cache", "batching", "a read would have to wait for a batch that it could have been spared"),
    _outside(
        "dual_write",
        "retry",
        "a takeover would be repeated instead of the attempt that failed, and the first store is given up at once",
    ),
    _outside(
        "dual_write",
        "circuit_breaker",
        "its state is about one store; here one store's failures close off both",
    ),
    _outside("dual_write", "bulkhead", "a leader that hangs would hold all permits and starve the takeover"),
    _outside(
        "dual_write",
        "hedging",
        "the second call would go to the same leader as the first, and a takeover would be begun twice",
    ),
    _outside(
        "dual_write",
        "timeout",
        "it would cut off the takeover together with the attempt that hangs (a total time is `deadline`)",
    ),
)
"""The first of the two must stand outside the second wherever both are on one route."""

TWICE = Rule(
    "layer-twice",
    (),
    "error",
    "their effects multiply (three attempts of three attempts are nine)",
    "keep one of them",
)
NESTED = Rule(
    "dual-write-in-leg",
    ("dual_write",),
    "error",
    "routing and marks are kept in a store, and a pair of stores is none",
    "let each leg end in one store",
)
RETRY_ALONE = Rule(
    "retry-needs-timeout",
    ("retry", "timeout"),
    "error",
    "an attempt that hangs is never given up, so there is no second one",
    "put a timeout below the retry: `- timeout: {per_attempt: 500ms}`",
)
FOREIGN_LEG = Rule(
    "foreign-leg",
    ("dual_write",),
    "error",
    "a store that knows no op_id cannot replay a write without doing it twice",
    "use one of our stores as a leg, or implement Backend with op_id",
)
FOREIGN_BATCHING = Rule(
    "foreign-batching",
    ("batching",),
    "error",
    "a store that knows no op_id takes no writes as records, so a batch could neither be told apart nor repeated",
    "leave batching out, use one of our stores, or implement Backend with op_id and apply",
)
LEG_WITHOUT_BREAKER = Rule(
    "leg-without-breaker",
    ("dual_write", "circuit_breaker"),
    "warning",
    "while this store is down every call tries it first and pays its timeouts",
    "add `- circuit_breaker` to the leg, below its retry",
)
LEG_WITHOUT_TIMEOUT = Rule(
    "leg-without-timeout",
    ("dual_write", "timeout"),
    "warning",
    "a store that hangs holds each call until the caller's own deadline",
    "add `- timeout: {per_attempt: 500ms}` to the leg, below its circuit_breaker",
)
VOLATILE_LEG = Rule(
    "volatile-leg",
    ("dual_write",),
    "warning",
    "what it alone has acknowledged is gone with it, so while the other store is down writes are refused",
    "use a store that survives its process",
)
FOREIGN_RETRY = Rule(
    "foreign-retry",
    ("retry",),
    "warning",
    "this store knows no op_id, so a write whose outcome is unknown is not tried again",
    "use one of our stores, or implement Backend with op_id",
)
CHAOS = Rule(
    "chaos-in-chain",
    ("chaos",),
    "warning",
    "calls fail on purpose, and it is refused where the environment says production",
    "remove it outside of tests and game days",
)
CACHE_ACROSS_PROCESSES = Rule(
    "cache-across-processes",
    ("cache",),
    "warning",
    "what another process writes is seen here only when an entry's time is over, so answers may be `ttl` old",
    "say `exclusive: true` if no other process writes what this one reads, shorten `ttl`, or leave the cache out",
)
USUAL_ORDER = Rule(
    "usual-order",
    (),
    "warning",
    "what stands outside is neither seen nor governed by it",
    f"the usual order is {' → '.join(ABOVE)}, and over each store {' → '.join(LEG)}",
)

RULES: tuple[Rule, ...] = (
    TWICE,
    NESTED,
    FOREIGN_LEG,
    FOREIGN_BATCHING,
    RETRY_ALONE,
    *OUTSIDE,
    LEG_WITHOUT_BREAKER,
    LEG_WITHOUT_TIMEOUT,
    VOLATILE_LEG,
    FOREIGN_RETRY,
    CHAOS,
    CACHE_ACROSS_PROCESSES,
    USUAL_ORDER,
)
"""All rules; the order in which findings of one place are told."""


def check_order(plan: Plan) -> list[Finding]:
    """Everything that the rules say of this chain, in the order of the file, errors before warnings."""
    found: dict[tuple[str, Place], Finding] = {}
    for route, backend in plan.pipeline.routes():
        for look in (_twice, _outside_of, _retry_alone, _foreign_batching, _cache_across, _chaos, _usual):
            for finding in look(route, backend):
                found.setdefault((finding.rule.id, finding.place), finding)
    for finding in _legs(plan.pipeline):
        found.setdefault((finding.rule.id, finding.place), finding)
    return sorted(
        found.values(), key=lambda item: (item.rule.severity != "error", item.place.line, item.place.column)
    )


def _names(route: Route) -> list[str]:
    return [layer.name for layer in route]


def _twice(route: Route, _backend: BackendPlan) -> Iterator[Finding]:
    first: dict[str, LayerPlan] = {}
    for layer in route:
        if layer.name in first:
            what = f"{layer.name} stands twice on the way to one store, first at {first[layer.name].place}"
            yield Finding(NESTED if layer.name == "dual_write" else TWICE, layer.place, what)
        first.setdefault(layer.name, layer)


def _outside_of(route: Route, _backend: BackendPlan) -> Iterator[Finding]:
    names = _names(route)
    for rule in OUTSIDE:
        outer, inner = rule.layers
        if outer in names and inner in names and names.index(outer) > names.index(inner):
            yield Finding(rule, route[names.index(inner)].place, f"{inner} stands outside {outer}")


def _retry_alone(route: Route, backend: BackendPlan) -> Iterator[Finding]:
    names = _names(route)
    if "retry" not in names:
        return
    retry = route[names.index("retry")]
    if backend.entry.remote and "timeout" not in names:
        yield Finding(RETRY_ALONE, retry.place, f"retry over {backend.name!r} without a timeout")
    if not _honours_op_id(backend):
        yield Finding(FOREIGN_RETRY, retry.place, f"retry over {backend.name!r}")


def _foreign_batching(route: Route, backend: BackendPlan) -> Iterator[Finding]:
    for layer in route:
        if layer.name == "batching" and not _honours_op_id(backend):
            yield Finding(FOREIGN_BATCHING, layer.place, f"batching over {backend.name!r}")


def _chaos(route: Route, _backend: BackendPlan) -> Iterator[Finding]:
    for layer in route:
        if layer.name == "chaos":
            yield Finding(CHAOS, layer.place, "chaos stands in this chain")


def _cache_across(route: Route, backend: BackendPlan) -> Iterator[Finding]:
    for layer in route:
        exclusive = layer.options.get("exclusive") if layer.name == "cache" else None
        # What dies with its process is no other's.
        if exclusive is not None and not exclusive.value and backend.entry.durability != "volatile":
            yield Finding(CACHE_ACROSS_PROCESSES, layer.place, f"cache over {backend.name!r}")


def _usual(route: Route, _backend: BackendPlan) -> Iterator[Finding]:
    ranks = {name: rank for rank, name in enumerate((*ABOVE, *LEG))}
    known = [layer for layer in route if layer.name in ranks]
    told = {rule.layers for rule in OUTSIDE}
    for outer, inner in pairwise(known):
        if ranks[outer.name] > ranks[inner.name] and (inner.name, outer.name) not in told:
            yield Finding(USUAL_ORDER, inner.place, f"{inner.name} stands inside {outer.name}")


def _legs(pipeline: PipelinePlan) -> Iterator[Finding]:
    """What is asked of each leg of a dual write."""
    branches = pipeline.layers[-1].branches if pipeline.layers else {}
    for branch, leg in branches.items():
        if pipeline.layers[-1].name == "dual_write":
            for route, backend in leg.routes():
                yield from _leg(branch, leg.place, route, backend)
        yield from _legs(leg)


def _leg(branch: str, place: Place, route: Route, backend: BackendPlan) -> Iterator[Finding]:
    names, what = _names(route), f"the {branch} leg ({backend.name!r}, {backend.type})"
    if not _honours_op_id(backend):
        yield Finding(FOREIGN_LEG, place, f"{what} knows no op_id")
    if backend.entry.durability == "volatile":
        yield Finding(VOLATILE_LEG, place, f"{what} is volatile")
    if not backend.entry.remote:
        return  # it cannot be unreachable: nothing to break or to time
    if "circuit_breaker" not in names:
        yield Finding(LEG_WITHOUT_BREAKER, place, f"{what} has no circuit_breaker")
    if "timeout" not in names and "retry" not in names:
        yield Finding(LEG_WITHOUT_TIMEOUT, place, f"{what} has no timeout")


def _honours_op_id(backend: BackendPlan) -> bool:
    return not backend.adapted and cast("bool", getattr(backend.target, "honours_op_id", True))


__all__ = ["ABOVE", "LEG", "RULES", "Finding", "Rule", "check_order"]
