"""A TCP proxy on loopback that injures what passes: in front of any server, faults switchable while it runs.

async with FaultProxy("127.0.0.1", server.port, seed=7) as proxy:
    storage = await connect(proxy.through(server.url))
    proxy.set(ReplyLost(probability=0.1))
    ...
    proxy.heal()
    assert proxy.injected[ReplyLost] > 0   # a scenario that injected nothing proves nothing
"""

from ._proxy import FaultProxy
from .faults import (
    Bandwidth,
    BlackHole,
    Corrupted,
    Cut,
    Direction,
    Drip,
    Fault,
    Flapping,
    Latency,
    LateReply,
    Refused,
    ReplyLost,
    Reset,
    Silence,
    Sliced,
    SlowClose,
    Stall,
)

__all__ = [
    "Bandwidth",
    "BlackHole",
    "Corrupted",
    "Cut",
    "Direction",
    "Drip",
    "Fault",
    "FaultProxy",
    "Flapping",
    "LateReply",
    "Latency",
    "Refused",
    "ReplyLost",
    "Reset",
    "Silence",
    "Sliced",
    "SlowClose",
    "Stall",
]
