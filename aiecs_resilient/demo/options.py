"""What can be chosen about a run, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIN_SECONDS: Final = 5.0  # below, a phase is over before anything can be seen in it
MAX_SECONDS: Final = 600.0
MAX_SESSIONS: Final = 5_000
MIN_RATE: Final = 10.0
MAX_RATE: Final = 5_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Validated when made.

    Attributes:
        seconds: how long the load runs, all phases together; waiting for a fail-back may add to it.
        sessions: conversations held at the same time.
        rate: operations per second, all sessions together. The default leaves a machine with two cores half idle.
        seed: which dialogues, in which order and with which pauses; equal seeds give equal requests.
        report: where the page is written.
        config: the configuration of the chain; None for the ``production.yaml`` that is shipped.
    """

    seconds: float = 46.0
    sessions: int = 300
    rate: float = 220.0
    seed: int = 1
    report: Path = Path("demo-report.html")
    config: Path | None = None

    def __post_init__(self) -> None:
        _within("seconds", self.seconds, MIN_SECONDS, MAX_SECONDS)
        _within("sessions", self.sessions, 1, MAX_SESSIONS)
        _within("rate", self.rate, MIN_RATE, MAX_RATE)
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        if self.report.is_dir():
            raise ValueError(
                f"report must be a file to write, but {self.report} is a folder: name a file in it"
            )
        if not self.report.absolute().parent.is_dir():
            raise ValueError(f"report cannot be written: there is no folder {self.report.absolute().parent}")
        if self.config is not None and not self.config.is_file():
            raise ValueError(f"config must be a YAML file, and there is none at {self.config}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low:g} to {high:g}, not {value:g}")
