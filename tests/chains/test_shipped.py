"""The chain that the campaign harms is the one that is shipped."""

from __future__ import annotations

from typing import Any

from aiecs_resilient.testing.campaign.chains import production as quick

from .shipped import production


def shape(part: Any) -> Any:
    """Names and order of layers, without their options."""
    match part:
        case list():
            return [shape(item) for item in part]
        case {"backend": name}:
            return f"backend {name}"
        case {"dual_write": options}:
            return {leg: shape(options[leg]) for leg in ("primary", "fallback")}
        case dict():
            return next(iter(part))
        case _:
            return part


def test_the_campaign_harms_the_shipped_chain() -> None:
    """Same layers, same order, in both legs: only times differ."""
    stores: tuple[dict[str, Any], dict[str, Any]] = ({"type": "memory"}, {"type": "memory"})
    shipped = production(hot=stores[0], cold=stores[1])
    assert shape(quick(*stores)["pipeline"]) == shape(shipped["pipeline"])
