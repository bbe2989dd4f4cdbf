"""``aiecs-resilient campaign``: every way in which stores fail, on real servers, and a count of what was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ..testing.campaign.series import Episode, Line

Seeds = Annotated[int, typer.Option(min=1, help="How many seeds each scenario is played under.")]
First = Annotated[int, typer.Option(min=0, help="The first seed.")]
Seconds = Annotated[
    float, typer.Option(min=1.0, max=3600.0, help="How long each scenario takes, healing not included.")
]
Only = Annotated[
    list[str] | None, typer.Option(help="Only this scenario; may be repeated.", show_default=False)
]
Folder = Annotated[
    Path, typer.Option(help="Where verdicts are kept; with those of an earlier series, it is continued.")
]


def command(
    seeds: Seeds = 10,
    first: First = 1,
    seconds: Seconds = 10.0,
    only: Only = None,
    folder: Folder = Path("campaign"),
) -> None:
    """Kill, stop and cut real stores under load, again and again, and have a separate program count what was lost.

    Starts a real Valkey and a real PostgreSQL. An interrupted series goes on where it stopped.

    Exit status 0 if every episode passed; 1 if one did not; its seed and its findings are printed.
    """
    from ..testing.campaign import SCENARIOS
    from ..testing.campaign.series import CHAINS, OWN_PROCESS, planned

    names = [*SCENARIOS, OWN_PROCESS]
    if only and (unknown := [name for name in only if name not in names]):
        raise typer.BadParameter(f"no scenario {unknown[0]!r}; there are: {', '.join(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    episodes = planned(range(first, first + seeds), only or names, CHAINS)
    logging.getLogger("aiecs_resilient").setLevel(logging.CRITICAL)  # outages are what this is about
    raise typer.Exit(asyncio.run(_play(episodes, seconds, folder)))


async def _play(episodes: Sequence[Episode], seconds: float, folder: Path) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..testing.campaign.series import RECORD, latest, play

    console, record = Console(highlight=False), folder / RECORD
    passed = sum(line["ok"] for episode, line in latest(record).items() if episode in set(episodes))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("campaign", total=len(episodes), completed=passed)
        async with aclosing(play(episodes, seconds=seconds, folder=folder)) as played:
            async for episode, line in played:
                progress.update(task, advance=1, description=episode.name)
                if not line["ok"]:
                    console.print(line["text"], markup=False)
    lines = [line for episode, line in latest(record).items() if episode in set(episodes)]
    console.print(summary(lines))
    return 0 if all(line["ok"] for line in lines) else 1


def summary(lines: Sequence[Line]) -> Table:
    """What the whole series proved, as a table."""
    from rich.table import Table

    table = Table("what", "how many")
    counts = {
        "episodes": len(lines),
        "passed": sum(line["ok"] for line in lines),
        "faults": sum(line["faults"] for line in lines),
        "acknowledged writes": sum(line["acknowledged"] for line in lines),
    }
    for kind in ("lost", "duplicated", "out_of_order", "foreign", "counters", "stale_reads", "differing"):
        counts[kind.replace("_", " ")] = sum(line["violations"].get(kind, 0) for line in lines)
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    return table
