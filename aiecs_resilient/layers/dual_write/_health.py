"""What ``dual_write`` says of itself: healthy only if both stores are, both are complete and the primary leads."""

from __future__ import annotations

import asyncio

from ...errors import StorageError, StorageTimeoutError
from ...interface import Json
from ._legs import Leg
from ._routing import Router

_HEALTH_LIMIT = 1.0  # seconds that health waits for one store: what hangs for so long is not well


async def health_report(router: Router, *, is_open: bool) -> Json:
    """The contract's health, with the leader, the epoch and each leg's own report."""
    reports = await asyncio.gather(*(_leg_health(leg) for leg in router.legs), return_exceptions=True)
    legs: Json = {}
    issues: list[str] = []
    usable = 0
    for leg, answer in zip(router.legs, reports, strict=True):
        report: Json
        if isinstance(answer, StorageError):
            report = {"status": "unhealthy", "redis_connected": False, "issues": [str(answer)]}
        elif isinstance(answer, BaseException):
            raise answer
        else:
            report = answer
        usable += report["status"] != "unhealthy"
        issues += [f"{leg}: {issue}" for issue in report["issues"]]
        legs[leg.role] = {
            **report,
            "name": leg.name,
            "up": leg.up,
            "completeness": leg.completeness.value,
        }
        if leg.up and not leg.complete:
            issues.append(f"{leg} may lack operations that its peer holds; reconciliation is under way")
    if router.leader is router.fallback:
        issues.append(
            f"{router.fallback} leads since the primary became unavailable (epoch {router.route.epoch})"
        )
    issues += [f"a record could not be replayed: {error}" for error in router.refused[:3]]
    if router.problem is not None:
        issues.append(f"the stores cannot be reconciled: {router.problem!r}")
    healthy = is_open and usable == 2 and not issues and not router.degraded
    return {
        "status": "healthy" if healthy else "degraded" if is_open and usable else "unhealthy",
        "storage_backend": "dual_write",
        "redis_connected": any(report["redis_connected"] for report in legs.values()),
        "issues": issues,
        "leader": router.leader.name,
        "epoch": router.route.epoch,
        "legs": legs,
    }


async def metrics_report(router: Router) -> Json:
    """The leader's metrics, with routing and open marks under ``layers``."""
    try:
        metrics = await router.leader.backend.get_metrics()
    except StorageError:
        metrics = await router.follower.backend.get_metrics()
    metrics["layers"] = {
        **metrics.get("layers", {}),
        "dual_write": {
            "epoch": router.route.epoch,
            "leader": router.leader.name,
            "degraded": router.degraded,
            "replayed": router.replayed,
            "open_marks": {
                leg.name: leg.state.open_marks if leg.state is not None else None for leg in router.legs
            },
        },
    }
    return metrics


async def _leg_health(leg: Leg) -> Json:
    """A store that hangs must not make health hang: it is unhealthy, and that is the answer."""
    try:
        async with asyncio.timeout(_HEALTH_LIMIT):
            return await leg.backend.health_check()
    except TimeoutError as error:
        raise StorageTimeoutError(
            f"no answer to a health check within {_HEALTH_LIMIT:g} s", backend=leg.name
        ) from error
