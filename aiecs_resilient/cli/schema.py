"""``aiecs-resilient schema``: the JSON Schema of a configuration, for editors; ``config/schema.json`` is its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path | None, typer.Option(help="Write it to this file instead of printing it.")] = None,
    plugins: Annotated[
        bool, typer.Option(help="Include the layers and backends of installed plugins.")
    ] = False,
) -> None:
    """Print the JSON Schema of a configuration, made from the constructors of layers and backends."""
    from ..configuration.schema import schema
    from ..registry import Registry

    text = json.dumps(schema(Registry(plugins=plugins)), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
