"""What is done to the primary while the application goes on, and for how long.

Six phases: healthy, killed, back, healthy, frozen, thawed. A phase that waits for something the chain has to do (the
primary leading again) ends when health says so, or fails after a bound: a demonstration must not hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from .journal import Journal
from .watch import Watch

STEP_LIMIT: Final = 30.0  # seconds in which a returned primary has to lead again
STEP_POLL: Final = 0.05


class Fault(Enum):
    """What a phase begins with."""

    NONE = "none"
    KILL = "killed with SIGKILL"
    RESTART = "restarted on its port and folder"
    FREEZE = "frozen with SIGSTOP"
    THAW = "thawed with SIGCONT"


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of the run.

    Attributes:
        share: of the planned seconds; with ``until_healthy`` the least it takes after the primary leads again.
        outage: the primary cannot serve.
    """

    number: int
    title: str
    share: float
    fault: Fault = Fault.NONE
    outage: bool = False
    until_healthy: bool = False


PHASES: Final = (
    Phase(1, "healthy", 0.14),
    Phase(2, "primary killed", 0.18, Fault.KILL, outage=True),
    Phase(3, "primary back", 0.06, Fault.RESTART, until_healthy=True),
    Phase(4, "healthy again", 0.13),
    Phase(5, "primary frozen", 0.18, Fault.FREEZE, outage=True),
    Phase(6, "primary thawed", 0.12, Fault.THAW, until_healthy=True),
)
# The rest of the seconds is what the two fail-backs take, about 4 s each at the default length.


class Primary(Protocol):
    """The server that is harmed. Calls block."""

    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(slots=True)
class Span:
    """A phase as it took place; seconds since the load began."""

    phase: Phase
    start: float
    end: float = 0.0


class StuckError(RuntimeError):
    """The chain did not do in time what it has to do by itself."""


class Conductor:
    """Leads through the phases, and says which one it is."""

    def __init__(
        self,
        primary: Primary,
        journal: Journal,
        watch: Watch,
        *,
        seconds: float,
        on_phase: Callable[[Span], None] = lambda _span: None,
        on_thaw: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._primary, self._journal, self._watch = primary, journal, watch
        self._seconds, self._on_phase, self._on_thaw = seconds, on_phase, on_thaw
        self.spans: list[Span] = []

    async def run(self) -> None:
        """All phases.

        Raises:
            StuckError: the primary was back, and did not lead again within :data:`STEP_LIMIT` seconds.
        """
        for phase in PHASES:
            if phase.fault is Fault.RESTART:  # it counts from when the server serves again
                await self._inflict(phase.fault)
            span = self._begin(phase)
            if phase.fault is not Fault.RESTART:  # a signal counts from when it is sent
                await self._inflict(phase.fault)
            try:
                if phase.until_healthy:
                    await self._until_healthy(phase)
                await asyncio.sleep(phase.share * self._seconds)
            finally:
                span.end = self._journal.now()

    def _begin(self, phase: Phase) -> Span:
        span = Span(phase, self._journal.now())
        if self.spans:
            self.spans[-1].end = span.start
        self._journal.phase = phase.number
        self.spans.append(span)
        self._on_phase(span)
        return span

    async def _inflict(self, fault: Fault) -> None:
        action = {
            Fault.KILL: self._primary.kill,
            Fault.RESTART: self._primary.restart,
            Fault.FREEZE: self._primary.pause,
            Fault.THAW: self._primary.resume,
        }.get(fault)
        if action is not None:
            await asyncio.to_thread(action)
        if fault is Fault.THAW and self._on_thaw is not None:
            await self._on_thaw()

    async def _until_healthy(self, phase: Phase) -> None:
        try:
            async with asyncio.timeout(STEP_LIMIT):
                while not self._watch.healthy:  # noqa: ASYNC110  health is asked, not told: it is polled by design
                    await asyncio.sleep(STEP_POLL)
        except TimeoutError:
            raise StuckError(
                f"phase {phase.number}, {phase.title}: health was not restored within {STEP_LIMIT:g} s; "
                f"it says {self._watch.latest}"
            ) from None
