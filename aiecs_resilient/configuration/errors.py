"""Where something is in a configuration, what is wrong there, and all of it reported together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import ConfigurationError
from .secrets import redact

MAX_REPORTED = 50


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: line and column count from 1; a mapping given by code has only a path."""

    source: str
    line: int = 0
    column: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.line:
            return f"{self.source}:{self.line}:{self.column}"
        return f"{self.source}: {self.path}" if self.path else self.source

    def below(self, step: str | int) -> Place:
        """The place of an entry of a mapping given by code."""
        text = f"[{step}]" if isinstance(step, int) else f".{step}" if self.path else step
        return Place(self.source, path=self.path + text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and how to put it right."""

    place: Place
    message: str
    allowed: tuple[str, ...] = ()
    nearest: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.place}: {redact(self.message)}"]  # a name may be a misplaced address
        if self.allowed:
            parts.append(f"allowed: {', '.join(self.allowed)}")
        if self.nearest is not None:
            parts.append(f"did you mean {self.nearest!r}?")
        if self.fix is not None:
            parts.append(self.fix)
        return "; ".join(parts)


class InvalidConfigurationError(ConfigurationError):
    """Everything that is wrong with one configuration, first first.

    Attributes:
        problems: one each, with place, message, allowed names and the nearest one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_REPORTED]]
        if len(self.problems) > MAX_REPORTED:
            lines.append(f"… and {len(self.problems) - MAX_REPORTED} more")
        super().__init__("\n".join(lines))


@dataclass(slots=True)
class Problems:
    """Collects what is wrong, so that one run shows everything."""

    found: list[Problem] = field(default_factory=list[Problem])

    def add(
        self,
        place: Place,
        message: str,
        *,
        allowed: Iterable[str] = (),
        given: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Note one; ``given`` is what was written instead of an allowed name, to find the nearest."""
        names = tuple(allowed)
        near = None if given is None else nearest(given, names)
        self.note(Problem(place, message, names, near, fix))

    def note(self, problem: Problem) -> None:
        """Note one, once: an alias is read at each of its uses."""
        if problem not in self.found:
            self.found.append(problem)

    def raise_any(self) -> None:
        """Raise them all together, if there are any."""
        if self.found:
            raise InvalidConfigurationError(
                sorted(self.found, key=lambda problem: (problem.place.line, problem.place.column))
            )


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The valid name that ``given`` was most likely meant to be."""
    by_folded = {name.casefold().replace("-", "_"): name for name in names}
    close = difflib.get_close_matches(given.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None
