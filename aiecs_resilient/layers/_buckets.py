"""Token buckets by group, in bounded memory: how many operations a second each may make."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """Tokens of one group; below zero while callers wait for what they have taken in advance."""

    tokens: float
    at: float


@dataclass(slots=True)
class Buckets:
    """The buckets of one layer; outlive a reload.

    Attributes:
        rate: tokens a second that each gets.
        burst: the most that one holds.
        most: groups that are remembered; the one that was quiet for longest is forgotten first, and begins with a full one.
        admitted, waited, refused, shed: how many operations there were.
    """

    rate: float = 1.0
    burst: int = 1
    most: int = 10_000
    rates: dict[str, float] = field(default_factory=dict[str, float])
    admitted: int = 0
    waited: int = 0
    refused: int = 0
    shed: int = 0
    _held: OrderedDict[str, Bucket] = field(default_factory=OrderedDict[str, Bucket])

    def __len__(self) -> int:
        return len(self._held)

    def take(self, group: str, tokens: int, now: float, patience: float) -> tuple[bool, float]:
        """Whether so many tokens were taken, and after how many seconds they are there.

        What would take longer than ``patience`` is not taken. An operation that costs more than a full bucket costs that.
        """
        bucket = self._bucket(group, now)
        rate = self.rates.get(group, self.rate)
        bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        cost = min(tokens, self.burst)
        wait = max(0.0, (cost - bucket.tokens) / rate)
        if wait > patience:
            return False, wait
        bucket.tokens -= cost
        return True, wait

    def give_back(self, group: str, tokens: int) -> None:
        """They were not used after all."""
        bucket = self._held.get(group)
        if bucket is not None:
            bucket.tokens = min(self.burst, bucket.tokens + min(tokens, self.burst))

    def _bucket(self, group: str, now: float) -> Bucket:
        bucket = self._held.get(group)
        if bucket is None:
            while len(self._held) >= self.most:
                self._held.popitem(last=False)
            bucket = self._held[group] = Bucket(self.burst, now)
        else:
            self._held.move_to_end(group)
        return bucket
