"""What can go wrong on a network, as values: each fault is a small frozen object that a scenario can name and print.

Directions are seen from the client: `request` flows to the server, `reply` back. Times are in seconds. What a
fault does to the bytes is in `_connection.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["request", "reply", "both"]


def _check(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Base of all faults."""


@dataclass(frozen=True, kw_only=True)
class Directed(Fault):
    """Base of the faults that strike one direction, or both."""

    direction: Direction = "both"

    def __post_init__(self) -> None:
        _check(self.direction in ("request", "reply", "both"), 'direction is "request", "reply" or "both"')


@dataclass(frozen=True, kw_only=True)
class Chance(Directed):
    """Base of the faults that strike with a probability, decided for each piece of data by the seed."""

    probability: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 < self.probability <= 1, "probability is above 0 and at most 1")


# The way in.


@dataclass(frozen=True, kw_only=True)
class Refused(Fault):
    """Nobody listens: new connections are refused by the kernel and open ones reset. Counted once per outage."""


@dataclass(frozen=True, kw_only=True)
class Flapping(Fault):
    """Refused for one period, reachable for one period, and so on. Counted once per outage."""

    period: float = 0.05

    def __post_init__(self) -> None:
        _check(self.period > 0, "period is above 0 seconds")


@dataclass(frozen=True, kw_only=True)
class BlackHole(Fault):
    """Connections are accepted and bytes vanish. A connection that lost some stays silent, also after heal()."""


# Time.


@dataclass(frozen=True, kw_only=True)
class Latency(Directed):
    """Each piece of data waits delay ± jitter."""

    delay: float = 0.1
    jitter: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 <= self.jitter <= self.delay, "jitter is between 0 and delay")


@dataclass(frozen=True, kw_only=True)
class Bandwidth(Directed):
    """A slow link, about 10 KB/s."""

    bytes_per_second: float = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.bytes_per_second > 0, "bytes_per_second is above 0")


@dataclass(frozen=True, kw_only=True)
class Drip(Directed):
    """One byte at a time: progress for whoever counts bytes, none for whoever needs a message."""

    interval: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.interval > 0, "interval is above 0 seconds")


@dataclass(frozen=True, kw_only=True)
class Stall(Directed):
    """Data of one direction stand still until heal(), then go on; the other direction flows."""

    direction: Direction = "reply"


@dataclass(frozen=True, kw_only=True)
class SlowClose(Fault):
    """The end of a connection reaches the other side late."""

    delay: float = 1.0

    def __post_init__(self) -> None:
        _check(self.delay > 0, "delay is above 0 seconds")


# Pieces.


@dataclass(frozen=True, kw_only=True)
class Sliced(Directed):
    """Data arrive in pieces of a few bytes, `pause` apart so that they are read apart."""

    smallest: int = 1
    largest: int = 7
    pause: float = 0.0005

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(1 <= self.smallest <= self.largest, "1 <= smallest <= largest")
        _check(self.pause >= 0, "pause is at least 0 seconds")


@dataclass(frozen=True, kw_only=True)
class Cut(Directed):
    """After `at` more bytes of one direction the connection ends, usually in the middle of a message."""

    direction: Direction = "reply"
    at: int
    reset: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.at >= 0, "at is a number of bytes, at least 0")


@dataclass(frozen=True, kw_only=True)
class Corrupted(Chance):
    """One bit of one byte is wrong."""

    direction: Direction = "reply"


# Answers.


@dataclass(frozen=True, kw_only=True)
class Reset(Chance):
    """The next data are thrown away and the connection is reset (RST, not an orderly end)."""


@dataclass(frozen=True, kw_only=True)
class ReplyLost(Fault):
    """The server executes the request and its reply is thrown away, then the connection is reset.

    `matching`: only requests that contain these bytes (`b"COMMIT"`).
    """

    probability: float = 1.0
    matching: bytes = b""

    def __post_init__(self) -> None:
        _check(0 < self.probability <= 1, "probability is above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Silence(Fault):
    """The server executes, its replies are thrown away and the connection stays open, silent for ever."""


@dataclass(frozen=True, kw_only=True)
class LateReply(Fault):
    """A reply is held until the client sends its next request on that connection, or for `hold` seconds.

    Whoever gave up waiting and used the connection again reads the answer to the question before.
    """

    probability: float = 1.0
    hold: float = 5.0

    def __post_init__(self) -> None:
        _check(0 < self.probability <= 1, "probability is above 0 and at most 1")
        _check(self.hold > 0, "hold is above 0 seconds")
