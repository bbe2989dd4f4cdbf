"""The demo as a process: signals, errors and the exit status."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

from rich.console import Console
from rich.text import Text

from ..errors import ConfigurationError
from ..testing.servers import ServerError
from .dialogues import DialoguesNotInstalledError
from .options import DemoOptions
from .report_html import page
from .report_table import tables
from .run import run_demo
from .screen import Screen

INTERRUPTED: Final = 130  # what shells expect after Ctrl-C


def main(options: DemoOptions, console: Console) -> int:
    """Run it, show it, write the page. The exit status."""
    console.print(
        Text("aiecs-resilient demo", style="bold"), Text("losing the primary store, twice", style="dim")
    )
    try:
        return asyncio.run(_main(options, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; the servers are gone")
        return INTERRUPTED
    except (
        ConfigurationError,
        DialoguesNotInstalledError,
        ServerError,
        FileNotFoundError,
        ValueError,
    ) as error:
        console.print(Text(str(error), style="red"))
        return 1


async def _main(options: DemoOptions, console: Console) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # as orderly as Ctrl-C
    result = await run_demo(options, Screen(console))
    options.report.write_text(page(result), encoding="utf-8")
    console.print()
    console.print(tables(result))
    console.print(Text.assemble("  picture and story: ", (str(options.report.absolute()), "bold")))
    return 0 if result.verdict.clean else 1
