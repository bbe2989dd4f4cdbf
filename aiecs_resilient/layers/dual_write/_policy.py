"""The few settings that reading and writing share, and what this process has seen."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

from ...clock import monotonic
from ...errors import StorageError
from ...records import Durability
from ._legs import Leg, means_unavailable

ROUTE_CHANGES = 4  # within one operation; more means that the lead flaps faster than a call takes


@dataclass(slots=True)
class Policy:
    """How patient, how durable, how frank.

    Attributes:
        patience: seconds of silence after which running into the caller's own deadline counts against the leader.
        floor: what one store must survive for its acknowledgement alone to count.
        flag_incomplete: answer from a store that may lack operations, flagged, instead of refusing.
        seen: the last stamp of a key that this process has written or read.
    """

    patience: float
    floor: Durability
    flag_incomplete: bool
    seen: LRUCache[str, int]

    def saw(self, key: str, stamp: int) -> None:
        """An answer below this would take back what this process was told."""
        if stamp > self.seen.get(key, 0):
            self.seen[key] = stamp

    def counts_against(self, leader: Leg, error: StorageError, start: float) -> bool:
        """Is this reason enough for the other store to take over?"""
        silent_for = monotonic() - start if leader.up else self.patience
        return means_unavailable(error, silent_for, self.patience)
