"""What tracing, metrics and logging have in common: which store a chain ends in, and whose data an operation touches."""

from __future__ import annotations

from collections.abc import Mapping

from ..backends._store import StoreBackend
from ..interface import Backend
from ..operations import Operation
from ..telemetry import SYSTEM_CHAIN
from ._base import Layer


def system_of(backend: Backend) -> str:
    """``db.system.name`` of a chain: the kind of its store, or our own name where it branches into several."""
    while isinstance(backend, Layer):
        backend = backend.inner
    return backend.kind if isinstance(backend, StoreBackend) else SYSTEM_CHAIN


def key_of(op: Operation, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str | None:
    """The session or thread that this call touches, if it touches exactly one."""
    if op.key is None:
        return None
    key = args[0] if args else kwargs.get(op.key)
    return key if isinstance(key, str) else None
