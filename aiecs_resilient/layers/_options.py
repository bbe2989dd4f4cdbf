"""Options are checked where a layer is built, by the same units that the configuration reads from the signature."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TypeVar, get_args

from ..errors import ConfigurationError
from ..operations import OPERATIONS
from ..units import Unit

N = TypeVar("N", int, float)


def checked(owner: str, option: str, value: N, kind: object) -> N:
    """The value, if it lies within its unit's range.

    Args:
        owner: the layer, as it is called in YAML.
        kind: one of the annotations of :mod:`aiecs_resilient.units`.

    Raises:
        ConfigurationError: it does not.
    """
    unit = next(item for item in get_args(kind)[1:] if isinstance(item, Unit))
    low = (unit.ge is None or value >= unit.ge) and (unit.above is None or value > unit.above)
    if math.isnan(value) or not low or (unit.le is not None and value > unit.le):
        limits = [
            f"{word} {bound:g}"
            for word, bound in (("at least", unit.ge), ("above", unit.above), ("at most", unit.le))
            if bound is not None
        ]
        what = " in seconds" if unit.of == "duration" else ""
        raise ConfigurationError(f"{owner}: {option} must be {' and '.join(limits)}{what}, not {value!r}")
    return value


def by_operation(owner: str, option: str, values: Mapping[str, N] | None, kind: object) -> dict[str, N]:
    """Overrides per operation, names and values checked.

    Raises:
        ConfigurationError: there is no such operation, or a value is out of range.
    """
    found: dict[str, N] = {}
    for name, value in (values or {}).items():
        if name not in OPERATIONS:
            near = difflib.get_close_matches(name, OPERATIONS, n=1, cutoff=0.0)
            raise ConfigurationError(
                f"{owner}: {option} names {name!r}, which is no operation; the nearest is {near[0]!r}, all are: "
                + ", ".join(sorted(OPERATIONS))
            )
        found[name] = checked(owner, f"{option}[{name!r}]", value, kind)
    return found
