"""What an acknowledgement of a chain survives, as its stores declare it: the sentence that `check` prints."""

from __future__ import annotations

from .models import BackendPlan, LayerPlan, PipelinePlan

_SURVIVES = {
    "volatile": "nothing",
    "process": "a killed server process",
    "host": "a power loss of the store's machine",
    "replicated": "the loss of the store's machine",
    "unknown": "what that store promises; it declares nothing",
}


def survival(pipeline: PipelinePlan) -> list[str]:
    """One line per statement; declared, not measured."""
    if pipeline.backend is not None:
        return [_of_store(pipeline.backend)]
    branching = pipeline.layers[-1]
    stores = [f"{name}: {line}" for name, leg in branching.branches.items() for line in survival(leg)]
    return [*_of_pair(branching), *stores]


def _of_pair(layer: LayerPlan) -> list[str]:
    if layer.name != "dual_write":
        return []
    written = {name: value.value for name, value in layer.options.items()}
    floor = str(written.get("durable_at_least", "process"))
    if written.get("write", "both") == "both":
        first = "the loss of either store, once both have it (the answer's durability says `both`)"
    else:
        first = "the loss of the fallback; the primary's loss may cost its last writes, as many as the lag"
    return [
        first,
        f"while one store is away: what the other one survives, at least `{floor}`; it holds a mark for the peer",
    ]


def _of_store(backend: BackendPlan) -> str:
    declared = backend.options.get("durability")
    if declared is not None and declared.place is not None and str(declared.value) in _SURVIVES:
        return (
            f"{_SURVIVES[str(declared.value)]} ({backend.name}, {backend.type}: declared in {declared.place})"
        )
    level, caveat = backend.entry.durability, backend.entry.caveat
    return f"{_SURVIVES[level]} ({backend.name}, {backend.type}{': ' + caveat if caveat else ''})"
