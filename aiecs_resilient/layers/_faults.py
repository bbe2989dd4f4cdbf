"""What ``chaos`` does to a call, and when: plain values and a seeded source, so that a run repeats exactly."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..errors import ConfigurationError

_NEVER_CORRUPTED = frozenset(
    {"session_id", "thread_id", "checkpoint_id", "message_id", "user_id", "position", "version"}
)
"""What says whose data it is: a store whose bytes rot answers wrong data, not somebody else's."""


class Fault(Enum):
    """The kinds, by the option that says how often."""

    ERROR_BEFORE = "error_before"
    ERROR_AFTER = "error_after"
    HANG = "hang"
    CANCEL = "cancel"
    CORRUPT = "corrupt"


@dataclass(slots=True)
class Schedule:
    """When faults are made: from ``start_after`` on, for ``run_for`` seconds, again every ``every`` seconds."""

    start_after: float = 0.0
    run_for: float | None = None
    every: float | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (self.run_for is None or self.run_for > self.every):
            raise ConfigurationError(
                "chaos: every needs a run_for that is not longer: faults are made for run_for seconds, every so often"
            )

    def active(self, elapsed: float) -> bool:
        """Whether it is time, so many seconds after the first call."""
        since = elapsed - self.start_after
        if since < 0:
            return False
        if self.every is not None:
            since %= self.every
        return self.run_for is None or since < self.run_for


@dataclass(slots=True)
class Dice:
    """The seeded source, and what it has brought about; outlives a reload."""

    seed: int = 0
    source: random.Random = field(default_factory=random.Random)
    started: float | None = None
    calls: int = 0
    made: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.reseed(self.seed)

    def reseed(self, seed: int) -> None:
        """Begin anew, from this seed."""
        self.seed, self.source = seed, random.Random(seed)  # noqa: S311  reproducible, not secret

    def draw(self, rates: Mapping[Fault, float]) -> Fault | None:
        """At most one of them for this call."""
        point = self.source.random()
        for fault, rate in rates.items():
            if point < rate:
                return fault
            point -= rate
        return None

    def count(self, what: str) -> None:
        """It was done."""
        self.made[what] = self.made.get(what, 0) + 1

    def corrupted(self, answer: Any) -> Any:
        """A copy with one value changed; the answer itself if there is nothing in it to change."""
        rotten = copy.deepcopy(answer)
        places = list(_places(rotten))
        if not places:
            return answer
        holder, at = self.source.choice(places)
        holder[at] = self._other(holder[at])
        return rotten

    def _other(self, value: Any) -> Any:
        if isinstance(value, str):
            at = self.source.randrange(len(value)) if value else 0
            return value[:at] + ("#" if value[at : at + 1] != "#" else "?") + value[at + 1 :]
        if isinstance(value, bytes):
            at = self.source.randrange(len(value)) if value else 0
            return value[:at] + bytes([(value[at] if value else 0) ^ 1]) + value[at + 1 :]
        return value + 1


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    """Texts, bytes and numbers in it, each with what holds it."""
    raw: Any = value  # as it came: checkers narrow `value` to containers of unknown items
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(raw.items())
    elif isinstance(value, list):
        held: list[Any] = raw
        items = list(enumerate(held))
    for at, item in items:
        if at in _NEVER_CORRUPTED:
            continue
        if isinstance(item, (str, bytes, int, float)) and not isinstance(item, bool):
            yield raw, at
        else:
            yield from _places(item)
