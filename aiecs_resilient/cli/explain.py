"""``aiecs-resilient explain FILE``: the chain as a tree, with every option and where its value came from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from ..configuration.models import PipelinePlan, Plan
    from ..configuration.options import Value

File = Annotated[
    Path, typer.Argument(help="The configuration, such as config/production.yaml.", show_default=False)
]

_WIDE = 240  # in a pipe or a file nothing is wrapped


def command(file: File) -> None:
    """Draw the chain, outermost layer first, with all options: yours with their place, defaults dim."""
    from rich.console import Console

    from ..configuration.reader import read_plan
    from ..errors import ConfigurationError

    try:
        plan = read_plan(file)
    except ConfigurationError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from None
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDE
    console.print(draw(plan))


def draw(plan: Plan) -> Tree:
    """The tree of a plan."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(plan.source, style="bold"))
    if plan.observability is not None:
        _options(
            tree.add(Text("observability", style="magenta")), plan.observability.options.values(), plan.source
        )
    _pipeline(tree, plan.pipeline, plan.source)
    return tree


def _pipeline(tree: Tree, pipeline: PipelinePlan, source: str) -> None:
    from rich.text import Text

    for layer in pipeline.layers:
        node = tree.add(
            Text.assemble((layer.name, "bold cyan"), ("  " + _where(str(layer.place), source), "dim"))
        )
        _options(node, layer.options.values(), source)
        for name, branch in layer.branches.items():
            _pipeline(node.add(Text(name, style="bold yellow")), branch, source)
    if pipeline.backend is not None:
        backend = pipeline.backend
        where = _where(str(backend.place), source)
        title = Text.assemble((backend.type, "bold green"), f" {backend.name}", (f"  {where}", "dim"))
        _options(tree.add(title), backend.options.values(), source)


def _options(tree: Tree, values: Iterable[Value], source: str) -> None:
    for value in values:
        tree.add(_line(value, source))


def _line(value: Value, source: str) -> Text:
    from rich.text import Text

    shown = f"{value.option.key}: {value.option.text(value.value)}"
    if value.place is None:
        return Text(f"{shown}  default", style="dim")
    origin = _where(str(value.place), source)
    if value.variables:
        names = ", ".join(value.variables)
        origin += f", default of unset {names}" if value.defaulted else f", from {names}"
    return Text.assemble(shown, (f"  {origin}", "dim"))


def _where(place: str, source: str) -> str:
    """The place without the file's name, which stands at the root of the tree."""
    return "line " + place.removeprefix(f"{source}:") if place.startswith(f"{source}:") else place
