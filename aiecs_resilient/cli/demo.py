"""``aiecs-resilient demo``: real servers, real dialogues, a primary that is killed and frozen, and a count of what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..demo.options import DemoOptions

_DEFAULT = DemoOptions()

Seconds = Annotated[float, typer.Option(help="How long the load runs, all phases together (5 to 600).")]
Sessions = Annotated[int, typer.Option(help="Conversations held at the same time (1 to 5000).")]
Rate = Annotated[float, typer.Option(help="Operations per second, all conversations together (10 to 5000).")]
Seed = Annotated[int, typer.Option(help="Which dialogues, in which order and with which pauses.")]
Report = Annotated[Path, typer.Option(help="Where the page with the picture is written.")]
Config = Annotated[
    Path | None,
    typer.Option(help="Another configuration than the shipped production.yaml.", show_default=False),
]


def command(
    seconds: Seconds = _DEFAULT.seconds,
    sessions: Sessions = _DEFAULT.sessions,
    rate: Rate = _DEFAULT.rate,
    seed: Seed = _DEFAULT.seed,
    report: Report = _DEFAULT.report,
    config: Config = _DEFAULT.config,
) -> None:
    """Watch a chain survive the loss of its primary store, twice.

    Starts a real Valkey and a real PostgreSQL, replays real dialogues through config/production.yaml, kills and freezes
    the primary meanwhile, reads both stores back without the library, and counts. Needs about a minute.

    Exit status 0 if nothing was lost, doubled, out of order or different in the two stores; 1 if anything was.
    """
    from rich.console import Console

    from ..demo.command import main

    try:
        options = DemoOptions(
            seconds=seconds, sessions=sessions, rate=rate, seed=seed, report=report, config=config
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(main(options, Console(highlight=False)))
