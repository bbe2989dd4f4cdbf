"""Units of options, told in their types: what a constructor takes as a number, YAML may write as ``250ms`` or ``64MiB``.

The annotation is the single source: signatures stay plain numbers for code, and the configuration reads the unit from
here. No dependency, so that every layer may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True, slots=True)
class Unit:
    """What a bare number means, and its valid range (both ends included, ``above`` excluded)."""

    of: Literal["duration", "size", "number"]
    ge: float | None = None
    le: float | None = None
    above: float | None = None


Seconds = Annotated[float, Unit("duration", above=0)]
"""A positive duration. In YAML ``250ms``, ``2s``, ``5m``, ``1h`` or a number of seconds."""

SecondsOrZero = Annotated[float, Unit("duration", ge=0)]
"""A duration that may be zero."""

Bytes = Annotated[int, Unit("size", above=0)]
"""A size. In YAML ``64KiB``, ``10MB`` or a number of bytes."""

Count = Annotated[int, Unit("number", ge=1)]
"""A whole number of at least one."""

CountOrZero = Annotated[int, Unit("number", ge=0)]
"""A whole number of at least zero."""

Ratio = Annotated[float, Unit("number", ge=0, le=1)]
"""A share between 0 and 1."""
