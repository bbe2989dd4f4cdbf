"""What is seen while it runs: a line for everything that happens, and below them the progress."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from .. import telemetry
from .journal import OK, Journal
from .phases import PHASES, Span
from .units import count, duration
from .watch import Happening, StoreNames

REFRESH: Final = 0.25
RECOVERY_SECONDS: Final = 5.0  # what a fail-back usually takes

SHOWN: Final = {
    telemetry.FAILOVER_COMPLETED,
    telemetry.FAILBACK_STARTED,
    telemetry.FAILBACK_COMPLETED,
    telemetry.BREAKER_OPENED,
    telemetry.BREAKER_CLOSED,
}


class Screen:
    """Lines and a progress bar. On something that is no terminal the lines remain and the bar is left out."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._names: StoreNames | None = None
        self._journal: Journal | None = None
        self._span: Span | None = None
        self._open_breakers: set[str] = set()

    def note(self, text: str) -> None:
        """Something that is done."""
        self.console.print(Text(f"  {text}", style="dim"))

    @contextmanager
    def load(self, journal: Journal, names: StoreNames, seconds: float) -> Generator[None]:
        """Show progress while the load runs."""
        self._names, self._journal = names, journal
        with Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as progress:
            task = progress.add_task("starting", total=len(PHASES), facts="")
            ticker = asyncio.get_running_loop().create_task(self._tick(progress, task, journal, seconds))
            try:
                yield
            finally:
                ticker.cancel()

    async def _tick(self, progress: Progress, task: TaskID, journal: Journal, seconds: float) -> None:
        seen, rate, failed = 0, 0.0, 0
        while True:
            await asyncio.sleep(REFRESH)
            entries = journal.entries
            new = entries[seen:]
            seen = len(entries)
            rate += 0.3 * (len(new) / REFRESH - rate)
            failed += sum(entry.outcome != OK for entry in new)
            store = self._spoken(entries[-1].served_by or "") if entries else ""
            facts = f"{count(seen)} operations · {rate:4.0f}/s · {store}"
            if failed:
                facts += f" · [red]{count(failed)} errors[/]"
            title = f"{journal.phase}/{len(PHASES)} {PHASES[journal.phase - 1].title}"
            done = self._done(journal.now(), seconds)
            progress.update(task, description=title, completed=done, facts=facts)

    def _done(self, now: float, seconds: float) -> float:
        """Phases that are over, and the share of this one: nobody knows how long a fail-back takes."""
        if self._span is None:
            return 0.0
        phase = self._span.phase
        planned = phase.share * seconds + (RECOVERY_SECONDS if phase.until_healthy else 0.0)
        return phase.number - 1 + min(0.95, (now - self._span.start) / planned)

    def phase(self, span: Span) -> None:
        """A phase begins."""
        style = "bold red" if span.phase.outage else "bold green" if span.phase.until_healthy else "bold"
        what = span.phase.title
        if span.phase.fault.value != "none":
            what = (
                f"{self._spoken(self._names.primary) if self._names else 'primary'} {span.phase.fault.value}"
            )
        self._span = span
        self._say(span.start, f"{span.phase.number}/{len(PHASES)} {what}", style)

    def event(self, happening: Happening) -> None:
        """The chain reports something."""
        store = self._spoken(happening.text("backend") or happening.text("leader"))
        span = self._span
        since = f", after {duration(happening.at - span.start)}" if span is not None else ""
        if happening.name == telemetry.FAILOVER_COMPLETED:
            took = since if span is not None and span.phase.outage else ""
            self._say(happening.at, f"    {store} takes over{took}", "yellow")
        elif happening.name == telemetry.FAILBACK_COMPLETED:
            took = since if span is not None and span.phase.until_healthy else ""
            self._say(happening.at, f"    {store} is level and leads again{took}", "cyan")
        elif happening.name == telemetry.BREAKER_OPENED and store not in self._open_breakers:
            self._open_breakers.add(store)
            self._say(happening.at, f"    circuit breaker of {store} opens", "")
        elif happening.name == telemetry.BREAKER_CLOSED and store in self._open_breakers:
            self._open_breakers.discard(store)
            self._say(happening.at, f"    circuit breaker of {store} closes", "")

    def _say(self, at: float, text: str, style: str) -> None:
        self.console.print(Text.assemble((f"{at:7.2f} s  ", "dim"), (text, style)))

    def _spoken(self, name: str) -> str:
        return self._names.spoken(name) if self._names else name
