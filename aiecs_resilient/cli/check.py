"""``aiecs-resilient check FILE``: is this configuration right, and what does an acknowledgement of it survive?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path, typer.Argument(help="The configuration, such as config/production.yaml.", show_default=False)
]


def command(file: File) -> None:
    """Check a configuration without connecting: what is wrong and where, what is unwise, what an answer survives.

    Exit status 0 if it can be used (warnings included), 1 if not.
    """
    from ..assembly import assemble
    from ..configuration.reader import read_plan
    from ..configuration.rules import check_order
    from ..configuration.survival import survival
    from ..errors import ConfigurationError

    try:
        plan = read_plan(file)
        assemble(plan)
    except ConfigurationError as error:
        typer.echo(error.message)
        raise typer.Exit(1) from None
    warnings = check_order(plan)
    for finding in warnings:
        typer.echo(str(finding))
    count = f", {len(warnings)} warning{'s' * (len(warnings) > 1)}" if warnings else ""
    typer.echo(f"{file}: good{count}")
    typer.echo("An acknowledged write survives (as the stores declare, not measured):")
    for line in survival(plan.pipeline):
        typer.echo(f"  - {line}")
