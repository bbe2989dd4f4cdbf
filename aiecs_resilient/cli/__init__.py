"""The command ``aiecs-resilient``. Each subcommand is one file here, named in one line below."""

from __future__ import annotations

from importlib import import_module

import typer

COMMANDS = (
    "check",
    "explain",
    "schema",
    "demo",
    "campaign",
)
"""``cli/<name>.py`` has a function ``command``; its docstring is the help."""

main = typer.Typer(
    name="aiecs-resilient",
    help="Resilient storage for AI applications: check and explain a configuration, see it survive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, so they would show passwords
)

for _name in COMMANDS:
    main.command(_name)(import_module(f".{_name}", __name__).command)
