"""What an operator would see: events as the chain reports them, and its health, asked twice a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from .. import telemetry
from ..clock import spawn
from ..errors import StorageError
from ..interface import Backend
from .journal import Journal

HEALTH_EVERY: Final = 0.5
HEALTH_LIMIT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of the chain. ``at`` is in seconds since the load began."""

    at: float
    name: str
    attributes: Mapping[str, telemetry.Value]

    def text(self, name: str) -> str:
        return str(self.attributes.get(name, ""))

    def number(self, name: str) -> int:
        value = self.attributes.get(name, 0)
        return int(value) if isinstance(value, int | float) else 0


@dataclass(frozen=True, slots=True)
class Health:
    """One answer of ``health_check``, as far as the picture needs it."""

    at: float
    status: str
    leader: str
    epoch: int
    complete: bool
    issues: tuple[str, ...]

    def __str__(self) -> str:
        issues = f": {'; '.join(self.issues)}" if self.issues else ""
        return f"{self.status}, {self.leader or 'nobody'} leads (epoch {self.epoch}){issues}"


@dataclass(frozen=True, slots=True)
class StoreNames:
    """How the two stores are called: in the chain, and to people."""

    primary: str
    fallback: str
    kinds: Mapping[str, str]

    @classmethod
    async def of(cls, storage: Backend) -> StoreNames:
        """As health tells them."""
        report = await storage.health_check()
        legs: dict[str, Any] = report.get("legs", {})
        if set(legs) < {"primary", "fallback"}:
            raise ValueError(
                "the demo needs a chain that ends in dual_write: the configuration has no primary and fallback"
            )
        named = {role: str(legs[role]["name"]) for role in ("primary", "fallback")}
        kinds = {named[role]: _spoken(str(legs[role]["storage_backend"])) for role in named}
        if len(set(kinds.values())) < len(kinds):  # two of a kind: then by name
            kinds = {}
        return cls(named["primary"], named["fallback"], kinds)

    def spoken(self, name: str) -> str:
        """``Valkey`` rather than ``hot``."""
        return self.kinds.get(name, name)


def _spoken(kind: str) -> str:
    return {"redis": "Valkey", "postgresql": "PostgreSQL", "sqlite": "SQLite"}.get(kind, kind.capitalize())


class Watch:
    """Listens from entering to leaving. ``on_event`` is told at once, for the screen."""

    def __init__(
        self,
        storage: Backend,
        journal: Journal,
        names: StoreNames,
        *,
        on_event: Callable[[Happening], None] = lambda _happening: None,
    ) -> None:
        self._storage, self._journal, self._names, self._on_event = storage, journal, names, on_event
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self.happenings: list[Happening] = []
        self.samples: list[Health] = []

    @property
    def latest(self) -> Health | None:
        return self.samples[-1] if self.samples else None

    @property
    def healthy(self) -> bool:
        """The primary leads, nothing is missing anywhere, and the latest look saw it."""
        last = self.latest
        return last is not None and (last.status, last.leader, last.complete) == (
            "healthy",
            self._names.primary,
            True,
        )

    async def look(self) -> Health:
        """Ask for health now."""
        report: dict[str, Any]
        try:
            async with asyncio.timeout(HEALTH_LIMIT):
                report = await self._storage.health_check()
        except (StorageError, TimeoutError) as error:
            report = {"status": "unhealthy", "issues": [f"health_check: {error!r}"]}
        legs: Mapping[str, Any] = report.get("legs", {})
        sample = Health(
            at=self._journal.now(),
            status=str(report["status"]),
            leader=str(report.get("leader", "")),
            epoch=int(report.get("epoch", 0)),
            complete=bool(legs) and all(leg.get("completeness") == "complete" for leg in legs.values()),
            issues=tuple(str(issue) for issue in report.get("issues", ())),
        )
        self.samples.append(sample)
        return sample

    def of(self, *wanted: str) -> list[Happening]:
        """The events of these names, in their order."""
        return [happening for happening in self.happenings if happening.name in wanted]

    async def __aenter__(self) -> Self:
        self._unsubscribe = telemetry.subscribe(self._hear)
        self._task = spawn(self._keep_looking(), name="demo health")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _hear(self, event: telemetry.Event) -> None:
        happening = Happening(self._journal.now(), event.name, event.attributes)
        self.happenings.append(happening)
        self._on_event(happening)

    async def _keep_looking(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(HEALTH_EVERY)
